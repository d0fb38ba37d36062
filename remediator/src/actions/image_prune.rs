//! Deletes images that nothing uses: those without a name by the engine's own prune, named ones by a selection of our
//! own, one by one and never by force, until the disk has what it lacked.

mod selection;

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bollard::{
    errors::Error as DockerError,
    query_parameters::{PruneImagesOptionsBuilder, RemoveImageOptions},
};
use evenkeel_host::{
    config::PromDuration,
    docker::{Image, Object},
};
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use schemars::JsonSchema;
use serde::Deserialize;

use self::selection::{Keep, Selection};
use super::{
    Action, Check, Done, Failure, Job, Permission,
    disk::{self, Freed},
    engine,
};
use crate::{
    pattern::Pattern,
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "image_prune";

/// Images that are asked about at the same time.
const AT_ONCE: usize = 8;
/// Names that are told of what was deleted.
const TOLD: usize = 10;

/// Deletes images without a name (class D1), or with `unused` also those that no container uses (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) enum ImagePrune {
    /// Images without a name.
    Dangling {
        /// Only such as were built so long ago.
        min_age: Option<PromDuration>,
    },
    /// Named images too.
    Unused(Keep),
}

/// Deletes images without a name (class D1), or with `unused` also those that no container uses (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// Also images that have a name, where no container uses them.
    #[serde(default)]
    unused: bool,
    /// Only such as came here, or for nameless ones were built, so long ago.
    min_age: Option<PromDuration>,
    /// Names that are never deleted.
    keep: Option<Vec<Pattern>>,
    /// So many of each repository stay, the newest.
    keep_last: Option<usize>,
    /// Also images that cannot be pulled again.
    locally_built: Option<bool>,
}

impl TryFrom<Parameters> for ImagePrune {
    type Error = String;

    fn try_from(given: Parameters) -> Result<Self, String> {
        if given.unused {
            return Ok(Self::Unused(Keep {
                min_age: given.min_age.map_or(Duration::from_secs(30 * 86_400), |age| age.get()),
                patterns: given.keep.unwrap_or_default(),
                last: given.keep_last.unwrap_or(1),
                locally_built: !given.locally_built.unwrap_or(false),
            }));
        }
        if given.keep.is_some() || given.keep_last.is_some() || given.locally_built.is_some() {
            return Err(
                "keep, keep_last and locally_built go with `unused: true`: without it only images without a name are deleted"
                    .to_owned(),
            );
        }
        Ok(Self::Dangling { min_age: given.min_age })
    }
}

impl Action for ImagePrune {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        match self {
            Self::Dangling { .. } => Class::D1,
            Self::Unused(_) => Class::D2,
        }
    }

    fn fits(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Filesystem | Kind::Host)
    }

    fn timeout(&self) -> Duration {
        // Deleting tens of gigabytes on a full disk takes minutes.
        Duration::from_secs(15 * 60)
    }

    fn plan(&self, _: &Target) -> String {
        match self {
            Self::Dangling { min_age } => match min_age {
                None => "POST /images/prune?filters={\"dangling\":[\"true\"]}".to_owned(),
                Some(age) => format!(
                    "POST /images/prune?filters={{\"dangling\":[\"true\"],\"until\":[\"{}s\"]}}",
                    age.get().as_secs()
                ),
            },
            Self::Unused(keep) => format!("DELETE /images/NAME?force=false of each image that {keep}"),
        }
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        // Exactly this filter: another one would let all unused images go.
        const DANGLING: &str = concat!(
            r"/images/prune\?filters=%7B(%22until%22%3A%5B%22[0-9]+s%22%5D%2C)?",
            r"%22dangling%22%3A%5B%22true%22%5D(%2C%22until%22%3A%5B%22[0-9]+s%22%5D)?%7D"
        );
        let mut needed = vec![Permission::Docker { method: "GET", path: "/images/json" }];
        needed.extend(match self {
            Self::Dangling { .. } => vec![Permission::Docker { method: "POST", path: DANGLING }],
            Self::Unused(_) => vec![
                Permission::Docker { method: "GET", path: "/images/sha256:[0-9a-f]{64}/json" },
                // By a name or an id, and never forced.
                Permission::Docker {
                    method: "DELETE",
                    path: r"/images/[A-Za-z0-9][A-Za-z0-9_./:-]*\?force=false&noprune=false",
                },
            ],
        });
        needed
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let engine = job.host.docker.engine().await.map_err(disk::engine_unseen)?;
            if let Some(check) = disk::elsewhere(job, "images", &disk::image_places(&engine)).await {
                return Ok(check);
            }
            let (bytes, told) = match self {
                Self::Dangling { min_age } => {
                    let oldest = min_age.as_ref().and_then(|age| SystemTime::now().checked_sub(age.get()));
                    (nameless(job, oldest).await?, "no image that is old enough is without a name".to_owned())
                }
                Self::Unused(keep) => {
                    let selection = select(job, keep).await?;
                    (sum(&selection.deleted), selection.kept_because())
                }
            };
            if bytes == 0 {
                return Ok(Check::Skip("nothing_to_delete", told));
            }
            // Layers that images share are counted with each of them; the engine knows what all of them hold.
            let usage = disk::counted(job.host.docker.disk_usage(&[Object::Images])).await;
            let all =
                usage.and_then(|usage| usage.get(Object::Images)).map(|images| images.reclaimable_bytes);
            Ok(disk::worth(job, Freed::files(Some(all.map_or(bytes, |all| bytes.min(all))))))
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            match self {
                Self::Dangling { min_age } => self.prune(job, min_age.as_ref()).await,
                Self::Unused(keep) => delete(job, keep).await,
            }
        })
    }
}

impl ImagePrune {
    async fn prune(&self, job: &Job, min_age: Option<&PromDuration>) -> Result<Done, Failure> {
        let client = job.host.docker.client().await.map_err(disk::engine_unseen)?;
        // Its own time-out is for small questions; this call ends when the engine has deleted.
        let client = client.with_timeout(self.timeout());
        let mut filters = HashMap::from([("dangling", vec!["true".to_owned()])]);
        if let Some(age) = min_age {
            filters.insert("until", vec![format!("{}s", age.get().as_secs())]);
        }
        let options = PruneImagesOptionsBuilder::new().filters(&filters).build();
        let answer = client.prune_images(Some(options)).await.map_err(engine::prune_failure)?;
        let deleted = answer.images_deleted.unwrap_or_default();
        let images = deleted.iter().filter(|item| item.deleted.is_some()).count();
        Ok(Done {
            detail: format!("the engine deleted {images} images and layers"),
            claimed_freed_bytes: answer.space_reclaimed.and_then(|bytes| u64::try_from(bytes).ok()),
        })
    }
}

/// The bytes of images without a name that no container uses and, where a time is given, that were built before it.
async fn nameless(job: &Job, before: Option<SystemTime>) -> Result<u64, Failure> {
    let images = job.host.docker.images().await.map_err(disk::engine_unseen)?;
    let containers = job.host.docker.containers().await.map_err(disk::engine_unseen)?;
    let goes = |image: &&Image| {
        image.tags.is_empty()
            && image.digests.is_empty()
            && before.is_none_or(|before| image.created.is_none_or(|built| built <= before))
            && containers.iter().all(|container| container.image_id != image.id)
    };
    Ok(images.iter().filter(goes).map(|image| image.bytes).fold(0, u64::saturating_add))
}

fn sum(images: &[Image]) -> u64 {
    images.iter().map(|image| image.bytes).fold(0, u64::saturating_add)
}

/// What may go now, the one that came here first before the others.
async fn select(job: &Job, keep: &Keep) -> Result<Selection, Failure> {
    let docker = &job.host.docker;
    let engine = docker.engine().await.map_err(disk::engine_unseen)?;
    let images = docker.images().await.map_err(disk::engine_unseen)?;
    let containers = docker.containers().await.map_err(disk::engine_unseen)?;
    let ids: Vec<String> = images.iter().map(|image| image.id.clone()).collect();
    let came: HashMap<String, _> = stream::iter(ids)
        .map(|id| async move { docker.image_tagged(&id).await.map(|tagged| (id, tagged)) })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
        .map_err(disk::engine_unseen)?;
    let is_containerd = disk::is_containerd_store(&engine);
    Ok(selection::select(images, &containers, &came, keep, is_containerd, SystemTime::now()))
}

/// Deletes what is selected now, until the disk has enough.
async fn delete(job: &Job, keep: &Keep) -> Result<Done, Failure> {
    let selection = select(job, keep).await?;
    let client = job.host.docker.client().await.map_err(disk::engine_unseen)?;
    let client = client.with_timeout(Duration::from_secs(300));
    let (mut gone, mut refused, mut left) = (Vec::new(), Vec::new(), 0);
    for image in &selection.deleted {
        if disk::is_enough(job).await {
            left += 1;
            continue;
        }
        match forget(&client, image).await {
            Ok(()) => gone.push(name_of(image)),
            // A container was made of it meanwhile, or another image needs it: the engine knows better.
            Err((taken, DockerError::DockerResponseServerError { status_code: 404 | 409, .. })) => {
                refused.push(match taken {
                    [] => name_of(image),
                    names => format!("{} without its name {}", name_of(image), names.join(", ")),
                });
            }
            Err(([], error)) if gone.is_empty() => return Err(engine::failure(error)),
            Err((taken, error)) => {
                gone.extend(taken.iter().cloned());
                return Err(Failure::Unknown(format!("deleted {}, then: {error}", shown(&gone))));
            }
        }
    }
    let mut detail = format!("deleted {}", shown(&gone));
    if !refused.is_empty() {
        detail += &format!("; the engine keeps {}", shown(&refused));
    }
    if left > 0 {
        detail += &format!("; {left} more were not needed to reach the mark");
    }
    Ok(Done { detail, ..Done::default() })
}

/// Takes every name from an image: with the last one it is deleted. By its id the engine would refuse one that has
/// several names, unless forced. With an error come the names that it has lost by then.
async fn forget<'a>(client: &bollard::Docker, image: &'a Image) -> Result<(), (&'a [String], DockerError)> {
    let options = RemoveImageOptions { force: false, noprune: false, platforms: None };
    let names = if image.tags.is_empty() { std::slice::from_ref(&image.id) } else { image.tags.as_slice() };
    for (taken, name) in names.iter().enumerate() {
        let removed = client.remove_image(name, Some(options.clone()), None).await;
        removed.map_err(|error| (&names[..taken], error))?;
    }
    Ok(())
}

fn name_of(image: &Image) -> String {
    image.tags.first().unwrap_or(&image.id).clone()
}

fn shown(names: &[String]) -> String {
    let more = names.len().saturating_sub(TOLD);
    let first = names.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    match (names.is_empty(), more) {
        (true, _) => "no image".to_owned(),
        (false, 0) => first,
        (false, more) => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
