//! Names with `*` and `?`, as in systemd's and Docker's own commands; matched whole, never as a part.

use std::{fmt, str::FromStr};

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

/// No path is longer, and no name: a longer text is neither a pattern nor fits one. In bytes.
const LONGEST: usize = 4096;
/// What a match costs grows with their number, times the length of the name.
const MOST_STARS: usize = 16;

/// One pattern of an allow-list or the deny-list.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("minLength" = 1))]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Whether the whole of `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        name.len() <= LONGEST && self.regex.is_match(name)
    }

    /// Whether it has no wildcard, and so names one thing.
    pub fn is_literal(&self) -> bool {
        !self.text.contains(['*', '?'])
    }

    /// Whether everything fits, which is no selection at all.
    pub fn matches_all(&self) -> bool {
        self.text.chars().all(|character| character == '*')
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(
                "an empty name selects nothing: write a name, or a pattern such as app-*.service".to_owned()
            );
        }
        if text.len() > LONGEST {
            return Err(format!("a name has {LONGEST} bytes at most, and this is longer: shorten it"));
        }
        if text.matches('*').count() > MOST_STARS {
            return Err(format!("a pattern has {MOST_STARS} `*` at most, and this has more: write several"));
        }
        let mut expression = String::from("^(?s:");
        let mut last = None;
        for character in text.chars() {
            match character {
                // Several say no more than one.
                '*' if last == Some('*') => {}
                '*' => expression.push_str(".*"),
                '?' => expression.push('.'),
                other => expression.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
            }
            last = Some(character);
        }
        expression.push_str(")$");
        let regex = Regex::new(&expression).map_err(|error| format!("`{text}` is no pattern: {error}"))?;
        Ok(Self { text: text.to_owned(), regex })
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_whole_name_and_takes_nothing_else_specially() {
        let pattern: Pattern = "quantum-*.service".parse().unwrap();
        assert!(pattern.matches("quantum-a.service"));
        assert!(!pattern.matches("x-quantum-a.service"));
        assert!(!pattern.matches("quantum-a.service;reboot"));
        assert!(!pattern.matches("quantum-aXservice"));
        assert!(!pattern.matches("quantum-a.service\n"));
        assert!("a+b(c".parse::<Pattern>().unwrap().matches("a+b(c"));
        assert!("**".parse::<Pattern>().unwrap().matches_all());
        assert!("".parse::<Pattern>().is_err());
    }

    #[test]
    fn what_is_longer_than_any_name_is_no_pattern_and_fits_none() {
        let longest = "a".repeat(LONGEST);
        assert!(longest.parse::<Pattern>().unwrap().matches(&longest));
        assert!(format!("{longest}a").parse::<Pattern>().is_err());
        assert!(!"*".parse::<Pattern>().unwrap().matches(&format!("{longest}a")));
    }

    #[test]
    fn wildcards_have_a_bound() {
        assert!("b*".repeat(MOST_STARS).parse::<Pattern>().is_ok());
        assert!("b*".repeat(MOST_STARS + 1).parse::<Pattern>().is_err());
    }
}
