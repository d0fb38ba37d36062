//! What a remediation is about. A `Target` exists only if a rule's allow-list admitted it: nothing that a webhook
//! says reaches an API before that.

use std::{borrow::Borrow, collections::BTreeMap, fmt, net::IpAddr};

use evenkeel_host::{resolve::HostName, systemd::is_unit_name};
use serde::{Deserialize, Serialize};

use crate::{pattern::Pattern, text::is_unseen};

/// The kinds of things evenkeel repairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A mounted filesystem, by its mount point.
    Filesystem,
    /// A systemd unit, by its name.
    Unit,
    /// A Docker container, by its name.
    Container,
    /// The name of a host, as services look it up.
    Hostname,
    /// The host as a whole, for rules about no single thing.
    Host,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Filesystem, Self::Unit, Self::Container, Self::Hostname, Self::Host];
    /// The only name of the host as a whole.
    pub const HOST: &str = "host";

    /// As in the configuration and the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem",
            Self::Unit => "unit",
            Self::Container => "container",
            Self::Hostname => "hostname",
            Self::Host => "host",
        }
    }

    /// Whether `name` can be the name of such a thing at all. Whatever fails here never reaches an API.
    fn is_name(self, name: &str) -> bool {
        match self {
            // The kernel's own form of a mount point: absolute, no `.` or `..`, no doubled or trailing slash.
            Self::Filesystem => {
                name.len() <= 4096
                    && !name.contains(char::is_control)
                    && (name == "/"
                        || name
                            .strip_prefix('/')
                            .is_some_and(|path| path.split('/').all(|part| !matches!(part, "" | "." | ".."))))
            }
            Self::Unit => is_unit_name(name),
            // moby's own rule for container names (daemon/names: [a-zA-Z0-9][a-zA-Z0-9_.-]+).
            Self::Container => {
                name.len() <= 255
                    && name.starts_with(|first: char| first.is_ascii_alphanumeric())
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
            }
            // An address is its own answer, and the names that every host has for itself are nobody's to change.
            Self::Hostname => {
                name.parse::<HostName>().is_ok()
                    && name.parse::<IpAddr>().is_err()
                    && !name.ends_with('.')
                    && !is_own(name)
            }
            Self::Host => name == Self::HOST,
        }
    }
}

/// Whether this is a name that a host has for itself (RFC 6761).
fn is_own(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"].contains(&&*name)
        || name.ends_with(".localhost")
}

/// One admitted thing on this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    kind: Kind,
    name: String,
}

impl Target {
    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name, as the allow-list admitted it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Which label names the target, and which names are admitted.
#[derive(Debug, Clone)]
pub struct Selector {
    /// What the rule is about.
    pub kind: Kind,
    /// The alert's label that names it.
    pub label: String,
    /// What may be named.
    pub allow: Vec<Pattern>,
}

/// Why an alert names no target of a rule; the words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTarget {
    /// The alert has no such label, or it is empty.
    LabelMissing,
    /// The label's value cannot be such a name.
    NotAName,
    /// It is a name, but not on the allow-list.
    NotAllowed,
}

impl NoTarget {
    /// As in metrics and the audit.
    pub fn reason(self) -> &'static str {
        match self {
            Self::LabelMissing => "target_label_missing",
            Self::NotAName => "target_not_a_name",
            Self::NotAllowed => "target_not_allowed",
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::LabelMissing => "the alert does not name it",
            Self::NotAName => "nothing can have that name",
            Self::NotAllowed => "it is not in `target.allow`",
        }
    }
}

impl Selector {
    /// The host as a whole; no label names it.
    pub fn host() -> Self {
        Self { kind: Kind::Host, label: String::new(), allow: Kind::HOST.parse().into_iter().collect() }
    }

    /// The one target that it admits, where that is only one.
    pub fn only(&self) -> Option<Target> {
        match self.allow.as_slice() {
            [one] if one.is_literal() => self.admit(&one.to_string()).ok(),
            _ => None,
        }
    }

    /// The target that these labels name.
    ///
    /// # Errors
    /// When they name none, or one that is not on the allow-list.
    pub fn select<S: Borrow<str> + Ord>(&self, labels: &BTreeMap<S, S>) -> Result<Target, NoTarget> {
        match labels.get(self.label.as_str()).map(S::borrow) {
            None | Some("") => Err(NoTarget::LabelMissing),
            Some(name) => self.admit(name),
        }
    }

    /// The target of this name.
    ///
    /// # Errors
    /// When it cannot be one, or is not on the allow-list.
    pub fn admit(&self, name: &str) -> Result<Target, NoTarget> {
        if !self.kind.is_name(name) {
            Err(NoTarget::NotAName)
        } else if !self.allow.iter().any(|pattern| {
            // What is not seen may stand in for something else: it takes somebody who wrote it down.
            pattern.matches(name) && (pattern.is_literal() || !name.chars().any(is_unseen))
        }) {
            Err(NoTarget::NotAllowed)
        } else {
            Ok(Target { kind: self.kind, name: name.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(kind: Kind, allow: &str) -> Selector {
        Selector { kind, label: "name".to_owned(), allow: vec![allow.parse().unwrap()] }
    }

    #[test]
    fn hostile_names_are_no_targets() {
        let long = format!("{}.service", "a".repeat(10_000));
        for name in [
            "../x",
            "-rf",
            "a.service;reboot",
            "a.service\nb.service",
            "a b.service",
            "",
            &long,
            "а.service\0",
        ] {
            assert_eq!(selector(Kind::Unit, "*.service").admit(name), Err(NoTarget::NotAName), "{name:?}");
        }
        for name in ["../x", "-rf", "a/b", "a b", "a;b", "a\nb", "", "ü", &"a".repeat(10_000)] {
            assert_eq!(selector(Kind::Container, "*").admit(name), Err(NoTarget::NotAName), "{name:?}");
        }
        for name in [
            "",
            "-rf",
            "a b",
            "a\nb",
            "a;b",
            "a#b",
            "ä",
            "a..b",
            "a/b",
            "127.0.0.1",
            "::1",
            "redis.",
            "LocalHost",
            "a.localhost",
            "ip6-localhost",
            &"a".repeat(254),
        ] {
            assert_eq!(selector(Kind::Hostname, "*").admit(name), Err(NoTarget::NotAName), "{name:?}");
        }
        assert!(selector(Kind::Hostname, "quantum_*").admit("quantum_redis").is_ok());
        for name in ["var", "/var/../etc", "/var//log", "/var/", "/var/.", "/a\nb", "", "//"] {
            assert_eq!(selector(Kind::Filesystem, "/*").admit(name), Err(NoTarget::NotAName), "{name:?}");
        }
    }

    #[test]
    fn only_what_is_allowed_is_a_target() {
        let rule = selector(Kind::Unit, "quantum-*.service");
        let labels = |value: &str| BTreeMap::from([("name".to_owned(), value.to_owned())]);
        assert_eq!(rule.select(&labels("quantum-a.service")).unwrap().to_string(), "unit quantum-a.service");
        assert_eq!(rule.select(&labels("nginx.service")), Err(NoTarget::NotAllowed));
        assert_eq!(rule.select(&labels("")), Err(NoTarget::LabelMissing));
        assert_eq!(rule.select(&BTreeMap::<String, String>::new()), Err(NoTarget::LabelMissing));
        assert!(selector(Kind::Filesystem, "/").admit("/").is_ok());
        assert!(selector(Kind::Filesystem, "/srv/*").admit("/srv/a b").is_ok());
        for hidden in ["/srv/a\u{200b}", "/srv/\u{202e}a", "/srv/\u{3164}"] {
            assert_eq!(selector(Kind::Filesystem, "/srv/*").admit(hidden), Err(NoTarget::NotAllowed));
            assert!(selector(Kind::Filesystem, hidden).admit(hidden).is_ok());
        }
    }
}
