//! The fleet's scripts on a real Redis, through their front: budgets, pace, stop, pause, fencing, and what Redis does when
//! it forgets, is full, is a replica, or lets somebody do less than is needed.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use evenkeel_remediator::{
    admission::{Reason, Refusal},
    fleet::{
        fault::{Fault, Kind},
        hosts::Hosts,
        ledger::{Ask, Beat, Grant, Heard, Hold, Ledger, Terms},
        names::{HostId, Keys, Scope},
    },
    policy::Class,
};
use evenkeel_tests::{redis_server::RedisServer, wait::wait_for};
use libtest_mimic::Trial;
use redis::aio::MultiplexedConnection;

use crate::trial;

const SOON: Duration = Duration::from_secs(20);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("fleet_budgets_are_counted_once_and_never_exceeded", budgets),
        trial("fleet_pace_is_kept_by_leases_that_end_with_their_holder", pace),
        trial("fleet_stop_counts_hosts_that_are_gone", stop),
        trial("fleet_pause_holds_every_host_until_it_ends", pause),
        trial("fleet_memory_that_was_lost_counts_as_a_full_window", memory),
        trial("fleet_names_lead_to_hosts", names),
        trial("fleet_redis_that_cannot_answers_with_a_fault", faults),
        trial("fleet_acl_gives_an_agent_only_what_it_needs", acl),
    ]
}

/// A Redis with its connection, and the fleet `lab` in it.
struct Lab {
    server: RedisServer,
    redis: MultiplexedConnection,
    ledger: Ledger,
}

impl Lab {
    async fn start(terms: Terms) -> Result<Self> {
        let server = RedisServer::start().await?;
        let redis = connect(&server.url()).await?;
        Ok(Self { ledger: Ledger::new(keys()?, terms), server, redis })
    }

    /// The same where nothing was started before Redis began.
    async fn trusted(terms: Terms) -> Result<Self> {
        let mut lab = Self::start(terms).await?;
        lab.ledger.trust_memory(&mut lab.redis).await?;
        Ok(lab)
    }

    async fn ask(
        &mut self,
        host: &str,
        start: &str,
        class: Class,
        seen: u64,
    ) -> Result<Result<Grant, Refusal>> {
        let ask = Ask { host: &host_id(host)?, start, class, in_need: true, seen };
        Ok(self.ledger.reserve(&mut self.redis, &ask).await?)
    }

    async fn granted(&mut self, host: &str, start: &str) -> Result<Grant> {
        let answer = self.ask(host, start, Class::S2, 0).await?;
        answer.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))
    }

    async fn refused(&mut self, host: &str, start: &str) -> Result<Refusal> {
        match self.ask(host, start, Class::S2, 0).await? {
            Ok(grant) => bail!("{host} was granted {grant:?}"),
            Err(refusal) => Ok(refusal),
        }
    }

    async fn beat(&mut self, host: &str, in_need: bool) -> Result<Heard> {
        self.beat_as(host, &[host], "one", true, in_need, 0).await
    }

    async fn beat_as(
        &mut self,
        host: &str,
        names: &[&str],
        instance: &str,
        first: bool,
        in_need: bool,
        seen: u64,
    ) -> Result<Heard> {
        let host = host_id(host)?;
        let names: Vec<HostId> = names.iter().map(|name| host_id(name)).collect::<Result<_>>()?;
        let beat = Beat { host: &host, names: &names, instance, version: "1", seen, first, in_need };
        Ok(self.ledger.beat(&mut self.redis, &beat).await?)
    }

    async fn release(&mut self, host: &str, fence: u64) -> Result<()> {
        Ok(self.ledger.release(&mut self.redis, &host_id(host)?, fence).await?)
    }

    async fn hold(&mut self, host: &str, fence: u64) -> Result<Hold> {
        Ok(self.ledger.hold(&mut self.redis, &host_id(host)?, fence, true).await?)
    }

    async fn say(&self, command: &str) -> Result<String> {
        self.server.ask(command).await
    }
}

async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    redis.set_response_timeout(SOON);
    Ok(redis)
}

fn keys() -> Result<Keys> {
    Keys::new("lab").map_err(anyhow::Error::msg)
}

fn host_id(name: &str) -> Result<HostId> {
    name.parse().map_err(anyhow::Error::msg)
}

fn terms() -> Terms {
    Terms {
        most_acting: Hosts::Count(100),
        stop_above: None,
        lease: Duration::from_secs(30),
        ..Terms::default()
    }
}

fn limits(
    of_class: &[&str],
    of_all: &[&str],
) -> Result<Vec<(Scope, Vec<evenkeel_remediator::policy::Limit>)>> {
    let read = |texts: &[&str]| {
        texts.iter().map(|text| text.parse().map_err(anyhow::Error::msg)).collect::<Result<Vec<_>>>()
    };
    Ok(vec![(Scope::Class(Class::S2), read(of_class)?), (Scope::All, read(of_all)?)])
}

/// The heartbeat of a host that is well.
fn well(host: &HostId) -> Beat<'_> {
    Beat {
        host,
        names: std::slice::from_ref(host),
        instance: "one",
        version: "1",
        seen: 0,
        first: false,
        in_need: false,
    }
}

/// Waits until `what` comes true of something that Redis's own clock brings about.
async fn until(what: &str, check: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    wait_for(what, SOON, check).await
}

async fn budgets() -> Result<()> {
    let mut lab = Lab::trusted(Terms { limits: limits(&["2/1s", "3/1h"], &["4/1h"])?, ..terms() }).await?;
    lab.granted("a", "a-1").await?;
    // The answer may have been lost: the same start counts once, however often it is asked for.
    for _ in 0..5 {
        lab.granted("a", "a-1").await?;
    }
    lab.granted("b", "b-1").await?;
    let refusal = lab.refused("c", "c-1").await?;
    ensure!((refusal.reason, refusal.scope) == (Reason::FleetLimited, "fleet_S2"), "{refusal:?}");
    ensure!(
        refusal.detail == "2 of 2 starts of steps that interrupt a service (S2) in the fleet used (2/1s)",
        "{}",
        refusal.detail
    );
    ensure!(refusal.wait > Duration::ZERO && refusal.wait <= Duration::from_secs(1), "{:?}", refusal.wait);
    // What was refused counts for nothing, so there is room when the window has moved on, for one more by the longer one.
    tokio::time::sleep(refusal.wait).await;
    lab.granted("c", "c-1").await?;
    let refusal = lab.refused("d", "d-1").await?;
    ensure!(
        refusal.detail.ends_with("used (3/1h)") && refusal.wait > Duration::from_secs(3000),
        "{refusal:?}"
    );
    // Another class has no limit of its own, and counts in that of all.
    let deletes = lab.ask("d", "d-2", Class::D1, 0).await?;
    ensure!(deletes.is_ok(), "{deletes:?}");
    let refusal = lab.ask("e", "e-1", Class::D1, 0).await?.err().context("the fifth start was granted")?;
    ensure!(refusal.scope == "fleet", "{refusal:?}");
    // What was not made after all is given back.
    let host = host_id("d")?;
    let ask = Ask { host: &host, start: "d-2", class: Class::D1, in_need: true, seen: 0 };
    lab.ledger.take_back(&mut lab.redis, &ask, None).await?;
    ensure!(lab.ask("e", "e-1", Class::D1, 0).await?.is_ok(), "there was no room after one was given back");
    // A log keeps no more than its longest window can hold.
    let kept = lab.say("ZCARD {lab}:fleet:log:fleet").await?;
    ensure!(kept == ":4", "{kept}");
    ensure!(lab.say("PTTL {lab}:fleet:log:fleet").await? != ":-1", "the log would stay for ever");

    // Whatever comes at once, never more than the limit.
    let mut lab = Lab::trusted(Terms { limits: limits(&["7/1h"], &[])?, ..terms() }).await?;
    let ledger = lab.ledger.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (ledger, mut redis) = (ledger.clone(), lab.redis.clone());
        tasks.spawn(async move {
            let (host, start) = (host_id(&format!("h{number}"))?, format!("{number}-1"));
            let ask = Ask { host: &host, start: &start, class: Class::S2, in_need: true, seen: 0 };
            anyhow::Ok(ledger.reserve(&mut redis, &ask).await?.is_ok())
        });
    }
    let mut granted = 0;
    while let Some(done) = tasks.join_next().await {
        granted += u32::from(done??);
    }
    ensure!(granted == 7, "{granted} were granted");
    ensure!(lab.refused("late", "late-1").await?.reason == Reason::FleetLimited, "an eighth was granted");
    Ok(())
}

async fn pace() -> Result<()> {
    let lease = Duration::from_millis(700);
    let mut lab = Lab::start(Terms { most_acting: Hosts::Count(2), lease, ..terms() }).await?;
    let first = lab.granted("a", "a-1").await?;
    let second = lab.granted("b", "b-1").await?;
    ensure!(second.fence > first.fence && (second.acting, second.most) == (2, 2), "{first:?} {second:?}");
    let refusal = lab.refused("c", "c-1").await?;
    ensure!((refusal.reason, refusal.scope) == (Reason::FleetPace, "fleet"), "{refusal:?}");
    ensure!(refusal.wait > Duration::ZERO && refusal.wait <= lease, "{:?}", refusal.wait);
    // A host that acts already is one host, however much it does.
    ensure!(lab.granted("a", "a-2").await?.fence == first.fence, "a second lease for one host");
    // What observes or interrupts nothing needs no lease.
    ensure!(lab.ask("c", "c-2", Class::S1, 0).await?.is_ok(), "S1 was held up");
    lab.release("a", first.fence).await?;
    let third = lab.granted("c", "c-1").await?;
    ensure!(third.fence > second.fence, "{third:?}");
    // Nobody gives back what is somebody else's.
    lab.release("c", second.fence).await?;
    ensure!(lab.hold("c", third.fence).await? == Hold::Held, "c lost its lease");

    // b is silent from here on. Its lease runs out, others go on, and b, when it comes back, is too late.
    until("the lease of a holder that died", async || {
        // The other one goes on.
        let mut redis = lab.redis.clone();
        ensure!(
            lab.ledger.hold(&mut redis, &host_id("c")?, third.fence, false).await? == Hold::Held,
            "c lost its lease"
        );
        let ask = Ask { host: &host_id("d")?, start: "d-1", class: Class::S2, in_need: true, seen: 0 };
        match lab.ledger.reserve(&mut redis, &ask).await? {
            Ok(_) => Ok(()),
            Err(refusal) => bail!("{refusal:?}"),
        }
    })
    .await?;
    ensure!(lab.hold("b", second.fence).await? == Hold::Late, "b resumed with a lease that ran out");
    ensure!(lab.refused("b", "b-1").await?.reason == Reason::FleetPace, "b took a third place");
    // Also when it has a new lease, the old number is good for nothing.
    until("room for b", async || {
        let ask = Ask { host: &host_id("b")?, start: "b-2", class: Class::S2, in_need: true, seen: 0 };
        let answer = lab.ledger.reserve(&mut lab.redis.clone(), &ask).await?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(())
    })
    .await?;
    ensure!(lab.hold("b", second.fence).await? == Hold::Late, "an old number stands for a new lease");

    // A tenth of the hosts, one at least.
    let mut lab = Lab::start(Terms { most_acting: Hosts::Share(0.1), ..terms() }).await?;
    for number in 0..30 {
        lab.beat(&format!("h{number}"), false).await?;
    }
    for number in 0..3 {
        ensure!(
            lab.granted(&format!("h{number}"), &format!("{number}")).await?.most == 3,
            "a tenth of 30 is 3"
        );
    }
    ensure!(lab.refused("h3", "3").await?.reason == Reason::FleetPace, "a fourth of three");
    let mut lab = Lab::start(Terms { most_acting: Hosts::Share(0.9), ..terms() }).await?;
    lab.granted("a", "a").await?;
    ensure!(lab.refused("b", "b").await?.reason == Reason::FleetPace, "a share of two hosts means nothing");
    Ok(())
}

async fn stop() -> Result<()> {
    let lost_after = Duration::from_millis(800);
    let terms =
        Terms { stop_above: Some(Hosts::Share(0.4)), lost_after, lease: Duration::from_secs(60), ..terms() };
    let mut lab = Lab::start(terms).await?;
    for number in 0..10 {
        lab.beat(&format!("h{number}"), false).await?;
    }
    // Whoever asks is in need: four of ten are not too many, and a fifth is.
    let mut fences = Vec::new();
    for number in 0..4 {
        fences.push(lab.granted(&format!("h{number}"), &format!("{number}")).await?.fence);
    }
    let refusal = lab.refused("h4", "4").await?;
    ensure!((refusal.reason, refusal.scope) == (Reason::FleetStop, "fleet"), "{refusal:?}");
    ensure!(
        refusal.detail.starts_with("5 of the fleet's 10 hosts are gone or in need, more than 40 %"),
        "{}",
        refusal.detail
    );
    // What has begun is finished.
    ensure!(lab.granted("h0", "0-2").await?.fence == fences[0], "h0 was stopped halfway");
    // What a timer asks for is no sign of bad health, and is stopped all the same.
    let host = host_id("h5")?;
    let timer = Ask { host: &host, start: "5", class: Class::D1, in_need: false, seen: 0 };
    ensure!(lab.ledger.reserve(&mut lab.redis, &timer).await?.is_err(), "maintenance in the middle of it");
    let heard = lab.beat("h5", false).await?;
    ensure!((heard.total, heard.unwell) == (10, 5), "{heard:?}");

    // They are well again: and now most of them vanish, which is no better than being in need.
    until("most hosts to be gone", async || {
        let mut heard = None;
        for host in ["h4", "h5"] {
            let host = host_id(host)?;
            let beat = well(&host);
            heard = Some(lab.ledger.beat(&mut lab.redis.clone(), &beat).await?);
        }
        let heard = heard.context("nobody beat")?;
        ensure!((heard.gone, heard.unwell, heard.total) == (8, 0, 10), "{heard:?}");
        Ok(())
    })
    .await?;
    ensure!(lab.refused("h5", "5-2").await?.reason == Reason::FleetStop, "hosts that are gone do not count");
    // Forgotten, they count no more.
    let forgotten_after = lost_after;
    let terms = Terms { stop_above: Some(Hosts::Share(0.4)), lost_after, forgotten_after, ..self::terms() };
    let forgetful = Ledger::new(keys()?, terms);
    let (one, mut redis) = (host_id("h5")?, lab.redis.clone());
    let heard = forgetful.beat(&mut redis, &well(&one)).await?;
    ensure!(heard.total <= 2, "{heard:?}");
    Ok(())
}

async fn pause() -> Result<()> {
    let mut lab = Lab::start(terms()).await?;
    let before = lab.beat("a", false).await?;
    ensure!((before.order, before.pause.as_ref()) == (0, None), "{before:?}");
    let grant = lab.granted("a", "a-1").await?;
    let hour = Duration::from_secs(3600);
    lab.ledger.pause(&mut lab.redis, "jo@bastion", "a rollout\x1b[2J", Some(hour)).await?;
    let heard = lab.beat("a", false).await?;
    let pause = heard.pause.context("no pause was heard of")?;
    ensure!(
        (heard.order, pause.author.as_str(), pause.reason.as_str())
            == (1, "jo@bastion", "a rollout\\u{1b}[2J"),
        "{pause:?}"
    );
    ensure!(pause.left.is_some_and(|left| left <= hour && left > hour / 2), "{pause:?}");
    let refusal = lab.refused("b", "b-1").await?;
    ensure!(
        refusal.reason == Reason::FleetPaused
            && refusal.detail.starts_with("the fleet is paused by jo@bastion: a rollout"),
        "{refusal:?}"
    );
    // Also for one that has its lease and not begun; what has begun goes on.
    ensure!(matches!(lab.hold("a", grant.fence).await?, Hold::Paused(_)), "it would begin in a pause");
    let host = host_id("a")?;
    ensure!(
        lab.ledger.hold(&mut lab.redis, &host, grant.fence, false).await? == Hold::Held,
        "a lost its lease"
    );
    ensure!(lab.ledger.resume(&mut lab.redis, "root").await?, "there was a pause");
    ensure!(!lab.ledger.resume(&mut lab.redis, "root").await?, "there was none any more");
    lab.granted("b", "b-1").await?;
    let heard = lab.beat("a", false).await?;
    ensure!((heard.order, heard.pause) == (3, None), "an end is an order too");
    // It ends by itself.
    lab.ledger.pause(&mut lab.redis, "jo", "short", Some(Duration::from_millis(300))).await?;
    lab.refused("c", "c-1").await?;
    until("the pause to end", async || {
        let ask = Ask { host: &host_id("c")?, start: "c-1", class: Class::S2, in_need: true, seen: 0 };
        let answer = lab.ledger.reserve(&mut lab.redis.clone(), &ask).await?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(())
    })
    .await
}

async fn memory() -> Result<()> {
    // A Redis that has only just begun may have forgotten everything: each window counts as full once.
    let mut lab = Lab::start(Terms { limits: limits(&["100/1h"], &[])?, ..terms() }).await?;
    let refusal = lab.refused("a", "a-1").await?;
    ensure!(
        refusal.reason == Reason::FleetLimited && refusal.wait > Duration::from_secs(3500),
        "{refusal:?}"
    );
    ensure!(refusal.detail.contains("remembers for less than 1h"), "{}", refusal.detail);
    // Somebody who knows says so.
    lab.ledger.trust_memory(&mut lab.redis).await?;
    let grant = lab.granted("a", "a-1").await?;
    // And it is lost.
    lab.say("FLUSHALL").await?;
    ensure!(lab.refused("b", "b-1").await?.reason == Reason::FleetLimited, "a fresh budget after FLUSHALL");
    // Fences never go back: whoever has seen a greater one says so with the next question.
    let heard = lab.beat_as("a", &["a"], "one", false, false, grant.fence + 41).await?;
    ensure!(heard.fence == grant.fence + 41, "{heard:?}");
    let mut short = Lab::start(Terms { limits: limits(&["100/200ms"], &[])?, ..terms() }).await?;
    short.ask("a", "a-1", Class::S2, 0).await?.err().context("its memory is new")?;
    until("one window to pass", async || {
        let ask = Ask { host: &host_id("a")?, start: "a-1", class: Class::S2, in_need: true, seen: 0 };
        let answer = short.ledger.reserve(&mut short.redis.clone(), &ask).await?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(())
    })
    .await?;

    // A replica that was made the master may lack the last writes: the fence that a host has seen shows it.
    let mut lab = Lab::trusted(Terms { limits: limits(&["100/1h"], &[])?, ..terms() }).await?;
    let known = lab.granted("a", "a-1").await?.fence;
    ensure!(lab.ask("a", "a-2", Class::S2, known).await?.is_ok(), "nothing was forgotten");
    let behind = lab.ask("b", "b-1", Class::S2, known + 1).await?;
    let refusal = behind.err().context("it has forgotten a lease, and admits as if nothing had been")?;
    ensure!(refusal.detail.contains("remembers for less than"), "{}", refusal.detail);

    // Redis's clock was set back, and what is ahead of it never ends a window early.
    let mut lab = Lab::trusted(Terms { limits: limits(&["1/1h"], &[])?, ..terms() }).await?;
    lab.say("ZADD {lab}:fleet:log:fleet_S2 99999999999999 a-1").await?;
    let refusal = lab.refused("b", "b-1").await?;
    ensure!(refusal.wait <= Duration::from_secs(3600), "{refusal:?}");
    lab.say("SET {lab}:fleet:epoch 99999999999999").await?;
    let refusal = lab.refused("b", "b-1").await?;
    ensure!(refusal.wait <= Duration::from_secs(3600), "{refusal:?}");
    for nonsense in ["nan", "inf", "-1", "x", "1e400", "0x7fffffffffffffff"] {
        lab.say(&format!("SET {{lab}}:fleet:epoch {nonsense}")).await?;
        lab.say(&format!("SET {{lab}}:fleet:fence {nonsense}")).await?;
        ensure!(lab.refused("b", "b-1").await?.reason == Reason::FleetLimited, "{nonsense} opened a budget");
    }
    Ok(())
}

async fn names() -> Result<()> {
    let mut lab = Lab::start(terms()).await?;
    lab.beat_as("vps1", &["vps1", "vps1.example.com"], "one", true, false, 0).await?;
    let found = async |lab: &mut Lab, names: &[&str]| -> Result<Vec<Option<String>>> {
        let ids: Vec<HostId> = names.iter().map(|name| host_id(name)).collect::<Result<_>>()?;
        let ids: Vec<&HostId> = ids.iter().collect();
        let (_, hosts) = lab.ledger.find(&mut lab.redis, &ids).await?;
        Ok(hosts.into_iter().map(|host| host.map(|host| host.to_string())).collect())
    };
    let one = Some("vps1".to_owned());
    ensure!(
        found(&mut lab, &["vps1.example.com", "vps2", "vps1"]).await? == [one.clone(), None, one.clone()],
        "names"
    );
    let noted = lab.say("ZCARD {lab}:fleet:unclaimed").await?;
    ensure!(noted == ":1", "{noted}");
    // A name is its first owner's for as long as there is one; the other one hears of it.
    let heard = lab.beat_as("vps2", &["vps2", "vps1"], "two", true, false, 0).await?;
    ensure!(heard.taken == ["vps1"], "{heard:?}");
    ensure!(
        found(&mut lab, &["vps1", "vps2"]).await? == [one, Some("vps2".to_owned())],
        "a name changed hands"
    );
    ensure!(lab.say("ZCARD {lab}:fleet:unclaimed").await? == ":0", "vps2 is claimed by now");
    // A name that it has no longer is nobody's.
    lab.beat_as("vps1", &["vps1"], "one", false, false, 0).await?;
    ensure!(found(&mut lab, &["vps1.example.com"]).await? == [None], "a name that nobody has");
    // Two processes that believe to be one host notice each other; one that was started again is no twin.
    ensure!(!lab.beat_as("vps1", &["vps1"], "three", true, false, 0).await?.twin, "a restart is no twin");
    ensure!(lab.beat_as("vps1", &["vps1"], "one", false, false, 0).await?.twin, "a twin was not noticed");
    // What nobody has claimed is bounded, whatever is asked for.
    let many: Vec<String> = (0..3000).map(|number| format!("x{number}")).collect();
    found(&mut lab, &many.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let noted = lab.say("ZCARD {lab}:fleet:unclaimed").await?;
    ensure!(noted == ":1000", "{noted}");
    // Somebody wrote a host there that is no name.
    lab.say("HSET {lab}:fleet:names vps9 a*b").await?;
    ensure!(found(&mut lab, &["vps9"]).await? == [None], "it would have become a key");
    Ok(())
}

/// What a call came to that cannot succeed.
async fn fault_of(lab: &mut Lab) -> Result<Fault> {
    let host = host_id("a")?;
    let ask = Ask { host: &host, start: "a-1", class: Class::S2, in_need: true, seen: 0 };
    match lab.ledger.reserve(&mut lab.redis, &ask).await {
        Ok(answer) => bail!("it answered {answer:?}"),
        Err(fault) => Ok(fault),
    }
}

async fn faults() -> Result<()> {
    let mut lab = Lab::start(terms()).await?;
    // Somebody else's keys, of another type.
    lab.say("LPUSH {lab}:fleet:beat x").await?;
    ensure!(fault_of(&mut lab).await?.kind == Kind::ErrorReply, "another type");
    lab.say("FLUSHALL").await?;
    // No room left, and what is there must not be thrown away.
    lab.say("CONFIG SET maxmemory 1").await?;
    let full = fault_of(&mut lab).await?;
    ensure!(full.kind == Kind::Full && full.to_string().contains("raise its maxmemory"), "{full:?}");
    lab.say("CONFIG SET maxmemory 0").await?;
    // A replica takes no writes.
    lab.say("REPLICAOF 127.0.0.1 1").await?;
    ensure!(fault_of(&mut lab).await?.kind == Kind::ReadOnly, "a replica");
    lab.say("REPLICAOF NO ONE").await?;
    lab.granted("a", "a-1").await?;
    // It forgets scripts when it is started anew.
    lab.say("SCRIPT FLUSH").await?;
    lab.granted("a", "a-1").await?;
    // It does not answer.
    let frost = lab.server.freeze()?;
    lab.redis.set_response_timeout(Duration::from_millis(300));
    ensure!(fault_of(&mut lab).await?.kind == Kind::Timeout, "frozen");
    drop(frost);
    lab.redis.set_response_timeout(SOON);
    until("it to answer again", async || {
        let host = host_id("a")?;
        let ask = Ask { host: &host, start: "a-1", class: Class::S2, in_need: true, seen: 0 };
        ensure!(lab.ledger.reserve(&mut lab.redis.clone(), &ask).await?.is_ok(), "refused");
        Ok(())
    })
    .await?;
    // It is gone.
    drop(lab.server);
    let host = host_id("a")?;
    let ask = Ask { host: &host, start: "a-1", class: Class::S2, in_need: true, seen: 0 };
    let gone = lab.ledger.reserve(&mut lab.redis, &ask).await.err().context("a dead server answered")?;
    ensure!(gone.kind == Kind::Unreachable, "{gone:?}");
    Ok(())
}

async fn acl() -> Result<()> {
    let server = RedisServer::start().await?;
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fleet.md"))?;
    for line in docs.lines().filter(|line| line.starts_with("ACL SETUSER ")) {
        let command = line.replace("AGENT-PASSWORD", "agent").replace("GATEWAY-PASSWORD", "gateway");
        let said = server.ask(&command.replace("evenkeel}", "lab}")).await?;
        ensure!(said == "+OK", "{line}: {said}");
    }
    let as_user = async |user: &str, password: &str| {
        connect(&format!("redis://{user}:{password}@127.0.0.1:{}/0", server.port())).await
    };
    let (mut agent, mut gateway) =
        (as_user("evenkeel-vps1", "agent").await?, as_user("evenkeel-gateway", "gateway").await?);
    let ledger = Ledger::new(keys()?, Terms { limits: limits(&["9/1h"], &["9/1h"])?, ..terms() });
    let (own, other) = (host_id("vps1")?, host_id("vps2")?);
    // An agent beats, reserves, holds, releases, and reads its own stream.
    ledger.trust_memory(&mut connect(&server.url()).await?).await?;
    ledger.beat(&mut agent, &well(&own)).await?;
    let ask = Ask { host: &own, start: "1", class: Class::S2, in_need: true, seen: 0 };
    let grant = ledger.reserve(&mut agent, &ask).await?.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    ensure!(ledger.hold(&mut agent, &own, grant.fence, true).await? == Hold::Held, "not held");
    ledger.take_back(&mut agent, &ask, Some(grant.fence)).await?;
    ensure!(ledger.find(&mut gateway, &[&own]).await?.1 == [Some(own.clone())], "a gateway finds no host");
    ledger.pause(&mut gateway, "root", "x", None).await?;
    // And nothing else.
    let forbidden = async |redis: &mut MultiplexedConnection, command: &[&str]| -> Result<()> {
        let mut said = redis::cmd(command[0]);
        for word in &command[1..] {
            said.arg(*word);
        }
        match said.query_async::<redis::Value>(redis).await {
            Ok(answer) => bail!("{command:?} was allowed: {answer:?}"),
            Err(error) => {
                let fault = Fault::from(error);
                ensure!(fault.kind == Kind::Forbidden, "{command:?}: {fault:?}");
                Ok(())
            }
        }
    };
    let others = ledger.keys().stream(&other);
    let mine = ledger.keys().stream(&own);
    for command in [
        vec!["XREADGROUP", "GROUP", "agent", "agent", "STREAMS", &others, ">"],
        vec!["XADD", &others, "*", "alert", "x"],
        vec!["XADD", &mine, "*", "alert", "x"],
        vec!["FLUSHALL"],
        vec!["KEYS", "*"],
        vec!["CONFIG", "SET", "maxmemory", "1"],
        vec!["SET", "elsewhere", "1"],
    ] {
        forbidden(&mut agent, &command).await?;
    }
    for command in [
        vec!["FLUSHALL"],
        vec!["SET", "elsewhere", "1"],
        vec!["XREADGROUP", "GROUP", "agent", "agent", "STREAMS", &mine, ">"],
    ] {
        forbidden(&mut gateway, &command).await?;
    }
    Ok(())
}
