//! Takes a unit that does not exist out of the unit files that name it: that word in that line, and nothing else.
//!
//! Several files do not change at once. What is begun is written down before (`begun`), and whoever finds that note puts
//! them back: the same process, the end of the helper's unit (`ExecStopPost=`, also when it was killed), or the next one who
//! takes a name out.

mod begun;
mod change;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use evenkeel_host::{
    config::PromDuration,
    systemd::{OWN_FOLDERS, Systemd, is_unit_name},
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{task::spawn_blocking, time::timeout};

use super::{Action, Check, Done, Failure, Job, Permission, by_root, safe_file, unit_job::call_failure};
use crate::{
    helper::{Verb, instance_of},
    observe::Observation,
    pattern::Pattern,
    policy::{Class, DenyList},
    systemd::{ManagerProxy, UnitProxy, asking},
    target::{Kind, Target},
};
use change::{Change, Changed, Refusal};

pub(super) const NAME: &str = "unit_remove_reference";

/// How long systemd may take to read the files, and again to read them when they were put back: both together less than
/// the action may take, so that it is not ended in between.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// Takes a unit that does not exist out of the unit files that name it (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) struct UnitRemoveReference {
    from: Vec<Pattern>,
    folders: Vec<PathBuf>,
    quiet_for: Duration,
}

/// Takes a unit that does not exist out of the unit files that name it (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// Units whose files may be changed: names, with * and ?.
    #[schemars(extend("minItems" = 1))]
    from: Vec<Pattern>,
    /// Where their files must lie: these or /usr/local/lib/systemd/system.
    #[schemars(extend("minItems" = 1, "default" = ["/etc/systemd/system"]))]
    folders: Option<Vec<PathBuf>>,
    /// How long a file must have been left alone: a deployment that is under way leaves halves.
    #[schemars(extend("default" = "10s"))]
    quiet_for: Option<PromDuration>,
}

impl TryFrom<Parameters> for UnitRemoveReference {
    type Error = String;

    fn try_from(Parameters { from, folders, quiet_for }: Parameters) -> Result<Self, String> {
        if from.is_empty() || from.iter().any(Pattern::matches_all) {
            return Err(
                "`unit_remove_reference.from` names the units whose files may be changed: [\"shop-*\"]"
                    .to_owned(),
            );
        }
        let folders = folders.unwrap_or_else(|| vec![PathBuf::from(OWN_FOLDERS[0])]);
        if let Some(other) =
            folders.iter().find(|folder| !OWN_FOLDERS.iter().any(|own| folder.as_os_str() == OsStr::new(own)))
        {
            return Err(format!(
                "`unit_remove_reference.folders` has {}: only files in {} are a host's own, and those of packages are changed by `systemctl edit --full`",
                other.display(),
                OWN_FOLDERS.join(" and ")
            ));
        }
        if folders.is_empty() {
            return Err(
                "`unit_remove_reference.folders` is empty: leave it out for /etc/systemd/system".to_owned()
            );
        }
        Ok(Self { from, folders, quiet_for: quiet_for.map_or(Duration::from_secs(10), |quiet| quiet.get()) })
    }
}

impl Action for UnitRemoveReference {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Unit
    }

    fn is_for(&self, seen: &Observation) -> bool {
        matches!(seen, Observation::Unit(unit) if unit.load_state == "not-found" && !unit.named_by.is_empty())
    }

    /// Nothing is restarted, and what requires a unit that does not exist runs without it.
    fn takes_along(&self) -> bool {
        false
    }

    fn plan(&self, target: &Target) -> String {
        let units: Vec<String> = self.from.iter().map(ToString::to_string).collect();
        let call = format!(
            "take {} out of the unit files of {}, then org.freedesktop.systemd1.Manager.Reload()",
            target.name(),
            units.join(", ")
        );
        by_root::plan(&call, Verb::UnitRemoveReference)
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Helper(Verb::UnitRemoveReference.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let Observation::Unit(unit) = &job.seen else {
                return Ok(Check::Skip("not_a_unit", job.seen.summary()));
            };
            if unit.load_state != "not-found" {
                let detail = format!("it exists: its load state is {}", unit.load_state);
                return Ok(Check::Skip("exists", detail));
            }
            if unit.named_by.is_empty() {
                return Ok(Check::Skip("not_named", elsewhere(job).await));
            }
            Ok(match self.changes(job).await {
                Ok(changes) => Check::Changes(change::told(job.target.name(), &changes)),
                Err(Refusal { reason, detail }) => Check::Skip(reason, detail),
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            if !by_root::is_root() {
                return by_root::done(job, Verb::UnitRemoveReference).await;
            }
            let _held = aside(|| begun::lock(backups())).await?;
            if let Some(earlier) = take_back_held(&job.host.systemd).await? {
                tracing::warn!(earlier, "an earlier one had been interrupted");
            }
            let result = self.carry_out(job).await;
            if !matches!(result, Err(Failure::Unknown(_))) {
                aside(|| begun::end(backups())).await?;
            }
            result
        })
    }
}

/// Where what was there before is kept.
fn backups() -> &'static Path {
    Path::new(safe_file::BACKUPS)
}

/// Takes back what the helper of this instance had begun, which is no more. Answers what was done, and nothing where it had
/// nothing begun: then its own answer stands.
///
/// # Errors
/// When it cannot be taken back.
pub(crate) async fn take_back(systemd: &Systemd, instance: &str) -> Result<Option<String>, Failure> {
    let this = instance.to_owned();
    if !aside(move || begun::is_begun_by(backups(), &this)).await? {
        return Ok(None);
    }
    match aside(|| begun::lock(backups())).await {
        // Another takes back by itself what it finds, before it begins.
        Err(Failure::Busy(_)) => Ok(None),
        Err(failure) => Err(failure),
        Ok(_held) => take_back_held(systemd).await,
    }
}

/// The same whoever had begun it, for who holds the lock.
///
/// # Errors
/// When it cannot be taken back.
async fn take_back_held(systemd: &Systemd) -> Result<Option<String>, Failure> {
    let Some(back) = aside(|| begun::put_back(backups())).await? else { return Ok(None) };
    if back.files > 0 {
        reload(systemd).await.map_err(|failure| {
            Failure::Unknown(format!("the files were put back, and systemd did not read them: {failure}"))
        })?;
    }
    aside(|| begun::end(backups())).await?;
    let mut said = format!("every file is as it was before ({} taken back)", back.files);
    if !back.foreign.is_empty() {
        said =
            format!("{said}, but for what somebody else has changed meanwhile: {}", back.foreign.join(", "));
    }
    Ok(Some(said))
}

/// Has systemd read its files.
async fn reload(systemd: &Systemd) -> Result<(), Failure> {
    let reload = async { ManagerProxy::of(systemd).await?.reload().await.map_err(call_failure) };
    timeout(READ_WITHIN, reload).await.unwrap_or_else(|_| {
        Err(Failure::Unknown(format!("systemd did not read its files within {READ_WITHIN:?}")))
    })
}

impl UnitRemoveReference {
    /// All that is between the lock and the note that it is done.
    async fn carry_out(&self, job: &Job) -> Result<Done, Failure> {
        let changes = self.changes(job).await.map_err(|refusal| Failure::Refused(refusal.detail))?;
        let told = change::told(job.target.name(), &changes);
        let units = units_of(&changes);
        let before = load_states(job, &units).await?;
        let instance = instance_of(&job.rule, job.target.name());
        let changed = aside(move || {
            let kept = change::back_up(changes, backups())?;
            begun::begin(backups(), instance, &kept)?;
            change::write(kept)
        })
        .await?;
        let verified = timeout(READ_WITHIN, self.verified(job, &units, &before, &changed)).await;
        match verified.unwrap_or_else(|_| Err(format!("systemd has not read it within {READ_WITHIN:?}"))) {
            Ok(()) => {
                let backups = changed.iter().map(|changed| format!("\nbackup {}", changed.backup.display()));
                Ok(Done { detail: told + &backups.collect::<String>(), ..Done::default() })
            }
            Err(why) => Err(put_back(job, changed, &why).await),
        }
    }

    /// What would be changed now. All places or none: a unit that is named by one file less is not the aim.
    async fn changes(&self, job: &Job) -> Result<Vec<Change>, Refusal> {
        let (this, deny, name) = (self.clone(), job.config.deny.clone(), job.target.name().to_owned());
        let found = spawn_blocking(move || this.changes_under(Path::new("/"), &deny, &name));
        found
            .await
            .unwrap_or_else(|broken| Err(Refusal { reason: "check_failed", detail: broken.to_string() }))
    }

    fn changes_under(&self, root: &Path, deny: &DenyList, name: &str) -> Result<Vec<Change>, Refusal> {
        let admits = |by: &str| -> Result<(), Refusal> {
            if deny.denies(by) {
                let detail = format!("{by} names it, whose files evenkeel never changes");
                return Err(Refusal { reason: "target_denied", detail });
            }
            if self.from.iter().any(|pattern| pattern.matches(by)) {
                return Ok(());
            }
            let detail = format!("{by} names it, which `from` does not admit");
            Err(Refusal { reason: "not_admitted", detail })
        };
        change::find(root, &self.folders, name, self.quiet_for, admits)
    }

    /// Has systemd read the files, and makes sure that it is rid of the name and of nothing else.
    async fn verified(
        &self,
        job: &Job,
        units: &[String],
        before: &[(String, String)],
        changed: &[Changed],
    ) -> Result<(), String> {
        let manager = ManagerProxy::of(&job.host.systemd).await.map_err(|failure| failure.to_string())?;
        manager.reload().await.map_err(|error| call_failure(error).to_string())?;
        for Changed { after, text, .. } in changed {
            if after.bytes() != text {
                return Err(format!("{} does not hold what was written", after.path().display()));
            }
        }
        let after = load_states(job, units).await.map_err(|failure| failure.to_string())?;
        for (unit, state) in &after {
            if matches!(state.as_str(), "bad-setting" | "error" | "not-found")
                && !before.contains(&(unit.clone(), state.clone()))
            {
                return Err(format!("{unit} is {state} since"));
            }
        }
        let name = job.target.name().to_owned();
        let left = aside(move || Ok(change::places(Path::new("/"), &name)))
            .await
            .map_err(|failure| failure.to_string())?;
        match left.first() {
            None => Ok(()),
            Some(place) => Err(format!("{} still names it", place.file.display())),
        }
    }
}

/// Puts the files back as they were. Always a failure: what it was for has not been done.
async fn put_back(job: &Job, changed: Vec<Changed>, why: &str) -> Failure {
    let back = match aside(move || change::take_back(changed)).await {
        Ok(()) => reload(&job.host.systemd).await,
        failed => failed,
    };
    match back {
        Ok(()) => Failure::Refused(format!("{why}; the files are as they were")),
        Err(error) => Failure::Unknown(format!("{why}; it cannot be taken back: {error}")),
    }
}

/// The units whose load state says whether systemd takes the files; templates and beginnings of names have none.
fn units_of(changes: &[Change]) -> Vec<String> {
    let units = changes.iter().map(|change| change.by.clone());
    units
        .filter(|unit| is_unit_name(unit) && !unit.contains("@."))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The load states of units, by name.
async fn load_states(job: &Job, units: &[String]) -> Result<Vec<(String, String)>, Failure> {
    if units.is_empty() {
        return Ok(Vec::new());
    }
    let states = job.host.systemd.units_by_names(units).await;
    let states = states.map_err(|error| Failure::Refused(format!("systemd: {error}")))?;
    Ok(states.into_iter().map(|unit| (unit.name, unit.load_state)).collect())
}

/// What names it where we change nothing, as far as systemd knows.
async fn elsewhere(job: &Job) -> String {
    let nobody = "no unit file of the host's own names it".to_owned();
    let asked = async {
        let unit = UnitProxy::of(&job.host.systemd, job.target.name()).await?;
        let mut by = unit.wanted_by().await.map_err(asking)?;
        by.extend(unit.required_by().await.map_err(asking)?);
        Ok::<_, Failure>(by)
    };
    match asked.await.ok().and_then(|by| by.into_iter().next()) {
        Some(by) => format!(
            "{nobody}; {by} does, in a file of a package's: `systemctl edit --full {by}` makes a copy to change"
        ),
        None => nobody,
    }
}

/// Work on files, aside.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    spawn_blocking(work).await.unwrap_or_else(|broken| Err(Failure::Unknown(broken.to_string())))
}

#[cfg(test)]
mod tests;
