//! Many hosts over one Redis: alerts reach hosts that listen on no port, and what one host does counts for all.
//!
//! `names` is what things are called, `ledger` the front of the scripts in Redis (`lua/`), `reply` and `fault` what it
//! answers and what can be wrong with it, `link` a connection. On them stand `member` (this host: heartbeat, lease, what
//! the fleet says to a start), `agent` (takes alerts), `gateway` (passes them on) and `view` (the whole, for people). Time is Redis's own throughout: the clocks of the hosts count for nothing. The
//! limits of each host (`journal`) hold beside all of it.

pub mod agent;
pub mod fault;
pub mod gateway;
pub mod hosts;
pub mod ledger;
mod link;
pub mod member;
pub mod names;
pub mod orders;
mod policy;
mod reply;
pub mod settings;
#[cfg(feature = "lab")]
#[cfg(test)]
mod simulation;
mod stream;
pub mod view;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    gateway::Gateway,
    member::Member,
    settings::Role,
    view::{View, Viewer},
};
use crate::{clock::Clock, config::Config, journal::Journal, metrics::Metrics, worker::Bell};

/// This process's parts in a fleet; without one, none of them.
pub struct Parts {
    /// Asked before each start.
    pub member: Option<Arc<Member>>,
    /// Passes alerts on.
    pub gateway: Option<Arc<Gateway>>,
    /// The fleet, as a gateway sees it.
    pub seen: watch::Receiver<Option<View>>,
}

/// What a part needs of the process that it is in.
pub struct Process<'a> {
    /// The configuration in force.
    pub live: &'a watch::Receiver<Arc<Config>>,
    /// The durable memory.
    pub journal: &'a Journal,
    /// The time.
    pub clock: &'a Clock,
    /// The counters.
    pub metrics: &'a Metrics,
    /// Wakes whoever waits for the end of a pause.
    pub bell: &'a Bell,
    /// What runs beside everything else.
    pub tasks: &'a TaskTracker,
    /// Set when the process is to end.
    pub stop: &'a CancellationToken,
}

/// Takes up its part in the fleet, where the configuration has one.
pub async fn join(config: &Config, role: Role, process: Process<'_>) -> Parts {
    let Process { live, journal, clock, metrics, bell, tasks, stop } = process;
    let (sender, seen) = watch::channel(None);
    let Some(settings) = &config.fleet else {
        // A pause that was heard of in a fleet which it has left would hold for ever.
        if let Err(error) = journal.pause_by_fleet(None, clock.now()).await {
            tracing::error!(%error, "the state cannot be written");
        }
        return Parts { member: None, gateway: None, seen };
    };
    metrics.fleet.begin(role);
    tracing::info!(host = %settings.host, %role, "in a fleet");
    let member = role.acts().then(|| {
        let (journal, clock, metrics) = (journal.clone(), clock.clone(), metrics.clone());
        let member =
            Arc::new(Member::new(settings.clone(), journal, clock, metrics, bell.clone(), live.clone()));
        tasks.spawn(Arc::clone(&member).run(stop.clone()));
        member
    });
    let gateway = role.routes().then(|| {
        let viewer = Viewer::new(settings.clone());
        let journal = (!role.acts()).then(|| journal.clone());
        tasks.spawn(viewer.watch(clock.clone(), metrics.clone(), journal, sender, stop.clone()));
        Arc::new(Gateway::new(settings.clone(), role, metrics.clone()))
    });
    Parts { member, gateway, seen }
}
