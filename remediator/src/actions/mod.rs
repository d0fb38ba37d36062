//! The hands: the only code that changes the host. One file an action; the list is in [`NAMES`] and `parse`.

#[cfg(test)]
mod bench;
mod build_cache_prune;
mod by_root;
mod collect_report;
mod container_log_truncate;
mod container_prune;
mod container_restart;
mod container_start;
mod daemon_reload;
mod disk;
mod engine;
mod golden;
mod hosts_alias;
mod image_prune;
mod journal_vacuum;
mod notify;
mod permission;
mod run_unit;
mod safe_file;
mod unit_job;
mod unit_reload;
mod unit_remove_reference;
mod unit_reset_failed;
mod unit_restart;
mod unit_restore;
mod unit_snapshot;
mod unit_start;
mod unit_stop;

use std::{borrow::Cow, fmt, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
pub use golden::Golden;
pub use permission::Permission;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, Error as _, MapAccess, Visitor,
        value::{self, MapDeserializer, StrDeserializer},
    },
};

use serde_json::{Map, Value};

use crate::{
    config::Config,
    fullness::Marks,
    notify::Notifier,
    observe::{Host, Observation},
    policy::Class,
    target::{Kind, Target},
};

/// Every action's name, as written in a rule's `steps`.
pub const NAMES: &[&str] = &[
    build_cache_prune::NAME,
    collect_report::NAME,
    container_log_truncate::NAME,
    container_prune::NAME,
    container_restart::NAME,
    container_start::NAME,
    daemon_reload::NAME,
    hosts_alias::NAME,
    image_prune::NAME,
    journal_vacuum::NAME,
    notify::NAME,
    run_unit::NAME,
    unit_reload::NAME,
    unit_remove_reference::NAME,
    unit_reset_failed::NAME,
    unit_restart::NAME,
    unit_restore::NAME,
    unit_snapshot::NAME,
    unit_start::NAME,
    unit_stop::NAME,
];

/// The action that takes a report.
pub const REPORT: &str = collect_report::NAME;
/// The actions that take root, for the helper that does them.
pub(crate) const CONTAINER_LOG_TRUNCATE: &str = container_log_truncate::NAME;
pub(crate) const DAEMON_RELOAD: &str = daemon_reload::NAME;
pub(crate) const HOSTS_ALIAS: &str = hosts_alias::NAME;
pub(crate) const JOURNAL_VACUUM: &str = journal_vacuum::NAME;
pub(crate) const UNIT_REMOVE_REFERENCE: &str = unit_remove_reference::NAME;
pub(crate) const UNIT_RESTORE: &str = unit_restore::NAME;
pub(crate) const UNIT_SNAPSHOT: &str = unit_snapshot::NAME;
pub(crate) use by_root::{Answer, start as start_helper};
pub(crate) use unit_remove_reference::take_back as take_back_an_interrupted_removal;
pub(crate) use unit_restore::take_back as take_back_an_interrupted_restore;

/// Whether a step is about golden snapshots, and so about what `snapshot` of the configuration says.
pub fn needs_snapshots(step: &Step) -> bool {
    [unit_snapshot::NAME, unit_restore::NAME].contains(&step.0.name())
}

/// Why a start is not made: the unit fails of something that no start cures. A person is needed.
pub const RESTART_CANNOT_CURE: &str = "restart_cannot_cure";

/// A step that takes a report.
pub fn report() -> Step {
    Step(Arc::new(collect_report::CollectReport::default()))
}

/// What the actions that are nothing without parameters can be done about.
const WITH_PARAMETERS: &[(&str, &[Kind])] = &[
    (container_log_truncate::NAME, &[Kind::Filesystem]),
    (hosts_alias::NAME, &[Kind::Hostname]),
    (journal_vacuum::NAME, &[Kind::Filesystem]),
    (run_unit::NAME, &Kind::ALL),
    (unit_remove_reference::NAME, &[Kind::Unit]),
];

/// The names of the actions that can be done about such a thing.
pub fn fitting(kind: Kind) -> Vec<&'static str> {
    let fits = |name: &&str| match WITH_PARAMETERS.iter().find(|(known, _)| known == name) {
        Some((_, kinds)) => kinds.contains(&kind),
        None => parse::<value::Error>(name, NoParameters).is_ok_and(|step| step.0.fits(kind)),
    };
    NAMES.iter().copied().filter(fits).collect()
}

/// The action of this name with its parameters.
fn parse<E: serde::de::Error>(name: &str, parameters: impl Parameters<E>) -> Result<Step, E> {
    Ok(Step(match name {
        build_cache_prune::NAME => Arc::new(parameters.read::<build_cache_prune::BuildCachePrune>()?),
        collect_report::NAME => Arc::new(parameters.read::<collect_report::CollectReport>()?),
        container_log_truncate::NAME => {
            Arc::new(parameters.read::<container_log_truncate::ContainerLogTruncate>()?)
        }
        container_prune::NAME => Arc::new(parameters.read::<container_prune::ContainerPrune>()?),
        container_restart::NAME => Arc::new(parameters.read::<container_restart::ContainerRestart>()?),
        container_start::NAME => Arc::new(parameters.read::<container_start::ContainerStart>()?),
        daemon_reload::NAME => Arc::new(parameters.read::<daemon_reload::DaemonReload>()?),
        hosts_alias::NAME => Arc::new(parameters.read::<hosts_alias::HostsAlias>()?),
        image_prune::NAME => Arc::new(parameters.read::<image_prune::ImagePrune>()?),
        journal_vacuum::NAME => Arc::new(parameters.read::<journal_vacuum::JournalVacuum>()?),
        notify::NAME => Arc::new(parameters.read::<notify::Notify>()?),
        run_unit::NAME => Arc::new(parameters.read::<run_unit::RunUnit>()?),
        unit_reload::NAME => Arc::new(parameters.read::<unit_reload::UnitReload>()?),
        unit_remove_reference::NAME => {
            Arc::new(parameters.read::<unit_remove_reference::UnitRemoveReference>()?)
        }
        unit_reset_failed::NAME => Arc::new(parameters.read::<unit_reset_failed::UnitResetFailed>()?),
        unit_restart::NAME => Arc::new(parameters.read::<unit_restart::UnitRestart>()?),
        unit_restore::NAME => Arc::new(parameters.read::<unit_restore::UnitRestore>()?),
        unit_snapshot::NAME => Arc::new(parameters.read::<unit_snapshot::UnitSnapshot>()?),
        unit_start::NAME => Arc::new(parameters.read::<unit_start::UnitStart>()?),
        unit_stop::NAME => Arc::new(parameters.read::<unit_stop::UnitStop>()?),
        unknown => return Err(E::unknown_variant(unknown, NAMES)),
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

    /// Whether such a state is what it is for. A rule about units or containers is needed when one of its steps is for
    /// what is seen; one about filesystems says itself when it is.
    fn is_for(&self, seen: &Observation) -> bool {
        seen.is_unwell()
    }

    /// Whether it only makes way for the steps after it: then those are not held up until the target might be well.
    fn prepares(&self) -> bool {
        false
    }

    /// Whether doing it takes along what depends on the target. Not where nothing is restarted, or the check itself counts
    /// what is taken along.
    fn takes_along(&self) -> bool {
        self.class() == Class::S2
    }

    /// How long it may take for whoever does it; after that what it did is unknown. See [`Step::patience`].
    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// The exact calls, for the plan and the audit.
    fn plan(&self, target: &Target) -> String;

    /// What must be allowed to a remediator that is not root, for a target of this kind, besides looking.
    fn permissions(&self, kind: Kind) -> Vec<Permission>;

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
    /// What is configured for all rules.
    pub config: Arc<Config>,
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
    /// The marks below which a filesystem is well.
    pub done_below: Option<Marks>,
}

/// Whether a step makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It may help.
    Go,
    /// It may help, and frees so many bytes at most.
    Frees(u64),
    /// It may help, and changes what is written on this host: the first line says what, for everybody who is told; the
    /// lines after it say how, for those on the host. For the plan, and for whoever is to approve of it.
    Changes(String),
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
    /// The host is at something that excludes it, and will be done with that: nothing was done, it may be tried again.
    #[error("{0}")]
    Busy(String),
    /// No answer: it may have happened.
    #[error("{0}")]
    Unknown(String),
}

/// An action as configured. Written as its name, or as a map of its name to its parameters.
#[derive(Debug, Clone)]
pub struct Step(pub Arc<dyn Action>);

/// How much longer than a helper may take its answer is waited for: it has to be started, to find out what is to be done,
/// and what it has begun and does not end well is taken back.
const HELPER_MARGIN: Duration = Duration::from_secs(60);

impl Step {
    /// How long its answer is waited for on a target of this kind. Whoever has a helper do it waits longer than the helper
    /// does, so that one that is late still says itself what it did.
    pub(crate) fn patience(&self, kind: Kind) -> Duration {
        self.0.timeout() + if by_root::is_root() { Duration::ZERO } else { self.margin(kind) }
    }

    fn margin(&self, kind: Kind) -> Duration {
        let is_helper = |permission: &Permission| matches!(permission, Permission::Helper(_));
        // What only observes asks a helper in passing, and not for long.
        let is_by_helper = self.0.class().acts() && self.0.permissions(kind).iter().any(is_helper);
        if is_by_helper { HELPER_MARGIN } else { Duration::ZERO }
    }
}

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
    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, E>;
}

struct NoParameters;

impl<E: serde::de::Error> Parameters<E> for NoParameters {
    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, E> {
        let none = std::iter::empty::<(StrDeserializer<'_, E>, StrDeserializer<'_, E>)>();
        T::deserialize(MapDeserializer::new(none))
    }
}

struct MapParameters<'a, A>(&'a mut A);

impl<'de, A: MapAccess<'de>> Parameters<A::Error> for MapParameters<'_, A> {
    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, A::Error> {
        self.0.next_value()
    }
}

/// An action's name, or a map of one name to its parameters.
impl JsonSchema for Step {
    fn schema_name() -> Cow<'static, str> {
        "Step".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (mut bare, mut with_parameters) = (Vec::new(), Map::new());
        for name in NAMES {
            let mut schema = None;
            // Only what the parameters are is wanted here; there are none to make an action of.
            drop(parse::<value::Error>(name, Described { generator: &mut *generator, schema: &mut schema }));
            with_parameters.extend(schema.map(|schema| ((*name).to_owned(), schema)));
            if parse::<value::Error>(name, NoParameters).is_ok() {
                bare.push(*name);
            }
        }
        json_schema!({
            "oneOf": [
                {"type": "string", "enum": bare},
                {
                    "type": "object",
                    "properties": with_parameters,
                    "additionalProperties": false,
                    "minProperties": 1,
                    "maxProperties": 1
                }
            ]
        })
    }
}

/// Takes down what an action's parameters are, and gives none.
struct Described<'a> {
    generator: &'a mut SchemaGenerator,
    schema: &'a mut Option<Value>,
}

impl<E: serde::de::Error> Parameters<E> for Described<'_> {
    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, E> {
        *self.schema = Some(self.generator.subschema_for::<T>().to_value());
        Err(E::custom("there are no parameters here"))
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_host::config::parse as yaml;

    use super::*;

    /// Every action with its smallest parameters, and its class. The class is part of the contract: a change here is a
    /// change of what a deletion policy lets through.
    const CLASSES: &[(&str, Class)] = &[
        ("build_cache_prune", Class::D1),
        ("build_cache_prune: {all: true}", Class::D1),
        ("collect_report", Class::S0),
        ("container_log_truncate: {containers: [shop_*]}", Class::D2),
        ("container_prune", Class::D2),
        ("container_restart", Class::S2),
        ("container_start", Class::S2),
        ("daemon_reload", Class::S1),
        ("hosts_alias: {address: 127.0.0.1}", Class::S2),
        ("hosts_alias: {absent: true}", Class::S2),
        ("image_prune", Class::D1),
        ("image_prune: {unused: true}", Class::D2),
        ("journal_vacuum: {keep_time: 7d}", Class::D2),
        ("notify", Class::S0),
        ("run_unit: {name: tidy}", Class::S2),
        ("run_unit: {name: tidy, class: D1}", Class::D1),
        ("run_unit: {name: tidy, class: D2}", Class::D2),
        ("unit_reload", Class::S2),
        ("unit_remove_reference: {from: [shop-*]}", Class::S2),
        ("unit_reset_failed", Class::S1),
        ("unit_restart", Class::S2),
        ("unit_restore", Class::S2),
        ("unit_snapshot", Class::S1),
        ("unit_start", Class::S2),
        ("unit_stop", Class::S2),
    ];

    fn read(text: &str) -> Step {
        yaml::<Vec<Step>>("t.yml", &format!("- {text}\n")).unwrap().remove(0)
    }

    #[test]
    fn classes_are_what_the_documentation_says() {
        for (step, expected) in CLASSES {
            assert_eq!(read(step).0.class(), *expected, "{step}");
        }
    }

    #[test]
    fn every_name_is_an_action_of_that_name_and_has_a_class() {
        let mut named: Vec<&str> = CLASSES.iter().map(|(step, _)| read(step).0.name()).collect();
        named.dedup();
        assert_eq!(named, NAMES);
    }

    #[test]
    fn a_helper_has_less_time_than_whoever_waits_for_it() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        let mut seen = 0;
        for (step, _) in CLASSES {
            let step = read(step);
            let kind = Kind::ALL.into_iter().find(|kind| step.0.fits(*kind)).unwrap();
            let acts = step.0.class().acts();
            let helper = step.0.permissions(kind).into_iter().find_map(|permission| match permission {
                Permission::Helper(template) if acts => Some(template),
                _ => None,
            });
            let Some(template) = helper else {
                assert_eq!(step.margin(kind), Duration::ZERO, "{step:?}");
                continue;
            };
            seen += 1;
            assert!(step.margin(kind) >= Duration::from_secs(30), "{step:?}");
            // And systemd ends neither before it has given up by itself.
            let text = std::fs::read_to_string(folder.join(template)).unwrap();
            let limit = text.lines().find_map(|line| line.strip_prefix("TimeoutStartSec=")).unwrap();
            let limit: Duration = match limit.strip_suffix("min") {
                Some(minutes) => Duration::from_secs(60 * minutes.parse::<u64>().unwrap()),
                None => Duration::from_secs(limit.parse().unwrap()),
            };
            assert!(limit > step.0.timeout(), "{template}: {limit:?}");
        }
        assert!(seen >= 7, "{seen}");
    }

    #[test]
    fn only_what_restarts_others_by_restarting_its_target_is_held_to_the_blast_radius() {
        for (step, class) in CLASSES {
            let counts_itself = ["unit_restore", "unit_remove_reference"].contains(&read(step).0.name());
            assert_eq!(read(step).0.takes_along(), *class == Class::S2 && !counts_itself, "{step}");
        }
    }

    #[test]
    fn what_fits_is_what_the_actions_themselves_say() {
        for kind in Kind::ALL {
            let mut fit: Vec<&str> = CLASSES
                .iter()
                .map(|(step, _)| read(step))
                .filter(|step| step.0.fits(kind))
                .map(|step| step.0.name())
                .collect();
            fit.dedup();
            assert_eq!(fitting(kind), fit, "{kind:?}");
        }
    }

    #[test]
    fn every_action_has_its_example() {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/remediator.yml");
        let text = std::fs::read_to_string(shipped).unwrap();
        for name in NAMES {
            let is_example = |line: &str| {
                line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|word| word == *name)
                    && (line.contains("- ") || line.contains("steps:"))
            };
            assert!(text.lines().any(is_example), "packaging/remediator.yml has no example of {name}");
        }
    }

    #[test]
    fn no_policy_lets_more_through_than_it_says() {
        use crate::policy::Deletion;
        for (step, class) in CLASSES {
            let allowed = |policy: Deletion| policy.allows(read(step).0.class());
            let deletes = matches!(class, Class::D1 | Class::D2);
            assert_eq!(allowed(Deletion::None), !deletes, "{step}");
            assert_eq!(allowed(Deletion::Cache), *class != Class::D2, "{step}");
            assert!(allowed(Deletion::Data), "{step}");
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
            ("- unit_start: {despite: [bad_luck]}", "unknown value `bad_luck`: expected one of"),
            ("- 7", "an action's name or {name: {parameters}}"),
            ("- {}", "a step names no action"),
        ] {
            let error = yaml::<Vec<Step>>("t.yml", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
