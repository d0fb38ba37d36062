//! What only root may do: done directly where the remediator is root, else by a root-owned template unit that does
//! nothing but what the configuration says (`helper`). Not an action.

use std::{fs, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use evenkeel_host::systemd::Systemd;
use serde::{Deserialize, Serialize};

use super::{
    Done, Failure, Job,
    unit_job::{self, Verb as JobVerb},
};
use crate::{helper::Verb, systemd::ManagerProxy, text::printable_lines};

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
/// As the helper says itself; when it does not, nobody knows how far it came.
pub(super) async fn done(job: &Job, verb: Verb) -> Result<Done, Failure> {
    let unit = verb.unit(&job.rule, job.target.name()).map_err(Failure::Refused)?;
    let file = verb.answer(&job.rule, job.target.name());
    let before = stamp(&file);
    let ended = start(&job.host.systemd, &unit).await;
    match Answer::read(&file).filter(|_| stamp(&file) != before) {
        Some(answer) => answer.result(&unit),
        None => ended.map(|()| Done { detail: format!("done by {unit}"), ..Done::default() }),
    }
}

/// What became of it, as the helper leaves it for the remediator. It is read by nobody who decides what root does.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    ended: Ended,
    detail: String,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Ended {
    Done,
    Refused,
    Busy,
    Unknown,
}

/// An answer's size at most, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

impl Answer {
    /// Of what was done.
    pub(crate) fn of(result: &Result<Done, Failure>) -> Self {
        let (ended, detail) = match result {
            Ok(done) => (Ended::Done, &done.detail),
            Err(Failure::Refused(detail)) => (Ended::Refused, detail),
            Err(Failure::Busy(detail)) => (Ended::Busy, detail),
            Err(Failure::Unknown(detail)) => (Ended::Unknown, detail),
        };
        // Bounded as the journal bounds it: an answer that is too long is no answer.
        Self { ended, detail: printable_lines(detail) }
    }

    fn read(file: &Path) -> Option<Self> {
        let mut text = Vec::new();
        fs::File::open(file).ok()?.take(ANSWER_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn result(self, unit: &str) -> Result<Done, Failure> {
        let detail = format!("{} (by {unit})", self.detail);
        match self.ended {
            Ended::Done => Ok(Done { detail, ..Done::default() }),
            Ended::Refused => Err(Failure::Refused(detail)),
            Ended::Busy => Err(Failure::Busy(detail)),
            Ended::Unknown => Err(Failure::Unknown(detail)),
        }
    }
}

/// Tells one answer from another that says the same.
fn stamp(file: &Path) -> Option<(u64, i64, i64)> {
    fs::metadata(file).ok().map(|about| (about.ino(), about.mtime(), about.mtime_nsec()))
}

/// Starts a template unit and waits until it has ended well.
pub(crate) async fn start(systemd: &Systemd, unit: &str) -> Result<(), Failure> {
    let manager = ManagerProxy::of(systemd).await?;
    match unit_job::result(&manager, JobVerb::Start, unit).await?.as_str() {
        "done" => Ok(()),
        result => Err(Failure::Unknown(format!("{unit} ended as {result}: its journal says why"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_was_done() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("answer");
        assert!(Answer::read(&file).is_none());
        let done = Done { detail: "x".to_owned(), ..Done::default() };
        for result in [
            Ok(done),
            Err(Failure::Refused("x".to_owned())),
            Err(Failure::Busy("x".to_owned())),
            Err(Failure::Unknown("x".to_owned())),
        ] {
            fs::write(&file, serde_json::to_vec(&Answer::of(&result)).unwrap()).unwrap();
            let read = Answer::read(&file).unwrap().result("u");
            let said = |result: Result<Done, Failure>| match result {
                Ok(done) => format!("done {}", done.detail),
                Err(failure) => format!("{failure:?}"),
            };
            assert_eq!(said(read), said(result).replace('x', "x (by u)"));
        }
        // However much there is to say, and however it is written.
        for long in ["x\n".repeat(100_000), "\u{1}\"\\".repeat(100_000), "\"\n".repeat(100_000)] {
            let long = Err(Failure::Refused(long));
            fs::write(&file, serde_json::to_vec(&Answer::of(&long)).unwrap()).unwrap();
            let read = Answer::read(&file).expect("it was cut").result("u");
            assert!(matches!(read, Err(Failure::Refused(_))), "{read:?}");
        }
        fs::write(&file, "{}").unwrap();
        assert!(Answer::read(&file).is_none());
    }
}
