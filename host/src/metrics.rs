//! Metrics as values: made fresh from a snapshot at each look, so that nothing that vanished stays exported.
//! Not here: the text formats (`web::exposition`) and what any metric means (the collectors).

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// All samples of one metric name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// The exposed name; a counter's ends in `_total`.
    pub name: &'static str,
    /// One sentence. The encoder writes it raw: no backslash, no newline.
    pub help: &'static str,
    /// What the values are.
    pub kind: Kind,
    /// One for each label set.
    pub samples: Vec<Sample>,
}

/// The kinds evenkeel publishes from snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// May go up and down.
    Gauge,
    /// Only goes up, or restarts from zero.
    Counter,
}

/// One label set and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Names and values, in the order they are written.
    pub labels: Vec<(&'static str, String)>,
    /// In base units: seconds, bytes, ratios.
    pub value: f64,
}

impl Family {
    /// An empty gauge.
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Gauge, samples: Vec::new() }
    }

    /// An empty counter; `name` ends in `_total`.
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        debug_assert!(name.ends_with("_total"), "{name}: counters end in _total");
        Self { name, help, kind: Kind::Counter, samples: Vec::new() }
    }

    /// Adds one sample.
    pub fn sample(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.samples.push(Sample { labels, value });
    }

    /// Adds one sample of a point in time, in seconds since the epoch; nothing for a time that is not known.
    pub fn timestamp(&mut self, labels: &[(&'static str, &str)], time: Option<SystemTime>) {
        if let Some(since) = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
            self.sample(labels, since.as_secs_f64());
        }
    }

    /// The same family with one sample more; for families of one sample.
    #[must_use]
    pub fn with(mut self, labels: &[(&'static str, &str)], value: f64) -> Self {
        self.sample(labels, value);
        self
    }
}

/// Families as a prometheus-client collector: one family a name, samples sorted by labels, empty families left out.
#[derive(Debug)]
pub struct Snapshot {
    families: Vec<Family>,
    dropped: usize,
}

impl Snapshot {
    /// Joins families of one name, because a name described twice makes the whole answer invalid, and of samples with
    /// equal labels keeps the first.
    pub fn new(families: Vec<Family>) -> Self {
        let mut joined: Vec<Family> = Vec::with_capacity(families.len());
        let mut places: HashMap<&'static str, usize> = HashMap::new();
        for family in families.into_iter().filter(|family| !family.samples.is_empty()) {
            match places.get(family.name) {
                Some(&place) => joined[place].samples.extend(family.samples),
                None => {
                    places.insert(family.name, joined.len());
                    joined.push(family);
                }
            }
        }
        let mut dropped = 0;
        for family in &mut joined {
            let before = family.samples.len();
            family.samples.sort_by(|a, b| a.labels.cmp(&b.labels));
            family.samples.dedup_by(|later, first| later.labels == first.labels);
            dropped += before - family.samples.len();
        }
        Self { families: joined, dropped }
    }

    /// Adds a family whose name is not there yet.
    pub fn push(&mut self, family: Family) {
        debug_assert!(
            self.families.iter().all(|other| other.name != family.name),
            "{}: described twice",
            family.name
        );
        self.families.push(family);
    }

    /// How many samples were left out because another one had the same name and labels.
    pub fn dropped(&self) -> usize {
        self.dropped
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for family in &self.families {
            let (name, kind) = match family.kind {
                Kind::Gauge => (family.name, MetricType::Gauge),
                // The encoder writes the suffix itself.
                Kind::Counter => (family.name.trim_end_matches("_total"), MetricType::Counter),
            };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for sample in &family.samples {
                let labels: Vec<(&str, &str)> =
                    sample.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                // The encoder would write empty braces.
                if labels.is_empty() {
                    write(&mut metric, family.kind, sample.value)?;
                } else {
                    write(&mut metric.encode_family(&labels)?, family.kind, sample.value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(encoder: &mut MetricEncoder<'_>, kind: Kind, value: f64) -> Result<(), std::fmt::Error> {
    match kind {
        Kind::Gauge => encoder.encode_gauge(&value),
        Kind::Counter => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
    }
}

/// The standard `process_*` metrics of this process.
pub fn process() -> Vec<Family> {
    let Ok(mut system) = System::new() else { return Vec::new() };
    let pid = Pid::from_u32(std::process::id());
    let wanted = ProcessRefreshKind::nothing().with_memory().with_cpu();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
    let Some(process) = system.process(pid) else { return Vec::new() };

    let mut families = vec![
        Family::counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
            .with(&[], process.accumulated_cpu_time() as f64 / 1000.0),
        Family::gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
            .with(&[], process.start_time() as f64),
        Family::gauge("process_resident_memory_bytes", "Resident memory size in bytes.")
            .with(&[], process.memory() as f64),
        Family::gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")
            .with(&[], process.virtual_memory() as f64),
    ];
    if let Some(open) = process.open_files() {
        let family = Family::gauge("process_open_fds", "Number of open file descriptors.");
        families.push(family.with(&[], open as f64));
    }
    if let Some(limit) = process.open_files_limit() {
        let family = Family::gauge("process_max_fds", "Maximum number of open file descriptors.");
        families.push(family.with(&[], limit as f64));
    }
    families
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    fn encoded(snapshot: Snapshot) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(snapshot));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("encoding a snapshot cannot fail");
        out
    }

    #[test]
    fn samples_are_sorted_and_repeated_names_joined() {
        let mut state = Family::gauge("unit_state", "State.");
        state.sample(&[("name", "b"), ("state", "failed")], 0.0);
        state.sample(&[("name", "a"), ("state", "failed")], 1.0);
        let restarts = Family::counter("restart_total", "Restarts.").with(&[("name", "a")], 3.0);
        let again = Family::gauge("unit_state", "State.")
            .with(&[("name", "a"), ("state", "failed")], 7.0)
            .with(&[("name", "a"), ("state", "active")], 0.0);
        let alone = Family::gauge("alone", "Without labels.").with(&[], 1.5);
        let snapshot = Snapshot::new(vec![state, Family::gauge("empty", "Nothing."), restarts, again, alone]);
        assert_eq!(snapshot.dropped(), 1);
        assert_eq!(
            encoded(snapshot),
            "# HELP unit_state State.\n# TYPE unit_state gauge\n\
             unit_state{name=\"a\",state=\"active\"} 0.0\n\
             unit_state{name=\"a\",state=\"failed\"} 1.0\n\
             unit_state{name=\"b\",state=\"failed\"} 0.0\n\
             # HELP restart Restarts.\n# TYPE restart counter\nrestart_total{name=\"a\"} 3.0\n\
             # HELP alone Without labels.\n# TYPE alone gauge\nalone 1.5\n# EOF\n"
        );
    }

    #[test]
    fn hostile_label_values_stay_one_value() {
        let hostile = "a\"} 1\nforged_metric 2\n\\";
        let out = encoded(Snapshot::new(vec![Family::gauge("x", "X.").with(&[("name", hostile)], 1.0)]));
        assert_eq!(
            out,
            "# HELP x X.\n# TYPE x gauge\nx{name=\"a\\\"} 1\\nforged_metric 2\\n\\\\\"} 1.0\n# EOF\n"
        );
    }

    #[test]
    fn this_process_is_described() {
        let families = process();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name == name).expect(name);
            family.samples[0].value
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let age = now.as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
