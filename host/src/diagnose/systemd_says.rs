//! What systemd itself says of a failure: its result, the step of a start that it could not take (systemd.exec(5), "Process
//! Exit Codes"), and its lines in the journal.

use super::{Cause, Found, programs::errno};
use crate::{journal::Line, systemd::Failure};

/// Where systemd puts a service's root together; its messages name paths below it.
const ROOTS: [&str; 2] = ["/run/systemd/unit-root", "/run/systemd/mount-rootfs"];

/// What it says so clearly that no program's last words matter.
pub(super) fn by_itself(failure: &Failure, run: &[&Line], is_journal_read: bool) -> Option<Found> {
    if matches!(failure.load_state.as_str(), "bad-setting" | "error") {
        return Some(Found::new(Cause::BadUnitFile, None));
    }
    match failure.result.as_str() {
        "oom-kill" => return Some(Found::new(Cause::OutOfMemory, None)),
        "timeout" | "watchdog" => return Some(Found::new(Cause::Timeout, None)),
        "resources" => return resources(failure, run),
        _ => {}
    }
    if is_journal_read { step_in_words(failure, run) } else { step_by_status(failure) }
}

/// What is left to say when nothing else is known.
pub(super) fn at_last(failure: &Failure, run: &[&Line]) -> Option<Found> {
    let is_limited = failure.result == "start-limit-hit"
        || run.iter().any(|line| {
            line.is_from_systemd && line.message.ends_with(": Start request repeated too quickly.")
        });
    (is_limited && failure.active_state == "failed").then(|| Found::new(Cause::StartLimit, None))
}

/// It gave up before it had made a process: for a service that is a file with its environment.
fn resources(failure: &Failure, run: &[&Line]) -> Option<Found> {
    let said = run.iter().rev().find_map(|line| {
        let (_, problem) = line.message.split_once(": Failed to load environment files: ")?;
        line.is_from_systemd.then_some(problem)
    })?;
    let cause = errno::by_words(said)?;
    let file = match &failure.environment_files[..] {
        [file] => Some(file.clone()),
        _ => None,
    };
    Some(Found::new(cause, file))
}

/// The step of the start that was not taken: process 1 says which, and a line that was written in the new process what of.
fn step_in_words(failure: &Failure, run: &[&Line]) -> Option<Found> {
    // A program that ran and ended by itself is no step, whatever happened before to a command whose failure does not
    // matter.
    if failure.exec_main_code == 1 && (1..200).contains(&failure.exec_main_status) {
        return None;
    }
    let step = run.iter().rev().filter(|line| line.is_from_systemd).find_map(|line| {
        let (_, status) = line.message.split_once(" process exited, code=exited, status=")?;
        status.split_once('/').map(|(_, step)| step)
    })?;
    let begin = format!("{}: Failed at step {step} spawning ", failure.unit);
    let last = run.iter().rposition(|line| is_executor(line) && line.message.starts_with(&begin))?;
    if run[last + 1..].iter().any(|line| line.unit == failure.unit && !is_executor(line)) {
        return None;
    }
    let (program, problem) = run[last].message.strip_prefix(&begin)?.rsplit_once(": ")?;
    let cause = errno::by_words(problem);
    match step {
        "EXEC" => Some(Found::about(cause?, program)),
        "CHDIR" => Some(Found::new(cause?, working_directory(failure))),
        "USER" => Some(Found::new(Cause::MissingUser, named(&failure.user))),
        "GROUP" => Some(Found::new(Cause::MissingUser, named(&failure.group))),
        "NAMESPACE" => Some(Found::new(Cause::Namespace, in_the_way(&run[..last]))),
        _ => Some(Found::new(cause?, None)),
    }
}

/// The same where nobody can read the lines: the status alone is systemd's convention.
fn step_by_status(failure: &Failure) -> Option<Found> {
    if failure.exec_main_code != 1 {
        return None;
    }
    match failure.exec_main_status {
        216 => Some(Found::new(Cause::MissingUser, named(&failure.group))),
        217 => Some(Found::new(Cause::MissingUser, named(&failure.user))),
        226 => Some(Found::new(Cause::Namespace, None)),
        // A directory or program that is missing, or must not be used: nobody knows which.
        _ => None,
    }
}

/// Whether systemd wrote it in the process that was to become the program: those lines have the program's name in
/// brackets.
pub(super) fn is_executor(line: &Line) -> bool {
    line.identifier.starts_with('(') && line.identifier.ends_with(')')
}

/// The path that a mount namespace could not be set up for.
fn in_the_way(run: &[&Line]) -> Option<String> {
    let said = run.iter().rev().find_map(|line| {
        line.message.split_once(": Failed to set up mount namespacing: ").map(|(_, said)| said)
    })?;
    let (path, _) = said.rsplit_once(": ")?;
    let path = ROOTS.iter().find_map(|root| path.strip_prefix(root)).unwrap_or(path);
    path.starts_with('/').then(|| path.to_owned())
}

fn working_directory(failure: &Failure) -> Option<String> {
    named(failure.working_directory.trim_start_matches('!'))
}

fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}
