//! A whole fleet: its Redis, its hosts and two gateways, and what it takes to try it: alerts that come twice, hosts that are
//! cut off, die and come back, clocks that are minutes apart.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    machine::{Machine, Shared},
    server::{Lead, Path, Server},
    world::World,
};
use crate::{
    clock::Clock,
    config::{Config, tests::config},
    fleet::{
        gateway::{Gateway, Parcel},
        ledger::{Beat, Ledger},
        link::Link,
        names::HostId,
        settings::{Role, Settings},
        view::{View, Viewer},
    },
    metrics::Metrics,
    webhook,
};

/// What must come comes within this time, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(60);
/// Alerts in one delivery.
const DELIVERY: usize = 250;
/// A clock may be wrong by so much.
const SKEW_MS: u64 = 600_000;

/// Numbers that look as if they came by chance, the same ones from the same seed.
#[derive(Clone, Copy)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(end).unwrap()).unwrap()
    }

    /// Milliseconds between ten minutes early and ten minutes late.
    pub(super) fn skew(&mut self) -> i64 {
        let range = usize::try_from(2 * SKEW_MS).unwrap();
        i64::try_from(self.below(range)).unwrap() - i64::try_from(SKEW_MS).unwrap()
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for place in (1..list.len()).rev() {
            list.swap(place, self.below(place + 1));
        }
    }
}

/// The fleet.
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) machines: Vec<Machine>,
    /// Of each host, or of each of the groups that they are in.
    pub(super) paths: Vec<Path>,
    pub(super) lead: Lead,
    /// The way of gateways and people.
    _hub: Path,
    gateways: [Gateway; 2],
    viewer: Viewer,
    template: Config,
}

/// How hosts come to Redis.
pub(super) enum Ways {
    /// Each by two connections of its own, and waits in Redis for its alerts.
    Own,
    /// So many of them by two connections; each looks for its alerts so often.
    Shared(usize, Duration),
}

impl Ways {
    /// How often hosts look at what was held back.
    fn reconcile(&self) -> &'static str {
        match self {
            Self::Own => "1s",
            Self::Shared(..) => "60s",
        }
    }
}

impl Stage {
    /// Starts a fleet of so many hosts; `fleet` is what the section `fleet` says beside the way to Redis.
    pub(super) async fn start(
        server: &Server,
        hosts: usize,
        fleet: &str,
        ways: Ways,
        chance: &mut Chance,
    ) -> Self {
        let lead = Lead::to(server);
        let hub = Path::open(lead.clone()).await;
        let template = config(&format!(
            "identity: {{hosts: [gateway]}}
reconcile: {{interval: {}}}
policy:
  mode: auto
  limits: {{S2: [1000/1h]}}
  gates: {{grace: 0s, engine_grace: 0s}}
fleet:
  redis: {{url: '{}'}}
{fleet}
rules:
  - name: unit-failed
    match: ['alertname=\"SystemdUnitFailed\"']
    target: {{unit: name, allow: [shop.service]}}
    limits: [1000/1h]
    cooldown: 0s
    steps: [unit_restart]
    verify: {{active_for: 100ms, within: 500ms}}
",
            ways.reconcile(),
            hub.url()
        ))
        .unwrap();
        let metrics = Metrics::new(&template.rules);
        let settings = template.fleet.clone().unwrap();
        let gateway = || Gateway::new(settings.clone(), Role::Gateway, metrics.clone());
        let world = World::new(hosts);
        let each = match ways {
            Ways::Own => 1,
            Ways::Shared(each, _) => each,
        };
        let mut paths = Vec::new();
        for _ in 0..hosts.div_ceil(each) {
            paths.push(Path::open(lead.clone()).await);
        }
        let shared: Vec<Option<Shared>> = paths.iter().map(|path| shared(path, &settings, &ways)).collect();
        let mut machines = Vec::with_capacity(hosts);
        for number in 0..hosts {
            let group = number / each;
            let machine = Machine::new(&world, number, &template, paths[group].url(), &metrics);
            let mut machine = match &shared[group] {
                Some(shared) => machine.over(shared.clone()),
                None => machine,
            };
            machine.set_clock(chance.skew());
            machine.start();
            machines.push(machine);
            // Whoever limits the time of all this gets a turn.
            yield_now().await;
        }
        let gateways = [gateway(), gateway()];
        let viewer = Viewer::new(settings);
        let stage = Self { world, machines, paths, lead, _hub: hub, gateways, viewer, template };
        let everybody = u64::try_from(hosts).unwrap();
        stage
            .sees("every host to have said that it is there", |view| {
                view.total == everybody && view.gone == 0
            })
            .await;
        stage.viewer.trust_memory().await.unwrap();
        stage
    }

    /// So many hosts more that only said once that they are there.
    pub(super) async fn crowd(&self, server: &Server, hosts: usize) {
        let settings = self.template.fleet.clone().unwrap();
        let ledger = Ledger::new(settings.keys.clone(), settings.terms.clone());
        let redis = server.connect().await.unwrap();
        let names: Vec<HostId> =
            (0..hosts).map(|number| format!("crowd-{number}").parse().unwrap()).collect();
        for names in names.chunks(500) {
            let said = names.iter().map(async |host| {
                let names = std::slice::from_ref(host);
                let (instance, version) = ("crowd", "1");
                let beat = Beat { host, names, instance, version, seen: 0, first: true, in_need: false };
                ledger.beat(&mut redis.clone(), &beat).await.unwrap();
            });
            futures_util::future::join_all(said).await;
        }
    }

    pub(super) fn viewer(&self) -> &Viewer {
        &self.viewer
    }

    /// Passes an alert of each of these hosts on, by one gateway; answers how many nobody has claimed. What fails comes
    /// again, as an Alertmanager sends it again.
    pub(super) async fn deliver_by(&self, gateway: usize, hosts: &[String], status: &str) -> usize {
        let mut unclaimed = 0;
        for hosts in hosts.chunks(DELIVERY) {
            let labels = |host: &String| json!({"alertname": "SystemdUnitFailed", "host": host, "name": "shop.service"});
            let alerts: Vec<_> = hosts
                .iter()
                .map(|host| json!({"status": status, "labels": labels(host), "fingerprint": host}))
                .collect();
            let body = json!({"version": "4", "alerts": alerts}).to_string();
            let gateway = &self.gateways[gateway];
            let mut parcels = Vec::new();
            let take = |alert: &webhook::Alert, meaning| {
                assert!(gateway.passes(&meaning), "{meaning:?}");
                parcels.push(Parcel::of(alert).unwrap());
            };
            webhook::read(body.as_bytes(), &self.template, false, take).unwrap();
            let end = Instant::now() + SOON;
            unclaimed += loop {
                match gateway.pass(&parcels).await {
                    Ok(passed) => break passed.unclaimed,
                    Err(error) => assert!(Instant::now() < end, "no gateway gets through: {error}"),
                }
                sleep(Duration::from_millis(100)).await;
            };
        }
        unclaimed
    }

    /// The same by both gateways, as two Alertmanagers do that know nothing of each other.
    pub(super) async fn deliver(&self, hosts: &[usize]) {
        self.say(hosts, "firing").await;
    }

    /// Alertmanager says that it is over.
    pub(super) async fn resolve(&self, hosts: &[usize]) {
        self.say(hosts, "resolved").await;
    }

    async fn say(&self, hosts: &[usize], status: &str) {
        let names: Vec<String> = hosts.iter().map(|host| self.machines[*host].name.clone()).collect();
        tokio::join!(self.deliver_by(0, &names, status), self.deliver_by(1, &names, status));
    }

    /// The units of these hosts fail, and alerts say so.
    pub(super) async fn fail(&self, hosts: &[usize]) {
        for host in hosts {
            self.world.fail(*host);
        }
        self.deliver(hosts).await;
    }

    /// Waits until the fleet is as it should be.
    pub(super) async fn sees(&self, what: &str, is_so: impl Fn(&View) -> bool) -> View {
        let mut last = None;
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            match self.viewer.look(&Clock::default()).await {
                Ok(view) if is_so(&view) => return view,
                seen => last = Some(seen),
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("waited in vain for {what}: {last:?}");
    }

    /// Waits for something, and does something in between: Alertmanager repeats what still fires.
    pub(super) async fn until(
        &self,
        what: &str,
        within: Duration,
        is_so: impl Fn() -> bool,
        mut repeat: impl AsyncFnMut(),
    ) {
        let end = Instant::now() + within;
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain for {what}: {}", self.summary());
            sleep(Duration::from_millis(100)).await;
            repeat().await;
        }
    }

    /// Whether nothing is open on any host that lives.
    pub(super) fn is_at_rest(&self) -> bool {
        self.machines.iter().filter(|machine| machine.is_alive()).all(|machine| machine.open() == 0)
    }

    /// How it stands, for whoever has to find out why.
    pub(super) fn summary(&self) -> String {
        let mut ends = std::collections::BTreeMap::<String, usize>::new();
        for machine in &self.machines {
            let last = machine.records().pop();
            let word = last.map_or_else(
                || "none".to_owned(),
                |last| {
                    let outcome = last.outcome.map_or("open", |outcome| outcome.as_str());
                    format!("{outcome} {}", last.reason.unwrap_or_default())
                },
            );
            *ends.entry(word).or_default() += 1;
        }
        format!(
            "failed {}, begun {}, most at once {}; the last of each host: {ends:?}",
            self.world.failed().len(),
            self.world.starts(),
            self.world.most_acting()
        )
    }

    /// Hosts on which a remediation ended for this reason.
    pub(super) fn that_say(&self, reason: &str) -> usize {
        let says = |machine: &&Machine| {
            machine.records().iter().any(|record| record.reason.as_deref() == Some(reason))
        };
        self.machines.iter().filter(says).count()
    }

    /// Waits until every host has knocked so often more at its way to Redis: each does at each heartbeat while nobody
    /// answers.
    pub(super) async fn knocks(&self, times: usize) {
        let before: Vec<usize> = self.paths.iter().map(Path::knocks).collect();
        let all = || self.paths.iter().zip(&before).all(|(path, before)| path.knocks() >= before + times);
        self.until("every host to knock", SOON, all, async || {}).await;
    }
}

fn shared(path: &Path, settings: &Settings, ways: &Ways) -> Option<Shared> {
    let Ways::Shared(_, every) = ways else { return None };
    let way = crate::fleet::settings::Way { url: path.url(), ..settings.redis.clone() };
    let link = || Arc::new(Link::new(way.clone(), settings.timeout, 64 << 20));
    Some(Shared { members: link(), agents: link(), every: *every })
}
