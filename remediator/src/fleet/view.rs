//! The whole fleet as it is now, for people and for metrics: hosts, who acts, what budgets leave, who is lost, which
//! alerts wait and which nobody wants. A gateway looks at its own pace; the command line when it is asked.

use std::{io::Write, sync::Arc, time::Duration};

use evenkeel_host::config::PromDuration;
use redis::{Value, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    fault::Fault,
    hosts::Hosts,
    ledger::{FleetPause, LOOK, Ledger, add_windows, ms},
    link::Link,
    policy,
    reply::Reply,
    settings::Settings,
};
use crate::{clock::Clock, journal::Journal, metrics::Metrics, policy::Limit, text::printable};

/// Hosts listed of a kind; the others are counted.
const LISTED: usize = 50;
/// Streams asked for their length at once.
const CHUNK: usize = 1000;
/// What is read of one answer at most, in bytes: the names of 20,000 hosts.
const ANSWER_MAX: u64 = 8 << 20;
/// A memory that is older than any Redis is one that `fleet trust-memory` has declared complete, in milliseconds.
const TRUSTED: u64 = 20 * 365 * 24 * 3_600_000;
/// Between two looks of a gateway.
const EVERY: Duration = Duration::from_secs(15);

/// The fleet at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// When it was looked at, by this host's clock, milliseconds since 1970.
    pub at_ms: i64,
    /// How long Redis has remembered starts; none before the first member has come.
    pub memory_ms: Option<u64>,
    /// All hosts, those that are gone included.
    pub total: u64,
    /// Without a heartbeat of late.
    pub gone: u64,
    /// With something in need.
    pub unwell: u64,
    /// Acting.
    pub acting: u64,
    /// How many may act.
    pub most: u64,
    /// Whether so many are gone or in need that none begins to act.
    pub stopped: bool,
    /// Changes with each order to pause or resume; 0 while Redis knows of none.
    pub order: u64,
    /// Who acts, and for how long its lease still stands, in milliseconds.
    pub acting_hosts: Vec<(String, u64)>,
    /// Who is gone, and for how long, in milliseconds.
    pub gone_hosts: Vec<(String, u64)>,
    /// Names that alerts were for and nobody has claimed, and how long ago the last was, in milliseconds.
    pub unclaimed: Vec<(String, u64)>,
    /// How many such names are noted.
    pub unclaimed_count: u64,
    /// The pause in force.
    pub pause: Option<Pause>,
    /// Each window of each scope.
    pub budgets: Vec<Budget>,
    /// Alerts that wait; none where this user may not see it.
    pub backlog: Option<Backlog>,
}

/// A pause of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Who ordered it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// How long it still lasts, in milliseconds; none: until somebody resumes.
    pub left_ms: Option<u64>,
}

/// One window of one scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// `fleet` or `fleet_S2` and so on.
    pub scope: String,
    /// Starts that it admits.
    pub count: u32,
    /// In so long, in milliseconds.
    pub window_ms: u64,
    /// Starts that it holds.
    pub used: u64,
    /// How long until the next is admitted, in milliseconds; 0 now.
    pub wait_ms: u64,
}

impl Budget {
    /// Starts that it still admits now.
    pub fn left(&self) -> u64 {
        // A window that is longer than the memory counts as full, whatever it holds.
        if self.wait_ms > 0 { 0 } else { u64::from(self.count).saturating_sub(self.used) }
    }
}

/// Alerts in Redis that no agent has taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// How many, on all hosts.
    pub alerts: u64,
    /// The hosts with the most of them.
    pub hosts: Vec<(String, u64)>,
}

/// Looks at a fleet.
pub struct Viewer {
    settings: Arc<Settings>,
    ledger: Ledger,
    link: Link,
}

impl Viewer {
    /// A viewer with a connection of its own.
    pub fn new(settings: Arc<Settings>) -> Self {
        let ledger = Ledger::new(settings.keys.clone(), settings.terms.clone());
        let link = Link::new(settings.redis.clone(), settings.timeout, ANSWER_MAX);
        Self { settings, ledger, link }
    }

    /// Looks now.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn look(&self, clock: &Clock) -> Result<View, Fault> {
        let ledger = &self.ledger;
        let look = move |mut redis| async move { ledger.view(&mut redis, LISTED).await };
        let mut view = self.link.ask(look).await?;
        view.at_ms = clock.now().wall_ms;
        view.backlog = self.backlog().await.ok();
        Ok(view)
    }

    /// Pauses the fleet.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn pause(&self, author: &str, reason: &str, lasts: Option<Duration>) -> Result<(), Fault> {
        let ledger = &self.ledger;
        self.link
            .ask(move |mut redis| async move { ledger.pause(&mut redis, author, reason, lasts).await })
            .await
    }

    /// Ends a pause of the fleet; answers whether Redis knew of one.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn resume(&self, author: &str) -> Result<bool, Fault> {
        let ledger = &self.ledger;
        self.link.ask(move |mut redis| async move { ledger.resume(&mut redis, author).await }).await
    }

    /// Says that nothing was started before Redis began to remember.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn trust_memory(&self) -> Result<(), Fault> {
        let ledger = &self.ledger;
        self.link.ask(move |mut redis| async move { ledger.trust_memory(&mut redis).await }).await
    }

    async fn backlog(&self) -> Result<Backlog, Fault> {
        let ledger = &self.ledger;
        let hosts = self.link.ask(move |mut redis| async move { ledger.hosts(&mut redis).await }).await?;
        let mut lengths: Vec<(String, u64)> = Vec::new();
        for hosts in hosts.chunks(CHUNK) {
            let mut all = redis::pipe();
            for host in hosts {
                all.cmd("XLEN").arg(self.settings.keys.stream(host));
            }
            let all = &all;
            let ask = move |mut redis| async move {
                match all.query_async::<Value>(&mut redis).await? {
                    Value::Array(lengths) => Ok(lengths),
                    _ => Err(Fault::nonsense("no list where one belongs")),
                }
            };
            let found = self.link.ask(ask).await?;
            for (host, length) in hosts.iter().zip(found) {
                if let Value::Int(length @ 1..) = length {
                    lengths.push((host.to_string(), length.unsigned_abs()));
                }
            }
        }
        lengths.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let alerts = lengths.iter().map(|(_, length)| length).sum();
        lengths.truncate(LISTED);
        Ok(Backlog { alerts, hosts: lengths })
    }

    /// Looks at its pace, until it is told to stop. `journal` remembers the pause, where no heartbeat does.
    pub async fn watch(
        self,
        clock: Clock,
        metrics: Metrics,
        journal: Option<Journal>,
        seen: watch::Sender<Option<View>>,
        stop: CancellationToken,
    ) {
        let mut turns = interval(EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = turns.tick() => {}
            }
            let view = self.look(&clock).await;
            if let Ok(evicts) = policy::evicts(&self.link).await {
                metrics.fleet.evicts(evicts.is_some());
                if told != evicts {
                    policy::tell(evicts.as_deref());
                }
                told = evicts;
            }
            metrics.fleet.up(view.is_ok());
            match &view {
                Err(fault) => metrics.fleet.fault(fault),
                Ok(view) => remember(journal.as_ref(), view, &clock, &metrics).await,
            }
            // A picture that is old would be taken for the present one.
            seen.send_replace(view.ok());
        }
    }
}

/// That Redis knows of no order says nothing about one that was seen before it forgot.
async fn remember(journal: Option<&Journal>, view: &View, clock: &Clock, metrics: &Metrics) {
    let Some(journal) = journal.filter(|_| view.order > 0) else { return };
    let pause = view.pause.clone().map(FleetPause::from);
    if let Err(error) = journal.pause_by_fleet(pause, clock.now()).await {
        metrics.state_write_failed();
        tracing::error!(%error, "what the fleet says cannot be remembered");
    }
}

impl Ledger {
    /// Everything but the backlog.
    async fn view(&self, redis: &mut MultiplexedConnection, listed: usize) -> Result<View, Fault> {
        let limits: Vec<_> = self.terms().limits.iter().filter(|(_, limits)| !limits.is_empty()).collect();
        let mut call = self.call(&LOOK);
        for (scope, _) in &limits {
            call.key(self.keys().log(*scope));
        }
        call.arg(ms(self.terms().lost_after)).arg(listed);
        call.arg(&Hosts::words(Some(self.terms().most_acting))[..]);
        call.arg(&Hosts::words(self.terms().stop_above)[..]).arg(self.terms().least_hosts);
        for (_, limits) in &limits {
            add_windows(&mut call, limits);
        }
        let mut reply = Reply::of(call.invoke_async::<Value>(redis).await?)?;
        let (now, epoch) = (reply.number()?, reply.number_or_none()?);
        let (total, gone, unwell) = (reply.number()?, reply.number()?, reply.number()?);
        let (acting, most) = (reply.number()?, reply.number()?);
        let (stopped, order) = (reply.number()? == 1, reply.number()?);
        let (acting_hosts, gone_hosts) = (pairs(reply.list()?)?, pairs(reply.list()?)?);
        let (unclaimed, unclaimed_count) = (pairs(reply.list()?)?, reply.number()?);
        let mut pause = reply.list()?;
        let pause = if pause.is_empty() { None } else { Some(Pause::from(pause.pause()?)) };
        let mut windows = reply.list()?;
        let mut budgets = Vec::new();
        for (scope, limits) in limits {
            for Limit { count, window } in limits {
                let (used, wait_ms) = (windows.number()?, windows.number()?);
                let (scope, window_ms) = (scope.label().to_owned(), ms(*window));
                budgets.push(Budget { scope, count: *count, window_ms, used, wait_ms });
            }
        }
        Ok(View {
            at_ms: 0,
            memory_ms: epoch.map(|epoch| now.saturating_sub(epoch)),
            total,
            gone,
            unwell,
            acting,
            most,
            stopped,
            order,
            acting_hosts,
            gone_hosts,
            unclaimed,
            unclaimed_count,
            pause,
            budgets,
            backlog: None,
        })
    }
}

impl From<FleetPause> for Pause {
    fn from(pause: FleetPause) -> Self {
        Self { author: pause.author, reason: pause.reason, left_ms: pause.left.map(ms) }
    }
}

impl From<Pause> for FleetPause {
    fn from(pause: Pause) -> Self {
        let left = pause.left_ms.map(Duration::from_millis);
        Self { author: pause.author, reason: pause.reason, left }
    }
}

fn pairs(mut list: Reply) -> Result<Vec<(String, u64)>, Fault> {
    let mut pairs = Vec::new();
    while !list.is_empty() {
        pairs.push((list.text()?, list.number()?));
    }
    Ok(pairs)
}

impl View {
    /// Writes it for people.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn write(&self, settings: &Settings, out: &mut impl Write) -> std::io::Result<()> {
        let there = self.total.saturating_sub(self.gone);
        writeln!(
            out,
            "fleet of {} hosts: {there} there, {} gone, {} with something in need",
            self.total, self.gone, self.unwell
        )?;
        writeln!(
            out,
            "  acting         {} of {} that may at once ({})",
            self.acting, self.most, settings.terms.most_acting
        )?;
        let stop = match settings.terms.stop_above {
            Some(most) if self.stopped => format!("STOPPED: more than {most} are gone or in need"),
            Some(most) => format!("above {most} gone or in need"),
            None => "never".to_owned(),
        };
        writeln!(out, "  stop           {stop}")?;
        let memory = match self.memory_ms {
            None => "empty".to_owned(),
            Some(age) if age >= TRUSTED => "counts as complete".to_owned(),
            Some(age) => format!("reaches back {}", time(age)),
        };
        writeln!(out, "  memory         {memory}")?;
        match &self.backlog {
            Some(backlog) => writeln!(out, "  waiting        {} alerts in Redis", backlog.alerts)?,
            None => writeln!(out, "  waiting        not known: only a gateway may see every stream")?,
        }
        if let Some(pause) = &self.pause {
            let until = pause.left_ms.map_or_else(
                || "until somebody resumes".to_owned(),
                |left| format!("for another {}", time(left)),
            );
            writeln!(
                out,
                "\nFLEET PAUSED by {}, {until}: {}\n  evenkeel-remediator resume --fleet ends it",
                printable(&pause.author),
                printable(&pause.reason)
            )?;
        }
        if !self.budgets.is_empty() {
            writeln!(out, "\nbudgets")?;
        }
        for budget in &self.budgets {
            let limit = format!("{}/{}", budget.count, time(budget.window_ms));
            let next = if budget.wait_ms == 0 {
                String::new()
            } else {
                format!(", next in {}", time(budget.wait_ms))
            };
            writeln!(
                out,
                "  {:<15}{limit:<10} {} used, {} left{next}",
                budget.scope,
                budget.used,
                budget.left()
            )?;
        }
        section(out, "acting now", "lease for another", &self.acting_hosts, self.acting)?;
        section(out, "gone", "silent for", &self.gone_hosts, self.gone)?;
        section(
            out,
            "alerts for hosts that no agent has claimed",
            "last one, ago:",
            &self.unclaimed,
            self.unclaimed_count,
        )?;
        if let Some(backlog) = self.backlog.as_ref().filter(|backlog| !backlog.hosts.is_empty()) {
            writeln!(out, "\nalerts waiting")?;
            for (host, alerts) in &backlog.hosts {
                writeln!(out, "  {} {alerts}", printable(host))?;
            }
        }
        Ok(())
    }
}

fn section(
    out: &mut impl Write,
    title: &str,
    what: &str,
    rows: &[(String, u64)],
    all: u64,
) -> std::io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    for (name, age) in rows {
        writeln!(out, "  {} ({what} {})", printable(name), time(*age))?;
    }
    match all.saturating_sub(u64::try_from(rows.len()).unwrap_or(u64::MAX)) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}

/// Whole seconds where there are any.
fn time(ms: u64) -> String {
    let rounded = if ms >= 1000 { ms / 1000 * 1000 } else { ms };
    PromDuration::new(Duration::from_millis(rounded)).to_string()
}
