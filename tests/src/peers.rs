//! The exporters that ours replaces, started privately, to be compared with.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;

use crate::{
    http,
    process::{Process, free_port},
    tools,
    wait::wait_for,
};

/// A running exporter of somebody else's.
#[derive(Debug)]
pub struct Peer {
    _process: Process,
    address: String,
}

impl Peer {
    /// node_exporter with its filesystem collector alone and these flags; `command` starts it.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn node_exporter(dir: &Path, mut command: Command, flags: &[String]) -> Result<Self> {
        let port = free_port()?;
        command.args([
            "--collector.disable-defaults",
            "--collector.filesystem",
            "--web.disable-exporter-metrics",
        ]);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).args(flags);
        Self::start("node_exporter", dir, command, port).await
    }

    /// redis_exporter for the Redis at `url`.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn redis_exporter(dir: &Path, url: &str) -> Result<Self> {
        let port = free_port()?;
        let mut command = tools::command(tools::program("redis_exporter")?);
        command.arg("-redis.addr").arg(url).arg("-include-system-metrics");
        command.arg("-web.listen-address").arg(format!("127.0.0.1:{port}"));
        Self::start(&format!("redis_exporter-{port}"), dir, command, port).await
    }

    async fn start(name: &str, dir: &Path, command: Command, port: u16) -> Result<Self> {
        let mut process = Process::start(name, dir, command)?;
        let address = format!("127.0.0.1:{port}");
        wait_for(name, Duration::from_secs(20), async || {
            process.check_alive()?;
            http::get(&format!("http://{address}/metrics")).await
        })
        .await?;
        Ok(Self { _process: process, address })
    }

    /// Its address, for a scrape configuration.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// One scrape, as text.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn scrape(&self) -> Result<String> {
        http::get(&format!("http://{}/metrics", self.address)).await
    }
}
