//! What the two binaries cost, measured in the lab beside the least that is possible and beside the peers that Debian
//! packages: `make bench`, one part of it with `make bench ARGS=systemd`, in a hurry with `BENCH=quick`.
//!
//! Prints one Markdown table. Times depend on the machine, their ratios within one run hardly do.

// The lab's purpose is to start other programs; the ban is for the two product binaries.
#![allow(clippy::disallowed_types)]

mod client;
mod cpu;
mod docker;
mod effect;
mod filesystem;
mod fleet;
mod floors;
mod period;
mod program;
mod proxy;
mod recovery;
mod redis;
mod starts;
mod systemd;
mod table;
mod units;
mod webhook;
mod whole;

use std::{sync::Arc, time::Instant};

use anyhow::{Result, bail, ensure};
use evenkeel_tests::{
    engine::{Engine, Options},
    namespace::{self, World},
};

use crate::{docker::Containers, filesystem::Mounts, redis::Redis, systemd::Host, table::Row, whole::Whole};

/// What `ARGS` may name.
const PARTS: [&str; 12] = [
    "systemd",
    "docker",
    "filesystem",
    "redis",
    "storms",
    "memory",
    "stalls",
    "changes",
    "start",
    "remediator",
    "effect",
    "fleet",
];

/// Those that cost CPU per scrape.
const COSTS: [&str; 4] = ["systemd", "docker", "filesystem", "redis"];

/// Those that one exporter with everything to look at is needed for.
const WHOLE: [&str; 5] = ["storms", "memory", "stalls", "changes", "start"];

fn main() -> Result<()> {
    // Cargo adds a flag of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.iter().any(|argument| argument == floors::FILESYSTEMS) {
        println!("{}", floors::filesystems(20)?);
        return Ok(());
    }
    for argument in &arguments {
        ensure!(PARTS.contains(&argument.as_str()), "no part `{argument}`, only: {}", PARTS.join(" "));
    }
    let lifeline = namespace::enter(World::Lab)?;
    std::thread::spawn(|| {
        lifeline.wait();
        std::process::exit(130);
    });
    let parts = Parts(arguments);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let Report { rows, failures } = runtime.block_on(run(&parts))?;
    println!("{}", table::table(&rows));
    if parts.has_one_of(&COSTS) {
        let period = period::length().as_secs();
        println!(
            "CPU per scrape: over {period} s with a scrape every 15 s, less what is used without the exporter."
        );
    }
    if !failures.is_empty() {
        bail!("not measured: {}", failures.join("; "));
    }
    Ok(())
}

/// What came of it. A part that fails takes nothing with it: each run is long.
#[derive(Default)]
struct Report {
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Report {
    fn add(&mut self, part: &str, rows: Result<Vec<Row>>) {
        match rows {
            Ok(rows) => {
                eprint!("{}", table::lines(&rows));
                self.rows.extend(rows);
            }
            Err(error) => {
                eprintln!("{part}: {error:#}");
                self.failures.push(format!("{part}: {error:#}"));
            }
        }
    }
}

/// What was asked for; nothing means everything.
struct Parts(Vec<String>);

impl Parts {
    fn has(&self, part: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|named| named == part)
    }

    fn has_one_of(&self, parts: &[&str]) -> bool {
        parts.iter().any(|part| self.has(part))
    }
}

async fn run(parts: &Parts) -> Result<Report> {
    let begun = Instant::now();
    let step = |what: &str| eprintln!("{:4} s  {what}", begun.elapsed().as_secs());
    step("mounts, hosts and containers");
    let place = Place::make(parts).await?;
    step("CPU per scrape: one period without exporters, one with them");
    let mut report = Report::default();
    place.costs(&mut report).await?;
    if let Some(whole) = place.whole().await? {
        for part in WHOLE.into_iter().filter(|part| parts.has(part)) {
            step(part);
            let rows = match part {
                "storms" => whole.storms().await,
                "memory" => whole.memory().await,
                "stalls" => whole.stalls().await,
                "changes" => whole.changes().await,
                _ => whole.start().await,
            };
            report.add(part, rows);
        }
    }
    if parts.has("remediator") {
        step("remediator");
        report.add("remediator", webhook::measure().await);
        report.add("remediator", starts::measure().await);
        report.add("remediator", recovery::measure().await);
    }
    if parts.has("effect") {
        step("effect");
        report.add("effect", effect::measure().await);
    }
    if parts.has("fleet") {
        step("fleet");
        report.add("fleet", fleet::measure().await);
    }
    step("done");
    Ok(report)
}

/// What is measured.
struct Place {
    mounts: Vec<Mounts>,
    hosts: Vec<Arc<Host>>,
    containers: Vec<Arc<Containers>>,
    redis: Option<Redis>,
    costs_of: CostsOf,
    is_whole: bool,
}

struct CostsOf {
    systemd: bool,
    docker: bool,
}

impl Place {
    async fn make(parts: &Parts) -> Result<Self> {
        // Before anything else mounts.
        let mounts = if parts.has("filesystem") { Mounts::all()? } else { Vec::new() };
        let is_whole = parts.has_one_of(&WHOLE);
        let costs_of = CostsOf { systemd: parts.has("systemd"), docker: parts.has("docker") };
        let mut hosts = Vec::new();
        if costs_of.systemd || is_whole {
            // An engine of their own, so that no other is kept busy by them.
            let engine = Arc::new(Engine::start(Options { disk_mib: 3000, ..Options::default() }).await?);
            let sizes = systemd::SIZES.iter().filter(|size| costs_of.systemd || size.0 == systemd::MIDDLE);
            for &(units, goal) in sizes {
                hosts.push(Arc::new(Host::start(&engine, units, goal).await?));
            }
        }
        let mut containers = Vec::new();
        for count in docker::COUNTS {
            if costs_of.docker || (is_whole && count == docker::MANY) {
                containers.push(Arc::new(Containers::start(count).await?));
            }
        }
        let redis = if parts.has("redis") { Some(Redis::start().await?) } else { None };
        Ok(Self { mounts, hosts, containers, redis, costs_of, is_whole })
    }

    /// All periods at the same time, then what each is compared with.
    async fn costs(&self, report: &mut Report) -> Result<()> {
        let hosts = if self.costs_of.systemd { &self.hosts[..] } else { &[] };
        let containers = if self.costs_of.docker { &self.containers[..] } else { &[] };
        let mut stations = Vec::new();
        stations.extend(hosts.iter().map(|host| host.station()));
        stations.extend(containers.iter().map(|containers| containers.station()));
        stations.extend(self.mounts.iter().map(Mounts::station));
        if let Some(redis) = &self.redis {
            stations.push(redis.station()?);
        }
        if stations.is_empty() {
            return Ok(());
        }
        let mut measured = period::measure(&stations).await?.into_iter();
        for (host, measured) in hosts.iter().zip(&mut measured) {
            report.add("systemd", host.rows(measured).await);
        }
        for (containers, measured) in containers.iter().zip(&mut measured) {
            report.add("docker", containers.rows(measured).await);
        }
        for (mounts, measured) in self.mounts.iter().zip(&mut measured) {
            report.add("filesystem", mounts.rows(measured).await);
        }
        for (redis, measured) in self.redis.iter().zip(&mut measured) {
            report.add("redis", redis.rows(measured).await);
        }
        Ok(())
    }

    async fn whole(&self) -> Result<Option<Whole>> {
        if !self.is_whole {
            return Ok(None);
        }
        let host = self.hosts.iter().find(|host| host.units == systemd::MIDDLE);
        let containers = self.containers.last();
        match (host, containers) {
            (Some(host), Some(containers)) => {
                Ok(Some(Whole::new(Arc::clone(host), Arc::clone(containers)).await?))
            }
            _ => Ok(None),
        }
    }
}
