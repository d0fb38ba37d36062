//! What the remediator says of itself. Events are counted as they happen; what the journal knows is read from it at
//! each scrape. Labels are bounded: rules, actions, classes, outcomes, reasons; never a target.

mod fleet;
mod observed;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

pub use self::{
    fleet::{FleetMetrics, of_fleet},
    observed::observed,
};
use crate::{
    admission::Reason,
    api::{Asked, Fault, prometheus::Exporter},
    notify::Delivery,
    outcome::Outcome,
    pipeline::{Check, Report, State},
    rules::Rule,
    target::Kind,
};

type Labels = Vec<(&'static str, String)>;

/// Seconds in which looks and repairs end: a look in milliseconds, a restart in one second, a prune in minutes.
const SECONDS: [f64; 14] =
    [0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0];

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

/// The counters. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
    /// Those of a member of a fleet; told only where there is one.
    pub fleet: FleetMetrics,
}

struct Inner {
    requests: Family<Labels, Counter>,
    last_success: Gauge,
    received: Family<Labels, Counter>,
    ignored: Family<Labels, Counter>,
    remediations: Family<Labels, Counter>,
    decisions: Family<Labels, Counter>,
    probe_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    step_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    verify_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    freed: Family<Labels, Counter>,
    claimed: Family<Labels, Counter>,
    write_errors: Counter,
    degraded: Gauge,
    notifications: Family<Labels, Counter>,
    reload_succeeded: Gauge,
    reload_at: Gauge,
    api_requests: Family<Labels, Counter>,
    api_last_success: Family<Labels, Gauge>,
    exporter_up: Family<Labels, Gauge>,
    pipeline: Family<Labels, Gauge>,
    pipeline_at: Gauge,
    heard: Mutex<Heard>,
}

/// What was last heard from the servers that are asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// By the name of the server's key in the configuration; not there before the first question.
    pub(crate) apis: BTreeMap<&'static str, Asked>,
    /// Not there before the first look, and where no Prometheus is configured.
    pub(crate) exporter: Option<Exporter>,
}

impl Metrics {
    /// All counters. Those of what may come are there at 0, so that the first one shows as an increase.
    pub fn new(rules: &[Rule]) -> Self {
        let inner = Inner::new();
        for result in [Delivery::Delivered, Delivery::Failed, Delivery::Dropped] {
            let result = vec![("result", result.as_str().to_owned())];
            drop(inner.notifications.get_or_create(&result));
        }
        drop(inner.requests.get_or_create(&vec![("code", "200".to_owned())]));
        for status in ["firing", "resolved"] {
            drop(inner.received.get_or_create(&vec![("status", status.to_owned())]));
        }
        let metrics = Self { inner: Arc::new(inner), fleet: FleetMetrics::default() };
        metrics.know(rules);
        metrics
    }

    /// What these rules may come to, at 0 where it has not been counted yet.
    pub fn know(&self, rules: &[Rule]) {
        let inner = &self.inner;
        for rule in rules {
            let refused = Reason::ALL.into_iter().map(|reason| ("refused", reason.as_str()));
            for (decision, reason) in
                [("admitted", "none"), ("planned", "plan_mode")].into_iter().chain(refused)
            {
                drop(inner.decisions.get_or_create(&decision_labels(&rule.name, decision, reason)));
            }
            let kind = vec![("kind", rule.selector.kind.as_str().to_owned())];
            drop(inner.probe_seconds.get_or_create(&kind));
            if rule.acts() {
                drop(inner.verify_seconds.get_or_create(&vec![("rule", rule.name.clone())]));
            }
            for action in rule.steps.iter().map(|step| &step.0).filter(|action| action.class().acts()) {
                drop(inner.step_seconds.get_or_create(&vec![("action", action.name().to_owned())]));
                if action.fits(Kind::Filesystem) {
                    drop(inner.freed.get_or_create(&vec![("action", action.name().to_owned())]));
                    drop(inner.claimed.get_or_create(&vec![("action", action.name().to_owned())]));
                }
                for outcome in Outcome::ALL.into_iter().filter(|outcome| outcome.acted()) {
                    let labels = remediation(&rule.name, action.name(), action.class().as_str(), outcome);
                    drop(inner.remediations.get_or_create(&labels));
                }
            }
        }
    }

    /// A webhook request was answered.
    pub fn request(&self, code: u16) {
        self.inner.requests.get_or_create(&vec![("code", code.to_string())]).inc();
        if code == 200 {
            self.inner.last_success.set(jiff::Timestamp::now().as_second());
        }
    }

    /// An alert was in a delivery.
    pub fn received(&self, firing: bool) {
        let status = if firing { "firing" } else { "resolved" };
        self.inner.received.get_or_create(&vec![("status", status.to_owned())]).inc();
    }

    /// An alert means nothing here.
    pub fn ignored(&self, reason: &'static str) {
        self.inner.ignored.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    /// It was decided whether to act.
    pub fn decision(&self, rule: &str, decision: &str, reason: &str) {
        self.inner.decisions.get_or_create(&decision_labels(rule, decision, reason)).inc();
    }

    /// A remediation has an outcome.
    pub fn ended(&self, rule: &str, action: &str, class: &str, outcome: Outcome) {
        self.inner.remediations.get_or_create(&remediation(rule, action, class, outcome)).inc();
    }

    /// Looking at a target of this kind took so long.
    pub fn probe_took(&self, kind: Kind, elapsed: Duration) {
        self.inner
            .probe_seconds
            .get_or_create(&vec![("kind", kind.as_str().to_owned())])
            .observe(elapsed.as_secs_f64());
    }

    /// An action took so long.
    pub fn step_took(&self, action: &'static str, elapsed: Duration) {
        self.inner
            .step_seconds
            .get_or_create(&vec![("action", action.to_owned())])
            .observe(elapsed.as_secs_f64());
    }

    /// It took so long from the end of the action until the target counted as well.
    pub fn verified(&self, rule: &str, elapsed: Duration) {
        self.inner
            .verify_seconds
            .get_or_create(&vec![("rule", rule.to_owned())])
            .observe(elapsed.as_secs_f64());
    }

    /// An action freed space, in bytes: as the API claims, and as the filesystem says.
    pub fn freed(&self, action: &'static str, claimed: Option<i64>, measured: Option<i64>) {
        let add = |counter: &Family<Labels, Counter>, bytes: Option<i64>| {
            // A counter only rises; that less was available afterwards is in the audit.
            if let Some(bytes) = bytes.and_then(|bytes| u64::try_from(bytes).ok()) {
                counter.get_or_create(&vec![("action", action.to_owned())]).inc_by(bytes);
            }
        };
        add(&self.inner.claimed, claimed);
        add(&self.inner.freed, measured);
    }

    /// The state could not be written.
    pub fn state_write_failed(&self) {
        self.inner.write_errors.inc();
    }

    /// Whether the state lies in its fallback.
    pub fn state_degraded(&self, degraded: bool) {
        self.inner.degraded.set(i64::from(degraded));
    }

    /// A message was delivered to one receiver, or will not be.
    pub fn notification(&self, result: Delivery) {
        self.inner.notifications.get_or_create(&vec![("result", result.as_str().to_owned())]).inc();
    }

    /// The configuration was read: at the start, or again; whether the new one is in force.
    pub fn reloaded(&self, succeeded: bool) {
        self.inner.reload_succeeded.set(i64::from(succeeded));
        if succeeded {
            self.inner.reload_at.set(jiff::Timestamp::now().as_second());
        }
    }

    /// Whether the last reading of the configuration was good, and when the one in force was read, in seconds since
    /// 1970.
    pub(crate) fn reloads(&self) -> (bool, i64) {
        (self.inner.reload_succeeded.get() == 1, self.inner.reload_at.get())
    }

    /// Alertmanager or Prometheus was asked; with why there was no answer.
    pub fn asked(&self, api: &'static str, fault: Option<&Fault>) {
        let now = jiff::Timestamp::now();
        let mut heard = self.hear();
        let asked = heard.apis.entry(api).or_default();
        asked.at_ms = now.as_millisecond();
        asked.fault = fault.map(ToString::to_string);
        if fault.is_none() {
            asked.answered_ms = Some(asked.at_ms);
        }
        drop(heard);
        let api = ("api", api.to_owned());
        let outcome = ("outcome", fault.map_or("success", Fault::as_str).to_owned());
        self.inner.api_requests.get_or_create(&vec![api.clone(), outcome]).inc();
        if fault.is_none() {
            self.inner.api_last_success.get_or_create(&vec![api]).set(now.as_second());
        }
    }

    /// What was last heard from the servers that are asked.
    pub(crate) fn heard(&self) -> Heard {
        self.hear().clone()
    }

    fn hear(&self) -> MutexGuard<'_, Heard> {
        // Whoever panicked while holding it left whole values.
        self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often that was so.
    #[cfg(test)]
    pub(crate) fn times_asked(&self, api: &str, outcome: &str) -> u64 {
        let labels = vec![("api", api.to_owned()), ("outcome", outcome.to_owned())];
        self.inner.api_requests.get_or_create(&labels).get()
    }

    /// What Prometheus knows of this host's exporter; nothing where no Prometheus is configured.
    pub fn exporter(&self, seen: Option<Exporter>) {
        self.hear().exporter = seen;
        let up = match seen {
            Some(Exporter::Up) => 1,
            Some(Exporter::Down | Exporter::Absent) => 0,
            Some(Exporter::Unknown) | None => return self.inner.exporter_up.clear(),
        };
        self.inner.exporter_up.get_or_create(&Vec::new()).set(up);
    }

    /// What was found of the way that alerts come; none where nothing is configured to be asked about it.
    pub fn pipeline(&self, report: Option<&Report>) {
        let Some(report) = report else {
            self.inner.pipeline_at.set(0);
            return self.inner.pipeline.clear();
        };
        self.inner.pipeline_at.set(report.at_ms / 1000);
        for check in Check::ALL {
            for state in State::ALL {
                let labels = vec![("check", check.as_str().to_owned()), ("state", state.as_str().to_owned())];
                let is = report.state(check) == state;
                self.inner.pipeline.get_or_create(&labels).set(i64::from(is));
            }
        }
    }

    /// How often that was so.
    #[cfg(test)]
    pub(crate) fn notifications(&self, result: Delivery) -> u64 {
        self.inner.notifications.get_or_create(&vec![("result", result.as_str().to_owned())]).get()
    }

    /// Adds the counters to one scrape's registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("evenkeel_remediator");
        let this = &self.inner;
        registry.register(
            "webhook_requests",
            "Webhook requests answered, by HTTP status code",
            this.requests.clone(),
        );
        registry.register(
            "webhook_last_success_timestamp_seconds",
            "When a delivery was last accepted, 0 before the first",
            this.last_success.clone(),
        );
        registry.register("alerts_received", "Alerts in accepted deliveries", this.received.clone());
        registry.register(
            "alerts_ignored",
            "Alerts that mean nothing on this host, by reason",
            this.ignored.clone(),
        );
        registry.register(
            "remediations",
            "Remediations ended, by rule, last action and its class, and outcome",
            this.remediations.clone(),
        );
        registry.register("decisions", "Whether to act, and why not", this.decisions.clone());
        registry.register(
            "probe_duration_seconds",
            "Duration of looking at a target before something is decided about it",
            this.probe_seconds.clone(),
        );
        registry.register("step_duration_seconds", "Duration of actions", this.step_seconds.clone());
        registry.register(
            "verify_duration_seconds",
            "From the end of an action until its target had been well for the hold time",
            this.verify_seconds.clone(),
        );
        registry.register("freed_bytes", "Bytes freed, measured on the filesystem", this.freed.clone());
        registry.register("claimed_freed_bytes", "Bytes freed, as the API says", this.claimed.clone());
        registry.register(
            "state_write_errors",
            "Times the state could not be written",
            this.write_errors.clone(),
        );
        registry.register(
            "state_degraded",
            "Whether the state lies in memory because its directory cannot be written",
            this.degraded.clone(),
        );
        registry.register(
            "notifications",
            "Messages to receivers, by what became of them",
            this.notifications.clone(),
        );
        registry.register(
            "config_last_reload_successful",
            "Whether the configuration that was read last is in force",
            this.reload_succeeded.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read",
            this.reload_at.clone(),
        );
        registry.register(
            "api_requests",
            "Questions to Alertmanager and Prometheus, by what came of them",
            this.api_requests.clone(),
        );
        registry.register(
            "api_last_success_timestamp_seconds",
            "When Alertmanager or Prometheus last answered",
            this.api_last_success.clone(),
        );
        registry.register(
            "exporter_up",
            "Whether Prometheus scrapes this host's exporter, where it says",
            this.exporter_up.clone(),
        );
        registry.register(
            "pipeline_check",
            "What a check of the way that alerts come here found last",
            this.pipeline.clone(),
        );
        registry.register(
            "pipeline_check_timestamp_seconds",
            "When that was last checked, 0 when it was not",
            this.pipeline_at.clone(),
        );
        self.fleet.register(registry);
    }
}

impl Inner {
    fn new() -> Self {
        Self {
            requests: Family::default(),
            last_success: Gauge::default(),
            received: Family::default(),
            ignored: Family::default(),
            remediations: Family::default(),
            decisions: Family::default(),
            probe_seconds: Family::new_with_constructor(histogram),
            step_seconds: Family::new_with_constructor(histogram),
            verify_seconds: Family::new_with_constructor(histogram),
            freed: Family::default(),
            claimed: Family::default(),
            write_errors: Counter::default(),
            degraded: Gauge::default(),
            notifications: Family::default(),
            reload_succeeded: Gauge::default(),
            reload_at: Gauge::default(),
            api_requests: Family::default(),
            api_last_success: Family::default(),
            exporter_up: Family::default(),
            heard: Mutex::default(),
            pipeline: Family::default(),
            pipeline_at: Gauge::default(),
        }
    }
}

fn decision_labels(rule: &str, decision: &str, reason: &str) -> Labels {
    vec![("rule", rule.to_owned()), ("decision", decision.to_owned()), ("reason", reason.to_owned())]
}

fn remediation(rule: &str, action: &str, class: &str, outcome: Outcome) -> Labels {
    vec![
        ("rule", rule.to_owned()),
        ("action", action.to_owned()),
        ("class", class.to_owned()),
        ("outcome", outcome.as_str().to_owned()),
    ]
}
