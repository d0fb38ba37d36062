//! Six hours of a host's life as OpenMetrics text, to look at the dashboards with something on them.
//!
//! A disk fills until its build cache is pruned, a service fails and is restarted, another loops, one container is
//! sick and one has a healthcheck that cannot work, Redis is away by name and then loads, Docker hangs for a while.
//! Metrics and labels are those of `tests/golden/`; nothing here is measured.
//!
//! ```sh
//! cargo run -p evenkeel-tests --example dashboard_story -- "$(date +%s)" > story.om
//! promtool tsdb create-blocks-from openmetrics story.om data
//! ```

use std::{collections::BTreeMap, fmt::Write as _, io};

use anyhow::Context as _;

/// Length of the story, in minutes.
const MINUTES: u32 = 360;
/// Samples a minute: a scrape every 15 s.
const PER_MINUTE: u32 = 4;
const EXPORTER: &str = r#"instance="vps1:19847",job="evenkeel-exporter""#;
const REMEDIATOR: &str = r#"instance="vps1:19848",job="evenkeel-remediator""#;

fn main() -> anyhow::Result<()> {
    let end: u64 = std::env::args()
        .nth(1)
        .context("give the time at which the story ends, in seconds since 1970")?
        .parse()
        .context("the end is a whole number of seconds since 1970")?;
    let mut story = Story { start: end - u64::from(MINUTES) * 60, families: BTreeMap::new() };
    filesystems(&mut story);
    systemd(&mut story);
    containers(&mut story);
    docker_disk(&mut story);
    redis(&mut story);
    expectations(&mut story);
    repairs(&mut story);
    exporter(&mut story);
    alerts(&mut story);
    story.write(&mut io::stdout().lock()).context("cannot write the story")
}

/// Samples by metric family, because OpenMetrics wants each family in one piece.
struct Story {
    start: u64,
    families: BTreeMap<String, (&'static str, String)>,
}

impl Story {
    /// One series; `value` at each minute (with fractions), `None` where it was not there.
    fn series(&mut self, kind: &'static str, name: &str, labels: &str, value: impl Fn(f64) -> Option<f64>) {
        let family = if kind == "counter" { name.trim_end_matches("_total") } else { name };
        let (_, text) = self.families.entry(family.to_owned()).or_insert_with(|| (kind, String::new()));
        for step in 0..=MINUTES * PER_MINUTE {
            if let Some(value) = value(f64::from(step) / f64::from(PER_MINUTE)) {
                let time = self.start + u64::from(step) * 60 / u64::from(PER_MINUTE);
                writeln!(text, "{name}{{{labels}}} {value} {time}").unwrap_or_default();
            }
        }
    }

    /// A gauge of the exporter.
    fn gauge(&mut self, name: &str, labels: &str, value: impl Fn(f64) -> f64) {
        let comma = if labels.is_empty() { "" } else { "," };
        self.series("gauge", name, &format!("{labels}{comma}{EXPORTER}"), |t| Some(value(t)));
    }

    /// 0/1 of the exporter.
    fn flag(&mut self, name: &str, labels: &str, value: impl Fn(f64) -> bool) {
        self.gauge(name, labels, |t| f64::from(u8::from(value(t))));
    }

    fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        for (name, (kind, text)) in &self.families {
            write!(out, "# TYPE {name} {kind}\n{text}")?;
        }
        writeln!(out, "# EOF")
    }
}

fn between(t: f64, from: f64, to: f64) -> bool {
    (from..to).contains(&t)
}

/// Bytes of build cache: the disk passes 85 % at minute 147, and everything is pruned at 151.
fn build_cache(t: f64) -> f64 {
    if t < 151.0 { 1e9 + t * 83e6 } else { 45e6 + (t - 151.0) * 2e6 }
}

fn filesystems(story: &mut Story) {
    type Bytes = fn(f64) -> f64;
    let root: Bytes = |t| 150e9 - (111.3e9 + build_cache(t) + t * 20e6);
    let data: Bytes = |t| 190e9 - t * 100e6;
    let boot: Bytes = |_| 700e6;
    for (device, mount, size, avail) in [
        ("/dev/sda1", "/", 150e9, root),
        ("/dev/sdb1", "/data", 500e9, data),
        ("/dev/sda2", "/boot", 1e9, boot),
    ] {
        let labels = format!(r#"device="{device}",fstype="ext4",mountpoint="{mount}""#);
        story.gauge("node_filesystem_size_bytes", &labels, |_| size);
        story.gauge("node_filesystem_avail_bytes", &labels, avail);
        story.gauge("node_filesystem_readonly", &labels, |_| 0.0);
        story.gauge("node_filesystem_files", &labels, |_| size / 16e3);
        story.gauge("node_filesystem_files_free", &labels, |t| size / 16e3 * (0.9 - t / 4e3));
    }
}

fn systemd(story: &mut Story) {
    const STATES: [&str; 8] = [
        "active",
        "activating",
        "deactivating",
        "inactive",
        "failed",
        "reloading",
        "maintenance",
        "refreshing",
    ];
    let state = |unit: &str, t: f64| match unit {
        "shop-api.service" if between(t, 200.0, 203.0) => "failed",
        "shop-sync.service" if between(t, 255.0, 285.0) && t.fract() < 0.5 => "activating",
        "shop-report.service" => "inactive",
        "backup.service" if t > 340.0 => "failed",
        "backup.service" => "inactive",
        _ => "active",
    };
    let units = [
        "shop-api.service",
        "shop-sync.service",
        "shop-web.service",
        "shop-report.service",
        "shop-mail.service",
        "backup.service",
        "redis-server.service",
        "nginx.service",
    ];
    story.flag("systemd_up", "", |_| true);
    for unit in units {
        for candidate in STATES {
            let labels = format!(r#"name="{unit}",type="service",state="{candidate}""#);
            story.flag("systemd_unit_state", &labels, |t| state(unit, t) == candidate);
        }
        let labels = format!(r#"name="{unit}",type="service",load_state="loaded""#);
        story.flag("systemd_unit_load_state", &labels, |_| true);
        for result in ["success", "exit-code"] {
            let labels = format!(r#"name="{unit}",result="{result}",{EXPORTER}"#);
            story.series("gauge", "systemd_service_result", &labels, |t| {
                let now = if state(unit, t) == "failed" { "exit-code" } else { "success" };
                (now == result).then_some(1.0)
            });
        }
        let labels = format!(r#"name="{unit}",{EXPORTER}"#);
        story.series("counter", "systemd_service_restart_total", &labels, |t| match unit {
            "shop-sync.service" => Some((t - 255.0).clamp(0.0, 30.0).floor()),
            "shop-api.service" if between(t, 199.0, 203.5) => Some(((t - 199.0) * 5.0).floor().min(5.0)),
            _ => Some(0.0),
        });
        let start = story.start as f64;
        story.gauge(
            "systemd_unit_active_enter_time_seconds",
            &format!(r#"name="{unit}",type="service""#),
            |t| start + if unit == "shop-api.service" && t > 203.0 { 203.0 * 60.0 } else { -86400.0 },
        );
        let labels = format!(r#"name="{unit}",type="service",{EXPORTER}"#);
        story.series("gauge", "systemd_unit_inactive_enter_time_seconds", &labels, |t| {
            let failed_at = if unit == "backup.service" { 340.0 } else { 200.0 };
            (state(unit, t) == "failed").then_some(start + failed_at * 60.0)
        });
    }
    for (name, count) in [("active", 214.0), ("inactive", 96.0), ("failed", 0.0), ("activating", 0.0)] {
        story.gauge("systemd_units", &format!(r#"state="{name}""#), |t| {
            count
                + units
                    .iter()
                    .filter(|unit| matches!(name, "failed" | "activating") && state(unit, t) == name)
                    .count() as f64
        });
    }
}

fn containers(story: &mut Story) {
    // Docker hangs from 320 to 326: nothing about containers is known.
    let known = |t: f64| !between(t, 320.0, 326.0);
    story.flag("docker_up", "", known);
    let health = |name: &str, t: f64| match name {
        "shop_web" if between(t, 100.0, 107.0) => "unhealthy",
        "shop_web" if between(t, 107.0, 108.0) => "starting",
        "shop_frontend" if t >= 60.0 => "unhealthy",
        "shop_worker" | "shop_batch" => "none",
        _ => "healthy",
    };
    let state = |name: &str| if name == "shop_batch" { "exited" } else { "running" };
    for name in ["shop_web", "shop_api", "shop_frontend", "shop_worker", "shop_redis", "shop_batch"] {
        let labels = |more: &str| format!(r#"name="{name}"{more},{EXPORTER}"#);
        let mut put = |kind, metric: &str, more: &str, value: &dyn Fn(f64) -> f64| {
            story.series(kind, metric, &labels(more), |t| known(t).then(|| value(t)));
        };
        for status in ["none", "starting", "healthy", "unhealthy"] {
            put("gauge", "docker_container_health", &format!(r#",status="{status}""#), &|t| {
                f64::from(u8::from(health(name, t) == status))
            });
        }
        for candidate in ["created", "running", "paused", "restarting", "removing", "exited", "dead"] {
            put("gauge", "docker_container_state", &format!(r#",state="{candidate}""#), &|_| {
                f64::from(u8::from(state(name) == candidate))
            });
        }
        for reason in ["command_not_found", "not_executable"] {
            put("gauge", "docker_container_healthcheck_broken", &format!(r#",reason="{reason}""#), &|t| {
                f64::from(u8::from(name == "shop_frontend" && reason == "command_not_found" && t >= 60.0))
            });
        }
        put("gauge", "docker_container_health_failing_streak", "", &|t| match name {
            "shop_web" if between(t, 100.0, 107.0) => 3.0 + (t - 100.0).floor(),
            "shop_frontend" if t >= 60.0 => (t - 57.0).floor(),
            _ => 0.0,
        });
        put("counter", "docker_container_restarts_total", "", &|t| match name {
            "shop_api" => (t / 150.0).floor(),
            "shop_worker" => (t / 110.0).floor(),
            _ => 0.0,
        });
        put("gauge", "docker_container_oom_killed", "", &|t| {
            f64::from(u8::from(name == "shop_worker" && t > 120.0))
        });
        let start = story.start as f64;
        story.series("gauge", "docker_container_started_timestamp_seconds", &labels(""), |t| {
            known(t).then(|| start + if name == "shop_web" && t > 107.0 { 6420.0 } else { -200_000.0 })
        });
    }
}

fn docker_disk(story: &mut Story) {
    let start = story.start as f64;
    type At = fn(f64) -> f64;
    let objects: [(&str, At, At, At, At); 4] = [
        ("images", |_| 61.2e9, |_| 4.1e9, |_| 32.0, |_| 30.0),
        (
            "build_cache",
            build_cache,
            |t| build_cache(t) * 0.96,
            |t| (build_cache(t) / 78e6).ceil(),
            |t| (build_cache(t) / 78e6).ceil().min(8.0),
        ),
        ("volumes", |_| 6.3e9, |_| 0.14e9, |_| 9.0, |_| 4.0),
        ("containers", |t| 1.1e9 + t * 2e6, |_| 0.2e9, |_| 36.0, |_| 32.0),
    ];
    for (object, bytes, reclaimable, count, active) in objects {
        let labels = format!(r#"object="{object}""#);
        story.gauge("docker_disk_usage_bytes", &labels, bytes);
        story.gauge("docker_disk_usage_reclaimable_bytes", &labels, reclaimable);
        story.gauge("docker_disk_usage_objects", &labels, count);
        story.gauge("docker_disk_usage_active_objects", &labels, active);
        let every = if matches!(object, "volumes" | "containers") { 60.0 } else { 5.0 };
        story.gauge("docker_disk_usage_last_success_timestamp_seconds", &labels, |t| {
            start + (((t + 2.0) / every).floor() * every - 2.0) * 60.0
        });
        story.gauge("docker_disk_usage_collection_duration_seconds", &labels, |_| 0.31);
    }
}

fn redis(story: &mut Story) {
    for name in ["queue", "cache"] {
        let labels = format!(r#"redis="{name}""#);
        let away = |t: f64| name == "queue" && between(t, 30.0, 42.0);
        let loads = |t: f64| name == "queue" && between(t, 42.0, 47.0);
        story.flag("redis_up", &labels, |t| !away(t));
        story.flag("redis_ready", &labels, |t| !away(t) && !loads(t));
        for reason in
            ["dns", "refused", "connect_timeout", "response_timeout", "tls", "auth", "loading", "protocol"]
        {
            story.flag("redis_probe_failure", &format!(r#"{labels},reason="{reason}""#), |t| {
                (away(t) && reason == "dns") || (loads(t) && reason == "loading")
            });
        }
        let labels = format!("{labels},{EXPORTER}");
        for (metric, base) in
            [("redis_connect_duration_seconds", 0.0006), ("redis_ping_duration_seconds", 0.0002)]
        {
            story.series("gauge", metric, &labels, |t| {
                (!away(t)).then(|| base * (1.2 + (t / 7.0).sin() * 0.2 + f64::from(u8::from(loads(t))) * 6.0))
            });
        }
        story
            .series("gauge", "redis_memory_used_bytes", &labels, |t| (!away(t)).then_some(310e6 + t * 0.2e6));
        story.series("gauge", "redis_memory_max_bytes", &labels, |t| (!away(t)).then_some(1e9));
        story.series("gauge", "redis_connected_clients", &labels, |t| {
            (!away(t)).then(|| 24.0 + (t / 30.0).floor())
        });
    }
}

/// Repairs: rule, action, class, outcome, from and to.
const REPAIRS: [(&str, &str, &str, &str, f64, f64); 5] = [
    ("container-unhealthy", "container_restart", "S2", "succeeded", 106.5, 109.0),
    ("disk-high", "build_cache_prune", "D1", "succeeded", 150.0, 153.0),
    ("unit-failed", "unit_restart", "S2", "succeeded", 202.5, 204.5),
    ("unit-looping", "collect_report", "S0", "reported", 258.0, 258.5),
    ("unit-failed", "unit_restart", "S2", "ineffective", 342.0, 346.0),
];

fn repairs(story: &mut Story) {
    const OUTCOMES: [&str; 5] = ["succeeded", "partial", "ineffective", "failed", "unknown"];
    let mut count = |name: &str, labels: &str, times: Vec<(f64, f64)>| {
        story.series("counter", name, &format!("{labels},{REMEDIATOR}"), |t| {
            Some(times.iter().filter(|(at, _)| t >= *at).map(|(_, by)| by).sum())
        });
    };
    for (rule, action, class) in [
        ("container-unhealthy", "container_restart", "S2"),
        ("disk-high", "build_cache_prune", "D1"),
        ("unit-failed", "unit_restart", "S2"),
        ("unit-looping", "collect_report", "S0"),
    ] {
        for outcome in OUTCOMES.into_iter().chain((rule == "unit-looping").then_some("reported")) {
            let labels = format!(r#"rule="{rule}",action="{action}",class="{class}",outcome="{outcome}""#);
            let ended =
                REPAIRS.iter().filter(|r| r.0 == rule && r.3 == outcome).map(|r| (r.5, 1.0)).collect();
            count("evenkeel_remediator_remediations_total", &labels, ended);
        }
    }
    for (rule, decision, reason, times) in [
        ("container-unhealthy", "admitted", "none", vec![106.5]),
        ("disk-high", "admitted", "none", vec![150.0]),
        ("unit-failed", "admitted", "none", vec![202.5, 342.0]),
        ("disk-high", "not_needed", "none", vec![169.0]),
        ("unit-failed", "refused", "limited", vec![347.0, 352.0]),
        ("unit-failed", "refused", "policy", vec![275.0]),
    ] {
        let labels = format!(r#"rule="{rule}",decision="{decision}",reason="{reason}""#);
        count(
            "evenkeel_remediator_decisions_total",
            &labels,
            times.into_iter().map(|at| (at, 1.0)).collect(),
        );
    }
    let prune = r#"action="build_cache_prune""#;
    count("evenkeel_remediator_freed_bytes_total", prune, vec![(151.0, 13.38e9)]);
    count("evenkeel_remediator_claimed_freed_bytes_total", prune, vec![(151.0, 13.54e9)]);
    count(
        "evenkeel_remediator_webhook_requests_total",
        r#"code="200""#,
        (0..30).map(|i| (f64::from(i) * 12.0, 1.0)).collect(),
    );

    for (rule, _, _, outcome, _, ended) in REPAIRS.into_iter().filter(|repair| repair.3 != "reported") {
        let labels = format!(r#"rule="{rule}",outcome="{outcome}",{REMEDIATOR}"#);
        let at = story.start as f64 + ended * 60.0;
        story.series("gauge", "evenkeel_remediator_last_end_timestamp_seconds", &labels, |t| {
            (t >= ended).then_some(at)
        });
    }

    let mut put = |name: &str, labels: &str, value: &dyn Fn(f64) -> f64| {
        let labels = format!("{labels}{REMEDIATOR}");
        story.series("gauge", name, &labels, |t| Some(value(t)));
    };
    for rule in ["container-unhealthy", "disk-high", "unit-failed", "unit-looping"] {
        let labels = format!(r#"rule="{rule}","#);
        put("evenkeel_remediator_in_progress", &labels, &|t| {
            f64::from(u8::from(REPAIRS.iter().any(|r| r.0 == rule && between(t, r.4, r.5))))
        });
        put("evenkeel_remediator_escalated", &labels, &|t| {
            f64::from(u8::from(rule == "unit-failed" && t > 346.0))
        });
        for state in ["closed", "half_open", "open"] {
            put("evenkeel_remediator_breaker_state", &format!(r#"{labels}state="{state}","#), &|t| {
                f64::from(u8::from(
                    (state == "open") == (rule == "unit-failed" && t > 346.0) && state != "half_open",
                ))
            });
        }
    }
    put("evenkeel_remediator_build_info", r#"version="0.1.0",revision="unknown","#, &|_| 1.0);
    put("evenkeel_remediator_queue_depth", "", &|_| 0.0);
}

/// Ten of twelve services run while one fails and one loops; nobody can tell of an environment.
fn expectations(story: &mut Story) {
    let loops = |t: f64| between(t, 60.0, 90.0);
    let mut expectation = |name: &str, bound: f64, met: &dyn Fn(f64) -> bool, value: &dyn Fn(f64) -> f64| {
        let labels = format!(r#"expectation="{name}""#);
        story.flag("evenkeel_expectation_met", &labels, met);
        story.gauge("evenkeel_expectation_value", &labels, value);
        story.gauge("evenkeel_expectation_bound", &labels, |_| bound);
        story.flag("evenkeel_expectation_unknown", &labels, |_| false);
    };
    expectation("running:shop-*.service", 12.0, &|t| !loops(t), &|t| if loops(t) { 10.0 } else { 12.0 });
    expectation("looping_units", 0.0, &|t| !loops(t), &|t| f64::from(u8::from(loops(t))));
    expectation("resolve", 0.0, &|_| true, &|_| 0.0);
    let environment = r#"expectation="environment""#;
    story.gauge("evenkeel_expectation_bound", environment, |_| 0.0);
    story.flag("evenkeel_expectation_unknown", environment, |_| true);
}

fn exporter(story: &mut Story) {
    story.gauge(
        "evenkeel_exporter_build_info",
        r#"version="0.1.0",revision="unknown",rustc="1.95.0""#,
        |_| 1.0,
    );
    for (collector, took) in [
        ("systemd", 0.004),
        ("docker", 0.006),
        ("docker_disk", 0.0002),
        ("filesystem", 0.001),
        ("redis", 0.002),
    ] {
        let labels = format!(r#"collector="{collector}""#);
        let hangs = |t: f64| collector == "docker" && between(t, 320.0, 326.0);
        story.flag("evenkeel_scrape_collector_success", &labels, |t| !hangs(t));
        story.gauge("evenkeel_scrape_collector_duration_seconds", &labels, |t| {
            if hangs(t) { 5.0 } else { took * (1.0 + 0.2 * (t / 3.0).sin()) }
        });
    }
    story.series("gauge", "up", EXPORTER, |_| Some(1.0));
    story.series("gauge", "up", REMEDIATOR, |_| Some(1.0));
}

fn alerts(story: &mut Story) {
    for (name, severity, more, from, to) in [
        ("RedisDown", "critical", r#"redis="queue""#, 32.0, 47.0),
        (
            "ContainerHealthcheckBroken",
            "warning",
            r#"name="shop_frontend",reason="command_not_found""#,
            65.0,
            361.0,
        ),
        (
            "ContainerUnhealthy",
            "info",
            r#"name="shop_web",remediate="true",remediation_rule="container-unhealthy""#,
            101.0,
            112.0,
        ),
        (
            "HostDiskHigh",
            "info",
            r#"mountpoint="/",remediate="true",remediation_rule="disk-high""#,
            149.0,
            156.0,
        ),
        (
            "SystemdUnitFailed",
            "info",
            r#"name="shop-api.service",remediate="true",remediation_rule="unit-failed""#,
            201.0,
            208.0,
        ),
        (
            "SystemdRestartLoop",
            "info",
            r#"name="shop-sync.service",remediate="true",remediation_rule="unit-looping""#,
            260.0,
            301.0,
        ),
        (
            "SystemdUnitStillLooping",
            "warning",
            r#"name="shop-sync.service",remediation_rule="unit-looping""#,
            268.0,
            296.0,
        ),
        (
            "SystemdUnitFailed",
            "info",
            r#"name="backup.service",remediate="true",remediation_rule="unit-failed""#,
            341.0,
            361.0,
        ),
        (
            "SystemdUnitStillFailed",
            "warning",
            r#"name="backup.service",remediation_rule="unit-failed""#,
            346.0,
            361.0,
        ),
    ] {
        let labels = format!(
            r#"alertname="{name}",alertstate="firing",severity="{severity}",host="vps1",{more},{EXPORTER}"#
        );
        story.series("gauge", "ALERTS", &labels, |t| between(t, from, to).then_some(1.0));
    }
    let watchdog = r#"alertname="Watchdog",alertstate="firing",severity="none""#;
    story.series("gauge", "ALERTS", watchdog, |_| Some(1.0));
}
