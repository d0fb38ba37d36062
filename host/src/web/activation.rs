//! Sockets that systemd has bound and passes on (`sd_listen_fds(3)`). Not here: sockets that we bind ourselves.

use std::io;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use super::listener::{Listener, is_loopback};

/// The passed sockets, not yet served.
#[derive(Debug)]
pub struct Inherited(Vec<Socket>);

#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Why the passed sockets cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// `LISTEN_FDS` is missing, or `LISTEN_PID` means another process.
    #[error(
        "systemd has passed no sockets: start it by a socket unit, or leave out the systemd socket option"
    )]
    None,
    /// A socket of another kind.
    #[error(
        "socket {name} that systemd has passed cannot be listened on: in its socket unit write ListenStream= and Accept=no"
    )]
    Unfit {
        /// `FileDescriptorName=`, else its number.
        name: String,
    },
    /// The system refused.
    #[error("cannot use the sockets that systemd has passed: {0}")]
    Io(#[from] io::Error),
}

impl Inherited {
    /// Takes them. To be called once and before there are threads: it removes `LISTEN_PID` and `LISTEN_FDS` from the
    /// environment, so that no child takes the sockets for its own.
    ///
    /// # Errors
    /// When there are none, or one of them is no listening stream socket.
    pub fn take() -> Result<Self, InheritedError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let name = names.get(index).filter(|name| !name.is_empty());
            let unfit =
                || InheritedError::Unfit { name: name.map_or(index.to_string(), |name| format!("`{name}`")) };
            let socket = match passed.take_tcp_listener(index) {
                Ok(socket) => socket.map(Socket::Tcp),
                Err(_) => passed.take_unix_listener(index).map_err(|_| unfit())?.map(Socket::Unix),
            };
            let socket = socket.ok_or_else(unfit)?;
            if !socket.is_listening() {
                return Err(unfit());
            }
            sockets.push(socket);
        }
        if sockets.is_empty() { Err(InheritedError::None) } else { Ok(Self(sockets)) }
    }

    /// Whether only programs on this machine can reach all of them.
    pub fn are_loopback(&self) -> bool {
        self.0.iter().all(|socket| match socket {
            Socket::Tcp(socket) => socket.local_addr().is_ok_and(|address| is_loopback(&address)),
            Socket::Unix(_) => true,
        })
    }

    /// Accepts connections from now on. Within a runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listeners(self) -> Result<Vec<Listener>, InheritedError> {
        let listeners = self.0.into_iter().map(|socket| match socket {
            Socket::Tcp(socket) => Listener::of_tcp(socket),
            Socket::Unix(socket) => Listener::of_unix(socket),
        });
        Ok(listeners.collect::<io::Result<_>>()?)
    }
}

impl Socket {
    /// With `Accept=yes` systemd passes a connection instead.
    fn is_listening(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket_acceptconn(socket),
            Self::Unix(socket) => socket_acceptconn(socket),
        }
        .unwrap_or(false)
    }
}
