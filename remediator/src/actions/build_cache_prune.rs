//! Deletes build cache that no build uses, where that lies on the filesystem in need.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bollard::query_parameters::PruneBuildOptionsBuilder;
use evenkeel_host::{
    config::PromDuration,
    docker::{BuildCache, CacheRecord},
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission,
    disk::{self, Freed},
    engine,
};
use crate::{
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "build_cache_prune";

/// Deletes build cache that no running build uses, only where it lies on the filesystem in need (class D1).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
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
            let engine = job.host.docker.engine().await.map_err(disk::engine_unseen)?;
            if let Some(check) = disk::elsewhere(job, "the build cache", &disk::image_places(&engine)).await {
                return Ok(check);
            }
            // An engine that cannot say how much there is may still free it; one that says too little is skipped.
            let records = disk::counted(job.host.docker.build_cache()).await;
            let reclaimable = records.and_then(|cache| self.estimate(&cache, SystemTime::now()));
            Ok(disk::worth(job, Freed::files(reclaimable)))
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let client = job.host.docker.client().await.map_err(disk::engine_unseen)?;
            // Its own time-out is for small questions; this call ends when the engine has deleted.
            let client = client.with_timeout(self.timeout());
            let mut options = PruneBuildOptionsBuilder::new().all(self.all);
            if let Some(age) = &self.unused_for {
                // Durations are understood by every engine since API 1.39, as `until` of BuildKit's records.
                let age = vec![format!("{}s", age.get().as_secs())];
                options = options.filters(&HashMap::from([("until".to_owned(), age)]));
            }
            let answer = client.prune_build(Some(options.build())).await.map_err(engine::prune_failure)?;
            let entries = answer.caches_deleted.map_or(0, |caches| caches.len());
            Ok(Done {
                detail: format!("the engine deleted {entries} entries"),
                claimed_freed_bytes: answer.space_reclaimed.and_then(|bytes| u64::try_from(bytes).ok()),
            })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::bench::Bench;

    /// An engine whose cache holds one old record and one of now, with its folder at `root`.
    fn answer(path: &str, root: &str, driver: &str) -> Option<String> {
        let now = jiff::Timestamp::now();
        Some(match path {
            "/info" => format!(
                r#"{{"DockerRootDir": "{root}", "Driver": "overlay2", "DriverStatus": [["driver-type", "{driver}"]]}}"#
            ),
            path if path.starts_with("/system/df") => format!(
                r#"{{"BuildCache": [{{"Type": "regular", "Size": 5000, "LastUsedAt": "2020-01-01T00:00:00Z"}},
                                    {{"Type": "regular", "Size": 300, "LastUsedAt": "{now}"}}]}}"#
            ),
            path if path.starts_with("/build/prune?") => {
                r#"{"CachesDeleted": ["a", "b"], "SpaceReclaimed": 4200}"#.to_owned()
            }
            _ => return None,
        })
    }

    fn aged() -> BuildCachePrune {
        BuildCachePrune { unused_for: Some("48h".parse().unwrap()), all: false }
    }

    #[tokio::test]
    async fn the_call_is_the_planned_one_and_the_claim_is_the_engine_s() {
        let bench = Bench::new(|path| answer(path, "/", ""));
        let job = bench.disk("/", 100);
        assert_eq!(aged().check(&job).await, Ok(Check::Frees(5000)));
        let done = aged().run(&job).await.unwrap();
        assert_eq!(
            (done.detail.as_str(), done.claimed_freed_bytes),
            ("the engine deleted 2 entries", Some(4200))
        );
        let calls: Vec<String> =
            bench.docker.take_requests().into_iter().filter(|path| path.contains("/build/prune")).collect();
        // No size to keep: an engine that does not know the word would delete everything.
        assert_eq!(calls, ["/build/prune?all=false&filters=%7B%22until%22%3A%5B%22172800s%22%5D%7D"]);
    }

    #[tokio::test]
    async fn another_prune_at_work_is_waited_for_and_an_engine_in_trouble_is_unknown() {
        let bench = Bench::refusing("/build/prune", 409, |path| answer(path, "/", ""));
        let failed = aged().run(&bench.disk("/", 100)).await;
        assert_eq!(failed, Err(Failure::Busy("the engine prunes already: no".to_owned())));
        let bench = Bench::refusing("/build/prune", 500, |path| answer(path, "/", ""));
        assert!(matches!(aged().run(&bench.disk("/", 100)).await, Err(Failure::Unknown(_))));
    }

    #[tokio::test]
    async fn a_cache_elsewhere_or_who_knows_where_frees_nothing_here() {
        // What is not there is nowhere, and not on the disk that it would be on.
        for (root, driver) in
            [("/proc", ""), ("/no/such/folder", ""), ("/proc", "io.containerd.snapshotter.v1")]
        {
            let bench = Bench::new(move |path| answer(path, root, driver));
            let check = aged().check(&bench.disk("/", 100)).await;
            assert!(matches!(check, Ok(Check::Skip("not_on_this_filesystem", _))), "{root}: {check:?}");
        }
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
