//! What people may order: approve, reject, pause, resume, ack, trigger, reload. The same routes over HTTP with a token
//! of the write scope, and over the control socket for the command line on this host. Who orders it is on record. Over
//! the control socket the command line also asks what only the daemon knows.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use evenkeel_host::{
    config::{ConfigError, PromDuration},
    web::{Peer, Request, Response, read_body, reply},
};
use hyper::{Method, StatusCode};
use reqwest::{Client, RequestBuilder};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use crate::{
    clock::Clock,
    config::{self, Config},
    daemon::{self, Sources},
    journal::{Accepted, Decided, Error, HaltKind, Incoming, Journal, Labels, Tally, Verdict},
    metrics::Metrics,
    outgoing,
    rules::Rule,
    target::{Kind, Target},
    text::printable,
    worker::Bell,
};

/// The control socket's name in the state directory.
pub const SOCKET: &str = "control.sock";
/// An order's size at most, in bytes.
const BODY_MAX: usize = 16 << 10;
/// What is kept of a reason, in characters.
const REASON_MAX: usize = 300;

/// Takes orders. Cloning shares it.
#[derive(Clone)]
pub struct Control {
    /// The durable memory.
    pub journal: Journal,
    /// The configuration in force.
    pub live: watch::Receiver<Arc<Config>>,
    /// The time.
    pub clock: Clock,
    /// Wakes the worker.
    pub bell: Bell,
    /// Reads the configuration anew.
    pub reloader: Arc<Reloader>,
    /// What only this process knows.
    pub sources: Sources,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the state cannot be written: {0}")]
    State(#[from] Error),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Wrong(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::State(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    reason: String,
    #[serde(rename = "for")]
    lasts: Option<PromDuration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ack {
    rule: String,
    target: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trigger {
    rule: String,
    target: Option<String>,
}

/// Whether a path is an order's.
pub fn is_order(path: &str) -> bool {
    matches!(path, "/-/reload" | "/api/v1/pause" | "/api/v1/resume" | "/api/v1/ack" | "/api/v1/trigger")
        || path.starts_with("/api/v1/remediations/")
}

impl Control {
    /// Where it is reached from this host: beside the state.
    pub fn socket(&self) -> PathBuf {
        let places = self.live.borrow().places();
        let path = self.journal.standing().borrow().path.with_file_name(SOCKET);
        if let Some(fallback) = places.fallback.map(|dir| dir.join(SOCKET)).filter(|other| *other != path) {
            // One that an earlier process left would be asked in place of this one.
            drop(std::fs::remove_file(fallback));
        }
        path
    }

    /// Answers what came over the control socket: only root and the user that this process runs as may order and ask.
    pub async fn answer_local(self, request: Request, peer: Peer) -> Response {
        let own = rustix::process::geteuid().as_raw();
        match peer {
            Peer::Unix { uid: Some(uid) } if uid == 0 || uid == own => {
                if request.uri().path() == daemon::PATH && request.method() == Method::GET {
                    return reply::json(StatusCode::OK, &json!(self.sources.now()));
                }
                let author = if uid == 0 { "root".to_owned() } else { format!("uid {uid}") };
                self.answer(request, author).await
            }
            _ => refuse(StatusCode::FORBIDDEN, "only root and the remediator's own user may order this"),
        }
    }

    /// Carries out what `author`, who is known to be allowed to, orders.
    pub async fn answer(&self, request: Request, author: String) -> Response {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        if !is_order(&path) {
            return reply::not_found();
        }
        if request.method() != Method::POST {
            return reply::method_not_allowed("POST");
        }
        let body = match read_body(request, BODY_MAX).await {
            Ok(body) => body,
            Err(error) => return refuse(error.status(), &error.to_string()),
        };
        match self.carry_out(&path, &body, author.clone()).await {
            Ok(message) => {
                tracing::info!(author, order = path, message, "ordered");
                reply::json(StatusCode::OK, &json!({"message": message}))
            }
            Err(refused) => {
                tracing::warn!(author, order = path, %refused, "an order was refused");
                refuse(refused.status(), &refused.to_string())
            }
        }
    }

    async fn carry_out(&self, path: &str, body: &[u8], author: String) -> Result<String, Refused> {
        match path {
            "/-/reload" => self.reload(author).await,
            "/api/v1/pause" => self.pause(read(body)?, author).await,
            "/api/v1/resume" => self.resume(author).await,
            "/api/v1/ack" => self.ack(read(body)?, author).await,
            "/api/v1/trigger" => self.trigger(read(body)?, author).await,
            _ => {
                let order = path.strip_prefix("/api/v1/remediations/").and_then(|rest| rest.split_once('/'));
                let (id, verdict) = match order {
                    Some((id, "approve")) => (id, Verdict::Approve),
                    Some((id, "reject")) => (id, Verdict::Reject),
                    _ => return Err(Refused::NotFound("there is no such order".to_owned())),
                };
                let id = id.trim_start_matches('#').parse();
                let id = id.map_err(|_| Refused::Wrong("a remediation's number is needed".to_owned()))?;
                self.decide(id, verdict, author).await
            }
        }
    }

    async fn decide(&self, id: i64, verdict: Verdict, author: String) -> Result<String, Refused> {
        let within = self.config().approval_within;
        let decided = self.journal.decide(id, verdict, author, within, self.clock.now()).await?;
        self.bell.urge();
        match (decided, verdict) {
            (Decided::Taken, Verdict::Approve) => {
                Ok(format!("approved: #{id} is looked at once more and begun when it is still needed"))
            }
            (Decided::Taken, Verdict::Reject) => Ok(format!("rejected: #{id} is not done")),
            (Decided::Unknown, _) => Err(Refused::NotFound(format!("there is no remediation #{id}"))),
            (Decided::NotAwaiting, _) => {
                Err(Refused::Conflict(format!("#{id} does not wait for approval: it is decided, or over")))
            }
            (Decided::Expired, _) => Err(Refused::Conflict(format!(
                "#{id} waited for approval for {}, and that time is over",
                PromDuration::new(within)
            ))),
        }
    }

    async fn pause(&self, order: Pause, author: String) -> Result<String, Refused> {
        let reason: String = order.reason.trim().chars().take(REASON_MAX).collect();
        if reason.is_empty() {
            return Err(Refused::Wrong("a pause needs a reason, for whoever finds it".to_owned()));
        }
        let lasts = order.lasts.map(|lasts| lasts.get());
        if lasts.is_some_and(|lasts| lasts.is_zero()) {
            return Err(Refused::Wrong("a pause for no time is none: write 30m, or leave it out".to_owned()));
        }
        self.journal.pause(reason, author, lasts, self.clock.now()).await?;
        let until = match order.lasts {
            Some(lasts) => format!("for {lasts}"),
            None => "until somebody resumes".to_owned(),
        };
        Ok(format!("paused {until}: what runs is finished, nothing new is begun"))
    }

    async fn resume(&self, author: String) -> Result<String, Refused> {
        let ended = self.journal.resume(author, self.clock.now()).await?;
        self.bell.urge();
        let words: Vec<&str> = ended
            .iter()
            .map(|what| match what {
                HaltKind::Pause => "the pause is over",
                HaltKind::Storm => "the storm is declared over",
                HaltKind::FleetPause => "the fleet's pause is over",
            })
            .collect();
        Ok(if words.is_empty() { "nothing was paused".to_owned() } else { words.join(", ") })
    }

    async fn ack(&self, order: Ack, author: String) -> Result<String, Refused> {
        let config = self.config();
        let rule = rule(&config, &order.rule)?;
        let kind = rule.selector.kind.as_str();
        let acked = self
            .journal
            .ack(order.rule.clone(), kind, order.target.clone(), author, self.clock.now())
            .await?;
        if acked.is_some() {
            self.bell.urge();
        }
        match acked {
            Some(id) => Ok(format!(
                "acknowledged: after #{id} one more try of {} is admitted within its limits",
                order.rule
            )),
            None => Err(Refused::NotFound(format!(
                "{} has not acted on {} yet: there is nothing to acknowledge",
                order.rule,
                printable(&order.target)
            ))),
        }
    }

    async fn trigger(&self, order: Trigger, author: String) -> Result<String, Refused> {
        let config = self.config();
        let rule = rule(&config, &order.rule)?;
        let target = target_of(&config, rule, order.target.as_deref())?;
        let alert = Incoming {
            rule: rule.name.clone(),
            target: target.clone(),
            firing: true,
            impact: rule.interrupts(),
            fingerprint: String::new(),
            labels: Labels::default(),
            triggered_by: Some(author.clone()),
        };
        let accepted = self.journal.accept(vec![alert], config.open_max, self.clock.now()).await?;
        let Accepted::Taken(tally) = accepted else {
            return Err(Refused::Conflict("too many remediations are open: try again later".to_owned()));
        };
        let detail = format!("{} {}", rule.name, target.name());
        self.journal.note_command(author, "trigger", detail, self.clock.now()).await?;
        self.bell.ring();
        let (kind, name) = (target.kind().as_str(), target.name().to_owned());
        let id = self.journal.open_number(rule.name.clone(), kind, name).await?;
        let id = id.map_or_else(String::new, |id| format!(" #{id}"));
        Ok(match tally {
            Tally { opened: 0, .. } => format!("{} on {target} is open already{id}", rule.name),
            _ => format!("{} on {target} is opened{id}: its need, gates and limits decide", rule.name),
        })
    }

    async fn reload(&self, author: String) -> Result<String, Refused> {
        let rules = self.reloader.reload().await.map_err(|error| Refused::Wrong(error.to_string()))?;
        self.journal.note_command(author, "reload", format!("{rules} rules"), self.clock.now()).await?;
        self.bell.urge();
        Ok(format!("the configuration is in force: {rules} rules"))
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.live.borrow())
    }
}

/// Puts a new configuration in force, whole or not at all.
pub struct Reloader {
    live: watch::Sender<Arc<Config>>,
    metrics: Metrics,
    /// One at a time, so that the last one read is the one in force.
    turn: Mutex<()>,
}

impl Reloader {
    /// Changes what `live`'s receivers see.
    pub fn new(live: watch::Sender<Arc<Config>>, metrics: Metrics) -> Self {
        Self { live, metrics, turn: Mutex::new(()) }
    }

    /// Reads the file again; answers how many rules are in force.
    ///
    /// # Errors
    /// When it is not good, or changes what only a restart can; then the old one stays in force.
    pub async fn reload(&self) -> Result<usize, ConfigError> {
        let _turn = self.turn.lock().await;
        let old = Arc::clone(&self.live.borrow());
        let path = old.path.clone();
        let read = tokio::task::spawn_blocking(move || config::load(&path)).await;
        let read = read.unwrap_or_else(|_| {
            Err(ConfigError::new(&old.path.display().to_string(), "reading it broke off"))
        });
        let checked = read.and_then(|new| fits_a_running_process(&old, new));
        self.metrics.reloaded(checked.is_ok());
        match checked {
            Ok(new) => {
                let rules = new.rules.len();
                self.metrics.know(&new.rules);
                self.live.send_replace(Arc::new(new));
                tracing::info!(rules, "the configuration was read again and is in force");
                Ok(rules)
            }
            Err(error) => {
                tracing::error!(%error, "the configuration was read again and is refused: the old one stays in force");
                Err(error)
            }
        }
    }
}

/// Refuses what a running process cannot change.
fn fits_a_running_process(old: &Config, mut new: Config) -> Result<Config, ConfigError> {
    let fixed = |key: &str| {
        let message = format!("`{key}` cannot be changed while it runs: restart evenkeel-remediator");
        Err(ConfigError::new(&old.path.display().to_string(), message))
    };
    if (&new.access.listen, new.access.systemd_socket) != (&old.access.listen, old.access.systemd_socket) {
        return fixed("server.listen");
    }
    if new.access.web_config_file != old.access.web_config_file {
        return fixed("server.web_config_file");
    }
    // It reads its file by itself, and never gives less than before.
    new.access.security = old.access.security.clone();
    if new.state_dir != old.state_dir {
        return fixed("state.dir");
    }
    if new.fleet != old.fleet {
        return fixed("fleet");
    }
    Ok(new)
}

fn rule<'a>(config: &'a Config, name: &str) -> Result<&'a Rule, Refused> {
    config.rules.iter().find(|rule| rule.name == name).ok_or_else(|| {
        let names: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
        Refused::NotFound(format!("there is no rule `{}`: use one of {}", printable(name), names.join(", ")))
    })
}

/// What a rule is to be triggered on: only what it admits, as for an alert.
fn target_of(config: &Config, rule: &Rule, name: Option<&str>) -> Result<Target, Refused> {
    let wrong = |detail: String| Refused::Wrong(format!("rule {}: {detail}", rule.name));
    let target = match name {
        Some(name) => rule
            .selector
            .admit(name)
            .map_err(|no| wrong(format!("it does not act on {}: {}", printable(name), no.reason())))?,
        None => rule
            .selector
            .only()
            .ok_or_else(|| wrong(format!("say on which {} it is to act", rule.selector.kind.as_str())))?,
    };
    if target.kind() == Kind::Unit && config.deny.denies(target.name()) {
        return Err(wrong(format!("{} is never touched", target.name())));
    }
    Ok(target)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| Refused::Wrong(format!("the order cannot be read: {error}")))
}

fn refuse(status: StatusCode, message: &str) -> Response {
    reply::json(status, &json!({"error": message}))
}

/// How long the command line waits for the answer to an order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30);

/// Gives an order to the remediator that runs on this host with this configuration; answers what it said.
///
/// # Errors
/// When none runs, or it refuses.
pub async fn order(config: &Config, path: &str, body: &serde_json::Value) -> anyhow::Result<String> {
    let answer = reach(config, |client| client.post(format!("http://localhost{path}")).json(body)).await?;
    let said: BTreeMap<String, String> = answer.json().await?;
    match (said.get("message"), said.get("error")) {
        (Some(message), _) => Ok(message.clone()),
        (None, Some(error)) => Err(anyhow::anyhow!("{error}")),
        (None, None) => Err(anyhow::anyhow!("the remediator gave no answer")),
    }
}

/// Sends a request to the remediator that runs on this host with this configuration.
///
/// # Errors
/// When none answers.
pub(crate) async fn reach(
    config: &Config,
    request: impl Fn(&Client) -> RequestBuilder,
) -> anyhow::Result<reqwest::Response> {
    // reqwest takes the process's default provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // In the fallback where the process began there; where it fell back later, still in the state's own place.
    let places = config.places();
    let fallback = places.fallback.iter().map(|dir| dir.join(SOCKET)).find(|socket| socket.exists());
    let socket = fallback.unwrap_or_else(|| places.dir.join(SOCKET));
    let client = outgoing::client(|| Client::builder().unix_socket(socket.as_path()).timeout(ORDER_TIMEOUT))?;
    request(&client).send().await.map_err(|error| {
        let cure = "it runs as another user (try as root), with another state.dir, or not at all";
        // Only the innermost cause says more than that the request failed.
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let cause = causes.last().map(ToString::to_string).unwrap_or_default();
        anyhow::anyhow!("no remediator answers at {}: {cure} ({cause})", socket.display())
    })
}
