//! The daemon: wires the parts together, serves until it is told to stop, and leaves nothing half-recorded.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use evenkeel_host::web::{self, Caller, Limits, ListenAddress, Listener, Security};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    assess::Assessor,
    clock::Clock,
    config::Config,
    control::{Control, Reloader},
    daemon::Sources,
    fleet::{self, agent::Agent, settings::Role},
    greeting,
    journal::Journal,
    metrics::Metrics,
    notify::{Notifier, Post, PostOffice},
    observe::Host,
    pipeline::{self, Arrivals, Report},
    reconcile::Reconciler,
    server::{Room, Server},
    standing,
    walk::Walker,
    worker::{Bell, Worker},
};

/// Between two looks of a verification.
const PACE: Duration = Duration::from_secs(1);
/// How long freed space may take to show in statvfs.
const SETTLE: Duration = Duration::from_secs(10);

/// Serves until `stop` is set; `role` is what it does in a fleet, where the configuration has one. Reads the configuration again whenever `hangups` is notified.
///
/// # Errors
/// When the state cannot be opened or the HTTP client not be made.
pub async fn run(
    config: Config,
    role: Role,
    listeners: Vec<Listener>,
    hangups: Arc<Notify>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let clock = Clock::default();
    let journal = Journal::open_in(config.places(), clock.clone())
        .with_context(|| format!("cannot open the state in {}", config.state_dir.display()))?;
    let tasks = TaskTracker::new();
    let host = Host::local();
    let metrics = Metrics::new(&config.rules);
    metrics.reloaded(true);
    // Messages about the last remediations are sent after the worker has ended.
    let notifier_stop = CancellationToken::new();
    let post = Post {
        journal: journal.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        bell: Arc::new(watch::Sender::new(())),
    };
    greeting::greet(&config, role);
    let reports = config.state_dir.join("reports");
    let (changes, live) = watch::channel(Arc::new(config));
    let config = Arc::clone(&live.borrow());
    if role.acts() {
        tasks.spawn(greeting::say_what_is_watched(Arc::clone(&config), host.clone()));
    }
    tasks.spawn(PostOffice::new(post.clone(), live.clone(), notifier_stop.clone())?.run());
    let notifier = Notifier::new(post);
    tasks.spawn(standing::watch(
        journal.standing(),
        live.clone(),
        notifier.clone(),
        metrics.clone(),
        stop.clone(),
    ));
    let started = clock.now();
    let arrivals = Arrivals::default();
    let (found, pipeline) = watch::channel(Report::default());
    tasks.spawn(pipeline::watch(live.clone(), arrivals.clone(), metrics.clone(), found, stop.clone()));
    let bell = Bell::default();
    let process = fleet::Process {
        live: &live,
        journal: &journal,
        clock: &clock,
        metrics: &metrics,
        bell: &bell,
        tasks: &tasks,
        stop: &stop,
    };
    let fleet = fleet::join(&config, role, process).await;
    let sources = Sources {
        started: started.clone(),
        metrics: metrics.clone(),
        standing: journal.standing(),
        pipeline,
        arrivals,
        role: config.fleet.is_some().then_some(role),
        fleet: fleet.seen,
    };
    let assessor = Assessor { reports, config: config.clone(), eyes: Arc::new(host.clone()), host, notifier }
        .under(config);
    let walker = Walker {
        assessor,
        journal: journal.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        pace: PACE,
        settle: SETTLE,
        started: Some(started),
        stop: stop.clone(),
        fleet: fleet.member,
    };
    tasks.spawn(Reconciler::new(walker.clone(), live.clone(), bell.clone()).run());
    let worker = tokio::spawn(Worker::new(walker, live.clone(), bell.clone()).run());
    let reloader = Arc::new(Reloader::new(changes, metrics.clone()));
    let control = Control {
        journal: journal.clone(),
        live: live.clone(),
        clock: clock.clone(),
        bell: bell.clone(),
        reloader,
        sources,
    };
    tasks.spawn(take_orders(control.clone(), stop.clone()));
    tasks.spawn(heed_hangups(hangups, control.clone(), stop.clone()));
    if let Some(settings) = live.borrow().fleet.clone().filter(|_| role.acts()) {
        let (journal, clock, metrics) = (journal.clone(), clock.clone(), metrics.clone());
        let agent = Agent::new(settings, live.clone(), journal, clock, metrics, bell.clone(), stop.clone());
        tasks.spawn(agent.run());
    }
    let gateway = fleet.gateway;
    let (room, stopped) = (Room::default(), stop.clone());
    let server = Server { live, journal, clock, metrics, bell, stop: stopped, room, control, gateway };
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

/// Serves the command line on this host. Without its socket everything else goes on.
async fn take_orders(control: Control, stop: CancellationToken) {
    let path = control.socket();
    match Listener::bind(&ListenAddress::Unix(path)).await {
        Ok(listener) => {
            let handler = move |request, caller: Caller| control.clone().answer_local(request, caller.peer);
            web::serve(vec![listener], Limits::default(), Security::default(), handler, stop).await;
        }
        Err(error) => {
            tracing::error!(%error, "the command line cannot approve, pause, trigger or reload");
        }
    }
}

/// Reads the configuration again at each SIGHUP.
async fn heed_hangups(hangups: Arc<Notify>, control: Control, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = hangups.notified() => {}
            () = stop.cancelled() => return,
        }
        // What is wrong with it has been logged, and is in the metrics.
        if control.reloader.reload().await.is_ok() {
            control.bell.urge();
        }
    }
}
