//! The section `fleet`, checked: who this host is, where the fleet is kept, and what holds in it.

use std::time::Duration;

use evenkeel_host::config::{ConfigError, Located, PromDuration, Secret};

use super::{
    Checker,
    file::{FleetFile, FleetLimits, FleetRedisFile, RuleFile},
};
use crate::{
    fleet::{
        ledger::Terms,
        names::{HostId, Keys, Scope},
        settings::{self, OnLoss, Settings, Way},
    },
    policy::Class,
};

const NAME: &str = "evenkeel";
const TIMEOUT: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(15);
const SPREAD: Duration = Duration::from_secs(30);
const STREAM_MAX: u32 = 1000;
/// The names of one host at most.
const NAMES_MAX: usize = 16;

impl Checker {
    pub(super) fn fleet(
        &self,
        file: Option<&Located<FleetFile>>,
        hosts: &[String],
    ) -> Result<Option<Settings>, ConfigError> {
        let Some(located) = file else { return Ok(None) };
        let file = &located.value;
        let names = self.names(located, hosts)?;
        let Some(host) = names.first().cloned() else {
            return Err(
                self.at(located, "`fleet` needs to know this host's name: write `identity: {hosts: [vps1]}`")
            );
        };
        let keys = match &file.name {
            Some(name) => {
                Keys::new(&name.value).map_err(|why| self.at(name, format!("`fleet.name`: {why}")))?
            }
            None => Keys::new(NAME).map_err(|why| self.at(located, why))?,
        };
        let default = Terms::default();
        let time = |key: &str, given: &Option<Located<PromDuration>>, default: Duration| match given {
            Some(given) if given.value.get().is_zero() => {
                Err(self.at(given, format!("`fleet.{key}: 0s` is no time: write a longer one")))
            }
            Some(given) => Ok(given.value.get()),
            None => Ok(default),
        };
        let at_least_one = |key: &str, given: &Option<Located<u32>>, default: u32| match given {
            Some(given) if given.value == 0 => {
                Err(self.at(given, format!("`fleet.{key}: 0` is none at all: write 1 or more")))
            }
            Some(given) => Ok(given.value),
            None => Ok(default),
        };
        let terms = Terms {
            limits: self.fleet_limits(&file.limits)?,
            most_acting: file.max_hosts_acting.unwrap_or(default.most_acting),
            stop_above: file.stop_above_unhealthy.or(default.stop_above),
            least_hosts: at_least_one("min_hosts", &file.min_hosts, default.least_hosts)?,
            lease: time("lease", &file.lease, default.lease)?,
            lost_after: time("lost_after", &file.lost_after, default.lost_after)?,
            forgotten_after: time("forgotten_after", &file.forgotten_after, default.forgotten_after)?,
        };
        let settings = Settings {
            host,
            names,
            keys,
            redis: self.way(&file.redis.value)?,
            timeout: time("timeout", &file.timeout, TIMEOUT)?,
            heartbeat: time("heartbeat", &file.heartbeat, HEARTBEAT)?,
            on_loss: on_loss(file),
            spread: file.spread.map_or(SPREAD, |spread| spread.get()),
            stream_max: at_least_one("stream_max", &file.stream_max, STREAM_MAX)?,
            terms,
        };
        self.times_fit(located, &settings)?;
        Ok(Some(settings))
    }

    /// Every name of this host goes into keys.
    fn names(&self, place: &Located<FleetFile>, hosts: &[String]) -> Result<Vec<HostId>, ConfigError> {
        if hosts.len() > NAMES_MAX {
            let message = format!("`identity.hosts`: with `fleet` a host has {NAMES_MAX} names at most");
            return Err(self.at(place, message));
        }
        let read = |name: &String| {
            let shown: String = name.chars().take(60).collect();
            name.parse().map_err(|why| self.at(place, format!("`identity.hosts`: {shown:?} is {why}")))
        };
        hosts.iter().map(read).collect()
    }

    /// Intervals that make each other pointless.
    fn times_fit(&self, place: &Located<FleetFile>, settings: &Settings) -> Result<(), ConfigError> {
        let terms = &settings.terms;
        let message = if terms.lost_after < settings.heartbeat * 2 {
            "`fleet.lost_after` must be twice `fleet.heartbeat` at least: one that is late would count as gone"
        } else if terms.forgotten_after < terms.lost_after {
            "`fleet.forgotten_after` must be longer than `fleet.lost_after`: a host that vanished would count as none"
        } else if terms.lease < settings.timeout * 3 {
            "`fleet.lease` must be three times `fleet.timeout` at least: it is prolonged each third of it"
        } else {
            return Ok(());
        };
        Err(self.at(place, message))
    }

    fn way(&self, file: &FleetRedisFile) -> Result<Way, ConfigError> {
        let password_file = match &file.password_file {
            Some(path) => {
                let whole = self.base.join(&path.value);
                Secret::from_file(&whole)
                    .map_err(|error| self.at(path, format!("`fleet.redis.password_file`: {error}")))?;
                Some(whole)
            }
            None => None,
        };
        let way = Way {
            url: file.url.value.clone(),
            username: file.username.clone(),
            password_file,
            ca_file: file.ca_file.as_ref().map(|path| self.base.join(path)),
        };
        match way.without_password().check() {
            Ok(()) => Ok(way),
            Err(why) => Err(self.at(&file.url, format!("`fleet.redis.url`: {why}"))),
        }
    }

    fn fleet_limits(
        &self,
        file: &FleetLimits,
    ) -> Result<Vec<(Scope, Vec<crate::policy::Limit>)>, ConfigError> {
        let scopes = [
            (Scope::Class(Class::S1), "S1", &file.S1),
            (Scope::Class(Class::S2), "S2", &file.S2),
            (Scope::Class(Class::D1), "D1", &file.D1),
            (Scope::Class(Class::D2), "D2", &file.D2),
            (Scope::All, "all", &file.all),
        ];
        let given = scopes.into_iter().filter_map(|(scope, key, limits)| Some((scope, key, limits.clone()?)));
        given
            .map(|(scope, key, limits)| Ok((scope, self.windows(limits, &format!("`fleet.limits.{key}`"))?)))
            .collect()
    }
}

fn on_loss(file: &FleetFile) -> OnLoss {
    let [s0, s1, s2, d1, d2] = OnLoss::default().classes;
    let given = &file.on_loss;
    OnLoss {
        classes: [
            given.S0.unwrap_or(s0),
            given.S1.unwrap_or(s1),
            given.S2.unwrap_or(s2),
            given.D1.unwrap_or(d1),
            given.D2.unwrap_or(d2),
        ],
    }
}

/// Whether a rule waits for alerts about a Redis, or names one that it may act on.
pub(super) fn is_about_redis(rule: &RuleFile) -> bool {
    let matchers =
        rule.matchers.iter().flat_map(|matchers| &matchers.value).map(|matcher| matcher.value.clone());
    let targets =
        rule.target.iter().flat_map(|target| &target.value.allow).map(|target| target.value.to_string());
    matchers.chain(targets).any(|words| settings::is_about_redis(&words))
}
