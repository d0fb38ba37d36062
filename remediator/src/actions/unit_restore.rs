//! Brings the files of units back to what they were in a golden snapshot, as somebody would by hand: keeps what is there,
//! copies, has systemd read it, restarts, looks. And takes all of it back where that does not end well.
//!
//! Between the first file and the last nothing makes many files change at once. So what is begun is written down before
//! (`begun`), and whoever finds that note takes back what was done: the same process, the end of the helper's unit
//! (`ExecStopPost=`, also when it was killed), or the next one who brings a snapshot back.

mod aim;
mod begun;
mod services;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use evenkeel_host::config::PromDuration;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use self::{
    aim::{Aim, aim, apply},
    services::Services,
};
use super::{
    Action, Check, Done, Failure, Job, Permission, by_root,
    golden::{self, Golden},
    unit_job::call_failure,
};
use crate::{
    clock::Clock,
    helper::{Verb, instance_of},
    observe::Observation,
    policy::Class,
    systemd::ManagerProxy,
    target::{Kind, Target},
};

pub(super) use self::begun::is_begun as interrupted;
pub(crate) use self::begun::take_back;

pub(super) const NAME: &str = "unit_restore";

/// Longer than the template unit leaves room for, with the way back.
const LONGEST: Duration = Duration::from_secs(300);

/// Brings the files of a golden snapshot back, and takes that back where it does not end well (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) struct UnitRestore {
    files: Files,
    added: Added,
    restart: Restart,
    snapshot: Option<String>,
    hold: Duration,
    within: Duration,
}

/// Brings the files of a golden snapshot back, and takes that back where it does not end well (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    /// Whose files are brought back.
    #[schemars(extend("default" = "all"))]
    files: Files,
    /// What becomes of files that are not in the snapshot.
    #[schemars(extend("default" = "leave"))]
    added: Added,
    /// What is restarted afterwards.
    #[schemars(extend("default" = "changed"))]
    restart: Restart,
    /// By name; the newest where none is given.
    snapshot: Option<String>,
    /// So long all must be well.
    hold: PromDuration,
    /// Restarts and looking together may take so long; then all is taken back.
    within: PromDuration,
}

/// Whose files are brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Files {
    /// Those of all units of the snapshot.
    #[default]
    All,
    /// Those of the rule's target.
    Target,
}

/// What becomes of files that are not in the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Added {
    /// They stay.
    #[default]
    Leave,
    /// They go; a copy is in the backup.
    SetAside,
}

/// What is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Restart {
    /// The target, and each unit whose files changed and that is not stopped: restarting a target does not restart what it
    /// merely wants (tried).
    #[default]
    Changed,
    /// The target.
    Target,
    /// Nothing.
    None,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            files: Files::default(),
            added: Added::default(),
            restart: Restart::default(),
            snapshot: None,
            hold: PromDuration::new(Duration::from_secs(5)),
            within: PromDuration::new(Duration::from_secs(120)),
        }
    }
}

impl TryFrom<Parameters> for UnitRestore {
    type Error = String;

    fn try_from(written: Parameters) -> Result<Self, String> {
        let Parameters { files, added, restart, snapshot, hold, within } = written;
        if within.get() > LONGEST || hold.get() >= within.get() {
            return Err(format!(
                "`unit_restore.within` is longer than `hold` and at most {}: it is how long restarts and looking may take",
                PromDuration::new(LONGEST)
            ));
        }
        if let Some(name) = snapshot.as_ref().filter(|name| !evenkeel_host::systemd::snapshot::is_name(name))
        {
            return Err(format!(
                "`unit_restore.snapshot: {}` is no snapshot: write the name of a folder in snapshot.dir, as 20260107T120000.000Z-0123456789abcdef, or leave it out for the newest",
                name.escape_debug()
            ));
        }
        Ok(Self { files, added, restart, snapshot, hold: hold.get(), within: within.get() })
    }
}

impl Action for UnitRestore {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Unit
    }

    /// A unit that runs may have other files than it should: the check tells.
    fn is_for(&self, seen: &Observation) -> bool {
        matches!(seen, Observation::Unit(_))
    }

    /// Its check counts what all its restarts take along: the target's are only some of them, and what it restarts itself
    /// is not taken along.
    fn takes_along(&self) -> bool {
        false
    }

    /// With the way back.
    fn timeout(&self) -> Duration {
        self.within * 2 + Duration::from_secs(120)
    }

    fn plan(&self, target: &Target) -> String {
        let name = target.name();
        let files = match self.files {
            Files::All => "the files of snapshot.units".to_owned(),
            Files::Target => format!("the files of {name}"),
        };
        let from = self
            .snapshot
            .as_ref()
            .map_or_else(|| "the newest snapshot".to_owned(), |name| format!("snapshot {name}"));
        let restart = match self.restart {
            Restart::Changed => format!(", restart {name} and each unit whose files changed"),
            Restart::Target => format!(", restart {name}"),
            Restart::None => String::new(),
        };
        let call = format!(
            "keep a copy of what is there, bring {files} back from {from}, org.freedesktop.systemd1.Manager.Reload(){restart}; take it back unless all is well for {} within {}",
            PromDuration::new(self.hold),
            PromDuration::new(self.within)
        );
        by_root::plan(&call, Verb::UnitRestore)
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Helper(Verb::UnitRestore.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let golden = Golden::of(job)?;
            let (params, target, deny) =
                (self.clone(), job.target.name().to_owned(), job.config.deny.clone());
            let at = Arc::clone(&golden);
            let seen = golden::blocking(move || {
                if interrupted(&at) {
                    let first = "first takes back what an earlier one had begun when it was interrupted; what there is to bring back is only known then";
                    return Ok(Err(Check::Changes(first.to_owned())));
                }
                let aim = match aim(&params, &at, &target, &deny) {
                    Ok(aim) => aim,
                    Err(stop) => return Ok(Err(Check::Skip(stop.reason, stop.detail))),
                };
                let text = format!(
                    "{}\n{}\n{}",
                    aim.summary(),
                    golden::difference(&at, &aim.snapshot, &aim.wanted),
                    aim.identity()
                );
                Ok(Ok((aim, text)))
            })
            .await?;
            let (aim, text) = match seen {
                Ok(seen) => seen,
                Err(answer) => return Ok(answer),
            };
            let services = self.services(job, &aim).await?;
            if let Some(skip) = services.blast_radius(job).await? {
                return Ok(skip);
            }
            Ok(Check::Changes(text))
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            if !by_root::is_root() {
                return by_root::done(job, Verb::UnitRestore).await;
            }
            self.restore(job, Golden::of(job)?).await
        })
    }
}

impl UnitRestore {
    async fn services(&self, job: &Job, aim: &Aim) -> Result<Services, Failure> {
        Services::of(&job.host.systemd, job.target.name(), self.restart, &aim.wanted).await
    }

    async fn restore(&self, job: &Job, golden: Arc<Golden>) -> Result<Done, Failure> {
        let at = Arc::clone(&golden);
        let _held = golden::blocking(move || at.lock()).await?;
        let mut said = Vec::new();
        if let Some(earlier) = begun::take_back_held(&job.host.systemd, &golden).await? {
            said.push(format!("an earlier one had been interrupted: {earlier}"));
        }
        let (params, target, deny) = (self.clone(), job.target.name().to_owned(), job.config.deny.clone());
        let at = Arc::clone(&golden);
        let aim = match golden::blocking(move || Ok(aim(&params, &at, &target, &deny))).await? {
            Ok(aim) => Arc::new(aim),
            Err(stop) if said.is_empty() => return Err(Failure::Refused(stop.detail)),
            Err(stop) => {
                said.push(stop.detail);
                return Ok(Done { detail: said.join("; "), ..Done::default() });
            }
        };
        let services = self.services(job, &aim).await?;
        let now_ms = u64::try_from(Clock::default().now().wall_ms).unwrap_or_default();
        let (at, aimed, restarts) = (Arc::clone(&golden), Arc::clone(&aim), self.restart != Restart::None);
        let instance = instance_of(&job.rule, job.target.name());
        let backup = golden::blocking(move || begun::begin(&at, &aimed, instance, restarts, now_ms)).await?;
        said.push(aim.summary());
        match self.carry_out(job, &golden, &aim, &services).await {
            Ok(how) => said.push(how),
            Err(why) => return Err(taken_back(job, &golden, &why, &backup).await),
        }
        let (at, kept) = (Arc::clone(&golden), backup.clone());
        golden::blocking(move || begun::end(&at, &kept)).await?;
        said.push(format!("what was there before is in {}", golden.before().dir().join(&backup).display()));
        Ok(Done { detail: said.join("; "), ..Done::default() })
    }

    /// All that is between the note that it is begun and the note that it is done; why it did not end well, otherwise.
    async fn carry_out(
        &self,
        job: &Job,
        golden: &Arc<Golden>,
        aim: &Arc<Aim>,
        services: &Services,
    ) -> Result<String, String> {
        let (at, aimed) = (Arc::clone(golden), Arc::clone(aim));
        golden::blocking(move || apply(&at, &aimed).map_err(Failure::Refused))
            .await
            .map_err(|failure| failure.to_string())?;
        let deadline = Instant::now() + self.within;
        let restarts = async {
            let manager = ManagerProxy::of(&job.host.systemd).await.map_err(|failure| failure.to_string())?;
            manager.reload().await.map_err(|error| format!("reloading: {}", call_failure(error)))?;
            services.restart(&manager).await
        };
        let restarted = timeout_at(deadline, restarts).await.unwrap_or_else(|_| {
            Err(format!("the restarts did not end within {}", PromDuration::new(self.within)))
        })?;
        services.hold(self.hold, deadline).await?;
        Ok(match restarted.as_slice() {
            [] => "nothing was restarted".to_owned(),
            names => format!("restarted {}", names.join(", ")),
        })
    }
}

/// Takes back what did not end well.
async fn taken_back(job: &Job, golden: &Arc<Golden>, why: &str, backup: &str) -> Failure {
    match begun::take_back_held(&job.host.systemd, golden).await {
        Ok(how) => Failure::Refused(format!(
            "{why}; {}",
            how.unwrap_or_else(|| "nothing had been changed".to_owned())
        )),
        Err(failure) => {
            let place = golden.before().dir().join(backup);
            Failure::Unknown(format!(
                "{why}; and it could not be taken back: {failure}; what was there before is in {}",
                place.display()
            ))
        }
    }
}
