//! Unit names and globs, as the configuration gives them. Not here: what is done with the units they match.

use std::{fmt, str::FromStr};

use evenkeel_host::systemd::is_unit_name;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

/// systemd's own limit for names.
const MAX_PATTERN_BYTES: usize = 255;

/// What makes a name a glob.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// A unit name in which `*`, `?` and `[…]` stand for what they stand for in a shell.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(with = "String", extend("minLength" = 1, "maxLength" = MAX_PATTERN_BYTES))]
pub struct UnitPattern {
    text: String,
    regex: Regex,
}

impl PartialEq for UnitPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for UnitPattern {}

impl UnitPattern {
    /// Whether a unit is meant.
    pub fn matches(&self, unit: &str) -> bool {
        self.regex.is_match(unit)
    }

    /// The name itself, when the pattern means just one unit.
    pub fn literal(&self) -> Option<&str> {
        (!self.text.contains(WILDCARDS)).then_some(self.text.as_str())
    }
}

impl FromStr for UnitPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let refuse = || PatternError(text.chars().take(64).collect());
        let has_wildcard = text.contains(WILDCARDS);
        let legal = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@*?[]!^".contains(c);
        let legal = text.len() <= MAX_PATTERN_BYTES && text.chars().all(legal);
        if !legal || text.is_empty() || (!has_wildcard && !is_unit_name(text)) {
            return Err(refuse());
        }
        let regex = Regex::new(&glob_to_regex(text).ok_or_else(refuse)?).map_err(|_| refuse())?;
        Ok(Self { text: text.to_owned(), regex })
    }
}

impl fmt::Display for UnitPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for UnitPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A text that is no pattern of unit names.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no unit name or glob: write name.service, name-*.service or name-*")]
pub struct PatternError(String);

/// `None` for a bracket that does not close.
fn glob_to_regex(glob: &str) -> Option<String> {
    let mut regex = "^(?s:".to_owned();
    let mut rest = glob.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => {
                let (set, tail) = rest.as_str().split_once(']')?;
                let (negation, set) = match set.strip_prefix(['!', '^']) {
                    Some(set) => ("^", set),
                    None => ("", set),
                };
                // A minus keeps its meaning: a range.
                let escaped = set.split('-').map(regex::escape).collect::<Vec<_>>().join("-");
                regex.extend(["[", negation, &escaped, "]"]);
                rest = tail.chars();
            }
            other => regex.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push_str(")$");
    Some(regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, unit, matches) in [
            ("ssh.service", "ssh.service", true),
            ("ssh.service", "sshx.service", false),
            ("ssh.service", "ssh_service", false),
            ("quantum-*.service", "quantum-trader.service", true),
            ("quantum-*.service", "quantum-.service", true),
            ("quantum-*.service", "quantum-trader.target", false),
            ("quantum-*.service", "xquantum-a.service", false),
            ("quantum-*", "quantum-trader.target", true),
            ("getty@tty?.service", "getty@tty1.service", true),
            ("getty@tty?.service", "getty@tty10.service", false),
            ("a[0-9].service", "a5.service", true),
            ("a[!0-9].service", "a5.service", false),
            ("a[bc].service", "ac.service", true),
            ("dev-disk\\x2d*.swap", "dev-disk\\x2da.swap", true),
        ] {
            let read: UnitPattern = pattern.parse().expect(pattern);
            assert_eq!(read.matches(unit), matches, "{pattern} {unit}");
            assert_eq!(read.to_string(), pattern);
        }
        let literal = "ssh.service".parse::<UnitPattern>().expect("a name");
        assert_eq!(literal.literal(), Some("ssh.service"));
        assert_eq!("a*.service".parse::<UnitPattern>().expect("a glob").literal(), None);
    }

    #[test]
    fn what_can_match_no_unit_is_refused() {
        for text in
            ["", "ssh", ".service", "a.", "a b.*", "a/b.*", "a[b.service", "(a)*", "é.service", "a.txt"]
        {
            let error = text.parse::<UnitPattern>().expect_err(text).to_string();
            assert_eq!(
                error,
                format!("`{text}` is no unit name or glob: write name.service, name-*.service or name-*")
            );
        }
        assert!("a".repeat(300).parse::<UnitPattern>().is_err());
    }
}
