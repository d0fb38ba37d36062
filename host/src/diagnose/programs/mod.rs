//! The forms in which programs say why they end, one file for those that share a form. Each takes one line, with what came
//! before it where the form needs that, and names a cause only when the whole line has the form.

pub(super) mod errno;
mod native;
mod node;
mod python;
mod servers;
mod shell;

use super::{Found, last_words::Words};

/// What the line at this place says, if it is of a known form. `is_node`: it stands in Node's report of an error.
pub(super) fn recognize(words: &Words<'_>, place: usize, is_node: bool) -> Option<Found> {
    let (before, line) = (&words.lines[..place], words.lines[place]);
    python::recognize(before, line)
        .or_else(|| node::recognize(line, is_node, words.is_aborted))
        .or_else(|| native::recognize(line))
        .or_else(|| servers::recognize(before, line))
        .or_else(|| shell::recognize(line, words.status))
}

/// Whether a line is known to come behind the one that says why.
pub(super) fn may_follow(line: &str, is_node: bool, is_aborted: bool) -> bool {
    node::may_follow(line, is_node, is_aborted) || native::may_follow(line) || servers::may_follow(line)
}

/// The text between the first pair of `quote` in `text`.
fn quoted(text: &str, quote: char) -> Option<&str> {
    let (_, rest) = text.split_once(quote)?;
    let (inside, _) = rest.split_once(quote)?;
    (!inside.is_empty()).then_some(inside)
}

/// The text between two marks.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    let (inside, _) = rest.split_once(end)?;
    Some(inside)
}

/// The host of `host:port` or of `[address]:port`; the whole where there is no port.
fn host_of(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => address,
    }
}
