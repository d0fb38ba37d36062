//! The containers without a stream of announcements: listed at each look, and inspected where something may have
//! changed that the list does not show.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_host::docker::{Docker, Engine, Error, Listed};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::{
    ContainerLabel, INSPECT_LIMIT,
    agenda::IN_FLIGHT,
    picture::{Id, Known, Picture, QUIET_AGE},
};

/// For clocks: the engine's runs on while it answers.
const AGE_MARGIN: Duration = Duration::from_secs(2);

/// What earlier looks learnt.
#[derive(Default)]
pub(super) struct ByList(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    engine: Option<(Engine, Instant)>,
    containers: BTreeMap<Id, Known>,
}

impl ByList {
    /// Looks by `deadline`; what was not inspected until then is described by the list.
    pub(super) async fn look(
        &self,
        docker: &Docker,
        labels: &[ContainerLabel],
        deadline: Instant,
    ) -> Result<Picture, Error> {
        // Taken, so that a look that fails or is dropped leaves nothing: the engine may come back as another one.
        let mut kept = std::mem::take(&mut *self.kept());
        let asked = Instant::now();
        let list = docker.containers().await?;
        let engine = engine(docker, kept.engine).await;
        let now = Instant::now();
        let looks = list.into_iter().map(|listed| {
            let kept = kept.containers.remove(&*listed.id).filter(|kept| is_current(kept, &listed, now));
            async move {
                let id = Id::from(listed.id.as_str());
                let known = match kept {
                    Some(kept) => Some(kept),
                    None => look_closer(docker, labels, listed, asked, deadline).await,
                };
                known.map(|known| (id, known))
            }
        });
        let looks = stream::iter(looks).buffer_unordered(IN_FLIGHT);
        let containers: BTreeMap<Id, Known> = looks.filter_map(std::future::ready).collect().await;
        *self.kept() = Kept { engine: engine.clone(), containers: containers.clone() };
        Ok(Picture { engine: engine.map(|(engine, _)| engine), containers })
    }

    /// Whoever follows the announcements knows better.
    pub(super) fn forget(&self) {
        *self.kept() = Kept::default();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what inspect said still holds, judged by the container's line of the list.
///
/// Restart count, exit code and times change only when the container starts or ends. The list shows neither, but its
/// status text gives a lower bound of the time since: when that is longer than the answer is old, nothing happened in
/// between.
fn is_current(kept: &Known, listed: &Listed, now: Instant) -> bool {
    let age = now.saturating_duration_since(kept.asked);
    kept.detail.is_some()
        && kept.agrees_with(listed)
        && age < kept.lifetime().unwrap_or(QUIET_AGE)
        && listed.unchanged_for().is_some_and(|unchanged| unchanged > age + AGE_MARGIN)
}

/// Adds what inspect says; `None` when the container went away meanwhile, which is normal life.
async fn look_closer(
    docker: &Docker,
    labels: &[ContainerLabel],
    listed: Listed,
    listed_at: Instant,
    deadline: Instant,
) -> Option<Known> {
    let asked = Instant::now();
    let answer = match asked < deadline {
        true => timeout_at(deadline.min(asked + INSPECT_LIMIT), docker.inspect(&listed.id)).await.ok(),
        false => None,
    };
    match answer {
        Some(Ok(Some(container))) => Some(Known::inspected(container, asked, labels)),
        Some(Ok(None)) => None,
        // The engine lists it and says no more about it: publish what the list says.
        Some(Err(error)) => {
            tracing::debug!(container = listed.name, %error, "not inspected");
            Some(Known::listed(listed, listed_at, labels))
        }
        None => {
            tracing::debug!(container = listed.name, "not inspected in time");
            Some(Known::listed(listed, listed_at, labels))
        }
    }
}

async fn engine(docker: &Docker, kept: Option<(Engine, Instant)>) -> Option<(Engine, Instant)> {
    if let Some(kept) = kept.filter(|(_, at)| at.elapsed() < QUIET_AGE) {
        return Some(kept);
    }
    let answer = docker.engine().await;
    let engine = answer.inspect_err(|error| tracing::debug!(%error, "the engine does not describe itself"));
    engine.ok().map(|engine| (engine, Instant::now()))
}
