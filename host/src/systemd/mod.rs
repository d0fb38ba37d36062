//! Asks systemd, over the system bus, what its units are doing. Only questions: nothing here starts, stops or reloads.
//! Not here: what a state means for an alert (the collector) and the calls that change units (the remediator, which
//! borrows [`Systemd::connection`] for its own proxies). What systemd says unasked is in [`Systemd::listen`].
//!
//! Properties are read by name, never by `GetAll`: on `org.freedesktop.systemd1.Unit` that makes PID 1 stat the unit's
//! files for `NeedDaemonReload`. Several at once go through `join!`, never `try_join!`: that drops the other calls at the
//! first failure, and a dropped call costs the connection. State words are plain strings, because newer systemds add some.

mod bus;
mod details;
mod failure;
#[cfg(any(test, feature = "fake-systemd"))]
pub mod fake;
mod files;
mod name;
mod references;
mod signals;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod unit_file;

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use futures_util::{future::OptionFuture, join};
use zbus::{ObjectPath, OwnedObjectPath};

use bus::Bus;
pub use bus::Error;
pub use details::{Details, MainProcess, Mark, ServiceDetails, SocketCounters, Ties, TimerDetails};
pub use failure::{Failure, is_trouble};
pub use files::{has_unit_file, machine_id, unit_files, unit_files_stamp};
pub use name::is_unit_name;
pub use references::{Named, OWN_FOLDERS, covers, own_references};
pub use signals::{Changed, Effect, Line, Position, Signal, Signals};
#[cfg(feature = "foreign-input")]
pub(crate) use unit_file::PARSERS;

/// A unit's object on the bus.
pub type UnitPath = OwnedObjectPath;

const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PEER: &str = "org.freedesktop.DBus.Peer";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// Units that [`Systemd::dependents`] looks at before it gives up counting.
const DEPENDENTS_LOOKED_AT: usize = 64;

/// How often [`Systemd::unit`] reads again when the unit changed while it was being read.
const TRIES_FOR_A_STILL_PICTURE: usize = 3;

/// The systemd of this host. Clones share one connection, which is made at the first question and anew after any
/// error, time-out or abandoned call. Every future here may be dropped at any point.
#[derive(Debug, Clone)]
pub struct Systemd {
    bus: Bus,
}

/// One unit as `ListUnits` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The unit's primary name, as systemd spells it (not escaped).
    pub name: String,
    /// `loaded`, `not-found`, `bad-setting`, `error`, `masked` …
    pub load_state: String,
    /// `active`, `activating`, `inactive`, `failed` …
    pub active_state: String,
    /// The state in the words of the unit's type: `running`, `auto-restart`, `dead`, `waiting` …
    pub sub_state: String,
    /// The queued job, 0 for none.
    pub job_id: u32,
    /// The unit's object on the bus.
    pub path: UnitPath,
}

/// All that the remediator needs to know of one unit, read while the unit stood still where that was possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitStatus {
    /// The canonical name; the asked one may be an alias.
    pub id: String,
    /// The canonical name and all aliases.
    pub names: Vec<String>,
    /// See [`Unit::load_state`].
    pub load_state: String,
    /// See [`Unit::active_state`].
    pub active_state: String,
    /// See [`Unit::sub_state`].
    pub sub_state: String,
    /// The queued job, 0 for none.
    pub job_id: u32,
    /// The files on disk are newer than what systemd works with.
    pub need_daemon_reload: bool,
    /// False for units that refuse a manual start.
    pub can_start: bool,
    /// When it last became active.
    pub active_enter: Option<SystemTime>,
    /// What only services have.
    pub service: Option<ServiceStatus>,
    /// The unit file; empty where there is none.
    pub fragment_path: String,
}

/// What only services have, for the remediator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStatus {
    /// `Type=`: `simple`, `oneshot`, `notify` …
    pub kind: String,
    /// `success`, `exit-code`, `signal`, `timeout`, `watchdog`, `oom-kill` …
    pub result: String,
    /// Restarts by `Restart=` since the last manual start or `reset-failed`.
    pub n_restarts: u32,
    /// `si_code` of the last main process' end: 1 exited, 2 killed, 3 dumped core, 0 not ended.
    pub exec_main_code: i32,
    /// Its exit status, or the signal's number.
    pub exec_main_status: i32,
    /// When it ended; `None` while the first one runs.
    pub exec_main_exit: Option<SystemTime>,
    /// The main process now, 0 for none.
    pub main_pid: u32,
    /// `RemainAfterExit=`.
    pub remain_after_exit: bool,
    /// Which run this is, in hex; empty before the first.
    pub invocation_id: String,
}

impl Unit {
    /// The unit's type, which is its suffix: `service`, `timer` …
    pub fn kind(&self) -> &str {
        kind_of(&self.name)
    }
}

/// The suffix of a unit name; empty where there is none.
fn kind_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, kind)| kind)
}

impl Systemd {
    /// The system bus at `DBUS_SYSTEM_BUS_ADDRESS`, or where it always is. Connects at the first question.
    pub fn system() -> Self {
        Self { bus: Bus::system() }
    }

    /// The bus at a D-Bus address, such as `unix:path=/run/dbus/system_bus_socket`.
    pub fn at(address: &str) -> Self {
        Self { bus: Bus::at(address) }
    }

    /// The same with another limit for each call (5 s unless said).
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.bus.limit = limit;
        self
    }

    /// Whether the bus' socket is there; true for addresses that have no file. Says nothing about who listens.
    pub fn socket_exists(&self) -> bool {
        self.bus.socket_exists()
    }

    /// The kept connection, or a new one. Whoever sees a call on it fail or time out tells [`Systemd::forget`].
    ///
    /// # Errors
    /// When there is no bus, it refuses us, or it does not answer.
    pub async fn connection(&self) -> Result<zbus::Connection, Error> {
        self.bus.connection().await
    }

    /// Drops the kept connection, so that the next question makes a new one.
    pub async fn forget(&self) {
        self.bus.forget();
    }

    /// All units in memory, among them such that are only named by others and do not exist (`not-found`).
    ///
    /// # Errors
    /// When systemd does not answer, or with something else than a list of units.
    pub async fn units(&self) -> Result<Vec<Unit>, Error> {
        let message = self.bus.call(&manager_path(), MANAGER, "ListUnits", &()).await?;
        rows("ListUnits", &message)
    }

    /// These units, loaded for the question where they are not in memory. A name that has no file comes back as
    /// `not-found`, an invalid one not at all, an alias under its unit's own name.
    ///
    /// # Errors
    /// As [`Systemd::units`].
    pub async fn units_by_names(&self, names: &[String]) -> Result<Vec<Unit>, Error> {
        let message = self.bus.call(&manager_path(), MANAGER, "ListUnitsByNames", &(names)).await?;
        rows("ListUnitsByNames", &message)
    }

    /// The file that a unit is defined in; empty where there is none, as for a transient unit.
    ///
    /// # Errors
    /// When systemd does not answer, or the unit is gone.
    pub async fn file_of(&self, unit: &Unit) -> Result<String, Error> {
        self.bus.get(&unit.path, UNIT, "FragmentPath").await
    }

    /// What it says of the whole host: `initializing`, `starting`, `running`, `degraded`, `maintenance`, `stopping`.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn system_state(&self) -> Result<String, Error> {
        self.bus.get(&manager_path(), MANAGER, "SystemState").await
    }

    /// systemd's version, as it says it: `252.39-1~deb12u1`.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn version(&self) -> Result<String, Error> {
        self.bus.get(&manager_path(), MANAGER, "Version").await
    }

    /// The machine id of the host that this systemd runs, which need not be the one whose files we see.
    ///
    /// # Errors
    /// When systemd does not answer, or has no machine id.
    pub async fn machine_id(&self) -> Result<String, Error> {
        let message = self.bus.call(&manager_path(), PEER, "GetMachineId", &()).await?;
        bus::body("GetMachineId", &message)
    }

    /// One unit by name or alias, loaded for the question where it is not in memory. One that does not exist is no
    /// error: its `load_state` is `not-found`.
    ///
    /// # Errors
    /// When systemd does not answer, or refuses the name.
    pub async fn unit(&self, name: &str) -> Result<UnitStatus, Error> {
        let path = self.load(name).await?;
        let mut before = self.state_change(&path).await?;
        let mut status = self.status(&path).await?;
        for _ in 1..TRIES_FOR_A_STILL_PICTURE {
            let after = self.state_change(&path).await?;
            if after == before {
                break;
            }
            (before, status) = (after, self.status(&path).await?);
        }
        Ok(status)
    }

    /// Since when a unit is active, where it is. Two questions, where `unit` is twenty.
    ///
    /// # Errors
    /// When systemd does not answer, or refuses the name.
    pub async fn active_since(&self, name: &str) -> Result<Option<SystemTime>, Error> {
        let path = self.load(name).await?;
        let (state, since) = join!(
            self.bus.get::<String>(&path, UNIT, "ActiveState"),
            self.time(&path, UNIT, "ActiveEnterTimestamp"),
        );
        let (state, since) = (state?, since?);
        Ok(since.filter(|_| state == "active"))
    }

    /// The units that a restart or stop of this one may take along, and that are not inactive: everything that requires,
    /// is bound to or is part of it, or triggers it, and what in turn depends on those. At most `most` and one more, so
    /// that the caller sees that there are more.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn dependents(&self, name: &str, most: usize) -> Result<Vec<String>, Error> {
        let mut found: Vec<String> = Vec::new();
        let mut known = HashSet::from([name.to_owned()]);
        let mut next = vec![name.to_owned()];
        while let Some(unit) = next.pop() {
            for dependent in self.direct_dependents(&unit).await? {
                if !known.insert(dependent.clone()) {
                    continue;
                }
                let path = self.load(&dependent).await?;
                if self.bus.get::<String>(&path, UNIT, "ActiveState").await? != "inactive" {
                    found.push(dependent.clone());
                }
                if found.len() > most || known.len() > DEPENDENTS_LOOKED_AT {
                    return Ok(found);
                }
                next.push(dependent);
            }
        }
        Ok(found)
    }

    async fn direct_dependents(&self, name: &str) -> Result<Vec<String>, Error> {
        let path = self.load(name).await?;
        let mut dependents = Vec::new();
        for property in ["RequiredBy", "BoundBy", "ConsistsOf", "TriggeredBy"] {
            dependents.extend(self.bus.get::<Vec<String>>(&path, UNIT, property).await?);
        }
        Ok(dependents)
    }

    /// The unit's object, loaded for the question where it is not in memory.
    async fn load(&self, name: &str) -> Result<OwnedObjectPath, Error> {
        let message = self.bus.call(&manager_path(), MANAGER, "LoadUnit", &(name)).await?;
        bus::body("LoadUnit", &message)
    }

    async fn status(&self, path: &OwnedObjectPath) -> Result<UnitStatus, Error> {
        let (id, names, load_state, active_state, sub_state, job) = join!(
            self.bus.get::<String>(path, UNIT, "Id"),
            self.bus.get(path, UNIT, "Names"),
            self.bus.get(path, UNIT, "LoadState"),
            self.bus.get(path, UNIT, "ActiveState"),
            self.bus.get(path, UNIT, "SubState"),
            self.bus.get::<bus::Job>(path, UNIT, "Job"),
        );
        let id = id?;
        let (need_daemon_reload, can_start, active_enter, fragment_path, service) = join!(
            self.bus.get(path, UNIT, "NeedDaemonReload"),
            self.bus.get(path, UNIT, "CanStart"),
            self.time(path, UNIT, "ActiveEnterTimestamp"),
            self.bus.get(path, UNIT, "FragmentPath"),
            OptionFuture::from((kind_of(&id) == "service").then(|| self.service_status(path))),
        );
        Ok(UnitStatus {
            names: names?,
            load_state: load_state?,
            active_state: active_state?,
            sub_state: sub_state?,
            job_id: job?.id,
            need_daemon_reload: need_daemon_reload?,
            can_start: can_start?,
            active_enter: active_enter?,
            service: service.transpose()?,
            fragment_path: fragment_path?,
            id,
        })
    }

    async fn service_status(&self, path: &OwnedObjectPath) -> Result<ServiceStatus, Error> {
        let (kind, result, n_restarts, exec_main_code, exec_main_status) = join!(
            self.bus.get(path, SERVICE, "Type"),
            self.bus.get(path, SERVICE, "Result"),
            self.bus.get(path, SERVICE, "NRestarts"),
            self.bus.get(path, SERVICE, "ExecMainCode"),
            self.bus.get(path, SERVICE, "ExecMainStatus"),
        );
        let (exec_main_exit, main_pid, remain_after_exit, invocation) = join!(
            self.time(path, SERVICE, "ExecMainExitTimestamp"),
            self.bus.get(path, SERVICE, "MainPID"),
            self.bus.get(path, SERVICE, "RemainAfterExit"),
            self.bus.get::<Vec<u8>>(path, UNIT, "InvocationID"),
        );
        Ok(ServiceStatus {
            kind: kind?,
            result: result?,
            n_restarts: n_restarts?,
            exec_main_code: exec_main_code?,
            exec_main_status: exec_main_status?,
            exec_main_exit: exec_main_exit?,
            main_pid: main_pid?,
            remain_after_exit: remain_after_exit?,
            invocation_id: hex(&invocation?),
        })
    }

    async fn state_change(&self, path: &OwnedObjectPath) -> Result<u64, Error> {
        self.bus.get(path, UNIT, "StateChangeTimestampMonotonic").await
    }

    async fn time(
        &self,
        path: &OwnedObjectPath,
        interface: &'static str,
        property: &'static str,
    ) -> Result<Option<SystemTime>, Error> {
        Ok(realtime(self.bus.get(path, interface, property).await?))
    }
}

fn manager_path() -> ObjectPath<'static> {
    ObjectPath::from_static_str_unchecked(MANAGER_PATH)
}

/// An id as it is written everywhere.
fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A timestamp property: microseconds since 1970, 0 for never, all ones for infinity.
fn realtime(microseconds: u64) -> Option<SystemTime> {
    if matches!(microseconds, 0 | u64::MAX) {
        return None;
    }
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(microseconds))
}

/// One row of `ListUnits`: name, description, load, active and sub state, followed unit, path, and the job's id, type
/// and path.
type Row<'a> =
    (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str, ObjectPath<'a>, u32, &'a str, ObjectPath<'a>);

fn rows(call: &'static str, message: &zbus::Message) -> Result<Vec<Unit>, Error> {
    let body = message.body();
    let rows: Vec<Row<'_>> = body.deserialize().map_err(|cause| Error::Malformed { call, cause })?;
    Ok(rows
        .into_iter()
        .map(|(name, _, load_state, active_state, sub_state, _, path, job_id, _, _)| Unit {
            name: name.to_owned(),
            load_state: load_state.to_owned(),
            active_state: active_state.to_owned(),
            sub_state: sub_state.to_owned(),
            job_id,
            path: path.into(),
        })
        .collect())
}
