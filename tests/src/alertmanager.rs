//! An Alertmanager on a free port of loopback, alone or one of several that know each other.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    http, namespace,
    process::{Process, free_port},
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};

/// One on port 9093 of a systemd host's own loopback, where a remediator on it looks for it.
///
/// # Errors
///
/// When it is not ready within 30 s.
pub async fn on_host(host: &SystemdHost, config: &Path) -> Result<Process> {
    let dir = namespace::place("alertmanager")?;
    let mut command = tools::command("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", host.pid().await?)).arg("--");
    command.arg(tools::program("alertmanager")?);
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.path={}", dir.join("data").display()))
        .args(["--web.listen-address=127.0.0.1:9093", "--cluster.listen-address="]);
    let mut alertmanager = Process::start("alertmanager", &dir, command)?;
    wait_for("alertmanager to be ready", Duration::from_secs(30), async || {
        alertmanager.check_alive()?;
        let answer = host.http(9093, "GET", "/-/ready", "", "").await?;
        if !answer.starts_with("HTTP/1.1 200") {
            bail!("it answers {answer}");
        }
        Ok(())
    })
    .await?;
    Ok(alertmanager)
}

/// A running Alertmanager.
#[derive(Debug)]
pub struct Alertmanager {
    process: Process,
    port: u16,
    cluster_port: Option<u16>,
}

impl Alertmanager {
    /// Starts one on `port` that knows no other, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is not ready within 30 s.
    pub async fn start(config: &Path, port: u16) -> Result<Self> {
        Self::start_in(&namespace::place("alertmanager")?, config, port).await
    }

    /// The same with its data and its log in `dir`, which must exist.
    ///
    /// # Errors
    ///
    /// When it is not ready within 30 s.
    pub async fn start_in(dir: &Path, config: &Path, port: u16) -> Result<Self> {
        // Without an empty address it would listen on 0.0.0.0:9094.
        Self::run(dir, config, port, None, &["--cluster.listen-address=".to_owned()]).await
    }

    /// Starts one that gossips with `peers`. It delivers nothing before it has settled, about 10 s
    /// later ([`Self::wait_settled`]).
    ///
    /// # Errors
    ///
    /// When it does not answer within 30 s.
    pub async fn start_clustered(config: &Path, port: u16, peers: &[&Self]) -> Result<Self> {
        let own = free_port()?;
        let mut flags = vec![
            format!("--cluster.listen-address=127.0.0.1:{own}"),
            format!("--cluster.advertise-address=127.0.0.1:{own}"),
            "--cluster.gossip-interval=200ms".to_owned(),
            "--cluster.pushpull-interval=5s".to_owned(),
            "--cluster.peer-timeout=3s".to_owned(),
        ];
        for peer in peers {
            flags.push(format!(
                "--cluster.peer=127.0.0.1:{}",
                peer.cluster_port.context("this peer is alone")?
            ));
        }
        let dir = namespace::place("alertmanager")?;
        Self::run(&dir, config, port, Some(own), &flags).await
    }

    /// Waits until a clustered one has settled.
    ///
    /// # Errors
    ///
    /// When it has not settled within 60 s.
    pub async fn wait_settled(&self) -> Result<()> {
        wait_for("the cluster to settle", Duration::from_secs(60), async || {
            let status = http::get_json(&format!("{}/api/v2/status", self.url())).await?;
            match status["cluster"]["status"].as_str() {
                Some("ready") => Ok(()),
                other => bail!("the cluster is {other:?}"),
            }
        })
        .await
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The alerts that it holds now, with their state.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn alerts(&self) -> Result<Vec<Value>> {
        let answer = http::get_json(&format!("{}/api/v2/alerts", self.url())).await?;
        answer.as_array().cloned().context("alerts are not a list")
    }

    /// Has it read its configuration again.
    ///
    /// # Errors
    ///
    /// When it does not answer, or refuses the configuration.
    pub async fn reload(&self) -> Result<()> {
        http::client()?.post(format!("{}/-/reload", self.url())).send().await?.error_for_status()?;
        Ok(())
    }

    async fn run(
        dir: &Path,
        config: &Path,
        port: u16,
        cluster_port: Option<u16>,
        flags: &[String],
    ) -> Result<Self> {
        let mut command = tools::command(tools::program("alertmanager")?);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(flags);
        let mut alertmanager =
            Self { process: Process::start("alertmanager", dir, command)?, port, cluster_port };
        let ready = format!("{}/-/ready", alertmanager.url());
        wait_for("alertmanager to be ready", Duration::from_secs(30), async || {
            alertmanager.process.check_alive()?;
            // A clustered one says so in /api/v2/status long before it is /-/ready.
            http::get(&ready).await
        })
        .await?;
        Ok(alertmanager)
    }
}
