//! Redis: whether each can be reached, why not, and the cheap part of what it says about itself, under redis_exporter's
//! names where labels and meaning are the same (plus the label `redis`, because a host may have several).

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use evenkeel_host::{
    config::{ConfigError, Located, Secret},
    metrics::Family,
    redis::{DEFAULT_BUDGET, Failure, Info, Probe, Target, is_listening_default, probe},
};
use futures_util::{StreamExt, future::BoxFuture, stream};
use serde::Deserialize;
use tokio::time::Instant;

use super::{CollectError, Collector, Look};

/// The name of the collector.
pub const NAME: &str = "redis";

/// Probes at a time.
const IN_FLIGHT: usize = 16;

/// Of the time that a scrape leaves, kept back to publish that a Redis did not answer.
const RESERVE: Duration = Duration::from_millis(100);

/// What Redis says about itself becomes labels only up to this length, in bytes.
const LABEL_LIMIT: usize = 128;

/// Room for any word that names an instance.
const MAX_NAME_BYTES: usize = 64;

/// One entry of the `redis` section of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The `redis` label.
    pub name: Located<String>,
    /// Where it is: `redis://host:6379/0`, `rediss://…` (TLS), `unix:///path`.
    pub url: Located<String>,
    /// An ACL user.
    pub username: Option<String>,
    /// The password, alone in a file. Read at each probe, so that it can be changed.
    pub password_file: Option<Located<PathBuf>>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Config {
    /// Checks one entry; `others` are the entries before it.
    ///
    /// # Errors
    /// When the name is no label or taken, the URL cannot be used, or the password cannot be read.
    pub fn check(&self, others: &[Self], origin: &str) -> Result<(), ConfigError> {
        let name = &self.name.value;
        // An empty label would be no label at all.
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            let message =
                format!("`redis`: a name has 1 to {MAX_NAME_BYTES} bytes on one line: write a word");
            return Err(ConfigError::at(origin, &self.name, message));
        }
        if others.iter().any(|other| other.name.value == *name) {
            let message =
                format!("`redis`: the name `{name}` stands twice: give every Redis a name of its own");
            return Err(ConfigError::at(origin, &self.name, message));
        }
        if let Err(why) = self.target().check() {
            return Err(ConfigError::at(origin, &self.url, format!("`redis`: the url of `{name}`: {why}")));
        }
        if let Some(path) = &self.password_file
            && let Err(error) = Secret::from_file(&path.value)
        {
            return Err(ConfigError::at(origin, path, format!("`redis`: the password of `{name}`: {error}")));
        }
        Ok(())
    }

    /// Without the password.
    fn target(&self) -> Target {
        Target {
            name: self.name.value.clone(),
            url: self.url.value.clone(),
            username: self.username.clone(),
            password: None,
            ca_file: self.ca_file.clone(),
        }
    }
}

/// Every Redis that is probed.
pub struct RedisCollector {
    instances: Vec<Instance>,
    /// Nobody configured any: the default address counts once something listened there.
    is_default: bool,
    was_seen: AtomicBool,
}

struct Instance {
    target: Target,
    password_file: Option<PathBuf>,
    /// Said once in the log, not at each probe.
    is_password_missing: AtomicBool,
}

impl RedisCollector {
    /// The configured ones, or the one on 127.0.0.1:6379.
    pub fn new(configured: &[Config]) -> Self {
        let is_default = configured.is_empty();
        let instances = if is_default {
            let (name, url) = ("local".into(), "redis://127.0.0.1:6379".into());
            vec![Instance::new(Target { name, url, ..Target::default() }, None)]
        } else {
            let path = |config: &Config| config.password_file.as_ref().map(|path| path.value.clone());
            configured.iter().map(|config| Instance::new(config.target(), path(config))).collect()
        };
        Self { instances, is_default, was_seen: AtomicBool::new(false) }
    }

    async fn is_absent(&self) -> bool {
        if !self.is_default || self.was_seen.load(Ordering::Relaxed) {
            return false;
        }
        let is_listening = is_listening_default().await;
        self.was_seen.store(is_listening, Ordering::Relaxed);
        !is_listening
    }
}

impl Instance {
    fn new(target: Target, password_file: Option<PathBuf>) -> Self {
        Self { target, password_file, is_password_missing: AtomicBool::new(false) }
    }

    async fn probe(&self, deadline: Instant) -> (&str, Probe) {
        let mut target = self.target.clone();
        if let Some(path) = &self.password_file {
            let password = Secret::from_file(path);
            let is_missing = password.is_err();
            match password {
                Ok(password) => target.password = Some(password),
                Err(error) if !self.is_password_missing.load(Ordering::Relaxed) => {
                    tracing::warn!(redis = target.name, %error, "no password");
                }
                Err(_) => {}
            }
            self.is_password_missing.store(is_missing, Ordering::Relaxed);
            if is_missing {
                // Without it a server that wants none would look well, and it is not the one that was meant.
                return (&self.target.name, Probe::failed(Failure::Auth));
            }
        }
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(RESERVE);
        (&self.target.name, probe(&target, left.min(DEFAULT_BUDGET)).await)
    }
}

impl Collector for RedisCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(async move {
            if self.is_absent().await {
                return Ok(Look::Absent);
            }
            let probes: Vec<_> = self.instances.iter().map(|instance| instance.probe(deadline)).collect();
            let seen: Vec<(&str, Probe)> = stream::iter(probes).buffer_unordered(IN_FLIGHT).collect().await;
            Ok(Look::fresh(families(&seen)))
        })
    }

    /// `redis_up` is there for every Redis whatever happens.
    fn down(&self) -> Vec<Family> {
        let mut up = up();
        for instance in &self.instances {
            up.sample(&[("redis", &instance.target.name)], 0.0);
        }
        vec![up]
    }
}

fn up() -> Family {
    Family::gauge("redis_up", "Whether Redis could be reached, let us in and answered INFO.")
}

fn families(probes: &[(&str, Probe)]) -> Vec<Family> {
    let mut up = up();
    let mut ready = Family::gauge(
        "redis_ready",
        "Whether PING was answered with PONG; 0 also while Redis loads its data.",
    );
    let mut failure =
        Family::gauge("redis_probe_failure", "1 for the reason that the probe failed for, else 0.");
    let mut connect = Family::gauge(
        "redis_connect_duration_seconds",
        "How long it took to resolve the name, connect and shake hands, anew at each probe.",
    );
    let mut ping = Family::gauge("redis_ping_duration_seconds", "How long PING took to be answered.");
    for (name, probe) in probes {
        let redis = ("redis", *name);
        up.sample(&[redis], flag(probe.up));
        ready.sample(&[redis], flag(probe.ready));
        for reason in Failure::ALL {
            failure.sample(&[redis, ("reason", reason.as_str())], flag(probe.failure == Some(reason)));
        }
        for (family, duration) in [(&mut connect, probe.connect), (&mut ping, probe.ping)] {
            if let Some(duration) = duration {
                family.sample(&[redis], duration.as_secs_f64());
            }
        }
    }
    let mut families = vec![up, ready, failure, connect, ping];
    let told: Vec<(&str, &Info)> =
        probes.iter().filter_map(|(name, probe)| Some((*name, probe.info.as_ref()?))).collect();
    families.push(instance_info(&told));
    families.extend(master_links(&told));
    families.extend(GAUGES.iter().map(|(key, metric, help)| number(Family::gauge(metric, help), key, &told)));
    families
        .extend(STATUSES.iter().map(|(key, metric, help)| status(Family::gauge(metric, help), key, &told)));
    let rejected =
        Family::counter("redis_rejected_connections_total", "Connections refused because of maxclients.");
    families.push(number(rejected, "rejected_connections", &told));
    families
}

/// `INFO` fields that are numbers, by redis_exporter's names.
const GAUGES: [(&str, &str, &str); 10] = [
    ("uptime_in_seconds", "redis_uptime_in_seconds", "Seconds since Redis was started."),
    ("connected_clients", "redis_connected_clients", "Connected clients, replicas not counted."),
    ("maxclients", "redis_config_maxclients", "The most clients that may be connected."),
    ("used_memory", "redis_memory_used_bytes", "Bytes that Redis allocated."),
    ("maxmemory", "redis_memory_max_bytes", "The limit for allocated bytes; 0 for none."),
    ("total_system_memory", "redis_total_system_memory_bytes", "Bytes of memory that the host of Redis has."),
    ("loading", "redis_loading_dump_file", "Whether Redis reads its data from disk."),
    ("rdb_last_save_time", "redis_rdb_last_save_timestamp_seconds", "When the last snapshot was written."),
    ("aof_enabled", "redis_aof_enabled", "Whether Redis writes an append-only file."),
    ("connected_slaves", "redis_connected_slaves", "Connected replicas."),
];

/// `INFO` fields that are `ok` or `err`.
const STATUSES: [(&str, &str, &str); 3] = [
    ("rdb_last_bgsave_status", "redis_rdb_last_bgsave_status", "Whether the last snapshot succeeded."),
    (
        "aof_last_bgrewrite_status",
        "redis_aof_last_bgrewrite_status",
        "Whether the last rewrite of the append-only file succeeded.",
    ),
    (
        "aof_last_write_status",
        "redis_aof_last_write_status",
        "Whether the last write to the append-only file succeeded.",
    ),
];

fn number(mut family: Family, key: &str, told: &[(&str, &Info)]) -> Family {
    for (name, info) in told {
        if let Some(value) = info.get::<f64>(key).filter(|value| value.is_finite()) {
            family.sample(&[("redis", name)], value);
        }
    }
    family
}

fn status(mut family: Family, key: &str, told: &[(&str, &Info)]) -> Family {
    for (name, info) in told {
        if let Some(status) = info.get::<String>(key) {
            family.sample(&[("redis", name)], flag(status == "ok"));
        }
    }
    family
}

fn instance_info(told: &[(&str, &Info)]) -> Family {
    const LABELS: [&str; 10] = [
        "role",
        "redis_version",
        "redis_build_id",
        "redis_mode",
        "os",
        "maxmemory_policy",
        "tcp_port",
        "run_id",
        "process_id",
        "master_replid",
    ];
    let mut family = Family::gauge("redis_instance_info", "What Redis says about itself; always 1.");
    for (name, info) in told {
        let values = LABELS.map(|label| text(info, label));
        let mut labels = vec![("redis", *name)];
        labels.extend(LABELS.into_iter().zip(values.iter().map(String::as_str)));
        family.sample(&labels, 1.0);
    }
    family
}

/// Of replicas only.
fn master_links(told: &[(&str, &Info)]) -> [Family; 2] {
    let mut link = Family::gauge("redis_master_link_up", "Whether the replica is connected to its master.");
    let mut last_io = Family::gauge(
        "redis_master_last_io_seconds_ago",
        "Seconds since the replica last heard from its master; -1 when not connected.",
    );
    for (name, info) in told {
        let (host, port) = (text(info, "master_host"), text(info, "master_port"));
        let labels = [("redis", *name), ("master_host", host.as_str()), ("master_port", port.as_str())];
        if let Some(status) = info.get::<String>("master_link_status") {
            link.sample(&labels, flag(status == "up"));
        }
        if let Some(seconds) = info.get::<i64>("master_last_io_seconds_ago") {
            last_io.sample(&labels, seconds as f64);
        }
    }
    [link, last_io]
}

fn text(info: &Info, key: &str) -> String {
    let mut text = info.get::<String>(key).unwrap_or_default();
    text.truncate(text.floor_char_boundary(LABEL_LIMIT));
    text
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config;

    fn told(info: &str) -> Probe {
        let (connect, ping) = (Some(Duration::from_millis(1500)), Some(Duration::from_millis(250)));
        Probe { up: true, ready: true, failure: None, connect, ping, info: Some(Info::parse(info)) }
    }

    /// `name{label=value,…} value` of every sample that is not 0.
    fn lines(probes: &[(&str, Probe)]) -> Vec<String> {
        let mut lines = Vec::new();
        for family in families(probes) {
            for sample in family.samples.iter().filter(|sample| sample.value != 0.0) {
                let labels: Vec<_> =
                    sample.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                lines.push(format!("{}{{{}}} {}", family.name, labels.join(","), sample.value));
            }
        }
        lines
    }

    #[test]
    fn a_redis_that_is_down_says_why() {
        let probes = [("a", Probe::failed(Failure::Dns)), ("b", Probe::failed(Failure::Auth))];
        assert_eq!(
            lines(&probes),
            ["redis_probe_failure{redis=a,reason=dns} 1", "redis_probe_failure{redis=b,reason=auth} 1"]
        );
        let up: Vec<_> = families(&probes)[0].samples.iter().map(|sample| sample.value).collect();
        assert_eq!(up, [0.0, 0.0]);
        assert_eq!(families(&probes)[2].samples.len(), 2 * Failure::ALL.len());
    }

    #[test]
    fn a_replica_tells_all_it_should() {
        let info = "redis_version:7.0.15\r\nredis_mode:standalone\r\nos:Linux\r\ntcp_port:6380\r\nrun_id:r\r\n\
            process_id:12\r\nredis_build_id:b\r\nrole:slave\r\nmaster_replid:m\r\nmaxmemory_policy:noeviction\r\n\
            master_host:10.0.0.1\r\nmaster_port:6379\r\nmaster_link_status:up\r\nmaster_last_io_seconds_ago:3\r\n\
            uptime_in_seconds:60\r\nconnected_clients:5\r\nmaxclients:10000\r\nused_memory:1000\r\nmaxmemory:2000\r\n\
            total_system_memory:9000\r\nrdb_last_save_time:1700000000\r\nrdb_last_bgsave_status:ok\r\n\
            aof_enabled:1\r\naof_last_write_status:err\r\naof_last_bgrewrite_status:ok\r\nconnected_slaves:2\r\n\
            rejected_connections:4\r\nloading:1\r\n";
        assert_eq!(
            lines(&[("r", told(info))]),
            [
                "redis_up{redis=r} 1",
                "redis_ready{redis=r} 1",
                "redis_connect_duration_seconds{redis=r} 1.5",
                "redis_ping_duration_seconds{redis=r} 0.25",
                "redis_instance_info{redis=r,role=slave,redis_version=7.0.15,redis_build_id=b,\
                 redis_mode=standalone,os=Linux,maxmemory_policy=noeviction,tcp_port=6380,run_id=r,process_id=12,\
                 master_replid=m} 1",
                "redis_master_link_up{redis=r,master_host=10.0.0.1,master_port=6379} 1",
                "redis_master_last_io_seconds_ago{redis=r,master_host=10.0.0.1,master_port=6379} 3",
                "redis_uptime_in_seconds{redis=r} 60",
                "redis_connected_clients{redis=r} 5",
                "redis_config_maxclients{redis=r} 10000",
                "redis_memory_used_bytes{redis=r} 1000",
                "redis_memory_max_bytes{redis=r} 2000",
                "redis_total_system_memory_bytes{redis=r} 9000",
                "redis_loading_dump_file{redis=r} 1",
                "redis_rdb_last_save_timestamp_seconds{redis=r} 1700000000",
                "redis_aof_enabled{redis=r} 1",
                "redis_connected_slaves{redis=r} 2",
                "redis_rdb_last_bgsave_status{redis=r} 1",
                "redis_aof_last_bgrewrite_status{redis=r} 1",
                "redis_rejected_connections_total{redis=r} 4",
            ]
        );
    }

    #[test]
    fn nonsense_in_info_is_not_published() {
        let long = "x".repeat(1000);
        let info = format!(
            "redis_version:{long}ä\r\nused_memory:inf\r\nmaxmemory:lots\r\nconnected_clients:NaN\r\n"
        );
        let published = lines(&[("r", told(&info))]);
        assert_eq!(published.len(), 5, "{published:?}");
        assert!(published[4].contains(&format!("redis_version={},", "x".repeat(LABEL_LIMIT))));
    }

    #[test]
    fn a_password_comes_from_a_file() {
        let mut password = tempfile::NamedTempFile::new().expect("a file");
        password.write_all(b"hunter2\n").expect("written");
        let path = password.path().display();
        let text = format!("redis: [{{name: a, url: 'redis://h', username: u, password_file: {path}}}]");
        let config = config::Config::parse("c.yml", &text).expect("good");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_password_that_went_away_is_auth() {
        let instance =
            Instance::new(Target { name: "a".into(), ..Target::default() }, Some("/nonexistent".into()));
        let (_, seen) = instance.probe(Instant::now() + Duration::from_secs(5)).await;
        assert_eq!((seen.up, seen.failure), (false, Some(Failure::Auth)));
    }

    #[tokio::test]
    async fn a_configured_redis_is_never_absent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let text = format!("redis: [{{name: a, url: 'redis://{address}'}}]");
        let collector = RedisCollector::new(&config::Config::parse("c.yml", &text).expect("good").redis);
        let look = collector.look(Instant::now() + Duration::from_secs(5)).await;
        let Ok(Look::Seen(blocks)) = look else { panic!("{look:?}") };
        let families = blocks[0].read_back();
        assert_eq!((families[0].name, families[0].samples[0].value), ("redis_up", 0.0));
        assert_eq!(collector.down()[0].samples, families[0].samples);
    }
}
