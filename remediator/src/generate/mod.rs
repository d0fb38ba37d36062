//! `generate`: what stands around the daemon, written from its own configuration, so that neither says more than the
//! other. Each file here writes one text; none looks at the host.

mod alertmanager;
mod haproxy;
mod polkit;
mod schema;

use std::{collections::BTreeSet, io::Write};

use clap::ValueEnum;

pub use self::schema::schema;
use crate::{actions::Permission, config::Config, pattern::Pattern, policy::Mode, rules::Rule};

/// The user that the packaged unit runs the remediator as, and its group.
const USER: &str = "evenkeel-remediator";
/// The exporter's.
const EXPORTER: &str = "evenkeel-exporter";

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// A polkit rule: the units and verbs that the rules need of systemd, and nothing else.
    Polkit,
    /// An HAProxy configuration that stands before Docker's socket and lets exactly the needed calls through.
    Haproxy,
    /// Alertmanager's routes, receiver and inhibition for the rules.
    Alertmanager,
    /// The JSON Schema of the configuration file, for editors.
    Schema,
}

/// Writes it.
///
/// # Errors
/// When `out` is closed, or the configuration has nothing that Alertmanager could send to.
pub fn write(what: What, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let text = match what {
        What::Polkit => polkit::rule(config),
        What::Haproxy => haproxy::configuration(config),
        What::Alertmanager => alertmanager::configuration(config)?,
        What::Schema => schema(),
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// What a rule's steps need, each once. One that only plans needs nothing for those that act.
pub(crate) fn permissions(rule: &Rule) -> BTreeSet<Permission> {
    let done = rule.steps.iter().filter(|step| rule.mode > Mode::Plan || !step.0.class().acts());
    done.flat_map(|step| step.0.permissions(rule.selector.kind)).collect()
}

/// The pattern as a regular expression over names that are made of `letters` (inside of a bracket expression) only;
/// `None` when it fits no such name. What comes out has letters, digits, `.` and `\` of the pattern, the last two
/// escaped, and nothing else of it: it can be put between any quotes.
fn regex(pattern: &Pattern, letters: &str, is_letter: impl Fn(char) -> bool) -> Option<String> {
    let mut regex = String::new();
    for character in pattern.to_string().chars() {
        match character {
            '*' => regex.push_str(&format!("[{letters}]*")),
            '?' => regex.push_str(&format!("[{letters}]")),
            other if !is_letter(other) => return None,
            '.' | '\\' => regex.extend(['\\', character]),
            other => regex.push(other),
        }
    }
    Some(regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_becomes_an_expression_for_the_same_names() {
        let expression = |pattern: &str| {
            regex(&pattern.parse().unwrap(), "a-z.", |letter| letter.is_ascii_lowercase() || letter == '.')
        };
        assert_eq!(expression("web").as_deref(), Some("web"));
        assert_eq!(expression("web.*").as_deref(), Some(r"web\.[a-z.]*"));
        assert_eq!(expression("we?").as_deref(), Some("we[a-z.]"));
    }

    #[test]
    fn what_fits_no_name_is_left_out() {
        for hostile in ["a'b", "a\"b", "a/", "a\n", "a b", "a)|(b", "a#", "a$", "ü", "[a", "{container}"] {
            let expression = regex(&hostile.parse().unwrap(), "a-z", |letter| letter.is_ascii_alphabetic());
            assert_eq!(expression, None, "{hostile:?}");
        }
    }
}
