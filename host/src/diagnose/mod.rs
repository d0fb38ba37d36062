//! Why a service failed: from systemd's result and exit status, and from the last words of its last run in the journal.
//!
//! A cause is named only where systemd says it itself, or where a program's very last words are an error of a form that is
//! known (a Python traceback's last line, Node's error block, a shell's complaint about a path …). A line that merely mentions
//! such words, that came before other lines, or that is of an earlier run says nothing: then the cause is unknown.
//! The forms are in [`programs`], what systemd says is in [`systemd_says`], and real logs of provoked failures, against
//! which both are judged, in `host/tests/diagnose/`. Not here: what to do about it.

mod cause;
mod last_words;
mod programs;
mod since;
mod systemd_says;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use cause::Cause;
pub use since::changed_since;

use crate::{
    journal::{self, Line},
    systemd::{self, Failure, Systemd},
    text::printable_within,
};

/// Lines of the journal that are looked at, at most.
const LINES: u32 = 200;

/// Longer names of what is involved are cut, in characters.
const LONGEST_SUBJECT: usize = 200;

/// Why a service failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// In one word.
    pub cause: Cause,
    /// The path, module, library, host, address, user or group that is involved, where it is known. From foreign text:
    /// bounded, on one line, and without anything that steers a terminal.
    pub subject: Option<String>,
    /// The unit's `User=`; empty for none.
    user: String,
}

/// A failure with its diagnosis.
#[derive(Debug)]
pub struct Finding {
    /// What systemd says.
    pub failure: Failure,
    /// Why.
    pub diagnosis: Diagnosis,
    /// Why the journal could not be read; then only systemd's own words count.
    pub unread: Option<journal::Error>,
}

/// What is recognized.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    cause: Cause,
    subject: Option<String>,
}

impl Found {
    fn new(cause: Cause, subject: impl Into<Option<String>>) -> Self {
        Self { cause, subject: subject.into() }
    }

    /// About something that is named.
    fn about(cause: Cause, subject: &str) -> Self {
        Self::new(cause, Some(subject.to_owned()))
    }
}

impl Diagnosis {
    /// In words: the cause, and what is involved.
    pub fn words(&self) -> String {
        self.cause.words(self.subject.as_deref())
    }

    /// What is known to cure it, in words.
    pub fn cure(&self) -> Option<String> {
        self.cause.cure(self.subject.as_deref(), &self.user)
    }
}

/// Looks at a service and its journal; nothing when it has not failed. Takes 5 s at most beside systemd's answers.
///
/// # Errors
/// When systemd does not answer. That the journal cannot be read is no error: the finding says so.
pub async fn look(systemd: &Systemd, unit: &str) -> Result<Option<Finding>, systemd::Error> {
    let Some(failure) = systemd.failure(unit).await?.filter(Failure::is_one) else { return Ok(None) };
    let (lines, unread) = match journal::tail(&failure.unit, LINES).await {
        Ok(lines) => (Some(lines), None),
        Err(error) => (None, Some(error)),
    };
    let diagnosis = diagnose(&failure, lines.as_deref());
    Ok(Some(Finding { failure, diagnosis, unread }))
}

/// Why a service failed. `lines` are the last of its journal, the oldest first; nothing where it could not be read.
pub fn diagnose(failure: &Failure, lines: Option<&[Line]>) -> Diagnosis {
    let run = of_run(lines.unwrap_or_default(), &failure.invocation_id);
    let found = systemd_says::by_itself(failure, &run, lines.is_some())
        .or_else(|| last_words::of(failure, &run))
        .or_else(|| systemd_says::at_last(failure, &run))
        .unwrap_or(Found::new(Cause::Unknown, None));
    let subject = found.subject.map(|subject| printable_within(subject.trim(), LONGEST_SUBJECT));
    Diagnosis {
        cause: found.cause,
        subject: subject.filter(|subject| !subject.is_empty()),
        user: printable_within(&failure.user, LONGEST_SUBJECT),
    }
}

/// The lines of one run. Of what the journal does not know the run of (a process that was gone before it looked) it is
/// what stands between its lines, and what came just before its first: the line that says that it began may come later.
fn of_run<'a>(lines: &'a [Line], invocation: &str) -> Vec<&'a Line> {
    if invocation.is_empty() {
        return Vec::new();
    }
    let Some(first) = lines.iter().position(|line| line.invocation == invocation) else { return Vec::new() };
    let nameless = lines[..first].iter().rev().take_while(|line| line.invocation.is_empty()).count();
    let (before, early) = lines[..first].split_at(first - nameless);
    let early = early.iter().filter(|line| match before.last() {
        None => true,
        Some(other) => gap(line, &lines[first]) < gap(line, other),
    });
    let of_it = |line: &&Line| line.invocation.is_empty() || line.invocation == invocation;
    early.chain(lines[first..].iter().filter(of_it)).collect()
}

/// How far apart two lines are; very far where that is not known.
fn gap(a: &Line, b: &Line) -> Duration {
    let (Some(a), Some(b)) = (a.time, b.time) else { return Duration::MAX };
    a.duration_since(b).unwrap_or_else(|error| error.duration())
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "last words of a service",
    parse: |bytes| {
        let text = crate::foreign_input::text(bytes);
        let line = |message: &str| Line {
            message: message.to_owned(),
            identifier: "app".to_owned(),
            unit: "app.service".to_owned(),
            invocation: "1".to_owned(),
            ..Line::default()
        };
        let lines: Vec<Line> = text.split('\n').map(line).collect();
        for (result, status) in [("exit-code", 1), ("exit-code", 203), ("signal", 6), ("resources", 0)] {
            let failure = Failure {
                unit: "app.service".to_owned(),
                load_state: "loaded".to_owned(),
                active_state: "failed".to_owned(),
                result: result.to_owned(),
                exec_main_code: 1,
                exec_main_status: status,
                invocation_id: "1".to_owned(),
                ..Failure::default()
            };
            let diagnosis = diagnose(&failure, Some(&lines));
            // Each character of it is escaped at worst.
            assert!(diagnosis.subject.is_none_or(|subject| subject.chars().count() <= 12 * LONGEST_SUBJECT));
        }
    },
    samples: &[
        "Traceback (most recent call last):\n  File \"x.py\", line 1, in <module>\nPermissionError: [Errno 13] Permission denied: '/data/out.log'\n",
        "Error: EACCES: permission denied, open '/data/out.log'\n    at Object.openSync (node:fs:601:3) {\n  code: 'EACCES'\n}\n\nNode.js v18.19.0\n",
        "/bin/sh: 1: cannot create /data/out.log: Permission denied\n",
        "nginx: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)\n",
        "17:M 22 Nov 2026 08:00:00.000 # Could not create server TCP listening socket *:6379: bind: Address already in use\n",
        "Error: Os { code: 2, kind: NotFound, message: \"No such file or directory\" }\n",
    ],
}];
