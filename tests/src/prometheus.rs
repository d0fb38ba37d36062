//! A Prometheus on a free port of loopback, and the questions that tests ask it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    http, namespace,
    process::{Frozen, Process, send},
    tools,
    wait::wait_for,
};

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    port: u16,
}

impl Prometheus {
    /// Starts it on `port` with a configuration file and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is not ready within 30 s.
    pub async fn start(config: &Path, port: u16) -> Result<Self> {
        Self::start_in(&namespace::place("prometheus")?, config, port).await
    }

    /// The same with its data and its log in `dir`, which must exist.
    ///
    /// # Errors
    ///
    /// When it is not ready within 30 s.
    pub async fn start_in(dir: &Path, config: &Path, port: u16) -> Result<Self> {
        let mut command = tools::command(tools::program("prometheus")?);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            // What it sends before it has discovered its Alertmanager, some seconds after the start, is
            // lost; by default it would be sent again a minute later.
            .arg("--rules.alert.resend-delay=1s");
        let mut prometheus = Self { process: Process::start("prometheus", dir, command)?, port };
        let ready = format!("{}/-/ready", prometheus.url());
        wait_for("prometheus to be ready", Duration::from_secs(30), async || {
            prometheus.process.check_alive()?;
            http::get(&ready).await
        })
        .await?;
        Ok(prometheus)
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Has it read its configuration and its rules again.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn reload(&self) -> Result<()> {
        send(self.process.id(), Signal::HUP)
    }

    /// Stops it from running until the guard is dropped.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn freeze(&self) -> Result<Frozen> {
        self.process.freeze()
    }

    /// The result of an instant query: a list of series with their labels and values.
    ///
    /// # Errors
    ///
    /// When it does not answer or refuses the expression.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/query", self.url()))?;
        url.query_pairs_mut().append_pair("query", expression);
        let answer = http::get_json(url.as_str()).await?;
        Ok(answer["data"]["result"].as_array().context("an answer without a result")?.clone())
    }

    /// The value of the only series that an instant query gives.
    ///
    /// # Errors
    ///
    /// When there is none or more than one.
    pub async fn value(&self, expression: &str) -> Result<f64> {
        let found = self.query(expression).await?;
        let [series] = found.as_slice() else { bail!("{expression}: {} series", found.len()) };
        Ok(series["value"][1].as_str().context("a value is a string")?.parse()?)
    }

    /// The pending and firing alerts, as Prometheus lists them.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn alerts(&self) -> Result<Vec<Value>> {
        let answer = http::get_json(&format!("{}/api/v1/alerts", self.url())).await?;
        Ok(answer["data"]["alerts"].as_array().context("an answer without alerts")?.clone())
    }
}
