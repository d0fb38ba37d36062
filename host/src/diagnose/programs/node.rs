//! Node: its report of an error that nobody caught, which ends with the stack, the error's fields and Node's version; and
//! what V8 says when its heap is full.

use super::{between, quoted};
use crate::diagnose::{Cause, Found};

pub(super) fn recognize(line: &str, is_in_report: bool, is_aborted: bool) -> Option<Found> {
    if is_aborted && line.starts_with("FATAL ERROR: ") && line.ends_with("JavaScript heap out of memory") {
        return Some(Found::new(Cause::OutOfMemory, None));
    }
    if !is_in_report {
        return None;
    }
    let said = line.strip_suffix(" {").unwrap_or(line);
    // Without a stack, as of a promise, it stands in brackets.
    let said = said.strip_prefix('[').and_then(|said| said.strip_suffix(']')).unwrap_or(said);
    let said = match said.strip_prefix("Error: ") {
        Some(said) => said,
        None => said.strip_prefix("Error [ERR_MODULE_NOT_FOUND]: ")?,
    };
    if let Some(module) =
        said.strip_prefix("Cannot find module ").or(said.strip_prefix("Cannot find package "))
    {
        let module = quoted(module, '\'')?;
        // The program itself, or a file that it names: no module that one installs.
        let cause = if module.starts_with('/') { Cause::MissingFile } else { Cause::ModuleNotFound };
        return Some(Found::about(cause, module));
    }
    call(said)
}

/// `EACCES: permission denied, open '/path'`, `connect ECONNREFUSED 127.0.0.1:6379`, `getaddrinfo ENOTFOUND host`.
fn call(said: &str) -> Option<Found> {
    if let Some((code, rest)) = said.split_once(": ")
        && let Some(cause) = by_code(code)
    {
        return Some(Found::new(cause, quoted(rest, '\'').map(str::to_owned)));
    }
    let mut words = said.split(' ');
    match (words.next()?, words.next()?) {
        ("connect", "ECONNREFUSED") => {
            Some(Found::new(Cause::ConnectionRefused, words.next().map(str::to_owned)))
        }
        ("listen", "EADDRINUSE:") => {
            let address = said.strip_prefix("listen EADDRINUSE: address already in use ")?;
            Some(Found::about(Cause::AddressInUse, address))
        }
        ("listen", "EACCES:") => {
            let address = said.strip_prefix("listen EACCES: permission denied ")?;
            Some(Found::about(Cause::PermissionDenied, address))
        }
        ("getaddrinfo", "ENOTFOUND" | "EAI_AGAIN") => {
            Some(Found::new(Cause::NameResolution, words.next().map(str::to_owned)))
        }
        _ => None,
    }
}

fn by_code(code: &str) -> Option<Cause> {
    match code {
        "EACCES" => Some(Cause::PermissionDenied),
        "EROFS" => Some(Cause::ReadOnlyFilesystem),
        "ENOENT" => Some(Cause::MissingFile),
        "ENOSPC" => Some(Cause::DiskFull),
        _ => None,
    }
}

/// The stack, the fields and the version; V8's stack when it aborts.
pub(super) fn may_follow(line: &str, is_in_report: bool, is_aborted: bool) -> bool {
    let of_report = line.starts_with(' ')
        || line == "}"
        || line == "Require stack:"
        || line.starts_with("- /")
        || line.starts_with("Node.js v")
        || line.starts_with("Emitted 'error' event ");
    let of_abort = line.starts_with("-----") || between(line, ": 0x", " ").is_some();
    (is_in_report && of_report) || (is_aborted && of_abort)
}
