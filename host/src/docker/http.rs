//! Bounded `GET`s to the engine: each on a connection of its own, signs of life on one that is kept.

use std::{fmt, io::ErrorKind, path::PathBuf, pin::Pin};

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{CONNECTION, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::Error;

/// The largest answer that is read. A list of 5,000 containers is 7 MB.
const BODY_LIMIT: usize = 64 << 20;

/// The largest answer to a question that has a short one.
const SHORT: usize = 64 << 10;

/// Where the engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Unix(PathBuf),
    /// `host:port`, plain HTTP.
    Tcp(String),
}

impl Host {
    /// From the syntax of `DOCKER_HOST`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let unsupported = |cure: &str| Error::Host { host: text.to_owned(), cure: cure.to_owned() };
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(("unix", _)) => Err(unsupported("give an absolute path, as in unix:///run/docker.sock")),
            Some(("tcp" | "http", rest)) => {
                let address = rest.trim_end_matches('/');
                let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && !port.contains(']') && port.parse::<u16>().is_ok()
                });
                if has_port && !address.contains('/') {
                    Ok(Self::Tcp(address.to_owned()))
                } else {
                    Err(unsupported("give host and port, as in tcp://127.0.0.1:2375"))
                }
            }
            _ => Err(unsupported("unix:// and tcp:// are supported")),
        }
    }

    /// The form bollard takes.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix://{}", path.display()),
            Self::Tcp(address) => format!("tcp://{address}"),
        }
    }
}

/// Asks for `path` and reads the whole answer.
///
/// # Errors
/// When the engine cannot be reached, answers with another status than 2xx, or says more than 64 MiB.
pub(super) async fn get(host: &Host, path: &str) -> Result<Bytes, Error> {
    open(host, path).await?.whole().await
}

/// Asks for `path` and reads no further than the headers.
///
/// # Errors
/// When the engine cannot be reached or answers with another status than 2xx.
pub(super) async fn open(host: &Host, path: &str) -> Result<Answer, Error> {
    let answer = match host {
        Host::Unix(socket) => {
            ask(UnixStream::connect(socket).await.map_err(unreachable)?, "docker", path).await?
        }
        Host::Tcp(address) => {
            ask(TcpStream::connect(address).await.map_err(unreachable)?, address, path).await?
        }
    };
    let status = answer.response.status();
    if status.is_success() { Ok(answer) } else { Err(refusal(status, &answer.whole().await?)) }
}

/// An answer whose body is still on its way. Dropping it closes the connection.
pub(super) struct Answer {
    response: Response<Incoming>,
    /// Driven here and not in a task, so that it ends with the answer; `None` once it has ended.
    connection: Option<Connection>,
    /// Without it the connection would take itself for done.
    _sender: SendRequest<Empty<Bytes>>,
}

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

impl Answer {
    /// The next piece of the body; `None` at its end. What was read is not lost when this future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let body = self.response.body_mut();
            let frame = match &mut self.connection {
                None => body.frame().await,
                Some(connection) => match select(body.frame(), connection).await {
                    Either::Left((frame, _)) => frame,
                    // The body knows whether it came to its end.
                    Either::Right(_) => {
                        self.connection = None;
                        continue;
                    }
                },
            };
            match frame {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(broken)?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    async fn whole(mut self) -> Result<Bytes, Error> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        let Some(second) = self.next().await? else { return bounded(first.len()).map(|()| first) };
        let mut body = [first, second].concat();
        bounded(body.len())?;
        while let Some(more) = self.next().await? {
            bounded(body.len() + more.len())?;
            body.extend_from_slice(&more);
        }
        Ok(body.into())
    }
}

/// A connection that is kept for the next question. An idle engine pays six times as much for a new one and a small
/// answer as for the answer alone.
pub(super) struct Kept {
    connection: Connection,
    sender: SendRequest<Empty<Bytes>>,
    name: String,
}

impl Kept {
    /// # Errors
    /// When the engine cannot be reached.
    pub(super) async fn open(host: &Host) -> Result<Self, Error> {
        match host {
            Host::Unix(socket) => {
                Self::over(UnixStream::connect(socket).await.map_err(unreachable)?, "docker").await
            }
            Host::Tcp(address) => {
                Self::over(TcpStream::connect(address).await.map_err(unreachable)?, address).await
            }
        }
    }

    async fn over<S>(stream: S, name: &str) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        Ok(Self { connection: Box::pin(connection), sender, name: name.to_owned() })
    }

    /// Asks for a path whose answer is short and of no interest.
    ///
    /// # Errors
    /// When the connection has ended, or the engine says no.
    pub(super) async fn ask(&mut self, path: &str) -> Result<(), Error> {
        let Self { connection, sender, name } = self;
        let request =
            Request::get(path).header(HOST, name.as_str()).body(Empty::<Bytes>::new()).map_err(broken)?;
        let answer = Box::pin(async move {
            sender.ready().await.map_err(broken)?;
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), SHORT).collect().await;
            Ok((status, body.map_err(|error| broken(&*error))?.to_bytes()))
        });
        let (status, body) = match select(answer, connection).await {
            Either::Left((answer, _)) => answer?,
            Either::Right((_, answer)) => answer.await?,
        };
        if status.is_success() { Ok(()) } else { Err(refusal(status, &body)) }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kept").field("name", &self.name).finish_non_exhaustive()
    }
}

fn bounded(length: usize) -> Result<(), Error> {
    if length > BODY_LIMIT { Err(Error::Answer(format!("more than {BODY_LIMIT} bytes"))) } else { Ok(()) }
}

async fn ask<S>(stream: S, name: &str, path: &str) -> Result<Answer, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut connection: Connection = Box::pin(connection);
    let request = Request::get(path)
        .header(HOST, name)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(broken)?;
    let (response, connection) = match select(Box::pin(sender.send_request(request)), &mut connection).await {
        Either::Left((response, _)) => (response, Some(connection)),
        Either::Right((_, response)) => (response.await, None),
    };
    Ok(Answer { response: response.map_err(broken)?, connection, _sender: sender })
}

/// The engine's errors are `{"message": "…"}`.
fn refusal(status: StatusCode, body: &[u8]) -> Error {
    let message = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| value.get("message")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    Error::refused(status.as_u16(), &message)
}

fn unreachable(error: std::io::Error) -> Error {
    Error::Unreachable(match error.kind() {
        ErrorKind::PermissionDenied => {
            format!(
                "{error}: this user may not use the socket, see docker-group.conf and docker-proxy.conf in packaging/drop-ins/"
            )
        }
        _ => error.to_string(),
    })
}

fn broken(error: impl std::error::Error) -> Error {
    Error::broken(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_parsed() {
        assert_eq!(Host::parse("unix:///run/docker.sock").unwrap(), Host::Unix("/run/docker.sock".into()));
        assert_eq!(Host::parse("tcp://127.0.0.1:2375").unwrap(), Host::Tcp("127.0.0.1:2375".into()));
        assert_eq!(Host::parse("tcp://[::1]:2375/").unwrap(), Host::Tcp("[::1]:2375".into()));
        for bad in [
            "",
            "ssh://host",
            "npipe:////./pipe/x",
            "unix://docker.sock",
            "tcp://host",
            "tcp://[::1]",
            "tcp://h:1/x",
        ] {
            let error = Host::parse(bad).unwrap_err();
            assert_eq!(error.reason(), "unsupported_host", "{bad}");
        }
    }
}
