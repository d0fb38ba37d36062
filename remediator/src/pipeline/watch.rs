//! Looks at the pipeline at the pace at which the remediator looks at everything else between deliveries, and says when
//! something about it has changed.

use std::{collections::BTreeSet, sync::Arc};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Arrivals, Check, Report, State, look};
use crate::{config::Config, metrics::Metrics};

/// Looks until `stop` is set. What it finds goes to `found` and into the metrics.
pub async fn watch(
    mut live: watch::Receiver<Arc<Config>>,
    arrivals: Arrivals,
    metrics: Metrics,
    found: watch::Sender<Report>,
    stop: CancellationToken,
) {
    let mut last = Instant::now();
    let mut known = BTreeSet::new();
    loop {
        let interval = live.borrow_and_update().reconcile.interval;
        tokio::select! {
            () = sleep_until(last + interval) => {}
            changed = live.changed() => {
                if changed.is_err() { return }
                continue;
            }
            () = stop.cancelled() => return,
        }
        let config = Arc::clone(&live.borrow());
        // What nobody has configured is not asked, and is no news.
        if config.prometheus.is_none() && config.alertmanager.is_none() {
            metrics.pipeline(None);
            found.send_replace(Report::default());
        } else {
            let rules: Vec<_> = config.rules.iter().collect();
            let arrived = arrivals.all();
            let report = tokio::select! {
                report = look(&config, &rules, &arrived, Some(&metrics)) => report,
                () = stop.cancelled() => return,
            };
            metrics.pipeline(Some(&report));
            known = tell(&report, known);
            found.send_replace(report);
        }
        last = Instant::now();
    }
}

/// Logs what begins and ends to fail, each once; answers what fails now.
fn tell(report: &Report, before: BTreeSet<Check>) -> BTreeSet<Check> {
    let failing: BTreeSet<Check> =
        Check::ALL.into_iter().filter(|check| report.state(*check) == State::Failing).collect();
    for finding in report.findings.iter().filter(|finding| finding.state == State::Failing) {
        if !before.contains(&finding.check) {
            let (check, detail, cure) = (finding.check.as_str(), &finding.detail, &finding.cure);
            tracing::warn!(check, detail, cure, "alerts may not arrive");
        }
    }
    for check in before.difference(&failing) {
        tracing::info!(check = check.as_str(), state = report.state(*check).as_str(), "no longer failing");
    }
    failing
}
