//! Tells people: one JSON message per remediation that ended in a way a receiver asked for, that waits for approval, or
//! that met a storm. What is said and to whom is here; that it arrives, in [`courier`].

mod courier;
mod text;

use std::{fmt, sync::Arc};

use evenkeel_host::config::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use tokio::sync::watch;

pub use self::courier::PostOffice;
use crate::{
    actions::RESTART_CANNOT_CURE,
    clock::{Clock, rfc3339},
    journal::{Error, Journal, Letter},
    metrics::Metrics,
    outcome::Outcome,
    target::Kind,
    text::{digest, shell_word},
};

/// When a receiver wants to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String", extend("enum" = occasions()))]
pub enum On {
    /// Of everything.
    All,
    /// When a person is needed.
    Escalated,
    /// When something waits for approval.
    Approval,
    /// Of one outcome.
    Outcome(Outcome),
}

impl<'de> Deserialize<'de> for On {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        match word.as_str() {
            "all" => Ok(Self::All),
            "escalated" => Ok(Self::Escalated),
            "approval" => Ok(Self::Approval),
            other => other.parse().map(Self::Outcome).map_err(|_| {
                let outcomes = Outcome::ALL.map(Outcome::as_str).join(", ");
                serde::de::Error::custom(format!(
                    "`{other}` is no occasion: write all, escalated, approval, or one of {outcomes}"
                ))
            }),
        }
    }
}

/// Every word that [`On`] is written as.
fn occasions() -> Vec<String> {
    let words = [On::All, On::Escalated, On::Approval].into_iter();
    words.chain(Outcome::ALL.map(On::Outcome)).map(|on| on.to_string()).collect()
}

impl fmt::Display for On {
    /// As in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Escalated => "escalated",
            Self::Approval => "approval",
            Self::Outcome(outcome) => outcome.as_str(),
        })
    }
}

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// A remediation has ended.
    Ended(Outcome),
    /// One waits for a person to approve of it.
    Approval,
    /// Too many targets are in need at once, and nothing is done about any.
    Storm,
    /// Prometheus does not scrape this host's exporter.
    Blind,
    /// The state lies in its fallback.
    StateDegraded,
    /// The state was damaged, and what was started before is not known.
    StateLost,
}

impl Occasion {
    /// As in the message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended(outcome) => outcome.as_str(),
            Self::Approval => "awaiting_approval",
            Self::Storm => "storm",
            Self::Blind => "exporter_down",
            Self::StateDegraded => "state_degraded",
            Self::StateLost => "state_lost",
        }
    }

    /// Whether a person is needed.
    fn escalates(self) -> bool {
        match self {
            Self::Ended(outcome) => outcome.escalates(),
            Self::Approval => false,
            Self::Storm | Self::Blind | Self::StateDegraded | Self::StateLost => true,
        }
    }
}

impl Serialize for Occasion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a receiver reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The whole message, for programs and people.
    Webhook,
    /// `text` and nothing else, as an incoming webhook of Slack's and of those like it; some of them refuse keys that
    /// they do not know.
    Slack,
}

impl Form {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
        }
    }
}

/// Where to send to, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// What it reads.
    pub form: Form,
    /// The URL; it may hold a secret.
    pub url: Secret,
    /// Sent as `Authorization: Bearer`.
    pub bearer_token: Option<Secret>,
    /// What it wants to hear of.
    pub on: Vec<On>,
}

impl Receiver {
    fn wants(&self, notice: &Notice) -> bool {
        self.on.iter().any(|on| match on {
            On::All => true,
            On::Escalated => notice.occasion.escalates() || notice.is_for_a_person(),
            On::Approval => notice.occasion == Occasion::Approval,
            On::Outcome(wanted) => notice.occasion == Occasion::Ended(*wanted),
        })
    }

    /// Tells this receiver's waiting messages from others', also after a restart, without the URL, which may hold a
    /// secret.
    pub fn key(&self) -> String {
        match self.form {
            Form::Webhook => digest(self.url.expose().as_bytes()),
            Form::Slack => digest(format!("slack {}", self.url.expose()).as_bytes()),
        }
    }

    /// The part of the URL that may be shown.
    pub fn host(&self) -> String {
        let url = reqwest::Url::parse(self.url.expose()).ok();
        url.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// One message: what, why, before and after, and how to stop it. No log text and no labels: they may hold secrets.
#[derive(Debug, Clone, Serialize)]
pub struct Notice {
    /// The remediation's number.
    pub id: i64,
    /// The rule's name.
    pub rule: String,
    /// filesystem, unit, container, hostname or host.
    pub kind: String,
    /// Its name.
    pub target: String,
    /// What there is to tell: how it ended, `awaiting_approval`, `storm`, `state_degraded` or `state_lost`.
    #[serde(rename = "outcome")]
    pub occasion: Occasion,
    /// Why, as a word.
    pub reason: String,
    /// Why, in a sentence.
    pub summary: String,
    /// What was seen before acting.
    pub before: Option<String>,
    /// What was seen at the end.
    pub after: Option<String>,
    /// What is known to cure it, for a person to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
    /// What was called, and what came of it.
    pub steps: Vec<String>,
    /// When the alert came.
    #[serde(rename = "since", serialize_with = "stamp")]
    pub since_wall_ms: Option<i64>,
    /// When a start may be admitted again.
    #[serde(rename = "next_allowed", serialize_with = "stamp")]
    pub next_allowed_wall_ms: Option<i64>,
    /// Until when it can be approved of.
    #[serde(rename = "expires", serialize_with = "stamp", skip_serializing_if = "Option::is_none")]
    pub expires_wall_ms: Option<i64>,
}

impl Notice {
    /// About the host itself, and no remediation.
    pub(crate) fn of_host(host: &str, occasion: Occasion, summary: String) -> Self {
        Self {
            id: 0,
            rule: String::new(),
            kind: Kind::Host.as_str().to_owned(),
            target: host.to_owned(),
            occasion,
            reason: occasion.as_str().to_owned(),
            summary,
            before: None,
            after: None,
            cure: None,
            steps: Vec::new(),
            since_wall_ms: None,
            next_allowed_wall_ms: None,
            expires_wall_ms: None,
        }
    }

    /// Whether nothing was tried because only a person can cure it.
    fn is_for_a_person(&self) -> bool {
        self.occasion == Occasion::Ended(Outcome::Blocked) && self.reason == RESTART_CANNOT_CURE
    }
}

/// Times in a message: RFC 3339.
fn stamp<S: Serializer>(wall_ms: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    wall_ms.map(rfc3339).serialize(serializer)
}

/// The message with what is the same for all.
#[derive(Serialize)]
struct Envelope<'a> {
    version: &'static str,
    host: &'a str,
    /// In one line.
    subject: String,
    /// The whole for people, in Slack's notation.
    text: String,
    #[serde(flatten)]
    notice: &'a Notice,
    explain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    approve: Option<String>,
}

/// What became of one message for one receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The receiver took it.
    Delivered,
    /// It was tried and given up.
    Failed,
    /// Too many waited already.
    Dropped,
}

impl Delivery {
    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Writes messages to the receivers.
#[derive(Clone, Default)]
pub struct Notifier {
    receivers: Arc<[Receiver]>,
    host: Arc<str>,
    /// None where nothing is ever told: on the command line.
    post: Option<Post>,
}

/// Where written messages go.
#[derive(Clone)]
pub struct Post {
    /// Keeps them until they are delivered.
    pub journal: Journal,
    /// When they were written.
    pub clock: Clock,
    /// Counts what is dropped.
    pub metrics: Metrics,
    /// Rung when something was written.
    pub bell: Arc<watch::Sender<()>>,
}

impl Notifier {
    /// Writes for this host, to nobody yet.
    pub fn new(post: Post) -> Self {
        Self { post: Some(post), ..Self::default() }
    }

    /// The same for these receivers, in the name of this host.
    #[must_use]
    pub fn to(&self, receivers: &[Receiver], host: &str) -> Self {
        Self { receivers: receivers.into(), host: host.into(), post: self.post.clone() }
    }

    /// The messages to those receivers that want to hear of it.
    pub fn letters(&self, notice: &Notice) -> Vec<Letter> {
        self.write(notice, |receiver| receiver.wants(notice))
    }

    /// Has what was written delivered, and counts what there was no room for.
    pub fn ring(&self, dropped: u64) {
        let Some(post) = &self.post else { return };
        for _ in 0..dropped {
            post.metrics.notification(Delivery::Dropped);
        }
        if dropped > 0 {
            tracing::warn!(dropped, "notifications dropped: too many wait for their receiver already");
        }
        post.bell.send_replace(());
    }

    /// Tells every receiver, whatever it asked for, and answers how many there are.
    ///
    /// # Errors
    /// When the message is not on disk.
    pub async fn tell_all(&self, notice: &Notice) -> Result<usize, Error> {
        self.post(self.write(notice, |_| true)).await
    }

    /// Tells those receivers that want to hear of it, and answers how many they are.
    ///
    /// # Errors
    /// When the message is not on disk.
    pub async fn tell(&self, notice: &Notice) -> Result<usize, Error> {
        self.post(self.letters(notice)).await
    }

    async fn post(&self, letters: Vec<Letter>) -> Result<usize, Error> {
        let told = letters.len();
        if let Some(post) = self.post.as_ref().filter(|_| told > 0) {
            let dropped = post.journal.post(letters, post.clock.now()).await?;
            self.ring(dropped);
        }
        Ok(told)
    }

    fn write(&self, notice: &Notice, wants: impl Fn(&Receiver) -> bool) -> Vec<Letter> {
        let explain = match notice.occasion {
            Occasion::Blind | Occasion::StateDegraded | Occasion::StateLost => {
                "evenkeel-remediator status".to_owned()
            }
            _ => format!("evenkeel-remediator explain {} {}", notice.rule, shell_word(&notice.target)),
        };
        let approve = (notice.occasion == Occasion::Approval)
            .then(|| format!("evenkeel-remediator approve {}", notice.id));
        let (subject, text) = (text::subject(&self.host, notice), text::text(&self.host, notice));
        let slack = json!({"text": text}).to_string();
        let envelope = Envelope { version: "1", host: &self.host, subject, text, notice, explain, approve };
        let Ok(webhook) = serde_json::to_string(&envelope) else { return Vec::new() };
        let body = |form| match form {
            Form::Webhook => webhook.clone(),
            Form::Slack => slack.clone(),
        };
        let receivers = self.receivers.iter().filter(|receiver| wants(receiver));
        let urgent = notice.occasion == Occasion::Approval || notice.occasion.escalates();
        receivers
            .map(|receiver| Letter { receiver: receiver.key(), body: body(receiver.form), urgent })
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
