//! The accept loop and the limits of each connection and request.

use std::{convert::Infallible, io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{StatusCode, body::Body, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, warn};

use super::{
    Request, Response,
    listener::{Listener, Peer, Stream},
    reply,
    stall::StallGuard,
};

/// Request line and headers together.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Number of header lines.
const MAX_HEADERS: usize = 64;

/// Pause after a failed accept: long enough not to spin when file descriptors run out, doubled up to the last one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What one server allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Served at the same time; further ones wait to be accepted.
    pub connections: usize,
    /// For a request's head to arrive, and for an idle connection to send its next request.
    pub header_timeout: Duration,
    /// For a handler, reading the body included; then 503. Also how long a client may leave an answer unread.
    pub request_timeout: Duration,
    /// For running requests to end after the shutdown; then they are cut off.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            // Longer than the usual scrape intervals, so that connections are kept between scrapes.
            header_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves until `shutdown`, then lets running requests end within `limits.drain`.
///
/// A handler that takes too long is dropped and answered for with 503, one that panics with 500.
pub async fn serve<H, F>(listeners: Vec<Listener>, limits: Limits, handler: H, shutdown: CancellationToken)
where
    H: Fn(Request, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let server = Server {
        limits,
        handler,
        slots: Arc::new(Semaphore::new(limits.connections)),
        connections: TaskTracker::new(),
        shutdown,
        cut_off: CancellationToken::new(),
    };
    join_all(listeners.into_iter().map(|listener| server.accept_all(listener))).await;
    server.connections.close();
    if timeout(limits.drain, server.connections.wait()).await.is_err() {
        warn!(connections = server.connections.len(), "requests did not end in time, cutting them off");
        server.cut_off.cancel();
        server.connections.wait().await;
    }
}

struct Server<H> {
    limits: Limits,
    handler: H,
    slots: Arc<Semaphore>,
    connections: TaskTracker,
    shutdown: CancellationToken,
    cut_off: CancellationToken,
}

impl<H, F> Server<H>
where
    H: Fn(Request, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    async fn accept_all(&self, listener: Listener) {
        let mut pause = ACCEPT_PAUSE;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(connection) => connection,
                // The client gave up before its turn.
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    warn!(address = listener.local_addr(), %error, "cannot accept connections, trying again");
                    tokio::select! {
                        () = sleep(pause) => pause = (pause * 2).min(MAX_ACCEPT_PAUSE),
                        () = self.shutdown.cancelled() => return,
                    }
                    continue;
                }
            };
            pause = ACCEPT_PAUSE;
            let slot = tokio::select! {
                slot = Arc::clone(&self.slots).acquire_owned() => slot,
                () = self.shutdown.cancelled() => return,
            };
            let connection = self.connection(stream, peer);
            self.connections.spawn(async move {
                connection.await;
                drop(slot);
            });
        }
    }

    /// Serves one connection to its end.
    fn connection(&self, stream: Box<dyn Stream>, peer: Peer) -> impl Future<Output = ()> + Send + use<H, F> {
        let Limits { header_timeout, request_timeout, .. } = self.limits;
        let (shutdown, cut_off) = (self.shutdown.clone(), self.cut_off.clone());
        let handler = self.handler.clone();
        let service_peer = peer.clone();
        let service = service_fn(move |request: Request| {
            let answer = answer(handler.clone(), request, service_peer.clone(), request_timeout);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        async move {
            let stream = TokioIo::new(StallGuard::new(stream, request_timeout));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .max_header_size(MAX_HEADER_BYTES)
                .max_headers(MAX_HEADERS)
                .serve_connection(stream, service);
            let mut connection = std::pin::pin!(connection);
            let outcome = tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        outcome = connection => outcome,
                        () = cut_off.cancelled() => return,
                    }
                }
            };
            if let Err(error) = outcome {
                debug!(%peer, %error, "connection ended early");
            }
        }
    }
}

/// The handler's answer, or the one that stands for a handler that panicked or took too long.
async fn answer<H, F>(handler: H, request: Request, peer: Peer, limit: Duration) -> Response
where
    H: Fn(Request, Peer) -> F,
    F: Future<Output = Response>,
{
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let handled = AssertUnwindSafe(async { handler(request, peer).await }).catch_unwind();
    match timeout(limit, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            error!(%method, path, "the handler panicked");
            reply::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
        }
        Err(_) => {
            warn!(%method, path, seconds = limit.as_secs_f64(), "the request took too long");
            reply::text(StatusCode::SERVICE_UNAVAILABLE, "the request took too long\n")
        }
    }
}

/// Errors that `accept` hands on from the one connection it was about to return.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Why a body could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More than the limit.
    #[error("the body is too large")]
    TooLarge,
    /// The client broke off, or its chunks make no sense.
    #[error("the body could not be read")]
    Broken,
}

impl BodyError {
    /// 413 or 400.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }
}

/// The whole body, at most `max` bytes. One that announces more is refused before any of it is read.
///
/// # Errors
/// When it is larger, or the client breaks off.
pub async fn read_body(request: Request, max: usize) -> Result<Bytes, BodyError> {
    let body = request.into_body();
    if body.size_hint().lower() > max as u64 {
        return Err(BodyError::TooLarge);
    }
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge),
        Err(_) => Err(BodyError::Broken),
    }
}
