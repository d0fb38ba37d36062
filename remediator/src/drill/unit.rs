//! The drill's own unit: made to fail, and put back. The only unit that is touched here.

use std::time::Duration;

use evenkeel_host::systemd::{Systemd, UnitStatus};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{Stop, UNIT};
use crate::{systemd::ManagerProxy, text::printable};

/// How long systemd may take to show what it was told.
const PATIENCE: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(50);
/// Ends a program that does not know it, and counts as a failure (systemd.service(5), SuccessExitStatus=); leaves no core.
const SIGNAL: Signal = Signal::USR1;

#[derive(Debug)]
pub(super) struct DrillUnit {
    systemd: Systemd,
    touched: bool,
}

impl Default for DrillUnit {
    fn default() -> Self {
        Self { systemd: Systemd::system(), touched: false }
    }
}

impl DrillUnit {
    /// Whether there is something to put back.
    pub(super) fn is_touched(&self) -> bool {
        self.touched
    }

    /// Starts it and makes it fail.
    pub(super) async fn fail(&mut self) -> Result<(), Stop> {
        let seen = self.look().await?;
        if seen.load_state != "loaded" {
            return Err(Stop::untold(
                format!("{UNIT} is not installed (load state {})", printable(&seen.load_state)),
                "put packaging/evenkeel-drill.service into /etc/systemd/system, then systemctl daemon-reload",
            ));
        }
        if seen.active_state != "inactive" {
            return Err(Stop::untold(
                format!(
                    "{UNIT} is {}: another drill is at work, or was cut off",
                    printable(&seen.active_state)
                ),
                format!("systemctl stop {UNIT}; systemctl reset-failed {UNIT}"),
            ));
        }
        let manager = self.manager().await?;
        self.touched = true;
        manager.start_unit(UNIT, "replace").await.map_err(|error| refused("start", &error))?;
        self.becomes("active").await?;
        manager
            .kill_unit(UNIT, "main", SIGNAL.as_raw())
            .await
            .map_err(|error| refused("send a signal to", &error))?;
        self.becomes("failed").await
    }

    /// Stops it and clears its failure. Nothing when it was not touched.
    pub(super) async fn put_back(&self) -> Result<(), String> {
        if !self.touched {
            return Ok(());
        }
        let words = |stop: Stop| stop.why;
        let manager = self.manager().await.map_err(words)?;
        manager.stop_unit(UNIT, "replace").await.map_err(|error| words(refused("stop", &error)))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.look().await.map_err(words)?.active_state.as_str() {
                "inactive" => return Ok(()),
                "failed" => {
                    manager.reset_failed_unit(UNIT).await.map_err(|error| words(refused("reset", &error)))?;
                }
                other if Instant::now() >= deadline => {
                    return Err(format!("it is still {}", printable(other)));
                }
                _ => {}
            }
            sleep(PACE).await;
        }
    }

    async fn becomes(&self, wanted: &str) -> Result<(), Stop> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.look().await?.active_state;
            if seen == wanted {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Stop::untold(
                    format!("{UNIT} did not become {wanted}: it is {}", printable(&seen)),
                    format!("systemctl status {UNIT}"),
                ));
            }
            sleep(PACE).await;
        }
    }

    async fn look(&self) -> Result<UnitStatus, Stop> {
        self.systemd.unit(UNIT).await.map_err(|error| {
            Stop::untold(
                format!("systemd does not say how {UNIT} is: {}", printable(&error.to_string())),
                "systemctl status",
            )
        })
    }

    async fn manager(&self) -> Result<ManagerProxy<'static>, Stop> {
        let manager = ManagerProxy::of(&self.systemd).await;
        manager.map_err(|failure| Stop::untold(printable(&failure.to_string()), "systemctl status"))
    }
}

fn refused(what: &str, error: &zbus::Error) -> Stop {
    Stop::untold(
        format!("systemd does not let this user {what} {UNIT}: {}", printable(&error.to_string())),
        "run the drill as root",
    )
}
