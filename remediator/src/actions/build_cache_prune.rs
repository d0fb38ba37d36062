//! Deletes build cache that no build uses, where that lies on the filesystem in need.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, SystemTime},
};

use bollard::{errors::Error as DockerError, query_parameters::PruneBuildOptionsBuilder};
use evenkeel_host::{
    config::{PromDuration, format_bytes},
    docker::{BuildCache, CacheRecord, Engine},
};
use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{Action, Check, Done, Failure, Job, Permission, container_restart::engine_failure};
use crate::{
    observe::Observation,
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "build_cache_prune";

/// A step that cannot free this part of what is needed is not worth its damage.
const WORTH: f64 = 0.1;
/// How long to wait for another prune before trying again.
const BUSY_PAUSE: Duration = Duration::from_secs(5);
/// How long the filesystem of the engine's folder may take to say which it is.
const ROOT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to try again.
const BUSY_TRIES: u32 = 24;

/// Parameters. It always deletes only what no running build uses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BuildCachePrune {
    /// Only entries that no build has used for so long.
    unused_for: Option<PromDuration>,
    /// Also entries that images still share, not only dangling ones.
    all: bool,
}

impl Action for BuildCachePrune {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::D1
    }

    fn fits(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Filesystem | Kind::Host)
    }

    fn timeout(&self) -> Duration {
        // Deleting tens of gigabytes on a full disk takes minutes.
        Duration::from_secs(15 * 60)
    }

    fn plan(&self, _: &Target) -> String {
        let mut call = format!("POST /build/prune?all={}", self.all);
        if let Some(age) = &self.unused_for {
            call += &format!("&filters={{\"until\":[\"{}s\"]}}", age.get().as_secs());
        }
        call
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Docker { method: "POST", path: r"/build/prune(\?.*)?" }]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            if let Observation::Filesystem(filesystem) = &job.seen
                && let Some(detail) = elsewhere(job, filesystem.device).await?
            {
                return Ok(Check::Skip("not_on_this_filesystem", detail));
            }
            // An engine that cannot say how much there is may still free it; one that says too little is skipped.
            let records = job.host.docker.build_cache().await.ok();
            let reclaimable = records.and_then(|cache| self.estimate(&cache, SystemTime::now()));
            Ok(worth(reclaimable, job.deficit_bytes))
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let client =
                job.host.docker.client().await.map_err(|error| Failure::Refused(error.to_string()))?;
            // Its own time-out is for small questions; this call ends when the engine has deleted.
            let client = client.with_timeout(self.timeout());
            for _ in 0..BUSY_TRIES {
                let mut options = PruneBuildOptionsBuilder::new().all(self.all);
                if let Some(age) = &self.unused_for {
                    // Durations are understood by every engine since API 1.39, as `until` of BuildKit's records.
                    let age = vec![format!("{}s", age.get().as_secs())];
                    options = options.filters(&HashMap::from([("until".to_owned(), age)]));
                }
                match client.prune_build(Some(options.build())).await {
                    Ok(answer) => {
                        let freed = answer.space_reclaimed.and_then(|bytes| u64::try_from(bytes).ok());
                        let entries = answer.caches_deleted.map_or(0, |caches| caches.len());
                        let detail = format!("the engine deleted {entries} entries");
                        return Ok(Done { detail, claimed_freed_bytes: freed });
                    }
                    // Another prune is at work: it frees the same, and ours may come after it.
                    Err(DockerError::DockerResponseServerError { status_code: 409, .. }) => {
                        tokio::time::sleep(BUSY_PAUSE).await;
                    }
                    Err(error) => return Err(engine_failure(error)),
                }
            }
            Err(Failure::Refused("another prune is still running".to_owned()))
        })
    }
}

impl BuildCachePrune {
    /// What this step would free at most, in bytes; `None` when the engine does not list its records, and one cannot
    /// tell the old from the new.
    fn estimate(&self, cache: &BuildCache, now: SystemTime) -> Option<u64> {
        let Some(records) = &cache.records else {
            // The sum counts what this step would leave.
            return self.unused_for.is_none().then_some(cache.reclaimable_bytes);
        };
        let oldest = self.unused_for.as_ref().and_then(|age| now.checked_sub(age.get()));
        let goes = |record: &&CacheRecord| {
            let old = oldest.is_none_or(|oldest| record.last_used.is_none_or(|used| used <= oldest));
            // BuildKit leaves its own records and the Dockerfile frontends alone unless asked for all
            // (moby/buildkit, cache/manager.go, prune).
            let own = matches!(record.kind.as_str(), "internal" | "frontend");
            !record.in_use && !record.shared && old && (self.all || !own)
        };
        Some(records.iter().filter(goes).map(|record| record.bytes).fold(0, u64::saturating_add))
    }
}

/// Why the cache does not, or may not, lie on this device.
async fn elsewhere(job: &Job, device: u64) -> Result<Option<String>, Failure> {
    let refused = |error: evenkeel_host::docker::Error| Failure::Refused(format!("docker: {error}"));
    let engine = job.host.docker.engine().await.map_err(refused)?;
    let roots = cache_roots(&engine);
    let lies = if roots.len() == 1 { "lies" } else { "may lie" };
    for root in roots {
        let detail = match job.host.prober.usage(root, ROOT_TIMEOUT).await {
            Ok(usage) if usage.device == Some(device) => continue,
            Ok(_) => format!("the build cache {lies} in {}", root.display()),
            Err(error) => format!("where the build cache lies cannot be told: {}: {error}", root.display()),
        };
        return Ok(Some(detail));
    }
    Ok(None)
}

/// Where BuildKit may keep its cache: below the engine's own folder, or, when containerd stores the images, below a
/// folder of containerd's that the engine does not name. Then both its usual places must be on the target's filesystem.
fn cache_roots(engine: &Engine) -> Vec<&Path> {
    let containerd =
        engine.driver_status.iter().any(|(_, value)| value.starts_with("io.containerd.snapshotter"));
    let own = engine.root_dir.as_path();
    if containerd { vec![own, Path::new("/var/lib/containerd")] } else { vec![own] }
}

/// Skips what cannot free a useful part of what is needed.
fn worth(reclaimable: Option<u64>, deficit: Option<u64>) -> Check {
    let (Some(reclaimable), Some(deficit)) = (reclaimable, deficit) else { return Check::Go };
    #[expect(clippy::cast_precision_loss, reason = "a tenth of a disk needs no exact bytes")]
    if (reclaimable as f64) < deficit as f64 * WORTH {
        let detail = format!(
            "{} could be freed at most, {} are needed",
            format_bytes(reclaimable),
            format_bytes(deficit)
        );
        return Check::Skip("too_little_to_free", detail);
    }
    Check::Frees(reclaimable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_what_frees_too_little() {
        let skipped = |check| matches!(check, Check::Skip("too_little_to_free", _));
        assert!(skipped(worth(Some(0), Some(9_000))));
        assert!(skipped(worth(Some(899), Some(9_000))));
        assert!(!skipped(worth(Some(900), Some(9_000))));
        assert!(!skipped(worth(None, Some(9_000))));
        assert!(!skipped(worth(Some(5), None)));
    }

    #[test]
    fn counts_only_what_this_very_step_would_free() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let record = |bytes, kind: &str, hours: Option<u64>| CacheRecord {
            kind: kind.to_owned(),
            bytes,
            in_use: false,
            shared: false,
            last_used: hours.map(|hours| now - Duration::from_secs(hours * 3600)),
        };
        let records = vec![
            record(1, "regular", Some(1)),
            record(10, "regular", Some(48)),
            record(100, "frontend", Some(72)),
            record(1000, "regular", None),
            CacheRecord { in_use: true, ..record(10_000, "regular", Some(72)) },
            CacheRecord { shared: true, ..record(100_000, "regular", Some(72)) },
        ];
        let cache = BuildCache { reclaimable_bytes: 1111, records: Some(records) };
        let estimate = |unused_for: Option<&str>, all, cache: &BuildCache| {
            let unused_for = unused_for.map(|age| age.parse().unwrap());
            BuildCachePrune { unused_for, all }.estimate(cache, now)
        };
        assert_eq!(estimate(Some("48h"), false, &cache), Some(1010));
        assert_eq!(estimate(Some("48h"), true, &cache), Some(1110));
        assert_eq!(estimate(None, true, &cache), Some(1111));
        // An engine that tells only sums: those of the age are not known.
        let sums = BuildCache { reclaimable_bytes: 1111, records: None };
        assert_eq!(estimate(Some("48h"), false, &sums), None);
        assert_eq!(estimate(None, true, &sums), Some(1111));
    }

    #[test]
    fn says_the_exact_call() {
        let target = crate::target::Selector {
            kind: Kind::Filesystem,
            label: String::new(),
            allow: vec!["/".parse().unwrap()],
        }
        .admit("/")
        .unwrap();
        let aged = BuildCachePrune { unused_for: Some("48h".parse().unwrap()), all: false };
        assert_eq!(aged.plan(&target), "POST /build/prune?all=false&filters={\"until\":[\"172800s\"]}");
        assert_eq!(
            BuildCachePrune { unused_for: None, all: true }.plan(&target),
            "POST /build/prune?all=true"
        );
    }
}
