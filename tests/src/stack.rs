//! The whole loop around one host: exporter, remediator, Prometheus and Alertmanager, wired by the
//! shipped files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{
    alerting::{Ports, Wiring},
    alertmanager::Alertmanager,
    binaries::{Exporter, Remediator, Surroundings},
    prometheus::Prometheus,
};

/// The configuration of the two binaries.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The exporter's file.
    pub exporter: PathBuf,
    /// The remediator's file.
    pub remediator: PathBuf,
    /// The token that Alertmanager shows to the remediator.
    pub token: PathBuf,
    /// The remediator's subcommand, and its flags.
    pub serve: &'static [&'static str],
}

/// A running loop. Dropping it ends its programs.
#[derive(Debug)]
pub struct Stack {
    // In this order they end: nobody is left to miss the next one.
    /// Scrapes both binaries and decides what is wrong.
    pub prometheus: Prometheus,
    /// Groups alerts and delivers them.
    pub alertmanager: Alertmanager,
    /// Repairs, or says what it would do.
    pub remediator: Remediator,
    /// Looks at the host.
    pub exporter: Exporter,
}

impl Stack {
    /// Starts all of it with data and logs in `dir`, and waits until each part answers.
    ///
    /// # Errors
    ///
    /// When a file cannot be written or a program does not answer.
    pub async fn start(
        dir: &Path,
        configuration: &Configuration,
        ports: &Ports,
        hurry: bool,
        around: &Surroundings,
    ) -> Result<Self> {
        let place = |name: &str| {
            let path = dir.join(name);
            fs::create_dir_all(&path).map(|()| path)
        };
        let wiring = Wiring { ports, token: &configuration.token, hurry, people: None };
        let files = wiring.write(&place("wiring")?)?;
        let (prometheus_dir, alertmanager_dir) = (place("prometheus")?, place("alertmanager")?);
        let alertmanager_port = ports.alertmanagers.first().copied().unwrap_or(9093);
        let (exporter, remediator, alertmanager, prometheus) = tokio::try_join!(
            Exporter::start(dir, ports.exporter, Some(&configuration.exporter), around),
            Remediator::start_as(
                configuration.serve,
                dir,
                ports.remediator,
                &configuration.remediator,
                around
            ),
            Alertmanager::start_in(&alertmanager_dir, &files.alertmanager, alertmanager_port),
            Prometheus::start_in(&prometheus_dir, &files.prometheus, ports.prometheus),
        )?;
        Ok(Self { prometheus, alertmanager, remediator, exporter })
    }
}
