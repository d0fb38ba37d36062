//! The front of the scripts in Redis: what the fleet says about one start, its lease with a fencing number, heartbeats,
//! the pause of all hosts, and which host an alert is for. It holds no connection and no state; each call is one round
//! trip, atomic in Redis. What a call answers is read as if anybody had written it.

use std::{sync::LazyLock, time::Duration};

use evenkeel_host::config::PromDuration;
use redis::{Script, ScriptInvocation, Value, aio::ConnectionLike};

use super::{
    fault::Fault,
    hosts::Hosts,
    names::{HostId, Keys, Scope},
    reply::Reply,
};
use crate::{
    admission::{Reason, Refusal},
    policy::{Class, Limit},
    text::printable,
};

/// What holds for the whole fleet; each host says it with its questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// Starts that the fleet admits.
    pub limits: Vec<(Scope, Vec<Limit>)>,
    /// Hosts that act at the same time.
    pub most_acting: Hosts,
    /// More hosts than this gone or in need, and none begins to act.
    pub stop_above: Option<Hosts>,
    /// Of fewer hosts a share means nothing: then one may act, and none is stopped.
    pub least_hosts: u32,
    /// So long a host that says nothing more counts as acting.
    pub lease: Duration,
    /// So long without a heartbeat, and a host is gone: it counts as not well,
    pub lost_after: Duration,
    /// and after so long not at all.
    pub forgotten_after: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            limits: Vec::new(),
            most_acting: Hosts::Share(0.1),
            stop_above: Some(Hosts::Share(0.4)),
            least_hosts: 3,
            lease: Duration::from_secs(60),
            lost_after: Duration::from_secs(60),
            forgotten_after: Duration::from_secs(24 * 3600),
        }
    }
}

/// A start that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// On which host.
    pub host: &'a HostId,
    /// The same when it is asked for again because no answer came, and never that of another start.
    pub start: &'a str,
    /// Of this class. From S2 on it takes a lease, and so counts as acting; below, it is only counted.
    pub class: Class,
    /// Whether an alert asks for it; what a timer asks for says nothing about the host's health.
    pub in_need: bool,
    /// The greatest fence that this process has seen, to notice when Redis has forgotten.
    pub seen: u64,
}

/// A start that the fleet admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The number of the lease: greater than that of every lease given before.
    pub fence: u64,
    /// What is left of the lease; zero where none is needed.
    pub left: Duration,
    /// Hosts that act now, this one included where it holds a lease.
    pub acting: u64,
    /// Hosts that may.
    pub most: u64,
}

/// What a host says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Beat<'a> {
    /// Who.
    pub host: &'a HostId,
    /// The names by which alerts mean it.
    pub names: &'a [HostId],
    /// One plain word for this process.
    pub instance: &'a str,
    /// One plain word for what it runs.
    pub version: &'a str,
    /// The greatest fence that this process has seen.
    pub seen: u64,
    /// Whether this is the first that this process says.
    pub first: bool,
    /// Whether something of its own is in need.
    pub in_need: bool,
}

/// What a host hears of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// How long Redis has remembered starts.
    pub age: Duration,
    /// The fence of the last lease.
    pub fence: u64,
    /// Hosts that there are, those that are gone included.
    pub total: u64,
    /// Hosts without a heartbeat of late.
    pub gone: u64,
    /// Hosts that say that something is in need.
    pub unwell: u64,
    /// Hosts that act.
    pub acting: u64,
    /// Whether another process says that it is this host.
    pub twin: bool,
    /// Changes with each order to pause or resume; 0 while Redis knows of none, which says nothing about a pause that was
    /// seen earlier.
    pub order: u64,
    /// The pause in force.
    pub pause: Option<FleetPause>,
    /// Names of this host that another one has claimed before it.
    pub taken: Vec<String>,
}

/// A pause of all hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetPause {
    /// Who ordered it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// How long it still lasts; none: until somebody resumes.
    pub left: Option<Duration>,
}

/// Whether a lease still stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// It does, and was prolonged.
    Held,
    /// It has run out, and another host may act in its place.
    Late,
    /// The fleet was paused meanwhile.
    Paused(FleetPause),
}

/// The scripts' front, and the keys that they work on. Cloning it is cheap enough for once a process.
#[derive(Debug, Clone)]
pub struct Ledger {
    keys: Keys,
    terms: Terms,
}

/// A script behind what is common to all.
macro_rules! script {
    ($name:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                include_str!("lua/prelude.lua"),
                include_str!(concat!("lua/", $name, ".lua"))
            ))
        })
    };
}

static RESERVE: LazyLock<Script> = script!("reserve");
static HOLD: LazyLock<Script> = script!("hold");
static RELEASE: LazyLock<Script> = script!("release");
static BEAT: LazyLock<Script> = script!("beat");
static PAUSE: LazyLock<Script> = script!("pause");
static FIND: LazyLock<Script> = script!("find");
pub(super) static LOOK: LazyLock<Script> = script!("look");

impl Ledger {
    /// The ledger of one fleet.
    pub fn new(keys: Keys, terms: Terms) -> Self {
        Self { keys, terms }
    }

    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What holds in it.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Counts a start in all scopes of the fleet and takes a lease, or says why not and how long that lasts: nothing is
    /// counted then.
    ///
    /// # Errors
    /// When the fleet cannot be asked. It may have been counted all the same: ask again with the same `start`.
    pub async fn reserve(
        &self,
        redis: &mut impl ConnectionLike,
        ask: &Ask<'_>,
    ) -> Result<Result<Grant, Refusal>, Fault> {
        let limits = self.limits_of(ask.class);
        let mut call = self.call(&RESERVE);
        for (scope, _) in &limits {
            call.key(self.keys.log(*scope));
        }
        let lease = if takes_a_lease(ask.class) { ms(self.terms.lease) } else { 0 };
        call.arg(ask.host.as_str()).arg(ask.start).arg(ask.seen).arg(u8::from(ask.in_need)).arg(lease);
        call.arg(&Hosts::words(Some(self.terms.most_acting))[..]);
        call.arg(&Hosts::words(self.terms.stop_above)[..]);
        call.arg(self.terms.least_hosts).arg(ms(self.terms.lost_after));
        for (_, limits) in &limits {
            add_windows(&mut call, limits);
        }
        let mut reply = Reply::of(call.invoke_async::<Value>(redis).await?)?;
        let verdict = reply.text()?;
        Ok(match verdict.as_str() {
            "granted" => Ok(Grant {
                fence: reply.number()?,
                left: reply.duration()?,
                acting: reply.number()?,
                most: reply.number()?,
            }),
            "paused" => Err(reply.pause()?.refusal()),
            "stop" => Err(self.stopped(reply.duration()?, reply.number()?, reply.number()?)),
            "pace" => Err(paced(reply.duration()?, reply.number()?, reply.number()?)),
            "limited" | "young" => {
                let wait = reply.duration()?;
                let (log, window, used) = (reply.index()?, reply.index()?, reply.number()?);
                let known = limits.get(log).and_then(|(scope, limits)| Some((*scope, *limits.get(window)?)));
                let (scope, limit) =
                    known.ok_or_else(|| Fault::nonsense("it named a limit that there is not"))?;
                Err(limited(scope, limit, (verdict == "limited").then_some(used), wait))
            }
            other => return Err(Fault::nonsense(other)),
        })
    }

    /// Looks whether a lease still stands and prolongs it; `before_acting` also whether the fleet was paused meanwhile.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn hold(
        &self,
        redis: &mut impl ConnectionLike,
        host: &HostId,
        fence: u64,
        before_acting: bool,
    ) -> Result<Hold, Fault> {
        let mut call = self.call(&HOLD);
        call.arg(host.as_str()).arg(fence).arg(ms(self.terms.lease)).arg(u8::from(before_acting));
        let mut reply = Reply::of(call.invoke_async::<Value>(redis).await?)?;
        match reply.text()?.as_str() {
            "held" => Ok(Hold::Held),
            "late" => Ok(Hold::Late),
            "paused" => Ok(Hold::Paused(reply.pause()?)),
            other => Err(Fault::nonsense(other)),
        }
    }

    /// Gives a lease back when the host is done; one that another walk took meanwhile stays.
    ///
    /// # Errors
    /// When the fleet cannot be asked; then the lease runs out by itself.
    pub async fn release(
        &self,
        redis: &mut impl ConnectionLike,
        host: &HostId,
        fence: u64,
    ) -> Result<(), Fault> {
        let mut call = self.call(&RELEASE);
        call.arg(host.as_str()).arg(fence).arg("");
        call.invoke_async::<Value>(redis).await?;
        Ok(())
    }

    /// Takes back a start that was not made after all; `fence` only where nothing else of this host needs the lease.
    ///
    /// # Errors
    /// When the fleet cannot be asked; then the start stays counted.
    pub async fn take_back(
        &self,
        redis: &mut impl ConnectionLike,
        ask: &Ask<'_>,
        fence: Option<u64>,
    ) -> Result<(), Fault> {
        let mut call = self.call(&RELEASE);
        for (scope, _) in self.limits_of(ask.class) {
            call.key(self.keys.log(scope));
        }
        call.arg(ask.host.as_str()).arg(fence.unwrap_or(0)).arg(ask.start);
        call.invoke_async::<Value>(redis).await?;
        Ok(())
    }

    /// A host's heartbeat, and what the fleet is like.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn beat(&self, redis: &mut impl ConnectionLike, beat: &Beat<'_>) -> Result<Heard, Fault> {
        let mut call = self.call(&BEAT);
        call.arg(beat.host.as_str()).arg(beat.instance).arg(beat.seen);
        call.arg(u8::from(beat.first)).arg(u8::from(beat.in_need));
        call.arg(ms(self.terms.lost_after)).arg(ms(self.terms.forgotten_after)).arg(beat.version);
        for name in beat.names {
            call.arg(name.as_str());
        }
        let mut reply = Reply::of(call.invoke_async::<Value>(redis).await?)?;
        let (now, epoch) = (reply.number()?, reply.number()?);
        let heard = Heard {
            age: Duration::from_millis(now.saturating_sub(epoch)),
            fence: reply.number()?,
            total: reply.number()?,
            gone: reply.number()?,
            unwell: reply.number()?,
            acting: reply.number()?,
            twin: reply.number()? == 1,
            order: reply.number()?,
            pause: reply.pause_or_none()?,
            taken: Vec::new(),
        };
        Ok(Heard { taken: reply.rest()?, ..heard })
    }

    /// Pauses all hosts: for so long, or until somebody resumes.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn pause(
        &self,
        redis: &mut impl ConnectionLike,
        author: &str,
        reason: &str,
        lasts: Option<Duration>,
    ) -> Result<(), Fault> {
        let lasts = lasts.map_or(-1, |lasts| i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX));
        self.order(redis, "pause", author, reason, lasts).await.map(drop)
    }

    /// Ends a pause of all hosts; answers whether Redis knew of one.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn resume(&self, redis: &mut impl ConnectionLike, author: &str) -> Result<bool, Fault> {
        self.order(redis, "resume", author, "", -1).await
    }

    async fn order(
        &self,
        redis: &mut impl ConnectionLike,
        what: &str,
        author: &str,
        reason: &str,
        lasts: i64,
    ) -> Result<bool, Fault> {
        let mut call = self.call(&PAUSE);
        call.arg(what).arg(printable(author)).arg(printable(reason)).arg(lasts);
        match call.invoke_async::<Value>(redis).await? {
            Value::Int(before) => Ok(before == 1),
            _ => Err(Fault::nonsense("no number where one belongs")),
        }
    }

    /// Says that nothing was started before Redis began to remember, so that no budget has to wait for its window.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn trust_memory(&self, redis: &mut impl ConnectionLike) -> Result<(), Fault> {
        let set = redis::cmd("SET").arg(self.keys.epoch()).arg(0).query_async::<Value>(redis).await?;
        if set == Value::Okay { Ok(()) } else { Err(Fault::nonsense("it did not set a key")) }
    }

    /// Which host each of these names means, and how long Redis has remembered. What nobody has claimed is noted there.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn find(
        &self,
        redis: &mut impl ConnectionLike,
        names: &[&HostId],
    ) -> Result<(Duration, Vec<Option<HostId>>), Fault> {
        let mut call = self.call(&FIND);
        for name in names {
            call.arg(name.as_str());
        }
        let mut reply = Reply::of(call.invoke_async::<Value>(redis).await?)?;
        let age = reply.duration()?;
        // What stands there as a host becomes part of a key.
        let hosts: Vec<Option<HostId>> = reply.rest()?.iter().map(|host| host.parse().ok()).collect();
        if hosts.len() == names.len() {
            Ok((age, hosts))
        } else {
            Err(Fault::nonsense("it named another number of hosts than it was asked for"))
        }
    }

    /// All hosts that there are, those that are gone included.
    ///
    /// # Errors
    /// When the fleet cannot be asked.
    pub async fn hosts(&self, redis: &mut impl ConnectionLike) -> Result<Vec<HostId>, Fault> {
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(self.keys.beat()).arg("-inf").arg("+inf");
        let names = Reply::of(range.query_async::<Value>(redis).await?)?.rest()?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The limits that a start of this class counts in.
    fn limits_of(&self, class: Class) -> Vec<(Scope, &[Limit])> {
        let counts = |scope: &Scope| match scope {
            Scope::Class(limited) => *limited == class,
            Scope::All => true,
        };
        let limits = self.terms.limits.iter().filter(|(scope, limits)| counts(scope) && !limits.is_empty());
        limits.map(|(scope, limits)| (*scope, limits.as_slice())).collect()
    }

    /// A call with the keys that every script gets.
    pub(super) fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        for key in self.keys.shared() {
            call.key(key);
        }
        call
    }

    fn stopped(&self, wait: Duration, bad: u64, total: u64) -> Refusal {
        let most = self.terms.stop_above.map_or_else(|| "0".to_owned(), |most| most.to_string());
        let detail = format!(
            "{bad} of the fleet's {total} hosts are gone or in need, more than {most}: that is one cause and not many, and nothing more is begun"
        );
        Refusal { reason: Reason::FleetStop, scope: "fleet", detail, wait }
    }
}

impl FleetPause {
    /// Why nothing begins.
    pub fn refusal(&self) -> Refusal {
        let detail = format!("the fleet is paused by {}: {}", self.author, self.reason);
        // Without an end it is worth asking again tomorrow.
        let wait = self.left.unwrap_or(Duration::from_secs(86_400));
        Refusal { reason: Reason::FleetPaused, scope: "fleet", detail, wait }
    }
}

fn paced(wait: Duration, acting: u64, most: u64) -> Refusal {
    let detail = format!("{acting} hosts of the fleet are acting, and {most} may at once");
    Refusal { reason: Reason::FleetPace, scope: "fleet", detail, wait }
}

/// `used` is known only while the memory reaches back a whole window.
fn limited(scope: Scope, limit: Limit, used: Option<u64>, wait: Duration) -> Refusal {
    let words = scope.words();
    let detail = match used {
        Some(used) => format!("{used} of {} starts {words} used ({limit})", limit.count),
        None => format!(
            "the fleet's Redis remembers for less than {}: how many starts {words} there were is not known, and counts as {limit} used",
            PromDuration::new(limit.window)
        ),
    };
    Refusal { reason: Reason::FleetLimited, scope: scope.label(), detail, wait }
}

/// Whether a host that does this counts as acting.
pub fn takes_a_lease(class: Class) -> bool {
    class >= Class::S2
}

/// The windows of one log, as the scripts take them.
pub(super) fn add_windows(call: &mut ScriptInvocation<'_>, limits: &[Limit]) {
    call.arg(limits.len());
    for limit in limits {
        call.arg(limit.count).arg(ms(limit.window));
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
