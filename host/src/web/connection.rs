//! One connection from the handshake to its end: who is calling, what is answered, and within which limits.

use std::{convert::Infallible, panic::AssertUnwindSafe, pin::pin, sync::Arc};

use futures_util::FutureExt;
use hyper::{StatusCode, body::Body, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    Limits, Request, Response,
    guard::Guard,
    listener::{Peer, Stream},
    reply,
    security::Security,
    slots::{Activity, Slot},
};

/// Request line and headers together.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Number of header lines.
const MAX_HEADERS: usize = 64;

/// Who sent a request, as far as the server can tell.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where from.
    pub peer: Peer,
    /// It carries the login of one of the web configuration's users, or what stands for one.
    pub logged_in: bool,
    /// The connection's client has a certificate of the configured CA.
    pub certificate: bool,
}

/// What every connection of a server shares.
#[derive(Clone)]
pub(super) struct Context<H> {
    pub(super) limits: Limits,
    pub(super) security: Security,
    pub(super) handler: H,
    pub(super) shutdown: CancellationToken,
    /// The time for running requests is over.
    pub(super) cut_off: CancellationToken,
}

impl<H, F> Context<H>
where
    H: Fn(Request, Caller) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    /// Serves one connection to its end, which comes early when another one needs the slot.
    pub(super) async fn serve(self, stream: Box<dyn Stream>, peer: Peer, slot: Slot) {
        let activity = Arc::clone(&slot.activity);
        tokio::select! {
            () = self.talk(stream, peer.clone(), &activity) => {}
            () = activity.yields.cancelled() => debug!(%peer, "an idle connection made room for another one"),
        }
    }

    async fn talk(self, stream: Box<dyn Stream>, peer: Peer, activity: &Arc<Activity>) {
        let Limits { head_timeout, request_timeout, .. } = self.limits;
        let stream = Guard::new(stream, Arc::clone(activity), head_timeout, request_timeout);
        let current = self.security.refreshed().await;
        let Some(config) = current.tls() else {
            let caller = Caller { peer, logged_in: false, certificate: false };
            return self.requests(stream, caller, activity).await;
        };
        let handshaken = tokio::select! {
            handshaken = handshake(stream, config) => handshaken,
            () = self.shutdown.cancelled() => return,
        };
        match handshaken {
            Ok(stream) => {
                let shown = stream.get_ref().1.peer_certificates().is_some();
                let certificate = shown && current.verifies_certificates();
                self.requests(stream, Caller { peer, logged_in: false, certificate }, activity).await;
            }
            Err(error) => debug!(%peer, %error, "the TLS handshake failed"),
        }
    }

    async fn requests(self, stream: impl Stream, caller: Caller, activity: &Arc<Activity>) {
        let peer = caller.peer.clone();
        let (shutdown, cut_off, limits) = (self.shutdown.clone(), self.cut_off.clone(), self.limits);
        let service = service_fn(|request: Request| {
            let busy = activity.begin(!request.body().is_end_stream());
            let (context, caller) = (self.clone(), caller.clone());
            async move {
                let response = context.answer(request, caller, activity).await;
                drop(busy);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle_timeout)
            .max_header_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
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
            debug!(%peer, %error, "the connection ended early");
        }
    }

    /// The handler's answer, or the one that stands for a handler that panicked or took too long.
    async fn answer(self, request: Request, mut caller: Caller, activity: &Activity) -> Response {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let current = self.security.refreshed().await;
        let handled = async {
            match current.admit(request.headers()).await {
                Ok(logged_in) => {
                    caller.logged_in = logged_in;
                    if logged_in || caller.certificate {
                        activity.recognizes();
                    }
                    (self.handler)(request, caller).await
                }
                Err(refusal) => refusal,
            }
        };
        let limit = self.limits.request_timeout;
        let mut response = match timeout(limit, AssertUnwindSafe(handled).catch_unwind()).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                error!(%method, path, "the handler panicked");
                reply::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
            }
            Err(_) => {
                warn!(%method, path, seconds = limit.as_secs_f64(), "the request took too long");
                reply::text(StatusCode::SERVICE_UNAVAILABLE, "the request took too long\n")
            }
        };
        current.decorate(&mut response);
        response
    }
}

/// TLS, or why not. The client is told why, and given the time to hear it.
async fn handshake<S: Stream>(stream: S, config: Arc<ServerConfig>) -> std::io::Result<TlsStream<S>> {
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, mut stream)) => {
            // It fails when the client has gone.
            let _ = stream.shutdown().await;
            Err(error)
        }
    }
}
