//! `make up`: watches this machine, or, where it has neither a systemd bus nor Docker, a private host
//! of the lab. Nothing is installed, enabled or started system-wide; Ctrl-C ends all of it.

pub mod configuration;
pub mod summary;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::IsTerminal as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    alerting::Ports,
    binaries::{Exporter, Surroundings, built},
    exposition::Exposition,
    inside::{self, step},
    namespace::{self, World},
    private_host::PrivateHost,
    process::{free_port, is_free},
    screen::Screen,
    stack::Stack,
    tools,
};

/// The disk of the private host in MiB.
const DISK_MIB: u64 = 1000;
/// How often the summary looks anew, in a terminal and in a log.
const REFRESH: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];
/// The label that names what an alert is about, the first of these that it has.
const SUBJECTS: [&str; 5] = ["name", "mountpoint", "redis", "collector", "instance"];

/// Runs until it is asked to end. `dir` is where configuration, data and logs are kept when this
/// machine is watched, instead of `.run/up`.
///
/// # Errors
///
/// When something cannot be fetched or started.
pub fn main(dir: Option<&Path>) -> Result<()> {
    let world = match namespace::chosen() {
        Some(world) => world,
        None => prepare()?,
    };
    let lifeline = namespace::enter(world)?;
    inside::run(lifeline, watch(world, dir))
}

/// Outside: decides what is watched, and fetches what that takes.
fn prepare() -> Result<World> {
    let world = if has_systemd_bus() || has_docker() { World::Machine } else { World::OpenLab };
    let mut fetch = tools::command(tools::repository().join("tests/fetch-tools.sh"));
    fetch.arg(if world == World::Machine { "up" } else { "host" });
    if !fetch.status().context("cannot start tests/fetch-tools.sh")?.success() {
        bail!("what make up starts could not be fetched");
    }
    Ok(world)
}

fn has_systemd_bus() -> bool {
    let sockets = ["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"];
    std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").is_some() || sockets.into_iter().any(answers)
}

fn has_docker() -> bool {
    std::env::var_os("DOCKER_HOST").is_some() || answers("/var/run/docker.sock")
}

fn answers(socket: &str) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Inside: starts everything and shows what it sees, until the future is dropped.
async fn watch(world: World, dir: Option<&Path>) -> Result<()> {
    let (dir, shown) = folder(world, dir)?;
    let lock = File::create(dir.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("make up runs here already (it holds {}/lock)", shown.display());
    }
    remove_old_logs(&dir)?;
    let host = match world {
        World::Machine => None,
        World::Lab | World::OpenLab => {
            println!(
                "This machine has neither a systemd bus nor Docker, so a private host is made to watch."
            );
            Some(step("starting its Docker, systemd and Redis", PrivateHost::start(DISK_MIB)).await?)
        }
    };
    let ports = choose_ports()?;
    let redis = host.as_ref().map(|host| host.redis.url());
    let around = host.as_ref().map_or_else(Surroundings::default, PrivateHost::surroundings);
    let configuration = configuration::provide(&dir, ports.remediator, redis.as_deref(), &around).await?;
    let stack = step(
        "starting exporter, remediator, Prometheus and Alertmanager",
        Stack::start(&dir, &configuration, &ports, false, &around),
    )
    .await?;
    introduce(&stack, host.is_some(), &shown).await?;
    keep_showing(&stack).await
}

/// Where configuration, data and logs lie, for this process and for a person outside. Those of the
/// machine stay for the next time; those of a private host go with it.
fn folder(world: World, kept: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
    let (dir, outside) = if world == World::Machine {
        let dir = kept.map_or_else(|| tools::run_folder().join("up"), Path::to_owned);
        fs::create_dir_all(&dir)?;
        // Prometheus takes the paths in its configuration for relative to that.
        let dir = dir.canonicalize()?;
        (dir.clone(), dir)
    } else {
        let dir = namespace::place("up")?;
        let name = dir.file_name().context("a place has a name")?.to_owned();
        (dir, namespace::run_folder()?.join(name))
    };
    let shown = outside.strip_prefix(tools::repository()).unwrap_or(&outside).to_owned();
    Ok((dir, shown))
}

fn remove_old_logs(dir: &Path) -> Result<()> {
    for log in
        ["exporter.log", "remediator.log", "prometheus/prometheus.log", "alertmanager/alertmanager.log"]
    {
        match fs::remove_file(dir.join(log)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn choose_ports() -> Result<Ports> {
    let usual = |name: &str, port: u16| {
        if is_free(port) {
            return Ok(port);
        }
        let other = free_port()?;
        println!("Port {port} is taken: {name} gets {other}.");
        anyhow::Ok(other)
    };
    Ok(Ports {
        exporter: usual("the exporter", 19847)?,
        remediator: usual("the remediator", 19848)?,
        prometheus: usual("Prometheus", 9090)?,
        alertmanagers: vec![usual("Alertmanager", 9093)?],
    })
}

async fn introduce(stack: &Stack, is_private: bool, shown: &Path) -> Result<()> {
    let checked = stack.remediator.cli(&["check-config"]).await?;
    let first = checked.lines().next().unwrap_or_default();
    let says = |word: &str| first.split(", ").find(|part| part.starts_with(word)).unwrap_or(word).to_owned();
    let (watched, more) = if is_private {
        ("a private host in namespaces of its own", " To see something break and heal: make demo.")
    } else {
        ("this host", "")
    };
    let (dir, remediator) = (shown.display(), built("evenkeel-remediator")?);
    let remediator = remediator.strip_prefix(tools::repository()).unwrap_or(&remediator).display();
    println!(
        "\nevenkeel watches {watched}.\n\n  \
         exporter      {}/metrics\n  \
         remediator    {}/  ({}, {})\n  \
         Prometheus    {}/alerts\n  \
         Alertmanager  {}/\n\n  \
         files         {dir}/ (exporter.yml, remediator.yml, logs; the password of the remediator's page: webhook.token)\n\n\
         What it would have repaired, and why: {remediator} history --config.file {dir}/remediator.yml\n\
         Ctrl-C ends it and leaves nothing running.{more}\n",
        stack.exporter.url(),
        stack.remediator.url(),
        says("mode"),
        says("deletion"),
        stack.prometheus.url(),
        stack.alertmanager.url(),
    );
    Ok(())
}

async fn keep_showing(stack: &Stack) -> Result<()> {
    let mut screen = Screen::default();
    let mut refresh = interval(REFRESH[usize::from(!std::io::stdout().is_terminal())]);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        refresh.tick().await;
        let mut lines = host_lines(&stack.exporter).await;
        lines.push(("alerts", alerts(stack).await.unwrap_or_else(|error| format!("unknown: {error:#}"))));
        lines.push(("remediator", done(stack).await.unwrap_or_else(|error| format!("unknown: {error:#}"))));
        screen.show(lines.into_iter().map(|(what, said)| format!("  {what:13} {said}")).collect())?;
    }
}

async fn host_lines(exporter: &Exporter) -> Vec<summary::Line> {
    match exporter.scrape().await {
        Ok(scrape) => summary::of_host(&scrape),
        Err(error) => vec![("exporter", format!("does not answer: {error:#}"))],
    }
}

/// The alerts that mean something to a person, as Prometheus has them.
async fn alerts(stack: &Stack) -> Result<String> {
    let mut alerts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for alert in stack.prometheus.alerts().await? {
        let labels = &alert["labels"];
        // Those for machines: Watchdog always fires.
        if labels["severity"] != "none" {
            let state = alert["state"].as_str().unwrap_or("unknown").to_owned();
            alerts.entry(state).or_default().push(in_words(labels));
        }
    }
    if alerts.is_empty() {
        return Ok("none".to_owned());
    }
    let states = alerts.iter().map(|(state, names)| format!("{state}: {}", names.join(", ")));
    Ok(states.collect::<Vec<_>>().join("; "))
}

fn in_words(labels: &Value) -> String {
    let subject = SUBJECTS.iter().find_map(|label| labels[*label].as_str()).unwrap_or_default();
    format!("{} {subject}", labels["alertname"].as_str().unwrap_or_default())
}

/// What came of the alerts that the remediator was sent.
async fn done(stack: &Stack) -> Result<String> {
    Ok(outcomes(&stack.remediator.scrape().await?))
}

fn outcomes(scrape: &Exposition) -> String {
    let mut outcomes: BTreeMap<&str, f64> = BTreeMap::new();
    for sample in
        scrape.all("evenkeel_remediator_remediations_total", &[]).filter(|sample| sample.value > 0.0)
    {
        *outcomes.entry(sample.labels.get("outcome").map_or("", String::as_str)).or_default() += sample.value;
    }
    if outcomes.is_empty() {
        return "was sent nothing to repair".to_owned();
    }
    let counted = outcomes.iter().map(|(outcome, count)| format!("{count} {}", outcome.replace('_', " ")));
    counted.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_alert_is_named_with_what_it_is_about() {
        let labels =
            json!({"alertname": "SystemdUnitFailed", "instance": "127.0.0.1:1", "name": "a.service"});
        assert_eq!(in_words(&labels), "SystemdUnitFailed a.service");
        assert_eq!(in_words(&json!({"alertname": "Odd"})), "Odd ");
    }

    #[test]
    fn outcomes_are_counted_over_rules_and_actions() {
        let scrape = Exposition::parse(concat!(
            "evenkeel_remediator_remediations_total{rule=\"a\",outcome=\"planned\"} 1.0\n",
            "evenkeel_remediator_remediations_total{rule=\"b\",outcome=\"planned\"} 2.0\n",
            "evenkeel_remediator_remediations_total{rule=\"b\",outcome=\"not_needed\"} 1.0\n",
            "evenkeel_remediator_remediations_total{rule=\"b\",outcome=\"failed\"} 0.0\n",
        ));
        assert_eq!(outcomes(&scrape), "1 not needed, 3 planned");
        assert_eq!(outcomes(&Exposition::parse("")), "was sent nothing to repair");
    }
}
