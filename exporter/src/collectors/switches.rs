//! The `collectors` section of the configuration: which collectors run, for those who keep everything in one file. Not here:
//! the flags, which win over it.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::names;

/// Collectors by name, and whether they run; those that are not named do.
#[derive(Debug, Default)]
pub struct Switches(BTreeMap<&'static str, bool>);

impl Switches {
    /// Whether the collector is switched off here.
    pub fn is_off(&self, collector: &str) -> bool {
        self.0.get(collector) == Some(&false)
    }
}

impl<'de> Deserialize<'de> for Switches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<Name, bool>::deserialize(deserializer)
            .map(|switches| Self(switches.into_iter().map(|(name, runs)| (name.0, runs)).collect()))
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name(&'static str);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = names();
        known.iter().find(|name| **name == text).copied().map(Self).ok_or_else(|| {
            let text: String = text.chars().take(64).collect();
            de::Error::custom(format_args!(
                "there is no collector `{}`: write one of {}",
                text.escape_debug(),
                known.join(", ")
            ))
        })
    }
}

impl JsonSchema for Switches {
    fn schema_name() -> Cow<'static, str> {
        "Switches".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let flag =
            |name: &'static str| (name.to_owned(), serde_json::json!({"type": "boolean", "default": true}));
        let properties: serde_json::Map<_, _> = names().into_iter().map(flag).collect();
        json_schema!({"type": "object", "properties": properties, "additionalProperties": false})
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn a_collector_is_switched_off_by_its_name() {
        let config = Config::parse("e.yml", "collectors: {filesystem: false, docker: true}\n").expect("good");
        assert!(config.collectors.is_off("filesystem"));
        assert!(!config.collectors.is_off("docker") && !config.collectors.is_off("redis"));
    }

    #[test]
    fn a_name_that_none_has_is_refused_with_those_there_are() {
        let error =
            Config::parse("e.yml", "collectors: {filesytem: false}\n").expect_err("no such collector");
        let says = "there is no collector `filesytem`: write one of systemd, snapshot, docker, docker_disk, filesystem";
        assert!(error.to_string().contains(says), "{error}");
        assert!(Config::parse("e.yml", "collectors: {docker: off}\n").is_err());
    }
}
