//! What the list does not tell about a unit, for the exporter: each property by a question of its own, because `GetAll`
//! would cost systemd many times as much.

use std::time::{Duration, SystemTime};

use futures_util::{future::OptionFuture, join};

use super::{Error, SERVICE, Systemd, UNIT, Unit};

const TIMER: &str = "org.freedesktop.systemd1.Timer";
const SOCKET: &str = "org.freedesktop.systemd1.Socket";

/// What the list does not tell about a unit and systemd announces when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// When its state last changed, in microseconds of the monotonic clock.
    pub state_change: u64,
    /// When it last became active.
    pub active_enter: Option<SystemTime>,
    /// When it last became inactive.
    pub inactive_enter: Option<SystemTime>,
    /// What only services have.
    pub service: Option<ServiceDetails>,
    /// What only timers have.
    pub timer: Option<TimerDetails>,
}

/// What only services have, for the exporter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceDetails {
    /// Restarts by `Restart=` since the last manual start or `reset-failed`.
    pub n_restarts: u32,
    /// See [`super::ServiceStatus::result`].
    pub result: String,
    /// Exit status or signal number of the last main process.
    pub exec_main_status: i32,
    /// When it ended; `None` while the first one runs.
    pub exec_main_exit: Option<SystemTime>,
}

/// What only timers have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimerDetails {
    /// The unit that it starts.
    pub unit: String,
    /// When it last did.
    pub last_trigger: Option<SystemTime>,
    /// When it will next, by its calendar.
    pub next_realtime: Option<SystemTime>,
    /// When it will next, by the time since something: on the monotonic clock.
    pub next_monotonic: Option<Duration>,
}

/// What only sockets have. systemd does not announce when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketCounters {
    /// Connections accepted since the socket was loaded. Only sockets with `Accept=yes` count any.
    pub accepted: u32,
    /// Connections now.
    pub connections: u32,
    /// Connections refused since the socket was loaded.
    pub refused: u32,
}

/// The process that a service is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainProcess {
    /// Its number, as systemd's host counts.
    pub pid: u32,
    /// The service's control group, from the root of the hierarchy.
    pub control_group: String,
}

/// What a unit is tied to, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ties {
    /// It cannot be without these: `Requires=` and `BindsTo=`.
    pub requires: Vec<String>,
    /// It pulls these in: `Wants=`.
    pub wants: Vec<String>,
    /// It is started after these.
    pub after: Vec<String>,
}

/// Says whether a unit's [`Details`] may have changed: equal marks, equal details, until the unit files are reloaded.
///
/// systemd stamps every change of a unit's state, also those that end where they began (a crash and its restart).
/// Only `reset-failed` on a running service changes anything without a stamp: the restart counter, hence the second half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// [`Details::state_change`].
    pub state_change: u64,
    /// [`ServiceDetails::n_restarts`], 0 for what is not a service.
    pub n_restarts: u32,
}

impl Details {
    /// What [`Systemd::mark`] says while these details hold.
    pub fn mark(&self) -> Mark {
        let n_restarts = self.service.as_ref().map_or(0, |service| service.n_restarts);
        Mark { state_change: self.state_change, n_restarts }
    }
}

/// However many units the caller asks for at once, 8 calls are on the wire: more gains nothing.
impl Systemd {
    /// What the list does not tell about a listed unit. It may have changed while it was read: then systemd has
    /// announced it.
    ///
    /// # Errors
    /// When systemd does not answer. A unit that left memory since is loaded again, or is [`Error::is_no_such_unit`].
    pub async fn details(&self, unit: &Unit) -> Result<Details, Error> {
        let path = &unit.path;
        let (state_change, active_enter, inactive_enter, service, timer) = join!(
            self.state_change(path),
            self.time(path, UNIT, "ActiveEnterTimestamp"),
            self.time(path, UNIT, "InactiveEnterTimestamp"),
            OptionFuture::from((unit.kind() == "service").then(|| self.service_details(unit))),
            OptionFuture::from((unit.kind() == "timer").then(|| self.timer_details(unit))),
        );
        Ok(Details {
            state_change: state_change?,
            active_enter: active_enter?,
            inactive_enter: inactive_enter?,
            service: service.transpose()?,
            timer: timer.transpose()?,
        })
    }

    /// Whether [`Systemd::details`] read earlier still hold.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn mark(&self, unit: &Unit) -> Result<Mark, Error> {
        let n_restarts = self.bus.get(&unit.path, SERVICE, "NRestarts");
        let n_restarts = OptionFuture::from((unit.kind() == "service").then_some(n_restarts));
        let (state_change, n_restarts) = join!(self.state_change(&unit.path), n_restarts);
        Ok(Mark { state_change: state_change?, n_restarts: n_restarts.transpose()?.unwrap_or(0) })
    }

    /// The unit's file; empty where it has none.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn fragment_path(&self, unit: &Unit) -> Result<String, Error> {
        self.bus.get(&unit.path, UNIT, "FragmentPath").await
    }

    /// The units that this one pulls in when it starts: its `Wants=` and `Requires=`.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn pulled_in(&self, unit: &Unit) -> Result<Vec<String>, Error> {
        let (wants, requires) =
            join!(self.bus.get(&unit.path, UNIT, "Wants"), self.bus.get(&unit.path, UNIT, "Requires"));
        let (mut wants, requires): (Vec<String>, Vec<String>) = (wants?, requires?);
        wants.extend(requires);
        Ok(wants)
    }

    /// The unit's control group, from the root of the hierarchy; empty where it has none, and for kinds of units that
    /// never have one.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn control_group(&self, unit: &Unit) -> Result<String, Error> {
        let interface = match unit.kind() {
            "service" => SERVICE,
            "socket" => SOCKET,
            "scope" => "org.freedesktop.systemd1.Scope",
            "slice" => "org.freedesktop.systemd1.Slice",
            "mount" => "org.freedesktop.systemd1.Mount",
            "swap" => "org.freedesktop.systemd1.Swap",
            _ => return Ok(String::new()),
        };
        self.bus.get(&unit.path, interface, "ControlGroup").await
    }

    /// Whether a socket accepts connections itself (`Accept=yes`), so that it has any to count.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn accepts(&self, socket: &Unit) -> Result<bool, Error> {
        self.bus.get(&socket.path, SOCKET, "Accept").await
    }

    /// The counters of a socket.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn socket_counters(&self, socket: &Unit) -> Result<SocketCounters, Error> {
        let path = &socket.path;
        let (accepted, connections, refused) = join!(
            self.bus.get(path, SOCKET, "NAccepted"),
            self.bus.get(path, SOCKET, "NConnections"),
            self.bus.get(path, SOCKET, "NRefused"),
        );
        Ok(SocketCounters { accepted: accepted?, connections: connections?, refused: refused? })
    }

    /// Whether the files on disk are newer than what systemd works with. systemd looks at each of the unit's files for the
    /// answer.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn need_daemon_reload(&self, unit: &Unit) -> Result<bool, Error> {
        self.bus.get(&unit.path, UNIT, "NeedDaemonReload").await
    }

    /// `enabled`, `disabled`, `static`, `masked` …; empty where the unit has no file. systemd looks for links to the file
    /// for the first answer after each reload.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn unit_file_state(&self, unit: &Unit) -> Result<String, Error> {
        self.bus.get(&unit.path, UNIT, "UnitFileState").await
    }

    /// The main process of a service that systemd has in memory; of a name that it does not, of another kind of unit and
    /// of a service that does not run there is none.
    ///
    /// # Errors
    /// As [`Systemd::units`].
    pub async fn main_process(&self, name: &str) -> Result<Option<MainProcess>, Error> {
        if super::kind_of(name) != "service" {
            return Ok(None);
        }
        let path = match self.bus.call(&super::manager_path(), super::MANAGER, "GetUnit", &(name)).await {
            Ok(message) => super::bus::body::<super::UnitPath>("GetUnit", &message)?,
            Err(error) if error.is_no_such_unit() => return Ok(None),
            Err(error) => return Err(error),
        };
        let (pid, control_group) =
            join!(self.bus.get(&path, SERVICE, "MainPID"), self.bus.get(&path, SERVICE, "ControlGroup"));
        let process = MainProcess { pid: pid?, control_group: control_group? };
        Ok((process.pid != 0).then_some(process))
    }

    /// What the unit is tied to by its files and by what lies in folders beside them.
    ///
    /// # Errors
    /// As [`Systemd::details`].
    pub async fn ties(&self, unit: &Unit) -> Result<Ties, Error> {
        let path = &unit.path;
        let (requires, binds_to, wants, after) = join!(
            self.bus.get::<Vec<String>>(path, UNIT, "Requires"),
            self.bus.get::<Vec<String>>(path, UNIT, "BindsTo"),
            self.bus.get(path, UNIT, "Wants"),
            self.bus.get(path, UNIT, "After"),
        );
        let mut requires = requires?;
        requires.extend(binds_to?);
        Ok(Ties { requires, wants: wants?, after: after? })
    }

    async fn service_details(&self, unit: &Unit) -> Result<ServiceDetails, Error> {
        let path = &unit.path;
        let (n_restarts, result, exec_main_status, exec_main_exit) = join!(
            self.bus.get(path, SERVICE, "NRestarts"),
            self.bus.get(path, SERVICE, "Result"),
            self.bus.get(path, SERVICE, "ExecMainStatus"),
            self.time(path, SERVICE, "ExecMainExitTimestamp"),
        );
        Ok(ServiceDetails {
            n_restarts: n_restarts?,
            result: result?,
            exec_main_status: exec_main_status?,
            exec_main_exit: exec_main_exit?,
        })
    }

    async fn timer_details(&self, unit: &Unit) -> Result<TimerDetails, Error> {
        let path = &unit.path;
        let (unit, last_trigger, next_realtime, next_monotonic) = join!(
            self.bus.get(path, TIMER, "Unit"),
            self.time(path, TIMER, "LastTriggerUSec"),
            self.time(path, TIMER, "NextElapseUSecRealtime"),
            self.bus.get(path, TIMER, "NextElapseUSecMonotonic"),
        );
        Ok(TimerDetails {
            unit: unit?,
            last_trigger: last_trigger?,
            next_realtime: next_realtime?,
            next_monotonic: monotonic(next_monotonic?),
        })
    }
}

/// A property on the monotonic clock: microseconds, 0 for never, all ones for infinity.
pub(super) fn monotonic(microseconds: u64) -> Option<Duration> {
    (!matches!(microseconds, 0 | u64::MAX)).then(|| Duration::from_micros(microseconds))
}
