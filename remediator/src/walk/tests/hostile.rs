//! A sender with a good token that wants to do harm: any body that can be written, on a host where everything that is
//! named is there and broken. Nothing is looked at or called that the configuration does not name.

use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use proptest::{
    collection::vec,
    prelude::{Strategy, any, prop_oneof},
    sample::select,
    test_runner::{Config as Rules, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

use super::bench::{Bench, Does, disk, disk_rule, unit_rule};
use crate::{
    admission::gates::Conditions,
    filling::Filling,
    observe::{Container, Eyes, Hostname, Observation, Unit, Unseen},
    policy::Class,
    target::{Kind, Target},
    webhook::{self, Alert, Meaning},
};

const BODIES: u32 = 300;

/// Sees whatever it is asked for, and that it is in need. Some names are others' aliases.
#[derive(Clone, Default)]
struct Anything(Arc<Mutex<Vec<Target>>>);

const OTHERS: [&str; 4] = ["sshd.service", "docker.service", "nginx.service", "app-real.service"];

/// Which unit an alias is of; one in five is of none.
fn alias_of(name: &str) -> Option<&'static str> {
    let rest = name.strip_prefix("app-alias")?;
    OTHERS.get(rest.len() % 5).copied()
}

impl Eyes for Anything {
    fn observe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Observation, Unseen>> {
        self.0.lock().unwrap().push(target.clone());
        let name = target.name();
        let seen = match target.kind() {
            Kind::Filesystem => disk(0.95),
            Kind::Hostname => Observation::Hostname(Hostname::default()),
            Kind::Host => return Box::pin(async { Err(Unseen("no host".to_owned())) }),
            Kind::Container => Observation::Container(Container {
                state: "running".to_owned(),
                health: "unhealthy".to_owned(),
                ..Container::default()
            }),
            Kind::Unit => {
                let id = alias_of(name).unwrap_or(name).to_owned();
                Observation::Unit(Unit {
                    names: vec![id.clone(), name.to_owned()],
                    id,
                    load_state: "loaded".to_owned(),
                    active_state: "failed".to_owned(),
                    ..Unit::default()
                })
            }
        };
        Box::pin(async move { Ok(seen) })
    }

    fn dependents<'a>(&'a self, _: &'a Target, _: usize) -> BoxFuture<'a, Result<Vec<String>, Unseen>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn conditions(&self) -> BoxFuture<'_, Conditions> {
        Box::pin(async { Conditions::default() })
    }

    fn what_fills<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Filling> {
        Box::pin(async { Filling::default() })
    }
}

/// What a hostile sender writes where a name is expected, beside what is right.
fn name() -> impl Strategy<Value = String> {
    let known = select(
        &[
            "app-a.service",
            "app-b.service",
            "shop_api",
            "/no/such/disk",
            "app-alias.service",
            "app-alias1.service",
            "app-alias22.service",
            "app-alias333.service",
            "../x",
            "app-/../../x.service",
            "-rf",
            "app-a.service;reboot",
            "app-a.service\nsshd.service",
            "app-a.service\0",
            "app-a.service ",
            "app-\u{430}.service",
            "\u{430}pp-a.service",
            "app-\u{202e}a.service",
            "ssh.service",
            "sshd.service",
            "dbus.service",
            "docker.service",
            "evenkeel-remediator.service",
            "user@0.service",
            "shop_api/exec",
            "shop_api?all=1",
            "shop_%2e%2e",
            "/no/such/disk/",
            "/no/such/../../etc",
            "/no/such/third",
            "/",
            "*",
            "app-*.service",
            "",
        ][..],
    )
    .prop_map(str::to_owned);
    let good = select(&["app-a.service", "shop_api", "/no/such/disk", "app-alias1.service"][..]);
    prop_oneof![
        6 => good.prop_map(str::to_owned),
        8 => known,
        1 => (1..12_000_usize).prop_map(|length| format!("app-{}.service", "a".repeat(length))),
        1 => any::<String>(),
        2 => any::<String>().prop_map(|text| format!("app-{text}.service")),
    ]
}

/// One alert, or something in its place.
fn alert() -> impl Strategy<Value = Value> {
    let names = [name().boxed(), name().boxed(), name().boxed()];
    let rule = select(&["unit", "unit", "container", "disk", "unit|disk", ".*", ""][..]);
    let status = select(&["firing", "firing", "firing", "resolved"][..]);
    let host = select(&["vps1", "vps1", "vps1", "vps1", "vps1", "vps2", "localhost", "vps1\n"][..]);
    let more = vec((any::<String>(), any::<String>()), 0..3);
    let good = (rule, status, host, names, more).prop_map(|(rule, status, host, names, more)| {
        let mut labels = json!({"alertname": rule, "host": host});
        let known = ["name", "container", "mountpoint"].map(str::to_owned);
        for (label, value) in more.into_iter().chain(known.into_iter().zip(names)) {
            labels[label] = Value::String(value);
        }
        json!({"status": status, "labels": labels, "fingerprint": "ab"})
    });
    let odd = select(
        &[
            "null",
            r#"{"status":"FIRING","labels":{}}"#,
            "7",
            "{}",
            "[]",
            r#"{"status":"firing","labels":{"alertname":["unit"]}}"#,
        ][..],
    )
    .prop_map(|text| serde_json::from_str(text).unwrap());
    prop_oneof![60 => good, 1 => odd]
}

/// A body: mostly well-formed, or nothing would ever be admitted; sometimes a key twice, bytes that are no text, depth.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let alerts = || vec(alert(), 0..12);
    let text = |alerts: Vec<Value>| json!({"version": "4", "alerts": alerts}).to_string();
    let delivery = alerts().prop_map(text);
    let twice = name().prop_map(|name| {
        let name = Value::String(name);
        format!(
            r#"{{"version":"4","alerts":[{{"status":"firing","labels":{{"alertname":"unit","host":"vps1","name":"app-a.service","name":{name}}}}}]}}"#
        )
    });
    let cut = (alerts(), any::<u16>(), any::<u8>()).prop_map(move |(alerts, at, byte)| {
        let mut bytes = text(alerts).into_bytes();
        let at = usize::from(at) % bytes.len();
        bytes[at] = byte;
        bytes
    });
    let deep = (1..5000_usize).prop_map(|depth| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"version":"4","x":{open}{close},"alerts":{open}{close}}}"#).into_bytes()
    });
    prop_oneof![
        20 => delivery.prop_map(String::into_bytes),
        3 => twice.prop_map(String::into_bytes),
        4 => cut,
        1 => deep,
    ]
}

/// Worked out by hand, not by the code that is tested.
fn may_be_named(kind: Kind, name: &str) -> bool {
    let plain =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte));
    match kind {
        Kind::Unit => {
            name.starts_with("app") && name.ends_with(".service") && name.len() <= 255 && plain(name)
        }
        Kind::Container => name == "shop_api",
        Kind::Filesystem => ["/no/such/disk", "/no/such/second"].contains(&name),
        Kind::Hostname | Kind::Host => false,
    }
}

#[tokio::test(start_paused = true)]
async fn no_body_makes_anything_be_looked_at_or_called_that_is_not_allowed() {
    let free = "    limits: [100000/1h]\n    cooldown: 0s\n    breaker: {after: 100000, hold: 1h}\n";
    let container = format!(
        "  - name: container
    match: ['alertname=\"container\"']
    target: {{container: container, allow: ['shop_*']}}
    steps: [container_restart]
    verify: {{healthy_for: 10s, within: 20s}}
{free}"
    );
    let free_policy = "S1: [100000/1h], S2: [100000/1h], D1: [100000/1h], D2: [100000/1h], target: [100000/1h], host: [100000/1h]";
    let policy = format!("policy: {{mode: auto, deletion: data, limits: {{{free_policy}}}}}");
    let mut bench = Bench::under(&policy, &[unit_rule("unit", free), container, disk_rule("disk", free)]);
    for rule in ["unit", "container", "disk"] {
        let step = bench.fake("act", Class::S2, Does::Refuse);
        bench.steps(rule, [step]);
    }
    let eyes = Anything::default();
    bench.look_with(Arc::new(eyes.clone()));
    let mut runner = TestRunner::new_with_rng(
        Rules { failure_persistence: None, ..Rules::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let mut refused = 0;
    for _ in 0..BODIES {
        let body = body().new_tree(&mut runner).unwrap();
        let body = proptest::strategy::ValueTree::current(&body);
        let shown = || String::from_utf8_lossy(&body).chars().take(2000).collect::<String>();
        let mut ours = Vec::new();
        let take = |_: &Alert<'_>, meaning| match meaning {
            Meaning::Ours(alert) => ours.push(alert),
            Meaning::Ignored(_) => {}
        };
        if webhook::read(&body, &bench.config, false, take).is_err() {
            refused += 1;
            continue;
        }
        bench.take(ours).await;
        bench.drive().await;
        for target in eyes.0.lock().unwrap().drain(..) {
            assert!(may_be_named(target.kind(), target.name()), "{target:?} was looked at for {}", shown());
        }
        for call in bench.world.calls() {
            let kind = match call.rule.as_str() {
                "unit" => Kind::Unit,
                "container" => Kind::Container,
                _ => Kind::Filesystem,
            };
            assert!(may_be_named(kind, &call.target), "{call:?} for {}", shown());
            assert!(alias_of(&call.target).is_none(), "{call:?} by its alias for {}", shown());
        }
    }
    let called = bench.world.called().len();
    assert!(called > 50 && refused > 5, "{called} calls, {refused} bodies refused: nothing was tried");
}
