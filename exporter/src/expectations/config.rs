//! The `expectations` section of the configuration: what must be true of this host. Every key may be missing: then the
//! default holds, which is made for a host that nobody has described.

use std::{borrow::Cow, fmt, marker::PhantomData};

use evenkeel_host::config::{Bytes, Ratio};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, value::MapAccessDeserializer},
};

use super::{Bound, Expectation, Kind};
use crate::collectors::{self, systemd::UnitPattern};

/// The largest filling that is well by default: the mark of the shipped alert.
const FULL: f64 = 0.85;

/// What must be true of this host.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Units that have failed.
    #[schemars(extend("default" = {"max": 0}))]
    pub failed_units: Setting<Count>,
    /// Services that are restarted again and again.
    #[schemars(extend("default" = {"max": 0}))]
    pub looping_units: Setting<Count>,
    /// How many units of a pattern run.
    pub running: Patterns,
    /// Watched units that are missing or whose files systemd cannot work with.
    pub load_state: Setting<Count>,
    /// Running containers whose healthcheck fails.
    #[schemars(extend("default" = {"max": 0}))]
    pub unhealthy_containers: Setting<Count>,
    /// Running containers that nothing checks.
    pub healthcheck: Setting<Count>,
    /// The most restarts of any container within 24 hours.
    pub restarts_per_day: Setting<Count>,
    /// Containers whose log may grow without end.
    pub log_rotation: Setting<Count>,
    /// How full the fullest filesystem is.
    #[schemars(extend("default" = {"max": "85%"}))]
    pub disk_usage: Setting<Share>,
    /// The same of its inodes.
    #[schemars(extend("default" = {"max": "85%"}))]
    pub inodes: Setting<Share>,
    /// What Docker's build cache takes.
    pub build_cache: Setting<Size>,
    /// Every Redis that is not ready.
    #[schemars(extend("default" = {"max": 0}))]
    pub redis_ready: Setting<Count>,
    /// Names that do not resolve as the section `resolve` expects.
    pub resolve: Setting<Count>,
    /// Variables that are not as the section `environment` expects.
    pub environment: Setting<Count>,
    /// What the journal takes.
    pub journal_size: Setting<Size>,
}

/// `off`, `required`, or a map.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Setting<T> {
    /// Nothing was said.
    #[default]
    Default,
    /// Nothing is expected.
    Off,
    /// This is.
    On(T),
}

/// How many of something there may be: `{max: 0}`, which is also what `required` means.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Count {
    /// So many are well.
    pub max: u32,
    /// Names that do not count.
    pub except: Vec<String>,
}

/// How full something may be: `{max: 85%}`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// This full is well.
    pub max: Ratio,
}

/// How large something may be: `{max: 1GB}`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// This large is well.
    pub max: Bytes,
}

/// Patterns of units, and how many of each must run.
#[derive(Debug, Default)]
pub struct Patterns(pub Vec<(UnitPattern, Running)>);

/// How many units must run: `{min: 12}`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// So few are well.
    pub min: u32,
}

/// What can stand behind a key besides `off`.
pub trait Expected: for<'de> Deserialize<'de> + JsonSchema {
    /// What `required` means, if anything.
    const REQUIRED: Option<fn() -> Self>;
    /// What a person could write.
    const EXAMPLE: &'static str;
}

impl Expected for Count {
    const REQUIRED: Option<fn() -> Self> = Some(Self::default);
    const EXAMPLE: &'static str = "off, required or {max: 0}";
}

impl Expected for Share {
    const REQUIRED: Option<fn() -> Self> = None;
    const EXAMPLE: &'static str = "off or {max: 85%}";
}

impl Expected for Size {
    const REQUIRED: Option<fn() -> Self> = None;
    const EXAMPLE: &'static str = "off or {max: 1GB}";
}

impl<'de, T: Expected> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOf(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EachOf)
    }
}

/// `off`, `required` where that means something, or a map.
impl<T: Expected> JsonSchema for Setting<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Setting_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let words = if T::REQUIRED.is_some() { vec!["off", "required"] } else { vec!["off"] };
        json_schema!({"oneOf": [{"type": "string", "enum": words}, generator.subschema_for::<T>()]})
    }
}

impl JsonSchema for Patterns {
    fn schema_name() -> Cow<'static, str> {
        "Patterns".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": generator.subschema_for::<Running>()})
    }
}

struct EachOf;

impl<'de> de::Visitor<'de> for EachOf {
    type Value = Patterns;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"name-*.service\": {min: 1}}")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Patterns, A::Error> {
        let mut patterns = Vec::new();
        while let Some(entry) = map.next_entry()? {
            patterns.push(entry);
        }
        Ok(Patterns(patterns))
    }
}

struct OneOf<T>(PhantomData<T>);

impl<'de, T: Expected> de::Visitor<'de> for OneOf<T> {
    type Value = Setting<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXAMPLE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Setting<T>, E> {
        match (text, T::REQUIRED) {
            ("off", _) => Ok(Setting::Off),
            ("required", Some(required)) => Ok(Setting::On(required())),
            _ => {
                let text: String = text.chars().take(64).collect();
                Err(E::custom(format_args!("`{}`: write {}", text.escape_debug(), T::EXAMPLE)))
            }
        }
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Setting<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Setting::On)
    }
}

impl<T: Clone> Setting<T> {
    /// What holds, and whether somebody asked for it.
    fn or(&self, default: Option<T>) -> Option<(T, bool)> {
        match self {
            Self::Default => default.map(|default| (default, false)),
            Self::Off => None,
            Self::On(setting) => Some((setting.clone(), true)),
        }
    }
}

/// The list of what is expected of this host, in the order in which it is told.
pub(super) fn expectations(config: &collectors::Config) -> Vec<Expectation> {
    let section = &config.expectations;
    let mut list = List::default();
    // Where something else in the configuration says what to look at, that is what is expected of it.
    let when = |is_configured: bool| is_configured.then(Count::default);
    list.count(Kind::FailedUnits, &section.failed_units, when(true));
    list.count(Kind::LoopingUnits, &section.looping_units, when(true));
    for (pattern, running) in &section.running.0 {
        list.add(Kind::Running(pattern.clone()), Bound::AtLeast(f64::from(running.min)), &[], true);
    }
    list.count(Kind::LoadState, &section.load_state, when(!config.systemd.watch.is_empty()));
    list.count(Kind::UnhealthyContainers, &section.unhealthy_containers, when(true));
    list.count(Kind::Healthcheck, &section.healthcheck, None);
    list.count(Kind::RestartsPerDay, &section.restarts_per_day, None);
    list.count(Kind::LogRotation, &section.log_rotation, None);
    list.share(Kind::DiskUsage, &section.disk_usage);
    list.share(Kind::Inodes, &section.inodes);
    list.size(Kind::BuildCache, &section.build_cache);
    list.count(Kind::RedisReady, &section.redis_ready, when(true));
    let some_address = config.resolve.iter().any(|entry| !entry.expect.is_empty());
    list.count(Kind::Resolve, &section.resolve, when(some_address));
    list.count(Kind::Environment, &section.environment, when(!config.environment.is_empty()));
    list.size(Kind::JournalSize, &section.journal_size);
    list.0
}

#[derive(Default)]
struct List(Vec<Expectation>);

impl List {
    fn add(&mut self, kind: Kind, bound: Bound, except: &[String], is_asked_for: bool) {
        let except = except.to_vec();
        self.0.push(Expectation { name: kind.name(), kind, bound, except, is_asked_for });
    }

    fn count(&mut self, kind: Kind, setting: &Setting<Count>, default: Option<Count>) {
        if let Some((count, is_asked_for)) = setting.or(default) {
            self.add(kind, Bound::AtMost(f64::from(count.max)), &count.except, is_asked_for);
        }
    }

    /// Expected of every host.
    fn share(&mut self, kind: Kind, setting: &Setting<Share>) {
        let setting = match setting {
            Setting::Default => Some((FULL, false)),
            Setting::Off => None,
            Setting::On(share) => Some((share.max.get(), true)),
        };
        if let Some((max, is_asked_for)) = setting {
            self.add(kind, Bound::AtMost(max), &[], is_asked_for);
        }
    }

    /// Expected only where somebody says how large is too large.
    fn size(&mut self, kind: Kind, setting: &Setting<Size>) {
        if let Some((size, is_asked_for)) = setting.or(None) {
            #[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
            self.add(kind, Bound::AtMost(size.max.get() as f64), &[], is_asked_for);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<Expectation> {
        expectations(&collectors::Config::parse("c.yml", text).expect(text))
    }

    fn names(text: &str) -> Vec<String> {
        of(text).into_iter().map(|expectation| expectation.name).collect()
    }

    #[test]
    fn something_is_expected_of_a_host_that_nobody_described() {
        assert_eq!(
            names(""),
            ["failed_units", "looping_units", "unhealthy_containers", "disk_usage", "inodes", "redis_ready"]
        );
        assert!(of("").iter().all(|expectation| !expectation.is_asked_for));
    }

    #[test]
    fn what_is_configured_is_expected_too() {
        let text = "systemd: {watch: [a.service]}\nresolve: [{host: a, expect: [127.0.0.1]}, {host: b}]\n\
                    environment: [{unit: a.service, expect: {A: b}}]\n";
        let names = names(text);
        for name in ["load_state", "resolve", "environment"] {
            assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
        }
        assert!(!self::names("resolve: [{host: b}]").iter().any(|name| name == "resolve"));
    }

    #[test]
    fn every_key_is_an_expectation_and_can_be_turned_off() {
        let counts = [
            "failed_units",
            "looping_units",
            "load_state",
            "unhealthy_containers",
            "healthcheck",
            "restarts_per_day",
            "log_rotation",
            "redis_ready",
            "resolve",
            "environment",
        ];
        for name in counts {
            assert!(
                names(&format!("expectations: {{{name}: required}}")).contains(&name.to_owned()),
                "{name}"
            );
            assert!(!names(&format!("expectations: {{{name}: off}}")).contains(&name.to_owned()), "{name}");
            let with = of(&format!("expectations: {{{name}: {{max: 3, except: [x]}}}}"));
            let expectation = with.iter().find(|expectation| expectation.name == name).expect(name);
            assert_eq!(
                (expectation.bound, &*expectation.except),
                (Bound::AtMost(3.0), &["x".to_owned()][..])
            );
            assert!(expectation.is_asked_for);
        }
        for (name, max, bound) in [
            ("disk_usage", "90%", 0.9),
            ("inodes", "50%", 0.5),
            ("build_cache", "1GB", 1e9),
            ("journal_size", "4GB", 4e9),
        ] {
            let with = of(&format!("expectations: {{{name}: {{max: {max}}}}}"));
            let expectation = with.iter().find(|expectation| expectation.name == name).expect(name);
            assert_eq!(expectation.bound, Bound::AtMost(bound));
            assert!(!names(&format!("expectations: {{{name}: off}}")).contains(&name.to_owned()), "{name}");
        }
        let running = of("expectations: {running: {'quantum-*.service': {min: 12}}}");
        let expectation =
            running.iter().find(|one| one.name == "running:quantum-*.service").expect("running");
        assert_eq!(expectation.bound, Bound::AtLeast(12.0));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_cure() {
        for (text, says) in [
            (
                "expectations: {failed_units: none}",
                "`expectations.failed_units`: `none`: write off, required or {max: 0}",
            ),
            ("expectations: {disk_usage: required}", "`required`: write off or {max: 85%}"),
            ("expectations: {disk_usage: {max: 85}}", "`85` is not a percentage"),
            ("expectations: {build_cache: {max: much}}", "`much` is not a size"),
            ("expectations: {failed_units: {max: -1}}", "a whole number"),
            ("expectations: {failed_units: {most: 1}}", "unknown key"),
            ("expectations: {failed_unit: off}", "did you mean `failed_units`?"),
            ("expectations: {running: {quantum: {min: 1}}}", "`quantum` is no unit name or glob"),
            ("expectations: {running: {'a*': {}}}", "missing key"),
        ] {
            let error = collectors::Config::parse("c.yml", text).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
