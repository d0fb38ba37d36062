//! What was found of each Redis, as metrics. What Redis says about itself has redis_exporter's names, types and values,
//! so that its rules and dashboards work, plus the label `redis`, because a host may have several.

use evenkeel_host::{
    metrics::Family,
    redis::{Failure, Info, Probe},
};

/// What Redis says about itself becomes labels only up to this length, in bytes.
const LABEL_LIMIT: usize = 128;

/// Databases of one Redis that are published; it has 16 unless configured otherwise.
const MOST_DATABASES: usize = 256;

/// `INFO` fields that are published as they are: the field, the metric, which is a counter when its name says so, and
/// its help.
const FIELDS: [(&str, &str, &str); 33] = [
    ("uptime_in_seconds", "redis_uptime_in_seconds", "Seconds since Redis was started."),
    ("connected_clients", "redis_connected_clients", "Connected clients, replicas not counted."),
    ("blocked_clients", "redis_blocked_clients", "Clients that wait in a blocking call."),
    ("maxclients", "redis_config_maxclients", "The most clients that may be connected."),
    ("used_memory", "redis_memory_used_bytes", "Bytes that Redis allocated."),
    ("used_memory_rss", "redis_memory_used_rss_bytes", "Bytes of memory that the process occupies."),
    ("used_memory_peak", "redis_memory_used_peak_bytes", "The most bytes that Redis had allocated."),
    ("maxmemory", "redis_memory_max_bytes", "The limit for allocated bytes; 0 for none."),
    ("mem_fragmentation_ratio", "redis_mem_fragmentation_ratio", "Occupied bytes by allocated bytes."),
    ("total_system_memory", "redis_total_system_memory_bytes", "Bytes of memory that the host of Redis has."),
    ("loading", "redis_loading_dump_file", "Whether Redis reads its data from disk."),
    (
        "rdb_changes_since_last_save",
        "redis_rdb_changes_since_last_save",
        "Changes that no snapshot holds yet.",
    ),
    ("rdb_bgsave_in_progress", "redis_rdb_bgsave_in_progress", "Whether a snapshot is being written."),
    ("rdb_last_save_time", "redis_rdb_last_save_timestamp_seconds", "When the last snapshot was written."),
    ("rdb_last_bgsave_status", "redis_rdb_last_bgsave_status", "Whether the last snapshot succeeded."),
    ("aof_enabled", "redis_aof_enabled", "Whether Redis writes an append-only file."),
    (
        "aof_rewrite_in_progress",
        "redis_aof_rewrite_in_progress",
        "Whether the append-only file is being rewritten.",
    ),
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
    ("connected_slaves", "redis_connected_slaves", "Connected replicas."),
    ("total_connections_received", "redis_connections_received_total", "Connections that were accepted."),
    (
        "rejected_connections",
        "redis_rejected_connections_total",
        "Connections refused because of maxclients.",
    ),
    ("total_commands_processed", "redis_commands_processed_total", "Commands that were processed."),
    ("keyspace_hits", "redis_keyspace_hits_total", "Lookups of keys that were there."),
    ("keyspace_misses", "redis_keyspace_misses_total", "Lookups of keys that were not there."),
    ("expired_keys", "redis_expired_keys_total", "Keys that expired."),
    ("evicted_keys", "redis_evicted_keys_total", "Keys evicted because of maxmemory."),
    ("total_net_input_bytes", "redis_net_input_bytes_total", "Bytes read from the network."),
    ("total_net_output_bytes", "redis_net_output_bytes_total", "Bytes written to the network."),
    ("used_cpu_sys", "redis_cpu_sys_seconds_total", "System CPU time of the server."),
    ("used_cpu_user", "redis_cpu_user_seconds_total", "User CPU time of the server."),
    (
        "used_cpu_sys_children",
        "redis_cpu_sys_children_seconds_total",
        "System CPU time of its background processes.",
    ),
    (
        "used_cpu_user_children",
        "redis_cpu_user_children_seconds_total",
        "User CPU time of its background processes.",
    ),
];

/// Whether each Redis could be reached; there whatever happens.
pub(super) fn up() -> Family {
    Family::gauge("redis_up", "Whether Redis could be reached, let us in and answered INFO.")
}

/// Everything about all of them, by name.
pub(super) fn families(probes: &[(&str, Probe)]) -> Vec<Family> {
    let mut families = reached(probes);
    let told: Vec<(&str, &Info)> =
        probes.iter().filter_map(|(name, probe)| Some((*name, probe.info.as_ref()?))).collect();
    families.push(instance_info(&told));
    families.extend(master_links(&told));
    families.extend(databases(&told));
    families.extend(FIELDS.iter().map(|(key, metric, help)| {
        let is_counter = metric.ends_with("_total");
        let family = if is_counter { Family::counter(metric, help) } else { Family::gauge(metric, help) };
        field(family, key, &told)
    }));
    families
}

/// How far the probes came.
fn reached(probes: &[(&str, Probe)]) -> Vec<Family> {
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
    vec![up, ready, failure, connect, ping]
}

fn field(mut family: Family, key: &str, told: &[(&str, &Info)]) -> Family {
    for (name, info) in told {
        if let Some(value) = info.get(key).and_then(value) {
            family.sample(&[("redis", name)], value);
        }
    }
    family
}

/// As redis_exporter reads it: a number, or how something went.
fn value(text: &str) -> Option<f64> {
    match text {
        "ok" => Some(1.0),
        "err" | "fail" => Some(0.0),
        number => number.parse().ok().filter(|value: &f64| value.is_finite()),
    }
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
        let mut labels = vec![("redis", *name)];
        labels.extend(LABELS.map(|label| (label, text(info, label))));
        family.sample(&labels, 1.0);
    }
    family
}

/// Of replicas only.
fn master_links(told: &[(&str, &Info)]) -> [Family; 3] {
    let mut link = Family::gauge("redis_master_link_up", "Whether the replica is connected to its master.");
    let mut last_io = Family::gauge(
        "redis_master_last_io_seconds_ago",
        "Seconds since the replica last heard from its master; -1 when not connected.",
    );
    let mut sync =
        Family::gauge("redis_master_sync_in_progress", "Whether the replica is copying its master's data.");
    for (name, info) in told {
        let labels = [
            ("redis", *name),
            ("master_host", text(info, "master_host")),
            ("master_port", text(info, "master_port")),
        ];
        if let Some(status) = info.get("master_link_status") {
            link.sample(&labels, flag(status == "up"));
        }
        for (family, key) in
            [(&mut last_io, "master_last_io_seconds_ago"), (&mut sync, "master_sync_in_progress")]
        {
            if let Some(value) = info.get(key).and_then(value) {
                family.sample(&labels, value);
            }
        }
    }
    [link, last_io, sync]
}

/// Of databases that hold keys: `db0:keys=12,expires=3,avg_ttl=4500`.
fn databases(told: &[(&str, &Info)]) -> [Family; 2] {
    let mut keys = Family::gauge("redis_db_keys", "Keys in the database.");
    let mut expiring = Family::gauge("redis_db_keys_expiring", "Keys in the database that will expire.");
    for (name, info) in told {
        let databases = info
            .fields()
            .filter(|(key, _)| key.strip_prefix("db").is_some_and(|number| number.parse::<u32>().is_ok()));
        for (database, text) in databases.take(MOST_DATABASES) {
            let part = |key| text.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
            for (family, key) in [(&mut keys, "keys"), (&mut expiring, "expires")] {
                if let Some(value) = part(key).and_then(value) {
                    family.sample(&[("redis", name), ("db", database)], value);
                }
            }
        }
    }
    [keys, expiring]
}

/// Empty when Redis does not say.
fn text<'a>(info: &'a Info, key: &str) -> &'a str {
    let text = info.get(key).unwrap_or_default();
    &text[..text.floor_char_boundary(LABEL_LIMIT)]
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
            master_sync_in_progress:1\r\nuptime_in_seconds:60\r\nconnected_clients:5\r\nmaxclients:10000\r\n\
            used_memory:1000\r\nmaxmemory:2000\r\ntotal_system_memory:9000\r\nmem_fragmentation_ratio:1.25\r\n\
            rdb_last_save_time:1700000000\r\nrdb_last_bgsave_status:ok\r\naof_enabled:1\r\n\
            aof_last_write_status:err\r\naof_last_bgrewrite_status:ok\r\nconnected_slaves:2\r\n\
            rejected_connections:4\r\nloading:1\r\ndb0:keys=12,expires=3,avg_ttl=4500\r\ndb15:keys=1,expires=0\r\n";
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
                "redis_master_sync_in_progress{redis=r,master_host=10.0.0.1,master_port=6379} 1",
                "redis_db_keys{redis=r,db=db0} 12",
                "redis_db_keys{redis=r,db=db15} 1",
                "redis_db_keys_expiring{redis=r,db=db0} 3",
                "redis_uptime_in_seconds{redis=r} 60",
                "redis_connected_clients{redis=r} 5",
                "redis_config_maxclients{redis=r} 10000",
                "redis_memory_used_bytes{redis=r} 1000",
                "redis_memory_max_bytes{redis=r} 2000",
                "redis_mem_fragmentation_ratio{redis=r} 1.25",
                "redis_total_system_memory_bytes{redis=r} 9000",
                "redis_loading_dump_file{redis=r} 1",
                "redis_rdb_last_save_timestamp_seconds{redis=r} 1700000000",
                "redis_rdb_last_bgsave_status{redis=r} 1",
                "redis_aof_enabled{redis=r} 1",
                "redis_aof_last_bgrewrite_status{redis=r} 1",
                "redis_connected_slaves{redis=r} 2",
                "redis_rejected_connections_total{redis=r} 4",
            ]
        );
    }

    #[test]
    fn nonsense_in_info_is_not_published() {
        let long = "x".repeat(1000);
        let info = format!(
            "redis_version:{long}ä\r\nused_memory:inf\r\nmaxmemory:lots\r\nconnected_clients:NaN\r\n\
             rdb_last_bgsave_status:maybe\r\ndb:keys=1\r\ndb0:keys=x,expires\r\ndb-1:keys=1\r\ndbx:keys=1\r\n"
        );
        let published = lines(&[("r", told(&info))]);
        assert_eq!(published.len(), 5, "{published:?}");
        assert!(published[4].contains(&format!("redis_version={},", "x".repeat(LABEL_LIMIT))));
    }

    #[test]
    fn databases_are_bounded() {
        let info: String = (0..10_000).map(|number| format!("db{number}:keys=1,expires=1\r\n")).collect();
        let published = lines(&[("r", told(&info))]);
        let count = published.iter().filter(|line| line.starts_with("redis_db_keys{")).count();
        assert_eq!(count, MOST_DATABASES);
    }
}
