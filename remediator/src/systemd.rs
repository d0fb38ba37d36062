//! The part of systemd's manager that changes things (org.freedesktop.systemd1(5)). Looking is in `evenkeel-host`.

use evenkeel_host::systemd::Systemd;
use zbus::{OwnedObjectPath, proxy::CacheProperties};

use crate::actions::Failure;

/// Calls that change units, and the signal that says how their jobs ended.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub trait Manager {
    /// Makes systemd send its signals on this connection.
    fn subscribe(&self) -> zbus::Result<()>;

    /// Queues a restart; the answer is the job.
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Clears the failed state and the start counter of one unit.
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    /// A job has ended: done, failed, canceled, timeout, dependency or skipped.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

impl ManagerProxy<'static> {
    /// On the connection that looking uses too.
    ///
    /// # Errors
    /// When there is no bus, and so nothing was done.
    pub(crate) async fn of(systemd: &Systemd) -> Result<Self, Failure> {
        let refused = |error: &dyn std::fmt::Display| Failure::Refused(format!("no system bus: {error}"));
        let connection = systemd.connection().await.map_err(|error| refused(&error))?;
        Self::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(|error| refused(&error))
    }
}
