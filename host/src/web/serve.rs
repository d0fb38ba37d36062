//! The accept loops, and the end of them all. What happens on a connection is in [`super::connection`].

use std::{io, time::Duration};

use futures_util::future::join_all;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    StatusCode,
    body::{Body, Bytes},
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    Request, Response,
    connection::{Caller, Context},
    listener::Listener,
    security::Security,
    slots::Slots,
};

/// Pause after a failed accept: long enough not to spin when file descriptors run out, doubled up to the last one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What one server allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Served at the same time. Further ones wait until one ends, or take the place of one that is idle.
    pub connections: usize,
    /// For a request's head to arrive whole, the TLS handshake included.
    pub head_timeout: Duration,
    /// For an idle connection to send its next request.
    pub idle_timeout: Duration,
    /// For a handler, reading the body included; then 503. Also how long a client may leave an answer unread.
    pub request_timeout: Duration,
    /// For running requests to end after the shutdown; then they are cut off.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            head_timeout: Duration::from_secs(10),
            // Longer than the usual scrape intervals, so that connections are kept between scrapes.
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves until `shutdown`, then lets running requests end within `limits.drain`.
///
/// A handler that takes too long is dropped and answered for with 503, one that panics with 500.
pub async fn serve<H, F>(
    listeners: Vec<Listener>,
    limits: Limits,
    security: Security,
    handler: H,
    shutdown: CancellationToken,
) where
    H: Fn(Request, Caller) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let cut_off = CancellationToken::new();
    let server = Server {
        slots: Slots::new(limits.connections),
        connections: TaskTracker::new(),
        context: Context { limits, security, handler, shutdown, cut_off: cut_off.clone() },
    };
    join_all(listeners.into_iter().map(|listener| server.accept_all(listener))).await;
    server.connections.close();
    if timeout(limits.drain, server.connections.wait()).await.is_err() {
        warn!(connections = server.connections.len(), "requests did not end in time, cutting them off");
        cut_off.cancel();
        server.connections.wait().await;
    }
}

struct Server<H> {
    context: Context<H>,
    slots: Slots,
    connections: TaskTracker,
}

impl<H, F> Server<H>
where
    H: Fn(Request, Caller) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    async fn accept_all(&self, listener: Listener) {
        let shutdown = &self.context.shutdown;
        let mut pause = ACCEPT_PAUSE;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(connection) => connection,
                // The client gave up before its turn.
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    warn!(address = listener.local_addr(), %error, "cannot accept connections, trying again");
                    tokio::select! {
                        () = sleep(pause) => pause = (pause * 2).min(MAX_ACCEPT_PAUSE),
                        () = shutdown.cancelled() => return,
                    }
                    continue;
                }
            };
            pause = ACCEPT_PAUSE;
            let slot = tokio::select! {
                slot = self.slots.take() => slot,
                () = shutdown.cancelled() => return,
            };
            self.connections.spawn(self.context.clone().serve(stream, peer, slot));
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
