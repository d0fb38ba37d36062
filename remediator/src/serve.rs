//! The daemon: wires the parts together, serves until it is told to stop, and leaves nothing half-recorded.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use evenkeel_host::{
    build,
    web::{self, Limits, Listener},
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    assess::Assessor,
    clock::Clock,
    config::Config,
    journal::Journal,
    metrics::Metrics,
    notify::Notifier,
    observe::Host,
    policy::Mode,
    server::{Room, Server},
    walk::Walker,
    worker::Worker,
};

/// Between two looks of a verification.
const PACE: Duration = Duration::from_secs(1);
/// How long freed space may take to show in statvfs.
const SETTLE: Duration = Duration::from_secs(10);

/// Serves until `stop` is set.
///
/// # Errors
/// When the state cannot be opened or the HTTP client not be made.
pub async fn run(config: Config, listeners: Vec<Listener>, stop: CancellationToken) -> anyhow::Result<()> {
    let journal = Journal::open(&config.state_dir)
        .with_context(|| format!("cannot open the state in {}", config.state_dir.display()))?;
    let tasks = TaskTracker::new();
    let host = Host::local();
    let name = config.hosts.first().cloned().unwrap_or_default();
    // Messages about the last remediations are sent after the worker has ended.
    let notifier_stop = CancellationToken::new();
    let metrics = Metrics::new(&config.rules);
    let notifier = Notifier::start(config.receivers.clone(), &name, &metrics, &tasks, &notifier_stop)?;
    let assessor = Assessor {
        reports: config.state_dir.join("reports"),
        config: Arc::new(config),
        eyes: Arc::new(host.clone()),
        host,
        notifier,
    };
    greet(&assessor.config);
    let bell = Arc::new(Notify::new());
    let walker = Walker {
        assessor: assessor.clone(),
        journal: journal.clone(),
        clock: Clock::default(),
        metrics: metrics.clone(),
        pace: PACE,
        settle: SETTLE,
        stop: stop.clone(),
    };
    let worker = tokio::spawn(Worker::new(walker, bell.clone()).run());
    let server = Server {
        assessor,
        journal,
        clock: Clock::default(),
        metrics,
        bell,
        stop: stop.clone(),
        room: Room::default(),
    };
    let security = server.security();
    let handler = move |request, caller| server.clone().answer(request, caller);
    let stopping = stop.clone();
    let serving = web::serve(listeners, Limits::default(), security, handler, stop);
    let worked = async {
        let result = worker.await;
        // A remediator that accepts alerts and no longer works on them must not live on: systemd starts it again.
        stopping.cancel();
        notifier_stop.cancel();
        result
    };
    let (worked, ()) = tokio::join!(worked, serving);
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await;
    worked.context("the worker broke off")?.context("the state is lost")
}

/// Says at the start what it is going to do.
fn greet(config: &Config) {
    tracing::info!(
        hosts = config.hosts.join(", "),
        rules = config.rules.len(),
        mode = config.mode.as_str(),
        deletion = config.deletion.as_str(),
        state = %config.state_dir.display(),
        version = build::VERSION,
        "evenkeel-remediator starts"
    );
    if config.rules.iter().all(|rule| rule.mode == Mode::Plan) {
        tracing::info!(
            "every rule is in mode plan: nothing is changed, and history says what would have been done"
        );
    }
    if config.rules.is_empty() {
        tracing::warn!("there are no rules: every alert is ignored");
    }
    if config.access.open {
        tracing::warn!("auth: none: every user of this machine may post alerts");
    }
    if rustix::process::geteuid().is_root() {
        tracing::warn!("running as root: the packaged unit needs no root");
    }
}
