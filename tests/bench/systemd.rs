//! systemd at three sizes: what a scrape costs the host, and how it compares with the floor and with node_exporter.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use evenkeel_tests::{engine::Engine, namespace, systemd_host::SystemdHost};
use tokio::time::sleep;

use crate::{
    client::{Client, Coding},
    cpu::Clock,
    floors::{self, Bus, Floor},
    period::{self, Cost, Station},
    program::{Program, Setting},
    proxy::{Protocol, Proxy, calls_per_scrape},
    table::{Row, ms, quantile, quantiles, short},
    units,
};

/// Sizes and the goals for their cost, in milliseconds.
pub(crate) const SIZES: [(usize, f64); 3] = [(577, 2.0), (MIDDLE, 5.0), (5077, 12.0)];
pub(crate) const MIDDLE: usize = 2077;

/// Of PID 1 and the bus together, inside a scrape, at any size.
const ASKED: f64 = 0.3;

const FLAGS: [&str; 2] = ["--collector.disable-defaults", "--collector.systemd"];

const NODE_EXPORTER: [&str; 3] =
    ["--collector.disable-defaults", "--collector.systemd", "--web.disable-exporter-metrics"];
const ITS_OPTIONS: [&str; 3] = [
    "--collector.systemd.enable-restarts-metrics",
    "--collector.systemd.enable-start-time-metrics",
    "--collector.systemd.enable-task-metrics",
];

/// A systemd with so many units.
pub(crate) struct Host {
    pub(crate) systemd: SystemdHost,
    pub(crate) units: usize,
    source: Clock,
    goal: f64,
}

impl Host {
    pub(crate) async fn start(engine: &Arc<Engine>, units: usize, goal: f64) -> Result<Self> {
        let systemd = SystemdHost::start(Arc::clone(engine)).await?;
        units::load(&systemd, units).await.with_context(|| format!("a host with {units} units"))?;
        let source = Clock::of(&systemd.daemons().await?);
        Ok(Self { systemd, units, source, goal })
    }

    fn setting(&self, flags: &[&str]) -> Setting {
        Setting::flags(flags).with("DBUS_SYSTEM_BUS_ADDRESS", self.systemd.bus_address())
    }

    pub(crate) fn station(&self) -> Station {
        let setting = self.setting(&FLAGS);
        Station { setting, source: self.source.clone() }
    }

    /// What the period gave, with the floor and the peers.
    pub(crate) async fn rows(&self, (program, cost): (Program, Cost)) -> Result<Vec<Row>> {
        let mut rows = self.cost(cost).await?;
        if self.units == MIDDLE {
            rows.push(self.wall(&program).await?);
        }
        drop(program);
        rows.push(self.calls().await?);
        Ok(rows)
    }

    /// The peer with the fewest options.
    pub(crate) async fn node_exporter(&self) -> Result<Program> {
        self.peer(&[]).await
    }

    async fn cost(&self, cost: Cost) -> Result<Vec<Row>> {
        let at = format!("at {} units", self.units);
        let floor = self.floor().await?;
        let base = period::peer(&self.peer(&[]).await?, &self.source, 4).await?;
        let all = period::peer(&self.peer(&ITS_OPTIONS).await?, &self.source, 4).await?;
        let total = cost.total();
        let (base, all) = (base.0 + base.1, all.0 + all.1);
        let ratio = |peer: f64| format!("{:.0} ×", peer / total);
        let beside = format!(
            "one ListUnits {} ({:.1} ×); node_exporter {} ({}), with restarts, start times and tasks {} ({})",
            ms(floor.total()),
            floor.total() / total,
            ms(base),
            ratio(base),
            ms(all),
            ratio(all)
        );
        Ok(vec![
            Row::new(
                format!("CPU per scrape {at}: exporter, PID 1 and dbus-daemon"),
                format!("{} ({} + {})", ms(total), short(cost.exporter), short(cost.source)),
            )
            .beside(beside)
            .at_most(total, self.goal, "ms"),
            Row::new(
                format!("Of that inside the scrape {at}: PID 1 and dbus-daemon"),
                format!("{} (exporter {})", ms(cost.source_inside), short(cost.exporter_inside)),
            )
            .beside(format!("{} kB gzipped", cost.bytes / 1000))
            .at_most(cost.source_inside, ASKED, "ms"),
        ])
    }

    async fn floor(&self) -> Result<Floor> {
        let mut bus = Bus::connect(&self.systemd.bus_address())?;
        floors::measure(self.source.clone(), 20, move || bus.list_units().map(drop)).await
    }

    async fn peer(&self, options: &[&str]) -> Result<Program> {
        let setting = self.setting(&[&NODE_EXPORTER, options].concat());
        Program::peer("node_exporter", &setting).await
    }

    async fn wall(&self, program: &Program) -> Result<Row> {
        let mut client = Client::connect(program.port, Coding::Gzip).await?;
        let mut times = Vec::new();
        let begun = Instant::now();
        while times.len() < 300 && begun.elapsed() < Duration::from_secs(30) {
            times.push(client.scrape().await?.took);
            sleep(Duration::from_millis(20)).await;
        }
        let peer = self.peer(&[]).await?;
        let mut client = Client::connect(peer.port, Coding::Gzip).await?;
        let mut beside = Vec::new();
        for _ in 0..5 {
            beside.push(client.scrape().await?.took);
        }
        let (half, most) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        Ok(Row::new(format!("Scrape at {} units, wall", self.units), quantiles(&mut times))
            .beside(format!("node_exporter p50 {}", ms(quantile(&mut beside, 0.5))))
            .must("p50 ≤ 5 ms, p99 ≤ 20 ms", half <= 5.0 && most <= 20.0))
    }

    /// Counted where they pass.
    async fn calls(&self) -> Result<Row> {
        let dir = namespace::place("bus")?;
        let address = self.systemd.bus_address();
        let bus = Path::new(address.strip_prefix("unix:path=").context("a path")?);
        let proxy = Proxy::start(dir.join("bus"), bus, Protocol::DBus)?;
        let setting = Setting::flags(&FLAGS)
            .with("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", proxy.path().display()));
        let each = calls_per_scrape(&proxy, &setting).await?;
        Ok(Row::new(format!("D-Bus calls per scrape at {} units", self.units), format!("{each:.1}"))
            .at_most(each, 2.0, "calls"))
    }
}
