//! What compiled programs have in common: Rust's standard library, and the loader of shared libraries.

use super::{between, errno, quoted};
use crate::diagnose::{Cause, Found};

pub(super) fn recognize(line: &str) -> Option<Found> {
    loader(line).or_else(|| out_of_memory(line)).or_else(|| lookup(line)).or_else(|| os_error(line))
}

/// Lines of Rust's that come behind a panic's words.
pub(super) fn may_follow(line: &str) -> bool {
    line.starts_with("note: run with `RUST_BACKTRACE=")
        || line.starts_with("note: Some details are omitted, run with")
}

/// `app: error while loading shared libraries: libx.so.1: cannot open shared object file: No such file or directory`.
fn loader(line: &str) -> Option<Found> {
    let (_, rest) = line.split_once(": error while loading shared libraries: ")?;
    let (library, _) = rest.split_once(": cannot open shared object file: No such file")?;
    Some(Found::about(Cause::LibraryNotFound, library))
}

/// `memory allocation of 1024 bytes failed`.
fn out_of_memory(line: &str) -> Option<Found> {
    let bytes = line.strip_prefix("memory allocation of ")?.strip_suffix(" bytes failed")?;
    bytes.bytes().all(|byte| byte.is_ascii_digit()).then(|| Found::new(Cause::OutOfMemory, None))
}

/// What the standard library says when a name has no address.
fn lookup(line: &str) -> Option<Found> {
    const SAYS: &str = "failed to lookup address information: ";
    let (before, words) = line.split_once(SAYS)?;
    let words = words.trim_end_matches(['"', ' ', '}', ')']);
    (is_error(before) && errno::by_words(words) == Some(Cause::NameResolution))
        .then(|| Found::new(Cause::NameResolution, None))
}

/// An error of the operating system as Rust prints it: `Os { code: 13, …` for programmers, `… (os error 13)` for people.
fn os_error(line: &str) -> Option<Found> {
    if let Some(number) = between(line, "Os { code: ", ",") {
        let (before, _) = line.split_once("Os { code: ")?;
        let cause = errno::by_number(number.parse().ok()?)?;
        return is_error(before).then(|| Found::new(cause, None));
    }
    let (said, number) = line.strip_suffix(')')?.rsplit_once(" (os error ")?;
    let cause = errno::by_number(number.parse().ok()?)?;
    let (before, words) = said.rsplit_once(": ").unwrap_or(("", said.trim_start()));
    (errno::by_words(words) == Some(cause)).then(|| Found::new(cause, path_in(before)))
}

/// Whether a line begins as the report of an error that ended the program: what `main` returned, or a panic's words.
fn is_error(before: &str) -> bool {
    before.starts_with("Error: ") || before.contains("on an `Err` value: ")
}

/// The path that a message names: in quotes, or a word of its own.
fn path_in(text: &str) -> Option<String> {
    let in_quotes = ['\'', '"', '`'].into_iter().find_map(|quote| quoted(text, quote));
    let path = in_quotes.or_else(|| text.split(' ').find(|word| word.starts_with('/')))?;
    path.starts_with('/').then(|| path.to_owned())
}
