//! How a remediation ends. The words are the audit's, the metrics' and the notifications'.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How one remediation ended, which also says what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Seen to be well for the whole hold time after acting.
    Succeeded,
    /// Better than the mark at which it is needed, not as good as the mark at which it is done.
    Partial,
    /// The steps are used up and the target is not well: a person is needed.
    Ineffective,
    /// The host refused every step: a person is needed.
    Failed,
    /// It acted, and what came of it is not known: an action was interrupted, or the target cannot be seen any more.
    Unknown,
    /// Only observed and told, as the rule says.
    Reported,
    /// The target was well before anything was done.
    NotNeeded,
    /// What would have been done, in plan mode.
    Planned,
    /// A rate limit or the cooldown said no, and until when.
    Limited,
    /// Something else said no: the reason says what.
    Blocked,
    /// No longer a remediation of this configuration.
    Ignored,
}

impl Outcome {
    /// All of them, for metrics that must be there before anything happens.
    pub const ALL: [Self; 11] = [
        Self::Succeeded,
        Self::Partial,
        Self::Ineffective,
        Self::Failed,
        Self::Unknown,
        Self::Reported,
        Self::NotNeeded,
        Self::Planned,
        Self::Limited,
        Self::Blocked,
        Self::Ignored,
    ];

    /// As in metrics and the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Ineffective => "ineffective",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Reported => "reported",
            Self::NotNeeded => "not_needed",
            Self::Planned => "planned",
            Self::Limited => "limited",
            Self::Blocked => "blocked",
            Self::Ignored => "ignored",
        }
    }

    /// Whether the host was acted on before it ended so.
    pub fn acted(self) -> bool {
        matches!(self, Self::Succeeded | Self::Partial) || self.escalates()
    }

    /// Whether a person must look: it was tried, and it did not help.
    pub fn escalates(self) -> bool {
        matches!(self, Self::Ineffective | Self::Failed | Self::Unknown)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no outcome"))
    }
}
