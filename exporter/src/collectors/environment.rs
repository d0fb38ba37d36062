//! Whether the main processes of units were started with the environment that is expected of them. A unit file that was
//! mended does nothing for a process that was started before. Only the variables that the configuration names are looked
//! at, and of those only whether they are as expected leaves this module.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use evenkeel_host::{
    config::{ConfigError, Located},
    environ::{Environ, Environs, Unread, is_variable_name},
    metrics::{Family, Renewed},
    systemd::{Error, Systemd, is_unit_name},
};
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::{CollectError, Collector, Look};
use crate::{
    by_root::ByRoot,
    evidence::{Environment, NoEnvironment, Piece, Variable},
};

/// The name of the collector.
pub const NAME: &str = "environment";

/// Units asked about at a time.
const IN_FLIGHT: usize = 8;

/// The environment that the main process of a service must have been started with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A service.
    pub unit: Located<String>,
    /// Variables, and the values that its main process should have been started with.
    pub expect: Located<BTreeMap<String, String>>,
}

impl Config {
    /// Checks one entry; `others` are the entries before it.
    ///
    /// # Errors
    /// When the unit is no service or taken, or a variable has no name that one can have.
    pub fn check(&self, others: &[Self], origin: &str) -> Result<(), ConfigError> {
        let unit = &self.unit.value;
        let refuse = |message: String| Err(ConfigError::at(origin, &self.unit, message));
        if !is_unit_name(unit) || !unit.ends_with(".service") || unit.contains("@.") {
            let unit: String = unit.chars().take(64).collect();
            return refuse(format!(
                "`environment`: `{}` is no service: write name.service",
                unit.escape_debug()
            ));
        }
        if others.iter().any(|other| other.unit.value == *unit) {
            return refuse(format!("`environment`: `{unit}` stands twice: list all its variables once"));
        }
        let expected = &self.expect.value;
        if let Some(name) = expected.keys().find(|name| !is_variable_name(name)) {
            let name: String = name.chars().take(64).collect();
            let message = format!(
                "`environment`: `{}` is no name of a variable: write letters, digits and _",
                name.escape_debug()
            );
            return Err(ConfigError::at(origin, &self.expect, message));
        }
        if expected.is_empty() {
            let message =
                format!("`environment`: nothing is expected of `{unit}`: write expect: {{NAME: value}}");
            return Err(ConfigError::at(origin, &self.expect, message));
        }
        Ok(())
    }

    fn judge(&self, environ: &Environ) -> Vec<(String, Variable)> {
        let judge = |(name, expected): (&String, &String)| {
            let variable = match environ.get(name) {
                Some(value) if value == expected.as_bytes() => Variable::Met,
                Some(_) => Variable::Different,
                None => Variable::Missing,
            };
            (name.clone(), variable)
        };
        self.expect.value.iter().map(judge).collect()
    }

    /// What root has found out of just these variables, if it knows all of them.
    fn by_root(&self, found: &Environment) -> Option<Result<Vec<(String, Variable)>, NoEnvironment>> {
        let known = match &found.variables {
            Ok(known) => known,
            Err(why) => return Some(Err(*why)),
        };
        let variable = |name: &String| known.iter().find(|(other, _)| other == name).cloned();
        self.expect.value.keys().map(variable).collect::<Option<Vec<_>>>().map(Ok)
    }
}

/// The collector.
pub struct EnvironmentCollector {
    entries: Vec<Config>,
    systemd: Systemd,
    environs: Environs,
    /// Where the host's files are.
    root: PathBuf,
    by_root: ByRoot,
    told: Renewed,
}

impl EnvironmentCollector {
    /// The collector for these units of this host. It connects at the first look.
    pub fn new(entries: &[Config]) -> Self {
        Self::over(entries, Systemd::system(), Path::new("/"), ByRoot::default())
    }

    fn over(entries: &[Config], systemd: Systemd, root: &Path, by_root: ByRoot) -> Self {
        Self {
            entries: entries.to_vec(),
            systemd,
            environs: Environs::default(),
            root: root.to_path_buf(),
            by_root,
            told: Renewed::default(),
        }
    }

    /// What is found of every unit, in the order of the configuration.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) async fn find(&self, deadline: Instant) -> Result<Arc<[Environment]>, Error> {
        let units: Vec<_> = self.entries.iter().map(|entry| self.find_one(entry, deadline)).collect();
        stream::iter(units).buffered(IN_FLIGHT).try_collect::<Vec<_>>().await.map(Into::into)
    }

    async fn find_one(&self, entry: &Config, deadline: Instant) -> Result<Environment, Error> {
        let unit = entry.unit.value.clone();
        let mut found = self.read(&unit, deadline).await?;
        // It was restarted in between: there is another one now, or none.
        if matches!(found, Err(NoEnvironment::Unread(Unread::Gone))) {
            found = self.read(&unit, deadline).await?;
        }
        let variables = match found {
            Ok(environ) => Ok(entry.judge(&environ)),
            Err(why @ NoEnvironment::Unread(Unread::Permission)) => {
                let facts = self.by_root.read();
                let found = facts.as_ref().and_then(|facts| facts.environment(&unit));
                found.and_then(|found| entry.by_root(&found)).unwrap_or(Err(why))
            }
            Err(why) => Err(why),
        };
        Ok(Environment { unit, variables })
    }

    async fn read(
        &self,
        unit: &str,
        deadline: Instant,
    ) -> Result<Result<Arc<Environ>, NoEnvironment>, Error> {
        let Some(process) = self.systemd.main_process(unit).await? else {
            return Ok(Err(NoEnvironment::NotRunning));
        };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let read = self.environs.of(&self.root, process.pid, &process.control_group, left).await;
        Ok(read.map_err(NoEnvironment::Unread))
    }
}

impl Collector for EnvironmentCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(async move {
            if self.entries.is_empty() {
                return Ok(Look::Absent("`environment` of the configuration names no unit"));
            }
            let found = self.find(deadline).await.map_err(CollectError::new)?;
            Ok(Look::of(self.told.blocks(families(&found))).with(Piece::Environments(found)))
        })
    }

    fn down(&self) -> Vec<Family> {
        Vec::new()
    }
}

fn families(found: &[Environment]) -> Vec<Family> {
    let mut expected = Family::gauge(
        "evenkeel_environment_expected",
        "Whether the unit's main process was started with the value that the configuration lists for the variable.",
    );
    let mut failure = Family::gauge(
        "evenkeel_environment_failure",
        "1 for the reason for which the environment of the unit's main process is not known, else 0.",
    );
    for environment in found {
        let unit = ("unit", environment.unit.as_str());
        for (name, variable) in environment.variables.iter().flatten() {
            let is_met = *variable == Variable::Met;
            expected.sample(&[unit, ("variable", name)], f64::from(u8::from(is_met)));
        }
        for reason in NoEnvironment::ALL {
            let is_it = environment.variables.as_ref().err() == Some(&reason);
            failure.sample(&[unit, ("reason", reason.as_str())], f64::from(u8::from(is_it)));
        }
    }
    vec![expected, failure]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use evenkeel_host::systemd::fake::{FakeSystemd, FakeUnit, Mood};

    use super::*;
    use crate::{collectors::Seen, config};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A host on which `quantum-portfolio-intelligence.service` runs as process 4711.
    struct Host {
        folder: tempfile::TempDir,
        fake: FakeSystemd,
    }

    const UNIT: &str = "quantum-portfolio-intelligence.service";

    impl Host {
        fn new(environ: &[u8]) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let fake = FakeSystemd::start(folder.path(), vec![FakeUnit::new(UNIT)]);
            let process = folder.path().join("proc/4711");
            fs::create_dir_all(&process).expect("made");
            fs::write(process.join("environ"), environ).expect("written");
            fs::write(process.join("cgroup"), format!("0::/system.slice/{UNIT}\n")).expect("written");
            Self { folder, fake }
        }

        fn collector(&self, yaml: &str) -> EnvironmentCollector {
            let config = config::Config::parse("c.yml", yaml).expect("good");
            let systemd = Systemd::at(&self.fake.address()).with_limit(PATIENCE);
            let nowhere = ByRoot::at(&self.folder.path().join("facts.json"));
            EnvironmentCollector::over(&config.environment, systemd, self.folder.path(), nowhere)
        }

        async fn find(&self, yaml: &str) -> Vec<Environment> {
            self.collector(yaml).find(Instant::now() + PATIENCE).await.expect("systemd answers").to_vec()
        }
    }

    #[tokio::test]
    async fn each_variable_is_as_expected_different_or_missing() {
        let host = Host::new(b"REDIS_HOST=127.0.0.1\0REDIS_PORT=6380\0API_KEY=hunter2\0");
        let yaml = format!(
            "environment: [{{unit: {UNIT}, expect: {{REDIS_HOST: 127.0.0.1, REDIS_PORT: 6379, REDIS_DB: 0}}}}]"
        );
        let variable = |name: &str, variable| (name.to_owned(), variable);
        let variables = Ok(vec![
            variable("REDIS_DB", Variable::Missing),
            variable("REDIS_HOST", Variable::Met),
            variable("REDIS_PORT", Variable::Different),
        ]);
        assert_eq!(host.find(&yaml).await, [Environment { unit: UNIT.into(), variables }]);
    }

    #[tokio::test]
    async fn no_value_leaves_the_collector() {
        let host = Host::new(b"API_KEY=hunter2\0");
        let collector =
            host.collector(&format!("environment: [{{unit: {UNIT}, expect: {{API_KEY: hunter3}}}}]"));
        let look = Collector::look(&collector, Instant::now() + PATIENCE).await;
        let Ok(Look::Seen(Seen { blocks, piece })) = look else { panic!("not seen") };
        let families: Vec<Family> = blocks.iter().flat_map(|block| block.read_back()).collect();
        let shown = format!("{families:?} {piece:?}");
        assert!(shown.contains("API_KEY") && !shown.contains("hunter"), "{shown}");
    }

    #[tokio::test]
    async fn a_unit_that_does_not_run_and_one_that_does_not_exist_are_said() {
        let host = Host::new(b"A=1\0");
        host.fake.change(UNIT, |unit| unit.set("MainPID", 0_u32));
        let yaml = format!(
            "environment: [{{unit: {UNIT}, expect: {{A: 1}}}}, {{unit: no.service, expect: {{A: 1}}}}]"
        );
        for environment in host.find(&yaml).await {
            assert_eq!(environment.variables, Err(NoEnvironment::NotRunning), "{}", environment.unit);
        }
    }

    #[tokio::test]
    async fn a_process_that_exits_meanwhile_and_a_stranger_s_are_said() {
        let host = Host::new(b"A=1\0");
        let yaml = format!("environment: [{{unit: {UNIT}, expect: {{A: 1}}}}]");
        let process = host.folder.path().join("proc/4711");
        fs::write(process.join("cgroup"), "0::/system.slice/other.service\n").expect("written");
        let stranger = Err(NoEnvironment::Unread(Unread::NotOfTheUnit));
        assert_eq!(host.find(&yaml).await[0].variables, stranger);
        fs::remove_dir_all(&process).expect("removed");
        assert_eq!(host.find(&yaml).await[0].variables, Err(NoEnvironment::Unread(Unread::Gone)));
    }

    #[tokio::test]
    async fn without_systemd_the_look_fails() {
        let host = Host::new(b"A=1\0");
        host.fake.state().mood = Mood::Refusing("org.freedesktop.DBus.Error.AccessDenied");
        let collector = host.collector(&format!("environment: [{{unit: {UNIT}, expect: {{A: 1}}}}]"));
        assert!(Collector::look(&collector, Instant::now() + PATIENCE).await.is_err());
        let nothing = host.collector("");
        assert!(matches!(Collector::look(&nothing, Instant::now() + PATIENCE).await, Ok(Look::Absent(_))));
    }

    #[test]
    fn what_root_found_counts_only_where_it_knows_every_variable() {
        let yaml = format!("environment: [{{unit: {UNIT}, expect: {{A: 1, B: 2}}}}]");
        let entry = config::Config::parse("c.yml", &yaml).expect("good").environment.remove(0);
        let found = |names: &[&str]| Environment {
            unit: UNIT.into(),
            variables: Ok(names.iter().map(|name| ((*name).to_owned(), Variable::Met)).collect()),
        };
        assert!(
            entry.by_root(&found(&["A", "B", "C"])).is_some_and(|known| known.expect("known").len() == 2)
        );
        assert!(entry.by_root(&found(&["A"])).is_none());
    }
}
