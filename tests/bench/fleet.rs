//! Many hosts over one Redis: what a gateway passes on, how soon an agent has it, and what idle agents cost.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use evenkeel_tests::{
    binaries::{Remediator, Surroundings},
    http, namespace,
    process::free_port,
    redis_server::RedisServer,
    wait::wait_for,
};
use tokio::time::sleep;

use crate::{
    cpu::Clock,
    table::{Row, ms, quantiles, short},
    webhook::{delivery, load, post},
};

/// Alerts in a delivery.
const SIZES: [usize; 2] = [1, 100];
/// Alerts that are followed to their host, one after the other.
const FOLLOWED: usize = 200;
/// Agents that wait for alerts, in the default pace,
const IDLE: u32 = 300;
/// for so long.
const IDLE_FOR: Duration = Duration::from_secs(60);

pub(crate) async fn measure() -> Result<Vec<Row>> {
    let redis = RedisServer::start().await?;
    let gateway = start(&redis, &["serve", "--role=gateway"], "gateway").await?;
    let agent = start(&redis, &["serve", "--role=agent"], "bench").await?;
    let url = format!("{}/api/v1/alerts", gateway.url());
    let client = http::client()?;
    // The first alert says that the agent has said that it is there.
    wait_for("the gateway to know the agent", Duration::from_secs(60), async || {
        post(&client, &url, &delivery(0, 1).to_string()).await?;
        is_taken(&redis).await
    })
    .await?;

    let mut followed = Vec::new();
    for number in 0..FOLLOWED {
        let begun = Instant::now();
        post(&client, &url, &delivery(number, 1).to_string()).await?;
        while is_taken(&redis).await.is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(10), "alert {number} is not taken");
        }
        followed.push(begun.elapsed());
    }
    let mut rows = vec![Row::new(
        "From a delivery to the gateway until the alert is on its host's disk, one after the other",
        quantiles(&mut followed),
    )];
    for alerts in SIZES {
        let (rate, mut times) = load(&url, alerts).await?;
        let what = format!("Deliveries passed on by a gateway, {alerts} alert(s) each, 8 connections");
        rows.push(Row::new(what, format!("{rate:.0}/s, until the answer {}", quantiles(&mut times))));
        wait_for("the agent to take what waits", Duration::from_secs(60), async || is_taken(&redis).await)
            .await?;
    }
    drop((agent, gateway));
    rows.push(idle(&redis).await?);
    Ok(rows)
}

/// Agents that have nothing to do, and the Redis that they wait in.
async fn idle(redis: &RedisServer) -> Result<Row> {
    let mut agents = Vec::new();
    for number in 0..IDLE {
        agents.push(start(redis, &["serve", "--role=agent"], &format!("idle-{number}")).await?);
    }
    // What a start costs is no part of it.
    sleep(Duration::from_secs(10)).await;
    let ids: Vec<u32> = agents.iter().map(|agent| agent.process().id()).collect();
    let (agents_cpu, redis_cpu) = (Clock::of(&ids), Clock::of(&[redis.id()]));
    let before = (agents_cpu.ms(), redis_cpu.ms());
    sleep(IDLE_FOR).await;
    let of_each = |used: f64| used / f64::from(IDLE) / IDLE_FOR.as_secs_f64();
    let (agent, server) = (of_each(agents_cpu.ms() - before.0), of_each(redis_cpu.ms() - before.1));
    let text = format!("{} in a second ({} % of a core)", ms(agent), short(agent / 10.0));
    let row = Row::new(format!("CPU of an idle agent, {IDLE} of them for {} s", IDLE_FOR.as_secs()), text);
    Ok(row.beside(format!("Redis, for each: {}", ms(server))))
}

async fn start(redis: &RedisServer, serve: &'static [&'static str], host: &str) -> Result<Remediator> {
    let (dir, port) = (namespace::place("bench-fleet")?, free_port()?);
    let config = dir.join("remediator.yml");
    let text = format!(
        "identity: {{hosts: [{host}]}}\nserver: {{auth: none, listen: [\"127.0.0.1:{port}\"]}}\nstate: {{dir: state}}\n\
         fleet: {{redis: {{url: \"{}\"}}, stream_max: 100000}}\nrules:\n  - name: bench\n    \
         match: ['alertname=\"Bench\"']\n    target: {{unit: name, allow: [\"bench-*.service\"]}}\n    steps: [notify]\n",
        redis.url()
    );
    fs::write(&config, text)?;
    // As on a host in trouble: what is taken ends at once, and nothing is looked at.
    let nowhere = Surroundings {
        bus: Some(format!("unix:path={}", dir.join("no-bus").display())),
        docker: Some(format!("unix://{}", dir.join("no-docker").display())),
    };
    Remediator::start_as(serve, &dir, port, &config, &nowhere).await
}

/// Whether nothing waits for the agent.
async fn is_taken(redis: &RedisServer) -> Result<()> {
    let left = redis.ask("XLEN {evenkeel}:alerts:bench").await?;
    ensure!(left == ":0", "{left} wait");
    Ok(())
}
