//! What systemd says unasked: which units came, went and changed, and to what. It costs systemd nothing while nothing
//! changes.
//!
//! The signals come in on a connection of their own, because one whose signals nobody takes carries no answers either.
//! A question on that same connection ([`Line::system_state`]) is answered after everything that systemd announced
//! before: whoever has taken all signals up to the answer's [`Position`] knows what systemd knew when it answered.

use std::{collections::HashMap, num::NonZeroUsize, time::Duration};

use futures_util::StreamExt;
use zbus::{Connection, Message, MessageStream, Variant, message::Type};

use super::{
    Details, Error, MANAGER, Systemd, Unit, UnitPath,
    bus::{self, PROPERTIES, SYSTEMD},
    details::monotonic,
    manager_path, realtime,
};

const DBUS: &str = "org.freedesktop.DBus";
const DBUS_PATH: &str = "/org/freedesktop/DBus";

/// Signals that wait here at most; more wait in the bus, which has limits of its own. Whoever listens takes them at once,
/// so this is for the moments in which the process does not run.
const QUEUED: NonZeroUsize = NonZeroUsize::new(1024).expect("not 0");

/// A place in the sequence of messages of one connection.
pub type Position = zbus::message::Sequence;

/// The connection that signals come in on, to ask over. Clones share it.
#[derive(Debug, Clone)]
pub struct Line {
    connection: Connection,
    limit: Duration,
}

/// The signals, in the order in which systemd sent them. They end with the connection, and when another process becomes
/// systemd on this bus or none is it any more: what was announced before need not hold then.
#[derive(Debug)]
pub struct Signals {
    messages: MessageStream,
    /// Who systemd is on this bus, so that nobody else's signals are taken for its own: anyone may send us some.
    systemd: String,
}

/// One announcement.
#[derive(Debug)]
pub enum Signal {
    /// A unit was loaded; what it is like is not said.
    New {
        /// Its name.
        name: String,
        /// Its object on the bus.
        path: UnitPath,
    },
    /// A unit left memory.
    Removed {
        /// Its object on the bus.
        path: UnitPath,
    },
    /// A unit changed.
    Changed(Changed),
    /// systemd reads all unit files anew, or is done with it. In between it removes and adds every unit.
    Reloading(bool),
}

/// What changed about a unit, not yet read.
#[derive(Debug)]
pub struct Changed {
    path: UnitPath,
    message: Message,
}

/// What a change did to what was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing of what is kept is different.
    Nothing,
    /// It is up to date now.
    Changed,
    /// The signal does not say all that is different: the unit is to be asked about.
    Unclear,
}

impl Systemd {
    /// Listens to what systemd announces from here on.
    ///
    /// # Errors
    /// When there is no bus, no systemd on it, or one of them does not answer.
    pub async fn listen(&self) -> Result<(Line, Signals), Error> {
        let connection = self.bus.connect(Some(QUEUED)).await?;
        let messages = MessageStream::from(&connection);
        let line = Line { connection, limit: self.bus.limit };
        // Before anything else, so that no change of the owner is missed.
        let owner = format!("type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'");
        line.bus("AddMatch", &owner).await?;
        let systemd = bus::body("GetNameOwner", &line.bus("GetNameOwner", SYSTEMD).await?)?;
        let reply =
            line.connection.call_method(Some(SYSTEMD), manager_path(), Some(MANAGER), "Subscribe", &());
        bus::answer("Subscribe", line.limit, reply).await?;
        for member in ["UnitNew", "UnitRemoved", "Reloading"] {
            let rule = format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='{member}'");
            line.bus("AddMatch", &rule).await?;
        }
        // Jobs have such signals too, in another folder.
        let units = format!(
            "type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged',\
             path_namespace='{}/unit'",
            super::MANAGER_PATH
        );
        line.bus("AddMatch", &units).await?;
        Ok((line, Signals { messages, systemd }))
    }
}

impl Line {
    /// The state of the system as a whole (`running`, `degraded` …), and the position of the answer.
    ///
    /// # Errors
    /// When systemd does not answer. Nothing is known of later signals then: the line is to be given up.
    pub async fn system_state(&self) -> Result<(String, Position), Error> {
        const STATE: &str = "SystemState";
        let body = (MANAGER, STATE);
        let reply =
            self.connection.call_method(Some(SYSTEMD), manager_path(), Some(PROPERTIES), "Get", &body);
        let message = bus::answer(STATE, self.limit, reply).await?;
        Ok((bus::value(STATE, &message)?, message.recv_position()))
    }

    async fn bus(&self, member: &'static str, argument: &str) -> Result<Message, Error> {
        let reply = self.connection.call_method(Some(DBUS), DBUS_PATH, Some(DBUS), member, &argument);
        bus::answer(member, self.limit, reply).await
    }
}

impl Signals {
    /// The next message and what it announces, if anything; `None` at the end.
    pub async fn next(&mut self) -> Option<(Position, Option<Signal>)> {
        let message = self.messages.next().await?.ok()?;
        if self.says_that_systemd_went(&message) {
            return None;
        }
        Some((message.recv_position(), self.understand(message)))
    }

    fn says_that_systemd_went(&self, message: &Message) -> bool {
        let header = message.header();
        let is_from_the_bus = header.sender().is_some_and(|sender| sender == DBUS);
        if !is_from_the_bus || header.member().is_none_or(|member| member != "NameOwnerChanged") {
            return false;
        }
        // It asked for this one name only.
        let owner = message.body().deserialize::<(String, String, String)>();
        owner.is_ok_and(|(_, _, owner)| owner != self.systemd)
    }

    fn understand(&self, message: Message) -> Option<Signal> {
        let header = message.header();
        if message.message_type() != Type::Signal || header.sender()?.as_str() != self.systemd {
            return None;
        }
        match header.member()?.as_str() {
            "PropertiesChanged" => {
                let path = header.path()?.to_owned().into();
                Some(Signal::Changed(Changed { path, message }))
            }
            "UnitNew" => {
                let (name, path) = message.body().deserialize().ok()?;
                Some(Signal::New { name, path })
            }
            "UnitRemoved" => {
                let (_, path): (String, _) = message.body().deserialize().ok()?;
                Some(Signal::Removed { path })
            }
            "Reloading" => Some(Signal::Reloading(message.body().deserialize().ok()?)),
            _ => None,
        }
    }
}

impl Changed {
    /// The unit's object on the bus.
    pub fn path(&self) -> &UnitPath {
        &self.path
    }

    /// Writes into `unit` and `details` what the signal says.
    pub fn apply(&self, unit: &mut Unit, details: Option<&mut Details>) -> Effect {
        let body = self.message.body();
        let read: Result<(&str, HashMap<&str, Variant<'_>>, Vec<&str>), _> = body.deserialize();
        let Ok((interface, changed, without_value)) = read else { return Effect::Unclear };
        let mut writer = Writer { effect: Effect::Nothing };
        let mut details = details;
        for (property, value) in &changed {
            writer.property(interface, property, value, unit, details.as_deref_mut());
        }
        if without_value.iter().any(|property| is_kept(interface, property)) {
            return Effect::Unclear;
        }
        writer.effect
    }
}

struct Writer {
    effect: Effect,
}

impl Writer {
    fn property(
        &mut self,
        interface: &str,
        property: &str,
        value: &Variant<'_>,
        unit: &mut Unit,
        details: Option<&mut Details>,
    ) {
        let kind = interface.rsplit_once('.').map_or("", |(_, kind)| kind);
        match (kind, property) {
            ("Unit", "LoadState") => self.word(value, &mut unit.load_state),
            ("Unit", "ActiveState") => self.word(value, &mut unit.active_state),
            ("Unit", "SubState") => self.word(value, &mut unit.sub_state),
            _ => {
                if let Some(details) = details {
                    self.detail(kind, property, value, details);
                }
            }
        }
    }

    fn detail(&mut self, kind: &str, property: &str, value: &Variant<'_>, details: &mut Details) {
        match (kind, property, &mut details.service, &mut details.timer) {
            ("Unit", "StateChangeTimestampMonotonic", ..) => {
                self.number(value, &mut details.state_change, |value| value);
            }
            ("Unit", "ActiveEnterTimestamp", ..) => self.number(value, &mut details.active_enter, realtime),
            ("Unit", "InactiveEnterTimestamp", ..) => {
                self.number(value, &mut details.inactive_enter, realtime);
            }
            ("Service", "NRestarts", Some(service), _) => match value {
                Variant::U32(value) => self.set(*value, &mut service.n_restarts),
                _ => self.effect = Effect::Unclear,
            },
            ("Service", "Result", Some(service), _) => self.word(value, &mut service.result),
            ("Service", "ExecMainStatus", Some(service), _) => match value {
                Variant::I32(value) => self.set(*value, &mut service.exec_main_status),
                _ => self.effect = Effect::Unclear,
            },
            ("Service", "ExecMainExitTimestamp", Some(service), _) => {
                self.number(value, &mut service.exec_main_exit, realtime);
            }
            ("Timer", "LastTriggerUSec", _, Some(timer)) => {
                self.number(value, &mut timer.last_trigger, realtime);
            }
            ("Timer", "NextElapseUSecRealtime", _, Some(timer)) => {
                self.number(value, &mut timer.next_realtime, realtime);
            }
            ("Timer", "NextElapseUSecMonotonic", _, Some(timer)) => {
                self.number(value, &mut timer.next_monotonic, monotonic);
            }
            _ => {}
        }
    }

    fn word(&mut self, value: &Variant<'_>, place: &mut String) {
        match value {
            Variant::Str(value) if value.as_str() == place => {}
            Variant::Str(value) => self.set(value.as_str().to_owned(), place),
            _ => self.effect = Effect::Unclear,
        }
    }

    fn number<T: PartialEq>(&mut self, value: &Variant<'_>, place: &mut T, meaning: impl Fn(u64) -> T) {
        match value {
            Variant::U64(value) => self.set(meaning(*value), place),
            _ => self.effect = Effect::Unclear,
        }
    }

    fn set<T: PartialEq>(&mut self, value: T, place: &mut T) {
        if *place != value {
            *place = value;
            if self.effect == Effect::Nothing {
                self.effect = Effect::Changed;
            }
        }
    }
}

/// Whether a property is one of those that [`Writer`] knows.
fn is_kept(interface: &str, property: &str) -> bool {
    let kept: &[&str] = match interface.rsplit_once('.') {
        Some((_, "Unit")) => &[
            "LoadState",
            "ActiveState",
            "SubState",
            "StateChangeTimestampMonotonic",
            "ActiveEnterTimestamp",
            "InactiveEnterTimestamp",
        ],
        Some((_, "Service")) => &["NRestarts", "Result", "ExecMainStatus", "ExecMainExitTimestamp"],
        Some((_, "Timer")) => &["LastTriggerUSec", "NextElapseUSecRealtime", "NextElapseUSecMonotonic"],
        _ => &[],
    };
    kept.contains(&property)
}

#[cfg(test)]
mod tests;
