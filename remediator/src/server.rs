//! The routes: the webhook, the metrics, health. Answers at once; nothing that a request starts is waited for.

use std::{fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use evenkeel_host::{
    config::Secret,
    metrics::Block,
    systemd::snapshot::sha256,
    web::{BodyError, Caller, Request, Response, Security, exposition::Exposition, read_body, reply},
};
use hyper::{HeaderMap, Method, StatusCode, body::Bytes, header};
use prometheus_client::registry::Registry;
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    complaint::Complaint,
    config::{Access, Config},
    control::{self, Control},
    fleet::gateway::{Gateway, Parcel},
    journal::{Accepted, Error, Incoming, Journal},
    metrics::{self, Metrics},
    page::{self, Facts},
    webhook::{self, BODY_MAX, DeliveryError, Meaning},
    worker::Bell,
};

/// Room for bodies that are being read and taken at the same time, in MiB: two of the largest. Each may take three times
/// its size for a moment.
const BODIES: u32 = 32;
/// Looks into the journal for the metrics at the same time, and as many for the page; a disk that hangs must not gather a thread a scrape.
const LOOKS: usize = 2;

/// What keeps requests from taking more than there is. Cloning shares it.
#[derive(Clone)]
pub struct Room {
    bodies: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        Self { bodies: room(BODIES as usize), looks: room(LOOKS), pages: room(LOOKS) }
    }
}

impl Room {
    /// Waits until a body of this announced size fits beside the others; one of unknown size takes the most.
    async fn for_body(&self, headers: &HeaderMap) -> Option<OwnedSemaphorePermit> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let most = BODY_MAX >> 20;
        let mib = length.map_or(most, |bytes: usize| (bytes >> 20).saturating_add(1).min(most));
        Arc::clone(&self.bodies).acquire_many_owned(u32::try_from(mib).unwrap_or(BODIES)).await.ok()
    }
}

/// What the routes need.
#[derive(Clone)]
pub struct Server {
    /// The configuration in force.
    pub live: watch::Receiver<Arc<Config>>,
    /// The durable memory.
    pub journal: Journal,
    /// The time.
    pub clock: Clock,
    /// The counters.
    pub metrics: Metrics,
    /// Rung when a delivery opened something.
    pub bell: Bell,
    /// Set when the process is to end.
    pub stop: CancellationToken,
    /// How much may be under way.
    pub room: Room,
    /// Carries out what people order.
    pub control: Control,
    /// Passes on what is for other hosts, where this is a gateway.
    pub gateway: Option<Arc<Gateway>>,
}

impl Server {
    /// TLS and logins as configured; a bearer token stands for a login.
    pub fn security(&self) -> Security {
        let live = self.live.clone();
        let accepts = move |headers: &HeaderMap| {
            let access = &live.borrow().access;
            authorized(&access.tokens, headers) || authorized(&access.write_tokens, headers)
        };
        self.config().access.security.clone().accepting(accepts)
    }

    /// Answers one request.
    pub async fn answer(self, request: Request, caller: Caller) -> Response {
        let path = request.uri().path();
        if path == "/" && matches!(*request.method(), Method::GET | Method::HEAD) {
            return self.page(request.headers(), &caller).await;
        }
        if is_stranger(&self.config().access, &caller) && !caller.peer.is_local() {
            return unauthorized();
        }
        match (path.strip_suffix('/').unwrap_or(path), request.method()) {
            ("/api/v1/alerts", _) | ("", &Method::POST) => {
                let response = self.webhook(request, &caller).await;
                self.metrics.request(response.status().as_u16());
                response
            }
            ("", _) => reply::method_not_allowed("GET, HEAD, POST"),
            ("/metrics", &Method::GET | &Method::HEAD) => self.exposition(request.headers()).await,
            ("/-/healthy", &Method::GET | &Method::HEAD) => reply::text(StatusCode::OK, "healthy\n"),
            ("/-/ready", &Method::GET | &Method::HEAD) => self.ready(),
            ("/metrics" | "/-/healthy" | "/-/ready", _) => reply::method_not_allowed("GET, HEAD"),
            (path, _) if control::is_order(path) => self.order(request, &caller).await,
            _ => reply::not_found(),
        }
    }

    /// The configuration in force.
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.live.borrow())
    }

    /// Carries out an order of whoever has a token of the write scope; there is no way round one, whatever `auth` says.
    async fn order(&self, request: Request, caller: &Caller) -> Response {
        let config = self.config();
        if authorized(&config.access.write_tokens, request.headers()) {
            self.control.answer(request, format!("HTTP {}", caller.peer)).await
        } else if is_stranger(&config.access, caller) || config.access.open {
            unauthorized()
        } else {
            reply::text(
                StatusCode::FORBIDDEN,
                "this lets alerts be delivered; orders need a token of `server.write_token_files`\n",
            )
        }
    }

    async fn webhook(&self, request: Request, caller: &Caller) -> Response {
        if is_stranger(&self.config().access, caller) {
            return unauthorized();
        }
        if request.method() != Method::POST {
            return reply::method_not_allowed("POST");
        }
        // With `auth: none` whatever runs on this host may deliver; a page in a browser on it may not, under whatever name
        // it has this address looked up. Browsers say with every POST where it comes from; Alertmanager never does.
        if request.headers().contains_key(header::ORIGIN) {
            return reply::text(StatusCode::FORBIDDEN, "deliveries do not come from a browser\n");
        }
        if !is_json(request.headers()) {
            return reply::text(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the content type must be application/json\n",
            );
        }
        if self.stop.is_cancelled() || !self.journal.has_room() {
            return reply::text(StatusCode::SERVICE_UNAVAILABLE, "not accepting: send it again\n");
        }
        let room = self.room.for_body(request.headers()).await;
        let body = match read_body(request, BODY_MAX).await {
            Ok(body) => body,
            Err(error @ BodyError::TooLarge) => {
                return reply::text(
                    error.status(),
                    format!("a delivery may have {} MiB at most\n", BODY_MAX >> 20),
                );
            }
            Err(error) => return reply::text(error.status(), format!("{error}\n")),
        };
        // To its end, also when the sender does not wait for it: what it takes is counted until then.
        let (server, local) = (self.clone(), caller.peer.is_local());
        let accepted = tokio::spawn(async move {
            let response = server.accept(body, local).await;
            drop(room);
            response
        });
        match accepted.await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(%error, "a delivery could not be taken");
                reply::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
            }
        }
    }

    /// Takes a delivery: on this host's disk, and what is for others in Redis, before the 200.
    async fn accept(&self, body: Bytes, local: bool) -> Response {
        let (mut ours, mut ignored, mut received) = (Vec::new(), Vec::new(), Vec::new());
        let mut parcels = Vec::new();
        let config = self.config();
        let gateway = self.gateway.as_ref();
        let read = webhook::read(&body, &config, local, |alert, meaning| {
            received.push(alert.is_firing());
            match meaning {
                meaning if gateway.is_some_and(|gateway| gateway.passes(&meaning)) => {
                    match Parcel::of(alert) {
                        Ok(parcel) => parcels.push(parcel),
                        Err(reason) => ignored.push(reason),
                    }
                }
                Meaning::Ours(alert) => ours.push(alert),
                Meaning::Ignored(reason) => ignored.push(reason),
            }
        });
        match read {
            Ok(receiver) => self.control.sources.arrivals.note(&receiver, self.clock.now().wall_ms),
            Err(error) => {
                let status = match error {
                    DeliveryError::TooMany => StatusCode::PAYLOAD_TOO_LARGE,
                    _ => StatusCode::BAD_REQUEST,
                };
                return reply::text(status, format!("{error}\n"));
            }
        }
        drop(body);
        let (taken, passed_over) = (ours.len() as u64, ignored.len() as u64);
        // This host's own come first: they must not wait for Redis, which may be what they are about.
        let left = match self.keep(ours, &config).await {
            Ok(left) => left,
            Err(again) => return reply::text(StatusCode::SERVICE_UNAVAILABLE, again),
        };
        let mut answer = json!({"accepted": taken - left, "ignored": passed_over + left});
        if let Some(gateway) = gateway {
            match gateway.pass(&parcels).await {
                Ok(passed) => {
                    answer["routed"] = passed.routed.into();
                    answer["unclaimed"] = passed.unclaimed.into();
                }
                Err(error) => {
                    static NOT_PASSED: Complaint = Complaint::new();
                    if let Some(untold) = NOT_PASSED.is_due() {
                        tracing::warn!(%error, untold, "a delivery could not be passed on: it is to come again");
                    }
                    return reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}: send it again\n"));
                }
            }
        }
        for firing in received {
            self.metrics.received(firing);
        }
        for reason in ignored {
            self.metrics.ignored(reason);
        }
        for _ in 0..left {
            self.metrics.ignored("too_many");
        }
        static LEFT: Complaint = Complaint::new();
        if left > 0
            && let Some(untold) = LEFT.is_due()
        {
            tracing::warn!(
                left,
                untold,
                "too many remediations are open: what is left of a delivery is taken when it is repeated"
            );
        }
        reply::json(StatusCode::OK, &answer)
    }

    /// Puts this host's alerts on its disk; answers for how many there was no room, or why all are to come again.
    async fn keep(&self, ours: Vec<Incoming>, config: &Config) -> Result<u64, &'static str> {
        if ours.is_empty() {
            return Ok(0);
        }
        match self.journal.accept(ours, config.open_max, self.clock.now()).await {
            Ok(Accepted::Taken(tally)) => {
                if tally.opened > 0 {
                    self.bell.ring();
                }
                Ok(tally.left)
            }
            Ok(Accepted::TooMany) => Err("too many remediations are open: send it again\n"),
            Err(error) => {
                if !matches!(error, Error::Full | Error::Closed) {
                    self.metrics.state_write_failed();
                }
                static UNTAKEN: Complaint = Complaint::new();
                if let Some(untold) = UNTAKEN.is_due() {
                    tracing::error!(%error, untold, "a delivery could not be taken");
                }
                Err("the delivery could not be stored: send it again\n")
            }
        }
    }

    async fn exposition(&self, headers: &HeaderMap) -> Response {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        let mut blocks = vec![
            Arc::new(Block::of_registry(&registry)),
            Arc::new(Block::new(self.config().access.security.families())),
        ];
        if let Some(view) = self.control.sources.fleet.borrow().as_ref() {
            blocks.push(Arc::new(metrics::of_fleet(view)));
        }
        // Without a look into the journal the counters are true all the same.
        match Arc::clone(&self.room.looks).try_acquire_owned() {
            Err(_) => {
                tracing::error!("the state cannot be read for the metrics: earlier looks have not come back");
            }
            Ok(turn) => {
                let server = self.clone();
                let observed = tokio::task::spawn_blocking(move || {
                    let _turn = turn;
                    metrics::observed(&server.config(), &server.journal.reader()?, &server.clock)
                });
                match observed.await {
                    Ok(Ok(block)) => blocks.push(Arc::new(block)),
                    Ok(Err(error)) => tracing::error!(%error, "the state cannot be read for the metrics"),
                    Err(error) => tracing::error!(%error, "the state cannot be read for the metrics"),
                }
            }
        }
        Exposition::new(blocks).respond(headers)
    }

    /// The status page, for whoever may send alerts or give orders: it says more of the host than its metrics do.
    async fn page(&self, headers: &HeaderMap, caller: &Caller) -> Response {
        let config = self.config();
        let access = &config.access;
        let by_password = password(headers).is_some_and(|token| {
            is_one_of(&access.tokens, &token) || is_one_of(&access.write_tokens, &token)
        });
        if is_stranger(access, caller) && !by_password {
            return browser_unauthorized();
        }
        let Ok(turn) = Arc::clone(&self.room.pages).try_acquire_owned() else {
            return reply::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the page is being made for others: try again\n",
            );
        };
        let server = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            Facts::read(&server.config(), &server.journal.reader()?, &server.clock)
        });
        let unread = |error: &dyn fmt::Display| {
            tracing::error!(%error, "the state cannot be read for the page");
            reply::text(StatusCode::INTERNAL_SERVER_ERROR, "the state cannot be read: the log says why\n")
        };
        match read.await {
            Ok(Ok(facts)) => page::respond(&config, &facts, &self.control.sources.now()),
            Ok(Err(error)) => unread(&error),
            Err(error) => unread(&error),
        }
    }

    fn ready(&self) -> Response {
        if self.stop.is_cancelled() || !self.journal.has_room() {
            reply::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        } else {
            reply::text(StatusCode::OK, "ready\n")
        }
    }
}

/// Whether the sender has not shown what would let it in. A stranger on this machine may look; from elsewhere it learns
/// nothing at all. A client certificate alone is enough only where nothing else is asked for.
fn is_stranger(access: &Access, caller: &Caller) -> bool {
    !(access.open || caller.logged_in || (access.tokens.is_empty() && caller.certificate))
}

/// Whether the request carries one of the tokens. Each is compared in constant time, and all of them, so that the
/// time says nothing about which or how much of one is right.
fn authorized(tokens: &[Secret], headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = match given.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return false,
    };
    is_one_of(tokens, given)
}

/// By their digests, which are all of one length: how long a token is takes no other time either.
fn is_one_of(tokens: &[Secret], given: &str) -> bool {
    let given = sha256(given.as_bytes());
    tokens
        .iter()
        .map(|token| sha256(token.expose().as_bytes()).as_bytes().ct_eq(given.as_bytes()))
        .fold(subtle::Choice::from(0), |any, one| any | one)
        .into()
}

/// The password of basic authentication: the only way that a browser has to show a token. Good for looking alone, since
/// it also sends it along when another site has it call an address here.
fn password(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, login) = given.split_once(' ')?;
    let login = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(login.trim()))?.ok()?;
    String::from_utf8(login).ok()?.split_once(':').map(|(_, password)| password.to_owned())
}

/// Has a browser ask.
fn browser_unauthorized() -> Response {
    let mut response = reply::text(
        StatusCode::UNAUTHORIZED,
        "the status page asks for a token of `server.bearer_token_files`: any user name, the token as password\n",
    );
    let challenge = header::HeaderValue::from_static("Basic realm=\"evenkeel: the token as password\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn unauthorized() -> Response {
    let mut response = reply::text(StatusCode::UNAUTHORIZED, "a valid bearer token is required\n");
    let challenge = header::HeaderValue::from_static("Bearer realm=\"evenkeel\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use evenkeel_host::web::Peer;

    use super::*;

    #[test]
    fn only_a_whole_token_lets_in() {
        let tokens = [Secret::new("0123456789abcdef"), Secret::new("fedcba9876543210")];
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            authorized(&tokens, &headers)
        };
        assert!(with("Bearer 0123456789abcdef"));
        assert!(with("bearer fedcba9876543210"));
        for bad in [
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "Bearer ",
            "",
        ] {
            assert!(!with(bad), "{bad:?}");
        }
        assert!(!authorized(&tokens, &HeaderMap::new()));
        assert!(!authorized(&[], &HeaderMap::new()), "without tokens none is right");
    }

    #[test]
    fn strangers_are_those_who_have_shown_nothing() {
        let access = |open, tokens: &[&str]| Access {
            listen: Vec::new(),
            systemd_socket: false,
            security: Security::default(),
            token_file: None,
            web_config_file: None,
            tokens: tokens.iter().map(|token| Secret::new(*token)).collect(),
            write_tokens: Vec::new(),
            open,
        };
        let (open, certified) = (access(true, &[]), access(false, &[]));
        let tokens = access(false, &["0123456789abcdef"]);
        for (access, logged_in, certificate, stranger) in [
            (&open, false, false, false),
            (&tokens, false, false, true),
            (&tokens, true, false, false),
            (&tokens, false, true, true),
            (&certified, false, true, false),
            (&certified, false, false, true),
        ] {
            let caller = Caller { peer: Peer::Unix { uid: None }, logged_in, certificate };
            assert_eq!(is_stranger(access, &caller), stranger, "{access:?} {caller:?}");
        }
    }
}
