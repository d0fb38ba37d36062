//! `make demo`: breaks a private host in four ways and shows the whole loop at work on three of them;
//! the fourth is a healthcheck that cannot work, for which nothing must be restarted.
//!
//! What is printed as seen, fired, delivered, acted and resolved is what the exporter, Prometheus,
//! Alertmanager and the remediator's own history say; the table at the end is measured without them.
//!
//! The host is a fleet of one besides, gateway and agent at once over its own Redis, so that what many hosts share is
//! at work and on the dashboards too.

pub mod problem;
pub mod report;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{
    alerting::Ports,
    disk::Usage,
    inside::{self, step},
    namespace::{self, World},
    private_host::{CONTAINER, PrivateHost, SERVICE},
    process::free_port,
    stack::{Configuration, Stack},
    wait::wait_for,
};
use problem::{Picture, Problem};
use report::Row;

/// The disk of the host in MiB: enough for the images, and quickly filled.
const DISK_MIB: u64 = 700;
/// How full the disk is made.
const FULL: f64 = 0.88;
/// How long the host may take to heal before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked.
const PAUSE: Duration = Duration::from_millis(250);
/// The container whose healthcheck cannot work: its image has no curl.
const BROKEN_PROBE: &str = "shop-frontend";
/// The rule that would restart it.
const CONTAINER_RULE: &str = "container-unhealthy";

/// What the exporter is told to watch, and what is expected of the host. Of disks only the host's own, because what
/// else is mounted is the machine's and may well be full; and Docker's share of it as often as the scrapes.
const EXPORTER: &str = r#"
filesystem: {mount_points_include: "^DISK$"}
docker: {disk_usage: {images: 2s, build_cache: 2s, volumes: 5s, containers: 5s}}
systemd: {watch: ["shop-*.service"]}
redis: [{name: shop, url: "REDIS"}]
resolve: [{host: localhost, expect: [127.0.0.1]}]
expectations: {running: {"shop-*.service": {min: 1}}}
"#;

/// What makes the host a fleet of one, over its own Redis. All of such a fleet is in need when one service is.
const FLEET: &str = r#"
identity: {hosts: [demo]}
fleet: {redis: {url: "REDIS"}, stop_above_unhealthy: 100%, limits: {S2: [30/1h], all: [100/24h]}}
"#;

/// The rules of `packaging/remediator.yml` in mode auto, with shorter holds, with room for the two restarts
/// at once that a demo needs, and without the time that a host is given after its start.
const RULES: &str = r#"
policy:
  mode: auto
  deletion: cache
  gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}
  limits: {S2: [3/1m, 6/1h]}
rules:
  - name: disk-high
    match: ['alertname="HostDiskHigh"']
    target: {filesystem: mountpoint, allow: ["DISK"]}
    limits: [1/15m, 3/6h]
    steps: [build_cache_prune: {unused_for: 48h}, build_cache_prune: {all: true}]
    verify: {usage_below: 80%, within: 60s, hold: 5s}
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: ["shop-*.service"]}
    limits: [1/5m, 3/1h]
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 5s, within: 30s}
  - name: container-unhealthy
    match: ['alertname="ContainerUnhealthy"']
    target: {container: name, allow: ["shop-*"]}
    limits: [1/15m, 3/6h]
    steps: [container_restart: {}]
    verify: {healthy_for: 5s, within: 60s}
"#;

/// What stands before the address of Prometheus, in what is printed when the demo stays.
pub const PROMETHEUS: &str = "  Prometheus    ";

/// Runs the demo to its end, or until it is asked to end when it is to `stay`.
///
/// # Errors
///
/// When something cannot be started, or does not heal.
pub fn main(stay: bool) -> Result<()> {
    // Only what stays can be looked at.
    let lifeline = namespace::enter(if stay { World::OpenLab } else { World::Lab })?;
    inside::run(lifeline, demo(stay))
}

async fn demo(stay: bool) -> Result<()> {
    println!(
        "evenkeel's loop on a host of its own, in namespaces of its own: nothing of this machine is touched.\n"
    );
    let host =
        step("making the host: Docker on its own disk, systemd, Redis", PrivateHost::start(DISK_MIB)).await?;
    let ports = Ports {
        exporter: free_port()?,
        remediator: free_port()?,
        prometheus: free_port()?,
        alertmanagers: vec![free_port()?],
    };
    let dir = namespace::place("demo")?;
    let stack = step(
        "starting exporter, Prometheus, Alertmanager, and the remediator in mode auto, deletion cache",
        start(&dir, &host, &ports),
    )
    .await?;
    println!(
        "\nThe shipped alerts, sped up: what waits a minute in alerts/ waits a second here.\n\
         The rule for the disk deletes build cache unused for 48 h first, and the rest only if that is not enough.\n"
    );

    let before = measure(&host).await?;
    let mut problems = break_it(&host).await?;
    let probe_started = host.engine.inspect(BROKEN_PROBE, "{{.State.StartedAt}}").await?;
    println!("\n   since  what\n  broken");
    let (healed, broken) = tokio::join!(watch(&stack, &mut problems), measure_broken(&host));
    let after = measure(&host).await?;
    println!();
    for line in report::table(&rows(&problems, [&before, &broken?, &after])) {
        println!("{line}");
    }
    healed?;
    say_what_was_not_done(&stack, &host, &problems, &probe_started).await?;
    println!("\nAll that could be healed has healed.");
    if stay {
        println!(
            "\nIt stays as it is, to be looked at, until Ctrl-C:\n\n\
             {PROMETHEUS}{}\n  Alertmanager  {}\n  remediator    {}",
            stack.prometheus.url(),
            stack.alertmanager.url(),
            stack.remediator.url()
        );
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn start(dir: &Path, host: &PrivateHost, ports: &Ports) -> Result<Stack> {
    let configuration = configure(dir, host, ports)?;
    let stack = Stack::start(dir, &configuration, ports, true, &host.surroundings()).await?;
    // This Redis is new: nothing was started that it could have forgotten.
    stack.remediator.cli(&["fleet", "trust-memory"]).await?;
    Ok(stack)
}

/// The remediator's and the exporter's configuration.
fn configure(dir: &Path, host: &PrivateHost, ports: &Ports) -> Result<Configuration> {
    let configuration = Configuration {
        exporter: dir.join("exporter.yml"),
        remediator: dir.join("remediator.yml"),
        token: dir.join("webhook.token"),
        serve: &["serve", "--role=both"],
    };
    fs::write(&configuration.token, "known inside the demo only")?;
    let redis = host.redis.url();
    let disk = host.engine.disk().path().to_string_lossy();
    fs::write(&configuration.exporter, EXPORTER.replace("REDIS", &redis).replace("DISK", &disk))?;
    let mut server = format!(
        "server: {{listen: [\"127.0.0.1:{}\"], bearer_token_files: [webhook.token]}}\nstate: {{dir: state}}\n\
         prometheus: {{url: \"http://127.0.0.1:{}\"}}\nreconcile: {{interval: 5s}}\n",
        ports.remediator, ports.prometheus
    );
    if let Some(port) = ports.alertmanagers.first() {
        server += &format!("alertmanager: {{url: \"http://127.0.0.1:{port}\"}}\n");
    }
    let (fleet, rules) = (FLEET.replace("REDIS", &redis), RULES.replace("DISK", &disk));
    fs::write(&configuration.remediator, server + &fleet + &rules)?;
    Ok(configuration)
}

/// Breaks the host, and says how. Returns what has to heal.
async fn break_it(host: &PrivateHost) -> Result<Vec<Problem>> {
    let point = host.engine.disk().path().to_string_lossy().into_owned();
    let filling = format!("breaking: filling Docker's disk ({point}) with build cache");
    step(&filling, host.engine.fill_with_build_cache(FULL)).await?;
    let disk = Problem::new("disk", ("HostDiskHigh", "mountpoint"), "disk-high", &point);
    println!(
        "breaking: {BROKEN_PROBE} is started with a healthcheck that calls curl, which its image does not have"
    );
    host.run_container(BROKEN_PROBE, "curl --fail http://localhost/").await?;
    println!("breaking: {CONTAINER} fails its healthcheck from now on");
    host.engine.docker(&["exec", CONTAINER, "rm", "/well"]).await?;
    let container = Problem::new("container", ("ContainerUnhealthy", "name"), CONTAINER_RULE, CONTAINER);
    println!("breaking: {SERVICE} crashes (SIGSEGV)");
    host.systemd.systemctl(&["kill", "--kill-who=main", "--signal=SEGV", SERVICE]).await?;
    let unit = Problem::new("unit", ("SystemdUnitFailed", "name"), "unit-failed", SERVICE);
    Ok(vec![disk, container, unit])
}

/// Prints what happens until everything has healed and people are told of the broken probe.
async fn watch(stack: &Stack, problems: &mut [Problem]) -> Result<()> {
    let began = Instant::now();
    let mut told_of_probe = false;
    loop {
        let picture = Picture::take(stack).await?;
        for problem in problems.iter_mut() {
            for line in problem.advance(&picture, Instant::now()) {
                println!("{line}");
            }
        }
        let alert = ("ContainerHealthcheckBroken", "name");
        if !told_of_probe && picture.is_firing(alert, BROKEN_PROBE) {
            told_of_probe = true;
            let text = format!("alert {} fires for people: nothing is restarted for it", alert.0);
            println!("{}", problem::line(began.elapsed(), "probe", &text));
        }
        if let Some(failed) = problems.iter().find_map(Problem::failure) {
            bail!("{failed}");
        }
        let waiting: Vec<&str> = problems.iter().filter(|one| !one.is_over()).map(Problem::name).collect();
        if waiting.is_empty() && told_of_probe {
            return Ok(());
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "not healed within {} s: {}",
            PATIENCE.as_secs(),
            if waiting.is_empty() { "the alert about the probe".to_owned() } else { waiting.join(", ") }
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// What systemd, Docker and the kernel say themselves.
struct Measured {
    unit: String,
    container: String,
    disk: Usage,
    probe: String,
}

async fn measure(host: &PrivateHost) -> Result<Measured> {
    Ok(Measured {
        disk: host.engine.disk().usage()?,
        unit: host.systemd.property(SERVICE, "ActiveState").await?,
        container: host.health(CONTAINER).await?,
        probe: host.health(BROKEN_PROBE).await.unwrap_or_else(|_| "not there".to_owned()),
    })
}

/// The same when all of it is broken, each at its own moment, because the first may have healed before
/// the last shows.
async fn measure_broken(host: &PrivateHost) -> Result<Measured> {
    let disk = host.engine.disk().usage()?;
    let failed = wait_for("the crash", PATIENCE, async || {
        let state = host.systemd.property(SERVICE, "ActiveState").await?;
        ensure!(state == "failed", "it is {state}");
        Ok(state)
    });
    let unhealthy = async |name| {
        wait_for("Docker to call the container unhealthy", PATIENCE, async || {
            let health = host.health(name).await?;
            ensure!(health == "unhealthy", "{name} is {health}");
            Ok(health)
        })
        .await
    };
    let (unit, container, probe) = tokio::try_join!(failed, unhealthy(CONTAINER), unhealthy(BROKEN_PROBE))?;
    Ok(Measured { unit, container, disk, probe })
}

fn rows(problems: &[Problem], measured: [&Measured; 3]) -> Vec<Row> {
    let mut rows: Vec<Row> = problems
        .iter()
        .map(|problem| Row {
            what: problem.target().to_owned(),
            states: measured.map(|at| match problem.name() {
                "unit" => at.unit.clone(),
                "container" => at.container.clone(),
                _ => percent(at.disk),
            }),
            healed: match problem.healed_after() {
                Some(after) => format!("{:.0} s", after.as_secs_f64()),
                None => "not healed".to_owned(),
            },
        })
        .collect();
    let states = measured.map(|at| at.probe.clone());
    rows.push(Row { what: BROKEN_PROBE.to_owned(), states, healed: "not restarted".to_owned() });
    rows
}

async fn say_what_was_not_done(
    stack: &Stack,
    host: &PrivateHost,
    problems: &[Problem],
    probe_started: &str,
) -> Result<()> {
    println!("\nNot done, and why:");
    let explained = stack.remediator.cli(&["explain", CONTAINER_RULE, BROKEN_PROBE]).await?;
    println!("  {BROKEN_PROBE} was not restarted: {}", report::verdict(&explained));
    for skipped in problems.iter().flat_map(Problem::skipped) {
        println!("  {skipped}");
    }
    let now = host.engine.inspect(BROKEN_PROBE, "{{.State.StartedAt}}").await?;
    ensure!(now == probe_started, "{BROKEN_PROBE} was restarted, though its probe says nothing about it");
    Ok(())
}

fn percent(usage: Usage) -> String {
    format!("{:.0} % full", usage.used_ratio() * 100.0)
}
