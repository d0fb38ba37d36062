//! Everything that the exporter publishes of a fixed state, line by line, as it is in `tests/golden/exporter.prom`: no
//! name, label, type, help or state changes unnoticed. `make golden` writes the file anew.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use evenkeel_host::systemd::snapshot::{self, Entry, FORMAT, MANIFEST, Manifest, OWN_FOLDERS};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings, built},
    engine::{Engine, Options},
    exposition::Exposition,
    http, namespace,
    process::free_port,
    redis_server::RedisServer,
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;

use crate::{metrics::promtool, shared, trial};

/// When set, the file is written and not compared with.
const UPDATE: &str = "EVENKEEL_UPDATE_GOLDEN";

/// Long enough for every healthcheck to have failed as often as it takes, on a loaded machine.
const SOON: Duration = Duration::from_secs(90);

/// Labels that say something of this run, this machine or this release.
const MOVING_LABELS: [&str; 18] = [
    "api_version",
    "cgroup_version",
    "id",
    "image_id",
    "major",
    "master_port",
    "master_replid",
    "minor",
    "os",
    "process_id",
    "redis_build_id",
    "redis_version",
    "revision",
    "run_id",
    "rustc",
    "storage_driver",
    "tcp_port",
    "version",
];

/// Metrics whose values do, by how their names begin or end.
const MOVING_BEGINNINGS: [&str; 7] = [
    "docker_disk_usage_",
    "evenkeel_expectation_value",
    "evenkeel_host_",
    "process_",
    "redis_connected_clients",
    "redis_rdb_changes_since_last_save",
    "systemd_units",
];
const MOVING_ENDINGS: [&str; 8] =
    ["_bytes", "_current", "_failing_streak", "_free", "_ratio", "_seconds", "_seconds_ago", "_total"];

/// Of every kind, some met, some not, some that nobody can tell. The processes of the host are not the exporter's own
/// here, so the environment is that of a unit which does not run.
const EXPECTED: &str = "resolve: [{host: localhost, expect: [127.0.0.1, '::1']}]
environment: [{unit: golden-missing.service, expect: {A: b}}]
expectations:
  running: {'golden-r*.service': {min: 1}}
  healthcheck: required
  log_rotation: required
  restarts_per_day: {max: 3}
  disk_usage: {max: 85%}
  build_cache: {max: 1GB}
  journal_size: {max: 100GB}
";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("golden_exposition_of_the_exporter", exposition_of_the_exporter)]
}

async fn exposition_of_the_exporter() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 400, ..Options::default() }).await?;
    let host = SystemdHost::start(shared::engine().await?).await?;
    let (first, second) = redis().await?;
    containers(&engine).await?;
    units(&host).await?;
    let dir = namespace::place("golden")?;
    let mount_point = filesystem()?;
    fs::create_dir_all("/run/log/journal")?;

    let config = dir.join("exporter.yml");
    let snapshots = snapshot_of_what_is_gone(&dir)?;
    let yaml = format!(
        "systemd: {{watch: ['golden-*.service', golden-missing.service]}}\n\
         snapshot: {{dir: {}, units: [golden-kept.service]}}\n\
         docker: {{labels: [golden.label]}}\n\
         filesystem: {{mount_points_include: '^{mount_point}$'}}\n\
         redis: [{{name: first, url: '{}'}}, {{name: second, url: '{}'}}]\n{EXPECTED}",
        snapshots.display(),
        first.url(),
        second.url()
    );
    fs::write(&config, yaml)?;
    let mut command = host.at_home(built("evenkeel-exporter")?).await?;
    command.arg("--collector.systemd.unit-include=golden-.*");
    command.arg(format!("--config.file={}", config.display()));
    Surroundings { bus: Some(host.bus_address()), docker: Some(engine.host()) }.apply(&mut command);
    let exporter = Exporter::start_as(&dir, free_port()?, command).await?;
    let scrape = async || anyhow::Ok(masked(&http::get(&format!("{}/metrics", exporter.url())).await?));

    let path = tools::repository().join("tests/golden/exporter.prom");
    let result = if std::env::var_os(UPDATE).is_some() {
        wait_for("the state to stand still", SOON, async || {
            let before = scrape().await?;
            tokio::time::sleep(Duration::from_secs(4)).await;
            let after = scrape().await?;
            ensure!(before == after, "{}", difference(&before, &after));
            Ok(fs::write(&path, after)?)
        })
        .await
    } else {
        let golden = fs::read_to_string(&path)?;
        wait_for("the golden exposition (make golden writes it anew)", SOON, async || {
            let seen = scrape().await?;
            ensure!(seen == golden, "{}", difference(&golden, &seen));
            Ok(())
        })
        .await
    };
    let broken = promtool(&exporter.url()).await;
    let mut unmount = tools::command("umount");
    unmount.arg(mount_point);
    tools::run_blocking(unmount)?;
    result.and(broken)
}

/// A master and its replica.
async fn redis() -> Result<(RedisServer, RedisServer)> {
    let first =
        RedisServer::start_with(&["--save", "", "--maxmemory", "200mb", "--maxclients", "123"]).await?;
    first.ask("SET a 1 EX 100000").await?;
    let master = format!("127.0.0.1 {}", first.port());
    let second =
        RedisServer::start_with(&["--save", "", "--appendonly", "yes", "--replicaof", &master]).await?;
    Ok((first, second))
}

/// A golden snapshot of one unit file that is not there.
fn snapshot_of_what_is_gone(dir: &Path) -> Result<PathBuf> {
    let file = Entry::File { mode: "0644".into(), uid: 0, gid: 0, bytes: 1, sha256: Some("0".repeat(64)) };
    let folder = OWN_FOLDERS[0].to_owned();
    let manifest = Manifest {
        format: FORMAT,
        made_ms: 1,
        entries: [(format!("{folder}/golden-kept.service"), file)].into(),
        folders: vec![folder],
    };
    let (text, snapshots) = (manifest.text()?, dir.join("snapshots"));
    let place = snapshots.join(snapshot::name(manifest.made_ms, &text));
    fs::create_dir_all(&place)?;
    fs::write(place.join(MANIFEST), text)?;
    Ok(snapshots)
}

/// One of every kind that is told apart; none paused, because on cgroup v1 nothing can end a paused process, nor the lab.
async fn containers(engine: &Engine) -> Result<()> {
    let often = ["--health-interval", "1s", "--health-retries", "1"];
    let probes = [("golden-well", "true"), ("golden-sick", "false"), ("golden-broken", "no-such-tool")];
    for (name, probe) in probes {
        let named = ["--name", name, "--memory", "64m", "--health-cmd", probe];
        engine.run(&[&named[..], &often].concat(), &["sleep", "100000"]).await?;
    }
    let of_compose =
        ["--label", "com.docker.compose.project=golden", "--label", "com.docker.compose.service=web"];
    let plain = ["--name", "golden-plain", "--label", "golden.label=said", "--restart", "unless-stopped"];
    engine.run(&[&plain[..], &of_compose].concat(), &["sleep", "100000"]).await?;
    engine.run(&["--name", "golden-ended"], &["sh", "-c", "exit 3"]).await?;
    engine.run(&["--name", "golden-restarted", "--restart", "on-failure:2"], &["false"]).await?;
    Ok(())
}

/// A service that runs, one that has failed, one that only a timer starts, one that a socket starts.
async fn units(host: &SystemdHost) -> Result<()> {
    for (name, text) in [
        ("golden-runs.service", "[Service]\nExecStart=/bin/sleep 100000\nTasksMax=77\n"),
        ("golden-fails.service", "[Service]\nExecStart=/bin/sh -c 'exit 7'\n"),
        ("golden-timed.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n"),
        ("golden-timed.timer", "[Timer]\nOnCalendar=yearly\n"),
        ("golden-called.service", "[Service]\nExecStart=/bin/sleep 100000\n"),
        ("golden-called.socket", "[Socket]\nListenStream=/run/golden.sock\n"),
    ] {
        host.write_file(&format!("/etc/systemd/system/{name}"), text).await?;
    }
    // In the lab's /etc, which is its own copy and what an exporter on the host would read.
    fs::create_dir_all("/etc/systemd/system")?;
    fs::write("/etc/systemd/system/golden-runs.service", "[Unit]\nAfter=golden-gone.service\n")?;
    host.systemctl(&["daemon-reload"]).await?;
    let started =
        ["golden-runs.service", "golden-fails.service", "golden-timed.timer", "golden-called.socket"];
    host.systemctl(&[&["start"], &started[..]].concat()).await.map(drop)
}

/// A filesystem that nobody else uses, and where it is.
fn filesystem() -> Result<&'static str> {
    let mount_point = "/run/golden";
    fs::create_dir(mount_point)?;
    let mut mount = tools::command("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64k,nr_inodes=100", "golden", mount_point]);
    tools::run_blocking(mount)?;
    Ok(mount_point)
}

/// The text with a `*` for everything that is another one at each run.
fn masked(text: &str) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        let masked = if line.starts_with('#') { line.to_owned() } else { masked_sample(line) };
        lines += &masked;
        lines.push('\n');
    }
    lines
}

fn masked_sample(line: &str) -> String {
    let exposition = Exposition::parse(line);
    let Some(sample) = exposition.samples().next() else { return format!("not read: {line}") };
    let name = &sample.name;
    let moves = MOVING_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || MOVING_ENDINGS.iter().any(|ending| name.ends_with(ending));
    let value = if moves { "*".to_owned() } else { sample.value.to_string() };
    let labels: Vec<String> = sample
        .labels
        .iter()
        .map(|(label, value)| {
            let is_moving = MOVING_LABELS.contains(&label.as_str());
            if is_moving && !value.is_empty() {
                format!("{label}=\"*\"")
            } else {
                format!("{label}={value:?}")
            }
        })
        .collect();
    if labels.is_empty() {
        format!("{name} {value}")
    } else {
        format!("{name}{{{}}} {value}", labels.join(","))
    }
}

/// What is only in one of two texts, line by line.
fn difference(golden: &str, seen: &str) -> String {
    let (golden, seen): (BTreeSet<&str>, BTreeSet<&str>) = (golden.lines().collect(), seen.lines().collect());
    let gone = golden.difference(&seen).map(|line| format!("- {line}"));
    let new = seen.difference(&golden).map(|line| format!("+ {line}"));
    let lines: Vec<String> = gone.chain(new).take(60).collect();
    if lines.is_empty() { "the lines are the same, their order is not".to_owned() } else { lines.join("\n") }
}
