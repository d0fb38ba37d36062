//! What is remembered, as plain values: alerts, remediations, steps, and the answers to whoever changes them.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    admission::{Refusal, Restraint, Scope},
    clock::Moment,
    observe::Observation,
    outcome::Outcome,
    policy::{Class, Limit},
    target::{Kind, Target},
};

/// One alert that a rule admitted.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The rule's name.
    pub rule: String,
    /// What it names on this host.
    pub target: Target,
    /// Whether it fires; otherwise it says that it is resolved.
    pub firing: bool,
    /// Whether the rule may interrupt a service.
    pub impact: bool,
    /// Alertmanager's fingerprint, for people to find the alert again.
    pub fingerprint: String,
    /// The alert's labels.
    pub labels: Labels,
    /// Who began it by hand; an alert did otherwise.
    pub triggered_by: Option<String>,
}

/// An alert's labels as they are remembered: JSON, which is all that is ever done with them until they are read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(Box<str>);

impl Labels {
    /// An object of strings.
    pub fn json(&self) -> &str {
        &self.0
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Labels {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let labels: BTreeMap<&str, &str> = pairs.into_iter().collect();
        serde_json::to_string(&labels).map_or_else(|_| Self::default(), |json| Self(json.into()))
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Remediations opened.
    pub opened: u64,
    /// Alerts absorbed by an open remediation.
    pub absorbed: u64,
    /// Resolved alerts noted on an open remediation.
    pub resolved: u64,
    /// Alerts that would have opened one, and there was no room.
    pub left: u64,
}

/// One that has no outcome yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The rule's name.
    pub rule: String,
    /// Its target, with its kind.
    pub target: String,
}

/// Whether a delivery was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is on disk.
    Taken(Tally),
    /// Too many remediations were open before it came; nothing of it was taken.
    TooMany,
}

/// Where an open remediation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits for the worker.
    Received,
    /// Waits for a person to approve of it.
    Awaiting,
    /// The start is counted; the action has not been called.
    Reserved,
    /// The action may have been called.
    Running,
    /// The action has ended; the effect is being measured.
    Verifying,
    /// It has an outcome.
    Ended,
}

impl Phase {
    pub(super) const ALL: [Self; 6] =
        [Self::Received, Self::Awaiting, Self::Reserved, Self::Running, Self::Verifying, Self::Ended];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Awaiting => "awaiting",
            Self::Reserved => "reserved",
            Self::Running => "running",
            Self::Verifying => "verifying",
            Self::Ended => "ended",
        }
    }
}

/// One remediation as stored.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Its number.
    pub id: i64,
    /// The rule's name.
    pub rule: String,
    /// What kind of thing it is about.
    pub kind: String,
    /// The thing's name.
    pub target: String,
    /// Where it stands.
    pub phase: Phase,
    /// The step of the ladder it is at.
    pub step: usize,
    /// Whether it acted on the host.
    pub acted: bool,
    /// Alertmanager's fingerprint of the first alert.
    pub fingerprint: String,
    /// Labels of the first alert.
    pub labels: BTreeMap<String, String>,
    /// Alerts that said the same.
    pub deliveries: u64,
    /// When the first alert came.
    pub received_wall_ms: i64,
    /// When the last alert came.
    pub last_seen_wall_ms: i64,
    /// When the alert said that it is resolved, if it did.
    pub resolved_wall_ms: Option<i64>,
    /// What was seen before acting.
    pub before: Option<Observation>,
    /// What was seen at the end.
    pub after: Option<Observation>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it ended so, as a word.
    pub reason: Option<String>,
    /// Why it ended so, for people.
    pub detail: Option<String>,
    /// When a start may be admitted again, after a refusal.
    pub next_allowed_wall_ms: Option<i64>,
    /// When it ended.
    pub ended_wall_ms: Option<i64>,
    /// Who began it by hand; an alert did otherwise.
    pub triggered_by: Option<String>,
    /// Who approved of it, or rejected it.
    pub decided_by: Option<String>,
    /// Who wants it tried again although it did not help.
    pub acked_by: Option<String>,
}

/// What became of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Would have run; the rule is in plan mode.
    Planned,
    /// Not run: the reason says why.
    Skipped,
    /// Counted, not yet called.
    Reserved,
    /// Called; no answer is recorded.
    Running,
    /// The host did it.
    Done,
    /// The host refused it.
    Failed,
    /// Interrupted: it may have happened.
    Unknown,
}

impl StepState {
    pub(super) const ALL: [Self; 7] = [
        Self::Planned,
        Self::Skipped,
        Self::Reserved,
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Unknown,
    ];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Skipped => "skipped",
            Self::Reserved => "reserved",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// One step as stored.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    /// Its place in the rule's ladder, from 0.
    pub position: usize,
    /// The action's name.
    pub action: String,
    /// The action's class.
    pub class: Class,
    /// The exact calls.
    pub plan: String,
    /// What became of it.
    pub state: StepState,
    /// Why, as a word.
    pub reason: Option<String>,
    /// Why, for people.
    pub detail: Option<String>,
    /// When it was called.
    pub started_wall_ms: Option<i64>,
    /// When it ended.
    pub ended_wall_ms: Option<i64>,
    /// What the API says it freed, in bytes.
    pub claimed_freed_bytes: Option<i64>,
    /// What the filesystem says it freed, in bytes; negative when less was available afterwards.
    pub measured_freed_bytes: Option<i64>,
}

/// One step as people are shown it when they are asked to approve of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its place in the rule's ladder, from 0.
    pub position: usize,
    /// The exact calls.
    pub plan: String,
    /// What they would change on this host.
    pub changes: Option<String>,
}

impl Shown {
    /// Tells it from everything else that may be shown, however long it is.
    pub(super) fn digest(&self) -> String {
        let changes = self.changes.as_deref().unwrap_or_default();
        // With the length of the first: where one ends and the other begins must not matter.
        let whole = format!("{} {} {changes}", self.plan.len(), self.plan);
        evenkeel_host::systemd::snapshot::sha256(whole.as_bytes())
    }
}

/// What a start is admitted by: everything that the journal alone can answer.
#[derive(Debug, Clone)]
pub struct Question {
    /// The remediation; 0 when somebody only asks.
    pub id: i64,
    /// The rule's name.
    pub rule: String,
    /// What is to be acted on.
    pub target: Target,
    /// The device of a filesystem.
    pub device: Option<u64>,
    /// The step's class.
    pub class: Class,
    /// Every scope it counts in, with the windows.
    pub budgets: Vec<(Scope, Vec<Limit>)>,
    /// Cooldown and breaker, when this is the remediation's first acting step.
    pub restraint: Option<Restraint>,
    /// When so many targets are in need at once that none is acted on.
    pub storm: Storm,
}

/// When too many targets are in need of service-impacting work at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storm {
    /// More distinct targets than this,
    pub targets: u32,
    /// seen within this time,
    pub within: Duration,
    /// stop all such work until it has been calm for this long.
    pub hold: Duration,
}

impl Default for Storm {
    fn default() -> Self {
        Self { targets: 5, within: Duration::from_secs(300), hold: Duration::from_secs(900) }
    }
}

/// A start that wants to be admitted: one step of one remediation.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it is admitted by.
    pub question: Question,
    /// The step, as it will be recorded; none when the walk itself is what counts, for rules that only observe.
    pub step: Option<StepRecord>,
    /// Who is told when this is what makes it a storm.
    pub on_storm: Vec<Letter>,
    /// Now.
    pub now: Moment,
}

/// One message for one receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Which receiver, by [`crate::notify::Receiver::key`].
    pub receiver: String,
    /// The message.
    pub body: String,
    /// Whether a person is needed, or asked: it finds room where others do not.
    pub urgent: bool,
}

/// A message that waits to be delivered.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its number.
    pub id: i64,
    /// The message.
    pub body: String,
    /// How long it has been waiting.
    pub age: Duration,
    /// How often it was tried.
    pub tries: u32,
}

/// What makes the messages of a remediation, when it is known how it stands.
pub type Write = Box<dyn FnOnce(&Record, &[StepRecord]) -> Vec<Letter> + Send>;

/// Why nothing is begun now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    /// Which kind.
    pub what: HaltKind,
    /// Why, in the words of whoever ordered it.
    pub reason: String,
    /// Who ordered it.
    pub author: String,
    /// Since when, by the wall clock.
    pub since_wall_ms: i64,
    /// How much longer; for ever where not set.
    pub left: Option<Duration>,
}

/// The kinds of [`Halt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaltKind {
    /// A person has stopped everything.
    Pause,
    /// Too many targets are in need at once.
    Storm,
    /// A person has stopped the whole fleet: as it was heard of last.
    FleetPause,
}

impl HaltKind {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Pause, Self::Storm, Self::FleetPause];

    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Storm => "storm",
            Self::FleetPause => "fleet_pause",
        }
    }

    /// The command that ends it.
    pub fn ended_by(self) -> &'static str {
        match self {
            Self::Pause | Self::Storm => "evenkeel-remediator resume",
            Self::FleetPause => "evenkeel-remediator resume --fleet",
        }
    }
}

/// An earlier state was lost, and with it what was started before: every window counts as full at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// When, on the timeline.
    pub moment: Moment,
    /// When, by the wall clock.
    pub wall_ms: i64,
    /// What happened to it.
    pub why: String,
}

/// What a person decided about a remediation that waits for approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be done.
    Approve,
    /// It must not.
    Reject,
}

impl Verdict {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Reject => "reject",
        }
    }
}

/// What became of a person's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// It holds.
    Taken,
    /// There is no remediation of this number.
    Unknown,
    /// It does not wait for approval: decided already, ended, or never asked for.
    NotAwaiting,
    /// The time to decide has passed.
    Expired,
}

/// How a remediation stands with the person who has to approve of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    /// Nobody has been asked.
    NotAsked,
    /// Asked, so long ago.
    Asked(Duration),
    /// Given, so long ago.
    Given(Duration),
    /// Rejected, by whom.
    Rejected(String),
}

/// How the end of a remediation was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The number it is known by.
    pub id: i64,
    /// Messages for which there was no room.
    pub dropped: u64,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is counted and reserved; this is the step's number, 0 without a step.
    Admitted(i64),
    /// It is not.
    Refused(Refusal),
}

/// What became of a remediation whose target turned out to have another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renamed {
    /// It goes on under that name.
    Renamed,
    /// The one that is open under that name stands for both.
    Absorbed,
}

/// How a remediation ends.
#[derive(Debug, Clone)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// Why, as a word.
    pub reason: String,
    /// Why, for people.
    pub detail: String,
    /// When a start may be admitted, after a refusal.
    pub next_allowed_wall_ms: Option<i64>,
    /// The last look.
    pub after: Option<Observation>,
}

impl End {
    /// An end whose next time nobody knows.
    pub fn new(
        outcome: Outcome,
        reason: &str,
        detail: impl Into<String>,
        after: Option<Observation>,
    ) -> Self {
        Self { outcome, reason: reason.to_owned(), detail: detail.into(), next_allowed_wall_ms: None, after }
    }
}

impl Record {
    /// What kind of thing it is about, if this version knows it.
    pub fn kind(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == self.kind)
    }
}
