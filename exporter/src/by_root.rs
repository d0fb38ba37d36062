//! What takes root to see, found out by `evenkeel-exporter facts` in a unit of root's own (`evenkeel-facts.timer`) and left
//! for an exporter that is not root: only what the configuration names, and numbers. Not here: the looking itself.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use evenkeel_host::{docker::Docker, environ::Unread};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::{
    collectors::{environment::EnvironmentCollector, journal::JournalCollector},
    config::Config,
    evidence::{Environment, NoEnvironment, Variable},
};

/// Where the facts are.
pub const PATH: &str = "/run/evenkeel/facts.json";

/// What is written is of this form.
const VERSION: u32 = 1;

/// They are made anew every minute; what is older than this says nothing about now.
const LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Ten thousand containers need a tenth of it.
const LARGEST: u64 = 8 << 20;

/// How long each source may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose file is believed.
const ROOT: u32 = 0;

/// What root has found out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    version: u32,
    /// When, in seconds since 1970.
    taken_seconds: u64,
    /// By unit.
    #[serde(default)]
    environments: BTreeMap<String, Found>,
    /// The sizes of containers' current log files in bytes, by the containers' ids.
    #[serde(default)]
    container_logs: BTreeMap<String, u64>,
    /// What the files of the journal take.
    #[serde(default)]
    journal_bytes: Option<u64>,
}

/// What was found of one unit's environment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Variables(BTreeMap<String, Variable>),
    Nothing(Reason),
}

/// Why there is nothing.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reason {
    NotRunning,
    Gone,
    NotOfTheUnit,
    Failed,
}

impl Facts {
    /// Reads what was written.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let facts: Self = serde_json::from_slice(bytes).ok()?;
        (facts.version == VERSION).then_some(facts)
    }

    /// What is known of a unit's environment.
    pub(crate) fn environment(&self, unit: &str) -> Option<Environment> {
        let variables = match self.environments.get(unit)? {
            Found::Variables(variables) => {
                Ok(variables.iter().map(|(name, variable)| (name.clone(), *variable)).collect())
            }
            Found::Nothing(reason) => Err(match reason {
                Reason::NotRunning => NoEnvironment::NotRunning,
                Reason::Gone => NoEnvironment::Unread(Unread::Gone),
                Reason::NotOfTheUnit => NoEnvironment::Unread(Unread::NotOfTheUnit),
                Reason::Failed => NoEnvironment::Unread(Unread::Failed),
            }),
        };
        Some(Environment { unit: unit.to_owned(), variables })
    }

    /// The size of a container's current log file in bytes.
    pub(crate) fn container_log(&self, id: &str) -> Option<u64> {
        self.container_logs.get(id).copied()
    }

    /// What the files of the journal take, in bytes.
    pub(crate) fn journal_bytes(&self) -> Option<u64> {
        self.journal_bytes
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        let now = seconds(now);
        now.abs_diff(self.taken_seconds) <= LIFETIME.as_secs()
    }
}

/// Reads the facts, and only anew when there are new ones.
#[derive(Debug)]
pub struct ByRoot {
    path: PathBuf,
    owner: u32,
    read: Mutex<Option<(Stamp, Arc<Facts>)>>,
}

/// Tells one file from the next at the same place.
type Stamp = (u64, i64, i64);

impl Default for ByRoot {
    fn default() -> Self {
        Self::at(Path::new(PATH))
    }
}

impl ByRoot {
    /// The facts at another place.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf(), owner: ROOT, read: Mutex::default() }
    }

    /// The facts, where root has left any and they are not old. Reads a small file of a filesystem in memory.
    pub(crate) fn read(&self) -> Option<Arc<Facts>> {
        let file = File::open(&self.path).ok()?;
        let about = file.metadata().ok()?;
        // Whoever else could have written it may say anything.
        if about.uid() != self.owner || about.mode() & 0o022 != 0 || !about.is_file() {
            return None;
        }
        let stamp = (about.ino(), about.mtime(), about.mtime_nsec());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let known = read.as_ref().filter(|(of, _)| *of == stamp).map(|(_, facts)| Arc::clone(facts));
        let facts = match known {
            Some(facts) => facts,
            None => {
                let mut bytes = Vec::new();
                file.take(LARGEST).read_to_end(&mut bytes).ok()?;
                let facts = Arc::new(Facts::parse(&bytes)?);
                *read = Some((stamp, Arc::clone(&facts)));
                facts
            }
        };
        facts.is_fresh(SystemTime::now()).then_some(facts)
    }
}

/// Finds out what takes root, and leaves it at `path`.
///
/// # Errors
/// When this is not root, somebody else may write the configuration, or the file cannot be written. A source that does not
/// answer is left out.
pub async fn leave(config: &Config, config_file: Option<&Path>, path: &Path) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("this takes root: start evenkeel-facts.service");
    }
    if let Some(file) = config_file {
        let about = fs::metadata(file).with_context(|| format!("cannot see {}", file.display()))?;
        if about.uid() != ROOT || about.mode() & 0o022 != 0 {
            anyhow::bail!("others than root may write {}: chown root and chmod go-w", file.display());
        }
    }
    let facts = find(config).await;
    let text = serde_json::to_vec(&facts).context("cannot write JSON")?;
    write(path, &text).with_context(|| format!("cannot write {}", path.display()))
}

async fn find(config: &Config) -> Facts {
    let mut facts = Facts { version: VERSION, taken_seconds: seconds(SystemTime::now()), ..Facts::default() };
    let deadline = Instant::now() + PATIENCE;
    let environments = EnvironmentCollector::new(&config.environment);
    match timeout(PATIENCE, environments.find(deadline)).await {
        Ok(Ok(found)) => facts.environments = found.iter().filter_map(as_found).collect(),
        Ok(Err(error)) => tracing::warn!(%error, "no environments"),
        Err(_) => tracing::warn!("no environments: systemd did not answer in time"),
    }
    match container_logs(&Docker::from_env()).await {
        Ok(logs) => facts.container_logs = logs,
        Err(error) => tracing::warn!("no sizes of containers' logs: {error:#}"),
    }
    match JournalCollector::new().size(deadline).await {
        Ok(bytes) => facts.journal_bytes = bytes,
        Err(error) => tracing::warn!(%error, "no size of the journal"),
    }
    facts
}

fn as_found(environment: &Environment) -> Option<(String, Found)> {
    let found = match &environment.variables {
        Ok(variables) => Found::Variables(variables.iter().cloned().collect()),
        Err(NoEnvironment::NotRunning) => Found::Nothing(Reason::NotRunning),
        Err(NoEnvironment::Unread(Unread::Gone)) => Found::Nothing(Reason::Gone),
        Err(NoEnvironment::Unread(Unread::NotOfTheUnit)) => Found::Nothing(Reason::NotOfTheUnit),
        Err(NoEnvironment::Unread(Unread::Failed)) => Found::Nothing(Reason::Failed),
        // Then it is no fact.
        Err(NoEnvironment::Unread(Unread::Permission)) => return None,
    };
    Some((environment.unit.clone(), found))
}

/// The current log file of every container, where its driver writes one that the engine would name.
async fn container_logs(docker: &Docker) -> anyhow::Result<BTreeMap<String, u64>> {
    if !docker.socket_exists() {
        return Ok(BTreeMap::new());
    }
    let engine = timeout(PATIENCE, docker.engine()).await.context("the engine did not answer in time")??;
    let folder = engine.root_dir.join("containers");
    let walk = tokio::task::spawn_blocking(move || -> io::Result<BTreeMap<String, u64>> {
        let mut logs = BTreeMap::new();
        for entry in fs::read_dir(folder)?.flatten() {
            let Ok(id) = entry.file_name().into_string() else { continue };
            if let Ok(about) = fs::symlink_metadata(entry.path().join(format!("{id}-json.log"))) {
                logs.insert(id, about.len());
            }
        }
        Ok(logs)
    });
    Ok(timeout(PATIENCE, walk).await.context("the engine's folder did not answer in time")???)
}

/// Whole or not at all: a reader sees the old file or the new one.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(&beside)?;
    // The unit's umask may take more away.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.write_all(text)?;
    drop(file);
    fs::rename(&beside, path)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The parser of what is read, for the test that feeds it rubbish.
#[doc(hidden)]
pub fn parse(bytes: &[u8]) {
    if let Some(facts) = Facts::parse(bytes) {
        let _ = (facts.environment("a.service"), facts.container_log(""), facts.is_fresh(SystemTime::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn facts(taken_seconds: u64) -> Facts {
        let met = [("REDIS_HOST".to_owned(), Variable::Met)].into();
        Facts {
            version: VERSION,
            taken_seconds,
            environments: [
                ("a.service".to_owned(), Found::Variables(met)),
                ("b.service".to_owned(), Found::Nothing(Reason::NotRunning)),
            ]
            .into(),
            container_logs: [("4f1a".to_owned(), 123)].into(),
            journal_bytes: Some(7),
        }
    }

    /// A reader that believes whoever runs this test.
    fn reader(path: &Path) -> ByRoot {
        ByRoot { owner: rustix::process::geteuid().as_raw(), ..ByRoot::at(path) }
    }

    #[test]
    fn what_was_left_is_read_until_it_is_old() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("facts.json");
        let by_root = reader(&path);
        assert!(by_root.read().is_none(), "nothing was left");
        let now = seconds(SystemTime::now());
        write(&path, &serde_json::to_vec(&facts(now)).expect("JSON")).expect("written");
        let read = by_root.read().expect("fresh");
        let a = read.environment("a.service").expect("known");
        assert_eq!(a.variables, Ok(vec![("REDIS_HOST".to_owned(), Variable::Met)]));
        let b = read.environment("b.service").expect("known");
        assert_eq!(b.variables, Err(NoEnvironment::NotRunning));
        assert!(read.environment("c.service").is_none());
        assert_eq!((read.container_log("4f1a"), read.journal_bytes()), (Some(123), Some(7)));
        for taken in [now - 3600, now + 3600] {
            write(&path, &serde_json::to_vec(&facts(taken)).expect("JSON")).expect("written");
            assert!(by_root.read().is_none(), "taken at {taken}, now {now}");
        }
    }

    #[test]
    fn only_what_nobody_else_can_write_is_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("facts.json");
        write(&path, &serde_json::to_vec(&facts(seconds(SystemTime::now()))).expect("JSON"))
            .expect("written");
        assert!(reader(&path).read().is_some());
        let strangers = ByRoot { owner: 12_345, ..ByRoot::at(&path) };
        assert!(strangers.read().is_none());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("set");
        assert!(reader(&path).read().is_none());
    }

    #[test]
    fn another_form_is_no_fact() {
        for text in ["", "{}", "[]", r#"{"version":2,"taken_seconds":1}"#, r#"{"version":1}"#, "nonsense"] {
            assert!(Facts::parse(text.as_bytes()).is_none(), "{text}");
        }
        assert!(Facts::parse(br#"{"version":1,"taken_seconds":1,"later":[]}"#).is_some());
    }
}
