//! Shells and the small programs that scripts are made of: `program: what it could not do: the C library's words`.

use super::{errno, host_of};
use crate::diagnose::{Cause, Found};

/// What is logged at these levels ends nothing.
const LEVELS: [&str; 5] = ["DEBUG", "INFO", "NOTICE", "WARN", "WARNING"];

/// The status of a shell that did not find the program.
const NOT_FOUND: i32 = 127;

pub(super) fn recognize(line: &str, status: Option<i32>) -> Option<Found> {
    redis_cli(line).or_else(|| {
        let (program, said) = line.split_once(": ")?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+');
        if program.is_empty() || !program.chars().all(is_name) || LEVELS.contains(&program) {
            return None;
        }
        match program {
            "curl" => curl(said),
            _ => missing_program(said, status).or_else(|| complaint(said)),
        }
    })
}

/// `1: no-such-tool: not found` of dash, `line 1: no-such-tool: command not found` of bash.
fn missing_program(said: &str, status: Option<i32>) -> Option<Found> {
    let said = said.strip_suffix(": not found").or_else(|| said.strip_suffix(": command not found"))?;
    let (place, program) = said.split_once(": ")?;
    let is_known = status == Some(NOT_FOUND) && is_place(place) && !program.contains(' ');
    is_known.then(|| Found::about(Cause::MissingFile, program))
}

/// `cannot create directory '/data': Permission denied`, `1: cannot open /x: No such file`, `/x: Read-only file system`.
fn complaint(said: &str) -> Option<Found> {
    // dash has words of its own for what is missing.
    let missing =
        [": Directory nonexistent", ": No such file"].iter().find_map(|words| said.strip_suffix(words));
    let (said, cause) = match missing {
        Some(said) => (said, Cause::MissingFile),
        None => errno::at_end(said)?,
    };
    if cause == Cause::DiskFull {
        return Some(Found::new(cause, object(said).map(str::to_owned)));
    }
    // A name or an address says more than that it is one: those forms are their programs' own.
    if matches!(cause, Cause::NameResolution | Cause::ConnectionRefused | Cause::AddressInUse) {
        return None;
    }
    let said = match said.split_once(": ") {
        Some((place, rest)) if is_place(place) => rest,
        _ => said,
    };
    let object = object(said)?;
    let verb = said.trim_end_matches(['\'', '’']).strip_suffix(object)?.trim_end_matches(['\'', '‘']);
    let is_verb = ["cannot ", "can't ", "failed to ", "error "].iter().any(|begin| verb.starts_with(begin));
    (verb.is_empty() || is_verb).then(|| Found::about(cause, object))
}

/// What was not done: the last word that is a path, or what stands in quotes at the end.
fn object(said: &str) -> Option<&str> {
    for (open, close) in [('\'', '\''), ('‘', '’')] {
        if let Some(said) = said.strip_suffix(close)
            && let Some((_, object)) = said.rsplit_once(open)
        {
            return (!object.is_empty()).then_some(object);
        }
    }
    let last = said.rsplit(' ').next()?;
    last.starts_with('/').then_some(last)
}

/// Where in a script: `3` or `line 3`.
fn is_place(text: &str) -> bool {
    let number = text.strip_prefix("line ").unwrap_or(text);
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// `(6) Could not resolve host: x`; of its other errors one status stands for many.
fn curl(said: &str) -> Option<Found> {
    if let Some(host) = said.strip_prefix("(6) Could not resolve host: ") {
        return Some(Found::about(Cause::NameResolution, host));
    }
    let (_, rest) = said.strip_suffix(": Connection refused")?.split_once("Failed to connect to ")?;
    let (host, rest) = rest.split_once(" port ")?;
    let port = rest.split([' ', ':']).next()?;
    said.starts_with("(7) ").then(|| Found::about(Cause::ConnectionRefused, &format!("{host}:{port}")))
}

/// `Could not connect to Redis at host:6379: Connection refused`.
fn redis_cli(line: &str) -> Option<Found> {
    let (address, cause) = errno::at_end(line.strip_prefix("Could not connect to Redis at ")?)?;
    match cause {
        Cause::NameResolution => Some(Found::about(cause, host_of(address))),
        Cause::ConnectionRefused => Some(Found::about(cause, address)),
        _ => None,
    }
}
