//! What the exporter says of the tasks, the CPU time and the memory of units, against what `systemctl show` and the kernel
//! say of the same ones, on a real systemd: on the cgroups that the machine has, and on version 2.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings, built},
    engine::{Cgroup, Engine, Options},
    exposition::Exposition,
    namespace,
    process::free_port,
    systemd_host::SystemdHost,
    wait::wait_for,
};
use libtest_mimic::Trial;

use crate::{shared, trial};

/// Case 10 of the operations documents, which looked at containers by hand.
const UNIT: &str = "quantum-risk-brain.service";

/// Keeps 20 MiB that are no file cache, has used some CPU, and then rests as two tasks.
const USED: &str = r#"[Service]
CPUAccounting=yes
MemoryAccounting=yes
TasksMax=17
ExecStart=/bin/sh -c 'head -c 20971520 /dev/zero >/dev/shm/held; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 1000 & touch /run/used; exec sleep 1000'
"#;
const HELD: f64 = 20.0 * 1024.0 * 1024.0;

/// What is compared: the property, the metric, and how many of the property's unit are one of the metric's.
const FIGURES: [(&str, &str, f64); 4] = [
    ("TasksCurrent", "systemd_unit_tasks_current", 1.0),
    ("TasksMax", "systemd_unit_tasks_max", 1.0),
    ("CPUUsageNSec", "systemd_unit_cpu_seconds_total", 1e9),
    ("MemoryCurrent", "systemd_unit_memory_bytes", 1.0),
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("unit_groups_are_what_systemctl_shows", on_the_machines_cgroups),
        trial("unit_groups_on_cgroup_v2_are_what_systemctl_shows", on_cgroup_v2),
    ]
}

async fn on_the_machines_cgroups() -> Result<()> {
    let compared = compare(shared::engine().await?).await?;
    // On version 1 systemd counts CPU time in a hierarchy that a container may not have; there the kernel's count is
    // compared.
    for property in ["TasksCurrent", "TasksMax", "MemoryCurrent"] {
        ensure!(compared.contains(&property), "{property} was not compared, only {compared:?}");
    }
    Ok(())
}

/// Where the machine's controllers are bound to version 1, what version 2 counts without them is all there is.
async fn on_cgroup_v2() -> Result<()> {
    let engine = Engine::start(Options { cgroup: Cgroup::V2, ..Options::default() }).await?;
    let compared = compare(Arc::new(engine)).await?;
    ensure!(compared.contains(&"CPUUsageNSec"), "the CPU time was not compared, only {compared:?}");
    Ok(())
}

/// Says which properties systemd showed; each of them is what the exporter says.
async fn compare(engine: Arc<Engine>) -> Result<Vec<&'static str>> {
    let host = SystemdHost::start(engine).await?;
    host.install_unit(UNIT, USED).await?;
    host.systemctl(&["start", UNIT]).await?;
    host.exec(&["sh", "-c", "until [ -e /run/used ]; do sleep 0.1; done"]).await?;
    let dir = namespace::place("unit-groups")?;
    let config = dir.join("exporter.yml");
    fs::write(&config, format!("systemd: {{watch: [{UNIT}]}}\n"))?;
    let mut command = host.at_home(built("evenkeel-exporter")?).await?;
    command.args(["--collector.disable-defaults", "--collector.systemd"]);
    command.arg(format!("--config.file={}", config.display()));
    Surroundings { bus: Some(host.bus_address()), docker: None }.apply(&mut command);
    let exporter = Exporter::start_as(&dir, free_port()?, command).await?;

    wait_for("systemctl and the exporter to say the same", Duration::from_secs(30), async || {
        let before = shown(&host).await?;
        let scraped = exporter.scrape().await?;
        ensure!(shown(&host).await? == before, "it still works");
        agree(&before, &scraped, &kernels(&host, &before).await?)
    })
    .await
}

/// What `systemctl show` says; what it does not know is left out.
async fn shown(host: &SystemdHost) -> Result<BTreeMap<String, String>> {
    let properties: Vec<&str> = FIGURES.iter().map(|(property, ..)| *property).collect();
    let asked = format!("--property=ControlGroup,{}", properties.join(","));
    let text = host.systemctl(&["show", &asked, UNIT]).await?;
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let known =
        lines.filter(|(_, value)| !matches!(*value, "[not set]" | "infinity" | "18446744073709551615"));
    Ok(known.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// What the kernel's files say, as `FILE FIELD VALUE`.
async fn kernels(host: &SystemdHost, shown: &BTreeMap<String, String>) -> Result<BTreeMap<String, f64>> {
    let group = shown.get("ControlGroup").context("no control group")?;
    let read = "for at in /sys/fs/cgroup /sys/fs/cgroup/*; do for file in cpu.stat memory.stat; do
        [ ! -e $at$1/$file ] || sed \"s/^/$file /\" $at$1/$file; done; done";
    let text = host.exec(&["sh", "-c", read, "sh", group]).await?;
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines.map(|(name, value)| Ok((name.to_owned(), value.parse()?))).collect()
}

fn agree(
    shown: &BTreeMap<String, String>,
    scraped: &Exposition,
    kernels: &BTreeMap<String, f64>,
) -> Result<Vec<&'static str>> {
    let labels = [("name", UNIT), ("type", "service")];
    let mut compared = Vec::new();
    for (property, metric, divisor) in FIGURES {
        let said = scraped.value(metric, &labels);
        // Without the controller systemd still shows the limit that would hold.
        let is_counted = property != "TasksMax" || shown.contains_key("TasksCurrent");
        let Some(shown) = shown.get(property).filter(|_| is_counted) else {
            let counted = (property == "CPUUsageNSec").then(|| kernels.get("cpu.stat usage_usec")).flatten();
            ensure!(
                said == counted.map(|used| used / 1e6),
                "{metric} {said:?}, and {property} is not counted"
            );
            eprintln!("unit_groups: {property} is not counted, {metric} is {said:?}");
            continue;
        };
        let mut expected = shown.parse::<f64>()? / divisor;
        if property == "MemoryCurrent" {
            // As `docker stats`, and not as systemd, the exporter leaves out what can be dropped at any time.
            let cache = ["memory.stat total_inactive_file", "memory.stat inactive_file"];
            expected -= cache.iter().find_map(|field| kernels.get(*field)).context("no memory.stat")?;
            ensure!(expected >= HELD, "{expected} bytes cannot be all");
        }
        // The kernel counts memory in batches, and these are two looks.
        let apart = if property == "MemoryCurrent" { 0.01 * expected } else { 0.0 };
        ensure!(
            said.is_some_and(|said| (said - expected).abs() <= apart),
            "{metric} {said:?}, and {property} is {shown}: {expected}"
        );
        compared.push(property);
    }
    eprintln!("unit_groups: equal to what systemctl shows: {compared:?}");
    Ok(compared)
}
