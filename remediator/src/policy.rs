//! What may be done at all: the classes of actions, the modes, the deletion policy, the rate limits' notation, and
//! the units that are never touched.

use std::{fmt, str::FromStr, time::Duration};

use evenkeel_host::config::PromDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// What an action costs when it is wrong. It belongs to the action and its parameters, not to what a user says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Class {
    /// Observes only.
    S0,
    /// No impact on a service, nothing deleted.
    S1,
    /// Interrupts a service or changes configuration.
    S2,
    /// Deletes what can be built again.
    D1,
    /// Deletes data or evidence.
    D2,
}

impl Class {
    /// From the harmless to the worst.
    pub const ALL: [Self; 5] = [Self::S0, Self::S1, Self::S2, Self::D1, Self::D2];

    /// As in metrics and texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S0 => "S0",
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::D1 => "D1",
            Self::D2 => "D2",
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::S0 => "steps that only observe",
            Self::S1 => "steps without impact",
            Self::S2 => "steps that interrupt a service",
            Self::D1 => "steps that delete cache",
            Self::D2 => "steps that delete data",
        }
    }

    /// Whether an action of this class changes the host, and so is reserved, limited and verified.
    pub fn acts(self) -> bool {
        self > Self::S0
    }
}

/// How far a rule may go by itself. The rule's mode is never above the policy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Says exactly what it would do, and does nothing.
    #[default]
    Plan,
    /// Says what it would do, and does it when a person approves of it in time.
    Approve,
    /// Acts within the limits.
    Auto,
}

impl Mode {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Approve => "approve",
            Self::Auto => "auto",
        }
    }
}

/// What may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Deletion {
    /// Nothing.
    #[default]
    None,
    /// Class D1: caches that can be built again.
    Cache,
    /// Classes D1 and D2.
    Data,
}

impl Deletion {
    /// Whether this policy lets `class` act.
    pub fn allows(self, class: Class) -> bool {
        match class {
            Class::S0 | Class::S1 | Class::S2 => true,
            Class::D1 => self >= Self::Cache,
            Class::D2 => self >= Self::Data,
        }
    }

    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cache => "cache",
            Self::Data => "data",
        }
    }
}

/// `3/6h`: at most 3 starts in any (t − 6 h, t].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(
    with = "String",
    extend(
        "pattern" = r"^\s*[1-9][0-9]*\s*/\s*([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?\s*$",
        "examples" = ["1/15m", "3/6h", "5/24h"]
    )
)]
pub struct Limit {
    /// Most starts.
    pub count: u32,
    /// In this window.
    pub window: Duration,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no limit: write most starts per window, such as 3/6h");
        let (count, window) = text.split_once('/').ok_or_else(bad)?;
        let count: u32 = count.trim().parse().map_err(|_| bad())?;
        if count == 0 {
            return Err(format!(
                "`{text}` would never admit a start: write 1 or more, or leave the rule in mode plan"
            ));
        }
        let window = window.trim().parse::<PromDuration>().map_err(|_| bad())?.get();
        if window.is_zero() {
            return Err(format!("`{text}` has an empty window: write a window above 0, such as 3/6h"));
        }
        Ok(Self { count, window })
    }
}

impl TryFrom<String> for Limit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, PromDuration::new(self.window))
    }
}

/// Whether each window is longer, and allows more, than the one before; otherwise one of the two never binds.
pub fn increasing(limits: &[Limit]) -> bool {
    limits.windows(2).all(|pair| pair[0].window < pair[1].window && pair[0].count <= pair[1].count)
}

/// Units that are never acted on, whatever the configuration says: losing one of them loses the host, or the
/// remediator itself. Of evenkeel's own that is all but the one that `drill` breaks.
const NEVER: [&str; 23] = [
    "ssh.service",
    "sshd.service",
    "ssh.socket",
    "ssh@*.service",
    "sshd@*.service",
    "dbus.service",
    "dbus.socket",
    "dbus-broker.service",
    "systemd-*",
    "user@*.service",
    "init.scope",
    "NetworkManager.service",
    "networking.service",
    "polkit.service",
    "docker.service",
    "docker.socket",
    "containerd.service",
    "evenkeel-exporter*.service",
    "evenkeel-remediator*.service",
    "evenkeel-docker-proxy*.service",
    "evenkeel-facts*.service",
    "evenkeel-*@*.service",
    "evenkeel-*.timer",
];

/// The built-in list and what the user adds to it; it can only grow.
#[derive(Debug, Clone)]
pub struct DenyList(Vec<Pattern>);

impl DenyList {
    /// The built-in units and `more`.
    pub fn with(more: Vec<Pattern>) -> Self {
        let built_in = NEVER.iter().filter_map(|text| Pattern::from_str(text).ok());
        Self(built_in.chain(more).collect())
    }

    /// What is on it.
    pub fn patterns(&self) -> &[Pattern] {
        &self.0
    }

    /// Whether `unit` is never to be touched.
    pub fn denies(&self, unit: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deletion_policy_rules_every_class() {
        use Class::{D1, D2, S0, S1, S2};
        for (policy, allowed) in [
            (Deletion::None, vec![S0, S1, S2]),
            (Deletion::Cache, vec![S0, S1, S2, D1]),
            (Deletion::Data, vec![S0, S1, S2, D1, D2]),
        ] {
            let seen: Vec<Class> =
                [S0, S1, S2, D1, D2].into_iter().filter(|class| policy.allows(*class)).collect();
            assert_eq!(seen, allowed, "{policy:?}");
        }
    }

    #[test]
    fn limits_are_read_and_written() {
        let limit: Limit = "3/6h".parse().unwrap();
        assert_eq!(limit, Limit { count: 3, window: Duration::from_secs(6 * 3600) });
        assert_eq!(limit.to_string(), "3/6h");
        assert_eq!(
            "3 per hour".parse::<Limit>().unwrap_err(),
            "`3 per hour` is no limit: write most starts per window, such as 3/6h"
        );
        assert!("1/0s".parse::<Limit>().unwrap_err().contains("empty window"));
        assert!("-1/5m".parse::<Limit>().is_err());
        assert!("0/5m".parse::<Limit>().unwrap_err().contains("never admit"));
    }

    #[test]
    fn windows_must_grow() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Limit>>();
        assert!(increasing(&read(&["1/15m", "3/6h", "5/24h"])));
        assert!(!increasing(&read(&["3/6h", "1/15m"])));
        assert!(!increasing(&read(&["3/6h", "5/6h"])));
        assert!(!increasing(&read(&["3/15m", "1/6h"])));
    }

    #[test]
    fn what_holds_the_host_is_never_touched() {
        let deny = DenyList::with(vec!["vpn.service".parse().unwrap()]);
        for unit in [
            "ssh.service",
            "sshd@1.service",
            "systemd-networkd.service",
            "docker.service",
            "evenkeel-remediator.service",
            "evenkeel-exporter.service",
            "evenkeel-docker-proxy.service",
            "evenkeel-maintenance@weekly.service",
            "evenkeel-weekly@images.timer",
            "vpn.service",
            "user@1000.service",
        ] {
            assert!(deny.denies(unit), "{unit}");
        }
        for unit in ["nginx.service", "sshguard.service", "quantum-dbus.service", "evenkeel-drill.service"] {
            assert!(!deny.denies(unit), "{unit}");
        }
    }
}
