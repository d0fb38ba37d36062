//! What a listener makes of a fake systemd's signals, of forged ones and of nonsense.

use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::systemd::{
    fake::{FakeSystemd, FakeUnit, Mood},
    tests::{IMPATIENCE, PATIENCE, at, fake},
};

const WEB: &str = "web.service";
const WEB_PATH: &str = "/org/freedesktop/systemd1/unit/web_2eservice";

struct Bench {
    _folder: TempDir,
    fake: FakeSystemd,
    systemd: Systemd,
    line: Line,
    signals: Signals,
}

async fn bench(units: Vec<FakeUnit>) -> Bench {
    let (folder, fake, systemd) = fake(units);
    let (line, signals) = systemd.listen().await.unwrap();
    Bench { _folder: folder, fake, systemd, line, signals }
}

impl Bench {
    /// All that was announced until now.
    async fn announced(&mut self) -> Vec<Signal> {
        let asked = async { self.line.system_state().await.unwrap().1 };
        let (until, mut heard) = (asked.await, Vec::new());
        while let Some((position, signal)) = self.signals.next().await {
            heard.extend(signal);
            if position >= until {
                break;
            }
        }
        heard
    }

    async fn known(&self) -> (Unit, Details) {
        let unit = self.systemd.units().await.unwrap().remove(0);
        let details = self.systemd.details(&unit).await.unwrap();
        (unit, details)
    }

    /// Applies all that was announced and says what each did.
    async fn applied(&mut self, unit: &mut Unit, details: &mut Details) -> Vec<Effect> {
        let effect = |signal| match signal {
            Signal::Changed(changed) => changed.apply(unit, Some(details)),
            other => panic!("{other:?}"),
        };
        self.announced().await.into_iter().map(effect).collect()
    }
}

#[tokio::test]
async fn what_changed_comes_with_its_values() {
    let mut bench = bench(vec![FakeUnit::new(WEB)]).await;
    let (mut unit, mut details) = bench.known().await;
    bench
        .fake
        .announce(WEB, |unit| {
            unit.active_state = "activating".into();
            unit.sub_state = "auto-restart".into();
            unit.set("StateChangeTimestampMonotonic", 2_000_000_u64);
            unit.set("InactiveEnterTimestamp", 1_700_000_500_000_000_u64);
            unit.set("NRestarts", 3_u32);
            unit.set("Result", "exit-code");
            unit.set("ExecMainStatus", 7_i32);
            unit.set("ExecMainExitTimestamp", 1_700_000_499_000_000_u64);
        })
        .await;
    assert_eq!(bench.applied(&mut unit, &mut details).await, [Effect::Changed, Effect::Changed]);
    assert_eq!((&*unit.active_state, &*unit.sub_state), ("activating", "auto-restart"));
    assert_eq!(details.inactive_enter, at(1_700_000_500));
    let service = details.service.clone().unwrap();
    assert_eq!((service.n_restarts, &*service.result, service.exec_main_status), (3, "exit-code", 7));
    assert_eq!((unit.clone(), details.clone()), bench.known().await, "as if it had been asked");
    bench.fake.announce(WEB, |_| {}).await;
    assert_eq!(bench.applied(&mut unit, &mut details).await, [Effect::Nothing, Effect::Nothing]);
}

#[tokio::test]
async fn a_timer_tells_its_next_times() {
    let mut bench = bench(vec![FakeUnit::new("backup.timer")]).await;
    let (mut unit, mut details) = bench.known().await;
    assert_eq!(details.timer.as_ref().unwrap().next_realtime, None);
    bench
        .fake
        .announce("backup.timer", |unit| {
            unit.set("LastTriggerUSec", 1_700_000_000_000_000_u64);
            unit.set("NextElapseUSecRealtime", 1_700_003_600_000_000_u64);
            unit.set("NextElapseUSecMonotonic", u64::MAX);
        })
        .await;
    assert_eq!(bench.applied(&mut unit, &mut details).await, [Effect::Changed, Effect::Nothing]);
    let timer = details.timer.unwrap();
    assert_eq!(timer.unit, "backup.service");
    assert_eq!((timer.last_trigger, timer.next_realtime), (at(1_700_000_000), at(1_700_003_600)));
    assert_eq!(timer.next_monotonic, None);
}

#[tokio::test]
async fn units_come_and_go() {
    let mut bench = bench(vec![FakeUnit::new(WEB)]).await;
    bench.fake.load(FakeUnit::new("new.service")).await;
    bench.fake.unload(WEB).await;
    let announced = bench.announced().await;
    let [Signal::New { name, path }, Signal::Removed { path: removed }] = &announced[..] else {
        panic!("{announced:?}");
    };
    assert_eq!(
        (name.as_str(), path.as_str()),
        ("new.service", "/org/freedesktop/systemd1/unit/new_2eservice")
    );
    assert_eq!(removed.as_str(), WEB_PATH);
}

#[tokio::test]
async fn a_reload_is_a_bracket() {
    let mut bench = bench(vec![FakeUnit::new(WEB)]).await;
    bench.fake.reload(|_| {}).await;
    let announced = bench.announced().await;
    assert!(
        matches!(
            announced[..],
            [Signal::Reloading(true), Signal::Removed { .. }, Signal::New { .. }, Signal::Reloading(false)]
        ),
        "{announced:?}"
    );
}

#[tokio::test]
async fn nobody_else_can_announce_anything() {
    let mut bench = bench(vec![FakeUnit::new(WEB)]).await;
    let body = ("web.service", zbus::ObjectPath::from_static_str_unchecked(WEB_PATH));
    let path = "/org/freedesktop/systemd1";
    bench.fake.emit_as(":1.99", path, MANAGER, "UnitRemoved", &body).await;
    bench.fake.emit_as(":1.99", path, MANAGER, "Reloading", &true).await;
    let owner = (SYSTEMD, ":1.0", ":1.99");
    bench.fake.emit_as(":1.99", "/org/freedesktop/DBus", DBUS, "NameOwnerChanged", &owner).await;
    assert!(bench.announced().await.is_empty());
}

#[tokio::test]
async fn another_systemd_ends_the_signals() {
    let mut bench = bench(vec![FakeUnit::new(WEB)]).await;
    bench.fake.replace_systemd(":1.99").await;
    while let Some((_, signal)) = bench.signals.next().await {
        assert!(signal.is_none(), "{signal:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_unclear() {
    let mut bench = bench(vec![FakeUnit::new(WEB)]).await;
    let (mut unit, mut details) = bench.known().await;
    let before = (unit.clone(), details.clone());
    let fake = &bench.fake;
    let changed = async |interface: &str, property: &str, value: Variant<'static>, without: &[&str]| {
        let values = BTreeMap::from([(property.to_owned(), value)]);
        fake.emit(WEB_PATH, PROPERTIES, "PropertiesChanged", &(interface, values, without)).await;
    };
    let (on_unit, on_service) = ("org.freedesktop.systemd1.Unit", "org.freedesktop.systemd1.Service");
    changed(on_unit, "ActiveState", 7_u32.into(), &[]).await;
    changed(on_unit, "ActiveEnterTimestamp", "soon".into(), &[]).await;
    changed(on_service, "NRestarts", "many".into(), &[]).await;
    changed(on_service, "ExecMainStatus", 7_u64.into(), &[]).await;
    changed(on_service, "MainPID", 7_u32.into(), &["Result"]).await;
    fake.emit(WEB_PATH, PROPERTIES, "PropertiesChanged", &7_u32).await;
    assert_eq!(bench.applied(&mut unit, &mut details).await, [Effect::Unclear; 6]);
    assert_eq!((unit, details), before);
}

#[tokio::test]
async fn signals_of_other_forms_are_passed_over() {
    let mut bench = bench(vec![]).await;
    let path = "/org/freedesktop/systemd1";
    for member in ["UnitNew", "UnitRemoved", "Reloading", "SomethingElse"] {
        bench.fake.emit(path, MANAGER, member, &("nonsense", 7_u32)).await;
    }
    assert!(bench.announced().await.is_empty());
}

#[tokio::test]
async fn a_flood_neither_blocks_the_answer_nor_is_cut_short() {
    let mut bench = bench(vec![FakeUnit::new(WEB)]).await;
    let mut heard = 0;
    let flood = async {
        for _ in 0..5_000 {
            bench.fake.announce(WEB, |_| {}).await;
        }
        bench.line.system_state().await.unwrap().1
    };
    let taking = async {
        while let Some((_, signal)) = bench.signals.next().await {
            heard += u32::from(signal.is_some());
            if heard == 10_000 {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(flood, taking) })
        .await
        .expect("nothing waits for ever");
    assert_eq!(heard, 10_000);
}

#[tokio::test]
async fn a_connection_that_ends_ends_the_signals() {
    let mut bench = bench(vec![]).await;
    bench.announced().await;
    bench.fake.hang_up().await;
    assert!(bench.signals.next().await.is_none());
    assert_eq!(bench.line.system_state().await.unwrap_err().reason(), "lost");
}

#[tokio::test]
async fn a_systemd_that_does_not_answer_cannot_be_listened_to() {
    for member in ["AddMatch", "GetNameOwner", "Subscribe"] {
        let (_folder, fake, systemd) = fake(vec![]);
        fake.state().mood = Mood::DeafTo(member);
        let error = systemd.with_limit(IMPATIENCE).listen().await.unwrap_err();
        assert_eq!(error.to_string(), format!("{member} did not answer within 200ms"));
    }
}
