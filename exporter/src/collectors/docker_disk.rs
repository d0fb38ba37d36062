//! What Docker takes on disk. The question can be expensive for the engine, so it is asked seldom, by a task of its own;
//! a look publishes the last answers and how old they are.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use evenkeel_host::{
    config::PromDuration,
    docker::{DiskUsage, Docker, Error, Object, ObjectUsage, TYPE_FILTER_SINCE},
    metrics::{Family, Renewed},
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CollectError, Collector, Look, docker};
use crate::evidence::{BuildCache, Piece};

/// The name of the collector.
pub const NAME: &str = "docker_disk";

/// The engine works for us at most one part in this many of the time.
const REST: u32 = 100;

/// After a failure that cost nothing, such as an engine that is not there.
const RETRY: Duration = Duration::from_secs(30);

/// After a failure that was expensive. A time limit that was reached says nothing about what the next answer costs.
const LONGEST_RETRY: Duration = Duration::from_secs(15 * 60);

/// Values are published until they are this many pauses old; their last success always is.
const LIFETIME: u32 = 3;

/// How often the engine is asked for its disk usage: an interval for each kind of object, 0 for never.
///
/// The engine answers for images and build cache from its memory, but walks the disk for volumes and containers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Images and their layers.
    pub images: PromDuration,
    /// What builds left behind.
    pub build_cache: PromDuration,
    /// Volumes, named or not.
    pub volumes: PromDuration,
    /// The writable layers of containers.
    pub containers: PromDuration,
}

impl Default for Config {
    fn default() -> Self {
        let minutes = |n: u64| PromDuration::new(Duration::from_secs(n * 60));
        Self { images: minutes(5), build_cache: minutes(5), volumes: minutes(60), containers: minutes(60) }
    }
}

impl Config {
    fn interval(&self, object: Object) -> Duration {
        match object {
            Object::Images => self.images.get(),
            Object::BuildCache => self.build_cache.get(),
            Object::Volumes => self.volumes.get(),
            Object::Containers => self.containers.get(),
        }
    }
}

/// The disk usage of one engine.
pub struct DockerDisk {
    docker: Docker,
    was_seen: AtomicBool,
    ledger: Arc<Mutex<Ledger>>,
    /// Most looks find the same again.
    told: Renewed,
    /// Ends the task also when only this collector goes away.
    task: CancellationToken,
}

/// What is known, and when to ask again.
struct Ledger(Vec<Record>);

/// One kind of object.
struct Record {
    object: Object,
    /// As configured, never zero.
    interval: Duration,
    next: Instant,
    answer: Option<Answer>,
    /// Why the last question failed, if it did.
    failure: Option<Error>,
    failures: u64,
    is_asked: bool,
}

/// One answer of the engine.
struct Answer {
    usage: ObjectUsage,
    at: SystemTime,
    took: Duration,
    good_until: Instant,
}

/// A question that was asked.
struct Asked {
    objects: Vec<Object>,
    /// The engine looked at everything, whatever was asked.
    whole: bool,
    /// How long it was busy with it.
    took: Duration,
    result: Result<DiskUsage, Error>,
}

impl DockerDisk {
    /// Starts asking at once, in a task that ends with `shutdown`. Needs a tokio runtime.
    pub fn start(docker: Docker, config: &Config, shutdown: &CancellationToken) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::new(config, Instant::now())));
        let task = shutdown.child_token();
        tokio::spawn(
            task.clone().run_until_cancelled_owned(ask_for_ever(docker.clone(), Arc::clone(&ledger))),
        );
        Self { docker, was_seen: AtomicBool::new(false), ledger, told: Renewed::default(), task }
    }
}

impl Drop for DockerDisk {
    fn drop(&mut self) {
        self.task.cancel();
    }
}

impl Collector for DockerDisk {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, _deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(async {
            let ledger = lock(&self.ledger);
            if ledger.0.is_empty() || docker::is_absent(&self.docker, &self.was_seen) {
                return Ok(Look::Absent(
                    "there is no Docker socket, or the configuration asks for no disk usage",
                ));
            }
            let now = Instant::now();
            match ledger.0.iter().find_map(|record| record.failure.as_ref()) {
                Some(error) if !ledger.0.iter().any(|record| record.is_good(now)) => {
                    Err(CollectError::new(error))
                }
                _ => Ok(Look::of(self.told.blocks(families(&ledger.0, now)))
                    .with(Piece::BuildCache(ledger.build_cache(now)))),
            }
        })
    }

    fn down(&self) -> Vec<Family> {
        families(&lock(&self.ledger).0, Instant::now())
    }
}

/// One question at a time, each on a connection of its own.
async fn ask_for_ever(docker: Docker, ledger: Arc<Mutex<Ledger>>) {
    let mut is_failing = false;
    loop {
        let next = lock(&ledger).next();
        let Some(next) = next else { return };
        tokio::time::sleep_until(next).await;
        let asked = match docker.api_version().await {
            Ok(version) => {
                let whole = version < TYPE_FILTER_SINCE;
                let objects = lock(&ledger).ask(whole);
                let start = Instant::now();
                let result = docker.disk_usage(&objects).await;
                Asked { objects, whole, took: start.elapsed(), result }
            }
            // It was not even asked.
            Err(error) => {
                Asked { objects: Object::ALL.to_vec(), whole: true, took: Duration::ZERO, result: Err(error) }
            }
        };
        // Said once: until it works again the look fails, or the last success grows old.
        if let Err(error) = &asked.result
            && !is_failing
            && docker.socket_exists()
        {
            tracing::warn!(%error, "no disk usage from the Docker engine");
        }
        is_failing = asked.result.is_err();
        lock(&ledger).learn(&asked, Instant::now());
    }
}

impl Ledger {
    fn new(config: &Config, now: Instant) -> Self {
        let record = |object| {
            let interval = config.interval(object);
            let asked = !interval.is_zero();
            asked.then_some(Record {
                object,
                interval,
                next: now,
                answer: None,
                failure: None,
                failures: 0,
                is_asked: false,
            })
        };
        Self(Object::ALL.into_iter().filter_map(record).collect())
    }

    /// When to ask; `None` when never.
    fn next(&self) -> Option<Instant> {
        self.0.iter().map(|record| record.next).min()
    }

    /// What to ask for then: a kind at a time, so that each has its own cost and its own failure; all of them where
    /// the engine looks at everything anyway.
    fn due(&self, whole: bool) -> Vec<Object> {
        match self.0.iter().min_by_key(|record| record.next) {
            Some(first) if !whole => vec![first.object],
            _ => self.0.iter().map(|record| record.object).collect(),
        }
    }

    /// Takes note that what is due is being asked for.
    fn ask(&mut self, whole: bool) -> Vec<Object> {
        let objects = self.due(whole);
        self.0.iter_mut().for_each(|record| record.is_asked = objects.contains(&record.object));
        objects
    }

    /// What is known of the build cache now.
    fn build_cache(&self, now: Instant) -> BuildCache {
        let Some(record) = self.0.iter().find(|record| record.object == Object::BuildCache) else {
            return BuildCache::Unknown;
        };
        match &record.answer {
            Some(answer) if record.is_good(now) => BuildCache::Bytes(answer.usage.bytes),
            None if record.failure.is_none() => BuildCache::Pending,
            _ => BuildCache::Unknown,
        }
    }

    fn learn(&mut self, asked: &Asked, now: Instant) {
        for record in self.0.iter_mut().filter(|record| asked.objects.contains(&record.object)) {
            record.is_asked = false;
            match &asked.result {
                Ok(usage) => {
                    let pause = record.interval.max(asked.took * REST);
                    record.next = now + pause;
                    record.failure = None;
                    record.answer = usage.get(record.object).map(|usage| Answer {
                        usage,
                        at: SystemTime::now(),
                        took: asked.took,
                        good_until: now + pause * LIFETIME,
                    });
                }
                Err(error) => {
                    let rest = (asked.took * REST).min(LONGEST_RETRY);
                    record.next = now + record.interval.min(RETRY).max(rest);
                    record.failure = Some(error.clone());
                    record.failures += 1;
                }
            }
        }
        // One answer serves all: the shortest interval decides for everyone.
        if let (true, Some(next)) = (asked.whole, self.next()) {
            self.0.iter_mut().for_each(|record| record.next = next);
        }
    }
}

impl Record {
    fn is_good(&self, now: Instant) -> bool {
        self.answer.as_ref().is_some_and(|answer| now < answer.good_until)
    }
}

fn families(records: &[Record], now: Instant) -> Vec<Family> {
    let mut bytes = Family::gauge(
        "docker_disk_usage_bytes",
        "Bytes that Docker takes, as docker system df counts them. Cached: see the last success.",
    );
    let mut reclaimable = Family::gauge(
        "docker_disk_usage_reclaimable_bytes",
        "Bytes of what nothing uses, as docker system df counts them. Cached: see the last success.",
    );
    let mut objects =
        Family::gauge("docker_disk_usage_objects", "How many there are. Cached: see the last success.");
    let mut active = Family::gauge(
        "docker_disk_usage_active_objects",
        "How many are in use. Cached: see the last success.",
    );
    let mut last_success = Family::gauge(
        "docker_disk_usage_last_success_timestamp_seconds",
        "When the engine last answered for this kind of object.",
    );
    let mut duration = Family::gauge(
        "docker_disk_usage_collection_duration_seconds",
        "How long that answer took the engine. The next question waits at least 100 times as long.",
    );
    let mut failures = Family::counter(
        "docker_disk_usage_failures_total",
        "Questions to which the engine gave no answer that could be used, within 60 s.",
    );
    let mut in_flight = Family::gauge(
        "docker_disk_usage_in_flight",
        "1 while the engine is working on the answer, else 0. It stalls when this is 1 at every look.",
    );
    for record in records {
        let object = [("object", record.object.as_str())];
        failures.sample(&object, record.failures as f64);
        in_flight.sample(&object, f64::from(u8::from(record.is_asked)));
        let Some(answer) = &record.answer else { continue };
        last_success.timestamp(&object, Some(answer.at));
        duration.sample(&object, answer.took.as_secs_f64());
        if record.is_good(now) {
            bytes.sample(&object, answer.usage.bytes as f64);
            reclaimable.sample(&object, answer.usage.reclaimable_bytes as f64);
            objects.sample(&object, answer.usage.objects as f64);
            active.sample(&object, answer.usage.active_objects as f64);
        }
    }
    vec![bytes, reclaimable, objects, active, last_success, duration, failures, in_flight]
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        evenkeel_host::config::parse("test", text).expect(text)
    }

    /// An answer with every kind of object, that took so long.
    fn answered(objects: &[Object], whole: bool, took: Duration) -> Asked {
        let sums = r#"{"ImageUsage": {}, "BuildCacheUsage": {}, "VolumeUsage": {}, "ContainerUsage": {}}"#;
        let result = DiskUsage::read(sums.as_bytes(), objects);
        Asked { objects: objects.to_vec(), whole, took, result }
    }

    fn failed(objects: &[Object], took: Duration) -> Asked {
        Asked { objects: objects.to_vec(), whole: false, took, result: Err(Error::Timeout(took)) }
    }

    fn pauses(ledger: &Ledger, since: Instant) -> Vec<(&'static str, u64)> {
        let pause = |record: &Record| (record.object.as_str(), (record.next - since).as_secs());
        ledger.0.iter().map(pause).collect()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_kind_has_its_own_pause() {
        let now = Instant::now();
        let mut ledger = Ledger::new(&config("volumes: 0\nimages: 10m\n"), now);
        assert_eq!(ledger.due(false), [Object::Images]);
        assert_eq!(ledger.due(true), [Object::Images, Object::BuildCache, Object::Containers]);
        ledger.learn(&answered(&[Object::Images], false, SECOND), now);
        assert_eq!(ledger.due(false), [Object::BuildCache]);
        // It took 10 s: the engine rests 1000.
        ledger.learn(&answered(&[Object::BuildCache], false, 10 * SECOND), now);
        ledger.learn(&failed(&[Object::Containers], Duration::ZERO), now);
        assert_eq!(pauses(&ledger, now), [("images", 600), ("build_cache", 1000), ("containers", 30)]);
        // A failure that was expensive is not cheaper to repeat, but may not last for hours.
        ledger.learn(&failed(&[Object::Containers], 2 * SECOND), now);
        assert_eq!(pauses(&ledger, now)[2], ("containers", 200));
        ledger.learn(&failed(&[Object::Containers], 60 * SECOND), now);
        assert_eq!(pauses(&ledger, now)[2], ("containers", 900));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_engine_is_asked_at_the_shortest_interval() {
        let now = Instant::now();
        let mut ledger = Ledger::new(&Config::default(), now);
        ledger.learn(&answered(&Object::ALL, true, SECOND), now);
        assert!(pauses(&ledger, now).iter().all(|(_, pause)| *pause == 300));
    }

    #[tokio::test(start_paused = true)]
    async fn values_end_and_their_age_stays() {
        let now = Instant::now();
        let mut ledger = Ledger::new(&Config::default(), now);
        let samples = |ledger: &Ledger, now| -> Vec<usize> {
            families(&ledger.0, now).iter().map(|family| family.samples.len()).collect()
        };
        // All but what tells how the asking goes.
        let samples = |ledger: &Ledger, now| samples(ledger, now)[..6].to_vec();
        assert_eq!(samples(&ledger, now), [0; 6]);
        ledger.learn(&answered(&[Object::Images], false, SECOND), now);
        ledger.learn(&failed(&[Object::Images], SECOND), now + 300 * SECOND);
        assert_eq!(samples(&ledger, now + 899 * SECOND), [1; 6]);
        assert_eq!(samples(&ledger, now + 900 * SECOND), [0, 0, 0, 0, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_and_what_failed_can_be_seen() {
        let now = Instant::now();
        let mut ledger = Ledger::new(&Config::default(), now);
        let seen = |ledger: &Ledger, name: &str| -> Vec<f64> {
            let families = families(&ledger.0, now);
            let family = families.iter().find(|family| family.name == name).expect(name);
            family.samples.iter().map(|sample| sample.value).collect()
        };
        assert_eq!(ledger.ask(false), [Object::Images]);
        assert_eq!(seen(&ledger, "docker_disk_usage_in_flight"), [1.0, 0.0, 0.0, 0.0]);
        ledger.learn(&failed(&[Object::Images], SECOND), now);
        assert_eq!(seen(&ledger, "docker_disk_usage_in_flight"), [0.0; 4]);
        assert_eq!(seen(&ledger, "docker_disk_usage_failures_total"), [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn nothing_is_asked_when_all_is_off() {
        let off = config("images: 0\nbuild_cache: 0\nvolumes: 0\ncontainers: 0\n");
        assert_eq!(Ledger::new(&off, Instant::now()).next(), None);
    }
}
