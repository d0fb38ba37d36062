//! /etc/hosts (hosts(5)): what it says of a name, and the one line of ours that gives a name an address. Pure but for the
//! look; who writes it is `actions::hosts_alias`.

use std::{net::IpAddr, path::Path};

/// The file.
pub(crate) const FILE: &str = "/etc/hosts";
/// A longer file is not looked at, in bytes.
const LONGEST: u64 = 1024 * 1024;
/// What says in a line's comment that the line is ours.
const MARK: &str = "evenkeel: hosts_alias";

/// One line that gives a name an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// From 1.
    line: usize,
    /// `None` where what stands there is no address; then the line means nothing, and still is in the way of another.
    address: Option<IpAddr>,
    is_ours: bool,
}

/// Why a name is given no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It stands there already, and not by us.
    #[error("line {0} gives it this address already")]
    SameAddress(usize),
    /// It stands there already, with another address, and not by us: first come, first served is not for us to change.
    #[error("line {line} names it already{}: change that line by hand", .address.map(|address| format!(", as {address}")).unwrap_or_default())]
    OtherAddress {
        /// From 1.
        line: usize,
        /// What stands there, if that is an address.
        address: Option<IpAddr>,
    },
}

/// Our line for a name.
pub(crate) fn line_of(name: &str, address: IpAddr) -> String {
    format!("{address} {name} # {MARK}")
}

/// The address that a line of ours gives the name.
pub(crate) fn alias(text: &[u8], name: &str) -> Option<IpAddr> {
    entries(text, name).find(|entry| entry.is_ours)?.address
}

/// The same of a file; nothing where it cannot be read. Blocks.
pub(crate) fn alias_in(file: &Path, name: &str) -> Option<IpAddr> {
    if std::fs::metadata(file).ok()?.len() > LONGEST {
        return None;
    }
    alias(&std::fs::read(file).ok()?, name)
}

/// The text with one line of ours that gives the name this address, and all else as it was. `None` where it is so already.
///
/// # Errors
/// When a line that is not ours names it.
pub(crate) fn with(text: &[u8], name: &str, address: IpAddr) -> Result<Option<Vec<u8>>, Refusal> {
    let entries: Vec<Entry> = entries(text, name).collect();
    let mut others = entries.iter().filter(|entry| !entry.is_ours);
    if let Some(other) = others.clone().find(|other| other.address != Some(address)) {
        return Err(Refusal::OtherAddress { line: other.line, address: other.address });
    }
    if let Some(same) = others.next() {
        return Err(Refusal::SameAddress(same.line));
    }
    let ours: Vec<Entry> = entries.into_iter().filter(|entry| entry.is_ours).collect();
    let line = line_of(name, address);
    match ours.as_slice() {
        [one] if one.address == Some(address) => Ok(None),
        [] => {
            let mut text = text.to_vec();
            if text.last().is_some_and(|last| *last != b'\n') {
                text.push(b'\n');
            }
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
            Ok(Some(text))
        }
        // Another address, or several lines: the first becomes the one.
        [first, more @ ..] => {
            let mut left = Vec::new();
            for (number, whole) in numbered(text) {
                if number == first.line {
                    left.extend_from_slice(line.as_bytes());
                    left.extend_from_slice(end_of(whole));
                } else if !more.iter().any(|entry| entry.line == number) {
                    left.extend_from_slice(whole);
                }
            }
            Ok(Some(left))
        }
    }
}

/// The text without our lines for the name, and all else as it was. `None` where there is none.
pub(crate) fn without(text: &[u8], name: &str) -> Option<Vec<u8>> {
    let ours: Vec<usize> =
        entries(text, name).filter(|entry| entry.is_ours).map(|entry| entry.line).collect();
    if ours.is_empty() {
        return None;
    }
    let left = numbered(text).filter(|(number, _)| !ours.contains(number)).map(|(_, line)| line);
    Some(left.collect::<Vec<_>>().concat())
}

/// The lines with their numbers and ends.
fn numbered(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    text.split_inclusive(|byte| *byte == b'\n').enumerate().map(|(index, line)| (index + 1, line))
}

fn end_of(line: &[u8]) -> &[u8] {
    let length = if line.ends_with(b"\r\n") { 2 } else { usize::from(line.ends_with(b"\n")) };
    &line[line.len() - length..]
}

/// The lines that name it, in upper or lower case.
fn entries<'a>(text: &'a [u8], name: &'a str) -> impl Iterator<Item = Entry> + 'a {
    numbered(text).filter_map(move |(line, bytes)| {
        let text = String::from_utf8_lossy(bytes);
        let (said, comment) = text.split_once('#').unwrap_or((&*text, ""));
        let mut words = said.split_ascii_whitespace();
        let address = words.next()?;
        let names: Vec<&str> = words.collect();
        if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return None;
        }
        // A line that somebody has added names to is theirs.
        let is_ours = comment.trim() == MARK && names.len() == 1;
        Some(Entry { line, address: address.parse().ok(), is_ours })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const HOSTS: &str = "127.0.0.1\tlocalhost\n# hand made\n::1 localhost ip6-localhost\r\n10.0.0.7 db db.example # quantum_redis\n";

    fn added(text: &str) -> String {
        String::from_utf8(with(text.as_bytes(), "quantum_redis", HOME).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn one_line_is_added_and_everything_else_stays() {
        let after = added(HOSTS);
        assert_eq!(after, format!("{HOSTS}127.0.0.1 quantum_redis # evenkeel: hosts_alias\n"));
        assert_eq!(with(after.as_bytes(), "quantum_redis", HOME), Ok(None), "a second time");
        assert_eq!(alias(after.as_bytes(), "Quantum_Redis"), Some(HOME));
        assert_eq!(without(after.as_bytes(), "quantum_redis").unwrap(), HOSTS.as_bytes());
        assert_eq!(without(HOSTS.as_bytes(), "quantum_redis"), None);
        assert_eq!(
            added("127.0.0.1 localhost"),
            "127.0.0.1 localhost\n127.0.0.1 quantum_redis # evenkeel: hosts_alias\n"
        );
        assert_eq!(added(""), "127.0.0.1 quantum_redis # evenkeel: hosts_alias\n");
    }

    #[test]
    fn our_line_is_given_another_address_in_its_place() {
        let v6: IpAddr = "::1".parse().unwrap();
        let before =
            format!("a\n{}\r\nb\n{}\nc", line_of("quantum_redis", HOME), line_of("quantum_redis", HOME));
        let after = with(before.as_bytes(), "quantum_redis", v6).unwrap().unwrap();
        assert_eq!(String::from_utf8(after).unwrap(), "a\n::1 quantum_redis # evenkeel: hosts_alias\r\nb\nc");
        // Twice the same becomes once.
        let once = with(before.as_bytes(), "quantum_redis", HOME).unwrap().unwrap();
        assert_eq!(entries(&once, "quantum_redis").count(), 1);
    }

    #[test]
    fn what_somebody_else_wrote_is_not_shadowed() {
        let refused = |text: &str| with(text.as_bytes(), "quantum_redis", HOME).unwrap_err();
        let other = |line, address: &str| Refusal::OtherAddress { line, address: address.parse().ok() };
        assert_eq!(refused("10.0.0.7 QUANTUM_REDIS\n"), other(1, "10.0.0.7"));
        assert_eq!(refused("\n10.0.0.7 db quantum_redis # evenkeel: hosts_alias\n"), other(2, "10.0.0.7"));
        assert_eq!(refused("::1 quantum_redis\n127.0.0.1 quantum_redis\n"), other(1, "::1"));
        assert_eq!(refused("127.0.0.1 quantum_redis\n::1 quantum_redis\n"), other(2, "::1"));
        assert_eq!(refused("what quantum_redis\n"), other(1, ""));
        assert_eq!(refused("127.0.0.1 localhost quantum_redis\n"), Refusal::SameAddress(1));
        let said = other(4, "10.0.0.7").to_string();
        assert_eq!(said, "line 4 names it already, as 10.0.0.7: change that line by hand");
    }

    /// Texts that are mostly like /etc/hosts.
    fn hosts() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"127.0.0.1 ".to_vec()),
            Just(b"::1\t".to_vec()),
            Just(b"quantum_redis".to_vec()),
            Just(b"localhost ".to_vec()),
            Just(b"\n".to_vec()),
            Just(b" # evenkeel: hosts_alias\n".to_vec()),
            Just(b"\r\n#".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn whatever_the_file_says_it_changes_in_one_line(text in hosts()) {
            let foreign = |text: &[u8]| {
                let ours: Vec<usize> = entries(text, "quantum_redis").filter(|entry| entry.is_ours).map(|entry| entry.line).collect();
                let lines = numbered(text).filter(|(line, _)| !ours.contains(line)).map(|(_, line)| line);
                lines.collect::<Vec<_>>().concat()
            };
            if let Ok(Some(after)) = with(&text, "quantum_redis", HOME) {
                prop_assert_eq!(with(&after, "quantum_redis", HOME), Ok(None));
                prop_assert_eq!(alias(&after, "quantum_redis"), Some(HOME));
                let (mut was, is) = (foreign(&text), foreign(&after));
                if is.len() > was.len() {
                    // The end of the last line.
                    was.push(b'\n');
                }
                prop_assert_eq!(was, is);
            }
            if let Some(after) = without(&text, "quantum_redis") {
                prop_assert_eq!(&after, &foreign(&text));
                prop_assert!(alias(&after, "quantum_redis").is_none());
            }
        }
    }
}
