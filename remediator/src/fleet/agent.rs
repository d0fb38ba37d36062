//! An agent: takes its host's alerts out of its stream. What it has taken is on its own disk before it says so to Redis;
//! what an earlier process left is taken first; what cannot be read is counted, dropped, and never met again.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Value};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    fault::{Fault, Kind},
    ledger::ms,
    link::Link,
    settings::Settings,
    stream::{self, ENTRY_MAX, Entry, GROUP},
};
use crate::{
    clock::Clock,
    config::Config,
    journal::{Accepted, Incoming, Journal},
    metrics::Metrics,
    webhook::{self, Meaning},
    worker::Bell,
};

/// How long one question waits for alerts. Shorter means more questions, longer that a lost connection is noticed later.
const BLOCK: Duration = Duration::from_secs(5);
/// Entries read at once.
const COUNT: usize = 16;
/// What is read of one answer at most, in bytes: as many entries as are read at once, and room for what stands around.
const ANSWER_MAX: u64 = (COUNT as u64 + 1) * (ENTRY_MAX as u64 + 4096);
/// What another process of this host has not acknowledged for so long, it has left.
const LEFT_AFTER: Duration = Duration::from_secs(60);
/// After something went wrong.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Reads one host's stream.
pub struct Agent {
    settings: Arc<Settings>,
    key: String,
    link: Arc<Link>,
    patience: Patience,
    /// The configuration in force.
    live: watch::Receiver<Arc<Config>>,
    journal: Journal,
    clock: Clock,
    metrics: Metrics,
    bell: Bell,
    stop: CancellationToken,
}

/// How an agent waits for alerts.
#[derive(Clone, Copy)]
enum Patience {
    /// Redis answers when there are some, or after this time.
    InRedis(Duration),
    /// Redis answers at once, and is asked so often: on a connection that others use too.
    #[cfg(all(test, feature = "lab"))]
    Here(Duration),
}

/// What became of some entries.
enum Taken {
    /// All of them are done with.
    All,
    /// The journal takes no more now; they stay where they are.
    Later,
}

impl Agent {
    /// An agent with a connection of its own: one that waits for alerts cannot be asked anything else.
    pub fn new(
        settings: Arc<Settings>,
        live: watch::Receiver<Arc<Config>>,
        journal: Journal,
        clock: Clock,
        metrics: Metrics,
        bell: Bell,
        stop: CancellationToken,
    ) -> Self {
        let key = settings.keys.stream(&settings.host);
        let link = Arc::new(Link::new(settings.redis.clone(), settings.timeout, ANSWER_MAX));
        let patience = Patience::InRedis(BLOCK);
        Self { settings, key, link, patience, live, journal, clock, metrics, bell, stop }
    }

    /// The same over a connection that others use too: it looks for alerts so often, and waits for none in Redis.
    #[cfg(all(test, feature = "lab"))]
    pub(super) fn over(self, link: Arc<Link>, every: Duration) -> Self {
        Self { link, patience: Patience::Here(every), ..self }
    }

    /// Takes alerts until it is told to stop.
    pub async fn run(self) {
        let (mut pause, longest) = PAUSES;
        let mut told = None;
        while !self.stop.is_cancelled() {
            let ended = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                ended = self.take(&mut pause) => ended,
            };
            match ended {
                Ok(()) => told = None,
                Err(fault) => {
                    self.metrics.fleet.fault(&fault);
                    // Once, and not at each try.
                    if told != Some(fault.kind) {
                        tracing::warn!(%fault, stream = self.key, "no alert can come by way of Redis");
                        told = Some(fault.kind);
                    }
                }
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Takes what was left, and then whatever comes, until something goes wrong.
    async fn take(&self, pause: &mut Duration) -> Result<(), Fault> {
        self.found_group().await?;
        if let Taken::Later = self.take_left(Duration::ZERO).await? {
            return Ok(());
        }
        tracing::info!(stream = self.key, host = %self.settings.host, "taking alerts by way of Redis");
        let mut looked = Instant::now();
        loop {
            *pause = PAUSES.0;
            if looked.elapsed() >= LEFT_AFTER {
                looked = Instant::now();
                if let Taken::Later = self.take_left(LEFT_AFTER).await? {
                    return Ok(());
                }
            }
            let entries = match self.read_new().await {
                Ok(entries) => entries,
                Err(fault) if fault.kind == Kind::TooLarge => {
                    self.metrics.fleet.fault(&fault);
                    self.take_one_by_one().await?;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            if let Taken::Later = self.take_in(entries).await? {
                return Ok(());
            }
        }
    }

    /// Makes the stream and its group, where they are not there.
    async fn found_group(&self) -> Result<(), Fault> {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(&self.key).arg(GROUP).arg(0).arg("MKSTREAM");
        match self.ask(&create).await {
            // It is there already.
            Err(fault) if fault.detail.contains("BUSYGROUP") => Ok(()),
            found => found.map(drop),
        }
    }

    async fn read_new(&self) -> Result<Vec<Entry>, Fault> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(GROUP).arg("COUNT").arg(COUNT);
        let block = match self.patience {
            Patience::InRedis(block) => {
                read.arg("BLOCK").arg(ms(block));
                block
            }
            #[cfg(all(test, feature = "lab"))]
            Patience::Here(every) => {
                sleep(every).await;
                Duration::ZERO
            }
        };
        read.arg("STREAMS").arg(&self.key).arg(">");
        let read = &read;
        let ask = move |mut redis| async move { Ok(read.query_async::<Value>(&mut redis).await?) };
        stream::new_entries(self.link.ask_within(block, ask).await?)
    }

    async fn ask(&self, command: &Cmd) -> Result<Value, Fault> {
        self.link
            .ask(move |mut redis| async move { Ok(command.query_async::<Value>(&mut redis).await?) })
            .await
    }

    /// Takes what was read and never acknowledged: by a process that ended in between, or by this one before its journal
    /// was full.
    async fn take_left(&self, idle: Duration) -> Result<Taken, Fault> {
        let mut from = "0-0".to_owned();
        loop {
            let mut claim = redis::cmd("XAUTOCLAIM");
            claim.arg(&self.key).arg(GROUP).arg(GROUP).arg(ms(idle)).arg(&from).arg("COUNT").arg(COUNT);
            let (next, entries) = match self.ask(&claim).await {
                Ok(left) => stream::claimed(left)?,
                Err(fault) if fault.kind == Kind::TooLarge => {
                    self.metrics.fleet.fault(&fault);
                    return self.take_one_by_one().await;
                }
                Err(fault) => return Err(fault),
            };
            if let Taken::Later = self.take_in(entries).await? {
                return Ok(Taken::Later);
            }
            // It must get on, whatever the answer says.
            if next == "0-0" || next == from {
                return Ok(Taken::All);
            }
            from = next;
        }
    }

    /// Some entry is larger than any alert: each is read by itself, and what is too large is dropped unread.
    async fn take_one_by_one(&self) -> Result<Taken, Fault> {
        loop {
            let mut list = redis::cmd("XPENDING");
            list.arg(&self.key).arg(GROUP).arg("-").arg("+").arg(COUNT);
            let ids = stream::pending(self.ask(&list).await?)?;
            if ids.is_empty() {
                return Ok(Taken::All);
            }
            for id in ids {
                let mut read = redis::cmd("XRANGE");
                read.arg(&self.key).arg(&id).arg(&id);
                let entry = match self.ask(&read).await.and_then(stream::list) {
                    // One that is there no more is only acknowledged.
                    Ok(mut entries) => entries.pop().unwrap_or(Entry { id: id.clone(), alert: None }),
                    Err(fault) if matches!(fault.kind, Kind::TooLarge | Kind::Nonsense) => {
                        Entry { id: id.clone(), alert: None }
                    }
                    Err(fault) => return Err(fault),
                };
                if let Taken::Later = self.take_in(vec![entry]).await? {
                    return Ok(Taken::Later);
                }
            }
        }
    }

    /// Puts alerts on this host's disk, and says so.
    async fn take_in(&self, entries: Vec<Entry>) -> Result<Taken, Fault> {
        if entries.is_empty() {
            return Ok(Taken::All);
        }
        let config = Arc::clone(&self.live.borrow());
        let (mut ours, mut received, mut ignored, mut poisoned) = (Vec::new(), Vec::new(), Vec::new(), 0_u64);
        for entry in &entries {
            match read(entry, &config) {
                Ok((firing, meaning)) => {
                    received.push(firing);
                    match meaning {
                        Meaning::Ours(alert) => ours.push(alert),
                        Meaning::Ignored(reason) => ignored.push(reason),
                    }
                }
                Err(why) => {
                    poisoned += 1;
                    tracing::warn!(
                        entry = entry.id,
                        stream = self.key,
                        why,
                        "an entry is no alert: it is dropped"
                    );
                }
            }
        }
        if !self.accept(ours, &config).await {
            return Ok(Taken::Later);
        }
        for firing in &received {
            self.metrics.received(*firing);
        }
        for reason in &ignored {
            self.metrics.ignored(reason);
        }
        let taken = u64::try_from(received.len()).unwrap_or(u64::MAX);
        self.metrics.fleet.entries(taken, poisoned);
        self.acknowledge(&entries).await?;
        Ok(Taken::All)
    }

    /// Whether they are on the disk.
    async fn accept(&self, ours: Vec<Incoming>, config: &Config) -> bool {
        if ours.is_empty() {
            return true;
        }
        match self.journal.accept(ours, config.open_max, self.clock.now()).await {
            Ok(Accepted::Taken(tally)) => {
                if tally.opened > 0 {
                    self.bell.ring();
                }
                // Those that there was no room for come again with the others, which are taken once.
                tally.left == 0
            }
            Ok(Accepted::TooMany) => {
                tracing::warn!("too many remediations are open: alerts wait in Redis");
                false
            }
            Err(error) => {
                self.metrics.state_write_failed();
                tracing::error!(%error, "alerts cannot be taken: they wait in Redis");
                false
            }
        }
    }

    /// Done with: not read again, and no room taken any more.
    async fn acknowledge(&self, entries: &[Entry]) -> Result<(), Fault> {
        let mut both = redis::pipe();
        both.cmd("XACK").arg(&self.key).arg(GROUP);
        for entry in entries {
            both.arg(&entry.id);
        }
        both.cmd("XDEL").arg(&self.key);
        for entry in entries {
            both.arg(&entry.id);
        }
        let both = &both;
        let say = move |mut redis| async move { Ok(both.query_async::<Value>(&mut redis).await?) };
        self.link.ask(say).await.map(drop)
    }
}

/// Whether an entry's alert fires, and what it means here; or why it is none.
fn read(entry: &Entry, config: &Config) -> Result<(bool, Meaning), String> {
    let Some(alert) = &entry.alert else {
        return Err("it holds no alert, or one that is too large".to_owned());
    };
    if alert.len() > ENTRY_MAX {
        return Err(format!("it has {} bytes, {ENTRY_MAX} are read at most", alert.len()));
    }
    let (alert, meaning) = webhook::read_one(alert, config).map_err(|error| error.to_string())?;
    Ok((alert.is_firing(), meaning))
}
