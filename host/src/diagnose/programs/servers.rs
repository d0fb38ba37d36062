//! nginx and Redis: what they log when they cannot begin.

use super::{between, errno, host_of, quoted};
use crate::diagnose::{Cause, Found};

pub(super) fn recognize(before: &[&str], line: &str) -> Option<Found> {
    if let Some(said) = nginx_says(line) {
        return nginx(said);
    }
    match redis_says(line) {
        Some(said) => redis(said),
        None => redis_configuration(before, line),
    }
}

/// Lines that come behind the one that says why.
pub(super) fn may_follow(line: &str) -> bool {
    if let Some(said) = nginx_says(line) {
        return said == "still could not bind()";
    }
    if line.starts_with("nginx: configuration file ") && line.ends_with(" test failed") {
        return true;
    }
    redis_says(line).is_some_and(|said| {
        said.starts_with("Failed listening on port ")
            || said.starts_with("Fatal error loading the DB, check server logs")
    })
}

/// What nginx says at a level that ends it, to a terminal (`nginx: [emerg] …`) or as in its log
/// (`2026/11/22 08:00:00 [emerg] 17#17: …`).
fn nginx_says(line: &str) -> Option<&str> {
    if let Some(said) = line.strip_prefix("nginx: ") {
        return without_level(said);
    }
    let (stamp, said) = line.split_at_checked("2026/11/22 08:00:00 ".len())?;
    let is_stamp = stamp.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'/' | b':' | b' '));
    let (_, said) = without_level(said).filter(|_| is_stamp)?.split_once(": ")?;
    Some(said)
}

fn without_level(said: &str) -> Option<&str> {
    ["[emerg] ", "[alert] ", "[crit] "].iter().find_map(|level| said.strip_prefix(level))
}

fn nginx(said: &str) -> Option<Found> {
    if let Some(rest) = said.strip_prefix("host not found in ") {
        return Some(Found::about(Cause::NameResolution, host_of(quoted(rest, '"')?)));
    }
    if said.starts_with("getpwnam(\"") || said.starts_with("getgrnam(\"") {
        return Some(Found::about(Cause::MissingUser, quoted(said, '"')?));
    }
    let said = said.strip_prefix("could not open error log file: ").unwrap_or(said);
    if let Some(rest) = said.strip_prefix("bind() to ") {
        let (address, rest) = rest.split_once(" failed (")?;
        return Some(Found::about(by_failure(rest)?, address));
    }
    let (call, rest) = said.split_once("() \"")?;
    let (path, rest) = rest.split_once("\" failed (")?;
    if call == "dlopen" {
        let is_missing = rest.contains("cannot open shared object file: No such file");
        return is_missing.then(|| Found::about(Cause::LibraryNotFound, path));
    }
    Some(Found::about(by_failure(rest)?, path))
}

/// `13: Permission denied) in …`.
fn by_failure(rest: &str) -> Option<Cause> {
    let (number, words) = rest.split_once(": ")?;
    let cause = errno::by_number(number.parse().ok()?)?;
    let (words, _) = words.split_once(')')?;
    (errno::by_words(words) == Some(cause)).then_some(cause)
}

/// What Redis logs: `17:M 22 Nov 2026 08:00:00.123 # …`.
fn redis_says(line: &str) -> Option<&str> {
    let mut words = line.splitn(7, ' ');
    let (process, day, month) = (words.next()?, words.next()?, words.next()?);
    let (year, time, level, said) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (pid, role) = process.split_once(':')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_log = is_number(pid)
        && matches!(role, "M" | "S" | "C" | "X")
        && is_number(day)
        && month.len() == 3
        && is_number(year)
        && time.contains(':')
        && matches!(level, "#" | "*" | "-" | ".");
    is_log.then_some(said)
}

fn redis(said: &str) -> Option<Found> {
    let (said, cause) = errno::at_end(said.strip_suffix(". Exiting.").unwrap_or(said))?;
    if let Some((_, address)) = said.split_once("Could not create server TCP listening socket ") {
        let address = address.strip_suffix(": bind").unwrap_or(address);
        return match cause {
            Cause::NameResolution => Some(Found::about(cause, host_of(address))),
            Cause::AddressInUse | Cause::PermissionDenied => Some(Found::about(cause, address)),
            _ => None,
        };
    }
    let is_fatal = ["Can't ", "Fatal error"].iter().any(|begin| said.starts_with(begin));
    // `can't` has a quote of its own.
    let in_quotes = said.strip_suffix('\'').and_then(|said| said.rsplit_once('\'')).map(|(_, named)| named);
    let subject = in_quotes.or_else(|| between(said, "RDB file ", " for")).or_else(|| {
        let named = said.rsplit_once(' ').map(|(_, last)| last)?;
        said.contains("append-only").then_some(named)
    });
    is_fatal.then(|| Found::new(cause, subject.map(str::to_owned)))
}

/// The complaint about its configuration: behind the line that is meant, if one is, the error's words.
fn redis_configuration(before: &[&str], line: &str) -> Option<Found> {
    const HEAD: &str = "*** FATAL CONFIG FILE ERROR";
    let last = before.last()?;
    if last.starts_with(HEAD) {
        return errno::at_end(line).map(|(_, cause)| Found::new(cause, None));
    }
    before.iter().rev().nth(2).filter(|head| head.starts_with(HEAD))?;
    let directive = last.strip_prefix(">>> '")?.strip_suffix('\'')?;
    let words = line.rsplit_once(": ").map_or(line, |(_, words)| words);
    let (_, subject) = directive.split_once(' ')?;
    Some(Found::about(errno::by_words(words)?, subject.trim_matches('"')))
}
