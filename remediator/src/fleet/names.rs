//! What things of the fleet are called: hosts, and the keys in Redis. A name that comes from outside becomes part of a key
//! only when it is plain.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::policy::Class;

/// The longest name of a host: as long as a full name in the DNS may be.
const NAME_MAX: usize = 253;
/// And of a namespace.
const NAMESPACE_MAX: usize = 64;

/// A host by the name under which alerts mean it. Letters, digits and `. _ : -`, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct HostId(String);

impl HostId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        let is_name = text.len() <= NAME_MAX
            && text.bytes().all(plain)
            && text.bytes().any(|byte| byte.is_ascii_alphanumeric());
        if is_name {
            Ok(Self(text.to_owned()))
        } else {
            Err("not the name of a host: letters, digits and . _ : - only, 253 of them at most")
        }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What starts of the whole fleet are counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One class of actions on all hosts.
    Class(Class),
    /// Everything on all hosts.
    All,
}

impl Scope {
    /// As in metrics and refusals.
    pub fn label(self) -> &'static str {
        match self {
            Self::Class(Class::S0) => "fleet_S0",
            Self::Class(Class::S1) => "fleet_S1",
            Self::Class(Class::S2) => "fleet_S2",
            Self::Class(Class::D1) => "fleet_D1",
            Self::Class(Class::D2) => "fleet_D2",
            Self::All => "fleet",
        }
    }

    /// The scope that [`Scope::label`] calls so.
    pub fn labelled(label: &str) -> Option<Self> {
        let mut all = Class::ALL.into_iter().map(Self::Class).chain([Self::All]);
        all.find(|scope| scope.label() == label)
    }

    /// For people: after `starts`.
    pub fn words(self) -> String {
        match self {
            Self::Class(class) => format!("of {} ({}) in the fleet", class.words(), class.as_str()),
            Self::All => "in the fleet".to_owned(),
        }
    }
}

/// The keys of one fleet in Redis, all under one hash tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    namespace: String,
    shared: Vec<String>,
}

/// In the order in which the scripts know them (lua/prelude.lua).
const SHARED: [&str; 10] =
    ["epoch", "fence", "beat", "unwell", "acting", "holders", "names", "instances", "pause", "unclaimed"];

impl Keys {
    /// The keys of the fleet `namespace`: a short plain word.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(namespace: &str) -> Result<Self, &'static str> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if namespace.is_empty() || namespace.len() > NAMESPACE_MAX || !namespace.bytes().all(plain) {
            return Err("not a name for a fleet: letters, digits, _ and - only, 64 of them at most");
        }
        let shared = SHARED.map(|name| format!("{{{namespace}}}:fleet:{name}")).to_vec();
        Ok(Self { namespace: namespace.to_owned(), shared })
    }

    /// The fleet's name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Those that every script gets.
    pub(super) fn shared(&self) -> &[String] {
        &self.shared
    }

    /// Where it is kept since when starts are remembered.
    pub(super) fn epoch(&self) -> &str {
        &self.shared[0]
    }

    /// When each host was heard of last.
    pub(super) fn beat(&self) -> &str {
        &self.shared[2]
    }

    /// The log of starts in a scope.
    pub(super) fn log(&self, scope: Scope) -> String {
        format!("{{{}}}:fleet:log:{}", self.namespace, scope.label())
    }

    /// A host's alerts.
    pub fn stream(&self, host: &HostId) -> String {
        format!("{{{}}}:alerts:{host}", self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_keys() {
        for good in ["vps1", "web-1.example.com", "10.0.0.1", "::1", "a_b", "X"] {
            assert_eq!(good.parse::<HostId>().unwrap().as_str(), good);
        }
        let long = "x".repeat(254);
        for bad in ["", ".", "..", "a b", "a*", "a?", "[a]", "{x}", "a\n", "a/../b", "a\0", "ä", "a;b", &long]
        {
            assert!(bad.parse::<HostId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_key_is_under_one_hash_tag() {
        let keys = Keys::new("evenkeel").unwrap();
        let host: HostId = "vps1".parse().unwrap();
        assert_eq!(keys.stream(&host), "{evenkeel}:alerts:vps1");
        assert_eq!(keys.log(Scope::Class(Class::S2)), "{evenkeel}:fleet:log:fleet_S2");
        assert_eq!(keys.epoch(), "{evenkeel}:fleet:epoch");
        assert!(keys.shared().iter().all(|key| key.starts_with("{evenkeel}:fleet:")));
        for bad in ["", "a}b", "{a}", "a:b", "a b", &"x".repeat(65)] {
            assert!(Keys::new(bad).is_err(), "{bad:?}");
        }
    }
}
