//! Tells people: one JSON message per remediation that ended in a way a receiver asked for. A receiver that is down
//! never holds a remediation up; what cannot be delivered after a few tries is counted and dropped.

use std::{sync::Arc, time::Duration};

use evenkeel_host::config::Secret;
use reqwest::{Client, redirect};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{metrics::Metrics, outcome::Outcome, outgoing, text::shell_word};

/// Messages that may wait for one receiver.
const QUEUE: usize = 100;
/// How often one message is tried.
const TRIES: u32 = 4;
/// How long one try may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between the first try and the second; four times as long before each further one.
const PAUSE: Duration = Duration::from_millis(500);

/// When a receiver wants to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// Of everything.
    All,
    /// When a person is needed.
    Escalated,
    /// Of one outcome.
    Outcome(Outcome),
}

impl<'de> Deserialize<'de> for On {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        match word.as_str() {
            "all" => Ok(Self::All),
            "escalated" => Ok(Self::Escalated),
            other => other.parse().map(Self::Outcome).map_err(|_| {
                let outcomes = Outcome::ALL.map(Outcome::as_str).join(", ");
                serde::de::Error::custom(format!(
                    "`{other}` is no occasion: write all, escalated, or one of {outcomes}"
                ))
            }),
        }
    }
}

/// Where to send to, checked.
#[derive(Debug, Clone)]
pub struct Receiver {
    /// The URL; it may hold a secret.
    pub url: Secret,
    /// Sent as `Authorization: Bearer`.
    pub bearer_token: Option<Secret>,
    /// What it wants to hear of.
    pub on: Vec<On>,
}

impl Receiver {
    fn wants(&self, outcome: Outcome) -> bool {
        self.on.iter().any(|on| match on {
            On::All => true,
            On::Escalated => outcome.escalates(),
            On::Outcome(wanted) => *wanted == outcome,
        })
    }
}

/// One message: what, why, before and after, and how to stop it. No log text and no labels: they may hold secrets.
#[derive(Debug, Clone, Serialize)]
pub struct Notice {
    /// The remediation's number.
    pub id: i64,
    /// The rule's name.
    pub rule: String,
    /// filesystem, unit or container.
    pub kind: String,
    /// Its name.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, as a word.
    pub reason: String,
    /// Why, in a sentence.
    pub summary: String,
    /// What was seen before acting.
    pub before: Option<String>,
    /// What was seen at the end.
    pub after: Option<String>,
    /// What was called, and what came of it.
    pub steps: Vec<String>,
    /// When a start may be admitted again, RFC 3339.
    pub next_allowed: Option<String>,
}

/// The message with what is the same for all.
#[derive(Serialize)]
struct Envelope<'a> {
    version: &'static str,
    host: &'a str,
    #[serde(flatten)]
    notice: &'a Notice,
    explain: String,
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

/// Queues messages for the receivers.
#[derive(Clone, Default)]
pub struct Notifier {
    receivers: Arc<Vec<(Receiver, mpsc::Sender<String>)>>,
    host: Arc<str>,
    metrics: Option<Metrics>,
}

impl Notifier {
    /// Starts one task a receiver; they end after `stop`, when what is queued has been tried.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn start(
        receivers: Vec<Receiver>,
        host: &str,
        metrics: &Metrics,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> reqwest::Result<Self> {
        // One message goes to one place: no proxy from the environment, no redirect to elsewhere.
        let client = outgoing::client(|| {
            Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(TIMEOUT)
        })?;
        let queues = receivers.into_iter().map(|receiver| {
            let (sender, queue) = mpsc::channel(QUEUE);
            let courier = Courier {
                client: client.clone(),
                receiver: receiver.clone(),
                metrics: metrics.clone(),
                pause: PAUSE,
                stop: stop.clone(),
            };
            tasks.spawn(courier.deliver(queue));
            (receiver, sender)
        });
        Ok(Self { receivers: Arc::new(queues.collect()), host: host.into(), metrics: Some(metrics.clone()) })
    }

    /// Tells the receivers that want to hear of this outcome.
    pub fn tell(&self, notice: &Notice) {
        self.queue(notice, |receiver| receiver.wants(notice.outcome));
    }

    /// Tells every receiver, and answers how many there are.
    pub fn tell_all(&self, notice: &Notice) -> usize {
        self.queue(notice, |_| true)
    }

    fn queue(&self, notice: &Notice, wants: impl Fn(&Receiver) -> bool) -> usize {
        let explain = format!("evenkeel-remediator explain {} {}", notice.rule, shell_word(&notice.target));
        let envelope = Envelope { version: "1", host: &self.host, notice, explain };
        let Ok(body) = serde_json::to_string(&envelope) else { return 0 };
        let mut told = 0;
        for (receiver, queue) in self.receivers.iter().filter(|(receiver, _)| wants(receiver)) {
            told += 1;
            if queue.try_send(body.clone()).is_err() {
                tracing::warn!(receiver = %host_of(&receiver.url), id = notice.id, "notification dropped: its queue is full");
                if let Some(metrics) = &self.metrics {
                    metrics.notification(Delivery::Dropped);
                }
            }
        }
        told
    }
}

/// Sends one receiver's messages.
struct Courier {
    client: Client,
    receiver: Receiver,
    metrics: Metrics,
    pause: Duration,
    stop: CancellationToken,
}

impl Courier {
    /// One after the other, until the queue is closed; after `stop`, until it is empty.
    async fn deliver(self, mut queue: mpsc::Receiver<String>) {
        loop {
            let body = tokio::select! {
                body = queue.recv() => body,
                () = self.stop.cancelled() => queue.try_recv().ok(),
            };
            let Some(body) = body else { return };
            self.metrics.notification(self.try_hard(&body).await);
        }
    }

    async fn try_hard(&self, body: &str) -> Delivery {
        let mut pause = self.pause;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.send(body).await {
                Ok(()) => return Delivery::Delivered,
                Err(error) if tries == TRIES || self.stop.is_cancelled() => {
                    let receiver = host_of(&self.receiver.url);
                    tracing::warn!(%receiver, error, tries, "notification not delivered");
                    return Delivery::Failed;
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 4;
        }
    }

    /// One try; otherwise why it failed, without the URL, which may hold a secret.
    async fn send(&self, body: &str) -> Result<(), String> {
        let mut request = self
            .client
            .post(self.receiver.url.expose())
            .header("content-type", "application/json")
            .body(body.to_owned());
        if let Some(token) = &self.receiver.bearer_token {
            request = request.bearer_auth(token.expose());
        }
        let status = request.send().await.map_err(|error| chain(&error.without_url()))?.status();
        // A redirect is not followed, and so nobody has read the message.
        if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
    }
}

/// An error with its causes: the outer one alone says "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The part of a URL that may be logged.
fn host_of(url: &Secret) -> String {
    reqwest::Url::parse(url.expose())
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests;
