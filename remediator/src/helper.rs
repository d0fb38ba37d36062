//! `helper`: what takes root, done for a remediator that is not. It runs in root-owned template units
//! (`evenkeel-VERB@.service`) whose instance names a rule and a target, and nothing else. What that rule may do it reads
//! from the root-owned configuration, and judges the target as the remediator does; it takes nothing from the
//! remediator's state.

use std::{
    fs,
    io::{Read as _, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use tokio::time::timeout;

use crate::{
    actions::{self, Answer, Check, Done, Failure},
    assess::Assessor,
    config::{self, Config},
    explain,
    filling::Filling,
    instance,
    observe::Host,
    policy::Mode,
    rules::Rule,
    target::{Kind, Target},
    text::printable,
    trust,
};

/// Where answers are left for the remediator, in a folder for each verb: those whose template has one there.
const ANSWERS: &str = "/run/evenkeel";
/// An answer's size at most, in bytes.
const ANSWER_MAX: u64 = 1024 * 1024;
/// How long the helper may take to say what fills a disk, starting and walking together.
const PATIENCE: Duration = Duration::from_secs(15);

/// What takes root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verb {
    /// Have systemd read its unit files again.
    DaemonReload,
    /// Delete old journal files.
    JournalVacuum,
    /// Cut off the oldest part of containers' logs.
    ContainerLogTruncate,
    /// Make a golden snapshot of unit files.
    UnitSnapshot,
    /// Bring a golden snapshot back.
    UnitRestore,
    /// Give a name an address in /etc/hosts.
    HostsAlias,
    /// Take a unit that does not exist out of unit files.
    UnitRemoveReference,
    /// Say what fills a filesystem.
    Largest,
}

impl Verb {
    /// All of them: each has a template unit in `packaging/`.
    pub const ALL: [Self; 8] = [
        Self::DaemonReload,
        Self::JournalVacuum,
        Self::ContainerLogTruncate,
        Self::UnitSnapshot,
        Self::UnitRestore,
        Self::HostsAlias,
        Self::UnitRemoveReference,
        Self::Largest,
    ];

    /// The template that does it.
    pub fn template(self) -> &'static str {
        match self {
            Self::DaemonReload => "evenkeel-daemon-reload@.service",
            Self::JournalVacuum => "evenkeel-journal-vacuum@.service",
            Self::ContainerLogTruncate => "evenkeel-container-log-truncate@.service",
            Self::UnitSnapshot => "evenkeel-unit-snapshot@.service",
            Self::UnitRestore => "evenkeel-unit-restore@.service",
            Self::HostsAlias => "evenkeel-hosts-alias@.service",
            Self::UnitRemoveReference => "evenkeel-unit-remove-reference@.service",
            Self::Largest => "evenkeel-largest@.service",
        }
    }

    /// The action whose steps it carries out; looking at what fills a disk is none.
    fn action(self) -> Option<&'static str> {
        match self {
            Self::DaemonReload => Some(actions::DAEMON_RELOAD),
            Self::JournalVacuum => Some(actions::JOURNAL_VACUUM),
            Self::ContainerLogTruncate => Some(actions::CONTAINER_LOG_TRUNCATE),
            Self::UnitSnapshot => Some(actions::UNIT_SNAPSHOT),
            Self::UnitRestore => Some(actions::UNIT_RESTORE),
            Self::HostsAlias => Some(actions::HOSTS_ALIAS),
            Self::UnitRemoveReference => Some(actions::UNIT_REMOVE_REFERENCE),
            Self::Largest => None,
        }
    }

    /// The unit that does it for a rule on a target.
    ///
    /// # Errors
    /// When its name would be longer than systemd takes.
    pub fn unit(self, rule: &str, target: &str) -> Result<String, String> {
        instance::unit(self.template(), &instance_of(rule, target))
    }

    /// Where it leaves its answer about a rule on a target.
    pub(crate) fn answer(self, rule: &str, target: &str) -> PathBuf {
        self.answer_of(&instance_of(rule, target))
    }

    fn answer_of(self, instance: &str) -> PathBuf {
        let template = self.template();
        let name = template.trim_start_matches("evenkeel-").trim_end_matches("@.service");
        Path::new(ANSWERS).join(name).join(instance)
    }
}

/// A rule and a target as an instance. A rule's name has no colon.
pub(crate) fn instance_of(rule: &str, target: &str) -> String {
    format!("{}:{}", instance::escape(rule), instance::escape(target))
}

/// The rule and the target of an instance.
fn rule_and_target(instance: &str) -> Option<(String, String)> {
    let (rule, target) = instance.split_once(':')?;
    Some((instance::unescape(rule)?, instance::unescape(target)?))
}

/// Does what `verb` says for the rule and target of `instance`, when the configuration at `config_file` lets it.
///
/// # Errors
/// When this is not root, the configuration is not root's own, it does not let it, or it could not be done.
pub async fn run(
    config: Config,
    config_file: &Path,
    verb: Verb,
    instance: &str,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    only_for_root(config_file, verb)?;
    let assessor = explain::assessor(config);
    let file = verb.answer_of(instance);
    let Some(action) = verb.action() else {
        let (_, target) = admitted(&assessor, instance).map_err(anyhow::Error::msg)?;
        return answer(&assessor.host, &target, &file).await;
    };
    // What is there is of an earlier time.
    let _ = fs::remove_file(&file);
    let result = match admitted(&assessor, instance) {
        Ok((rule, target)) => act(&assessor, rule, &target, action).await.map(|done| (target, done)),
        Err(no) => Err(Failure::Refused(no)),
    };
    let told = result.as_ref().map(|(_, done)| done.clone()).map_err(Clone::clone);
    leave(&file, &told)?;
    let (target, done) = result?;
    Ok(writeln!(out, "{action} on {target}: {}", printable(&done.detail))?)
}

/// Takes back what a helper of this verb has left half done, as the last thing that its unit does, however it ended.
///
/// # Errors
/// When it cannot be taken back.
pub async fn recover(
    config: Config,
    config_file: &Path,
    verb: Verb,
    instance: &str,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    only_for_root(config_file, verb)?;
    let systemd = Host::local().systemd;
    let taken_back = match (verb, &config.golden) {
        (Verb::UnitRestore, Some(golden)) => {
            actions::take_back_an_interrupted_restore(&systemd, golden, instance).await
        }
        (Verb::UnitRemoveReference, _) => actions::take_back_an_interrupted_removal(&systemd, instance).await,
        _ => return Ok(()),
    };
    let result = match taken_back {
        Ok(None) => return Ok(()),
        Ok(Some(how)) => Err(Failure::Refused(format!("it was interrupted; {how}"))),
        Err(failure) => {
            Err(Failure::Unknown(format!("it was interrupted, and could not be taken back: {failure}")))
        }
    };
    leave(&verb.answer_of(instance), &result)?;
    match result {
        Err(Failure::Refused(how)) => Ok(writeln!(out, "{}", printable(&how))?),
        other => Ok(other.map(drop)?),
    }
}

fn only_for_root(config_file: &Path, verb: Verb) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this is for root: start {} instead", verb.template());
    }
    trust::only_root_changes(config_file).map_err(anyhow::Error::msg)?;
    trust::only_root_fills(&config::fragments_folder(config_file)).map_err(anyhow::Error::msg)
}

/// The rule and the target that an instance names, if the configuration has them.
fn admitted<'a>(assessor: &'a Assessor, instance: &str) -> Result<(&'a Rule, Target), String> {
    let (rule, name) = rule_and_target(instance)
        .ok_or_else(|| format!("`{}` names no rule and target", instance.escape_debug()))?;
    let known = assessor.config.rules.iter().find(|known| known.name == rule);
    let rule = known.ok_or_else(|| format!("there is no rule `{}`", rule.escape_debug()))?;
    let target = rule.selector.admit(&name).map_err(|no| {
        format!("rule {} does not act on {}: {}", rule.name, name.escape_debug(), no.reason())
    })?;
    Ok((rule, target))
}

/// Carries out the rule's first step of this action that is of any use now.
async fn act(assessor: &Assessor, rule: &Rule, target: &Target, action: &str) -> Result<Done, Failure> {
    if rule.mode == Mode::Plan {
        return Err(Failure::Refused(format!("rule {} is in mode plan", rule.name)));
    }
    let sight = assessor
        .look(rule, target)
        .await
        .map_err(|stop| Failure::Refused(format!("{} ({}): {}", stop.outcome, stop.reason, stop.detail)))?;
    let job = assessor.job(0, rule, &sight);
    let mut refusal = format!("rule {} has no step {action}", rule.name);
    for step in rule.steps.iter().filter(|step| step.0.name() == action) {
        if let Check::Skip(reason, detail) = assessor.judge(step, &job).await {
            refusal = format!("{reason}: {detail}");
            continue;
        }
        let limit = step.0.timeout();
        let ran = timeout(limit, step.0.run(&job)).await;
        return ran.unwrap_or_else(|_| Err(Failure::Unknown(format!("no end within {limit:?}"))));
    }
    Err(Failure::Refused(refusal))
}

/// Leaves what became of it where the remediator finds it; without a folder for that it goes without.
fn leave(file: &Path, result: &Result<Done, Failure>) -> anyhow::Result<()> {
    if !file.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let text = serde_json::to_vec(&Answer::of(result))?;
    put(file, &text).with_context(|| format!("cannot write {}", file.display()))
}

/// Beside it and renamed: who reads meanwhile reads the old one whole. Names of files may tell something, so only root and
/// the unit's group read them.
fn put(file: &Path, text: &[u8]) -> std::io::Result<()> {
    // Behind the whole name: that of an instance may differ from another's in its end alone.
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        // What is there was left by one that was killed.
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut written = options.write(true).create_new(true).mode(0o640).open(&new)?;
    written.write_all(text)?;
    fs::rename(&new, file)
}

/// Leaves the answer to "what fills this disk" where the remediator finds it.
async fn answer(host: &Host, target: &Target, file: &Path) -> anyhow::Result<()> {
    if target.kind() != Kind::Filesystem {
        bail!("{target} is no filesystem");
    }
    let filling = host.filling(target.name()).await;
    let text = serde_json::to_vec(&filling)?;
    put(file, &text).with_context(|| format!("cannot write {}", file.display()))
}

/// What fills a filesystem. By the helper where this process may not look everywhere and the helper is installed, else as
/// far as this process sees.
pub async fn filling(host: &Host, rule: &str, mount_point: &str) -> Filling {
    if !rustix::process::geteuid().is_root() {
        match timeout(PATIENCE, asked(host, rule, mount_point)).await {
            Ok(Ok(filling)) => return filling,
            Ok(Err(error)) => tracing::debug!(%error, "the helper does not say what fills the disk"),
            Err(_) => tracing::debug!("the helper did not say in time what fills the disk"),
        }
    }
    host.filling(mount_point).await
}

async fn asked(host: &Host, rule: &str, mount_point: &str) -> Result<Filling, Failure> {
    let unit = Verb::Largest.unit(rule, mount_point).map_err(Failure::Refused)?;
    actions::start_helper(&host.systemd, &unit).await?;
    let file = Verb::Largest.answer(rule, mount_point);
    let read = || -> std::io::Result<Filling> {
        let mut text = Vec::new();
        fs::File::open(&file)?.take(ANSWER_MAX).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().map_err(|error| Failure::Refused(format!("{}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_and_a_target_survive_the_name_of_a_unit() {
        for (rule, target) in [
            ("disk-high", "/"),
            ("disk_high", "/srv/a: b"),
            ("r", "shop@1:x.service"),
            ("unit-stale", "-.mount"),
            ("r", ""),
        ] {
            let unit = Verb::DaemonReload.unit(rule, target).unwrap();
            let instance =
                unit.strip_prefix("evenkeel-daemon-reload@").and_then(|rest| rest.strip_suffix(".service"));
            assert_eq!(
                rule_and_target(instance.unwrap()),
                Some((rule.to_owned(), target.to_owned())),
                "{unit}"
            );
            assert!(evenkeel_host::systemd::is_unit_name(&unit), "{unit}");
        }
        assert!(Verb::Largest.unit("r", &"/x".repeat(200)).is_err());
        assert_eq!(rule_and_target("no-colon"), None);
    }

    #[test]
    fn every_verb_has_a_template_that_calls_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        for verb in Verb::ALL {
            let text = fs::read_to_string(folder.join(verb.template())).unwrap();
            let name = verb.to_possible_value().unwrap();
            let call = format!("\nExecStart=/usr/bin/evenkeel-remediator helper {} %i\n", name.get_name());
            assert!(text.contains(&call), "{}: no{call}", verb.template());
            // Else a refusal would stay listed as a failed unit, and raise an alert about itself.
            assert!(text.contains("\nCollectMode=inactive-or-failed\n"), "{}", verb.template());
        }
    }

    #[test]
    fn two_answers_do_not_meet_on_their_way() {
        let dir = tempfile::tempdir().unwrap();
        let [service, timer] =
            ["a.service", "a.timer"].map(|target| dir.path().join(instance_of("rule", target)));
        // Half of one, by a helper at work or one that was killed.
        let half = PathBuf::from(format!("{}.new", timer.display()));
        fs::write(&half, "ha").unwrap();
        put(&service, b"of the service").unwrap();
        assert_eq!(fs::read(&half).unwrap(), b"ha");
        put(&timer, b"of the timer").unwrap();
        assert_eq!(fs::read(&service).unwrap(), b"of the service");
        assert_eq!(fs::read(&timer).unwrap(), b"of the timer");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn an_answer_is_what_the_folder_holds() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rule:-x");
        let selector = crate::target::Selector {
            kind: Kind::Filesystem,
            label: String::new(),
            allow: vec!["*".parse().unwrap()],
        };
        let target = selector.admit("/dev/shm").unwrap();
        answer(&Host::local(), &target, &file).await.unwrap();
        let _: Filling = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file).unwrap());
        assert_eq!(mode & 0o007, 0, "others read it");
    }
}
