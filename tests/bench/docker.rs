//! Docker with many containers: what a scrape costs the engine.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use evenkeel_tests::{
    engine::{Engine, Options},
    exposition::Exposition,
    http, namespace,
    wait::wait_for,
};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{
    cpu::Clock,
    floors,
    period::{Cost, Station},
    program::{Program, Setting},
    proxy::{Protocol, Proxy, calls_per_scrape},
    table::{Row, ms, short},
};

const FLAGS: [&str; 2] = ["--collector.disable-defaults", "--collector.docker"];

/// Of dockerd and containerd, at any number of containers, in milliseconds.
const GOAL: f64 = 0.5;

/// Containers of the engines that are measured.
pub(crate) const COUNTS: [usize; 2] = [100, MANY];
pub(crate) const MANY: usize = 300;

/// Started at the same time.
const AT_ONCE: usize = 4;

/// An engine with containers that do nothing. Without healthchecks: those of hundreds cost the engine a hundred times what
/// is measured here, and would hide it.
pub(crate) struct Containers {
    pub(crate) engine: Arc<Engine>,
    count: usize,
    source: Clock,
}

impl Containers {
    pub(crate) async fn start(count: usize) -> Result<Self> {
        let engine = Engine::start(Options { disk_mib: 3000, ..Options::default() }).await?;
        let engine = Arc::new(engine);
        // The first one alone: it makes the image.
        run(&engine, 0).await?;
        let mut starting = JoinSet::new();
        for number in 1..count {
            if starting.len() >= AT_ONCE {
                starting.join_next().await.context("some are starting")???;
            }
            let engine = Arc::clone(&engine);
            starting.spawn(async move { run(&engine, number).await });
        }
        while let Some(started) = starting.join_next().await {
            started??;
        }
        let source = Clock::of(&engine.daemons());
        Ok(Self { engine, count, source })
    }

    pub(crate) fn station(&self) -> Station {
        let setting = Setting::flags(&FLAGS).with("DOCKER_HOST", self.engine.host());
        Station { setting, source: self.source.clone() }
    }

    pub(crate) async fn rows(&self, (program, cost): (Program, Cost)) -> Result<Vec<Row>> {
        let seen = wait_for("all containers to be seen", Duration::from_secs(30), async || {
            let scrape = http::get(&format!("http://127.0.0.1:{}/metrics", program.port)).await?;
            let scrape = Exposition::parse(&scrape);
            let seen: f64 = scrape.all("docker_containers", &[]).map(|sample| sample.value).sum();
            #[expect(clippy::cast_precision_loss)]
            let wanted = self.count as f64;
            anyhow::ensure!((seen - wanted).abs() < 0.5, "{seen} containers");
            Ok(seen)
        })
        .await?;
        drop(program);
        let (ping, list, inspect) =
            (self.floor("/_ping").await?, self.floor("/containers/json?all=1").await?, self.inspect().await?);
        let beside = format!(
            "one _ping {}; a list {}; a list and inspect of each {}",
            ms(ping),
            ms(list),
            ms(inspect)
        );
        let what = format!("Docker with {seen} containers: CPU of dockerd and containerd per scrape");
        let inside = format!("inside the scrape {}", short(cost.source_inside));
        let measured = format!("{} ({inside}; exporter {})", ms(cost.source), short(cost.exporter));
        // An idle engine's own work differs from period to period by more than is measured here, and may make it less
        // than nothing.
        let judged = cost.source.max(cost.source_inside);
        Ok(vec![Row::new(what, measured).beside(beside).at_most(judged, GOAL, "ms"), self.calls().await?])
    }

    /// Counted where they pass.
    async fn calls(&self) -> Result<Row> {
        let proxy =
            Proxy::start(namespace::place("docker")?.join("docker"), &self.engine.socket(), Protocol::Http)?;
        let setting =
            Setting::flags(&FLAGS).with("DOCKER_HOST", format!("unix://{}", proxy.path().display()));
        let each = calls_per_scrape(&proxy, &setting).await?;
        let row =
            Row::new(format!("Docker requests per scrape, {} containers", self.count), format!("{each:.1}"));
        Ok(row.at_most(each, 1.0, "request"))
    }

    async fn floor(&self, path: &'static str) -> Result<f64> {
        let mut engine = floors::Engine::connect(&self.engine.socket())?;
        let floor = floors::measure(self.source.clone(), 20, move || engine.get(path).map(drop)).await?;
        Ok(floor.source)
    }

    /// What an exporter asks that keeps nothing.
    async fn inspect(&self) -> Result<f64> {
        let mut engine = floors::Engine::connect(&self.engine.socket())?;
        let poll = move || {
            let list: Value = serde_json::from_slice(&engine.get("/containers/json?all=1")?)?;
            for container in list.as_array().context("a list")? {
                let id = container["Id"].as_str().context("an id")?;
                engine.get(&format!("/containers/{id}/json"))?;
            }
            Ok(())
        };
        Ok(floors::measure(self.source.clone(), 5, poll).await?.source)
    }
}

async fn run(engine: &Engine, number: usize) -> Result<()> {
    engine.run(&["--name", &format!("bench-{number}")], &["sleep", "100000"]).await.map(drop)
}
