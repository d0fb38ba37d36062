//! Python: the last line of the traceback of an exception that nobody caught, and what the interpreter says when it cannot
//! begin.

use super::{between, errno, host_of, quoted};
use crate::diagnose::{Cause, Found};

const TRACEBACK: &str = "Traceback (most recent call last):";
const NO_MODULE: &str = "No module named ";

pub(super) fn recognize(before: &[&str], line: &str) -> Option<Found> {
    if ends_traceback(before) { exception(line) } else { interpreter(line) }
}

/// Whether what came before is a traceback's head and frames.
fn ends_traceback(before: &[&str]) -> bool {
    let is_frame = |line: &&&str| line.starts_with(' ');
    let frames = before.iter().rev().take_while(is_frame).count();
    frames > 0 && before.iter().rev().nth(frames) == Some(&TRACEBACK)
}

/// `package.Kind: message`.
fn exception(line: &str) -> Option<Found> {
    let (kind, message) = line.split_once(": ").unwrap_or((line, ""));
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_');
    if kind.is_empty() || !kind.chars().all(is_name) {
        return None;
    }
    if kind == "MemoryError" {
        return Some(Found::new(Cause::OutOfMemory, None));
    }
    if matches!(kind, "ModuleNotFoundError" | "ImportError")
        && let Some(module) = message.strip_prefix(NO_MODULE)
    {
        return Some(Found::about(Cause::ModuleNotFound, quoted(module, '\'')?));
    }
    if let Some((library, _)) = message.split_once(": cannot open shared object file: No such file") {
        return Some(Found::about(Cause::LibraryNotFound, library));
    }
    redis_client(message).or_else(|| os_error(message))
}

/// `Error 111 connecting to host:6379. Connection refused.`
fn redis_client(message: &str) -> Option<Found> {
    let (number, rest) = message.strip_prefix("Error ")?.split_once(" connecting to ")?;
    let (address, _) = rest.split_once(". ").unwrap_or((rest.trim_end_matches('.'), ""));
    match errno::by_number(number.parse().ok()?)? {
        Cause::NameResolution => Some(Found::about(Cause::NameResolution, host_of(address))),
        cause => Some(Found::about(cause, address)),
    }
}

/// `[Errno 13] Permission denied: '/path'`, also in the words of another exception.
fn os_error(message: &str) -> Option<Found> {
    let (before, rest) = message.split_once("[Errno ")?;
    let (number, rest) = rest.split_once("] ")?;
    let cause = errno::by_number(number.parse().ok()?)?;
    let subject = match cause {
        Cause::NameResolution => host_in(before).map(str::to_owned),
        Cause::ConnectionRefused | Cause::AddressInUse => address(rest),
        _ => rest.split_once(": ").and_then(|(_, named)| quoted(named, '\'')).map(str::to_owned),
    };
    Some(Found::new(cause, subject))
}

/// The host in the words of the usual HTTP client.
fn host_in(message: &str) -> Option<&str> {
    between(message, "host='", "'").or_else(|| between(message, "Failed to resolve '", "'"))
}

/// `('127.0.0.1', 6379)` as `127.0.0.1:6379`.
fn address(message: &str) -> Option<String> {
    let inside = between(message, "('", ")")?;
    let (host, port) = inside.split_once("', ")?;
    Some(format!("{host}:{}", port.split(',').next().unwrap_or_default()))
}

/// What the interpreter says by itself: `/usr/bin/python3: can't open file '/x.py': [Errno 2] …`.
fn interpreter(line: &str) -> Option<Found> {
    let (program, said) = line.split_once(": ")?;
    if !program.rsplit('/').next()?.starts_with("python") || program.contains(' ') {
        return None;
    }
    if let Some(rest) = said.strip_prefix("can't open file ") {
        let number = between(rest, "[Errno ", "]")?.parse().ok()?;
        return Some(Found::about(errno::by_number(number)?, quoted(rest, '\'')?));
    }
    if let Some(module) = said.strip_prefix(NO_MODULE) {
        let is_module = !module.is_empty() && !module.contains(' ');
        return is_module.then(|| Found::about(Cause::ModuleNotFound, module));
    }
    let module = between(said, "(ModuleNotFoundError: No module named '", "')")?;
    let is_search = said.starts_with("Error while finding module specification for ");
    is_search.then(|| Found::about(Cause::ModuleNotFound, module))
}
