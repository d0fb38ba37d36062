//! A systemd that a test can bend: a bus with one service on it, in this process, on a unix socket. It speaks the real
//! protocol (also the bus' own `Hello`), so the code under test takes its ordinary way, reconnecting included. Only for
//! tests: behind the feature `fake-systemd`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::StreamExt;
use tokio::{
    net::UnixListener,
    task::{JoinHandle, JoinSet},
};
use zbus::{
    Connection, DynamicType, Guid, Message, MessageStream, ObjectPath, OwnedVariant, Variant,
    connection::Builder, message::Type,
};

use super::{MANAGER, MANAGER_PATH, UNIT, bus::PROPERTIES};

/// Who the fake is on its bus.
const NAME: &str = ":1.0";

/// A running fake; gone when dropped.
#[derive(Debug)]
pub struct FakeSystemd {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

/// What the fake shows, and how it behaves.
#[derive(Debug, Default)]
pub struct State {
    /// What `ListUnits` lists.
    pub units: Vec<FakeUnit>,
    /// What exists, but is only in memory once someone asks for it by name.
    pub on_disk: Vec<FakeUnit>,
    /// `SystemState`.
    pub system_state: String,
    /// `Version`.
    pub version: String,
    /// The id of its machine.
    pub machine_id: String,
    /// How it answers.
    pub mood: Mood,
    /// Members and properties asked for since the start, counted.
    pub asked: BTreeMap<String, u64>,
    /// Connections taken since the start.
    pub connections: u64,
    /// Connections that have subscribed to signals.
    listeners: Vec<Connection>,
}

/// How the fake answers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    #[default]
    Well,
    /// Takes connections and never answers: a stopped dbus-daemon.
    Deaf,
    /// Never answers this one member or property.
    DeafTo(&'static str),
    /// Answers this one member or property with a number that nobody asked for.
    Nonsense(&'static str),
    /// Answers everything with this D-Bus error.
    Refusing(&'static str),
    /// Breaks the connection at this one member or property.
    HangingUpAt(&'static str),
}

/// One unit of the fake.
#[derive(Debug)]
pub struct FakeUnit {
    /// As in [`super::Unit`].
    pub name: String,
    /// As in [`super::Unit`].
    pub load_state: String,
    /// As in [`super::Unit`].
    pub active_state: String,
    /// As in [`super::Unit`].
    pub sub_state: String,
    /// Everything else, by name.
    pub properties: BTreeMap<&'static str, OwnedVariant>,
}

impl FakeUnit {
    /// A loaded unit that is active, with the properties that evenkeel reads.
    pub fn new(name: &str) -> Self {
        let mut unit = Self {
            name: name.to_owned(),
            load_state: "loaded".to_owned(),
            active_state: "active".to_owned(),
            sub_state: "running".to_owned(),
            properties: BTreeMap::new(),
        };
        unit.set("Names", vec![name.to_owned()]);
        unit.set("Job", (0_u32, ObjectPath::from_static_str_unchecked("/")));
        unit.set("NeedDaemonReload", false);
        unit.set("CanStart", true);
        unit.set("FragmentPath", format!("/usr/lib/systemd/system/{name}"));
        unit.set("InvocationID", vec![0xab_u8; 16]);
        unit.set("Wants", Vec::<String>::new());
        unit.set("Requires", Vec::<String>::new());
        unit.set("BindsTo", Vec::<String>::new());
        unit.set("After", Vec::<String>::new());
        for property in ["RequiredBy", "BoundBy", "ConsistsOf", "TriggeredBy"] {
            unit.set(property, Vec::<String>::new());
        }
        unit.set("StateChangeTimestampMonotonic", 1_000_000_u64);
        unit.set("ActiveEnterTimestamp", 1_700_000_000_000_000_u64);
        unit.set("InactiveEnterTimestamp", 0_u64);
        unit.set("Type", "simple");
        unit.set("Result", "success");
        unit.set("NRestarts", 0_u32);
        unit.set("ExecMainCode", 0_i32);
        unit.set("ExecMainStatus", 0_i32);
        unit.set("ExecMainExitTimestamp", 0_u64);
        unit.set("MainPID", 4711_u32);
        unit.set("ControlGroup", format!("/system.slice/{name}"));
        unit.set("UnitFileState", "enabled");
        unit.set("Unit", name.replace(".timer", ".service"));
        for never in ["LastTriggerUSec", "NextElapseUSecRealtime", "NextElapseUSecMonotonic"] {
            unit.set(never, 0_u64);
        }
        unit.set("Accept", false);
        for counter in ["NAccepted", "NConnections", "NRefused"] {
            unit.set(counter, 0_u32);
        }
        unit.set("RemainAfterExit", false);
        for empty in ["User", "Group", "WorkingDirectory"] {
            unit.set(empty, "");
        }
        unit.set("DropInPaths", Vec::<String>::new());
        unit.set("EnvironmentFiles", Vec::<(String, bool)>::new());
        unit
    }

    /// The same in other states.
    #[must_use]
    pub fn states(mut self, load: &str, active: &str, sub: &str) -> Self {
        (self.load_state, self.active_state, self.sub_state) =
            (load.to_owned(), active.to_owned(), sub.to_owned());
        self
    }

    /// The same with one property changed.
    #[must_use]
    pub fn with<T: Into<Variant<'static>>>(mut self, property: &'static str, value: T) -> Self {
        self.set(property, value);
        self
    }

    /// Changes one property.
    pub fn set<T: Into<Variant<'static>>>(&mut self, property: &'static str, value: T) {
        if let Ok(value) = OwnedVariant::try_from(value.into()) {
            self.properties.insert(property, value);
        }
    }

    fn path(&self) -> ObjectPath<'static> {
        path_of(&self.name)
    }

    /// What systemd announces of a unit that changed, by interface.
    fn changed(&self) -> Vec<(&'static str, BTreeMap<&'static str, OwnedVariant>)> {
        let own: (&str, &[&str]) = match super::kind_of(&self.name) {
            "service" => (
                super::SERVICE,
                &["MainPID", "NRestarts", "Result", "ExecMainStatus", "ExecMainExitTimestamp"],
            ),
            "timer" => (
                "org.freedesktop.systemd1.Timer",
                &["LastTriggerUSec", "NextElapseUSecRealtime", "NextElapseUSecMonotonic"],
            ),
            _ => ("org.freedesktop.systemd1.Target", &[]),
        };
        const OF_ANY: &[&str] = &[
            "ActiveState",
            "SubState",
            "Job",
            "StateChangeTimestampMonotonic",
            "ActiveEnterTimestamp",
            "InactiveEnterTimestamp",
            "InvocationID",
        ];
        let values = |properties: &[&'static str]| {
            properties.iter().filter_map(|name| Some((*name, self.property(name)?))).collect()
        };
        [own, (UNIT, OF_ANY)].map(|(interface, properties)| (interface, values(properties))).into()
    }

    fn property(&self, property: &str) -> Option<OwnedVariant> {
        let word = match property {
            "Id" => &self.name,
            "LoadState" => &self.load_state,
            "ActiveState" => &self.active_state,
            "SubState" => &self.sub_state,
            _ => return self.properties.get(property).and_then(|value| value.try_clone().ok()),
        };
        OwnedVariant::try_from(Variant::from(word.clone())).ok()
    }
}

/// The bus path of a unit, every byte outside letters and digits escaped as systemd does it.
fn path_of(name: &str) -> ObjectPath<'static> {
    if name.is_empty() {
        return ObjectPath::from_string_unchecked(format!("{MANAGER_PATH}/unit/_"));
    }
    let escaped: String =
        name.bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("_{byte:02x}")
                }
            })
            .collect();
    ObjectPath::from_string_unchecked(format!("{MANAGER_PATH}/unit/{escaped}"))
}

/// The unit of a path.
fn name_of(path: &ObjectPath<'_>) -> Option<String> {
    let (_, escaped) = path.as_str().rsplit_once('/')?;
    let mut parts = escaped.split('_');
    let mut name = parts.next()?.as_bytes().to_vec();
    for part in parts.filter(|part| !part.is_empty()) {
        name.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        name.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(name).ok()
}

impl FakeSystemd {
    /// Listens in `folder` and shows `units`.
    ///
    /// # Panics
    /// When it cannot listen there.
    pub fn start(folder: &std::path::Path, units: Vec<FakeUnit>) -> Self {
        let socket = folder.join("system_bus_socket");
        let listener = UnixListener::bind(&socket).expect("a socket in the test's folder");
        let state = State {
            units,
            system_state: "running".to_owned(),
            version: "252.39-1~deb12u1".to_owned(),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { socket, state, accepting }
    }

    /// What to give to [`super::Systemd::at`].
    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// The state, to look at or to change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes one unit and tells nobody.
    ///
    /// # Panics
    /// When there is no such unit.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut FakeUnit)) {
        let mut state = self.state();
        change(state.units.iter_mut().find(|unit| unit.name == name).expect("a unit of the fake"));
    }

    /// Changes one unit and announces it, as systemd does it: all that may have changed, in two signals.
    ///
    /// # Panics
    /// When there is no such unit.
    pub async fn announce(&self, name: &str, change: impl FnOnce(&mut FakeUnit)) {
        self.change(name, change);
        let signals = self.state().units.iter().find(|unit| unit.name == name).map(FakeUnit::changed);
        for (interface, properties) in signals.into_iter().flatten() {
            let body = (interface, properties, Vec::<String>::new());
            self.emit(path_of(name).as_str(), PROPERTIES, "PropertiesChanged", &body).await;
        }
    }

    /// Brings a unit into memory and announces it.
    pub async fn load(&self, unit: FakeUnit) {
        let body = (unit.name.clone(), unit.path());
        self.state().units.push(unit);
        self.emit(MANAGER_PATH, MANAGER, "UnitNew", &body).await;
    }

    /// Takes a unit out of memory, leaves it on disk, and announces it.
    ///
    /// # Panics
    /// When there is no such unit.
    pub async fn unload(&self, name: &str) {
        let body = (name.to_owned(), path_of(name));
        {
            let mut state = self.state();
            let position = state.units.iter().position(|unit| unit.name == name).expect("a unit of the fake");
            let unit = state.units.remove(position).states("loaded", "inactive", "dead");
            state.on_disk.push(unit);
        }
        self.emit(MANAGER_PATH, MANAGER, "UnitRemoved", &body).await;
    }

    /// Reads all unit files anew: `change` is what that brings. Announced as systemd does it.
    pub async fn reload(&self, change: impl FnOnce(&mut State)) {
        self.emit(MANAGER_PATH, MANAGER, "Reloading", &true).await;
        for member in ["UnitRemoved", "UnitNew"] {
            let units: Vec<_> =
                self.state().units.iter().map(|unit| (unit.name.clone(), unit.path())).collect();
            for unit in units {
                self.emit(MANAGER_PATH, MANAGER, member, &unit).await;
            }
        }
        change(&mut self.state());
        self.emit(MANAGER_PATH, MANAGER, "Reloading", &false).await;
    }

    /// Says that another process is systemd now.
    pub async fn replace_systemd(&self, by: &str) {
        let body = ("org.freedesktop.systemd1", NAME, by);
        let bus = "org.freedesktop.DBus";
        self.emit_as(bus, "/org/freedesktop/DBus", bus, "NameOwnerChanged", &body).await;
    }

    /// Sends any signal to those that have subscribed.
    pub async fn emit<B>(&self, path: &str, interface: &str, member: &str, body: &B)
    where
        B: serde::Serialize + DynamicType,
    {
        self.emit_as(NAME, path, interface, member, body).await;
    }

    /// The same from another sender on the bus.
    pub async fn emit_as<B>(&self, sender: &str, path: &str, interface: &str, member: &str, body: &B)
    where
        B: serde::Serialize + DynamicType,
    {
        self.send(Message::signal(path, interface, member).sender(sender).build(body).ok()).await;
    }

    async fn send(&self, message: Option<Message>) {
        let message = message.expect("a signal that can be written");
        let listeners = self.state().listeners.clone();
        for listener in listeners {
            // One that has gone misses it.
            let _ = listener.send(&message).await;
        }
    }

    /// Breaks the connections of those that have subscribed.
    pub async fn hang_up(&self) {
        let listeners = std::mem::take(&mut self.state().listeners);
        for listener in listeners {
            let _ = listener.close().await;
        }
    }

    /// How often `what` was asked for.
    pub fn asked(&self, what: &str) -> u64 {
        self.state().asked.get(what).copied().unwrap_or(0)
    }
}

impl Drop for FakeSystemd {
    fn drop(&mut self) {
        // Ends the connections too: the task owns theirs.
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: UnixListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        lock(&state).connections += 1;
        let state = Arc::clone(&state);
        connections.spawn(async move {
            if lock(&state).mood == Mood::Deaf {
                // Keeps the socket open and reads nothing from it.
                std::future::pending::<()>().await;
            }
            let Ok(stream) = stream.into_std() else { return };
            let builder = Builder::unix_stream(stream).server(Guid::generate()).p2p();
            if let Ok(messages) = builder.build_message_stream().await {
                serve(messages, state).await;
            }
        });
    }
}

async fn serve(mut messages: MessageStream, state: Arc<Mutex<State>>) {
    let connection = Connection::from(&messages);
    while let Some(Ok(message)) = messages.next().await {
        if message.message_type() == Type::MethodCall && answer(&connection, &message, &state).await.is_none()
        {
            return;
        }
    }
}

/// What one call is answered with.
enum Answer {
    Text(String),
    Rows(Vec<Row>),
    Path(ObjectPath<'static>),
    Property(OwnedVariant),
    Error(&'static str),
    Nonsense,
    Nothing,
    Done,
    Subscribed,
}

type Row =
    (String, String, String, String, String, String, ObjectPath<'static>, u32, String, ObjectPath<'static>);

/// `None` when the connection is to be broken.
async fn answer(connection: &Connection, message: &Message, state: &Mutex<State>) -> Option<()> {
    let answer = decide(message, &mut lock(state))?;
    if matches!(answer, Answer::Subscribed) {
        lock(state).listeners.push(connection.clone());
    }
    let header = message.header();
    let sent = match answer {
        Answer::Nothing => return Some(()),
        Answer::Done | Answer::Subscribed => connection.reply(&header, &()).await,
        Answer::Text(text) => connection.reply(&header, &text).await,
        Answer::Rows(rows) => connection.reply(&header, &rows).await,
        Answer::Path(path) => connection.reply(&header, &path).await,
        Answer::Property(value) => connection.reply(&header, &value).await,
        Answer::Nonsense => connection.reply(&header, &(42_u8)).await,
        Answer::Error(name) => connection.reply_error(&header, name, &"so says the test").await,
    };
    sent.ok()
}

fn decide(message: &Message, state: &mut State) -> Option<Answer> {
    let header = message.header();
    let member = header.member().map(|member| member.as_str().to_owned()).unwrap_or_default();
    if member == "Hello" {
        return Some(Answer::Text(":1.7".to_owned()));
    }
    let property = if member == "Get" {
        message.body().deserialize::<(String, String)>().ok()?.1
    } else {
        String::new()
    };
    let asked = if property.is_empty() { &member } else { &property };
    *state.asked.entry(asked.clone()).or_default() += 1;
    match &state.mood {
        Mood::Deaf => return Some(Answer::Nothing),
        Mood::DeafTo(what) if what == asked => return Some(Answer::Nothing),
        Mood::Nonsense(what) if what == asked => return Some(Answer::Nonsense),
        Mood::HangingUpAt(what) if what == asked => return None,
        Mood::Refusing(name) => return Some(Answer::Error(name)),
        _ => {}
    }
    let path = header.path()?.to_owned();
    Some(match member.as_str() {
        "ListUnits" => Answer::Rows(state.units.iter().map(row).collect()),
        "ListUnitsByNames" => {
            let names: Vec<String> = message.body().deserialize().ok()?;
            Answer::Rows(names.iter().map(|name| shown(state, name)).collect())
        }
        "LoadUnit" => {
            let name: String = message.body().deserialize().ok()?;
            load(state, &name);
            Answer::Path(path_of(&name))
        }
        "GetUnit" => {
            let name: String = message.body().deserialize().ok()?;
            match state.units.iter().find(|unit| unit.name == name) {
                Some(unit) => Answer::Path(unit.path()),
                None => Answer::Error("org.freedesktop.systemd1.NoSuchUnit"),
            }
        }
        "Get" => read(state, &path, &property),
        "GetMachineId" => Answer::Text(state.machine_id.clone()),
        "GetNameOwner" => Answer::Text(NAME.to_owned()),
        "AddMatch" => Answer::Done,
        "Subscribe" => Answer::Subscribed,
        _ => Answer::Error("org.freedesktop.DBus.Error.UnknownMethod"),
    })
}

/// Brings a unit into memory, `not-found` where it is not on disk.
fn load(state: &mut State, name: &str) {
    if state.units.iter().any(|unit| unit.name == name) {
        return;
    }
    let unit = match state.on_disk.iter().position(|unit| unit.name == name) {
        Some(position) => state.on_disk.remove(position),
        None => missing(name),
    };
    state.units.push(unit);
}

/// What systemd says of a unit that it reads only for the question and forgets again.
fn shown(state: &State, name: &str) -> Row {
    let known = state.units.iter().chain(&state.on_disk).find(|unit| unit.name == name);
    known.map_or_else(|| row(&missing(name)), row)
}

fn missing(name: &str) -> FakeUnit {
    FakeUnit::new(name).states("not-found", "inactive", "dead").with("FragmentPath", "")
}

fn read(state: &State, path: &ObjectPath<'_>, property: &str) -> Answer {
    let value = if path.as_str() == MANAGER_PATH {
        match property {
            "Version" => Some(Variant::from(state.version.clone())),
            "SystemState" => Some(Variant::from(state.system_state.clone())),
            _ => None,
        }
        .and_then(|value| OwnedVariant::try_from(value).ok())
    } else {
        let name = name_of(path);
        let Some(unit) = state.units.iter().find(|unit| Some(&unit.name) == name.as_ref()) else {
            return Answer::Error("org.freedesktop.systemd1.NoSuchUnit");
        };
        unit.property(property)
    };
    value.map_or(Answer::Error("org.freedesktop.DBus.Error.UnknownProperty"), Answer::Property)
}

fn row(unit: &FakeUnit) -> Row {
    (
        unit.name.clone(),
        format!("the unit {}", unit.name),
        unit.load_state.clone(),
        unit.active_state.clone(),
        unit.sub_state.clone(),
        String::new(),
        unit.path(),
        0,
        String::new(),
        ObjectPath::from_static_str_unchecked("/"),
    )
}
