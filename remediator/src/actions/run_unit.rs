//! Starts a root-owned template unit, `evenkeel-action-NAME@.service`, for the target: the only way to run something of
//! one's own. systemd confines and audits it.

use std::{path::Path, time::Duration};

use evenkeel_host::config::PromDuration;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission,
    unit_job::{self, Verb},
};
use crate::{
    instance,
    policy::Class,
    systemd::{ManagerProxy, UnitProxy, asking},
    target::{Kind, Target},
    trust,
};

pub(super) const NAME: &str = "run_unit";

/// Longest name of an action of one's own.
const NAME_MAX: usize = 64;

/// Starts the root-owned template unit `evenkeel-action-NAME@.service` for the target: the way to run something of your
/// own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) struct RunUnit {
    name: String,
    class: Class,
    timeout: PromDuration,
}

/// Starts the root-owned template unit `evenkeel-action-NAME@.service` for the target: the way to run something of your
/// own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// NAME in `evenkeel-action-NAME@.service`.
    #[schemars(extend("pattern" = "^[A-Za-z0-9_-]{1,64}$"))]
    name: String,
    /// What it costs when it is wrong: S2, D1 or D2.
    #[serde(default = "at_least")]
    class: Class,
    /// How long the job may take.
    #[serde(default = "five_minutes")]
    timeout: PromDuration,
}

fn at_least() -> Class {
    Class::S2
}

fn five_minutes() -> PromDuration {
    PromDuration::new(Duration::from_secs(300))
}

impl TryFrom<Parameters> for RunUnit {
    type Error = String;

    fn try_from(Parameters { name, class, timeout }: Parameters) -> Result<Self, String> {
        let is_name = (1..=NAME_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if !is_name {
            return Err(format!(
                "`run_unit.name` is NAME of evenkeel-action-NAME@.service: at most {NAME_MAX} letters, digits, - and _"
            ));
        }
        if class < at_least() {
            return Err(format!(
                "`run_unit.class: {}` is below what may be said of a unit of one's own: write S2, D1 or D2",
                class.as_str()
            ));
        }
        Ok(Self { name, class, timeout })
    }
}

impl Action for RunUnit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        self.class
    }

    fn fits(&self, _: Kind) -> bool {
        true
    }

    fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    fn plan(&self, target: &Target) -> String {
        Verb::Start.plan(&self.unit(target).unwrap_or_else(|_| self.template()))
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Template(self.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let unit = match self.unit(&job.target) {
                Ok(unit) => unit,
                Err(too_long) => return Ok(Check::Skip("name_too_long", too_long)),
            };
            let status = job.host.systemd.unit(&unit).await;
            let status = status.map_err(|error| Failure::Refused(format!("systemd: {error}")))?;
            if status.load_state != "loaded" {
                let detail = format!("{} is {}", self.template(), status.load_state);
                return Ok(Check::Skip("not_loaded", detail));
            }
            if status.job_id != 0 || status.active_state != "inactive" && status.active_state != "failed" {
                return Ok(Check::Skip("already_running", format!("{unit} is {}", status.active_state)));
            }
            if status.need_daemon_reload {
                let detail = format!("{} changed on disk: systemctl daemon-reload first", self.template());
                return Ok(Check::Skip("daemon_reload_needed", detail));
            }
            let mut files =
                UnitProxy::of(&job.host.systemd, &unit).await?.drop_in_paths().await.map_err(asking)?;
            files.push(status.fragment_path);
            let template = self.template();
            let judged = tokio::task::spawn_blocking(move || root_s_own(&files, &template)).await;
            Ok(match judged.unwrap_or_else(|broken| Err(broken.to_string())) {
                Ok(()) => Check::Go,
                Err(detail) => Check::Skip("not_root_s_own", detail),
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let unit = self.unit(&job.target).map_err(Failure::Refused)?;
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            unit_job::carry_out(&manager, Verb::Start, &unit).await
        })
    }
}

impl RunUnit {
    fn template(&self) -> String {
        format!("evenkeel-action-{}@.service", self.name)
    }

    fn unit(&self, target: &Target) -> Result<String, String> {
        instance::unit(&self.template(), &instance::escape(target.name()))
    }
}

/// Whether only root says what the unit does: its file, the last of `files`, is the template's, and nobody else can
/// change that or a drop-in.
fn root_s_own(files: &[String], template: &str) -> Result<(), String> {
    let file = files.last().map(Path::new).unwrap_or(Path::new(""));
    if file.file_name().is_none_or(|name| name != template) {
        return Err(format!("its file is {} and not {template}", file.display()));
    }
    files.iter().try_for_each(|file| trust::only_root_changes(Path::new(file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::Step, target::Selector};

    fn read(text: &str) -> Result<Step, String> {
        let steps: Result<Vec<Step>, _> =
            evenkeel_host::config::parse("t.yml", &format!("- run_unit: {text}\n"));
        steps.map(|mut steps| steps.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn its_class_is_declared_and_never_below_a_service_s() {
        assert_eq!(read("{name: tidy}").unwrap().0.class(), Class::S2);
        assert_eq!(read("{name: tidy, class: D2}").unwrap().0.class(), Class::D2);
        for class in ["S0", "S1"] {
            let error = read(&format!("{{name: tidy, class: {class}}}")).unwrap_err();
            assert!(error.contains("write S2, D1 or D2"), "{error}");
        }
    }

    #[test]
    fn a_name_cannot_lead_anywhere_else() {
        for name in ["''", "a@b", "../x", "a.b", "'a b'", "'%i'", &"a".repeat(65)] {
            assert!(read(&format!("{{name: {name}}}")).unwrap_err().contains("run_unit.name"), "{name}");
        }
        assert!(read("{}").is_err());
        let target =
            Selector { kind: Kind::Filesystem, label: String::new(), allow: vec!["*".parse().unwrap()] };
        let target = target.admit("/srv/a b").unwrap();
        assert_eq!(
            read("{name: tidy}").unwrap().0.plan(&target),
            "org.freedesktop.systemd1.Manager.StartUnit(\"evenkeel-action-tidy@-srv-a\\\\x20b.service\", \"replace\")"
        );
    }

    #[test]
    fn a_file_of_another_name_is_not_the_template() {
        let template = "evenkeel-action-tidy@.service";
        let judged = root_s_own(&["/etc/systemd/system/evenkeel-action-tidy@x.service".to_owned()], template);
        assert!(judged.unwrap_err().contains("and not evenkeel-action-tidy@.service"));
        assert!(root_s_own(&[], template).is_err());
        assert!(root_s_own(&[format!("/no/such/{template}")], template).is_err());
    }
}
