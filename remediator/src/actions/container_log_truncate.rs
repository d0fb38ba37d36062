//! Cuts the oldest part off the logs of containers that the engine does not rotate. The newest part stays, in place: the
//! engine goes on writing to the same file.

mod cut;

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use evenkeel_host::config::{Bytes, format_bytes};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission, by_root,
    disk::{self, Freed, engine_unseen},
};
use crate::{
    helper::Verb,
    pattern::Pattern,
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "container_log_truncate";

/// Less than this of a log is never left.
const FLOOR: u64 = 8 * 1024 * 1024;

/// Cuts the oldest part off containers' logs, in place (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) struct ContainerLogTruncate {
    containers: Vec<Pattern>,
    keep_size: u64,
}

/// Cuts the oldest part off containers' logs, in place (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// Whose logs: names of containers, with * and ?.
    #[schemars(extend("minItems" = 1))]
    containers: Vec<Pattern>,
    /// So much of each stays, the newest; 8MiB at least.
    #[schemars(extend("default" = "64MiB"))]
    keep_size: Option<Bytes>,
}

impl TryFrom<Parameters> for ContainerLogTruncate {
    type Error = String;

    fn try_from(Parameters { containers, keep_size }: Parameters) -> Result<Self, String> {
        let keep_size = keep_size.map_or(64 * 1024 * 1024, |size| size.get());
        if containers.is_empty() || containers.iter().any(Pattern::matches_all) {
            return Err(
                "`container_log_truncate.containers` names whose logs may be cut: [\"shop_*\"]".to_owned()
            );
        }
        if keep_size < FLOOR {
            return Err(format!(
                "`container_log_truncate.keep_size` is {}: at least 8MiB of a log stay",
                format_bytes(keep_size)
            ));
        }
        Ok(Self { containers, keep_size })
    }
}

impl Action for ContainerLogTruncate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::D2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Filesystem
    }

    fn plan(&self, _: &Target) -> String {
        let names: Vec<String> = self.containers.iter().map(ToString::to_string).collect();
        let call = format!(
            "cut all but the last {} off the log of each container {}",
            format_bytes(self.keep_size),
            names.join(", ")
        );
        by_root::plan(&call, Verb::ContainerLogTruncate)
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Helper(Verb::ContainerLogTruncate.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let engine = job.host.docker.engine().await.map_err(engine_unseen)?;
            let place = [engine.root_dir.join("containers")];
            if let Some(check) = disk::elsewhere(job, "containers' logs", &place).await {
                return Ok(check);
            }
            let logs = self.logs(job).await?;
            if logs.is_empty() {
                return Ok(Check::Skip(
                    "nothing_to_delete",
                    "no such container has a log of the driver json-file".to_owned(),
                ));
            }
            let keep = self.keep_size;
            let sizes = tokio::task::spawn_blocking(move || {
                logs.iter()
                    .map(|(_, path)| std::fs::symlink_metadata(path).map(|log| log.blocks() * 512))
                    .collect::<Vec<_>>()
            });
            let sizes = sizes.await.map_err(|broken| Failure::Refused(broken.to_string()))?;
            // The folder of the engine is root's: then only the helper sees what there is to cut.
            let most = sizes.into_iter().try_fold(0_u64, |sum, size| {
                size.ok().map(|size| sum.saturating_add(size.saturating_sub(keep)))
            });
            Ok(match most {
                Some(0) => {
                    Check::Skip("nothing_to_delete", format!("no log is larger than {}", format_bytes(keep)))
                }
                // The files stay.
                bytes => disk::worth(job, Freed { bytes, inodes: Some(0) }),
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            if !by_root::is_root() {
                return by_root::done(job, Verb::ContainerLogTruncate).await;
            }
            let (mut cut, mut freed, mut failed) = (Vec::new(), 0_u64, Vec::new());
            for (name, path) in self.logs(job).await? {
                let keep = self.keep_size;
                let outcome = tokio::task::spawn_blocking(move || cut::cut(&path, keep)).await;
                match outcome.unwrap_or_else(|broken| Err(std::io::Error::other(broken))) {
                    Ok(0) => {}
                    Ok(bytes) => {
                        freed = freed.saturating_add(bytes);
                        cut.push(format!("{name} {}", format_bytes(bytes)));
                    }
                    Err(error) => failed.push(format!("{name}: {error}")),
                }
            }
            match (cut.is_empty(), failed.is_empty()) {
                (true, false) => Err(Failure::Refused(failed.join("; "))),
                (true, true) => Ok(Done { detail: "nothing was left to cut".to_owned(), ..Done::default() }),
                (false, _) => {
                    failed.insert(0, format!("cut off {}", cut.join(", ")));
                    Ok(Done { detail: failed.join("; "), claimed_freed_bytes: Some(freed) })
                }
            }
        })
    }
}

impl ContainerLogTruncate {
    /// The named containers and their logs, as far as they are where the engine's driver `json-file` has them and
    /// nowhere else: what it says is a path that root will write to.
    async fn logs(&self, job: &Job) -> Result<Vec<(String, PathBuf)>, Failure> {
        let engine = job.host.docker.engine().await.map_err(engine_unseen)?;
        let mut logs = Vec::new();
        for listed in job.host.docker.containers().await.map_err(engine_unseen)? {
            if !self.containers.iter().any(|pattern| pattern.matches(&listed.name)) {
                continue;
            }
            let Some(container) = job.host.docker.inspect(&listed.id).await.map_err(engine_unseen)? else {
                continue;
            };
            if container
                .log_path
                .is_some_and(|path| Some(&path) == log_of(&engine.root_dir, &container.id).as_ref())
            {
                logs.push((
                    container.name.clone(),
                    log_of(&engine.root_dir, &container.id).unwrap_or_default(),
                ));
            }
        }
        Ok(logs)
    }
}

/// Where `json-file` keeps a container's log.
fn log_of(root: &Path, id: &str) -> Option<PathBuf> {
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_id.then(|| root.join("containers").join(id).join(format!("{id}-json.log")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::actions::{Step, bench::Bench};

    fn step(text: &str) -> Result<Step, String> {
        let steps: Result<Vec<Step>, _> =
            evenkeel_host::config::parse("t.yml", &format!("- container_log_truncate: {text}\n"));
        steps.map(|mut steps| steps.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_log_is_never_cut_to_nothing_nor_everybody_s() {
        assert_eq!(step("{containers: [shop_*]}").unwrap().0.class(), Class::D2);
        assert!(step("{containers: [shop_*], keep_size: 1MiB}").unwrap_err().contains("at least 8MiB"));
        for all in ["[]", "['*']"] {
            assert!(
                step(&format!("{{containers: {all}}}")).unwrap_err().contains("names whose logs"),
                "{all}"
            );
        }
        assert!(step("{}").is_err());
    }

    #[tokio::test]
    async fn only_the_engine_s_own_log_of_a_named_container_is_one() {
        let bench = Bench::new(|path| {
            let one = |id: &str, log: &str| {
                Some(json!({"Id": id, "Name": format!("/{id}"), "LogPath": log}).to_string())
            };
            match path {
                "/info" => Some(json!({"DockerRootDir": "/data"}).to_string()),
                "/containers/json?all=1" => Some(
                    json!(
                        ["shop1", "shop2", "shop3", "other"]
                            .map(|id| json!({"Id": id, "Names": [format!("/{id}")], "State": "running"}))
                    )
                    .to_string(),
                ),
                "/containers/shop1/json" => one("shop1", "/data/containers/shop1/shop1-json.log"),
                "/containers/shop2/json" => one("shop2", "/etc/passwd"),
                "/containers/shop3/json" => one("shop3", ""),
                "/containers/other/json" => one("other", "/data/containers/other/other-json.log"),
                _ => None,
            }
        });
        let action = ContainerLogTruncate { containers: vec!["shop*".parse().unwrap()], keep_size: FLOOR };
        let logs = action.logs(&bench.disk("/", 100)).await.unwrap();
        assert_eq!(logs, [("shop1".to_owned(), PathBuf::from("/data/containers/shop1/shop1-json.log"))]);
    }
}
