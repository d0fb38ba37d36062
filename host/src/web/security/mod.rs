//! TLS, logins, headers and the rate limit of a server: exporter-toolkit's web configuration file, read again whenever
//! it or a file that it names has changed. Not here: bearer tokens (the remediator's own), which path needs what.

mod clients;
mod file;
mod passwords;
mod rate;
mod settings;
mod stamp;
mod tls;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderValue, WWW_AUTHENTICATE},
};
use rustls::ServerConfig;
use tokio::{sync::Semaphore, time::timeout};
use tracing::{error, info};

use self::{
    passwords::{Login, Passwords},
    rate::RateLimit,
    settings::Settings,
    stamp::{Stamp, stamp},
};
use super::{Response, reply};
use crate::{config::ConfigError, metrics::Family};

/// For looking whether files have changed; a disk that hangs must not hold requests up.
const LOOK: Duration = Duration::from_secs(1);

/// What protects a server. Cloning shares it.
#[derive(Clone, Default)]
pub struct Security {
    /// `None` for plain HTTP and everyone.
    file: Option<Arc<Watched>>,
    other: Option<OtherCredentials>,
}

/// Further credentials that stand for a login; see [`Security::accepting`].
type OtherCredentials = Arc<dyn Fn(&HeaderMap) -> bool + Send + Sync>;

/// The file, and what it says.
struct Watched {
    path: PathBuf,
    current: RwLock<Arc<Settings>>,
    reading: Mutex<Reading>,
    /// One looks at a time; whoever comes meanwhile takes what there is.
    turn: Arc<Semaphore>,
    passwords: Arc<Passwords>,
    rate: Option<RateLimit>,
}

/// The last reading.
struct Reading {
    /// Every file that counted, as it was before.
    files: Vec<(PathBuf, Stamp)>,
    good: bool,
    last_success: SystemTime,
}

/// What a web configuration gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offers {
    /// Nothing crosses the network in clear.
    pub tls: bool,
    /// Only its users get an answer.
    pub users: bool,
    /// Only clients with a certificate of its CA can connect.
    pub client_certificates: bool,
    /// Too many requests are refused.
    pub rate_limit: bool,
}

impl Offers {
    /// Whether it says who may ask.
    pub fn authentication(self) -> bool {
        self.users || self.client_certificates
    }
}

impl Security {
    /// What the file says, from now on.
    ///
    /// # Errors
    /// When it or a file that it names cannot be read, or says something that cannot be meant.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (mut files, last_success) = (Vec::new(), SystemTime::now());
        let settings = settings::load(path, &mut files)?;
        let passwords = Passwords::new().ok_or_else(|| {
            ConfigError::new(
                &path.display().to_string(),
                "the system has no randomness to give: try again later",
            )
        })?;
        let watched = Watched {
            path: path.to_owned(),
            rate: settings.rate.map(|(interval, burst)| RateLimit::new(interval, burst)),
            current: RwLock::new(Arc::new(settings)),
            reading: Mutex::new(Reading { files, good: true, last_success }),
            turn: Arc::new(Semaphore::new(1)),
            passwords: Arc::new(passwords),
        };
        Ok(Self { file: Some(Arc::new(watched)), other: None })
    }

    /// Also lets in whose headers `other` accepts, in place of a login.
    #[must_use]
    pub fn accepting(self, other: impl Fn(&HeaderMap) -> bool + Send + Sync + 'static) -> Self {
        Self { other: Some(Arc::new(other)), ..self }
    }

    /// What the file gives now. A later reading never gives less: see [`Watched::read_again`].
    pub fn offers(&self) -> Offers {
        self.file.as_ref().map(|file| file.current().offers()).unwrap_or_default()
    }

    /// Whether the last reading of the file succeeded; nothing without a file.
    pub fn families(&self) -> Vec<Family> {
        let Some(file) = &self.file else { return Vec::new() };
        let reading = file.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let last = reading.last_success.duration_since(UNIX_EPOCH).unwrap_or_default();
        vec![
            Family::gauge(
                "evenkeel_web_config_last_reload_successful",
                "Whether the web configuration was good when it was last read; if not, the one before it holds.",
            )
            .with(&[], f64::from(u8::from(reading.good))),
            Family::gauge(
                "evenkeel_web_config_last_reload_success_timestamp_seconds",
                "When the web configuration that holds was read.",
            )
            .with(&[], last.as_secs_f64()),
        ]
    }

    /// What holds now. Looks first whether a file has changed.
    pub(super) async fn refreshed(&self) -> Current {
        let Some(file) = &self.file else {
            return Current { security: self.clone(), settings: Arc::default() };
        };
        if let Ok(turn) = Arc::clone(&file.turn).try_acquire_owned() {
            let watched = Arc::clone(file);
            let look = tokio::task::spawn_blocking(move || {
                watched.read_again();
                drop(turn);
            });
            // Late or not, there is always a reading that holds.
            let _ = timeout(LOOK, look).await;
        }
        Current { settings: file.current(), security: self.clone() }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").field("file", &self.file.as_ref().map(|file| &file.path)).finish()
    }
}

impl Watched {
    fn current(&self) -> Arc<Settings> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again if something has changed since. What is bad, or would take away what protects the server
    /// now, is said once and changes nothing: whoever edits a file in a hurry does not open a host to the network.
    fn read_again(&self) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if reading.files.iter().all(|(path, before)| stamp(path) == *before) {
            return;
        }
        let (mut files, now) = (Vec::new(), SystemTime::now());
        let outcome = settings::load(&self.path, &mut files).and_then(|settings| {
            let lost = lost(self.current().offers(), settings.offers());
            match lost {
                None => Ok(settings),
                Some(what) => Err(ConfigError::new(&self.path.display().to_string(), what)),
            }
        });
        reading.files = files;
        reading.good = outcome.is_ok();
        match outcome {
            Ok(settings) => {
                reading.last_success = now;
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
                info!(file = %self.path.display(), "the web configuration was read again");
            }
            Err(error) => {
                error!(%error, "the web configuration is bad, the one before it still holds");
            }
        }
    }
}

/// What a running server would no longer do.
fn lost(now: Offers, then: Offers) -> Option<&'static str> {
    match () {
        () if now.tls && !then.tls => Some("TLS would be turned off: that takes a restart"),
        () if !now.tls && then.tls => Some("TLS would be turned on: that takes a restart"),
        () if now.users && !then.users => {
            Some("basic_auth_users would be gone: letting everyone in takes a restart")
        }
        () if now.client_certificates && !then.client_certificates => {
            Some("clients would no longer need a certificate: that takes a restart")
        }
        () => None,
    }
}

/// The settings at one moment, for one connection or request.
pub(super) struct Current {
    security: Security,
    settings: Arc<Settings>,
}

impl Current {
    /// For the handshake; `None` for plain HTTP.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.settings.tls.as_ref().map(|tls| Arc::clone(&tls.config))
    }

    /// Whether a certificate that the client has shown was verified.
    pub(super) fn verifies_certificates(&self) -> bool {
        self.settings.tls.as_ref().is_some_and(|tls| tls.verifies)
    }

    /// Lets a request in, or says why not. `Ok(true)` when it carries the login of a user, or what stands for one.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<bool, Response> {
        let Some(file) = &self.security.file else { return Ok(self.has_other_credentials(headers)) };
        if file.rate.as_ref().is_some_and(|rate| !rate.allows()) {
            return Err(reply::text(StatusCode::TOO_MANY_REQUESTS, "too many requests, try again later\n"));
        }
        if self.has_other_credentials(headers) {
            return Ok(true);
        }
        if self.settings.users.is_empty() {
            return Ok(false);
        }
        if let Some(login) = Login::of(headers)
            && file.passwords.accept(&self.settings.users, login).await
        {
            return Ok(true);
        }
        let mut response = reply::text(StatusCode::UNAUTHORIZED, "unauthorized\n");
        let challenge = HeaderValue::from_static("Basic realm=\"evenkeel\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        Err(response)
    }

    /// Puts the configured headers on an answer; they win over its own.
    pub(super) fn decorate(&self, response: &mut Response) {
        self.settings.decorate(response.headers_mut());
    }

    fn has_other_credentials(&self, headers: &HeaderMap) -> bool {
        self.security.other.as_ref().is_some_and(|accepts| accepts(headers))
    }
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[
    crate::foreign_input::Parser {
        name: "web configuration",
        parse: |bytes| settings::parse(&crate::foreign_input::text(bytes)),
        samples: &[
            "tls_server_config:\n  cert: |\n    -----BEGIN CERTIFICATE-----\n    MIIB\n    -----END CERTIFICATE-----\n  key: |\n    -----BEGIN PRIVATE KEY-----\n    MIIB\n    -----END PRIVATE KEY-----\n  client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [a.example, 192.0.2.1]\n  min_version: TLS13\n  cipher_suites: [TLS_AES_128_GCM_SHA256]\n  curve_preferences: [X25519]\n",
            "basic_auth_users: {alice: $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG}\nrate_limit: {interval: 1s, burst: 20}\n",
            "http_server_config: {http2: true, headers: {X-Frame-Options: deny, Content-Security-Policy: \"default-src 'self'\"}}\n",
        ],
    },
    crate::foreign_input::Parser {
        name: "Authorization header",
        parse: |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
            let mut headers = HeaderMap::new();
            headers.insert(hyper::header::AUTHORIZATION, value);
            let _ = Login::of(&headers);
        },
        samples: &["Basic YWxpY2U6b3BlbiBzZXNhbWU=", "Bearer 0123456789abcdef"],
    },
];
