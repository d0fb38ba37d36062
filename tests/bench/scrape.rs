//! A scrape of a host with 500 loaded units and 100 containers.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings},
    engine::{Engine, Options},
    http, namespace,
    process::free_port,
    systemd_host::SystemdHost,
    wait::wait_for,
};

use crate::{
    Row, cpu_ms, memory_mib,
    proxy::{Protocol, Proxy},
    quantile, size_mib,
};

const UNITS: u64 = 500;
const CONTAINERS: usize = 100;
const SCRAPES: usize = 300;

pub(crate) async fn measure() -> Result<Vec<Row>> {
    let engine = Arc::new(Engine::start(Options { disk_mib: 3000, ..Options::default() }).await?);
    let host = SystemdHost::start(engine.clone()).await?;
    start_units(&host).await?;
    for number in 1..CONTAINERS {
        // Every tenth has a healthcheck, as its exec events are part of an engine's daily noise.
        let check = ["--health-cmd", "true", "--health-interval", "5s"];
        let check = if number % 10 == 0 { &check[..] } else { &[] };
        let name = format!("bench-{number}");
        engine.run(&[&["--name", &name], check].concat(), &["sleep", "100000"]).await?;
    }

    let dir = namespace::place("bench")?;
    let bus = host.bus_address();
    let bus = Path::new(bus.strip_prefix("unix:path=").context("a path")?);
    let bus = Proxy::start(dir.join("bus"), bus, Protocol::DBus)?;
    let docker = Proxy::start(dir.join("docker"), &engine.socket(), Protocol::Http)?;
    let around = Surroundings {
        bus: Some(format!("unix:path={}", bus.path().display())),
        docker: Some(format!("unix://{}", docker.path().display())),
    };
    let exporter = Exporter::start(&dir, free_port()?, None, &around).await?;
    let seen = wait_for("the exporter to see everything", Duration::from_secs(60), async || {
        let scrape = exporter.scrape().await?;
        let containers = scrape.all("docker_containers", &[]).map(|sample| sample.value).sum::<f64>();
        anyhow::ensure!(containers >= 100.0, "{containers} containers");
        anyhow::ensure!(
            scrape.value("docker_disk_usage_bytes", &[("object", "build_cache")]).is_some(),
            "no disk usage"
        );
        Ok(scrape)
    })
    .await?;
    let units: f64 = seen.all("systemd_units", &[]).map(|sample| sample.value).sum();

    let client = http::client()?;
    let url = format!("{}/metrics", exporter.url());
    let pid = exporter.process().id();
    let (before_cpu, before_bus, before_docker) = (cpu_ms(pid)?, bus.calls(), docker.calls());
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let start = Instant::now();
        bytes = client.get(&url).send().await?.error_for_status()?.bytes().await?.len();
        times.push(start.elapsed());
        // As close together as a scrape a second of two Prometheis; what happens between scrapes counts too.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    #[expect(clippy::cast_precision_loss)]
    let per_scrape = |count: u64| count as f64 / SCRAPES as f64;
    let case = format!("at {units} units and {CONTAINERS} containers");
    let idle = idle_memory(&dir).await?;
    Ok(vec![
        (format!("Scrape {case}, p50"), format!("{:.1} ms", quantile(&mut times, 0.5))),
        (format!("Scrape {case}, p99"), format!("{:.1} ms", quantile(&mut times, 0.99))),
        ("Exporter CPU per scrape".to_owned(), format!("{:.2} ms", per_scrape(cpu_ms(pid)? - before_cpu))),
        ("D-Bus method calls per scrape".to_owned(), format!("{:.1}", per_scrape(bus.calls() - before_bus))),
        (
            "Docker API requests per scrape".to_owned(),
            format!("{:.1}", per_scrape(docker.calls() - before_docker)),
        ),
        ("Size of a scrape".to_owned(), format!("{} kB", bytes / 1000)),
        ("Exporter resident memory, this host".to_owned(), format!("{:.1} MiB", memory_mib(pid, "VmRSS")?)),
        ("Exporter resident memory, idle without sources".to_owned(), format!("{idle:.1} MiB")),
        ("Exporter binary".to_owned(), format!("{:.1} MiB", size_mib("evenkeel-exporter")?)),
    ])
}

/// Enough units of one template that [`UNITS`] are loaded.
async fn start_units(host: &SystemdHost) -> Result<()> {
    host.install_unit("bench@.service", "[Service]\nExecStart=/bin/sleep 100000\n").await?;
    let count = host.exec(&["sh", "-c", "systemctl list-units --all --no-legend --plain | wc -l"]).await?;
    let missing = UNITS.saturating_sub(count.trim().parse()?);
    let start = format!("seq -f bench@%g.service 1 {missing} | xargs systemctl start");
    host.exec(&["sh", "-c", &start]).await.map(drop)
}

async fn idle_memory(dir: &Path) -> Result<f64> {
    let nowhere = Surroundings {
        bus: Some(format!("unix:path={}", dir.join("no-bus").display())),
        docker: Some(format!("unix://{}", dir.join("no-docker").display())),
    };
    let exporter = Exporter::start(dir, free_port()?, None, &nowhere).await?;
    exporter.scrape().await?;
    memory_mib(exporter.process().id(), "VmRSS")
}
