//! What the steps of a disk's ladder have in common: whether what they would delete lies on the disk in need, whether it
//! is worth it, and when enough is freed. Not an action.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use evenkeel_host::{config::format_bytes, docker::Engine, filesystem::ProbeError};

use super::{Check, Failure, Job};
use crate::observe::{Filesystem, Observation};

/// A step that cannot free this part of what is needed is not worth its damage.
const WORTH: f64 = 0.1;
/// How long a filesystem may take to say which it is.
const TIMEOUT: Duration = Duration::from_secs(5);

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

/// Skips what cannot free a useful part of what is needed. `most` is what could be freed at most; not known is no reason
/// to skip.
pub(super) fn worth(most: Option<u64>, deficit: Option<u64>) -> Check {
    let Some(most) = most else { return Check::Go };
    #[expect(clippy::cast_precision_loss, reason = "a tenth of a disk needs no exact bytes")]
    let is_useful = deficit.is_none_or(|deficit| most as f64 >= deficit as f64 * WORTH);
    match deficit {
        Some(deficit) if !is_useful => {
            let detail = format!(
                "{} could be freed at most, {} are needed",
                format_bytes(most),
                format_bytes(deficit)
            );
            Check::Skip("too_little_to_free", detail)
        }
        _ => Check::Frees(most),
    }
}

/// Whether the filesystem in need has as much room now as it lacked.
pub(super) async fn is_enough(job: &Job) -> bool {
    let (Some(before), Some(deficit)) = (in_need(job), job.deficit_bytes) else { return false };
    let usage = job.host.prober.usage(Path::new(job.target.name()), TIMEOUT).await;
    // More than the mark, not only up to it: it must be below, not at it.
    usage.is_ok_and(|usage| usage.avail > before.avail_bytes.saturating_add(deficit))
}

/// What could not be asked; nothing was done.
pub(super) fn engine_unseen(error: evenkeel_host::docker::Error) -> Failure {
    Failure::Refused(format!("docker: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frees_too_little_is_skipped() {
        let skipped = |check| matches!(check, Check::Skip("too_little_to_free", _));
        assert!(skipped(worth(Some(0), Some(9_000))));
        assert!(skipped(worth(Some(899), Some(9_000))));
        assert_eq!(worth(Some(900), Some(9_000)), Check::Frees(900));
        assert_eq!(worth(None, Some(9_000)), Check::Go);
        assert_eq!(worth(Some(5), None), Check::Frees(5));
    }
}
