//! A job of systemd on a unit: asked for, and waited for until systemd says how it ended. Not an action: those that
//! start, stop, restart and reload units use it.

use evenkeel_host::diagnose::Cause;
use futures_util::StreamExt;
use zbus::OwnedObjectPath;

use super::{Check, Done, Failure, RESTART_CANNOT_CURE};
use crate::{
    observe::{Observation, Unit},
    systemd::{JobRemoved, ManagerProxy},
};

/// systemd's answer to a client that asks for its signals a second time (src/libsystemd/sd-bus/bus-common-errors.h).
const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";
/// Its answer to a start of a template that is not installed.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// polkit does not see the mode of a job, so it is always this one.
const MODE: &str = "replace";

/// What a job does to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Starts it and what it needs.
    Start,
    /// Stops it and what needs it.
    Stop,
    /// Stops and starts it.
    Restart,
    /// Has it read its own configuration.
    Reload,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }

    /// The exact call.
    pub(super) fn plan(self, unit: &str) -> String {
        let method = match self {
            Self::Start => "StartUnit",
            Self::Stop => "StopUnit",
            Self::Restart => "RestartUnit",
            Self::Reload => "ReloadUnit",
        };
        format!("org.freedesktop.systemd1.Manager.{method}({unit:?}, {MODE:?})")
    }
}

/// Whether a job may be queued for a unit that is as `wanted` says, else the word why not. Never one for a unit that is
/// being worked on, or that would start from a file which systemd has not read yet.
pub(super) fn judge(seen: &Observation, unwanted: &'static str, wanted: impl FnOnce(&Unit) -> bool) -> Check {
    let Observation::Unit(unit) = seen else { return Check::Skip("not_a_unit", seen.summary()) };
    if unit.load_state != "loaded" {
        Check::Skip("not_loaded", format!("its load state is {}", unit.load_state))
    } else if !wanted(unit) {
        Check::Skip(unwanted, seen.summary())
    } else if unit.job_queued {
        Check::Skip("job_queued", "systemd has a job queued for it".to_owned())
    } else if unit.need_daemon_reload {
        let detail = "its unit file changed on disk: systemctl daemon-reload first";
        Check::Skip("daemon_reload_needed", detail.to_owned())
    } else {
        Check::Go
    }
}

/// Whether a start may cure what the unit was seen to fail of, unless the rule says that it may be tried all the same:
/// something else has perhaps cured it, and only whoever wrote the rule knows.
pub(super) fn may_cure(seen: &Observation, despite: &[Cause]) -> Check {
    match seen.why() {
        Some(why)
            if !why.cause.restart_may_help() && why.changed.is_none() && !despite.contains(&why.cause) =>
        {
            let cure = why.cure.as_ref().map(|cure| format!(": {cure}")).unwrap_or_default();
            Check::Skip(RESTART_CANNOT_CURE, format!("a start cannot cure it ({}){cure}", why.words))
        }
        _ => Check::Go,
    }
}

/// Queues a job and waits for its end.
///
/// # Errors
/// When systemd refuses it, or nobody can say how it ended.
pub(super) async fn carry_out(manager: &ManagerProxy<'_>, verb: Verb, unit: &str) -> Result<Done, Failure> {
    verdict(verb, &result(manager, verb, unit).await?)
}

/// The same, and the job's result as systemd says it.
///
/// # Errors
/// As [`carry_out`].
pub(super) async fn result(manager: &ManagerProxy<'_>, verb: Verb, unit: &str) -> Result<String, Failure> {
    match verb {
        Verb::Start => ended(manager, manager.start_unit(unit, MODE)).await,
        Verb::Stop => ended(manager, manager.stop_unit(unit, MODE)).await,
        Verb::Restart => ended(manager, manager.restart_unit(unit, MODE)).await,
        Verb::Reload => ended(manager, manager.reload_unit(unit, MODE)).await,
    }
}

/// The result of the job that `call` queues (org.freedesktop.systemd1(5), JobRemoved). The signals are subscribed to
/// before the call, so that a job which ends at once is not missed.
///
/// # Errors
/// When systemd refuses the call, or nobody can say how the job ended.
pub(super) async fn ended(
    manager: &ManagerProxy<'_>,
    call: impl Future<Output = zbus::Result<OwnedObjectPath>>,
) -> Result<String, Failure> {
    match manager.subscribe().await {
        // The connection is kept, and an earlier job has subscribed it.
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == ALREADY_SUBSCRIBED => {}
        other => other.map_err(|error| Failure::Refused(error.to_string()))?,
    }
    let mut removed =
        manager.receive_job_removed().await.map_err(|error| Failure::Refused(error.to_string()))?;
    let mut ended = Vec::new();
    let job = {
        // A stream that nobody reads blocks its connection, the answer to this call included.
        let mut call = std::pin::pin!(call);
        loop {
            tokio::select! {
                job = &mut call => break job.map_err(call_failure)?,
                Some(signal) = removed.next() => ended.extend(job_end(&signal)),
            }
        }
    };
    loop {
        if let Some(place) = ended.iter().position(|(ended, _)| *ended == job) {
            return Ok(ended.swap_remove(place).1);
        }
        let Some(signal) = removed.next().await else {
            return Err(Failure::Unknown("the bus closed before the job ended".to_owned()));
        };
        ended = job_end(&signal).into_iter().collect();
    }
}

/// The job and its result, from the signal that says it ended.
fn job_end(signal: &JobRemoved) -> Option<(OwnedObjectPath, String)> {
    signal.args().ok().map(|ended| (ended.job, ended.result))
}

/// What a job's result says of what was asked for.
fn verdict(verb: Verb, result: &str) -> Result<Done, Failure> {
    let verb = verb.as_str();
    match result {
        "done" => Ok(Done { detail: format!("{verb} job done"), ..Done::default() }),
        // It was carried out, and the unit did not come up: whether that helped is for the verification to say.
        "failed" | "timeout" => {
            Ok(Done { detail: format!("{verb} job ended as {result}"), ..Done::default() })
        }
        // A job that somebody else replaced or cancelled says nothing about the unit: look.
        "canceled" | "skipped" => Err(Failure::Unknown(format!("{verb} job {result}"))),
        result => Err(Failure::Refused(format!("{verb} job ended as {result}"))),
    }
}

/// An error that systemd itself sent means that nothing happened; anything else may have been lost on the way.
pub(super) fn call_failure(error: zbus::Error) -> Failure {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            let text = text.unwrap_or_default();
            let cure = if name.as_str() == NO_SUCH_UNIT { ": install its unit file" } else { "" };
            Failure::Refused(format!("{}: {text}{cure}", name.as_str()))
        }
        other => Failure::Unknown(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Why;

    #[test]
    fn every_result_of_a_job_is_told_apart() {
        let done = |text: &str| Ok(Done { detail: text.to_owned(), ..Done::default() });
        assert_eq!(verdict(Verb::Start, "done"), done("start job done"));
        assert_eq!(verdict(Verb::Restart, "failed"), done("restart job ended as failed"));
        assert_eq!(verdict(Verb::Stop, "timeout"), done("stop job ended as timeout"));
        for unknown in ["canceled", "skipped"] {
            assert!(matches!(verdict(Verb::Reload, unknown), Err(Failure::Unknown(_))), "{unknown}");
        }
        for refused in ["dependency", "invalid", "assert", "unsupported", "a word of a later systemd"] {
            assert!(matches!(verdict(Verb::Start, refused), Err(Failure::Refused(_))), "{refused}");
        }
    }

    #[test]
    fn what_a_start_cannot_cure_is_not_started_unless_something_has_changed_or_the_rule_says_so() {
        let seen = |cause: Cause, changed: Option<&str>| {
            let why = Why {
                cause,
                words: "permission denied on /data/out.log".to_owned(),
                cure: Some("add ReadWritePaths=/data".to_owned()),
                changed: changed.map(str::to_owned),
                unread: None,
            };
            Observation::Unit(Unit { why: Some(Box::new(why)), ..Unit::default() })
        };
        let denied = seen(Cause::PermissionDenied, None);
        let detail = "a start cannot cure it (permission denied on /data/out.log): add ReadWritePaths=/data";
        assert_eq!(may_cure(&denied, &[]), Check::Skip("restart_cannot_cure", detail.to_owned()));
        assert_eq!(may_cure(&denied, &[Cause::PermissionDenied]), Check::Go);
        assert!(matches!(may_cure(&denied, &[Cause::MissingFile]), Check::Skip(..)));
        assert_eq!(may_cure(&seen(Cause::PermissionDenied, Some("x has changed since")), &[]), Check::Go);
        for cause in Cause::ALL {
            let check = may_cure(&seen(cause, None), &[]);
            assert_eq!(check == Check::Go, cause.restart_may_help(), "{cause:?}");
        }
        assert_eq!(may_cure(&Observation::Unit(Unit::default()), &[]), Check::Go, "nobody has looked");
    }

    #[test]
    fn a_unit_that_is_worked_on_gets_no_job() {
        let judged = |change: fn(&mut Unit), wanted: bool| {
            let mut unit = Unit { load_state: "loaded".to_owned(), ..Unit::default() };
            change(&mut unit);
            match judge(&Observation::Unit(unit), "unwanted", |_| wanted) {
                Check::Skip(reason, _) => reason,
                _ => "go",
            }
        };
        assert_eq!(judged(|_| (), true), "go");
        assert_eq!(judged(|_| (), false), "unwanted");
        assert_eq!(judged(|unit| unit.load_state = "masked".to_owned(), true), "not_loaded");
        assert_eq!(judged(|unit| unit.load_state = "not-found".to_owned(), true), "not_loaded");
        assert_eq!(judged(|unit| unit.job_queued = true, true), "job_queued");
        assert_eq!(judged(|unit| unit.need_daemon_reload = true, true), "daemon_reload_needed");
    }
}
