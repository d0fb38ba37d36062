//! Sources that hang, go and come back. A scrape answers in time and says which source it is.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings},
    engine::{Engine, Options},
    exposition::Exposition,
    http, namespace,
    process::free_port,
    redis_server::RedisServer,
    systemd_host::SystemdHost,
    wait::wait_for,
};
use libtest_mimic::Trial;

use crate::{closed_loop::SOON, shared, trial};

/// What Prometheus says about its patience, in seconds.
const PATIENCE: f64 = 3.0;
/// When the answer must be there: the deadline that the exporter makes of it, and some room for a
/// busy machine.
const IN_TIME: Duration = Duration::from_millis(2900);

/// A source: its collector, its `_up` metric, and the prefix of what vanishes with it.
struct Source {
    collector: &'static str,
    up: &'static str,
    prefix: &'static str,
}

const DOCKER: Source = Source { collector: "docker", up: "docker_up", prefix: "docker_" };
const SYSTEMD: Source = Source { collector: "systemd", up: "systemd_up", prefix: "systemd_" };
const REDIS: Source = Source { collector: "redis", up: "redis_up", prefix: "redis_" };
const SOURCES: [Source; 3] = [DOCKER, SYSTEMD, REDIS];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("hang_of_a_source_does_not_hold_up_a_scrape", of_a_source_does_not_hold_up_a_scrape),
        trial("hang_sources_come_late_and_come_back", sources_come_late_and_come_back),
    ]
}

async fn of_a_source_does_not_hold_up_a_scrape() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    let host = SystemdHost::start(shared::engine().await?).await?;
    let redis = RedisServer::start().await?;
    engine.run(&["--name", "beside"], &["sleep", "600"]).await?;
    let around = Surroundings { bus: Some(host.bus_address()), docker: Some(engine.host()) };
    let dir = namespace::place("exporter")?;
    let config = dir.join("exporter.yml");
    fs::write(&config, format!("redis: [{{name: lab, url: \"{}\"}}]\n", redis.url()))?;
    let exporter = Exporter::start(&dir, free_port()?, Some(&config), &around).await?;
    let whole = wait_for("everything to be there", SOON, async || {
        let scrape = scrape(&exporter).await?;
        all_up(&scrape)?;
        scrape.value("docker_disk_usage_bytes", &[("object", "build_cache")]).context("no disk usage yet")?;
        Ok(scrape)
    })
    .await?;

    for source in &SOURCES {
        let frozen = match source.collector {
            "docker" => engine.freeze()?,
            "systemd" => host.freeze_bus().await?,
            _ => redis.freeze()?,
        };
        // The second scrape meets what the first has left behind.
        for _ in 0..2 {
            let scrape = scrape(&exporter).await?;
            only_down(&scrape, source, &whole).with_context(|| format!("{} is frozen", source.collector))?;
        }
        drop(frozen);
        wait_for(&format!("{} to be up again", source.collector), SOON, async || {
            let scrape = scrape(&exporter).await?;
            all_up(&scrape)?;
            same_metrics(&scrape, &whole, "nothing")
        })
        .await?;
    }

    // All three at once, also for a scrape that nobody has prepared.
    let frozen = (engine.freeze()?, host.freeze_bus().await?, redis.freeze()?);
    let scrape = scrape(&exporter).await?;
    for source in &SOURCES {
        ensure!(scrape.value(source.up, &[]) == Some(0.0), "{} with all frozen", source.up);
    }
    ensure!(scrape.value("node_filesystem_size_bytes", &[]).is_some(), "filesystems need none of them");
    drop(frozen);
    Ok(())
}

async fn sources_come_late_and_come_back() -> Result<()> {
    let mut engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    let host = SystemdHost::start(shared::engine().await?).await?;
    let dir = namespace::place("exporter")?;
    // Where a program looks that nobody told where to look; in the lab there is nothing.
    let (docker, bus) = (Path::new("/run/docker.sock"), Path::new("/run/dbus"));
    let exporter = Exporter::start(&dir, free_port()?, None, &Surroundings::default()).await?;
    let early = scrape(&exporter).await?;
    for source in [&DOCKER, &SYSTEMD] {
        let collector = [("collector", source.collector)];
        ensure!(early.value(source.up, &[]).is_none(), "{} says something of nothing", source.up);
        ensure!(early.value("evenkeel_collector_absent", &collector) == Some(1.0), "{}", source.collector);
        ensure!(early.value("evenkeel_scrape_collector_success", &collector) == Some(1.0));
    }

    symlink(engine.socket(), docker)?;
    let socket = host.bus_address().trim_start_matches("unix:path=").to_owned();
    symlink(Path::new(&socket).parent().context("the socket lies in a folder")?, bus)?;
    up(&exporter, &[&DOCKER, &SYSTEMD]).await.context("both have come")?;

    engine.stop()?;
    host.systemctl(&["stop", "dbus.socket", "dbus.service"]).await?;
    for source in [&DOCKER, &SYSTEMD] {
        wait_for(&format!("{} 0", source.up), SOON, async || {
            let scrape = scrape(&exporter).await?;
            let (up, success) = judged(&scrape, source);
            ensure!(up == Some(0.0) && success == Some(0.0), "{} {up:?}, success {success:?}", source.up);
            Ok(())
        })
        .await?;
    }
    engine.start_again().await?;
    host.systemctl(&["start", "dbus.socket"]).await?;
    up(&exporter, &[&DOCKER, &SYSTEMD]).await.context("both are back")?;
    fs::remove_file(docker)?;
    fs::remove_file(bus)?;
    Ok(())
}

/// A scrape as Prometheus makes it, in time.
async fn scrape(exporter: &Exporter) -> Result<Exposition> {
    let request = http::client()?.get(format!("{}/metrics", exporter.url()));
    let request = request.header("X-Prometheus-Scrape-Timeout-Seconds", PATIENCE.to_string());
    let start = Instant::now();
    let text = request.send().await?.error_for_status()?.text().await?;
    let took = start.elapsed();
    ensure!(took < IN_TIME, "the scrape took {took:?}");
    Ok(Exposition::parse(&text))
}

fn judged(scrape: &Exposition, source: &Source) -> (Option<f64>, Option<f64>) {
    let collector = [("collector", source.collector)];
    (scrape.value(source.up, &[]), scrape.value("evenkeel_scrape_collector_success", &collector))
}

fn all_up(scrape: &Exposition) -> Result<()> {
    for source in &SOURCES {
        let seen = judged(scrape, source);
        ensure!(seen == (Some(1.0), Some(1.0)), "{} and its collector's success: {seen:?}", source.up);
    }
    Ok(())
}

async fn up(exporter: &Exporter, sources: &[&Source]) -> Result<()> {
    wait_for("the sources to be up", SOON, async || {
        let scrape = scrape(exporter).await?;
        for source in sources {
            let seen = judged(&scrape, source);
            ensure!(seen == (Some(1.0), Some(1.0)), "{} and its collector's success: {seen:?}", source.up);
        }
        Ok(())
    })
    .await
}

/// One source is down and says so; all else is as in `whole`.
fn only_down(scrape: &Exposition, down: &Source, whole: &Exposition) -> Result<()> {
    for source in &SOURCES {
        let (up, success) = judged(scrape, source);
        let wanted = f64::from(u8::from(source.up != down.up));
        ensure!(up == Some(wanted), "{} {up:?}", source.up);
        // A probe that was not answered in time is a look that succeeded: it found Redis down.
        let wanted = if source.up == REDIS.up { 1.0 } else { wanted };
        ensure!(success == Some(wanted), "success of {}: {success:?}", source.collector);
    }
    same_metrics(scrape, whole, down.prefix)?;
    if down.up == DOCKER.up {
        // Not asked at a scrape: what is known of it stays for a while.
        let known = scrape.value("docker_disk_usage_bytes", &[("object", "build_cache")]);
        ensure!(known.is_some(), "the disk usage is lost");
    }
    Ok(())
}

/// Every metric of `whole` is there, except those with this prefix.
fn same_metrics(scrape: &Exposition, whole: &Exposition, except: &str) -> Result<()> {
    let missing: BTreeSet<&str> = whole.names().difference(&scrape.names()).copied().collect();
    let missing: Vec<&str> = missing.into_iter().filter(|name| !name.starts_with(except)).collect();
    ensure!(missing.is_empty(), "missing: {missing:?}");
    Ok(())
}
