//! Where a server listens and who is calling.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};

/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// An address to listen on, as on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// `host:port`; an empty host means every address of this machine.
    Tcp(String),
    /// A socket file.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether only programs on this machine can reach it. A name counts when all it resolves to is loopback.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(address) => match address.to_socket_addrs() {
                Ok(resolved) => {
                    let mut resolved = resolved.peekable();
                    resolved.peek().is_some() && resolved.all(|address| is_loopback(&address))
                }
                Err(_) => false,
            },
        }
    }
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path.to_owned()))
            } else {
                Err(AddressError(text.to_owned()))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError(text.to_owned()))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_is_valid = match bracketed {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
        };
        if !host_is_valid || !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().is_err() {
            return Err(AddressError(text.to_owned()));
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A text that is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address to listen on: write 127.0.0.1:9000, [::1]:9000, :9000 or unix:/run/name.sock")]
pub struct AddressError(String);

/// Why nothing listens on an address, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}: {}", .cause.cure(.address))]
pub struct BindError {
    /// The address as it was given.
    pub address: ListenAddress,
    cause: BindFailure,
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BindFailure(io::Error);

impl BindFailure {
    fn cure(&self, address: &ListenAddress) -> &'static str {
        match (self.0.kind(), address) {
            (io::ErrorKind::AddrInUse, _) => "another program listens there, choose another address",
            (io::ErrorKind::AddrNotAvailable, _) => "give an address that this machine has",
            (io::ErrorKind::PermissionDenied, ListenAddress::Tcp(_)) => "choose a port above 1023",
            (io::ErrorKind::PermissionDenied, ListenAddress::Unix(_)) => "make its directory writable",
            (io::ErrorKind::NotFound, ListenAddress::Unix(_)) => "create its directory",
            (io::ErrorKind::AlreadyExists, ListenAddress::Unix(_)) => {
                "remove the file or choose another path"
            }
            (_, ListenAddress::Tcp(_)) => "check the name and the port",
            (_, ListenAddress::Unix(_)) => "check the path",
        }
    }
}

/// A bound address that accepts connections from now on.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// Ours to remove at the end.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What a connection is to the server, whatever carries it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    /// Binds the address. A socket file that nobody answers on any more is replaced.
    ///
    /// # Errors
    /// When the address is taken, not this machine's, or not permitted.
    pub async fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        let bound = match address {
            ListenAddress::Tcp(text) => bind_tcp(text).await.map(|socket| (Socket::Tcp(socket), None)),
            ListenAddress::Unix(path) => {
                bind_unix(path).map(|(socket, file)| (Socket::Unix(socket), Some(file)))
            }
        };
        match bound {
            Ok((socket, file)) => Ok(Self { socket, _file: file }),
            Err(error) => Err(BindError { address: address.clone(), cause: BindFailure(error) }),
        }
    }

    /// Binds all the addresses, or none.
    ///
    /// # Errors
    /// For the first that cannot be bound.
    pub async fn bind_all(addresses: &[ListenAddress]) -> Result<Vec<Self>, BindError> {
        let mut listeners = Vec::new();
        for address in addresses {
            listeners.push(Self::bind(address).await?);
        }
        Ok(listeners)
    }

    /// One that is bound already.
    pub(super) fn of_tcp(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Socket::Tcp(TcpListener::from_std(socket)?), _file: None })
    }

    /// One that is bound already; its file is left to whoever has made it.
    pub(super) fn of_unix(socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Socket::Unix(UnixListener::from_std(socket)?), _file: None })
    }

    /// The address with the real port, also where port 0 was asked for.
    pub fn local_addr(&self) -> String {
        match &self.socket {
            Socket::Tcp(socket) => {
                socket.local_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string())
            }
            Socket::Unix(socket) => {
                let address = socket.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map_or_else(|| "unix:".to_owned(), |path| format!("unix:{}", path.display()))
            }
        }
    }

    /// Whether only programs on this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().is_ok_and(|address| is_loopback(&address)),
            Socket::Unix(_) => true,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                // Answers are written whole; waiting for more only delays them. Its failure is the connection's.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Peer::Tcp(address)))
            }
            Socket::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
                Ok((Box::new(stream), Peer::Unix { uid }))
            }
        }
    }
}

async fn bind_tcp(address: &str) -> io::Result<TcpListener> {
    let Some(port) = address.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()) else {
        return TcpListener::bind(address).await;
    };
    // One dual-stack socket, or IPv4 alone where the kernel has no IPv6.
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file is not a socket"));
        }
        if is_abandoned(path) {
            std::fs::remove_file(path)?;
        }
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    let metadata = std::fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
    Ok((socket, file))
}

/// Left behind by a process that ended without removing it.
fn is_abandoned(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Removes the socket file at the end, unless another process has put its own there meanwhile.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Ok(metadata) = std::fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == self.identity
        {
            // What is left is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Over the network, or over loopback.
    Tcp(SocketAddr),
    /// Over a socket file.
    Unix {
        /// The user, when the kernel says.
        uid: Option<u32>,
    },
}

impl Peer {
    /// Whether the caller runs on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => is_loopback(address),
            Self::Unix { .. } => true,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix { uid: Some(uid) } => write!(f, "uid {uid}"),
            Self::Unix { uid: None } => f.write_str("unix socket"),
        }
    }
}

/// On a dual-stack socket an IPv4 caller appears as `::ffff:127.0.0.1`.
pub(super) fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for text in ["127.0.0.1:19847", ":19847", "[::1]:1", "localhost:80", "unix:/run/x.sock", "a-b.c:0"] {
            assert_eq!(text.parse::<ListenAddress>().expect(text).to_string(), text);
        }
        for text in [
            "",
            "80",
            "host",
            "::1:80",
            "[::1]",
            "[x]:1",
            "a:99999",
            "a:",
            "a:+1",
            "unix:x",
            "http://a:1",
            "a b:1",
        ] {
            let error = text.parse::<ListenAddress>().expect_err(text).to_string();
            assert_eq!(
                error,
                format!(
                    "`{text}` is no address to listen on: write 127.0.0.1:9000, [::1]:9000, :9000 or unix:/run/name.sock"
                )
            );
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for (text, loopback) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("unix:/run/x", true),
            (":1", false),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
        ] {
            assert_eq!(text.parse::<ListenAddress>().expect(text).is_loopback(), loopback, "{text}");
        }
        let mapped = Peer::Tcp("[::ffff:127.0.0.1]:9".parse().expect("an address"));
        assert!(mapped.is_local());
        assert!(!Peer::Tcp("192.0.2.1:9".parse().expect("an address")).is_local());
        assert!(Peer::Unix { uid: None }.is_local());
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_cure() {
        let first = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("bound");
        let address: ListenAddress = first.local_addr().parse().expect("an address");
        let error = Listener::bind(&address).await.expect_err("taken").to_string();
        assert_eq!(
            error,
            format!(
                "cannot listen on {address}: Address already in use (os error 98): \
                 another program listens there, choose another address"
            )
        );
    }

    #[tokio::test]
    async fn abandoned_socket_files_are_replaced_and_living_ones_are_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web.sock");
        let address = ListenAddress::Unix(path.clone());
        // A closed listener of the standard library leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let listener = Listener::bind(&address).await.expect("replaced");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o660);
        let error = Listener::bind(&address).await.expect_err("alive").to_string();
        assert!(error.contains("another program listens there"), "{error}");
        drop(listener);
        assert!(!path.exists(), "removed at the end");

        std::fs::write(&path, "precious").expect("written");
        let error = Listener::bind(&address).await.expect_err("no socket").to_string();
        assert!(
            error.ends_with("the file is not a socket: remove the file or choose another path"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
        let nowhere = ListenAddress::Unix(dir.path().join("none/web.sock"));
        assert!(
            Listener::bind(&nowhere)
                .await
                .expect_err("no directory")
                .to_string()
                .ends_with("create its directory")
        );
    }
}
