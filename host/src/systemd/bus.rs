//! The connection to the bus: kept between calls, thrown away as soon as anything about it is in doubt. Not here: what
//! is asked over it.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, time::timeout};
use zbus::{
    Address, Connection, DBusError, DynamicType, Message, ObjectPath, OwnedVariant, Structure, Type, Variant,
    address::transport::{Transport, UnixSocket},
    connection::Builder,
};

pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Longest time for one call, and for making the connection.
const LIMIT: Duration = Duration::from_secs(5);

/// Calls on the wire at once. PID 1 answers one after the other, so more gains nothing (measured: 8 is 4.4 times as fast as
/// 1, 32 no faster than 8), and the bus allows one connection 128 unanswered ones.
const IN_FLIGHT: usize = 8;

/// Longest text of an error reply that is kept, in characters: it ends in logs and audit records.
const LONGEST_TEXT: usize = 300;

/// Why systemd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the bus: no socket, nobody listens, or we are refused.
    #[error("cannot connect to the system bus: {0}")]
    Connect(zbus::Error),
    /// No answer in time.
    #[error("{call} did not answer within {limit:?}")]
    TimedOut {
        /// The method or property.
        call: &'static str,
        /// The time it was given.
        limit: Duration,
    },
    /// An error reply.
    #[error("{call} was refused: {name}: {text}")]
    Refused {
        /// The method or property.
        call: &'static str,
        /// The error's D-Bus name.
        name: String,
        /// What it says, cut short.
        text: String,
    },
    /// The connection broke.
    #[error("the system bus was lost during {call}: {cause}")]
    Lost {
        /// The method or property.
        call: &'static str,
        /// What broke it.
        cause: zbus::Error,
    },
    /// The connection that signals come in on ended, or systemd did.
    #[error("systemd's signals have ended")]
    SignalsEnded,
    /// The answer is not of the type that systemd documents.
    #[error("{call} answered with something else than expected: {cause}")]
    Malformed {
        /// The method or property.
        call: &'static str,
        /// What does not fit.
        cause: zbus::Error,
    },
}

impl Error {
    /// The error in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::TimedOut { .. } => "timeout",
            Self::Refused { .. } if self.is_no_such_unit() => "no_such_unit",
            Self::Refused { .. } if self.is_no_systemd() => "no_systemd",
            Self::Refused { .. } => "refused",
            Self::Lost { .. } | Self::SignalsEnded => "lost",
            Self::Malformed { .. } => "malformed",
        }
    }

    /// The unit left systemd's memory and cannot be loaded again (a transient unit that ended).
    pub fn is_no_such_unit(&self) -> bool {
        self.has_name(&["org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject"])
    }

    /// There is a bus, but no systemd on it.
    pub fn is_no_systemd(&self) -> bool {
        self.has_name(&[
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
        ]) || matches!(self, Self::Refused { name, .. } if name.starts_with("org.freedesktop.DBus.Error.Spawn."))
    }

    fn has_name(&self, names: &[&str]) -> bool {
        matches!(self, Self::Refused { name, .. } if names.contains(&name.as_str()))
    }
}

/// A bus address and the connection to it.
#[derive(Clone)]
pub(super) struct Bus {
    /// `None`: the system bus, wherever the environment says it is.
    address: Option<Arc<str>>,
    pub(super) limit: Duration,
    kept: Arc<Mutex<Kept>>,
    /// Held while connecting, so that eight questions at once make one connection.
    connecting: Arc<tokio::sync::Mutex<()>>,
    in_flight: Arc<Semaphore>,
}

#[derive(Default)]
struct Kept {
    connection: Option<Connection>,
    /// Counts connections: who doubts one must not throw away its successor.
    generation: u64,
}

/// Throws the connection away unless told that the call ended well. A call that was given up half way may have left half
/// a message on the wire, and its connection may be dead without anyone ever waiting long enough to see it.
struct Doubt<'a> {
    bus: &'a Bus,
    generation: u64,
    cleared: bool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.cleared {
            self.bus.forget_generation(self.generation);
        }
    }
}

impl Bus {
    pub(super) fn system() -> Self {
        Self::new(None)
    }

    pub(super) fn at(address: &str) -> Self {
        Self::new(Some(address.into()))
    }

    fn new(address: Option<Arc<str>>) -> Self {
        Self {
            address,
            limit: LIMIT,
            kept: Arc::default(),
            connecting: Arc::default(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
        }
    }

    pub(super) fn socket_exists(&self) -> bool {
        let address = match &self.address {
            Some(address) => address.parse::<Address>(),
            None => Address::system(),
        };
        // An address that nobody can read is for the connection to complain about.
        let Ok(address) = address else { return true };
        match address.transport() {
            Transport::Unix(unix) => match unix.path() {
                UnixSocket::File(path) => path.exists(),
                _ => true,
            },
            _ => true,
        }
    }

    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        self.numbered_connection().await.map(|(connection, _)| connection)
    }

    pub(super) fn forget(&self) {
        self.kept().connection = None;
    }

    /// Calls a method of systemd's object at `path`.
    pub(super) async fn call<B>(
        &self,
        path: &ObjectPath<'_>,
        interface: &'static str,
        member: &'static str,
        body: &B,
    ) -> Result<Message, Error>
    where
        B: Serialize + DynamicType + Sync,
    {
        self.call_named(member, path, interface, member, body).await
    }

    /// Reads one property.
    pub(super) async fn get<T>(
        &self,
        path: &ObjectPath<'_>,
        interface: &'static str,
        property: &'static str,
    ) -> Result<T, Error>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: Into<zbus::Error>,
    {
        let message = self.call_named(property, path, PROPERTIES, "Get", &(interface, property)).await?;
        value(property, &message)
    }

    /// `call` is what errors speak of: for a property its name, not `Get`.
    async fn call_named<B>(
        &self,
        call: &'static str,
        path: &ObjectPath<'_>,
        interface: &'static str,
        member: &'static str,
        body: &B,
    ) -> Result<Message, Error>
    where
        B: Serialize + DynamicType + Sync,
    {
        // Never closed, so this cannot fail.
        let _permit = self.in_flight.acquire().await;
        let (connection, generation) = self.numbered_connection().await?;
        let mut doubt = Doubt { bus: self, generation, cleared: false };
        let reply = connection.call_method(Some(SYSTEMD), path, Some(interface), member, body);
        let result = answer(call, self.limit, reply).await;
        doubt.cleared = matches!(result, Ok(_) | Err(Error::Refused { .. }));
        result
    }

    async fn numbered_connection(&self) -> Result<(Connection, u64), Error> {
        if let Some(kept) = self.usable() {
            return Ok(kept);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(kept) = self.usable() {
            return Ok(kept);
        }
        let connection = self.connect(None).await?;
        let mut kept = self.kept();
        kept.generation += 1;
        kept.connection = Some(connection.clone());
        Ok((connection, kept.generation))
    }

    /// A new connection that nobody else uses; `queued` is how many messages wait in it at most.
    pub(super) async fn connect(&self, queued: Option<NonZeroUsize>) -> Result<Connection, Error> {
        let mut builder = match &self.address {
            Some(address) => Builder::address(&**address),
            None => Builder::system(),
        };
        if let Some(queued) = queued {
            builder = builder.max_queued(queued);
        }
        timeout(self.limit, builder.build())
            .await
            .map_err(|_| Error::TimedOut { call: "connecting to the system bus", limit: self.limit })?
            .map_err(Error::Connect)
    }

    fn usable(&self) -> Option<(Connection, u64)> {
        let kept = self.kept();
        let connection = kept.connection.as_ref().filter(|connection| !connection.is_closed())?;
        Some((connection.clone(), kept.generation))
    }

    fn forget_generation(&self, generation: u64) {
        let mut kept = self.kept();
        if kept.generation == generation {
            kept.connection = None;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing is left half done under this lock, whoever panicked while holding it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Bus")
            .field("address", &self.address)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// Waits for a reply, for `limit` at most.
pub(super) async fn answer(
    call: &'static str,
    limit: Duration,
    reply: impl Future<Output = zbus::Result<Message>>,
) -> Result<Message, Error> {
    match timeout(limit, reply).await {
        Err(_) => Err(Error::TimedOut { call, limit }),
        Ok(Err(error)) => Err(from_reply(call, error)),
        Ok(Ok(message)) => Ok(message),
    }
}

/// Reads the body of a reply as an owned value.
pub(super) fn body<T>(call: &'static str, message: &Message) -> Result<T, Error>
where
    T: DeserializeOwned + Type,
{
    message.body().deserialize().map_err(|cause| Error::Malformed { call, cause })
}

/// Reads the answer to a `Get`.
pub(super) fn value<T>(property: &'static str, message: &Message) -> Result<T, Error>
where
    T: TryFrom<OwnedVariant>,
    T::Error: Into<zbus::Error>,
{
    let value: OwnedVariant = body(property, message)?;
    T::try_from(value).map_err(|error| Error::Malformed { call: property, cause: error.into() })
}

fn from_reply(call: &'static str, error: zbus::Error) -> Error {
    let (name, text) = match &error {
        zbus::Error::MethodError(name, text, _) => (name.to_string(), text.clone().unwrap_or_default()),
        zbus::Error::FDO(known) => match &**known {
            // The bus answers so when its peer goes away or stalls: that proves nothing about the connection.
            zbus::fdo::Error::ZBus(_) | zbus::fdo::Error::NoReply(_) | zbus::fdo::Error::Disconnected(_) => {
                return Error::Lost { call, cause: error };
            }
            known => (known.name().to_string(), known.description().unwrap_or_default().to_owned()),
        },
        _ => return Error::Lost { call, cause: error },
    };
    Error::Refused { call, name, text: text.chars().take(LONGEST_TEXT).collect() }
}

/// The `Job` property of a unit: `(uo)`, id 0 for none.
pub(super) struct Job {
    pub(super) id: u32,
}

impl TryFrom<OwnedVariant> for Job {
    type Error = zbus::Error;

    fn try_from(value: OwnedVariant) -> Result<Self, Self::Error> {
        match Structure::try_from(value)?.fields() {
            [Variant::U32(id), ..] => Ok(Self { id: *id }),
            _ => Err(zbus::Error::IncorrectType),
        }
    }
}
