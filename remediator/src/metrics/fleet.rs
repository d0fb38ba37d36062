//! What a member of a fleet and a gateway say of themselves and of the fleet. Of a host that has no fleet: nothing.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use evenkeel_host::{
    config::PromDuration,
    metrics::{Block, Family as Values},
};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Labels;
use crate::{
    fleet::{
        fault::{Fault, Kind},
        gateway::Passed,
        ledger::Heard,
        settings::Role,
        view::View,
    },
    policy::Class,
};

/// The counters of a fleet. Cloning shares them.
#[derive(Clone, Default)]
pub struct FleetMetrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    acts: AtomicBool,
    routes: AtomicBool,
    up: Gauge,
    gateway: Gauge,
    faults: Family<Labels, Counter>,
    routed: Family<Labels, Counter>,
    entries: Family<Labels, Counter>,
    late: Counter,
    alone: Family<Labels, Counter>,
    twin: Gauge,
    names_taken: Gauge,
    evicts: Gauge,
}

impl FleetMetrics {
    /// There is a fleet, and this is what is done in it: what may come is there at 0.
    pub fn begin(&self, role: Role) {
        let this = &self.0;
        this.acts.store(role.acts(), Ordering::Relaxed);
        this.routes.store(role.routes(), Ordering::Relaxed);
        this.gateway.set(i64::from(role.routes()));
        for kind in Kind::ALL {
            drop(this.faults.get_or_create(&vec![("reason", kind.as_str().to_owned())]));
        }
        for result in ["routed", "unclaimed"] {
            drop(this.routed.get_or_create(&vec![("result", result.to_owned())]));
        }
        for class in Class::ALL.into_iter().filter(|class| class.acts()) {
            for decision in ["went_on", "waits"] {
                drop(this.alone.get_or_create(&decided(class, decision)));
            }
        }
        for result in ["taken", "poisoned"] {
            drop(this.entries.get_or_create(&vec![("result", result.to_owned())]));
        }
    }

    /// Whether the fleet answered the last question.
    pub fn up(&self, up: bool) {
        self.0.up.set(i64::from(up));
    }

    /// The fleet could not be asked.
    pub fn fault(&self, fault: &Fault) {
        self.0.faults.get_or_create(&vec![("reason", fault.kind.as_str().to_owned())]).inc();
    }

    /// A delivery was passed on.
    pub fn routed(&self, passed: Passed) {
        for (result, count) in [("routed", passed.routed), ("unclaimed", passed.unclaimed)] {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.0.routed.get_or_create(&vec![("result", result.to_owned())]).inc_by(count);
        }
    }

    /// Entries of this host's stream were dealt with.
    pub fn entries(&self, taken: u64, poisoned: u64) {
        for (result, count) in [("taken", taken), ("poisoned", poisoned)] {
            self.0.entries.get_or_create(&vec![("result", result.to_owned())]).inc_by(count);
        }
    }

    /// A lease had run out when it was needed.
    pub fn late(&self) {
        self.0.late.inc();
    }

    /// The configuration decided, because nobody could be asked.
    pub fn alone(&self, class: Class, went_on: bool) {
        let decision = if went_on { "went_on" } else { "waits" };
        self.0.alone.get_or_create(&decided(class, decision)).inc();
    }

    /// What a heartbeat was answered.
    pub fn heard(&self, heard: &Heard) {
        self.0.twin.set(i64::from(heard.twin));
        self.0.names_taken.set(i64::try_from(heard.taken.len()).unwrap_or(i64::MAX));
    }

    /// Whether Redis throws keys away when it is full.
    pub fn evicts(&self, evicts: bool) {
        self.0.evicts.set(i64::from(evicts));
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let this = &self.0;
        let (acts, routes) = (this.acts.load(Ordering::Relaxed), this.routes.load(Ordering::Relaxed));
        if !acts && !routes {
            return;
        }
        registry.register(
            "fleet_up",
            "Whether the fleet's Redis answered the last question",
            this.up.clone(),
        );
        registry.register(
            "fleet_gateway",
            "Whether this passes alerts on to other hosts",
            this.gateway.clone(),
        );
        registry.register(
            "fleet_faults",
            "Questions to the fleet's Redis without an answer, by what was wrong",
            this.faults.clone(),
        );
        registry.register(
            "fleet_redis_evicts",
            "Whether the fleet's Redis throws keys away when it is full, budgets among them",
            this.evicts.clone(),
        );
        if routes {
            registry.register(
                "fleet_alerts_routed",
                "Alerts that this gateway has passed on, and those for hosts that no agent has claimed",
                this.routed.clone(),
            );
        }
        if !acts {
            return;
        }
        registry.register(
            "fleet_entries",
            "Alerts taken by way of Redis, and entries that were none",
            this.entries.clone(),
        );
        registry.register(
            "fleet_late",
            "Leases that had run out when they were needed: this host did not answer for too long",
            this.late.clone(),
        );
        registry.register(
            "fleet_lost_decisions",
            "What the configuration decided while the fleet could not be asked",
            this.alone.clone(),
        );
        registry.register(
            "fleet_twin",
            "Whether another process says that it is this host",
            this.twin.clone(),
        );
        registry.register(
            "fleet_names_taken",
            "Names of this host that another one has claimed before it",
            this.names_taken.clone(),
        );
    }
}

fn decided(class: Class, decision: &str) -> Labels {
    vec![("class", class.as_str().to_owned()), ("decision", decision.to_owned())]
}

/// What a gateway tells of the whole fleet.
pub fn of_fleet(view: &View) -> Block {
    let mut hosts = Values::gauge(
        "evenkeel_remediator_fleet_hosts",
        "Hosts of the fleet: all, without a heartbeat of late, with something in need, acting now",
    );
    for (state, count) in
        [("all", view.total), ("gone", view.gone), ("in_need", view.unwell), ("acting", view.acting)]
    {
        hosts.sample(&[("state", state)], number(count));
    }
    let mut left = Values::gauge(
        "evenkeel_remediator_fleet_budget_remaining",
        "Starts that a window of a fleet scope still admits",
    );
    for budget in &view.budgets {
        let window = PromDuration::new(std::time::Duration::from_millis(budget.window_ms)).to_string();
        left.sample(&[("scope", &budget.scope), ("window", &window)], number(budget.left()));
    }
    let mut families = vec![
        hosts,
        Values::gauge("evenkeel_remediator_fleet_acting_limit", "Hosts that may act at the same time")
            .with(&[], number(view.most)),
        left,
        Values::gauge(
            "evenkeel_remediator_fleet_stopped",
            "Whether so many hosts are gone or in need that none begins to act",
        )
        .with(&[], f64::from(u8::from(view.stopped))),
        Values::gauge(
            "evenkeel_remediator_fleet_unclaimed_hosts",
            "Hosts that alerts were for and no agent has claimed; 1000 are noted at most",
        )
        .with(&[], number(view.unclaimed_count)),
        Values::gauge(
            "evenkeel_remediator_fleet_memory_age_seconds",
            "Since when the fleet's Redis remembers starts: shorter windows than this are counted as full",
        )
        .with(&[], number(view.memory_ms.unwrap_or(0)) / 1000.0),
    ];
    if let Some(backlog) = &view.backlog {
        families.push(
            Values::gauge(
                "evenkeel_remediator_fleet_backlog_alerts",
                "Alerts in Redis that no agent has taken yet",
            )
            .with(&[], number(backlog.alerts)),
        );
    }
    Block::new(families)
}

#[expect(clippy::cast_precision_loss, reason = "counts and milliseconds are far below 2^53")]
fn number(value: u64) -> f64 {
    value as f64
}
