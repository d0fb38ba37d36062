//! What only the running daemon knows: since when it runs, how its last reload went, where its state lies, what
//! Prometheus and Alertmanager said last. The status page shows it; `status`, `explain` and `simulate`, which are
//! processes of their own, ask for it over the control socket. It changes nothing.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_host::build;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    api::{Asked, prometheus::Exporter},
    clock::Moment,
    config::Config,
    control,
    fleet::{settings::Role, view::View},
    journal::Standing,
    metrics::Metrics,
    pipeline::{Arrivals, Report},
};

/// The question's path on the control socket.
pub(crate) const PATH: &str = "/api/v1/daemon";
/// A daemon that is well answers at once; one that hangs must not hold up whoever looks why.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its version, which need not be that of the program that asks.
    pub version: String,
    /// The commit that it was built from.
    pub revision: String,
    /// When it began.
    pub started: Moment,
    /// The configuration that it goes by.
    pub reload: Reload,
    /// Why the state lies in its fallback, if it does.
    pub state_degraded: Option<String>,
    /// What Prometheus last said of this host's exporter; none before the first look.
    pub exporter: Option<Exporter>,
    /// The last question to Prometheus.
    pub prometheus: Option<Asked>,
    /// The last question to Alertmanager.
    pub alertmanager: Option<Asked>,
    /// What was last found of the way that alerts come; empty before the first look.
    #[serde(default)]
    pub pipeline: Report,
    /// By which of Alertmanager's receivers deliveries have come, and when the last, milliseconds since 1970.
    #[serde(default)]
    pub arrived: BTreeMap<String, i64>,
    /// What it does in a fleet, where there is one: agent, gateway or both.
    #[serde(default)]
    pub role: Option<String>,
    /// The fleet, as a gateway saw it last.
    #[serde(default)]
    pub fleet: Option<View>,
}

/// How the configuration was read last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Whether that was good; if not, the one before it holds.
    pub succeeded: bool,
    /// When the configuration in force was read, milliseconds since 1970.
    pub at_ms: i64,
}

/// Where the daemon finds what it knows. Cloning shares it.
#[derive(Clone)]
pub struct Sources {
    /// When the process began.
    pub started: Moment,
    /// The reloads, and what was heard from others.
    pub metrics: Metrics,
    /// Where the state lies.
    pub standing: watch::Receiver<Standing>,
    /// The way that alerts come.
    pub pipeline: watch::Receiver<Report>,
    /// By which receivers they have come.
    pub arrivals: Arrivals,
    /// What it does in a fleet, where there is one.
    pub role: Option<Role>,
    /// The fleet, as a gateway saw it last.
    pub fleet: watch::Receiver<Option<View>>,
}

impl Sources {
    /// What it knows now.
    pub fn now(&self) -> Daemon {
        let (succeeded, seconds) = self.metrics.reloads();
        let mut heard = self.metrics.heard();
        Daemon {
            version: build::VERSION.to_owned(),
            revision: build::REVISION.to_owned(),
            started: self.started.clone(),
            reload: Reload { succeeded, at_ms: seconds.saturating_mul(1000) },
            state_degraded: self.standing.borrow().degraded.clone(),
            exporter: heard.exporter,
            prometheus: heard.apis.remove("prometheus"),
            alertmanager: heard.apis.remove("alertmanager"),
            pipeline: self.pipeline.borrow().clone(),
            arrived: self.arrivals.all(),
            role: self.role.map(|role| role.as_str().to_owned()),
            fleet: self.fleet.borrow().clone(),
        }
    }
}

/// Asks the daemon that runs on this host with this configuration.
///
/// # Errors
/// When none answers, or it is not for whoever asks; in words for people.
pub async fn ask(config: &Config) -> anyhow::Result<Daemon> {
    let answer =
        control::reach(config, |client| client.get(format!("http://localhost{PATH}")).timeout(TIMEOUT))
            .await?;
    let status = answer.status();
    match status.as_u16() {
        200 => Ok(answer.json().await?),
        403 => anyhow::bail!("it answers only to root and its own user: try as root"),
        404 | 405 => {
            anyhow::bail!("the one that runs is older than this program and cannot be asked: restart it")
        }
        _ => anyhow::bail!("it answered {status}"),
    }
}
