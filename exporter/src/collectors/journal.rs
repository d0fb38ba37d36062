//! How much room the journal takes. Its limits are systemd's own business (journald.conf(5)): a figure that keeps growing
//! says that nobody set any.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use evenkeel_host::{
    filesystem::{ProbeError, Prober},
    metrics::Family,
};
use futures_util::future::{BoxFuture, try_join};
use tokio::time::Instant;

use super::{CollectError, Collector, Look};
use crate::{by_root::ByRoot, evidence::Piece};

/// The name of the collector.
pub const NAME: &str = "journal";

/// Where systemd keeps it over a boot, and where it is otherwise (systemd-journald.service(8)).
const PERSISTENT: &str = "var/log/journal";
const VOLATILE: &str = "run/log/journal";

/// The collector.
#[derive(Debug)]
pub struct JournalCollector {
    persistent: PathBuf,
    volatile: PathBuf,
    prober: Prober,
    by_root: ByRoot,
}

impl JournalCollector {
    /// The collector for this host's journal.
    pub fn new() -> Self {
        Self::below(Path::new("/"))
    }

    /// `root` is where the host's files are.
    fn below(root: &Path) -> Self {
        let (persistent, volatile) = (root.join(PERSISTENT), root.join(VOLATILE));
        Self { persistent, volatile, prober: Prober::default(), by_root: ByRoot::default() }
    }

    async fn look(&self, deadline: Instant) -> Result<Look, CollectError> {
        let bytes = match self.size(deadline).await {
            Ok(bytes) => bytes,
            // Root may have left what we may not see.
            Err(error) => match self.by_root.read().and_then(|facts| facts.journal_bytes()) {
                Some(bytes) => Some(bytes),
                None => return Err(error),
            },
        };
        let Some(bytes) = bytes else { return Ok(Look::Absent("there is no journal")) };
        let family = Family::gauge(
            "systemd_journal_bytes",
            "What the files of the journal take: on the disk, and in memory where it is not kept.",
        );
        #[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
        Ok(Look::fresh(vec![family.with(&[], bytes as f64)]).with(Piece::Journal(bytes)))
    }

    /// What both places take, in bytes; `None` where there is no journal.
    ///
    /// # Errors
    /// When one of them may not be seen, or does not answer.
    pub(crate) async fn size(&self, deadline: Instant) -> Result<Option<u64>, CollectError> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let (persistent, volatile) =
            try_join(self.size_of(&self.persistent, limit), self.size_of(&self.volatile, limit)).await?;
        Ok(match (persistent, volatile) {
            (None, None) => None,
            (persistent, volatile) => Some(persistent.unwrap_or(0).saturating_add(volatile.unwrap_or(0))),
        })
    }

    async fn size_of(&self, folder: &Path, limit: Duration) -> Result<Option<u64>, CollectError> {
        self.prober.folder_size(folder, limit).await.map_err(|error| {
            let cure = match &error {
                ProbeError::Os(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    " (it takes the group systemd-journal, or evenkeel-facts.timer)"
                }
                _ => "",
            };
            CollectError::new(format_args!("cannot add up {}: {error}{cure}", folder.display()))
        })
    }
}

impl Default for JournalCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for JournalCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(self.look(deadline))
    }

    fn down(&self) -> Vec<Family> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;
    use crate::collectors::Seen;

    async fn look(root: &Path) -> Result<Look, CollectError> {
        let collector = JournalCollector::below(root);
        Collector::look(&collector, Instant::now() + Duration::from_secs(20)).await
    }

    /// A journal file and the bytes it takes.
    fn journal(folder: &Path) -> u64 {
        let folder = folder.join("0123456789abcdef0123456789abcdef");
        fs::create_dir_all(&folder).expect("made");
        let path = folder.join("system.journal");
        fs::write(&path, vec![b'x'; 100_000]).expect("written");
        fs::File::open(&path).and_then(|file| file.sync_all()).expect("synced");
        path.metadata().expect("there").blocks() * 512
    }

    #[tokio::test]
    async fn a_host_without_a_journal_is_no_failure() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(matches!(look(root.path()).await, Ok(Look::Absent(_))));
    }

    #[tokio::test]
    async fn both_places_count() {
        let root = tempfile::tempdir().expect("a folder");
        for (folder, places) in [(VOLATILE, 1), (PERSISTENT, 2)] {
            let bytes = journal(&root.path().join(folder));
            let Ok(Look::Seen(Seen { blocks, .. })) = look(root.path()).await else { panic!("not seen") };
            let families = blocks[0].read_back();
            assert_eq!((families[0].name, families[0].samples.len()), ("systemd_journal_bytes", 1));
            assert!((families[0].samples[0].value - (bytes * places) as f64).abs() < 0.5, "{families:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_folder_is_said() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("var/log")).expect("made");
        fs::write(root.path().join(PERSISTENT), "").expect("written");
        let error = look(root.path()).await.expect_err("no folder").to_string();
        assert!(error.contains("/var/log/journal: Not a directory"), "{error}");
    }
}
