//! Whether the names that the configuration lists resolve, and to the addresses that are expected: asked as a service asks
//! that starts now, because a name that Compose knows nobody else does.

use std::{net::IpAddr, sync::Arc, time::Duration};

use evenkeel_host::{
    config::{ConfigError, Located},
    metrics::Family,
    resolve::{Failure, HostName, Resolver},
};
use futures_util::{StreamExt, future::BoxFuture, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::{CollectError, Collector, Look};
use crate::evidence::{Name, Piece};

/// The name of the collector.
pub const NAME: &str = "resolve";

/// Questions at a time.
const IN_FLIGHT: usize = 16;

/// Of the time that a scrape leaves, kept back to publish that a resolver did not answer.
const RESERVE: Duration = Duration::from_millis(100);

/// A name that must resolve, asked as a service asks that starts now.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name, and the `host` label.
    #[schemars(with = "String")]
    pub host: Located<HostName>,
    /// The addresses that it may have, at least one of them; any when none is listed.
    #[serde(default)]
    #[schemars(with = "Vec<String>", extend("examples" = [["127.0.0.1"]]))]
    pub expect: Vec<IpAddr>,
}

impl Config {
    /// Checks one entry; `others` are the entries before it.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn check(&self, others: &[Self], origin: &str) -> Result<(), ConfigError> {
        let host = &self.host.value;
        if others.iter().any(|other| other.host.value == *host) {
            let message = format!("`resolve`: the name `{host}` stands twice: list all its addresses once");
            return Err(ConfigError::at(origin, &self.host, message));
        }
        Ok(())
    }

    /// Whether an answer is as expected: at least one address, and every one of them listed; `None` where none is.
    fn judge(&self, answer: &Result<Arc<[IpAddr]>, Failure>) -> Option<bool> {
        let listed =
            |addresses: &Arc<[IpAddr]>| addresses.iter().all(|address| self.expect.contains(address));
        (!self.expect.is_empty()).then(|| answer.as_ref().is_ok_and(listed))
    }
}

/// The collector.
#[derive(Debug)]
pub struct ResolveCollector {
    entries: Vec<Config>,
    resolver: Resolver,
}

impl ResolveCollector {
    /// The collector for these names.
    pub fn new(entries: &[Config]) -> Self {
        Self { entries: entries.to_vec(), resolver: Resolver::default() }
    }

    async fn ask(&self, entry: &Config, deadline: Instant) -> (Name, Duration) {
        let begun = Instant::now();
        let left = deadline.saturating_duration_since(begun).saturating_sub(RESERVE);
        let addresses = self.resolver.resolve(&entry.host.value, left).await;
        let is_as_expected = entry.judge(&addresses);
        (Name { host: entry.host.value.to_string(), addresses, is_as_expected }, begun.elapsed())
    }
}

impl Collector for ResolveCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(async move {
            if self.entries.is_empty() {
                return Ok(Look::Absent("`resolve` of the configuration names nothing"));
            }
            let questions: Vec<_> = self.entries.iter().map(|entry| self.ask(entry, deadline)).collect();
            // In their order, so that evidence and metrics have one.
            let answers: Vec<_> = stream::iter(questions).buffered(IN_FLIGHT).collect().await;
            let look = Look::fresh(families(&answers));
            Ok(look.with(Piece::Names(answers.into_iter().map(|(name, _)| name).collect())))
        })
    }

    fn down(&self) -> Vec<Family> {
        Vec::new()
    }
}

fn families(answers: &[(Name, Duration)]) -> Vec<Family> {
    let mut success = Family::gauge(
        "evenkeel_resolve_success",
        "Whether the name resolves to any address, by getaddrinfo.",
    );
    let mut duration =
        Family::gauge("evenkeel_resolve_duration_seconds", "How long the resolver took to answer.");
    let mut failure = Family::gauge(
        "evenkeel_resolve_failure",
        "1 for the reason for which the name does not resolve, else 0.",
    );
    let mut expected = Family::gauge(
        "evenkeel_resolve_expected",
        "Whether the name has at least one address, and only such as the configuration lists for it.",
    );
    for (name, took) in answers {
        let host = ("host", name.host.as_str());
        success.sample(&[host], flag(name.addresses.is_ok()));
        duration.sample(&[host], took.as_secs_f64());
        for reason in Failure::ALL {
            let is_it = name.addresses.as_ref().err() == Some(&reason);
            failure.sample(&[host, ("reason", reason.as_str())], flag(is_it));
        }
        if let Some(is_as_expected) = name.is_as_expected {
            expected.sample(&[host], flag(is_as_expected));
        }
    }
    vec![success, duration, failure, expected]
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collectors::Seen, config};

    fn entries(text: &str) -> Vec<Config> {
        config::Config::parse("c.yml", text).expect("good").resolve
    }

    #[test]
    fn every_address_has_to_be_listed_and_there_has_to_be_one() {
        let judged = |expect: &str, addresses: &[&str]| {
            let entry = &entries(&format!("resolve: [{{host: quantum_redis, expect: [{expect}]}}]"))[0];
            let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            entry.judge(&Ok(addresses.into()))
        };
        assert_eq!(judged("127.0.0.1", &["127.0.0.1"]), Some(true));
        assert_eq!(judged("127.0.0.1, '::1'", &["::1"]), Some(true));
        assert_eq!(judged("127.0.0.1", &["127.0.0.1", "172.18.0.5"]), Some(false));
        assert_eq!(judged("127.0.0.1", &["::1"]), Some(false));
        assert_eq!(judged("", &["10.0.0.1"]), None);
        let entry = &entries("resolve: [{host: a, expect: [127.0.0.1]}]")[0];
        assert_eq!(entry.judge(&Err(Failure::Again)), Some(false));
    }

    #[tokio::test]
    async fn without_names_there_is_nothing_to_look_at() {
        let look = ResolveCollector::new(&[]).look(Instant::now() + Duration::from_secs(5)).await;
        assert!(matches!(look, Ok(Look::Absent(_))));
    }

    #[tokio::test]
    async fn each_name_has_its_own_answer() {
        let text = "resolve: [{host: localhost, expect: [127.0.0.1, '::1']}, {host: no-such-host.invalid}]";
        let collector = ResolveCollector::new(&entries(text));
        let look = collector.look(Instant::now() + Duration::from_secs(20)).await;
        let Ok(Look::Seen(Seen { blocks, piece: Some(Piece::Names(names)) })) = look else {
            panic!("not seen")
        };
        let names: Vec<_> =
            names.iter().map(|name| (&*name.host, name.addresses.is_ok(), name.is_as_expected)).collect();
        assert_eq!(names, [("localhost", true, Some(true)), ("no-such-host.invalid", false, None)]);
        let families: Vec<Family> = blocks.iter().flat_map(|block| block.read_back()).collect();
        let values = |name: &str| -> Vec<f64> {
            let family = families.iter().find(|family| family.name == name).expect(name);
            family.samples.iter().map(|sample| sample.value).collect()
        };
        assert_eq!(values("evenkeel_resolve_success"), [1.0, 0.0]);
        assert_eq!(values("evenkeel_resolve_expected"), [1.0]);
        assert_eq!(values("evenkeel_resolve_failure").iter().sum::<f64>(), 1.0);
    }
}
