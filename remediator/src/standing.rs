//! Tells people, and the metrics, when the state does not lie where it belongs or was found damaged.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    journal::{Error, Standing},
    metrics::Metrics,
    notify::{Notice, Notifier, Occasion},
};

/// Tells of how the state stands, now and whenever that changes.
pub async fn watch(
    mut standing: watch::Receiver<Standing>,
    live: watch::Receiver<Arc<Config>>,
    notifier: Notifier,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut told: Option<Standing> = None;
    loop {
        let now = standing.borrow_and_update().clone();
        metrics.state_degraded(now.degraded.is_some());
        for (occasion, summary) in news(told.as_ref(), &now) {
            let config = Arc::clone(&live.borrow());
            if let Err(error) = tell(&config, &notifier, occasion, summary).await {
                tracing::error!(%error, "nobody can be told of the state");
            }
        }
        told = Some(now);
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// What is worth telling, and in a sentence why.
fn news(told: Option<&Standing>, now: &Standing) -> Vec<(Occasion, String)> {
    let mut news = Vec::new();
    if let Some(why) =
        now.damaged.as_ref().filter(|why| told.and_then(|told| told.damaged.as_ref()) != Some(why))
    {
        news.push((
            Occasion::StateLost,
            format!(
                "the state was damaged ({why}) and set aside: what was started before is not known, and every limit \
                 counts as used up until its window has passed; pauses are lost as well"
            ),
        ));
    }
    if let Some(why) = now.degraded.as_ref().filter(|_| told.is_none_or(|told| told.degraded.is_none())) {
        news.push((
            Occasion::StateDegraded,
            format!(
                "the state cannot be written where it belongs ({why}); it lies in {} and is gone with a reboot: mend \
                 the directory, then restart evenkeel-remediator",
                now.path.display()
            ),
        ));
    }
    news
}

async fn tell(
    config: &Config,
    notifier: &Notifier,
    occasion: Occasion,
    summary: String,
) -> Result<(), Error> {
    let host = config.hosts.first().map(String::as_str).unwrap_or_default();
    let notice = Notice::of_host(host, occasion, summary);
    notifier.to(&config.receivers, host).tell(&notice).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_told_once() {
        let well = Standing { path: "/var/lib/x".into(), degraded: None, damaged: None };
        let words = |told: Option<&Standing>, now: &Standing| {
            news(told, now).into_iter().map(|(occasion, _)| occasion.as_str()).collect::<Vec<_>>()
        };
        assert!(words(None, &well).is_empty());
        let damaged = Standing { damaged: Some("why".to_owned()), ..well.clone() };
        assert_eq!(words(None, &damaged), ["state_lost"]);
        assert_eq!(words(Some(&well), &damaged), ["state_lost"]);
        assert!(words(Some(&damaged), &damaged).is_empty());
        let degraded = Standing { degraded: Some("full".to_owned()), ..well.clone() };
        assert_eq!(words(Some(&well), &degraded), ["state_degraded"]);
        let still = Standing { degraded: Some("read-only".to_owned()), ..well };
        assert!(words(Some(&degraded), &still).is_empty());
        let text = &news(None, &degraded)[0].1;
        assert!(text.contains("(full)") && text.contains("/var/lib/x"), "{text}");
    }
}
