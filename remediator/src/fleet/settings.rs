//! What a member of a fleet goes by, checked.

use std::{fmt, path::PathBuf, time::Duration};

use clap::ValueEnum;
use evenkeel_host::{config::Secret, redis::Target};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    fault::{Fault, Kind},
    ledger::Terms,
    names::{HostId, Keys},
};
use crate::policy::Class;

/// The section `fleet` of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// This host.
    pub host: HostId,
    /// The names by which alerts mean it, itself among them.
    pub names: Vec<HostId>,
    /// Which fleet.
    pub keys: Keys,
    /// Where it is kept.
    pub redis: Way,
    /// How long one question may take.
    pub timeout: Duration,
    /// What holds in it.
    pub terms: Terms,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// What is done while nobody can be asked.
    pub on_loss: OnLoss,
    /// Over so long a time the hosts spread themselves when they begin to act by themselves.
    pub spread: Duration,
    /// Alerts that wait for one host at most.
    pub stream_max: u32,
}

/// The way to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// `redis://`, `rediss://` or `unix://`.
    pub url: String,
    /// An ACL user.
    pub username: Option<String>,
    /// Read at each connecting, so that the password can be changed.
    pub password_file: Option<PathBuf>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Way {
    /// As it is connected to now. Reads the password.
    pub(super) fn target(&self) -> Result<Target, Fault> {
        let secret = |path: &PathBuf| {
            Secret::from_file(path).map_err(|error| Fault::new(Kind::Auth, &error.to_string()))
        };
        Ok(Target {
            password: self.password_file.as_ref().map(secret).transpose()?,
            ..self.without_password()
        })
    }

    /// For checking.
    pub fn without_password(&self) -> Target {
        Target {
            name: "fleet".to_owned(),
            url: self.url.clone(),
            username: self.username.clone(),
            password: None,
            ca_file: self.ca_file.clone(),
        }
    }
}

/// What a process does in a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Takes the alerts of its own host, and repairs.
    Agent,
    /// Passes alerts on to the hosts that they are for.
    Gateway,
    /// Both: what is for its own host does not go by way of Redis.
    Both,
}

impl Role {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Gateway => "gateway",
            Self::Both => "both",
        }
    }

    /// Whether it passes alerts on.
    pub fn routes(self) -> bool {
        self != Self::Agent
    }

    /// Whether it acts on its own host.
    pub fn acts(self) -> bool {
        self != Self::Gateway
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is done about a class while the fleet cannot be asked. The limits of the host hold in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Alone {
    /// It goes on at once.
    Allow,
    /// It goes on, one remediation at a time, and not all hosts in the same moment.
    Local,
    /// It waits.
    Deny,
}

impl Alone {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Local => "local",
            Self::Deny => "deny",
        }
    }
}

/// [`Alone`] of each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnLoss {
    /// Of each class, in the order of [`Class::ALL`].
    pub classes: [Alone; 5],
}

impl Default for OnLoss {
    fn default() -> Self {
        Self { classes: [Alone::Allow, Alone::Allow, Alone::Local, Alone::Local, Alone::Deny] }
    }
}

impl OnLoss {
    /// Of one class.
    pub fn of(&self, class: Class) -> Alone {
        let [s0, s1, s2, d1, d2] = self.classes;
        match class {
            Class::S0 => s0,
            Class::S1 => s1,
            Class::S2 => s2,
            Class::D1 => d1,
            Class::D2 => d2,
        }
    }
}

/// Whether a rule or a target is about a Redis, by one of its words: what repairs Redis must not wait for it.
pub fn is_about_redis(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    words.contains("redis") || words.contains("valkey")
}
