//! The last words of a program: the line that says why it ended, which need not be the last one. Lines that are known to
//! follow such a line are passed over; anything else ends the search, because then the error was not the end.

use super::{Found, programs, systemd_says::is_executor};
use crate::{journal::Line, systemd::Failure};

/// Lines that are looked back at.
const MOST: usize = 100;
/// Longer lines say nothing that is known.
const LONGEST: usize = 4096;

/// A program's end.
#[derive(Debug)]
pub(super) struct Words<'a> {
    /// All that it wrote at the end, the oldest first, without empty lines.
    pub(super) lines: Vec<&'a str>,
    /// The exit status, when the main process ended by itself.
    pub(super) status: Option<i32>,
    /// It aborted.
    pub(super) is_aborted: bool,
}

/// What the last words of the run say, when the service failed because a program of it did.
pub(super) fn of(failure: &Failure, run: &[&Line]) -> Option<Found> {
    const ABORT: i32 = 6;
    let is_aborted = failure.exec_main_code >= 2 && failure.exec_main_status == ABORT;
    // What was killed from outside did not say why.
    let has_ended = match failure.result.as_str() {
        "exit-code" | "start-limit-hit" | "protocol" => true,
        "signal" | "core-dump" => is_aborted,
        // Waiting for the next start; the result is that of the last run.
        _ => false,
    };
    if !has_ended {
        return None;
    }
    // Anybody may write lines about a unit; of it is only what the journal itself found to be.
    let said = run.iter().filter(|line| line.unit == failure.unit && !is_executor(line));
    let mut lines: Vec<&str> = said
        .flat_map(|line| line.message.split('\n'))
        .map(str::trim_end)
        .filter(|line| !line.trim_start().is_empty())
        .collect();
    lines.drain(..lines.len().saturating_sub(MOST));
    let status = (failure.exec_main_code == 1).then_some(failure.exec_main_status);
    search(&Words { lines, status, is_aborted })
}

fn search(words: &Words<'_>) -> Option<Found> {
    let mut is_node = false;
    for (place, line) in words.lines.iter().enumerate().rev() {
        if line.len() > LONGEST {
            return None;
        }
        is_node |= line.starts_with("Node.js v");
        if let Some(found) = programs::recognize(words, place, is_node) {
            return Some(found);
        }
        if !programs::may_follow(line, is_node, words.is_aborted) {
            return None;
        }
    }
    None
}
