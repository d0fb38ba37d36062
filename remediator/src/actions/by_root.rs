//! What only root may do: done directly where the remediator is root, else by a root-owned template unit that does
//! nothing but what the configuration says (`helper`). Not an action.

use evenkeel_host::systemd::Systemd;

use super::{
    Done, Failure, Job,
    unit_job::{self, Verb as JobVerb},
};
use crate::{helper::Verb, systemd::ManagerProxy};

/// Whether this process may do it itself.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The exact call, and who makes it.
pub(super) fn plan(call: &str, verb: Verb) -> String {
    if is_root() { call.to_owned() } else { format!("{call}, by {}", verb.template()) }
}

/// Has the template unit do it, and waits until it has ended.
///
/// # Errors
/// When it could not be started, or did not end well: then nobody knows how far it came.
pub(super) async fn done(job: &Job, verb: Verb) -> Result<Done, Failure> {
    let unit = verb.unit(&job.rule, job.target.name()).map_err(Failure::Refused)?;
    start(&job.host.systemd, &unit).await?;
    Ok(Done { detail: format!("done by {unit}"), ..Done::default() })
}

/// Starts a template unit and waits until it has ended well.
pub(crate) async fn start(systemd: &Systemd, unit: &str) -> Result<(), Failure> {
    let manager = ManagerProxy::of(systemd).await?;
    match unit_job::result(&manager, JobVerb::Start, unit).await?.as_str() {
        "done" => Ok(()),
        result => Err(Failure::Unknown(format!("{unit} ended as {result}: its journal says why"))),
    }
}
