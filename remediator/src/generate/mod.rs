//! `generate`: what stands around the daemon. Most of it is written from its own configuration, so that neither says more
//! than the other; a first configuration is written from what is found on the host. Each file here writes one text, and none
//! looks at the host itself.

mod alertmanager;
mod config;
mod haproxy;
mod polkit;

use std::{collections::BTreeSet, io::Write, path::PathBuf};

use clap::Subcommand;
use clap_complete::Shell;
use evenkeel_host::{cli, survey};

pub use self::config::{Places, configuration};
use crate::{
    actions::Permission, cli::command, config::Config, observe::Host, pattern::Pattern, policy::Mode,
    rules::Rule,
};

/// The user that the packaged unit runs the remediator as, and its group.
const USER: &str = "evenkeel-remediator";
/// The exporter's.
const EXPORTER: &str = "evenkeel-exporter";

/// What can be written.
#[derive(Debug, Clone, Subcommand)]
pub enum What {
    /// Without a configuration.
    #[command(flatten)]
    Alone(Alone),
    /// From the configuration.
    #[command(flatten)]
    Around(Around),
}

/// What is written without a configuration.
#[derive(Debug, Clone, Subcommand)]
pub enum Alone {
    /// A commented configuration for this host in plan mode, written from the units, containers and filesystems found on it.
    Config(Places),
    /// The JSON Schema of the configuration file, for editors.
    Schema,
    /// The manual page of this program, for `man -l -`.
    Man {
        /// Write it and those of the commands into this folder instead, each into a file of its own.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// What a shell needs to complete flags and commands.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// What is written from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Around {
    /// A polkit rule: the units and verbs that the rules need of systemd, and nothing else.
    Polkit,
    /// An HAProxy configuration that stands before Docker's socket and lets exactly the needed calls through.
    Haproxy,
    /// Alertmanager's routes, receiver and inhibition for the rules.
    Alertmanager,
}

/// Writes what takes no configuration.
///
/// # Errors
/// When `out` is closed, or the folder of manual pages cannot be written.
pub async fn write_alone(what: &Alone, out: &mut impl Write) -> anyhow::Result<()> {
    let text = match what {
        Alone::Config(places) => {
            let host = Host::local();
            configuration(&survey::look(&host.systemd, &host.docker).await, places)
        }
        Alone::Schema => crate::config::schema(),
        Alone::Man { dir: Some(dir) } => return cli::write_manuals(command(), dir),
        Alone::Man { dir: None } => cli::manual(command()),
        Alone::Completions { shell } => cli::completions(command(), *shell),
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// Writes what is written from the configuration.
///
/// # Errors
/// When `out` is closed, or the configuration has nothing that Alertmanager could send to.
pub fn write(what: Around, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let text = match what {
        Around::Polkit => polkit::rule(config),
        Around::Haproxy => haproxy::configuration(config),
        Around::Alertmanager => alertmanager::configuration(config)?,
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
