//! Containers as plain structs, read from the engine's JSON.
//!
//! Not with bollard's models: they refuse a whole list for one enumerated word they do not know (`"State":"configured"`
//! from Podman, a state of a future engine). Here words stay words until somebody asks what they mean.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::{
    Error, decode,
    health::{Health, HealthDetail, LastProbe},
};

/// What a container is doing, in the engine's words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Made and not started, or its start failed.
    Created,
    /// Running, healthy or not.
    Running,
    /// Frozen.
    Paused,
    /// Between an exit and the start that its restart policy wants.
    Restarting,
    /// Being removed.
    Removing,
    /// Stopped.
    Exited,
    /// Half removed; only an engine restart or a forced removal helps.
    Dead,
    /// A word that is not Docker's (Podman's `configured`), kept as it came.
    Other(String),
}

impl State {
    /// The seven states of Docker, in the order they are published.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Running,
        Self::Paused,
        Self::Restarting,
        Self::Removing,
        Self::Exited,
        Self::Dead,
    ];

    /// The engine's word. For [`State::Other`] whatever came: not fit for a label.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
            Self::Other(word) => word,
        }
    }

    fn from_word(word: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == word)
            .unwrap_or_else(|| Self::Other(word.to_owned()))
    }
}

/// One line of the container list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The full id.
    pub id: String,
    /// Without the slash; the short id when the engine gives none (a container being removed).
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// English: `Up 5 minutes (healthy)`.
    pub status_text: String,
    /// As the user wrote it; an id when the image lost its tag.
    pub image: String,
    /// `sha256:…`.
    pub image_id: String,
    /// All labels of the container, its image's included.
    pub labels: BTreeMap<String, String>,
    /// Seconds since the epoch.
    pub created: Option<i64>,
    /// From the list where the engine has it (API 1.52), else from the status text.
    pub health: Health,
}

impl Listed {
    /// The least time that this container has been up (or down, when stopped) according to the engine's rounded text.
    /// `None` when the text does not say, as for a container that was never started.
    pub fn unchanged_for(&self) -> Option<Duration> {
        match self.state {
            State::Running | State::Paused | State::Exited => least_age(&self.status_text),
            _ => None,
        }
    }
}

/// One container in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The full id.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// `None` when no healthcheck ever ran.
    pub health: Option<HealthDetail>,
    /// Restarts by its restart policy since it was last started by hand; `docker start` sets it to 0.
    pub restart_count: u64,
    /// Of the last run; 0 while the first one goes on.
    pub exit_code: i64,
    /// The engine saw the kernel kill something in the last run for memory. Best effort by the engine.
    pub oom_killed: bool,
    /// When it was made.
    pub created: Option<SystemTime>,
    /// When it was last started; `None` when never.
    pub started: Option<SystemTime>,
    /// When it last ended; `None` when never.
    pub finished: Option<SystemTime>,
    /// As the user wrote it.
    pub image: String,
    /// `sha256:…`.
    pub image_id: String,
    /// `no`, `always`, `unless-stopped`, `on-failure`, or whatever the engine says.
    pub restart_policy: String,
    /// Removed when it ends (`--rm`).
    pub auto_remove: bool,
    /// All labels of the container, its image's included.
    pub labels: BTreeMap<String, String>,
    /// `host`, `bridge`, `container:…` or a network's name.
    pub network_mode: String,
    /// `host`, `container:…`, or empty for its own.
    pub pid_mode: String,
    /// `private`, `shareable`, `host`, `container:…`, or empty for the engine's default.
    pub ipc_mode: String,
    /// On the host; 0 when not running.
    pub pid: i64,
    /// Bytes of memory that it may have; `None` without a limit.
    pub memory_limit: Option<u64>,
    /// The file its output goes to, in the engine's own mount namespace; `None` where the engine tells none.
    pub log_path: Option<PathBuf>,
    /// Whether the engine keeps that file from growing without end.
    pub has_log_rotation: bool,
    /// A healthcheck is configured (by the container or its image) and not disabled.
    pub has_healthcheck: bool,
}

/// Reads `GET /containers/json`.
pub(super) fn parse_list(body: &[u8]) -> Result<Vec<Listed>, Error> {
    let list: Vec<Summary> = decode("/containers/json", body)?;
    Ok(list.into_iter().map(listed).collect())
}

/// Reads `GET /containers/{id}/json`.
pub(super) fn parse_inspect(body: &[u8]) -> Result<Container, Error> {
    decode("/containers/{id}/json", body).map(container)
}

/// What evenkeel reads of one entry of the list. `Id` is required: without it this is no container.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: String,
    names: Option<Vec<String>>,
    image: Option<String>,
    #[serde(rename = "ImageID")]
    image_id: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    created: Option<i64>,
    state: Option<String>,
    status: Option<String>,
    health: Option<SummaryHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SummaryHealth {
    status: Option<String>,
}

fn listed(entry: Summary) -> Listed {
    let state = State::from_word(&entry.state.unwrap_or_default());
    let status_text = entry.status.unwrap_or_default();
    let health = match (&state, entry.health.and_then(|health| health.status)) {
        (State::Running, Some(word)) => Health::from_word(&word),
        (State::Running, None) => Health::from_status_text(&status_text),
        _ => Health::None,
    };
    Listed {
        name: name_of(entry.names.as_deref().unwrap_or_default(), &entry.id),
        id: entry.id,
        state,
        status_text,
        image: entry.image.unwrap_or_default(),
        image_id: entry.image_id.unwrap_or_default(),
        labels: entry.labels.unwrap_or_default(),
        created: entry.created,
        health,
    }
}

/// The list has link aliases (`/web/db`) among the names; the container's own has one slash.
fn name_of(names: &[String], id: &str) -> String {
    names
        .iter()
        .map(|name| name.strip_prefix('/').unwrap_or(name))
        .find(|name| !name.is_empty() && !name.contains('/'))
        .map_or_else(|| id.chars().take(12).collect(), str::to_owned)
}

/// What evenkeel reads of an inspect answer; the environment is not among it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: Option<String>,
    created: Option<String>,
    restart_count: Option<i64>,
    image: Option<String>,
    log_path: Option<String>,
    #[serde(default)]
    state: InspectedState,
    #[serde(default)]
    config: InspectedConfig,
    #[serde(default)]
    host_config: InspectedHostConfig,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    status: Option<String>,
    #[serde(rename = "OOMKilled")]
    oom_killed: Option<bool>,
    pid: Option<i64>,
    exit_code: Option<i64>,
    started_at: Option<String>,
    finished_at: Option<String>,
    health: Option<InspectedHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedHealth {
    status: Option<String>,
    failing_streak: Option<i64>,
    log: Option<Vec<ProbeRecord>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProbeRecord {
    end: Option<String>,
    exit_code: Option<i64>,
    output: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    image: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    healthcheck: Option<HealthConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthConfig {
    test: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct InspectedHostConfig {
    restart_policy: Option<RestartPolicy>,
    auto_remove: Option<bool>,
    network_mode: Option<String>,
    pid_mode: Option<String>,
    ipc_mode: Option<String>,
    memory: Option<i64>,
    log_config: Option<LogConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LogConfig {
    #[serde(rename = "Type")]
    driver: Option<String>,
    #[serde(rename = "Config")]
    options: Option<BTreeMap<String, String>>,
}

impl LogConfig {
    /// Only the driver `json-file` writes a file without end, unless it was given a size: `local` rotates by itself,
    /// and the others hand the lines to something else.
    fn has_rotation(&self) -> bool {
        let size = self.options.as_ref().and_then(|options| options.get("max-size"));
        match self.driver.as_deref() {
            Some("json-file") => size.is_some_and(|size| size != "-1"),
            _ => size.is_none_or(|size| size != "-1"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: Option<String>,
}

fn container(answer: Inspected) -> Container {
    let Inspected { state: raw, config, host_config, .. } = answer;
    let state = State::from_word(&raw.status.unwrap_or_default());
    let health = raw.health.map(|health| HealthDetail {
        status: match state {
            State::Running => Health::from_word(&health.status.unwrap_or_default()),
            _ => Health::None,
        },
        failing_streak: unsigned(health.failing_streak),
        last: health.log.unwrap_or_default().pop().map(last_probe),
    });
    let test = config.healthcheck.and_then(|check| check.test).unwrap_or_default();
    let policy = host_config.restart_policy.and_then(|policy| policy.name).filter(|name| !name.is_empty());
    Container {
        name: name_of(answer.name.as_slice(), &answer.id),
        id: answer.id,
        state,
        health,
        restart_count: unsigned(answer.restart_count),
        exit_code: raw.exit_code.unwrap_or_default(),
        oom_killed: raw.oom_killed.unwrap_or_default(),
        created: time(answer.created.as_deref()),
        started: time(raw.started_at.as_deref()),
        finished: time(raw.finished_at.as_deref()),
        image: config.image.unwrap_or_default(),
        image_id: answer.image.unwrap_or_default(),
        restart_policy: policy.unwrap_or_else(|| "no".to_owned()),
        auto_remove: host_config.auto_remove.unwrap_or_default(),
        labels: config.labels.unwrap_or_default(),
        network_mode: host_config.network_mode.unwrap_or_default(),
        pid_mode: host_config.pid_mode.unwrap_or_default(),
        ipc_mode: host_config.ipc_mode.unwrap_or_default(),
        pid: raw.pid.unwrap_or_default(),
        memory_limit: Some(unsigned(host_config.memory)).filter(|bytes| *bytes > 0),
        log_path: answer.log_path.filter(|path| !path.is_empty()).map(PathBuf::from),
        has_log_rotation: host_config.log_config.is_none_or(|log| log.has_rotation()),
        has_healthcheck: test.first().is_some_and(|first| first != "NONE"),
    }
}

fn last_probe(record: ProbeRecord) -> LastProbe {
    let end = time(record.end.as_deref());
    LastProbe::new(record.exit_code.unwrap_or_default(), record.output.unwrap_or_default(), end)
}

fn unsigned(number: Option<i64>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

/// RFC 3339, in any offset. Docker writes year 1 for "never".
pub(super) fn time(text: Option<&str>) -> Option<SystemTime> {
    let timestamp: jiff::Timestamp = text?.parse().ok()?;
    (timestamp.as_second() > 0).then(|| timestamp.into())
}

/// The lower bound of the age in a status text: `Up 5 minutes (healthy)`, `Exited (0) About an hour ago`.
/// The engine rounds hours to the nearest and cuts everything else (go-units `HumanDuration`).
fn least_age(status_text: &str) -> Option<Duration> {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const HALF_HOUR: u64 = HOUR / 2;
    let age = match status_text.strip_prefix("Up ") {
        Some(rest) => rest.split_once(" (").map_or(rest, |(age, _)| age),
        None => status_text.strip_prefix("Exited (")?.split_once(") ")?.1.strip_suffix(" ago")?,
    };
    let seconds = match age {
        "Less than a second" => 0,
        "About a minute" => MINUTE,
        "About an hour" => HOUR,
        _ => {
            let (number, unit) = age.split_once(' ')?;
            let number: u64 = number.parse().ok().filter(|number| *number < 10_000)?;
            match unit {
                "second" | "seconds" => number,
                "minutes" => number * MINUTE,
                "hours" => number * HOUR - HALF_HOUR.min(number * HOUR),
                "days" => (number * 24 * HOUR).saturating_sub(HALF_HOUR),
                "weeks" => (number * 7 * 24 * HOUR).saturating_sub(HALF_HOUR),
                "months" => (number * 30 * 24 * HOUR).saturating_sub(HALF_HOUR),
                "years" => (number * 365 * 24 * HOUR).saturating_sub(HALF_HOUR),
                _ => return None,
            }
        }
    };
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::docker::ProbeResult;

    fn inspect(answer: &Value) -> Container {
        parse_inspect(answer.to_string().as_bytes()).unwrap()
    }

    fn list_one(entry: &Value) -> Listed {
        parse_list(format!("[{entry}]").as_bytes()).unwrap().remove(0)
    }

    fn inspect_answer() -> Value {
        json!({
            "Id": "4f1c", "Name": "/web", "Created": "2026-11-20T10:00:00.123456789Z", "RestartCount": 3,
            "Image": "sha256:aa",
            "State": {
                "Status": "running", "Running": true, "OOMKilled": true, "Pid": 42, "ExitCode": 0,
                "StartedAt": "2026-11-21T10:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z",
                "Health": {"Status": "unhealthy", "FailingStreak": 7, "Log": [
                    {"Start": "2026-11-21T10:00:00+02:00", "End": "2026-11-21T10:00:01+02:00", "ExitCode": 0, "Output": "fine"},
                    {"Start": "2026-11-21T10:00:30+02:00", "End": "2026-11-21T10:00:31.5+02:00", "ExitCode": 127, "Output": "/bin/sh: curl: not found\n"},
                ]},
            },
            "Config": {"Image": "web:1", "Env": ["PASSWORD=x"], "Labels": {"com.docker.compose.project": "shop"},
                       "Healthcheck": {"Test": ["CMD-SHELL", "curl localhost"]}},
            "HostConfig": {"RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0}, "AutoRemove": false,
                           "NetworkMode": "shop_default"},
        })
    }

    #[test]
    fn an_inspect_answer_becomes_a_container() {
        let seen = inspect(&inspect_answer());
        let health = seen.health.clone().unwrap();
        assert_eq!(
            (seen.name.as_str(), &seen.state, seen.restart_count, seen.pid),
            ("web", &State::Running, 3, 42)
        );
        assert!(seen.oom_killed && seen.has_healthcheck && seen.finished.is_none() && !seen.auto_remove);
        assert_eq!(seen.restart_policy, "unless-stopped");
        assert_eq!(seen.network_mode, "shop_default");
        assert_eq!(seen.labels["com.docker.compose.project"], "shop");
        assert_eq!((health.status, health.failing_streak), (Health::Unhealthy, 7));
        assert_eq!(health.broken(), Some(ProbeResult::CommandNotFound));
        let end = health.last.unwrap().end.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(end.as_secs_f64(), 1_795_248_031.5);
    }

    #[test]
    fn a_log_grows_without_end_only_where_the_engine_lets_it() {
        for (log, expected) in [
            (json!({"Type": "json-file", "Config": {}}), false),
            (json!({"Type": "json-file", "Config": null}), false),
            (json!({"Type": "json-file", "Config": {"max-file": "3"}}), false),
            (json!({"Type": "json-file", "Config": {"max-size": "-1"}}), false),
            (json!({"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}), true),
            (json!({"Type": "local", "Config": {}}), true),
            (json!({"Type": "local", "Config": {"max-size": "-1"}}), false),
            (json!({"Type": "journald", "Config": {}}), true),
            (json!({"Type": "none"}), true),
            (json!({}), true),
            (json!(null), true),
        ] {
            let mut answer = inspect_answer();
            answer["HostConfig"]["LogConfig"] = log.clone();
            assert_eq!(inspect(&answer).has_log_rotation, expected, "{log}");
        }
    }

    #[test]
    fn no_limit_and_no_log_are_none() {
        let mut answer = inspect_answer();
        answer["HostConfig"]["Memory"] = json!(0);
        answer["LogPath"] = json!("");
        let seen = inspect(&answer);
        assert_eq!((seen.memory_limit, seen.log_path), (None, None));
        answer["HostConfig"]["Memory"] = json!(67_108_864);
        answer["LogPath"] = json!("/var/lib/docker/containers/4f1c/4f1c-json.log");
        let seen = inspect(&answer);
        assert_eq!(seen.memory_limit, Some(67_108_864));
        assert_eq!(seen.log_path, Some("/var/lib/docker/containers/4f1c/4f1c-json.log".into()));
    }

    #[test]
    fn unknown_words_do_not_lose_a_container() {
        let mut answer = inspect_answer();
        answer["State"]["Status"] = json!("stopped");
        answer["State"]["Health"]["Status"] = json!("confused");
        answer["HostConfig"]["RestartPolicy"]["Name"] = json!("sometimes");
        let seen = inspect(&answer);
        assert_eq!(seen.state, State::Other("stopped".into()));
        assert_eq!(seen.restart_policy, "sometimes");
        assert_eq!(seen.health.unwrap().status, Health::None);
    }

    #[test]
    fn health_counts_only_while_running() {
        let mut answer = inspect_answer();
        answer["State"]["Status"] = json!("paused");
        assert_eq!(inspect(&answer).health.unwrap().status, Health::None);
        let paused = json!({"Id": "1", "Names": ["/a"], "State": "paused", "Status": "Up 5 minutes (Paused)",
                            "Health": {"Status": "unhealthy", "FailingStreak": 0}});
        assert_eq!(list_one(&paused).health, Health::None);
    }

    #[test]
    fn what_is_missing_is_empty_and_what_is_no_container_is_refused() {
        let seen = inspect(&json!({"Id": "1", "State": {"Health": {}}}));
        assert_eq!((seen.name.as_str(), seen.restart_policy.as_str(), seen.started), ("1", "no", None));
        assert_eq!(seen.state, State::Other(String::new()));
        for body in ["", "{}", "[]", "null", r#"{"message": "no"}"#, r#"{"Id": 5}"#] {
            assert_eq!(parse_inspect(body.as_bytes()).unwrap_err().reason(), "bad_answer", "{body}");
        }
        for body in ["", "{}", "null", "[{}]", "[5]"] {
            assert_eq!(parse_list(body.as_bytes()).unwrap_err().reason(), "bad_answer", "{body}");
        }
    }

    #[test]
    fn a_disabled_healthcheck_is_none() {
        for (test, expected) in [(json!(["NONE"]), false), (json!([]), false), (json!(["CMD", "true"]), true)]
        {
            let mut answer = inspect_answer();
            answer["Config"]["Healthcheck"]["Test"] = test;
            assert_eq!(inspect(&answer).has_healthcheck, expected);
        }
    }

    #[test]
    fn a_list_entry_becomes_a_listed_container() {
        let seen = list_one(&json!({"Id": "0123456789abcdef", "Names": ["/web/db", "/db"], "Image": "db:1",
            "ImageID": "sha256:1", "Created": 1_700_000_000, "Labels": {"a": "b"}, "State": "running",
            "Status": "Up 2 hours (healthy)", "Ports": [{"odd": true}]}));
        let expected = Listed {
            id: "0123456789abcdef".into(),
            name: "db".into(),
            state: State::Running,
            status_text: "Up 2 hours (healthy)".into(),
            image: "db:1".into(),
            image_id: "sha256:1".into(),
            labels: BTreeMap::from([("a".into(), "b".into())]),
            created: Some(1_700_000_000),
            health: Health::Healthy,
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_list_s_own_health_wins_over_the_text() {
        let entry = json!({"Id": "1", "Names": ["/a"], "State": "running", "Status": "Up 2 hours (healthy)",
                           "Health": {"Status": "unhealthy", "FailingStreak": 3}});
        assert_eq!(list_one(&entry).health, Health::Unhealthy);
    }

    #[test]
    fn hostile_names_are_taken_as_they_are() {
        for (names, expected) in [
            (json!(null), "0123456789ab"),
            (json!([]), "0123456789ab"),
            (json!(["/"]), "0123456789ab"),
            (json!(["/ä\"\n{}\\"]), "ä\"\n{}\\"),
            (json!(["noslash"]), "noslash"),
        ] {
            let entry = json!({"Id": "0123456789abcdef", "Names": names, "State": "exited", "Labels": null});
            assert_eq!(list_one(&entry).name, expected);
        }
    }

    #[test]
    fn the_age_in_a_status_text_is_a_lower_bound() {
        for (text, seconds) in [
            ("Up Less than a second", 0),
            ("Up 1 second", 1),
            ("Up 59 seconds (health: starting)", 59),
            ("Up About a minute (unhealthy)", 60),
            ("Up 5 minutes (Paused)", 300),
            ("Up About an hour", 3600),
            ("Up 2 hours (healthy)", 5400),
            ("Up 3 days", 3 * 86_400 - 1800),
            ("Exited (137) 2 weeks ago", 14 * 86_400 - 1800),
            ("Exited (0) Less than a second ago", 0),
        ] {
            assert_eq!(least_age(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "Created",
            "Up",
            "Up x minutes",
            "Up 99999999999999999999 hours",
            "Exited",
            "Up 5 moons",
            "Dead",
        ] {
            assert_eq!(least_age(text), None, "{text}");
        }
    }
}
