//! How the host's unit files differ from the golden snapshot that the remediator keeps. Only looks: taking a snapshot and
//! bringing it back are the remediator's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use evenkeel_host::{
    config::{ConfigError, PromDuration},
    metrics::{Block, Family},
    systemd::snapshot::{self, Change, Shelf},
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};

use super::{CollectError, Collector, Look, systemd::UnitPattern};

/// The name of the collector.
pub const NAME: &str = "snapshot";

/// What the units' files are compared with; without this section, with nothing.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the snapshots are: `snapshot.dir` of the remediator.
    #[serde(default = "shipped_dir")]
    pub dir: PathBuf,
    /// Whose files are compared: `snapshot.units` of the remediator.
    #[schemars(extend("minItems" = 1))]
    pub units: Vec<UnitPattern>,
    /// How often.
    #[serde(default = "five_minutes")]
    pub check_every: PromDuration,
}

fn shipped_dir() -> PathBuf {
    PathBuf::from("/var/lib/evenkeel/snapshots")
}

fn five_minutes() -> PromDuration {
    PromDuration::new(Duration::from_secs(300))
}

impl Config {
    /// What no single value can know about itself.
    ///
    /// # Errors
    /// When it compares nothing.
    pub(crate) fn check(&self, origin: &str) -> Result<(), ConfigError> {
        if self.units.is_empty() {
            let message = "`snapshot.units` is empty: name the units whose files are compared, as in [\"shop-*.service\"]";
            return Err(ConfigError::new(origin, message));
        }
        if !self.dir.is_absolute() {
            let message = "`snapshot.dir` must begin with /: it is the remediator's folder, as /var/lib/evenkeel/snapshots";
            return Err(ConfigError::new(origin, message));
        }
        Ok(())
    }
}

/// The collector.
#[derive(Debug)]
pub struct SnapshotCollector {
    what: Option<Arc<What>>,
    kept: Arc<Mutex<Option<Kept>>>,
}

/// What is compared.
#[derive(Debug)]
struct What {
    config: Config,
    shelf: Shelf,
    /// Where the host's files are.
    root: PathBuf,
}

/// What was seen, and when. `None`: there is no snapshot.
#[derive(Debug)]
struct Kept {
    seen: Result<Option<Arc<Block>>, String>,
    at: Instant,
}

impl SnapshotCollector {
    /// The collector for this host's files.
    pub fn new(config: Option<&Config>) -> Self {
        let over = |config: &Config| Self::over(config, Shelf::of_root(&config.dir), Path::new("/"));
        config.map_or_else(|| Self { what: None, kept: Arc::default() }, over)
    }

    fn over(config: &Config, shelf: Shelf, root: &Path) -> Self {
        let what = What { config: config.clone(), shelf, root: root.to_owned() };
        Self { what: Some(Arc::new(what)), kept: Arc::default() }
    }

    async fn look(&self) -> Result<Look, CollectError> {
        let Some(what) = &self.what else {
            return Ok(Look::Absent("there is no section `snapshot` in the configuration"));
        };
        // Held by the thread that reads, so that a disk that hangs holds one thread and not one more at each look.
        let mut kept = Arc::clone(&self.kept).lock_owned().await;
        let is_old = |kept: &Kept| kept.at.elapsed() >= what.config.check_every.get();
        if kept.as_ref().is_none_or(is_old) {
            let what = Arc::clone(what);
            let reading = spawn_blocking(move || {
                *kept = Some(Kept { seen: what.compare(), at: Instant::now() });
                kept
            });
            kept = reading.await.map_err(CollectError::new)?;
        }
        match kept.as_ref().map(|kept| &kept.seen) {
            Some(Ok(Some(block))) => Ok(Look::of(vec![Arc::clone(block)])),
            Some(Ok(None)) | None => Ok(Look::Absent("no snapshot has been taken yet")),
            Some(Err(error)) => Err(CollectError::new(error)),
        }
    }
}

impl What {
    fn compare(&self) -> Result<Option<Arc<Block>>, String> {
        let Some(golden) = self.shelf.newest().map_err(|error| error.to_string())? else { return Ok(None) };
        let is_meant = |name: &str| self.config.units.iter().any(|pattern| pattern.matches(name));
        let manifest = &golden.manifest;
        let host =
            snapshot::scan(&self.root, &manifest.folders, &is_meant).map_err(|error| error.to_string())?;
        let mut counts: BTreeMap<&str, BTreeMap<Change, u32>> = BTreeMap::new();
        let all = |units: &mut BTreeMap<_, BTreeMap<_, _>>, unit| {
            units.entry(unit).or_insert_with(|| Change::ALL.map(|change| (change, 0)).into());
        };
        for unit in
            manifest.entries.keys().filter_map(|path| snapshot::unit_at(&manifest.folders, path, &is_meant))
        {
            all(&mut counts, unit);
        }
        let drift = snapshot::drift(&manifest.folders, &manifest.entries, &host, &is_meant);
        for one in &drift {
            all(&mut counts, &one.unit);
            if let Some(count) =
                counts.get_mut(one.unit.as_str()).and_then(|of_unit| of_unit.get_mut(&one.change))
            {
                *count += 1;
            }
        }
        Ok(Some(Arc::new(Block::new(families(&counts, manifest.made_ms)))))
    }
}

fn families(counts: &BTreeMap<&str, BTreeMap<Change, u32>>, made_ms: u64) -> Vec<Family> {
    let mut drift = Family::gauge(
        "systemd_unit_file_drift",
        "How many files and links of the unit are otherwise than in the newest golden snapshot.",
    );
    for (unit, of_unit) in counts {
        for (change, count) in of_unit {
            drift.sample(&[("name", unit), ("change", change.as_str())], f64::from(*count));
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "far fewer milliseconds than 2^53")]
    let made = made_ms as f64 / 1000.0;
    let golden = Family::gauge(
        "systemd_unit_snapshot_timestamp_seconds",
        "When the newest golden snapshot of unit files was made, as Unix time.",
    );
    vec![drift, golden.with(&[], made)]
}

impl Collector for SnapshotCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, _: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(self.look())
    }

    /// What is not known is not told.
    fn down(&self) -> Vec<Family> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use evenkeel_host::{
        metrics::Sample,
        systemd::snapshot::{FORMAT, MANIFEST, Manifest, Scan},
    };
    use tempfile::TempDir;

    use super::*;

    const ETC: &str = "/etc/systemd/system";

    /// A host with a unit, and its snapshot if that is wanted.
    fn host(is_kept: bool) -> (TempDir, SnapshotCollector) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/systemd/system");
        fs::create_dir_all(&folder).unwrap();
        for name in ["shop-a.service", "shop-b.service", "other.service"] {
            fs::write(folder.join(name), "[Service]\nExecStart=/bin/true\n").unwrap();
        }
        let dir = root.path().join("snapshots");
        let owner = fs::metadata(root.path()).unwrap().uid();
        if is_kept {
            let folders = vec![ETC.to_owned()];
            let Scan { entries, .. } = snapshot::scan(root.path(), &folders, &|_| true).unwrap();
            let manifest = Manifest { format: FORMAT, made_ms: 1_767_787_200_500, folders, entries };
            let text = manifest.text().unwrap();
            let kept = dir.join(snapshot::name(manifest.made_ms, &text));
            fs::create_dir_all(&kept).unwrap();
            fs::write(kept.join(MANIFEST), text).unwrap();
            for path in [&dir, &kept, &kept.join(MANIFEST)] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        let config = Config {
            dir: dir.clone(),
            units: vec!["shop-*.service".parse().unwrap()],
            check_every: five_minutes(),
        };
        let collector = SnapshotCollector::over(&config, Shelf::of(&dir, owner), root.path());
        (root, collector)
    }

    async fn lines(collector: &SnapshotCollector) -> Vec<String> {
        let Look::Seen(seen) = collector.look().await.unwrap() else { panic!("nothing is seen") };
        let line = |name: &str, sample: &Sample| {
            let labels: Vec<String> = sample.labels.iter().map(|(_, value)| value.to_string()).collect();
            format!("{name} {} {}", labels.join(" "), sample.value)
        };
        let families = seen.blocks.iter().flat_map(|block| block.read_back());
        families
            .flat_map(|family| family.samples.iter().map(|one| line(family.name, one)).collect::<Vec<_>>())
            .collect()
    }

    #[tokio::test]
    async fn without_a_snapshot_there_is_nothing_to_tell() {
        assert!(matches!(SnapshotCollector::new(None).look().await, Ok(Look::Absent(_))));
        let (_root, collector) = host(false);
        assert!(matches!(collector.look().await, Ok(Look::Absent(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn drift_is_told_by_unit_and_kind_and_asked_for_seldom() {
        let (root, collector) = host(true);
        let well = [
            "systemd_unit_file_drift shop-a.service added 0",
            "systemd_unit_file_drift shop-a.service missing 0",
            "systemd_unit_file_drift shop-a.service modified 0",
            "systemd_unit_file_drift shop-b.service added 0",
            "systemd_unit_file_drift shop-b.service missing 0",
            "systemd_unit_file_drift shop-b.service modified 0",
            "systemd_unit_snapshot_timestamp_seconds  1767787200.5",
        ];
        assert_eq!(lines(&collector).await, well);
        let folder = root.path().join("etc/systemd/system");
        fs::remove_file(folder.join("shop-a.service")).unwrap();
        fs::write(folder.join("shop-b.service"), "").unwrap();
        fs::write(folder.join("shop-c.service"), "").unwrap();
        fs::write(folder.join("other.service"), "").unwrap();
        assert_eq!(lines(&collector).await, well, "it was looked at again at once");
        tokio::time::advance(Duration::from_secs(300)).await;
        let told: Vec<String> =
            lines(&collector).await.into_iter().filter(|line| line.ends_with(" 1")).collect();
        assert_eq!(
            told,
            [
                "systemd_unit_file_drift shop-a.service missing 1",
                "systemd_unit_file_drift shop-b.service modified 1",
                "systemd_unit_file_drift shop-c.service added 1",
            ]
        );
    }

    #[tokio::test]
    async fn a_snapshot_that_was_changed_is_a_failure() {
        let (root, collector) = host(true);
        let dir = fs::read_dir(root.path().join("snapshots")).unwrap().next().unwrap().unwrap().path();
        fs::write(dir.join(MANIFEST), "{}").unwrap();
        let error = collector.look().await.unwrap_err().to_string();
        assert!(error.ends_with("it is not what was written: it was changed or damaged"), "{error}");
    }
}
