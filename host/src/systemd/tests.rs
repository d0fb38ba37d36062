//! The questions against a fake systemd: what comes out of odd answers, and what becomes of the connection.

use std::time::Duration;

use tempfile::TempDir;

use super::{
    fake::{FakeSystemd, FakeUnit, Mood},
    *,
};

/// Long enough for an answer on a loaded machine, for calls that will get one.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// For calls that get none.
pub(super) const IMPATIENCE: Duration = Duration::from_millis(200);

pub(super) fn fake(units: Vec<FakeUnit>) -> (TempDir, FakeSystemd, Systemd) {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSystemd::start(folder.path(), units);
    let systemd = Systemd::at(&fake.address()).with_limit(PATIENCE);
    (folder, fake, systemd)
}

pub(super) fn at(seconds: u64) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[tokio::test]
async fn lists_units_as_they_are() {
    let (_folder, _fake, systemd) = fake(vec![
        FakeUnit::new("web.service"),
        FakeUnit::new("gone.service").states("not-found", "failed", "failed"),
        FakeUnit::new("new.service").states("loaded", "levitating", "above-the-floor"),
    ]);
    let units = systemd.units().await.unwrap();
    let seen: Vec<_> =
        units.iter().map(|u| (&*u.name, &*u.load_state, &*u.active_state, &*u.sub_state)).collect();
    assert_eq!(
        seen,
        [
            ("web.service", "loaded", "active", "running"),
            ("gone.service", "not-found", "failed", "failed"),
            ("new.service", "loaded", "levitating", "above-the-floor"),
        ]
    );
    assert_eq!(units[0].kind(), "service");
}

#[tokio::test]
async fn hostile_names_pass_through_unchanged() {
    let names = ["a\"b\n{}.service", "../x.service", "-rf", "ü\u{202e}.timer", ""];
    let (_folder, _fake, systemd) = fake(names.iter().map(|name| FakeUnit::new(name)).collect());
    let units = systemd.units().await.unwrap();
    assert_eq!(units.iter().map(|unit| unit.name.as_str()).collect::<Vec<_>>(), names);
    assert_eq!(units.iter().map(Unit::kind).collect::<Vec<_>>(), ["service", "service", "", "timer", ""]);
    for unit in &units {
        systemd.details(unit).await.unwrap();
    }
}

#[tokio::test]
async fn lists_five_thousand_units() {
    let (_folder, _fake, systemd) =
        fake((0..5000).map(|n| FakeUnit::new(&format!("app@{n}.service"))).collect());
    let units = systemd.units().await.unwrap();
    assert_eq!(units.len(), 5000);
    assert_eq!(units[4999].name, "app@4999.service");
}

#[tokio::test]
async fn tells_all_of_a_service() {
    let unit = FakeUnit::new("web.service")
        .states("loaded", "failed", "failed")
        .with("Names", vec!["web.service".to_owned(), "www.service".to_owned()])
        .with("Job", (17_u32, ObjectPath::from_static_str_unchecked("/org/freedesktop/systemd1/job/17")))
        .with("NeedDaemonReload", true)
        .with("Type", "notify")
        .with("Result", "exit-code")
        .with("NRestarts", 5_u32)
        .with("ExecMainCode", 1_i32)
        .with("ExecMainStatus", 203_i32)
        .with("ExecMainExitTimestamp", 1_700_000_100_000_000_u64)
        .with("MainPID", 0_u32);
    let (_folder, _fake, systemd) = fake(vec![unit]);
    let status = systemd.unit("web.service").await.unwrap();
    let expected = UnitStatus {
        id: "web.service".into(),
        names: vec!["web.service".into(), "www.service".into()],
        load_state: "loaded".into(),
        active_state: "failed".into(),
        sub_state: "failed".into(),
        job_id: 17,
        need_daemon_reload: true,
        can_start: true,
        active_enter: at(1_700_000_000),
        service: Some(ServiceStatus {
            kind: "notify".into(),
            result: "exit-code".into(),
            n_restarts: 5,
            exec_main_code: 1,
            exec_main_status: 203,
            exec_main_exit: at(1_700_000_100),
            main_pid: 0,
            remain_after_exit: false,
            invocation_id: "ab".repeat(16),
        }),
        fragment_path: "/usr/lib/systemd/system/web.service".into(),
    };
    assert_eq!(status, expected);
}

#[tokio::test]
async fn a_unit_that_does_not_exist_is_an_answer() {
    let (_folder, _fake, systemd) = fake(vec![]);
    let status = systemd.unit("nope.service").await.unwrap();
    assert_eq!((status.load_state.as_str(), status.active_state.as_str()), ("not-found", "inactive"));
    assert_eq!(status.fragment_path, "");
}

#[tokio::test]
async fn a_target_has_no_service_properties() {
    let (_folder, fake, systemd) =
        fake(vec![FakeUnit::new("app.target").states("loaded", "active", "active")]);
    assert_eq!(systemd.unit("app.target").await.unwrap().service, None);
    let units = systemd.units().await.unwrap();
    assert_eq!(systemd.details(&units[0]).await.unwrap().service, None);
    assert_eq!(systemd.mark(&units[0]).await.unwrap(), Mark { state_change: 1_000_000, n_restarts: 0 });
    assert_eq!(fake.asked("NRestarts"), 0);
}

#[tokio::test]
async fn times_that_never_were_are_none() {
    let unit = FakeUnit::new("web.service")
        .with("ActiveEnterTimestamp", 0_u64)
        .with("InactiveEnterTimestamp", u64::MAX);
    let (_folder, _fake, systemd) = fake(vec![unit]);
    let units = systemd.units().await.unwrap();
    let details = systemd.details(&units[0]).await.unwrap();
    assert_eq!((details.active_enter, details.inactive_enter), (None, None));
}

#[tokio::test]
async fn since_when_a_unit_is_active_takes_two_questions() {
    let unit = |name: &str| FakeUnit::new(name).with("ActiveEnterTimestamp", 1_700_000_000_000_000_u64);
    let failed = unit("failed.service").states("loaded", "failed", "failed");
    let never = unit("never.service").with("ActiveEnterTimestamp", 0_u64);
    let (_folder, fake, systemd) = fake(vec![unit("web.service"), failed, never]);
    assert_eq!(systemd.active_since("web.service").await.unwrap(), at(1_700_000_000));
    assert_eq!((fake.asked("ActiveState"), fake.asked("ActiveEnterTimestamp")), (1, 1));
    assert_eq!(fake.asked("NRestarts"), 0);
    for other in ["failed.service", "never.service", "nope.service"] {
        assert_eq!(systemd.active_since(other).await.unwrap(), None, "{other}");
    }
}

#[tokio::test]
async fn asks_for_units_by_name_and_loads_them() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("web.service")]);
    fake.state().on_disk.push(FakeUnit::new("batch.service").states("loaded", "inactive", "dead"));
    let units = systemd.units_by_names(&["batch.service".into(), "nope.service".into()]).await.unwrap();
    let mut seen: Vec<_> = units.iter().map(|unit| (&*unit.name, &*unit.load_state)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("batch.service", "loaded"), ("nope.service", "not-found")]);
}

#[tokio::test]
async fn tells_what_a_target_pulls_in() {
    let target = FakeUnit::new("app.target")
        .with("Wants", vec!["a.service".to_owned()])
        .with("Requires", vec!["b.service".to_owned()]);
    let (_folder, _fake, systemd) = fake(vec![target]);
    let units = systemd.units().await.unwrap();
    assert_eq!(systemd.pulled_in(&units[0]).await.unwrap(), ["a.service", "b.service"]);
}

#[tokio::test]
async fn a_transient_unit_that_ended_is_told_apart() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("run-1.service")]);
    let units = systemd.units().await.unwrap();
    fake.state().units.clear();
    let error = systemd.details(&units[0]).await.unwrap_err();
    assert!(error.is_no_such_unit(), "{error}");
    assert_eq!(error.reason(), "no_such_unit");
    assert_eq!(fake.state().connections, 1, "an error reply is no reason to reconnect");
    systemd.units().await.unwrap();
    assert_eq!(fake.state().connections, 1);
}

#[tokio::test]
async fn a_bus_without_systemd_is_told_apart() {
    let (_folder, fake, systemd) = fake(vec![]);
    fake.state().mood = Mood::Refusing("org.freedesktop.DBus.Error.ServiceUnknown");
    let error = systemd.units().await.unwrap_err();
    assert_eq!(error.reason(), "no_systemd");
    assert_eq!(
        error.to_string(),
        "ListUnits was refused: org.freedesktop.DBus.Error.ServiceUnknown: so says the test"
    );
}

#[tokio::test]
async fn no_socket_is_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let systemd = Systemd::at(&format!("unix:path={}/nothing", folder.path().display()));
    assert!(!systemd.socket_exists());
    assert_eq!(systemd.units().await.unwrap_err().reason(), "connect");
    assert!(Systemd::at("tcp:host=127.0.0.1,port=1").socket_exists());
    assert_eq!(Systemd::at("not an address").units().await.unwrap_err().reason(), "connect");
}

#[tokio::test]
async fn a_deaf_bus_costs_the_limit_and_is_forgotten() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("web.service")]);
    let systemd = systemd.with_limit(IMPATIENCE);
    fake.state().mood = Mood::DeafTo("ListUnits");
    let error = systemd.units().await.unwrap_err();
    assert_eq!(error.reason(), "timeout");
    assert_eq!(error.to_string(), "ListUnits did not answer within 200ms");
    fake.state().mood = Mood::Well;
    assert_eq!(systemd.with_limit(PATIENCE).units().await.unwrap().len(), 1);
    assert_eq!(fake.state().connections, 2, "the silent connection was not used again");
}

#[tokio::test]
async fn a_stopped_bus_costs_the_limit_while_connecting() {
    let (_folder, fake, systemd) = fake(vec![]);
    fake.state().mood = Mood::Deaf;
    assert_eq!(systemd.with_limit(IMPATIENCE).units().await.unwrap_err().reason(), "timeout");
}

#[tokio::test]
async fn an_abandoned_call_takes_its_connection_with_it() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("web.service")]);
    systemd.units().await.unwrap();
    fake.state().mood = Mood::DeafTo("ListUnits");
    tokio::time::timeout(IMPATIENCE, systemd.units()).await.unwrap_err();
    fake.state().mood = Mood::Well;
    systemd.units().await.unwrap();
    assert_eq!(fake.state().connections, 2);
}

#[tokio::test]
async fn a_broken_connection_is_replaced() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("web.service")]);
    systemd.units().await.unwrap();
    fake.state().mood = Mood::HangingUpAt("ListUnits");
    assert_eq!(systemd.units().await.unwrap_err().reason(), "lost");
    fake.state().mood = Mood::Well;
    systemd.units().await.unwrap();
    assert_eq!(fake.state().connections, 2);
}

#[tokio::test]
async fn a_bus_that_comes_back_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = FakeSystemd::start(folder.path(), vec![FakeUnit::new("web.service")]);
    let systemd = Systemd::at(&first.address()).with_limit(PATIENCE);
    systemd.units().await.unwrap();
    let connection = systemd.connection().await.unwrap();
    drop(first);
    connection.closed().await;
    assert_eq!(systemd.units().await.unwrap_err().reason(), "connect");
    let _second = FakeSystemd::start(folder.path(), vec![]);
    assert_eq!(systemd.units().await.unwrap(), []);
}

#[tokio::test]
async fn nonsense_is_an_error_and_no_panic() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("web.service")]);
    let units = systemd.units().await.unwrap();
    for (what, mood) in [("ListUnits", Mood::Nonsense("ListUnits")), ("Version", Mood::Nonsense("Version"))] {
        fake.state().mood = mood;
        let error = if what == "Version" {
            systemd.version().await.unwrap_err()
        } else {
            systemd.units().await.unwrap_err()
        };
        assert_eq!(error.reason(), "malformed", "{error}");
    }
    fake.state().mood = Mood::Well;
    fake.change("web.service", |unit| unit.set("NRestarts", "many"));
    assert_eq!(systemd.details(&units[0]).await.unwrap_err().reason(), "malformed");
    fake.change("web.service", |unit| unit.set("Job", "none"));
    assert_eq!(systemd.unit("web.service").await.unwrap_err().reason(), "malformed");
}

#[tokio::test]
async fn eight_first_questions_make_one_connection() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("web.service")]);
    let questions = (0..8).map(|_| systemd.units());
    for answer in futures_util::future::join_all(questions).await {
        assert_eq!(answer.unwrap().len(), 1);
    }
    assert_eq!(fake.state().connections, 1);
}

#[tokio::test]
async fn reconnecting_leaks_no_descriptor() {
    let (_folder, fake, systemd) = fake(vec![FakeUnit::new("web.service")]);
    fake.state().mood = Mood::HangingUpAt("ListUnits");
    for _ in 0..5 {
        systemd.units().await.unwrap_err();
    }
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for _ in 0..50 {
        systemd.units().await.unwrap_err();
    }
    // Both ends of a connection are ours, and the ends of the last few may still be closing.
    let after = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(after < before + 50, "{before} descriptors before 50 reconnections, {after} after");
}

#[tokio::test]
async fn the_main_process_is_of_services_that_run() {
    let (_folder, fake, systemd) = fake(vec![
        FakeUnit::new("web.service"),
        FakeUnit::new("done.service").with("MainPID", 0_u32),
        FakeUnit::new("web.socket"),
    ]);
    let process = MainProcess { pid: 4711, control_group: "/system.slice/web.service".into() };
    assert_eq!(systemd.main_process("web.service").await.unwrap(), Some(process));
    for name in ["done.service", "web.socket", "no-such.service"] {
        assert_eq!(systemd.main_process(name).await.unwrap(), None, "{name}");
    }
    assert_eq!(fake.asked("LoadUnit"), 0, "nothing is brought into memory for the question");
}

#[tokio::test]
async fn ties_are_told_by_their_kind() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let target = FakeUnit::new("app.target")
        .with("Wants", names(&["a.service", "gone.service"]))
        .with("Requires", names(&["b.service"]))
        .with("BindsTo", names(&["c.service"]))
        .with("After", names(&["a.service"]));
    let (_folder, _fake, systemd) = fake(vec![target]);
    let unit = systemd.units().await.unwrap().remove(0);
    let ties = systemd.ties(&unit).await.unwrap();
    assert_eq!(ties.requires, ["b.service", "c.service"]);
    assert_eq!(ties.wants, ["a.service", "gone.service"]);
    assert_eq!(ties.after, ["a.service"]);
}
