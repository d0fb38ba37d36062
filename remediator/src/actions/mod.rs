//! The hands: the only code that changes the host. One file an action; the list is in [`NAMES`] and `parse`.

mod build_cache_prune;
mod collect_report;
mod container_restart;
mod notify;
mod unit_reset_failed;
mod unit_restart;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, Error as _, MapAccess, Visitor,
        value::{self, MapDeserializer, StrDeserializer},
    },
};

use crate::{
    notify::Notifier,
    observe::{Host, Observation},
    policy::Class,
    target::{Kind, Target},
};

/// Every action's name, as written in a rule's `steps`.
pub const NAMES: [&str; 6] = [
    build_cache_prune::NAME,
    collect_report::NAME,
    container_restart::NAME,
    notify::NAME,
    unit_reset_failed::NAME,
    unit_restart::NAME,
];

/// The action that takes a report.
pub const REPORT: &str = collect_report::NAME;

/// A step that takes a report.
pub fn report() -> Step {
    Step(Arc::new(collect_report::CollectReport::default()))
}

/// The names of the actions that can be done about such a thing.
pub fn fitting(kind: Kind) -> Vec<&'static str> {
    let fits = |name: &&str| parse::<value::Error>(name, NoParameters).is_ok_and(|step| step.0.fits(kind));
    NAMES.into_iter().filter(fits).collect()
}

/// The action of this name with its parameters.
fn parse<E: serde::de::Error>(name: &str, parameters: impl Parameters<E>) -> Result<Step, E> {
    Ok(Step(match name {
        build_cache_prune::NAME => Arc::new(parameters.read::<build_cache_prune::BuildCachePrune>()?),
        collect_report::NAME => Arc::new(parameters.read::<collect_report::CollectReport>()?),
        container_restart::NAME => Arc::new(parameters.read::<container_restart::ContainerRestart>()?),
        notify::NAME => Arc::new(parameters.read::<notify::Notify>()?),
        unit_reset_failed::NAME => Arc::new(parameters.read::<unit_reset_failed::UnitResetFailed>()?),
        unit_restart::NAME => Arc::new(parameters.read::<unit_restart::UnitRestart>()?),
        unknown => return Err(E::unknown_variant(unknown, &NAMES)),
    }))
}

/// One way to make one thing well.
pub trait Action: Send + Sync + fmt::Debug {
    /// As written in a rule's `steps`.
    fn name(&self) -> &'static str;

    /// What it costs when it is wrong, with these parameters.
    fn class(&self) -> Class;

    /// Whether it can be done about such a thing.
    fn fits(&self, kind: Kind) -> bool;

    /// How long it may take; after that what it did is unknown.
    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// The exact calls, for the plan and the audit.
    fn plan(&self, target: &Target) -> String;

    /// Whether it may help on what was seen. Looks, changes nothing.
    ///
    /// # Errors
    /// When the host could not be asked; then it is not done.
    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>>;

    /// Does it.
    ///
    /// # Errors
    /// As [`Failure`] says: refused, busy, or unknown.
    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>>;
}

/// One step on one target, with all that an action may use.
#[derive(Clone)]
pub struct Job {
    /// The host's sources, for looking and for the calls.
    pub host: Host,
    /// Where `notify` sends to.
    pub notifier: Notifier,
    /// Where reports are kept.
    pub reports: PathBuf,
    /// The remediation's number.
    pub id: i64,
    /// The rule's name.
    pub rule: String,
    /// What it is about; for a unit by its canonical name.
    pub target: Target,
    /// What was seen just before.
    pub seen: Observation,
    /// How much must be freed until it is well, in bytes; for filesystems.
    pub deficit_bytes: Option<u64>,
}

/// Whether a step makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It may help.
    Go,
    /// It would not, or must not: the word is a metric label, the detail for people. The next step is tried.
    Skip(&'static str, String),
}

/// What an action did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// For people.
    pub detail: String,
    /// What the API says it freed, in bytes.
    pub claimed_freed_bytes: Option<u64>,
}

/// Why an action did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The host said no: nothing was done.
    #[error("{0}")]
    Refused(String),
    /// No answer: it may have happened.
    #[error("{0}")]
    Unknown(String),
}

/// An action as configured. Written as its name, or as a map of its name to its parameters.
#[derive(Debug, Clone)]
pub struct Step(pub Arc<dyn Action>);

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StepVisitor)
    }
}

struct StepVisitor;

impl<'de> Visitor<'de> for StepVisitor {
    type Value = Step;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an action's name or {{name: {{parameters}}}}, one of {}", NAMES.join(", "))
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Step, E> {
        parse(name, NoParameters)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Step, A::Error> {
        let name: String = map.next_key()?.ok_or_else(|| A::Error::custom("a step names no action"))?;
        let step = parse(&name, MapParameters(&mut map))?;
        match map.next_key::<String>()? {
            None => Ok(step),
            Some(second) => Err(A::Error::custom(format!(
                "one step names two actions, `{name}` and `{second}`: write a list item for each"
            ))),
        }
    }
}

/// Where an action's parameters come from.
trait Parameters<E> {
    fn read<T: DeserializeOwned>(self) -> Result<T, E>;
}

struct NoParameters;

impl<E: serde::de::Error> Parameters<E> for NoParameters {
    fn read<T: DeserializeOwned>(self) -> Result<T, E> {
        let none = std::iter::empty::<(StrDeserializer<'_, E>, StrDeserializer<'_, E>)>();
        T::deserialize(MapDeserializer::new(none))
    }
}

struct MapParameters<'a, A>(&'a mut A);

impl<'de, A: MapAccess<'de>> Parameters<A::Error> for MapParameters<'_, A> {
    fn read<T: DeserializeOwned>(self) -> Result<T, A::Error> {
        self.0.next_value()
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_host::config::parse as yaml;

    use super::*;

    #[test]
    fn every_name_is_an_action_of_that_name() {
        for name in NAMES {
            let steps: Vec<Step> = yaml("t.yml", &format!("- {name}\n- {name}: {{}}\n")).unwrap();
            assert!(steps.iter().all(|step| step.0.name() == name), "{name}");
        }
    }

    /// The class is part of the contract: a change here is a change of what a deletion policy lets through.
    #[test]
    fn classes_are_what_the_documentation_says() {
        let class = |yaml_text: &str| yaml::<Vec<Step>>("t.yml", yaml_text).unwrap()[0].0.class();
        for (step, expected) in [
            ("- collect_report", Class::S0),
            ("- notify", Class::S0),
            ("- unit_reset_failed", Class::S1),
            ("- unit_restart", Class::S2),
            ("- container_restart", Class::S2),
            ("- build_cache_prune", Class::D1),
            ("- build_cache_prune: {all: true}", Class::D1),
        ] {
            assert_eq!(class(step), expected, "{step}");
        }
    }

    #[test]
    fn bad_steps_say_what_they_should_be() {
        for (text, expected) in [
            ("- reboot", "unknown value `reboot`: expected one of"),
            ("- unit_restart: {now: true}", "unknown key"),
            (
                "- {unit_restart: {}, notify: {}}",
                "one step names two actions, `unit_restart` and `notify`: write a list item for each",
            ),
            ("- 7", "an action's name or {name: {parameters}}"),
            ("- {}", "a step names no action"),
        ] {
            let error = yaml::<Vec<Step>>("t.yml", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
