//! What the steps of a disk's ladder have in common: whether what they would delete lies on the disk in need, whether it
//! is worth it, and when enough is freed. Not an action.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use evenkeel_host::{config::format_bytes, docker::Engine, filesystem::ProbeError};
use tokio::time::timeout;

use super::{Check, Failure, Job};
use crate::{
    fullness::Lack,
    observe::{Filesystem, Observation},
};

/// A step that cannot free this part of what is needed is not worth its damage.
const WORTH: f64 = 0.1;
/// How long a filesystem may take to say which it is.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the engine may count: less than a check or a report may take as a whole.
pub(super) const COUNTING: Duration = Duration::from_secs(30);

/// The filesystem in need, for steps that free room on one; nothing where the remediation is about something else.
pub(super) fn in_need(job: &Job) -> Option<&Filesystem> {
    match &job.seen {
        Observation::Filesystem(filesystem) => Some(filesystem),
        _ => None,
    }
}

/// Why what `what` speaks of does not, or may not, lie on the filesystem in need: all of `places` must.
pub(super) async fn elsewhere(job: &Job, what: &str, places: &[PathBuf]) -> Option<Check> {
    let filesystem = in_need(job)?;
    let lies = if places.len() == 1 { "lies" } else { "may lie" };
    for place in places {
        let detail = match device_at(job, place).await {
            Ok(device) if device == filesystem.device => continue,
            Ok(_) => format!("{what} {lies} in {}", place.display()),
            Err(error) => format!("where {what} {lies} cannot be told: {}: {error}", place.display()),
        };
        return Some(Check::Skip("not_on_this_filesystem", detail));
    }
    None
}

/// The device of the filesystem that holds `place`. Where this process may not look that far, it is that of the mount
/// which `place` is below.
async fn device_at(job: &Job, place: &Path) -> Result<u64, String> {
    let unknown = || "the kernel does not say which device it is".to_owned();
    match job.host.prober.usage(place, TIMEOUT).await {
        Ok(usage) => usage.device.ok_or_else(unknown),
        Err(ProbeError::Os(error)) if error.kind() == ErrorKind::PermissionDenied => {
            let mounts = job.host.prober.mounts(TIMEOUT).await.map_err(|error| error.to_string())?;
            let above = mounts.iter().filter(|mount| place.starts_with(&mount.mount_point));
            let nearest = above.max_by_key(|mount| mount.mount_point.components().count());
            let mount_point = &nearest.ok_or_else(|| error.to_string())?.mount_point;
            let usage =
                job.host.prober.usage(mount_point, TIMEOUT).await.map_err(|error| error.to_string())?;
            usage.device.ok_or_else(unknown)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Where the engine may keep its images: below its own folder, or, when containerd stores them, below a folder of
/// containerd's that the engine does not name. Then both its usual places must be on the filesystem in need.
pub(super) fn image_places(engine: &Engine) -> Vec<PathBuf> {
    let mut places = vec![engine.root_dir.clone()];
    if is_containerd_store(engine) {
        places.push(PathBuf::from("/var/lib/containerd"));
    }
    places
}

/// Whether containerd stores the images, and not the engine itself.
pub(super) fn is_containerd_store(engine: &Engine) -> bool {
    engine.driver_status.iter().any(|(_, value)| value.starts_with("io.containerd.snapshotter"))
}

/// What a step frees at most; `None` where that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) bytes: Option<u64>,
    pub(super) inodes: Option<u64>,
}

impl Freed {
    /// So many bytes of files that nobody has counted.
    pub(super) fn files(bytes: Option<u64>) -> Self {
        Self { bytes, inodes: bytes.filter(|bytes| *bytes == 0) }
    }
}

/// Skips what cannot free a useful part of anything that is needed. Not known how much is no reason to skip.
pub(super) fn worth(job: &Job, most: Freed) -> Check {
    let lack = lack(job);
    let needed = [
        (lack.bytes, most.bytes, format_bytes as fn(u64) -> String),
        (lack.inodes, most.inodes, |inodes| format!("{inodes} inodes")),
    ];
    let needed = needed
        .into_iter()
        .filter_map(|(lack, most, told)| lack.filter(|lack| *lack > 0).map(|lack| (lack, most, told)));
    let mut useless = Vec::new();
    for (lack, most, told) in needed {
        match most {
            Some(most) if !is_useful(most, lack) => {
                useless.push(format!("{} could be freed at most, {} are needed", told(most), told(lack)));
            }
            _ => {
                useless.clear();
                break;
            }
        }
    }
    match most.bytes {
        _ if !useless.is_empty() => Check::Skip("too_little_to_free", useless.join("; ")),
        Some(bytes) => Check::Frees(bytes),
        None => Check::Go,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a tenth of a disk needs no exact figures")]
fn is_useful(most: u64, lack: u64) -> bool {
    most as f64 >= lack as f64 * WORTH
}

/// What the filesystem in need lacks; nothing where the remediation is about something else.
fn lack(job: &Job) -> Lack {
    let lack = job.done_below.zip(in_need(job)).map(|(marks, filesystem)| marks.lack(filesystem));
    lack.unwrap_or_default()
}

/// Whether the filesystem in need is below its marks by now.
pub(super) async fn is_enough(job: &Job) -> bool {
    let (Some(_), Some(marks)) = (in_need(job), job.done_below) else { return false };
    job.host.filesystem(job.target.name()).await.is_ok_and(|now| marks.kept(&now))
}

/// What the engine counts by walking its folders, if it does so in time; not known how much is no reason to skip.
pub(super) async fn counted<T>(
    counting: impl Future<Output = Result<T, evenkeel_host::docker::Error>>,
) -> Option<T> {
    timeout(COUNTING, counting).await.ok()?.ok()
}

/// What could not be asked; nothing was done.
pub(super) fn engine_unseen(error: evenkeel_host::docker::Error) -> Failure {
    Failure::Refused(format!("docker: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::bench::Bench;

    const TOO_LITTLE: &str = "too_little_to_free";

    fn skipped(check: Check) -> Option<(&'static str, String)> {
        match check {
            Check::Skip(reason, detail) => Some((reason, detail)),
            _ => None,
        }
    }

    #[tokio::test]
    async fn what_frees_too_little_is_skipped() {
        let bench = Bench::new(|_| None);
        let job = bench.disk("/", 9_000);
        for too_little in [0, 899] {
            let (reason, detail) = skipped(worth(&job, Freed::files(Some(too_little)))).unwrap();
            assert_eq!(reason, TOO_LITTLE);
            assert!(detail.ends_with("could be freed at most, 9.0 kB are needed"), "{detail}");
        }
        assert_eq!(worth(&job, Freed::files(Some(900))), Check::Frees(900));
        assert_eq!(worth(&job, Freed::files(None)), Check::Go);
        assert_eq!(worth(&bench.disk("/", 0), Freed::files(Some(5))), Check::Frees(5));
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_counts_for_ever_holds_up_no_check() {
        let began = tokio::time::Instant::now();
        assert_eq!(counted::<u64>(std::future::pending()).await, None);
        assert_eq!(began.elapsed(), COUNTING);
        assert_eq!(counted(async { Ok(7) }).await, Some(7));
    }

    #[tokio::test]
    async fn what_frees_no_inodes_does_not_help_who_lacks_them() {
        let bench = Bench::new(|_| None);
        let (bytes, files) = (Freed { bytes: Some(1 << 40), inodes: Some(0) }, Freed::files(Some(5)));
        let few = Freed { bytes: Some(1 << 40), inodes: Some(9) };
        // Inodes alone are lacking.
        let job = bench.inodes("/", 0, 100);
        let (reason, detail) = skipped(worth(&job, bytes)).unwrap();
        assert_eq!(
            (reason, detail.as_str()),
            (TOO_LITTLE, "0 inodes could be freed at most, 100 inodes are needed")
        );
        assert!(skipped(worth(&job, few)).is_some());
        // Few bytes may be many files, and nothing at all is none.
        assert_eq!(worth(&job, files), Check::Frees(5));
        assert!(skipped(worth(&job, Freed::files(Some(0)))).is_some());
        // Bytes are lacking too, and of those it frees enough.
        assert_eq!(worth(&bench.inodes("/", 9_000, 100), bytes), Check::Frees(1 << 40));
    }
}
