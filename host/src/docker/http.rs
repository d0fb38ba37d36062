//! One bounded `GET` to the engine, on a connection of its own.

use std::path::PathBuf;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
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
    match host {
        Host::Unix(socket) => {
            exchange(UnixStream::connect(socket).await.map_err(unreachable)?, "docker", path).await
        }
        Host::Tcp(address) => {
            exchange(TcpStream::connect(address).await.map_err(unreachable)?, address, path).await
        }
    }
}

async fn exchange<S>(stream: S, name: &str, path: &str) -> Result<Bytes, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(path)
        .header(HOST, name)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(broken)?;
    let answer = std::pin::pin!(async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Error::Answer(format!("more than {BODY_LIMIT} bytes"))
            } else {
                broken(&*error)
            }
        })?;
        Ok((status, body.to_bytes()))
    });
    // The connection is driven here and not in a task, so that dropping this future closes it.
    let (status, body) = match futures_util::future::select(answer, std::pin::pin!(connection)).await {
        futures_util::future::Either::Left((answer, _)) => answer?,
        futures_util::future::Either::Right((_, answer)) => answer.await?,
    };
    if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
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
    Error::Unreachable(error.to_string())
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
