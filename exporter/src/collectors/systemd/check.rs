//! Goes on behind the looks: proves the picture against the whole list and a sample of units, counts what no
//! announcement had told, and asks what systemd does not announce. Nobody looks, nothing is asked.

use std::sync::{Arc, Mutex, PoisonError, atomic::Ordering};

use evenkeel_host::systemd::Error;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{
    Pace,
    keeper::{Keeper, all_but_odd},
    link::Link,
    picture::{Picture, Proof},
};

/// One in so many published units is proved in each round, but not fewer or more than this: a proof is two questions, and
/// all of them together must stay below what the list costs.
const SHARE: usize = 64;
const LEAST: usize = 8;
const MOST: usize = 64;

/// Checks for ever.
pub(super) async fn keep_checking(keeper: Arc<Keeper>, pace: Pace) {
    loop {
        keeper.looked.notified().await;
        if let Err(error) = check(&keeper, &pace).await {
            // The next look finds out for itself whether systemd can be asked.
            debug!(%error, "cannot check what is known of systemd");
        }
        sleep(pace.check).await;
    }
}

pub(super) async fn check(keeper: &Keeper, pace: &Pace) -> Result<(), Error> {
    // Looks may come in between.
    let different = check_list(keeper).await? + check_sample(keeper).await?;
    if different > 0 {
        warn!(units = different, "units were otherwise than systemd had announced");
        keeper.missed.fetch_add(different, Ordering::Relaxed);
    }
    keeper.ask_about_sockets(pace).await?;
    keeper.ask_about_files(pace).await?;
    keeper.ask_about_references().await?;
    let mut desk = keeper.desk.lock().await;
    keeper.find_resting(&mut desk).await
}

/// Reads the list and says how many units were otherwise than announced.
async fn check_list(keeper: &Keeper) -> Result<u64, Error> {
    let mut desk = keeper.desk.lock().await;
    // As in a look: what fails or is given up half way leaves no belief.
    let Some(link) = desk.link.take().filter(Link::is_alive) else { return Ok(0) };
    let is_believed = |picture: &Picture| !picture.list_is_due() && !picture.is_blind(Instant::now());
    let was_believed = is_believed(&keeper.picture());
    let different = keeper.read_list(&link).await?;
    let was_believed = was_believed && is_believed(&keeper.picture());
    desk.link = Some(link);
    Ok(if was_believed { different } else { 0 })
}

/// Proves the details of those units that were not proved for longest, and says how many were otherwise.
async fn check_sample(keeper: &Keeper) -> Result<u64, Error> {
    let mut desk = keeper.desk.lock().await;
    let Some(link) = desk.link.take().filter(Link::is_alive) else { return Ok(0) };
    let (sample, since) = {
        let picture = keeper.picture();
        (picture.sample(SHARE, LEAST, MOST), picture.clock())
    };
    let marks = Mutex::new(Vec::with_capacity(sample.len()));
    all_but_odd(stream::iter(sample).map(async |unit| {
        let mark = keeper.systemd.mark(&unit).await?;
        marks.lock().unwrap_or_else(PoisonError::into_inner).push((unit, mark));
        Ok(())
    }))
    .await?;
    // What was announced before the last of the answers is no surprise.
    link.catch_up().await?;
    desk.link = Some(link);
    let (marks, now) = (marks.into_inner().unwrap_or_default(), Instant::now());
    let mut picture = keeper.picture();
    let proofs = marks.into_iter().map(|(unit, mark)| picture.prove(&unit, mark, since, now));
    Ok(proofs.map(|proof| u64::from(proof == Proof::Different)).sum())
}
