//! The lab's own tests: each thing really starts, does what it is for, and leaves nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_host::systemd::Systemd;
use evenkeel_tests::{
    alertmanager::Alertmanager,
    engine::{Cgroup, Engine, Options},
    http, namespace,
    process::{Process, free_port},
    prometheus::Prometheus,
    receiver::Receiver,
    redis_server::RedisServer,
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use tokio::time::timeout;

use crate::{shared, trial};

/// Long enough for a loaded machine; every wait ends as soon as the fact is there.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("lab_engine_fills_its_disk_and_leaves_nothing", engine_fills_its_disk_and_leaves_nothing),
        trial("lab_engine_runs_health_checks", engine_runs_health_checks),
        trial("lab_engine_freezes", engine_freezes),
        trial("lab_systemd_host", systemd_host),
        trial("lab_systemd_host_on_cgroup_v2", systemd_host_on_cgroup_v2),
        trial("lab_redis_answers_and_freezes", redis_answers_and_freezes),
        trial("lab_an_alert_reaches_the_receiver", an_alert_reaches_the_receiver),
        trial("lab_two_alertmanagers_know_each_other", two_alertmanagers_know_each_other),
        trial("lab_killed_run_leaves_nothing", killed_run_leaves_nothing),
        trial("lab_held_run", held_run).with_ignored_flag(true),
    ]
}

async fn engine_fills_its_disk_and_leaves_nothing() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 400, ..Options::default() }).await?;
    engine.fill_with_build_cache(0.87).await?;
    ensure!(engine.disk().usage()?.used_ratio() > 0.87);
    let images = engine.docker(&["images", "--quiet"]).await?;
    ensure!(images.lines().count() == 1, "only the base image is left, so the rest is build cache: {images}");
    engine.run(&["--name", "runs"], &["sleep", "600"]).await?;
    engine.docker(&["builder", "prune", "--all", "--force"]).await?;
    ensure!(engine.disk().usage()?.used_ratio() < 0.2, "pruning the build cache frees the disk");

    let socket = engine.socket();
    let dir = socket.parent().context("the socket lies in the engine's folder")?.to_owned();
    let disk = engine.disk().path().to_owned();
    drop(engine);
    for place in [&dir, &disk] {
        nothing_names(place)?;
    }
    Ok(())
}

async fn engine_runs_health_checks() -> Result<()> {
    let engine = shared::engine().await?;
    engine.run_probed("well", "true", &["sleep", "600"]).await?;
    engine.run_probed("broken", "curl localhost", &["sleep", "600"]).await?;
    for (name, wanted) in [("well", "healthy"), ("broken", "unhealthy")] {
        wait_for(wanted, SOON, async || {
            let seen = engine.inspect(name, "{{.State.Health.Status}}").await?;
            if seen == wanted { Ok(()) } else { bail!("{name} is {seen}") }
        })
        .await?;
    }
    let log = engine.inspect("broken", "{{(index .State.Health.Log 0).ExitCode}}").await?;
    ensure!(log == "127", "a missing program is exit code 127, not {log}");
    engine.docker(&["rm", "--force", "well", "broken"]).await.map(drop)
}

async fn engine_freezes() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    let frozen = engine.freeze()?;
    let unanswered = timeout(Duration::from_millis(500), engine.docker(&["version"])).await;
    ensure!(unanswered.is_err(), "a frozen engine does not answer");
    drop(frozen);
    engine.docker(&["version"]).await?;
    // Dropping it must not wait for a frozen daemon either.
    let frozen = engine.freeze()?;
    drop(engine);
    drop(frozen);
    Ok(())
}

async fn systemd_host() -> Result<()> {
    let host = SystemdHost::start(shared::engine().await?).await?;
    host.install_unit("crash.service", "[Service]\nExecStart=/bin/sh -c 'echo going down; exit 3'\n").await?;
    host.install_unit("calm.service", "[Service]\nExecStart=/bin/sleep 600\nTasksMax=7\n").await?;
    host.systemctl(&["start", "calm.service"]).await?;
    host.systemctl(&["start", "crash.service"]).await?;

    // The way the exporter sees it: over the host's bus, from outside the container.
    let systemd = Systemd::at(&host.bus_address());
    wait_for("crash.service to have failed", SOON, async || {
        let unit = systemd.unit("crash.service").await?;
        if unit.active_state == "failed" { Ok(()) } else { bail!("it is {}", unit.active_state) }
    })
    .await?;
    ensure!(host.property("calm.service", "ActiveState").await? == "active");

    let frozen = host.freeze_bus().await?;
    let unanswered = timeout(Duration::from_millis(500), systemd.units()).await;
    ensure!(!matches!(unanswered, Ok(Ok(_))), "a frozen bus answers nothing");
    drop(frozen);
    systemd.forget().await;
    systemd.units().await.context("a thawed bus answers again")?;

    host.lend_journal().await?;
    wait_for("the journal to be readable from outside", SOON, async || {
        let mut journal = tools::command("journalctl");
        journal.args(["--unit=crash.service", "--no-pager", "--output=cat"]);
        let lines = tools::run(journal, SOON).await?;
        if lines.contains("going down") { Ok(()) } else { bail!("it says {lines:?}") }
    })
    .await?;

    let pid = host.pid().await?;
    drop(host);
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "dropping the host ends its systemd");
    Ok(())
}

async fn systemd_host_on_cgroup_v2() -> Result<()> {
    let engine = Arc::new(Engine::start(Options { cgroup: Cgroup::V2, ..Options::default() }).await?);
    ensure!(engine.docker(&["info", "--format", "{{.CgroupVersion}}"]).await? == "2");
    let host = SystemdHost::start(engine).await?;
    host.install_unit("calm.service", "[Service]\nExecStart=/bin/sleep 600\n").await?;
    host.systemctl(&["start", "calm.service"]).await?;
    let usage = host.exec(&["cat", "/sys/fs/cgroup/system.slice/calm.service/cpu.stat"]).await?;
    ensure!(usage.contains("usage_usec"), "{usage}");
    Ok(())
}

async fn redis_answers_and_freezes() -> Result<()> {
    let redis = RedisServer::start().await?;
    let target = evenkeel_host::redis::Target {
        name: "lab".to_owned(),
        url: redis.url(),
        username: None,
        password: None,
        ca_file: None,
    };
    let budget = Duration::from_millis(500);
    ensure!(evenkeel_host::redis::probe(&target, budget).await.ready);
    let frozen = redis.freeze()?;
    ensure!(!evenkeel_host::redis::probe(&target, budget).await.ready, "a frozen redis is not ready");
    drop(frozen);
    ensure!(evenkeel_host::redis::probe(&target, budget).await.ready, "a thawed redis is ready again");
    Ok(())
}

async fn an_alert_reaches_the_receiver() -> Result<()> {
    let dir = namespace::place("wiring")?;
    let receiver = Receiver::start().await?;
    let alertmanager = Alertmanager::start(&alertmanager_config(&dir, &receiver)?, free_port()?).await?;
    let rules = "groups: [{name: lab, interval: 1s, rules: [{alert: Always, expr: vector(1)}]}]\n";
    fs::write(dir.join("lab.rules.yml"), rules)?;
    let config = dir.join("prometheus.yml");
    let address = alertmanager.url();
    let address = address.strip_prefix("http://").context("an address without TLS")?;
    fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"*.rules.yml\"]\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: [\"{address}\"]}}]}}]}}\n"
        ),
    )?;
    let prometheus = Prometheus::start(&config, free_port()?).await?;
    let delivered = receiver.wait_for("the alert", SOON, |body| body["status"] == "firing").await?;
    ensure!(delivered["alerts"][0]["labels"]["alertname"] == "Always", "{delivered}");
    ensure!(prometheus.alerts().await?[0]["state"] == "firing");
    ensure!((prometheus.value("ALERTS{alertname=\"Always\"}").await? - 1.0).abs() < f64::EPSILON);
    Ok(())
}

async fn two_alertmanagers_know_each_other() -> Result<()> {
    let dir = namespace::place("wiring")?;
    let receiver = Receiver::start().await?;
    let config = alertmanager_config(&dir, &receiver)?;
    let first = Alertmanager::start_clustered(&config, free_port()?, &[]).await?;
    let second = Alertmanager::start_clustered(&config, free_port()?, &[&first]).await?;
    for one in [&first, &second] {
        one.wait_settled().await?;
        let status = http::get_json(&format!("{}/api/v2/status", one.url())).await?;
        let peers = status["cluster"]["peers"].as_array().map_or(0, Vec::len);
        ensure!(peers == 2, "{} knows {peers} peers", one.url());
    }
    Ok(())
}

fn alertmanager_config(dir: &Path, receiver: &Receiver) -> Result<PathBuf> {
    let path = dir.join("alertmanager.yml");
    fs::write(
        &path,
        format!(
            "route: {{receiver: lab, group_wait: 1s, group_interval: 1s}}\n\
             receivers: [{{name: lab, webhook_configs: [{{url: \"{}\"}}]}}]\n",
            receiver.url()
        ),
    )?;
    Ok(path)
}

/// Run by the next test in a lab of its own: starts what leaves most behind and then only waits.
async fn held_run() -> Result<()> {
    let engine = Arc::new(Engine::start(Options::default()).await?);
    let _host = SystemdHost::start(engine).await?;
    let _redis = RedisServer::start().await?;
    fs::write(namespace::run_folder()?.join("held"), "")?;
    std::future::pending().await
}

async fn killed_run_leaves_nothing() -> Result<()> {
    let dir = namespace::place("killed")?;
    let runs = tools::run_folder().join("lab");
    let before = folders(&runs)?;
    let mut command = tools::command(std::env::current_exe()?);
    command.args(["--exact", "--ignored", "lab_held_run"]);
    let mut outside = Process::start("held", &dir, command)?;
    let run = wait_for("the held run", Duration::from_secs(60), async || {
        outside.check_alive()?;
        let new = folders(&runs)?.into_iter().find(|path| !before.contains(path));
        let new = new.context("it has no folder yet")?;
        if new.join("held").exists() { Ok(new) } else { bail!("it is not up yet") }
    })
    .await?;
    let world = inner_world(outside.id())?;
    ensure!(members(&world)?.len() > 5, "the held run has its daemons");
    ensure!(!loops_of(&run)?.is_empty(), "the held run has a disk");

    outside.kill()?;
    wait_for("everything of the killed run to end", SOON, async || {
        let (left, disks) = (members(&world)?.len(), loops_of(&run)?);
        if left == 0 && disks.is_empty() { Ok(()) } else { bail!("{left} processes and the disks {disks:?}") }
    })
    .await?;
    // Its folder and cgroups go when the next run starts; listing tests does not start one.
    let mut next = tools::command(std::env::current_exe()?);
    next.args(["--exact", "no such test"]);
    tools::run(next, SOON).await?;
    ensure!(!run.exists(), "the next run removes {}", run.display());
    let cgroup = evenkeel_tests::run_dir::cgroup_name(&run);
    let left: Vec<PathBuf> = folders(Path::new("/sys/fs/cgroup"))?;
    ensure!(
        !left.iter().any(|top| top.ends_with(&cgroup) || top.join(&cgroup).exists()),
        "its cgroups are gone"
    );
    Ok(())
}

pub(crate) fn folders(parent: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(parent)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// The process namespace that a descendant of `outside` lives in and this process does not.
pub(crate) fn inner_world(outside: u32) -> Result<PathBuf> {
    let own = fs::read_link("/proc/self/ns/pid")?;
    let mut family = vec![outside];
    while let Some(pid) = family.pop() {
        if let Ok(world) = fs::read_link(format!("/proc/{pid}/ns/pid"))
            && world != own
        {
            return Ok(world);
        }
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    bail!("process {outside} has no descendant in a namespace of its own")
}

pub(crate) fn members(world: &Path) -> Result<Vec<PathBuf>> {
    let processes = folders(Path::new("/proc"))?;
    Ok(processes
        .into_iter()
        .filter(|path| fs::read_link(path.join("ns/pid")).is_ok_and(|own| own == world))
        .collect())
}

/// The loop devices behind the disks in a run's folder.
pub(crate) fn loops_of(run: &Path) -> Result<String> {
    let mut found = String::new();
    for file in
        fs::read_dir(run)?.flatten().filter(|file| file.path().extension().is_some_and(|it| it == "img"))
    {
        let mut losetup = tools::command("losetup");
        // By inode: the kernel knows the file by its path in another mount namespace.
        losetup.arg("--associated").arg(file.path());
        found += &tools::run_blocking(losetup)?;
    }
    Ok(found)
}

/// No process or mount has to do with `place` any more.
fn nothing_names(place: &Path) -> Result<()> {
    let name = place.to_string_lossy();
    for process in folders(Path::new("/proc"))? {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        ensure!(!line.contains(&*name), "{} still runs: {line}", process.display());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&*name), "still mounted: {mounts}");
    Ok(())
}
