//! Whether a Redis can be reached, and if not, where the way to it breaks. Every probe is a new connection with the
//! name resolved anew, as a service that starts now would make it: a kept connection sees neither DNS nor maxclients.
//!
//! The way is walked in stages (name, TCP, TLS, AUTH, PING, INFO) under one budget, so that the stage that fails names
//! the reason. No error text leaves this module: servers and proxies repeat the command they refuse, password included.

mod conversation;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use self::conversation::converse;
use crate::config::Secret;

/// The time that one probe takes at most, unless the caller says otherwise.
pub const DEFAULT_BUDGET: Duration = Duration::from_secs(3);

/// Where Redis listens when nobody configured it.
const DEFAULT_ADDRESS: (&str, u16) = ("127.0.0.1", 6379);

/// A Redis to probe.
#[derive(Clone, Default)]
pub struct Target {
    /// For the `redis` label.
    pub name: String,
    /// `redis://`, `rediss://` (TLS) or `unix://`; see [`Target::check`].
    pub url: String,
    /// An ACL user; wins over the one in the URL.
    pub username: Option<String>,
    /// Wins over the one in the URL.
    pub password: Option<Secret>,
    /// PEM certificates to trust instead of the system's, read at each probe.
    pub ca_file: Option<PathBuf>,
}

impl Target {
    /// Refuses what [`probe`] could not use; for configuration files.
    ///
    /// # Errors
    /// One sentence about the URL that does not repeat it, because it may hold a password.
    pub fn check(&self) -> Result<(), String> {
        let Some(endpoint) = Endpoint::of(self) else {
            return Err(
                "not a Redis URL: write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH".to_owned()
            );
        };
        if endpoint.password_in_url {
            return Err("the password does not belong into the URL: put it into a file".to_owned());
        }
        if let Address::Tcp { insecure: true, .. } = endpoint.address {
            return Err(
                "#insecure is not supported: trust the server's certificate or its CA instead".to_owned()
            );
        }
        Ok(())
    }
}

impl Target {
    /// What is said to log in, and which database is meant; `None` for what [`Target::check`] refuses.
    pub fn login(&self) -> Option<RedisConnectionInfo> {
        let endpoint = Endpoint::of(self)?;
        let db = self.url.as_str().into_connection_info().ok()?.redis_settings().db();
        let mut login = RedisConnectionInfo::default().set_skip_set_lib_name().set_db(db);
        if let Some(username) = &endpoint.username {
            login = login.set_username(username);
        }
        if let Some(password) = &endpoint.password {
            login = login.set_password(password.expose());
        }
        Some(login)
    }
}

/// Without the password that a URL may hold.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Endpoint::of(self).map(|endpoint| endpoint.address);
        f.debug_struct("Target").field("name", &self.name).field("address", &address).finish_non_exhaustive()
    }
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Connected, authenticated, and `INFO` answered.
    pub up: bool,
    /// `PING` answered `PONG`. A server that loads its data is up and not ready.
    pub ready: bool,
    /// The first thing that went wrong.
    pub failure: Option<Failure>,
    /// Resolving, connecting and the TLS handshake together.
    pub connect: Option<Duration>,
    /// From `PING` to its answer.
    pub ping: Option<Duration>,
    /// When `INFO` answered.
    pub info: Option<Info>,
}

impl Probe {
    /// A probe that came to nothing.
    pub fn failed(failure: Failure) -> Self {
        Self { failure: Some(failure), ..Self::unmade() }
    }

    fn unmade() -> Self {
        Self { up: false, ready: false, failure: None, connect: None, ping: None, info: None }
    }
}

/// Where the way to a Redis breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The name does not resolve.
    Dns,
    /// Nothing listens, or no permission for the socket.
    Refused,
    /// Nothing answers at the address.
    ConnectTimeout,
    /// Connected, and no answer within the budget.
    ResponseTimeout,
    /// The handshake failed, or the certificate is not trusted.
    Tls,
    /// Wrong or missing credentials, or no permission for `PING` or `INFO`.
    Auth,
    /// It reads its data from disk.
    Loading,
    /// The answer is an error of another kind (`BUSY`, `MISCONF`, too many clients).
    ErrorReply,
    /// The answer is not Redis's, or the connection broke.
    Protocol,
}

impl Failure {
    /// All of them, in the order they are published.
    pub const ALL: [Self; 9] = [
        Self::Dns,
        Self::Refused,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
        Self::Tls,
        Self::Auth,
        Self::Loading,
        Self::ErrorReply,
        Self::Protocol,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ResponseTimeout => "response_timeout",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Loading => "loading",
            Self::ErrorReply => "error_reply",
            Self::Protocol => "protocol",
        }
    }
}

/// The fields of an `INFO` answer, by Redis's own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info(BTreeMap<String, String>);

impl Info {
    /// One field, if it is there.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of them, in the order of their names.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Reads the text of an answer; `# Section` lines and what is no `key:value` are passed over.
    pub fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once(':'))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    }
}

/// Walks the whole way once, without any retry, and comes back within `budget`.
pub async fn probe(target: &Target, budget: Duration) -> Probe {
    let mut seen = Probe::unmade();
    if let Err(failure) = walk(target, Instant::now() + budget, &mut seen).await {
        seen.failure = Some(failure);
    }
    seen
}

/// Whether something accepts connections where Redis listens by default, within 200 ms.
pub async fn is_listening_default() -> bool {
    let limit = Duration::from_millis(200);
    matches!(tokio::time::timeout(limit, TcpStream::connect(DEFAULT_ADDRESS)).await, Ok(Ok(_)))
}

async fn walk(target: &Target, end: Instant, seen: &mut Probe) -> Result<(), Failure> {
    let start = Instant::now();
    // A URL that cannot be read is refused with the configuration; here it is only not a Redis.
    let endpoint = Endpoint::of(target).ok_or(Failure::Protocol)?;
    let stream = reach(&endpoint.address, target.ca_file.as_deref(), end).await?;
    seen.connect = Some(start.elapsed());
    converse(stream, &endpoint, end, seen).await
}

/// Bytes to and from a server, whichever way they go.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects, and says nothing yet; for whoever goes on by themselves. Comes back by `end`.
///
/// # Errors
/// Where the way breaks.
pub async fn connect(target: &Target, end: Instant) -> Result<Box<dyn Stream>, Failure> {
    let endpoint = Endpoint::of(target).ok_or(Failure::Protocol)?;
    reach(&endpoint.address, target.ca_file.as_deref(), end).await
}

async fn reach(address: &Address, ca_file: Option<&Path>, end: Instant) -> Result<Box<dyn Stream>, Failure> {
    match address {
        Address::Unix(path) => {
            let stream = within(end, Failure::ConnectTimeout, UnixStream::connect(path)).await?;
            Ok(Box::new(stream.map_err(refusal)?))
        }
        Address::Tcp { host, port, tls: false, .. } => Ok(Box::new(dial(host, *port, end).await?)),
        Address::Tcp { host, port, tls: true, .. } => {
            let stream = dial(host, *port, end).await?;
            let connector = within(end, Failure::Tls, tls_connector(ca_file)).await?;
            let connector = connector.ok_or(Failure::Tls)?;
            let name = ServerName::try_from(host.clone()).map_err(|_| Failure::Tls)?;
            let handshake = connector.connect(name, stream);
            let stream = within(end, Failure::ResponseTimeout, handshake).await?;
            Ok(Box::new(stream.map_err(|_| Failure::Tls)?))
        }
    }
}

/// Tries the addresses of a name one after the other, each with its share of the time that is left.
async fn dial(host: &str, port: u16, end: Instant) -> Result<TcpStream, Failure> {
    let found = within(end, Failure::Dns, lookup_host((host, port))).await?.map_err(|_| Failure::Dns)?;
    let addresses: Vec<SocketAddr> = found.collect();
    let mut failure = Failure::Dns;
    for (index, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let others = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let until = Instant::now() + left / others;
        match within(until, Failure::ConnectTimeout, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = refusal(error),
            Err(timeout) => failure = timeout,
        }
    }
    Err(failure)
}

fn refusal(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Failure::ConnectTimeout
        }
        _ => Failure::Refused,
    }
}

/// `None` when there is no certificate to trust. The cryptography is named here, so that a probe works in a process
/// that installed no default.
async fn tls_connector(ca_file: Option<&Path>) -> Option<TlsConnector> {
    static SYSTEM_ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = match (ca_file, SYSTEM_ROOTS.get()) {
        (Some(path), _) => {
            let pem = tokio::fs::read(path).await.ok()?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.ok()?).ok()?;
            }
            Arc::new(roots)
        }
        (None, Some(roots)) => Arc::clone(roots),
        (None, None) => {
            let load = || {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Arc::new(roots)
            };
            let roots = tokio::task::spawn_blocking(load).await.ok()?;
            Arc::clone(SYSTEM_ROOTS.get_or_init(|| roots))
        }
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}

async fn within<T>(end: Instant, late: Failure, work: impl Future<Output = T>) -> Result<T, Failure> {
    timeout_at(end, work).await.map_err(|_| late)
}

/// A target's URL, taken apart.
struct Endpoint {
    address: Address,
    username: Option<String>,
    password: Option<Secret>,
    password_in_url: bool,
}

#[derive(Debug)]
enum Address {
    Tcp { host: String, port: u16, tls: bool, insecure: bool },
    Unix(PathBuf),
}

impl Endpoint {
    fn of(target: &Target) -> Option<Self> {
        let parsed = target.url.as_str().into_connection_info().ok()?;
        let address = match parsed.addr() {
            ConnectionAddr::Tcp(host, port) => {
                Address::Tcp { host: host.clone(), port: *port, tls: false, insecure: false }
            }
            ConnectionAddr::TcpTls { host, port, insecure, .. } => {
                Address::Tcp { host: host.clone(), port: *port, tls: true, insecure: *insecure }
            }
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return None,
        };
        let in_url = parsed.redis_settings();
        let username = target.username.clone().or_else(|| in_url.username().map(str::to_owned));
        let password = target.password.clone().or_else(|| in_url.password().map(Secret::new));
        Some(Self { address, username, password, password_in_url: in_url.password().is_some() })
    }
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "Redis INFO",
    parse: |bytes| {
        let info = Info::parse(&crate::foreign_input::text(bytes));
        let _ = (info.get("used_memory"), info.get("maxclients"));
    },
    samples: &["# Server\r\nredis_version:7.0.15\r\n# Memory\r\nused_memory:1036704\r\nmaxclients:10000\r\n"],
}];

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target { name: "r".into(), url: url.into(), ..Target::default() }
    }

    #[test]
    fn urls_are_checked() {
        for good in [
            "redis://127.0.0.1:6379/0",
            "redis://quantum_redis",
            "redis://[::1]:6380",
            "rediss://cache.example:6380",
            "unix:///run/redis/redis.sock",
            "redis+unix:///run/redis.sock?db=1",
        ] {
            assert_eq!(target(good).check(), Ok(()), "{good}");
        }
        for bad in ["", "localhost:6379", "http://localhost", "redis://", "redis://h:99999", "redis://h/x"] {
            assert!(target(bad).check().unwrap_err().starts_with("not a Redis URL"), "{bad}");
        }
        for secret in ["redis://:hunter2@h", "redis://u:hunter2@h", "unix:///s?pass=hunter2"] {
            assert!(
                target(secret).check().unwrap_err().starts_with("the password does not belong"),
                "{secret}"
            );
        }
        assert!(target("rediss://h#insecure").check().unwrap_err().starts_with("#insecure"));
    }

    #[test]
    fn no_secret_is_printed() {
        for url in ["redis://user:hunter2@h:1/0", "unix:///s?pass=hunter2", "hunter2"] {
            let shown = format!("{:?}", Target { password: Some(Secret::new("hunter2")), ..target(url) });
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn an_address_has_no_brackets() {
        let endpoint = Endpoint::of(&target("redis://[::1]:6380")).unwrap();
        assert!(
            matches!(endpoint.address, Address::Tcp { host, port: 6380, tls: false, .. } if host == "::1")
        );
    }

    #[test]
    fn the_target_s_credentials_win_over_the_url_s() {
        let own = Target {
            username: Some("exporter".into()),
            password: Some(Secret::new("new")),
            ..target("redis://u:old@h")
        };
        let endpoint = Endpoint::of(&own).unwrap();
        assert_eq!(endpoint.username.as_deref(), Some("exporter"));
        assert_eq!(endpoint.password.unwrap().expose(), "new");
    }

    #[test]
    fn info_is_parsed() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.0.15\r\n\r\nuptime_in_seconds:12\r\nos:Linux a:b\r\nnonsense\r\n:\r\n",
        );
        assert_eq!(info.get("redis_version"), Some("7.0.15"));
        assert_eq!(info.get("os"), Some("Linux a:b"));
        assert_eq!(info.get("nonsense"), None);
        assert_eq!(
            info.fields().map(|(key, _)| key).collect::<Vec<_>>(),
            ["", "os", "redis_version", "uptime_in_seconds"]
        );
    }
}
