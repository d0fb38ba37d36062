//! Fleets in one process, with a real Redis and everything of the remediator that ships; only what is looked at and what is
//! done are not real. One cause breaks all hosts, and meanwhile hosts are cut off, die and come back, alerts come twice,
//! clocks are minutes apart, and Redis forgets, dies or is replaced. What was done is counted by the world, never by what
//! the remediators believe.
//!
//! What happens is drawn from a seed, which a failure prints: `SEED=17 make simulation` draws the same again.

mod machine;
mod server;
mod stage;
mod world;

use std::{env, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use self::{
    server::{Server, Toll},
    stage::{Chance, Stage, Ways},
};

/// Few enough for each to have connections of its own.
const FEW: usize = 50;
/// Until everything is over, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(90);

/// A source of chance, whose seed a failed test's output names.
fn chance() -> Chance {
    let seed = env::var("SEED").ok().map_or(17, |seed| seed.parse().expect("SEED is no number"));
    println!("SEED={seed}");
    Chance::new(seed)
}

fn all(stage: &Stage) -> Vec<usize> {
    (0..stage.machines.len()).collect()
}

/// Times as short as a busy machine allows: an action takes 50 ms, and no process is held up for as long as a lease.
const SHORT: &str = "  heartbeat: 300ms
  lost_after: 1500ms
  timeout: 700ms
  lease: 3s
  spread: 1s";

/// Hosts are cut off, die and come back, and clocks are set, while all of them are in need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_hosts_of_one_cause_are_repaired_once_each_and_never_too_many_at_once() {
    const MOST: usize = 5;
    let (server, mut chance) = (Server::start().await, chance());
    // A host that cannot ask does nothing: only what Redis admitted is done.
    let fleet =
        format!("{SHORT}\n  max_hosts_acting: {MOST}\n  stop_above_unhealthy: 100%\n  on_loss: {{S2: deny}}");
    let mut stage = Stage::start(&server, FEW, &fleet, Ways::Own, &mut chance).await;
    let mut hosts = all(&stage);
    chance.shuffle(&mut hosts);
    stage.fail(&hosts).await;
    // One dies while it acts, for good: nobody waits for it for longer than its lease.
    let mut dead = None;
    for _ in 0..60 {
        let host = chance.below(FEW);
        match chance.below(5) {
            0 => {
                stage.paths[host].cut();
                sleep(Duration::from_millis(200)).await;
                stage.paths[host].mend();
            }
            1 => stage.paths[host].cut(),
            2 if Some(host) != dead => {
                stage.machines[host].die().await;
                stage.machines[host].start();
            }
            3 => stage.machines[host].set_clock(chance.skew()),
            _ => stage.deliver(&[host]).await,
        }
        if dead.is_none() {
            dead = hosts.iter().copied().find(|host| stage.world.is_acting(*host));
            if let Some(dead) = dead {
                stage.machines[dead].die().await;
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    for path in &stage.paths {
        path.mend();
    }
    let dead = dead.expect("nobody acted");
    let done = || stage.is_at_rest() && stage.world.failed().iter().all(|host| *host == dead);
    stage
        .until("all that live to be repaired", SOON, done, async || {
            stage.deliver(&stage.world.failed()).await;
        })
        .await;
    let view = stage.sees("the one that is dead to be gone", |view| view.gone == 1).await;
    assert_eq!(view.gone_hosts[0].0, stage.machines[dead].name);
    let waits = view.backlog.unwrap();
    assert!(waits.hosts.iter().any(|(host, _)| *host == stage.machines[dead].name), "{waits:?}");

    stage.machines[dead].start();
    let done = || stage.is_at_rest() && stage.world.failed().is_empty();
    stage
        .until("the dead one to come back", SOON, done, async || stage.deliver(&stage.world.failed()).await)
        .await;
    stage.sees("nothing to wait", |view| view.gone == 0 && view.backlog.as_ref().unwrap().alerts == 0).await;
    assert_eq!(stage.world.wrong(), Vec::<String>::new(), "{}", stage.summary());
    assert!(stage.world.most_acting() <= MOST, "{}", stage.summary());
    assert_eq!(stage.world.hosts_that_acted(), FEW, "{}", stage.summary());
    // What is for nobody is seen.
    assert_eq!(stage.deliver_by(0, &["nowhere".to_owned()], "firing").await, 1);
    stage
        .sees("the name that nobody has", |view| view.unclaimed.iter().any(|(name, _)| name == "nowhere"))
        .await;
}

/// A repair that cures nothing on any host: a common cause that no restart is for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cause_that_no_repair_cures_stops_the_fleet_and_every_host_says_so() {
    const MOST: usize = 5;
    /// 40 % of them.
    const TOO_MANY: usize = FEW * 2 / 5;
    let (server, mut chance) = (Server::start().await, chance());
    let fleet = format!("{SHORT}\n  max_hosts_acting: {MOST}\n  on_loss: {{S2: deny}}");
    let stage = Stage::start(&server, FEW, &fleet, Ways::Own, &mut chance).await;
    stage.world.curable(false);
    stage.fail(&all(&stage)).await;
    let told = || stage.that_say("fleet_stop") + stage.world.hosts_that_acted() >= FEW;
    stage.until("each to act or to say why not", SOON, told, async || {}).await;
    let acted = stage.world.hosts_that_acted();
    assert!(acted <= TOO_MANY, "{acted} hosts acted: {}", stage.summary());
    assert!(stage.world.most_acting() <= MOST, "{}", stage.summary());
    stage.sees("the stop", |view| view.stopped).await;

    // People mend the cause, and most of what it broke: the rest goes on by itself.
    stage.world.curable(true);
    let by_hand = |host: &usize| stage.world.has_acted(*host) || *host >= FEW / 5;
    let mended: Vec<usize> = all(&stage).into_iter().filter(by_hand).collect();
    for host in &mended {
        stage.world.mend(*host);
    }
    stage.resolve(&mended).await;
    let done = || stage.world.failed().is_empty() && stage.is_at_rest();
    stage.until("the others to be repaired", SOON, done, async || {}).await;
    assert!(stage.world.most_acting() <= MOST, "{}", stage.summary());
    assert_eq!(stage.world.wrong(), Vec::<String>::new(), "{}", stage.summary());
}

/// Redis is replaced by its replica, and then by one that knows nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_the_fleet_is_never_exceeded_over_failover_and_loss() {
    const BUDGET: usize = 20;
    let (mut server, mut chance) = (Server::start().await, chance());
    let limits = format!("  limits: {{S2: [{BUDGET}/1h]}}");
    let fleet = format!(
        "{SHORT}\n{limits}\n  max_hosts_acting: 10\n  stop_above_unhealthy: 100%\n  on_loss: {{S2: deny}}"
    );
    let stage = Stage::start(&server, FEW, &fleet, Ways::Own, &mut chance).await;
    let hosts = all(&stage);
    let repeat = async || stage.deliver(&stage.world.failed()).await;

    stage.fail(&hosts[..10]).await;
    stage.until("half of the budget to be used", SOON, || stage.world.failed().is_empty(), repeat).await;
    let mut replica = Server::start().await;
    replica.follow(&server).await;
    replica.say("REPLICAOF NO ONE").await;
    stage.lead.turn(&replica);
    server.kill();
    stage.fail(&hosts[10..40]).await;
    let spent = || stage.world.failed().len() == 20 && stage.that_say("fleet_limited") >= 20;
    stage.until("the budget to be used up", SOON, spent, repeat).await;
    assert_eq!(stage.world.starts(), BUDGET, "{}", stage.summary());

    let forgetful = Server::start().await;
    stage.lead.turn(&forgetful);
    replica.kill();
    stage.fail(&hosts[40..]).await;
    let held = || stage.that_say("fleet_limited") >= 30;
    stage.until("everything to wait for a window", SOON, held, repeat).await;
    assert_eq!(stage.world.starts(), BUDGET, "{}", stage.summary());
    // Somebody says that it may count from here.
    stage.viewer().trust_memory().await.unwrap();
    let spent = || stage.world.failed().len() == 10 && stage.is_at_rest();
    stage.until("a second budget to be used up", SOON, spent, repeat).await;
    assert_eq!(stage.world.starts(), 2 * BUDGET, "{}", stage.summary());
    assert_eq!(stage.world.wrong(), Vec::<String>::new(), "{}", stage.summary());
}

/// Redis is replaced by its replica, and emptied, while hosts act: what it had lent is forgotten at most once each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_while_hosts_act_lets_one_further_generation_begin_at_most() {
    const MOST: usize = 5;
    let (mut server, mut chance) = (Server::start().await, chance());
    let fleet =
        format!("{SHORT}\n  max_hosts_acting: {MOST}\n  stop_above_unhealthy: 100%\n  on_loss: {{S2: deny}}");
    let stage = Stage::start(&server, FEW, &fleet, Ways::Own, &mut chance).await;
    let replica = Server::start().await;
    replica.follow(&server).await;
    let hosts = all(&stage);
    stage.fail(&hosts).await;
    let repeat = async || stage.deliver(&stage.world.failed()).await;
    let act = |left: usize| {
        let (world, hosts) = (&stage.world, &hosts);
        move || world.failed().len() < left && hosts.iter().any(|host| world.is_acting(*host))
    };
    stage.until("some to act", SOON, act(FEW - 5), repeat).await;
    replica.say("REPLICAOF NO ONE").await;
    stage.lead.turn(&replica);
    server.kill();
    stage.until("some to act by the replica", SOON, act(FEW / 2), repeat).await;
    replica.say("FLUSHALL").await;
    let done = || stage.world.failed().is_empty() && stage.is_at_rest();
    stage.until("all to be repaired", SOON, done, repeat).await;
    assert_eq!(stage.world.wrong(), Vec::<String>::new(), "{}", stage.summary());
    assert!(stage.world.most_acting() <= 2 * MOST, "{}", stage.summary());
    assert_eq!(stage.world.hosts_that_acted(), FEW, "{}", stage.summary());
}

/// A pause outlives the Redis that it was ordered in; and while nobody can be asked, each host goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_holds_without_redis_and_without_a_pause_each_host_goes_on_alone() {
    let (mut server, mut chance) = (Server::start().await, chance());
    let fleet = format!("{SHORT}\n  max_hosts_acting: 1\n  stop_above_unhealthy: 100%");
    let mut stage = Stage::start(&server, FEW, &fleet, Ways::Own, &mut chance).await;
    stage.viewer().pause("jo@bastion", "a rollout", None).await.unwrap();
    stage.fail(&all(&stage)).await;
    let held = || stage.that_say("fleet_paused") == FEW;
    stage.until("every host to be paused", SOON, held, async || {}).await;
    server.kill();
    for machine in &mut stage.machines {
        machine.die().await;
        machine.start();
    }
    stage.knocks(5).await;
    let mut forgetful = Server::start().await;
    stage.lead.turn(&forgetful);
    stage.sees("every host to be back", |view| view.total == 50).await;
    stage.deliver(&all(&stage)).await;
    stage.sees("every alert to be taken", |view| view.backlog.as_ref().unwrap().alerts == 0).await;
    assert_eq!(stage.world.starts(), 0, "{}", stage.summary());

    assert!(!stage.viewer().resume("jo@bastion").await.unwrap(), "it has forgotten the pause");
    let begun = || stage.world.failed().len() < FEW - 5;
    stage.until("the first repairs", SOON, begun, async || {}).await;
    assert_eq!(stage.world.most_acting(), 1, "{}", stage.summary());
    assert!(stage.world.failed().len() > FEW / 2, "{}", stage.summary());
    // By itself each goes on, one thing at a time.
    forgetful.kill();
    let done = || stage.world.failed().is_empty() && stage.is_at_rest();
    stage.until("all to be repaired without Redis", SOON, done, async || {}).await;
    assert_eq!(stage.world.wrong(), Vec::<String>::new(), "{}", stage.summary());
    assert_eq!(stage.world.hosts_that_acted(), FEW, "{}", stage.summary());
}

/// What the great one may take from its cause on, on two cores that have much else to do. What is not done by then is a
/// failure.
const TWO_MINUTES: Duration = Duration::from_secs(120);

/// Ten thousand hosts over forty pairs of connections; one cause, and an alert of each within a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hosts_of_one_cause_are_repaired_within_two_minutes_and_never_too_many_at_once() {
    const MANY: usize = 10_000;
    const MOST: usize = 1000;
    const GROUP: usize = 250;
    let (server, mut chance) = (Server::start().await, chance());
    let fleet = format!(
        "  heartbeat: 30s
  lost_after: 90s
  timeout: 6s
  lease: 18s
  max_hosts_acting: {MOST}
  stop_above_unhealthy: 100%
  on_loss: {{S2: deny}}"
    );
    let ways = Ways::Shared(GROUP, Duration::from_secs(10));
    let begun = Instant::now();
    let mut stage = Stage::start(&server, MANY, &fleet, ways, &mut chance).await;
    let idle = server.toll().await;
    println!("{MANY} hosts are there after {:.0?}: Redis holds {} KiB", begun.elapsed(), idle.memory >> 10);
    // Its own stop: it takes no longer, whatever it hangs on.
    let storm = timeout(TWO_MINUTES, storm(&server, &mut stage, &mut chance)).await;
    storm.expect("it is not done within two minutes");
    assert_eq!(stage.world.wrong(), Vec::<String>::new(), "{}", stage.summary());
    assert!(stage.world.most_acting() <= MOST, "{}", stage.summary());
    assert_eq!(stage.world.hosts_that_acted(), MANY, "{}", stage.summary());
}

/// One cause on all hosts, of which some are cut off and some die, until all are repaired.
async fn storm(server: &Server, stage: &mut Stage, chance: &mut Chance) {
    let begun = Instant::now();
    let many = stage.machines.len();
    let mut hosts = all(stage);
    chance.shuffle(&mut hosts);
    for (number, some) in hosts.chunks(1000).enumerate() {
        stage.fail(some).await;
        for _ in 0..5 {
            let host = chance.below(many);
            stage.machines[host].die().await;
            stage.machines[host].start();
        }
        // A group loses what it shares, early enough to come back.
        if number < 3 {
            let path = &stage.paths[chance.below(stage.paths.len())];
            path.cut();
            sleep(Duration::from_millis(500)).await;
            path.mend();
        }
    }
    let storm = server.toll().await;
    println!("all have failed after {:.0?}: Redis holds {} KiB", begun.elapsed(), storm.memory >> 10);
    let done = || stage.world.failed().is_empty();
    stage.until("all to be repaired", TWO_MINUTES, done, async || {}).await;
    println!("all are repaired after {:.0?}: {}", begun.elapsed(), stage.summary());
}

/// For dividing.
fn number(count: impl TryInto<u32>) -> f64 {
    count.try_into().map(f64::from).ok().expect("a small number")
}

/// What an alert costs Redis, from the gateway to the end of the repair: the same in a fleet of any size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_costs_redis_the_same_of_ten_hosts_and_of_ten_thousand() {
    const LIVE: usize = 10;
    const ROUNDS: usize = 20;
    let mut chance = chance();
    let mut costs = Vec::new();
    for hosts in [10, 100, 1000, 10_000] {
        let server = Server::start().await;
        let fleet = "  heartbeat: 10m
  lost_after: 1h
  timeout: 5s
  lease: 30s
  limits: {S2: [10000/1h]}
  max_hosts_acting: 10
  stop_above_unhealthy: 100%";
        let stage = Stage::start(&server, LIVE, fleet, Ways::Own, &mut chance).await;
        stage.crowd(&server, hosts - LIVE).await;
        let (live, before) = (all(&stage), server.toll().await);
        for _ in 0..ROUNDS {
            stage.fail(&live).await;
            let done = || stage.world.failed().is_empty() && stage.is_at_rest();
            stage.until("a round of repairs", SOON, done, async || {}).await;
        }
        let (after, alerts) = (server.toll().await, number(ROUNDS * LIVE));
        let each = |toll: fn(&Toll) -> u64| number(toll(&after) - toll(&before)) / alerts;
        let cost = (each(|toll| toll.calls), each(|toll| toll.bytes));
        println!(
            "{hosts} hosts: {:.1} commands, {:.0} bytes and {:.0} us of Redis for each alert, delivered twice",
            cost.0,
            cost.1,
            each(|toll| toll.busy_us)
        );
        costs.push(cost);
    }
    let (calls, bytes) = costs[0];
    for (hosts, cost) in costs.iter().enumerate() {
        let near = |one: f64, other: f64| (one / other - 1.0).abs() <= 0.2;
        assert!(
            near(cost.0, calls) && near(cost.1, bytes),
            "of 10^{} hosts {cost:?}, of 10 {:?}",
            hosts + 1,
            costs[0]
        );
    }
}
