//! CPU per scrape: of everybody involved, over a period of scrapes as Prometheus makes them, minus the same period
//! without the exporter, divided by the scrapes. So what an exporter does between scrapes counts too.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    client::{Client, Coding},
    cpu::Clock,
    program::{Program, Setting},
};

/// Prometheus's usual interval.
const INTERVAL: Duration = Duration::from_secs(15);

/// How long one period is: long enough for what is read again every five minutes, unless `BENCH` says how many seconds,
/// or `quick`.
pub(crate) fn length() -> Duration {
    let wish = std::env::var("BENCH").ok().and_then(|wish| match wish.as_str() {
        "quick" => Some(60),
        seconds => seconds.parse().ok(),
    });
    Duration::from_secs(wish.unwrap_or(300)).max(INTERVAL)
}

/// What is to be measured.
pub(crate) struct Station {
    /// How the exporter is started.
    pub(crate) setting: Setting,
    /// Who is asked.
    pub(crate) source: Clock,
}

/// What one scrape cost, in milliseconds of CPU.
pub(crate) struct Cost {
    /// Of the exporter, all in all.
    pub(crate) exporter: f64,
    /// Of those who are asked, all in all, without what they use anyway.
    pub(crate) source: f64,
    /// Of the exporter between a request and its answer.
    pub(crate) exporter_inside: f64,
    /// Of those who are asked between a request and its answer.
    pub(crate) source_inside: f64,
    /// On the wire.
    pub(crate) bytes: usize,
}

impl Cost {
    pub(crate) fn total(&self) -> f64 {
        self.exporter + self.source
    }
}

/// Measures all of them at the same time: their figures are of processes, not of the machine. The programs run on, so
/// that more can be asked of them.
pub(crate) async fn measure(stations: &[Station]) -> Result<Vec<(Program, Cost)>> {
    let before: Vec<f64> = stations.iter().map(|station| station.source.ms()).collect();
    sleep(length()).await;
    let without: Vec<f64> =
        stations.iter().zip(before).map(|(station, before)| station.source.ms() - before).collect();

    let mut programs = Vec::new();
    for station in stations {
        programs.push(Program::evenkeel(&station.setting).await?);
    }
    // What is read once after the start is no part of an everyday scrape.
    for program in &programs {
        settle(program).await?;
    }
    let begun = Instant::now();
    let count = u32::try_from(stations.len()).unwrap_or(1).max(1);
    let mut scrapes = Vec::new();
    for (position, (station, program)) in (0..).zip(stations.iter().zip(&programs)) {
        // Never two at once: they would wait for each other.
        scrapes.push(scrape(begun + INTERVAL * position / count, program, &station.source));
    }
    let costs = futures_util::future::try_join_all(scrapes).await?;
    let costs = costs.into_iter().zip(without).map(|(cost, without)| {
        let periods = length().as_secs_f64() / INTERVAL.as_secs_f64();
        Cost { source: cost.source - without / periods, ..cost }
    });
    Ok(programs.into_iter().zip(costs).collect())
}

/// Scrapes until two in a row cost about the same.
pub(crate) async fn settle(program: &Program) -> Result<()> {
    let mut client = Client::connect(program.port, Coding::Gzip).await?;
    let mut last = f64::INFINITY;
    for _ in 0..20 {
        let before = program.cpu.ms();
        client.scrape().await?;
        sleep(Duration::from_millis(500)).await;
        let spent = program.cpu.ms() - before;
        if spent <= last * 1.2 && spent >= last / 1.2 {
            break;
        }
        last = spent;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss)]
async fn scrape(first: Instant, program: &Program, source: &Clock) -> Result<Cost> {
    let scrapes = length().as_secs() / INTERVAL.as_secs();
    sleep_until(first).await;
    let mut client = Client::connect(program.port, Coding::Gzip).await?;
    let start = (program.cpu.ms(), source.ms());
    let (mut inside, mut bytes) = ((0.0, 0.0), 0);
    for number in 1..=scrapes {
        let before = (program.cpu.ms(), source.ms());
        bytes = client.scrape().await?.bytes;
        inside = (inside.0 + program.cpu.ms() - before.0, inside.1 + source.ms() - before.1);
        sleep_until(first + INTERVAL * u32::try_from(number).unwrap_or(1)).await;
    }
    let count = scrapes as f64;
    Ok(Cost {
        exporter: (program.cpu.ms() - start.0) / count,
        source: (source.ms() - start.1) / count,
        exporter_inside: inside.0 / count,
        source_inside: inside.1 / count,
        bytes,
    })
}

/// What a peer's scrapes cost, one after the other: it does nothing between them. Some take seconds: as many as there is
/// time for, and one at least.
pub(crate) async fn peer(program: &Program, source: &Clock, most: u32) -> Result<(f64, f64)> {
    const TIME: Duration = Duration::from_secs(10);
    let mut client = Client::connect(program.port, Coding::Gzip).await?;
    client.scrape().await?;
    let (begun, mut scrapes) = (Instant::now(), 0);
    let before = (program.cpu.ms(), source.ms());
    while scrapes == 0 || (scrapes < most && begun.elapsed() < TIME) {
        client.scrape().await?;
        scrapes += 1;
        // What is still done when the answer is there belongs to it.
        sleep(Duration::from_millis(200)).await;
    }
    let count = f64::from(scrapes);
    Ok(((program.cpu.ms() - before.0) / count, (source.ms() - before.1) / count))
}
