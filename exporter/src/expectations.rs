//! What must be true of this host, and whether it is: judged from what the collectors saw in the same scrape, never by
//! asking again. What cannot be judged is said to be unknown, which is neither met nor not met.
//!
//! The list is made by [`config`], a verdict by [`judge`], and what one look cannot show is kept in [`memory`].

pub mod config;
mod judge;
mod memory;

use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_host::metrics::{Block, Family, Renewed};

pub(crate) use self::memory::APART;
use self::memory::Memory;
pub use self::{config::Config, memory::Now};
use crate::{
    collectors::{self, systemd::UnitPattern},
    evidence::Evidence,
};

/// The name of it: the flag, the `collect[]` word and the `collector` label.
pub const NAME: &str = "expectations";

/// What is expected, and what was seen before.
#[derive(Debug)]
pub struct Expectations {
    list: Vec<Expectation>,
    memory: Mutex<Memory>,
    told: Renewed,
}

/// One thing that must be true.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expectation {
    /// The `expectation` label.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) bound: Bound,
    /// Names that do not count.
    pub(crate) except: Vec<String>,
    /// It stands in the configuration: where there is nothing to judge it by, that is said.
    pub(crate) is_asked_for: bool,
}

/// What an expectation is about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    FailedUnits,
    LoopingUnits,
    Running(UnitPattern),
    LoadState,
    UnhealthyContainers,
    Healthcheck,
    RestartsPerDay,
    LogRotation,
    DiskUsage,
    Inodes,
    BuildCache,
    RedisReady,
    Resolve,
    Environment,
    JournalSize,
}

/// What a value is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// It may be as large as this.
    AtMost(f64),
    /// It may be as small as this.
    AtLeast(f64),
}

/// What values and bounds are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// How many.
    Count,
    /// A part of a whole, 0 to 1.
    Ratio,
    /// Bytes.
    Bytes,
}

/// Whether something is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is.
    Met,
    /// It is not.
    NotMet,
    /// Nobody can tell now.
    Unknown,
}

/// One judgement.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The `expectation` label.
    pub name: String,
    /// For people.
    pub title: String,
    /// The judgement.
    pub state: State,
    /// What there is; `None` where nobody can tell.
    pub value: Option<f64>,
    /// What there may be.
    pub bound: Bound,
    /// What both are.
    pub measure: Measure,
    /// What it is about in particular: the units that have failed, the fullest filesystem, why nobody can tell.
    pub details: Vec<String>,
    /// It will be known soon.
    pub is_pending: bool,
}

impl Expectations {
    /// What this configuration expects.
    pub fn new(config: &collectors::Config) -> Self {
        Self { list: config::expectations(config), memory: Mutex::default(), told: Renewed::default() }
    }

    /// Judges what was seen. Expectations that nobody wrote down and that there is nothing here to judge by are left out.
    pub fn judge(&self, evidence: &Evidence, now: Now) -> Vec<Verdict> {
        // Nothing is left half done under this lock, whoever panicked while holding it.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.see(evidence, now);
        self.list.iter().filter_map(|expectation| judge::judge(expectation, evidence, &memory, now)).collect()
    }

    /// Verdicts as metrics.
    pub(crate) fn blocks(&self, verdicts: &[Verdict]) -> Vec<Arc<Block>> {
        self.told.blocks(families(verdicts))
    }
}

impl Kind {
    /// The `expectation` label: stable, and bounded by the configuration.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::FailedUnits => "failed_units",
            Self::LoopingUnits => "looping_units",
            Self::Running(pattern) => return format!("running:{pattern}"),
            Self::LoadState => "load_state",
            Self::UnhealthyContainers => "unhealthy_containers",
            Self::Healthcheck => "healthcheck",
            Self::RestartsPerDay => "restarts_per_day",
            Self::LogRotation => "log_rotation",
            Self::DiskUsage => "disk_usage",
            Self::Inodes => "inodes",
            Self::BuildCache => "build_cache",
            Self::RedisReady => "redis_ready",
            Self::Resolve => "resolve",
            Self::Environment => "environment",
            Self::JournalSize => "journal_size",
        }
        .to_owned()
    }

    /// For people.
    fn title(&self) -> String {
        match self {
            Self::FailedUnits => "failed units",
            Self::LoopingUnits => "looping units",
            Self::Running(pattern) => return format!("running {pattern}"),
            Self::LoadState => "watched units that do not load",
            Self::UnhealthyContainers => "unhealthy containers",
            Self::Healthcheck => "containers without a healthcheck",
            Self::RestartsPerDay => "restarts of a container a day",
            Self::LogRotation => "containers without log rotation",
            Self::DiskUsage => "disk usage",
            Self::Inodes => "inodes used",
            Self::BuildCache => "build cache",
            Self::RedisReady => "Redis not ready",
            Self::Resolve => "names that do not resolve as expected",
            Self::Environment => "variables that are not as expected",
            Self::JournalSize => "journal",
        }
        .to_owned()
    }

    fn measure(&self) -> Measure {
        match self {
            Self::DiskUsage | Self::Inodes => Measure::Ratio,
            Self::BuildCache | Self::JournalSize => Measure::Bytes,
            _ => Measure::Count,
        }
    }
}

impl Bound {
    /// The number.
    pub fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::AtLeast(value) => value,
        }
    }

    fn admits(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

fn families(verdicts: &[Verdict]) -> Vec<Family> {
    let mut met = Family::gauge(
        "evenkeel_expectation_met",
        "Whether what the configuration expects of this host is true; absent while nobody can tell.",
    );
    let mut value = Family::gauge(
        "evenkeel_expectation_value",
        "What there is: a number of things, a part of a whole, or bytes; absent while nobody can tell.",
    );
    let mut bound = Family::gauge(
        "evenkeel_expectation_bound",
        "What there may be: the most, and of expectations that begin with running the least.",
    );
    let mut unknown = Family::gauge(
        "evenkeel_expectation_unknown",
        "1 while nobody can tell whether the expectation is met, else 0.",
    );
    for verdict in verdicts {
        let labels = [("expectation", verdict.name.as_str())];
        let flag = |value: bool| f64::from(u8::from(value));
        if verdict.state != State::Unknown {
            met.sample(&labels, flag(verdict.state == State::Met));
            if let Some(seen) = verdict.value {
                value.sample(&labels, seen);
            }
        }
        bound.sample(&labels, verdict.bound.value());
        unknown.sample(&labels, flag(verdict.state == State::Unknown));
    }
    vec![met, value, bound, unknown]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Answer;

    fn expectations(text: &str) -> Expectations {
        Expectations::new(&collectors::Config::parse("c.yml", text).expect(text))
    }

    #[test]
    fn where_there_is_nothing_to_judge_by_only_what_was_asked_for_is_told() {
        let nothing = Evidence::default();
        assert_eq!(expectations("").judge(&nothing, Now::present()), []);
        let verdicts = expectations("expectations: {failed_units: {max: 0}}").judge(&nothing, Now::present());
        assert_eq!(verdicts.len(), 1, "{verdicts:?}");
        assert_eq!((verdicts[0].state, verdicts[0].value), (State::Unknown, None));
        assert_eq!(verdicts[0].details, ["its collector does not run"]);
    }

    #[test]
    fn a_source_that_fails_makes_it_unknown_and_neither_met_nor_not() {
        let evidence = Evidence { units: Answer::Unknown("no bus".into()), ..Evidence::default() };
        let expectations = expectations("");
        let verdicts = expectations.judge(&evidence, Now::present());
        assert!(verdicts.iter().all(|verdict| verdict.state == State::Unknown));
        let samples = |name: &str| -> Vec<(String, f64)> {
            let families = families(&verdicts);
            let family = families.iter().find(|family| family.name == name).expect(name);
            let told = |sample: &evenkeel_host::metrics::Sample| {
                let values: Vec<String> = sample.labels.iter().map(|(_, value)| value.clone()).collect();
                (values.concat(), sample.value)
            };
            family.samples.iter().map(told).collect()
        };
        assert_eq!(samples("evenkeel_expectation_met"), []);
        assert_eq!(samples("evenkeel_expectation_value"), []);
        let told = ["failed_units", "looping_units"];
        assert_eq!(samples("evenkeel_expectation_unknown"), told.map(|name| (name.to_owned(), 1.0)));
        assert_eq!(samples("evenkeel_expectation_bound"), told.map(|name| (name.to_owned(), 0.0)));
    }
}
