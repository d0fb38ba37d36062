//! `drill`: a failure that is made on purpose, followed all the way. A unit of evenkeel's own is made to fail; its alert is
//! raised in Alertmanager, or, end to end, by Prometheus itself; it must reach this host's remediator, which must repair
//! the unit, see that it is well, and hear that the alert is over. It has passed only when all of that was seen. Whatever
//! happens, what it broke and raised is put back. It changes nothing but its own unit.

mod follow;
mod plan;
mod says;
mod stuck;
mod unit;

use std::{
    io::Write,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use self::{follow::follow, plan::Plan, says::Says, unit::DrillUnit};
use crate::{api::alertmanager, config::Config};

/// What is broken and repaired; nothing but a drill starts it.
pub const UNIT: &str = "evenkeel-drill.service";
/// The alert of the shipped rules about a unit that has failed.
pub const ALERT: &str = "SystemdUnitFailed";
/// How long putting back may take.
const CLEANING: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// Whether Prometheus is to raise the alert by what the exporter says.
    pub end_to_end: bool,
    /// How long it may take from the failure to the end of the alert.
    pub within: Duration,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All of it was seen.
    Passed,
    /// It did not get any further.
    Stopped,
    /// It could not begin or was interrupted: nothing is known.
    Untold,
}

/// What must be seen, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Broken,
    Firing,
    Delivered,
    Repaired,
    Verified,
    Resolved,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Broken, Self::Firing, Self::Delivered, Self::Repaired, Self::Verified, Self::Resolved];

    fn as_str(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Firing => "firing",
            Self::Delivered => "delivered",
            Self::Repaired => "repaired",
            Self::Verified => "verified",
            Self::Resolved => "resolved",
        }
    }
}

/// Why it did not get any further.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stop {
    /// What was seen.
    why: String,
    /// What to look at or to do.
    look_at: String,
    /// Whether that says something about the way of an alert, and not only about this drill.
    is_found: bool,
}

impl Stop {
    fn found(why: impl Into<String>, look_at: impl Into<String>) -> Self {
        Self { why: why.into(), look_at: look_at.into(), is_found: true }
    }

    fn untold(why: impl Into<String>, look_at: impl Into<String>) -> Self {
        Self { why: why.into(), look_at: look_at.into(), is_found: false }
    }
}

/// A drill that is under way.
struct Drill<'a> {
    config: &'a Config,
    plan: Plan,
    unit: DrillUnit,
    /// Whether the alert may be in Alertmanager because of this.
    raised: bool,
    /// What must be seen next; none when all was.
    awaited: Option<Stage>,
    began: Instant,
    began_ms: i64,
    deadline_ms: i64,
}

/// Makes the drill, and says how it goes as it goes.
///
/// # Errors
/// When the configuration does not let it begin, or `out` is closed.
pub async fn run(config: Config, order: Order, out: &mut impl Write) -> anyhow::Result<Verdict> {
    let plan = Plan::new(&config, order).await?;
    let mut says = Says::new(out);
    says.head(&plan, order)?;
    let began_ms = Timestamp::now().as_millisecond();
    let within_ms = i64::try_from(order.within.as_millis()).unwrap_or(i64::MAX);
    let mut drill = Drill {
        config: &config,
        plan,
        unit: DrillUnit::default(),
        raised: false,
        awaited: Some(Stage::Broken),
        began: Instant::now(),
        began_ms,
        deadline_ms: began_ms.saturating_add(within_ms),
    };
    let mut interrupted = Interruption::listen()?;
    let ended = tokio::select! {
        ended = timeout(order.within, follow(&mut drill, &mut says)) => match ended {
            Ok(ended) => ended,
            Err(_) => Ok(Some(stuck::after_all(&drill).await)),
        },
        () = interrupted.comes() => {
            Ok(Some(Stop::untold("it was interrupted", "nothing: begin it again when you like")))
        }
    };
    // Before anything else is said: whoever would read it may be gone.
    let cleaned = timeout(CLEANING, clean_up(&drill)).await;
    let cleaned =
        cleaned.unwrap_or_else(|_| Err(vec![format!("it took longer than {} s", CLEANING.as_secs())]));
    says.cleaned(&cleaned, drill.unit.is_touched())?;
    let stopped = ended?;
    says.verdict(&drill, stopped.as_ref())?;
    Ok(match stopped {
        None => Verdict::Passed,
        Some(stop) if stop.is_found => Verdict::Stopped,
        Some(_) => Verdict::Untold,
    })
}

/// Ends the alert and puts the unit back; each also when the other fails.
async fn clean_up(drill: &Drill<'_>) -> Result<(), Vec<String>> {
    let mut failures = Vec::new();
    if let (true, Some(api)) = (drill.raised, &drill.config.alertmanager) {
        let ended =
            alertmanager::raise(api, &drill.plan.labels, &plan::annotations(), Timestamp::now()).await;
        if let Err(fault) = ended {
            failures.push(format!(
                "the alert is not ended ({fault}): it ends by itself with the time of the drill"
            ));
        }
    }
    if let Err(why) = drill.unit.put_back().await {
        failures.push(format!("{UNIT}: {why}; systemctl stop {UNIT}; systemctl reset-failed {UNIT}"));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// Ctrl-C, an end that is asked for, a terminal that is closed.
struct Interruption([tokio::signal::unix::Signal; 3]);

impl Interruption {
    fn listen() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn comes(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
