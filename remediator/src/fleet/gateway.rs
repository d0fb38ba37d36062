//! A gateway: passes alerts on to the hosts that they are for. It keeps nothing by itself, so there may be any number of
//! them; what Redis has not got is not answered with 200, and comes again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    fault::Fault,
    ledger::Ledger,
    link::Link,
    names::HostId,
    settings::{Role, Settings},
    stream::{self, FIELD},
};
use crate::{
    metrics::Metrics,
    webhook::{Alert, Meaning},
};

/// Alerts written at once. What is more goes in a further round trip.
const CHUNK: usize = 500;
/// Names asked for at once.
const NAMES: usize = 2000;
/// What is read of one answer at most, in bytes: a line for each alert, a name for each name.
const ANSWER_MAX: u64 = 4 << 20;
/// A stream that nobody has written to for so long is forgotten, in seconds: its host is gone.
const KEPT: u64 = 7 * 24 * 3600;

/// Passes alerts on.
pub struct Gateway {
    settings: Arc<Settings>,
    role: Role,
    ledger: Ledger,
    link: Link,
    metrics: Metrics,
}

/// An alert to be passed on.
#[derive(Debug)]
pub struct Parcel {
    name: HostId,
    entry: String,
}

impl Parcel {
    /// Wraps an alert.
    ///
    /// # Errors
    /// When its labels name no host, or the alert is larger than any; the word is a metric label.
    pub fn of(alert: &Alert<'_>) -> Result<Self, &'static str> {
        let name = alert.host().ok_or("no_host")?;
        let name = name.parse().map_err(|_| "host_not_a_name")?;
        Ok(Self { name, entry: stream::write(alert).ok_or("labels_too_long")? })
    }
}

/// What became of a delivery's alerts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// In the streams of their hosts.
    pub routed: usize,
    /// For hosts that no agent has ever claimed.
    pub unclaimed: usize,
}

/// Why a delivery must come again.
#[derive(Debug, thiserror::Error)]
pub enum NotPassed {
    /// Redis cannot be asked.
    #[error(transparent)]
    Lost(#[from] Fault),
    /// Redis has only just begun to remember: nobody knows yet which agents there are.
    #[error("the fleet's Redis began to remember {} s ago: its agents have yet to say which hosts there are", .0.as_secs())]
    Young(Duration),
}

impl Gateway {
    /// A gateway with a connection of its own.
    pub fn new(settings: Arc<Settings>, role: Role, metrics: Metrics) -> Self {
        let ledger = Ledger::new(settings.keys.clone(), settings.terms.clone());
        let link = Link::new(settings.redis.clone(), settings.timeout, ANSWER_MAX);
        Self { settings, role, ledger, link, metrics }
    }

    /// Whether an alert goes by way of Redis. What is for this host itself does not where it acts: it may be about Redis.
    pub fn passes(&self, meaning: &Meaning) -> bool {
        match meaning {
            Meaning::Ignored("labels_too_long") => false,
            Meaning::Ignored("other_host") => true,
            _ => !self.role.acts(),
        }
    }

    /// Passes all of a delivery on. What was passed on before it failed comes twice, and is done once.
    ///
    /// # Errors
    /// When the delivery must come again.
    pub async fn pass(&self, parcels: &[Parcel]) -> Result<Passed, NotPassed> {
        if parcels.is_empty() {
            return Ok(Passed::default());
        }
        let passed = self.try_pass(parcels).await;
        match &passed {
            Ok(passed) => self.metrics.fleet.routed(*passed),
            Err(NotPassed::Lost(fault)) => self.metrics.fleet.fault(fault),
            Err(NotPassed::Young(_)) => {}
        }
        passed
    }

    async fn try_pass(&self, parcels: &[Parcel]) -> Result<Passed, NotPassed> {
        let hosts = self.hosts(parcels).await?;
        let mut passed = Passed::default();
        let mut streams: BTreeMap<&HostId, Vec<&str>> = BTreeMap::new();
        for parcel in parcels {
            match hosts.get(&parcel.name) {
                Some(host) => {
                    streams.entry(host).or_default().push(&parcel.entry);
                    passed.routed += 1;
                }
                None => passed.unclaimed += 1,
            }
        }
        let mut waiting: Vec<(&HostId, &[&str])> = Vec::new();
        let mut held = 0;
        for (host, entries) in &streams {
            for entries in entries.chunks(CHUNK) {
                waiting.push((host, entries));
                held += entries.len();
                if held >= CHUNK {
                    self.write(&waiting).await?;
                    waiting.clear();
                    held = 0;
                }
            }
        }
        self.write(&waiting).await?;
        Ok(passed)
    }

    /// Which host each name means; names that nobody has claimed are not there.
    async fn hosts(&self, parcels: &[Parcel]) -> Result<BTreeMap<HostId, HostId>, NotPassed> {
        let names: BTreeSet<&HostId> = parcels.iter().map(|parcel| &parcel.name).collect();
        let names: Vec<&HostId> = names.into_iter().collect();
        let (mut hosts, mut unclaimed) = (BTreeMap::new(), Vec::new());
        for names in names.chunks(NAMES) {
            let ledger = &self.ledger;
            let ask = move |mut redis| async move { ledger.find(&mut redis, names).await };
            let (age, found) = self.link.ask(ask).await?;
            for (name, host) in names.iter().zip(found) {
                match host {
                    Some(host) => drop(hosts.insert((*name).clone(), host)),
                    // All that agents have said may have been lost with everything else.
                    None if age < self.settings.terms.lost_after * 2 => return Err(NotPassed::Young(age)),
                    None => unclaimed.push(name.as_str()),
                }
            }
        }
        if let Some(first) = unclaimed.first() {
            tracing::warn!(hosts = unclaimed.len(), first, "alerts are for hosts that no agent has claimed");
        }
        Ok(hosts)
    }

    async fn write(&self, streams: &[(&HostId, &[&str])]) -> Result<(), Fault> {
        if streams.is_empty() {
            return Ok(());
        }
        let mut all = redis::pipe();
        for (host, entries) in streams {
            let key = self.settings.keys.stream(host);
            for entry in *entries {
                all.cmd("XADD").arg(&key).arg("MAXLEN").arg("~").arg(self.settings.stream_max);
                all.arg("*").arg(FIELD).arg(entry).ignore();
            }
            all.cmd("EXPIRE").arg(&key).arg(KEPT).ignore();
        }
        let all = &all;
        let write = move |mut redis| async move { Ok(all.query_async::<()>(&mut redis).await?) };
        self.link.ask(write).await
    }
}
