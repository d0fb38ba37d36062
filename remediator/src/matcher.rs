//! Alertmanager's matchers, in its own syntax: `alertname="X"`, `name=~"quantum-.*"`, `severity!="info"`.
//! Regular expressions are anchored at both ends; a label that is not there is the empty string
//! (prometheus.io/docs/alerting/latest/configuration/#matcher).

use std::{borrow::Borrow, collections::BTreeMap, fmt};

use regex::Regex;

/// One condition on one label.
#[derive(Debug, Clone)]
pub struct Matcher {
    label: String,
    test: Test,
    text: String,
}

#[derive(Debug, Clone)]
enum Test {
    Equal(String),
    NotEqual(String),
    Regex(Regex),
    NotRegex(Regex),
}

/// Why a text is no matcher.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MatcherError {
    /// No operator.
    #[error("`{0}` is no matcher: write it as in Alertmanager, such as 'alertname=\"HostDiskHigh\"'")]
    Syntax(String),
    /// The label name is empty.
    #[error("`{0}` names no label: write 'label=\"value\"'")]
    NoLabel(String),
    /// The quotes do not fit.
    #[error("`{0}` has an unfinished or misplaced quote: write 'label=\"value\"'")]
    Quote(String),
    /// The regular expression does not compile.
    #[error("`{text}` has a bad regular expression: {why}")]
    Regex {
        /// The whole matcher.
        text: String,
        /// What the compiler said, on one line.
        why: String,
    },
}

impl Matcher {
    /// Reads one matcher.
    ///
    /// # Errors
    /// When the text is not in Alertmanager's syntax or its regular expression does not compile.
    pub fn parse(text: &str) -> Result<Self, MatcherError> {
        let at = text.find(['=', '!']).ok_or_else(|| MatcherError::Syntax(text.to_owned()))?;
        let (label, rest) = text.split_at(at);
        let label = label.trim();
        if label.is_empty() {
            return Err(MatcherError::NoLabel(text.to_owned()));
        }
        let (operator, value) = ["=~", "!~", "!=", "="]
            .into_iter()
            .find_map(|operator| rest.strip_prefix(operator).map(|value| (operator, value)))
            .ok_or_else(|| MatcherError::Syntax(text.to_owned()))?;
        let value = unquote(value.trim()).ok_or_else(|| MatcherError::Quote(text.to_owned()))?;
        let anchored = || {
            Regex::new(&format!("^(?:{value})$")).map_err(|error| MatcherError::Regex {
                text: text.to_owned(),
                why: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
            })
        };
        let test = match operator {
            "=~" => Test::Regex(anchored()?),
            "!~" => Test::NotRegex(anchored()?),
            "!=" => Test::NotEqual(value),
            _ => Test::Equal(value),
        };
        Ok(Self { label: unquote(label).unwrap_or_else(|| label.to_owned()), test, text: text.to_owned() })
    }

    /// Whether these labels meet the condition.
    pub fn matches<S: Borrow<str> + Ord>(&self, labels: &BTreeMap<S, S>) -> bool {
        self.accepts(labels.get(self.label.as_str()).map_or("", S::borrow))
    }

    /// Whether the condition holds for an alert without the label too, and so selects nothing by itself.
    pub fn accepts_missing(&self) -> bool {
        self.accepts("")
    }

    /// The label that it is about.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// The one value that it accepts, where that is only one.
    pub(crate) fn only(&self) -> Option<&str> {
        match &self.test {
            Test::Equal(value) => Some(value),
            _ => None,
        }
    }

    /// Whether the label may have this value.
    pub(crate) fn accepts(&self, value: &str) -> bool {
        match &self.test {
            Test::Equal(expected) => value == expected,
            Test::NotEqual(unwanted) => value != unwanted,
            Test::Regex(regex) => regex.is_match(value),
            Test::NotRegex(regex) => !regex.is_match(value),
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text without its double quotes and with `\"`, `\\` and `\n` undone; `None` when the quotes do not fit.
fn unquote(text: &str) -> Option<String> {
    let Some(inner) = text.strip_prefix('"') else {
        return (!text.contains('"')).then(|| text.to_owned());
    };
    let mut value = String::new();
    let mut characters = inner.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(value),
            '\\' => match characters.next()? {
                'n' => value.push('\n'),
                escaped @ ('"' | '\\') => value.push(escaped),
                // A regular expression's own escape, such as `\d`.
                other => value.extend(['\\', other]),
            },
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn matches_like_alertmanager() {
        let alert = labels(&[("alertname", "HostDiskHigh"), ("name", "quantum-a.service"), ("odd", "a\"b")]);
        for (text, expected) in [
            ("alertname=\"HostDiskHigh\"", true),
            ("alertname=HostDiskHigh", true),
            (" alertname = \"HostDiskHigh\" ", true),
            ("alertname=\"HostDisk\"", false),
            ("alertname!=\"Other\"", true),
            ("name=~\"quantum-.*\"", true),
            // Anchored at both ends: no prefix or infix matches.
            ("name=~\"quantum\"", false),
            ("name=~\"uantum-.*\"", false),
            ("name=~\"a|quantum-a\\.service|b\"", true),
            ("name!~\"other.*\"", true),
            ("missing=\"\"", true),
            ("missing=~\".+\"", false),
            ("odd=\"a\\\"b\"", true),
        ] {
            assert_eq!(Matcher::parse(text).unwrap().matches(&alert), expected, "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, expected) in [
            (
                "alertname",
                "`alertname` is no matcher: write it as in Alertmanager, such as 'alertname=\"HostDiskHigh\"'",
            ),
            ("=\"x\"", "`=\"x\"` names no label: write 'label=\"value\"'"),
            ("a=\"x", "`a=\"x` has an unfinished or misplaced quote: write 'label=\"value\"'"),
            ("a=\"x\"y", "`a=\"x\"y` has an unfinished or misplaced quote: write 'label=\"value\"'"),
            ("a=~\"(\"", "`a=~\"(\"` has a bad regular expression: error: unclosed group"),
        ] {
            assert_eq!(Matcher::parse(text).unwrap_err().to_string(), expected);
        }
    }
}
