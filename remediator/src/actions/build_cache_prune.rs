//! Deletes build cache that no build uses, where that lies on the filesystem in need.

use std::{collections::HashMap, path::Path, time::Duration};

use bollard::{errors::Error as DockerError, query_parameters::PruneBuildOptionsBuilder};
use evenkeel_host::{
    config::{PromDuration, format_bytes},
    docker::{Engine, Object},
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
        kind == Kind::Filesystem
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
            let Observation::Filesystem(filesystem) = &job.seen else {
                return Ok(Check::Skip("not_a_filesystem", job.seen.summary()));
            };
            let refused = |error: evenkeel_host::docker::Error| Failure::Refused(format!("docker: {error}"));
            let engine = job.host.docker.engine().await.map_err(refused)?;
            let roots = cache_roots(&engine);
            let lies = if roots.len() == 1 { "lies" } else { "may lie" };
            for root in roots {
                let detail = match job.host.prober.usage(root, ROOT_TIMEOUT).await {
                    Ok(usage) if usage.device == Some(filesystem.device) => continue,
                    Ok(_) => format!("the build cache {lies} in {}", root.display()),
                    Err(error) => {
                        format!("where the build cache lies cannot be told: {}: {error}", root.display())
                    }
                };
                return Ok(Check::Skip("not_on_this_filesystem", detail));
            }
            // An engine that cannot say how much there is may still free it; one that says too little is skipped.
            let usage = job.host.docker.disk_usage(&[Object::BuildCache]).await;
            let reclaimable = usage.ok().and_then(|usage| usage.get(Object::BuildCache));
            Ok(worth(reclaimable.map(|usage| usage.reclaimable_bytes), job.deficit_bytes))
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
