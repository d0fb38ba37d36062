//! The part of systemd's bus that the actions need: the calls that change things, and what they ask before
//! (org.freedesktop.systemd1(5)). Looking at targets is in `evenkeel-host`.

use evenkeel_host::systemd::Systemd;
use zbus::{OwnedObjectPath, Variant, proxy::CacheProperties};

use crate::actions::Failure;

/// One command of a service: the program, its arguments from the zeroth, and whether its failure is none.
pub(crate) type Command<'a> = (&'a str, Vec<&'a str>, bool);

/// Calls that change units, and the signal that says how their jobs ended.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub trait Manager {
    /// Makes systemd send its signals on this connection.
    fn subscribe(&self) -> zbus::Result<()>;

    /// Queues a start; the answer is the job.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Queues a stop; the answer is the job.
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Queues a restart; the answer is the job.
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Has a unit read its own configuration; the answer is the job.
    fn reload_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Sends a signal to a unit's processes, or to its main one only.
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;

    /// Makes and starts a unit that has no file; the answer is the job.
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        more: &[(&str, Vec<(&str, Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;

    /// Reads all unit files anew; answers when that is done.
    fn reload(&self) -> zbus::Result<()>;

    /// Clears the failed state and the start counter of one unit.
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    /// A unit's object, loaded where it is not in memory.
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    /// A job has ended: done, failed, canceled, timeout, dependency or skipped.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

/// What actions ask of a unit beside its state.
#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
pub trait Unit {
    /// Whether it may be started by hand.
    #[zbus(property)]
    fn can_start(&self) -> zbus::Result<bool>;

    /// Whether it knows how to read its own configuration.
    #[zbus(property)]
    fn can_reload(&self) -> zbus::Result<bool>;

    /// enabled, disabled, static, masked …
    #[zbus(property)]
    fn unit_file_state(&self) -> zbus::Result<String>;

    /// Units whose start wants this one.
    #[zbus(property)]
    fn wanted_by(&self) -> zbus::Result<Vec<String>>;

    /// Units whose start requires this one.
    #[zbus(property)]
    fn required_by(&self) -> zbus::Result<Vec<String>>;

    /// Sockets, timers and paths that start this one.
    #[zbus(property)]
    fn triggered_by(&self) -> zbus::Result<Vec<String>>;

    /// Its file; empty where there is none.
    #[zbus(property)]
    fn fragment_path(&self) -> zbus::Result<String>;

    /// The files that change what its file says.
    #[zbus(property)]
    fn drop_in_paths(&self) -> zbus::Result<Vec<String>>;
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

impl UnitProxy<'static> {
    /// The unit of this name.
    ///
    /// # Errors
    /// When systemd does not answer, or refuses the name; nothing was done.
    pub(crate) async fn of(systemd: &Systemd, name: &str) -> Result<Self, Failure> {
        let manager = ManagerProxy::of(systemd).await?;
        let path = manager.load_unit(name).await.map_err(asking)?;
        let builder = Self::builder(manager.inner().connection()).path(path);
        builder.cache_properties(CacheProperties::No).build().await.map_err(asking)
    }
}

/// A question that was not answered changed nothing.
pub(crate) fn asking(error: zbus::Error) -> Failure {
    Failure::Refused(format!("systemd: {error}"))
}
