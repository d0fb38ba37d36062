//! The Docker engine: connecting, listing and inspecting containers, disk usage. Nothing here changes anything.
//!
//! Questions go over a small bounded client of our own ([`http`]), not over bollard: it reads answers of any size,
//! its time limit ends with the response headers, its models refuse a whole answer for one word they do not know,
//! it cannot read the disk usage of most engines, and takes an event of any length. It is here for who changes things:
//! [`Docker::client`].

mod build_cache;
mod container;
mod disk_usage;
mod events;
#[cfg(any(test, feature = "fake-docker"))]
pub mod fake;
mod health;
mod http;
mod images;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use hyper::body::Bytes;
use serde::{Deserialize, de::DeserializeOwned};

pub use build_cache::{BuildCache, CacheRecord};
pub use container::{Container, Listed, State};
pub use disk_usage::{DiskUsage, Object, ObjectUsage, TYPE_FILTER_SINCE};
pub use events::{Event, Events};
pub use health::{Health, HealthDetail, LastProbe, OUTPUT_LIMIT, ProbeResult, classify_probe};
use http::Host;
pub use images::Image;

/// The limit of one question. The caller may have a shorter one.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The limit of [`Docker::disk_usage`], which walks filesystems.
pub const DISK_USAGE_LIMIT: Duration = Duration::from_secs(60);

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// A connection to one engine. It connects at the first question, and again after whatever went wrong.
#[derive(Debug, Clone)]
pub struct Docker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Result<Host, Error>,
    configured: bool,
    /// Both are kept for the negotiated version only: every request opens a connection of its own.
    client: Mutex<Option<bollard::Docker>>,
    api_version: Mutex<Option<ApiVersion>>,
    /// For [`Docker::ping`] alone.
    kept: Mutex<Option<http::Kept>>,
}

/// Major and minor.
type ApiVersion = (u32, u32);

/// The newest API version whose answers are known here; a newer engine is asked in this one.
const NEWEST_KNOWN: ApiVersion = (1, 53);

/// Why the engine gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// `DOCKER_HOST` is something this program cannot use.
    #[error("cannot use the Docker host `{host}`: {cure}")]
    Host {
        /// As given.
        host: String,
        /// What to write instead.
        cure: String,
    },
    /// No socket, nothing listening, or no permission.
    #[error("cannot reach the Docker engine: {0}")]
    Unreachable(String),
    /// No whole answer in time.
    #[error("the Docker engine did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The engine said no.
    #[error("the Docker engine refused with status {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The engine's words, cut at 512 bytes.
        message: String,
    },
    /// The connection broke before the end of the answer.
    #[error("the connection to the Docker engine broke: {0}")]
    Broken(String),
    /// The answer is not what this program understands.
    #[error("the Docker engine's answer cannot be read: {0}")]
    Answer(String),
}

impl Error {
    /// One word for labels and reason codes.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Host { .. } => "unsupported_host",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) => "timeout",
            Self::Refused { .. } => "refused",
            Self::Broken(_) => "broken",
            Self::Answer(_) => "bad_answer",
        }
    }

    fn refused(status: u16, message: &str) -> Self {
        Self::Refused { status, message: cut(message.trim()).to_owned() }
    }

    fn broken(error: &dyn std::error::Error) -> Self {
        Self::Broken(with_causes(error))
    }
}

/// What the engine says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// `20.10.24+dfsg1`.
    pub version: String,
    /// The newest API version it speaks.
    pub api_version: (u32, u32),
    /// `overlay2`, `vfs` …
    pub storage_driver: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Where it keeps its data (`DockerRootDir`), in the engine's own mount namespace.
    pub root_dir: PathBuf,
    /// The storage driver's own lines: `("Backing Filesystem", "extfs")`.
    pub driver_status: Vec<(String, String)>,
}

impl Docker {
    /// The engine of `DOCKER_HOST` (`unix://` or plain `tcp://`), or the one behind `/var/run/docker.sock`.
    pub fn from_env() -> Self {
        let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        let wants_tls = std::env::var_os("DOCKER_TLS_VERIFY").is_some_and(|value| !value.is_empty());
        match host {
            Some(host) if wants_tls && !host.starts_with("unix://") => Self::new(
                Err(Error::Host {
                    host,
                    cure: "TLS (DOCKER_TLS_VERIFY) is not supported; use the unix socket".into(),
                }),
                true,
            ),
            Some(host) => Self::new(Host::parse(&host), true),
            None => Self::new(Host::parse(DEFAULT_HOST), false),
        }
    }

    /// The engine at `unix:///path` or `tcp://host:port`.
    pub fn at(host: &str) -> Self {
        Self::new(Host::parse(host), true)
    }

    fn new(host: Result<Host, Error>, configured: bool) -> Self {
        Self(Arc::new(Inner {
            host,
            configured,
            client: Mutex::new(None),
            api_version: Mutex::new(None),
            kept: Mutex::new(None),
        }))
    }

    /// Whether somebody named this engine: then its absence is a failure, else perhaps there is just no Docker here.
    pub fn is_configured(&self) -> bool {
        self.0.configured
    }

    /// Whether there is a socket to connect to; always true for TCP.
    pub fn socket_exists(&self) -> bool {
        match &self.0.host {
            Ok(Host::Unix(path)) => path.exists(),
            Ok(Host::Tcp(_)) | Err(_) => true,
        }
    }

    /// A bollard client, version negotiated. Its own time limit covers only the way to the response headers: limit
    /// every call as a whole, and give it a longer one (`with_timeout`) for a prune, whose headers come at the end.
    /// After a call that failed, use [`Docker::forget`].
    ///
    /// # Errors
    /// When the engine cannot be reached or does not answer within [`CALL_LIMIT`].
    pub async fn client(&self) -> Result<bollard::Docker, Error> {
        if let Some(client) = lock(&self.0.client).clone() {
            return Ok(client);
        }
        let url = self.host()?.url();
        let client = bollard::Docker::connect_with_host(&url).map_err(from_bollard)?;
        let client =
            limited(CALL_LIMIT, async { client.negotiate_version().await.map_err(from_bollard) }).await?;
        *lock(&self.0.client) = Some(client.clone());
        Ok(client)
    }

    /// Drops what was negotiated: the next question finds out anew which engine is there.
    pub fn forget(&self) {
        *lock(&self.0.client) = None;
        *lock(&self.0.api_version) = None;
    }

    /// What the engine says about itself.
    ///
    /// # Errors
    /// When it cannot be reached or answers nonsense.
    pub async fn engine(&self) -> Result<Engine, Error> {
        let version = self.version().await?;
        let info: Info = decode("/info", &self.get("/info", CALL_LIMIT).await?)?;
        make_engine(version, info)
    }

    /// Whether the engine answers at all: the cheapest question there is, whatever it has to look after. Its connection
    /// is kept for the next time.
    ///
    /// # Errors
    /// When it cannot be reached or says no.
    pub async fn ping(&self) -> Result<(), Error> {
        const PATH: &str = "/_ping";
        let host = self.host()?;
        let kept = lock(&self.0.kept).take();
        let asking = async {
            // An engine that was started anew has closed it.
            if let Some(mut kept) = kept
                && kept.ask(PATH).await.is_ok()
            {
                return Ok(kept);
            }
            let mut kept = http::Kept::open(host).await?;
            kept.ask(PATH).await.map(|()| kept)
        };
        let kept = self.judged(limited(CALL_LIMIT, asking).await)?;
        *lock(&self.0.kept) = Some(kept);
        Ok(())
    }

    /// Follows what changes about containers, beginning with what the engine still knows since then.
    ///
    /// # Errors
    /// When the engine cannot be reached, or has not begun to answer within [`CALL_LIMIT`].
    pub async fn events(&self, since: SystemTime) -> Result<Events, Error> {
        let (major, minor) = self.api_version().await?;
        let path = format!("/v{major}.{minor}{}", events::path(since));
        let answer = self.judged(limited(CALL_LIMIT, http::open(self.host()?, &path)).await)?;
        Ok(Events::new(answer))
    }

    /// All containers, stopped ones too.
    ///
    /// # Errors
    /// When the engine cannot be reached, or the answer is no list of containers.
    pub async fn containers(&self) -> Result<Vec<Listed>, Error> {
        container::parse_list(&self.get("/containers/json?all=1", CALL_LIMIT).await?)
    }

    /// One container in full; `None` when there is no such container (any more).
    ///
    /// # Errors
    /// When the engine cannot be reached, or the answer is no container.
    pub async fn inspect(&self, id_or_name: &str) -> Result<Option<Container>, Error> {
        // It becomes a part of a path: anything else would ask the engine something else.
        if !is_container_name(id_or_name) {
            return Ok(None);
        }
        match self.get(&format!("/containers/{id_or_name}/json"), CALL_LIMIT).await {
            Ok(body) => container::parse_inspect(&body).map(Some),
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All images but those that are only parts of others.
    ///
    /// # Errors
    /// When the engine cannot be reached, or the answer is no list of images.
    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        images::parse_list(&self.get("/images/json", CALL_LIMIT).await?)
    }

    /// When an image got its newest name on this engine, which is when it was pulled or built here; `None` when it never
    /// had one, or there is no such image (any more).
    ///
    /// # Errors
    /// When the engine cannot be reached, or the answer is no image.
    pub async fn image_tagged(&self, id: &str) -> Result<Option<SystemTime>, Error> {
        // It becomes a part of a path: anything else would ask the engine something else.
        if !images::is_image_id(id) {
            return Ok(None);
        }
        match self.get(&format!("/images/{id}/json"), CALL_LIMIT).await {
            Ok(body) => images::parse_tagged(&body),
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What these kinds of objects take on disk. It can be expensive for the engine (volumes and containers are
    /// walked): one at a time, seldom. Below [`TYPE_FILTER_SINCE`] the engine looks at everything whatever is asked.
    ///
    /// # Errors
    /// When the engine cannot be reached, takes longer than [`DISK_USAGE_LIMIT`], or answers in an unknown shape.
    pub async fn disk_usage(&self, kinds: &[Object]) -> Result<DiskUsage, Error> {
        let asked = kinds.to_vec();
        self.count(kinds, move |body| DiskUsage::read(body, &asked)).await
    }

    /// The build cache. As expensive as [`Docker::disk_usage`].
    ///
    /// # Errors
    /// As [`Docker::disk_usage`].
    pub async fn build_cache(&self) -> Result<BuildCache, Error> {
        self.count(&[Object::BuildCache], BuildCache::read).await
    }

    /// Has the engine count, and reads what it says while it comes.
    async fn count<T: Send + 'static>(
        &self,
        kinds: &[Object],
        read: impl FnOnce(disk_usage::Pieces) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (major, minor) = self.api_version().await?;
        let path = format!("/v{major}.{minor}{}", disk_usage::path((major, minor), kinds));
        let asking = async { disk_usage::receive(http::open(self.host()?, &path).await?, read).await };
        self.judged(limited(DISK_USAGE_LIMIT, asking).await)
    }

    /// The API version in which the engine is asked: its newest, or the newest that is known here.
    ///
    /// # Errors
    /// When the engine cannot be reached or answers nonsense.
    pub async fn api_version(&self) -> Result<(u32, u32), Error> {
        let kept = *lock(&self.0.api_version);
        match kept {
            Some(version) => Ok(version),
            None => self.version().await?.api_version().map(|version| version.min(NEWEST_KNOWN)),
        }
    }

    /// Asks the one path that needs no version, and keeps what it says.
    async fn version(&self) -> Result<Version, Error> {
        let host = self.host()?;
        let body = self.judged(limited(CALL_LIMIT, http::get(host, "/version")).await)?;
        let version: Version = decode("/version", &body)?;
        *lock(&self.0.api_version) = Some(version.api_version()?.min(NEWEST_KNOWN));
        Ok(version)
    }

    /// Asks for a path below the API version.
    async fn get(&self, path: &str, limit: Duration) -> Result<Bytes, Error> {
        let (major, minor) = self.api_version().await?;
        let path = format!("/v{major}.{minor}{path}");
        self.judged(limited(limit, http::get(self.host()?, &path)).await)
    }

    fn host(&self) -> Result<&Host, Error> {
        self.0.host.as_ref().map_err(Clone::clone)
    }

    /// The engine may be another one after a broken connection, and after 400, which is what an engine says that no
    /// longer speaks the negotiated version.
    fn judged<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(
            Error::Unreachable(_) | Error::Timeout(_) | Error::Broken(_) | Error::Refused { status: 400, .. },
        ) = result
        {
            self.forget();
        }
        result
    }
}

/// What evenkeel reads of `GET /version`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    #[serde(default)]
    version: String,
    api_version: String,
}

impl Version {
    fn api_version(&self) -> Result<ApiVersion, Error> {
        self.api_version
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            .ok_or_else(|| Error::Answer(format!("/version: no API version in `{}`", cut(&self.api_version))))
    }
}

/// What evenkeel reads of `GET /info`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    driver: Option<String>,
    driver_status: Option<Vec<Vec<String>>>,
    docker_root_dir: Option<String>,
    cgroup_version: Option<String>,
}

fn make_engine(version: Version, info: Info) -> Result<Engine, Error> {
    let pair = |line: Vec<String>| {
        let mut words = line.into_iter();
        Some((words.next()?, words.next()?))
    };
    Ok(Engine {
        api_version: version.api_version()?,
        version: version.version,
        storage_driver: info.driver.unwrap_or_default(),
        // Engines before 20.10 know only version 1 and do not say so.
        cgroup_version: info
            .cgroup_version
            .filter(|version| !version.is_empty())
            .unwrap_or_else(|| "1".into()),
        root_dir: info.docker_root_dir.unwrap_or_default().into(),
        driver_status: info.driver_status.unwrap_or_default().into_iter().filter_map(pair).collect(),
    })
}

fn decode<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Answer(cut(&format!("{path}: {error}")).to_owned()))
}

async fn limited<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(Error::Timeout(limit)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Foreign text in errors is bounded.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(512)]
}

/// The engine's own rule for names (ids are among them): `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
fn is_container_name(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn from_bollard(error: bollard::errors::Error) -> Error {
    use bollard::errors::Error as Bollard;
    match error {
        Bollard::DockerResponseServerError { status_code, message } => Error::refused(status_code, &message),
        Bollard::SocketNotFoundError(path) => Error::Unreachable(format!("no socket {path}")),
        Bollard::HyperLegacyError { err } if err.is_connect() => Error::Unreachable(with_causes(&err)),
        Bollard::RequestTimeoutError => Error::Timeout(CALL_LIMIT),
        Bollard::JsonDataError { message, .. } => Error::Answer(message),
        Bollard::APIVersionParseError {} => Error::Answer("no API version".into()),
        other => Error::broken(&other),
    }
}

/// hyper keeps the interesting part of an error in its sources.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = {
    use crate::foreign_input::{Parser, text};
    &[
        Parser {
            name: "Docker container list",
            parse: |bytes| drop(container::parse_list(bytes)),
            samples: &[
                r#"[{"Id":"0a1b","Names":["/shop-web","/shop-db/web"],"Image":"nginx:1","ImageID":"sha256:1","Created":1763771234,"State":"running","Status":"Up 12 minutes (unhealthy)","Labels":{"a":"b"},"Health":{"Status":"healthy","FailingStreak":3}}]"#,
                r#"[{"Id":"0a1b","Names":null,"State":"exited","Status":"Exited (137) 3 weeks ago","Labels":null}]"#,
            ],
        },
        Parser {
            name: "Docker inspect",
            parse: |bytes| drop(container::parse_inspect(bytes)),
            samples: &[
                r#"{"Id":"0a1b","Name":"/shop-web","Created":"2026-11-22T00:00:00.123456789Z","RestartCount":3,"LogPath":"/var/lib/docker/x-json.log","State":{"Status":"running","ExitCode":0,"OOMKilled":false,"Pid":42,"StartedAt":"2026-11-22T00:00:01Z","FinishedAt":"0001-01-01T00:00:00Z","Health":{"Status":"unhealthy","FailingStreak":2,"Log":[{"Start":"2026-11-22T00:00:02+01:00","End":"2026-11-22T00:00:03+01:00","ExitCode":-1,"Output":"OCI runtime exec failed: exec: \"wget\": executable file not found in $PATH"}]}},"HostConfig":{"RestartPolicy":{"Name":"unless-stopped"},"NetworkMode":"bridge","AutoRemove":false,"LogConfig":{"Type":"json-file","Config":{"max-size":"10m"}}},"Config":{"Image":"nginx:1","Labels":{"com.docker.compose.project":"shop"},"Healthcheck":{"Test":["CMD-SHELL","wget -q localhost"]}}}"#,
            ],
        },
        Parser {
            name: "Docker disk usage",
            parse: |bytes| drop(DiskUsage::read(bytes, &Object::ALL)),
            samples: &[
                r#"{"LayersSize":1092588,"Images":[{"Id":"sha256:1","Size":1092588,"SharedSize":0,"Containers":1}],"Containers":[{"Id":"e","SizeRw":2,"State":"running"}],"Volumes":[{"Name":"v","UsageData":{"Size":10920,"RefCount":-1}}],"BuildCache":[{"ID":"c","InUse":false,"Shared":true,"Size":51}]}"#,
                r#"{"ImageUsage":{"ActiveCount":1,"TotalCount":2,"TotalSize":9223372036854775807,"Reclaimable":-1},"ContainerUsage":{},"VolumeUsage":null,"BuildCacheUsage":{"TotalSize":1,"Items":[]}}"#,
            ],
        },
        Parser {
            name: "Docker version and info",
            parse: |bytes| {
                let (version, info) = bytes.split_at(bytes.len() / 2);
                if let (Ok(version), Ok(info)) = (decode("/version", version), decode("/info", info)) {
                    drop(make_engine(version, info));
                }
                if let Ok(version) = decode::<Version>("/version", bytes) {
                    let _ = version.api_version();
                }
            },
            samples: &[
                r#"{"Version":"26.1.5","ApiVersion":"1.45"}"#,
                r#"{"ApiVersion":"1.45"}    {"Driver":"o","CgroupVersion":"2"}"#,
            ],
        },
        Parser {
            name: "Docker events",
            parse: events::feed,
            samples: &[
                "{\"Type\":\"container\",\"Action\":\"die\",\"Actor\":{\"ID\":\"0a1b2c\",\"Attributes\":{\"exitCode\":\"137\"}},\"timeNano\":1763771234567890123}\n{\"Actor\":{\"ID\":\"ff\"}}\r\n\n",
            ],
        },
        Parser {
            name: "Docker status texts and health output",
            parse: |bytes| {
                let text = text(bytes);
                let _ = (Health::from_status_text(&text), Health::from_word(&text));
                for code in [-1, 0, 1, 2, 126, 127, 137] {
                    let _ = classify_probe(code, &text);
                }
                drop(LastProbe::new(1, text.into_owned(), None));
            },
            samples: &[
                "Up 12 minutes (unhealthy)",
                "Up 2 seconds (health: starting)",
                "/bin/sh: 1: wget: not found\n",
                "OCI runtime exec failed: exec failed: unable to start container process: exec: \"wget\": executable file not found in $PATH: unknown",
                "Health check exceeded timeout (3s)",
                "sh: line 1: /usr/bin/probe: Permission denied\n",
            ],
        },
    ]
};
