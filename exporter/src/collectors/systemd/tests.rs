//! The collector against a fake systemd: what is asked, what is remembered, and when it counts as down.

use std::{fs, time::Duration};

use evenkeel_host::systemd::fake::{FakeSystemd, FakeUnit, Mood};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
/// For looks that cannot end.
const IMPATIENCE: Duration = Duration::from_millis(200);

struct Bench {
    folder: TempDir,
    fake: FakeSystemd,
    collector: SystemdCollector,
}

fn bench(watch: &[&str], units: Vec<FakeUnit>) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSystemd::start(folder.path(), units);
    let config =
        Config { watch: watch.iter().map(|text| text.parse().unwrap()).collect(), ..Config::default() };
    let source = Systemd::at(&fake.address()).with_limit(PATIENCE);
    let collector = SystemdCollector::over(source, folder.path(), false, &config, &UnitFilter::default());
    Bench { folder, fake, collector }
}

impl Bench {
    async fn families(&self) -> Vec<Family> {
        match Collector::look(&self.collector, Instant::now() + PATIENCE).await.unwrap() {
            Look::Seen(blocks) => blocks.iter().flat_map(|block| block.read_back()).collect(),
            Look::Absent => panic!("absent"),
        }
    }

    /// Gives the host of the fake a unit file that only systemd's folders know of.
    fn write_unit_file(&self, name: &str) {
        let folder = self.folder.path().join("etc/systemd/system");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), "").unwrap();
        fs::write(self.folder.path().join("etc/machine-id"), "5febec7ea311400ca131ebf308af5858\n").unwrap();
        self.fake.state().machine_id = "5febec7ea311400ca131ebf308af5858".to_owned();
        let file = format!("/etc/systemd/system/{name}");
        let unit = FakeUnit::new(name).states("loaded", "inactive", "dead").with("FragmentPath", file);
        self.fake.state().on_disk.push(unit);
    }

    fn forget(&self, name: &str) {
        let mut state = self.fake.state();
        if let Some(position) = state.units.iter().position(|unit| unit.name == name) {
            let unit = state.units.remove(position).states("loaded", "inactive", "dead");
            state.on_disk.push(unit);
        }
    }

    async fn restarts(&self, name: &str) -> f64 {
        value(&self.families().await, "systemd_service_restart_total", name).unwrap()
    }
}

/// The value of the unit's sample that is not 0, or of its only one.
fn value(families: &[Family], metric: &str, unit: &str) -> Option<f64> {
    let family = families.iter().find(|family| family.name == metric)?;
    let of_unit = family.samples.iter().find(|sample| sample.labels.contains(&("name", unit.to_owned())))?;
    Some(of_unit.value)
}

/// The values of the label in the unit's samples that are 1.
fn words(families: &[Family], metric: &str, unit: &str, label: &str) -> Vec<String> {
    let family = families.iter().find(|family| family.name == metric).unwrap();
    let of_unit = family.samples.iter().filter(|sample| sample.labels.contains(&("name", unit.to_owned())));
    let labels = of_unit.filter(|sample| sample.value == 1.0).flat_map(|sample| sample.labels.to_vec());
    labels.filter(|(name, _)| *name == label).map(|(_, value)| value).collect()
}

fn up(families: &[Family]) -> Vec<f64> {
    let up = families.iter().filter(|family| family.name == "systemd_up");
    up.flat_map(|family| &family.samples).map(|sample| sample.value).collect()
}

#[tokio::test]
async fn no_bus_is_absent_unless_someone_counts_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = || Systemd::at(&format!("unix:path={}/nothing", folder.path().display()));
    let unexpected =
        SystemdCollector::over(source(), folder.path(), false, &Config::default(), &UnitFilter::default());
    assert!(matches!(unexpected.look().await, Ok(Look::Absent)));
    assert!(unexpected.down().is_empty());
    let expected =
        SystemdCollector::over(source(), folder.path(), true, &Config::default(), &UnitFilter::default());
    let error = expected.look().await.unwrap_err().to_string();
    assert!(error.starts_with("cannot connect to the system bus"), "{error}");
    assert_eq!(up(&expected.down()), [0.0]);
}

#[tokio::test]
async fn a_bus_without_systemd_is_absent() {
    let bench = bench(&[], vec![]);
    bench.fake.state().mood = Mood::Refusing("org.freedesktop.DBus.Error.ServiceUnknown");
    assert!(matches!(bench.collector.look().await, Ok(Look::Absent)));
}

#[tokio::test]
async fn what_was_seen_once_is_down_when_it_goes() {
    let Bench { folder: _folder, fake, collector } = bench(&[], vec![FakeUnit::new("web.service")]);
    assert!(matches!(collector.look().await, Ok(Look::Seen(_))));
    drop(fake);
    assert!(collector.look().await.is_err());
    assert_eq!(up(&collector.down()), [0.0]);
}

#[tokio::test]
async fn states_and_details_of_a_host() {
    let bench = bench(
        &[],
        vec![
            FakeUnit::new("web.service").with("NRestarts", 3_u32),
            FakeUnit::new("loop.service")
                .states("loaded", "activating", "auto-restart")
                .with("Result", "exit-code"),
            FakeUnit::new("backup.timer").states("loaded", "active", "waiting"),
            FakeUnit::new("dev-vda.device").states("loaded", "active", "plugged"),
            FakeUnit::new("mentioned.service").states("not-found", "inactive", "dead"),
        ],
    );
    let families = bench.families().await;
    assert_eq!(up(&families), [1.0]);
    assert_eq!(words(&families, "systemd_unit_state", "loop.service", "state"), ["activating"]);
    assert_eq!(words(&families, "systemd_unit_sub_state", "loop.service", "sub_state"), ["auto-restart"]);
    assert_eq!(words(&families, "systemd_service_result", "loop.service", "result"), ["exit-code"]);
    assert_eq!(value(&families, "systemd_service_restart_total", "web.service"), Some(3.0));
    assert_eq!(
        value(&families, "systemd_unit_active_enter_time_seconds", "backup.timer"),
        Some(1_700_000_000.0)
    );
    for unit in ["dev-vda.device", "mentioned.service"] {
        assert_eq!(value(&families, "systemd_unit_state", unit), None, "{unit}");
    }
}

#[tokio::test]
async fn unchanged_units_cost_two_questions() {
    let bench = bench(&[], (0..100).map(|n| FakeUnit::new(&format!("app@{n}.service"))).collect());
    bench.families().await;
    assert_eq!(bench.fake.asked("ActiveEnterTimestamp"), 100);
    let before = bench.fake.state().asked.values().sum::<u64>();
    bench.families().await;
    let details = bench.fake.asked("ActiveEnterTimestamp") - 100;
    assert_eq!(details, 16, "only the rolling sample is read again");
    // The list, three properties of the manager, two of each unit's mark and seven details of the sample.
    assert_eq!(bench.fake.state().asked.values().sum::<u64>() - before, 4 + 2 * 100 + 7 * 16);
}

#[tokio::test]
async fn everything_is_read_again_in_turn() {
    let bench = bench(&[], (0..40).map(|n| FakeUnit::new(&format!("app@{n}.service"))).collect());
    bench.families().await;
    // Wrong in memory, and no mark tells.
    for n in 0..40 {
        bench.fake.change(&format!("app@{n}.service"), |unit| unit.set("Result", "signal"));
    }
    for _ in 0..3 {
        bench.families().await;
    }
    let families = bench.families().await;
    for n in 0..40 {
        assert_eq!(
            words(&families, "systemd_service_result", &format!("app@{n}.service"), "result"),
            ["signal"]
        );
    }
}

#[tokio::test]
async fn a_crash_and_restart_between_two_looks_is_seen() {
    // More units than the rolling sample reads, so that only the mark can tell.
    let bench = bench(&[], (0..100).map(|n| FakeUnit::new(&format!("app@{n}.service"))).collect());
    bench.families().await;
    bench.fake.change("app@99.service", |unit| {
        unit.set("StateChangeTimestampMonotonic", 2_000_000_u64);
        unit.set("ActiveEnterTimestamp", 1_700_000_500_000_000_u64);
        unit.set("NRestarts", 1_u32);
    });
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_service_restart_total", "app@99.service"), Some(1.0));
    let entered = value(&families, "systemd_unit_active_enter_time_seconds", "app@99.service");
    assert_eq!(entered, Some(1_700_000_500.0));
}

#[tokio::test]
async fn a_counter_that_resets_without_a_change_of_state_is_seen() {
    let mut units: Vec<FakeUnit> = (0..100).map(|n| FakeUnit::new(&format!("app@{n}.service"))).collect();
    units[99].set("NRestarts", 7_u32);
    let bench = bench(&[], units);
    assert_eq!(bench.restarts("app@99.service").await, 7.0);
    bench.fake.change("app@99.service", |unit| unit.set("NRestarts", 0_u32));
    assert_eq!(bench.restarts("app@99.service").await, 0.0);
}

#[tokio::test]
async fn units_that_went_are_gone() {
    let bench = bench(&[], vec![FakeUnit::new("a.service"), FakeUnit::new("b.service")]);
    bench.families().await;
    bench.fake.state().units.remove(0);
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_unit_state", "a.service"), None);
    assert!(value(&families, "systemd_unit_state", "b.service").is_some());
}

#[tokio::test]
async fn local_units_and_what_their_targets_want_are_watched() {
    let bench = bench(
        &[],
        vec![
            FakeUnit::new("app.target")
                .states("loaded", "active", "active")
                .with("FragmentPath", "/etc/systemd/system/app.target")
                .with("Wants", vec!["gone.service".to_owned()]),
            FakeUnit::new("gone.service").states("not-found", "inactive", "dead").with("FragmentPath", ""),
            FakeUnit::new("own.service").with("FragmentPath", "/etc/systemd/system/own.service"),
            FakeUnit::new("ssh.service"),
        ],
    );
    let families = bench.families().await;
    let load = |families: &[Family], unit| words(families, "systemd_unit_load_state", unit, "load_state");
    assert_eq!(load(&families, "app.target"), ["loaded"]);
    assert_eq!(load(&families, "gone.service"), ["not-found"]);
    assert_eq!(load(&families, "own.service"), ["loaded"]);
    assert!(load(&families, "ssh.service").is_empty());
    // The files are asked for once, until systemd has read them again.
    bench.fake.change("ssh.service", |unit| unit.set("FragmentPath", "/etc/systemd/system/ssh.service"));
    assert!(load(&bench.families().await, "ssh.service").is_empty());
    bench.fake.state().units_loaded += 1;
    assert_eq!(load(&bench.families().await, "ssh.service"), ["loaded"]);
}

#[tokio::test]
async fn a_file_that_appears_is_found_without_a_reload() {
    let bench = bench(
        &[],
        vec![FakeUnit::new("new.service").states("not-found", "inactive", "dead").with("FragmentPath", "")],
    );
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_unit_load_state", "new.service"), None);
    bench.fake.change("new.service", |unit| {
        unit.load_state = "loaded".to_owned();
        unit.set("FragmentPath", "/etc/systemd/system/new.service");
    });
    let families = bench.families().await;
    assert_eq!(words(&families, "systemd_unit_load_state", "new.service", "load_state"), ["loaded"]);
}

#[tokio::test]
async fn watched_units_that_nothing_needs_are_asked_for_by_name() {
    let bench = bench(
        &["batch.service", "gone.service", "web.service", "t@.service"],
        vec![FakeUnit::new("web.service")],
    );
    bench.fake.state().on_disk.push(FakeUnit::new("batch.service").states("loaded", "inactive", "dead"));
    let families = bench.families().await;
    assert_eq!(words(&families, "systemd_unit_load_state", "batch.service", "load_state"), ["loaded"]);
    assert_eq!(words(&families, "systemd_unit_state", "batch.service", "state"), ["inactive"]);
    assert_eq!(words(&families, "systemd_unit_load_state", "gone.service", "load_state"), ["not-found"]);
    assert_eq!(
        bench.fake.asked("FragmentPath"),
        1,
        "a watch list needs no unit files, only details ask for them"
    );
}

#[tokio::test]
async fn stopped_units_of_the_host_do_not_vanish() {
    for watch in [&[][..], &["batch-*"], &["batch-1.service"]] {
        let bench = bench(watch, vec![FakeUnit::new("web.service")]);
        bench.write_unit_file("batch-1.service");
        // Systemd forgets them again after each question.
        for _ in 0..3 {
            let families = bench.families().await;
            assert_eq!(
                words(&families, "systemd_unit_load_state", "batch-1.service", "load_state"),
                ["loaded"]
            );
            assert_eq!(words(&families, "systemd_unit_state", "batch-1.service", "state"), ["inactive"]);
            assert_eq!(
                value(&families, "systemd_service_restart_total", "batch-1.service"),
                None,
                "not in memory"
            );
            bench.forget("batch-1.service");
        }
        assert_eq!(bench.fake.asked("ListUnitsByNames"), 1, "{watch:?}");
        // Started, it is a unit as any other.
        let file = "/etc/systemd/system/batch-1.service";
        bench.fake.state().units.push(FakeUnit::new("batch-1.service").with("FragmentPath", file));
        let families = bench.families().await;
        assert_eq!(words(&families, "systemd_unit_state", "batch-1.service", "state"), ["active"]);
        assert_eq!(value(&families, "systemd_service_restart_total", "batch-1.service"), Some(0.0));
        bench.forget("batch-1.service");
        let families = bench.families().await;
        assert_eq!(words(&families, "systemd_unit_state", "batch-1.service", "state"), ["inactive"]);
    }
}

#[tokio::test]
async fn the_files_of_another_host_say_nothing() {
    let bench = bench(&[], vec![FakeUnit::new("web.service")]);
    bench.write_unit_file("batch-1.service");
    bench.fake.state().machine_id = "124ecb50790b4e01bf9c327cc554df43".to_owned();
    assert_eq!(value(&bench.families().await, "systemd_unit_state", "batch-1.service"), None);
    assert_eq!(bench.fake.asked("ListUnitsByNames"), 0);
}

#[tokio::test]
async fn a_unit_that_cannot_be_read_costs_only_its_details() {
    let bench = bench(&[], vec![FakeUnit::new("odd.service"), FakeUnit::new("web.service")]);
    bench.fake.change("odd.service", |unit| unit.set("NRestarts", "many"));
    let families = bench.families().await;
    assert_eq!(words(&families, "systemd_unit_state", "odd.service", "state"), ["active"]);
    assert_eq!(value(&families, "systemd_service_restart_total", "odd.service"), None);
    assert_eq!(value(&families, "systemd_service_restart_total", "web.service"), Some(0.0));
}

#[tokio::test]
async fn a_look_that_is_dropped_leaves_what_it_read() {
    let bench = bench(&[], (0..50).map(|n| FakeUnit::new(&format!("app@{n}.service"))).collect());
    bench.fake.state().mood = Mood::DeafTo("SystemState");
    timeout(IMPATIENCE, bench.collector.look()).await.unwrap_err();
    bench.fake.state().mood = Mood::Well;
    assert!(value(&bench.families().await, "systemd_unit_state", "app@49.service").is_some());
    let read = bench.fake.asked("ActiveEnterTimestamp");
    bench.fake.state().mood = Mood::DeafTo("NRestarts");
    timeout(IMPATIENCE, bench.collector.look()).await.unwrap_err();
    bench.fake.state().mood = Mood::Well;
    bench.families().await;
    assert_eq!(bench.fake.asked("ActiveEnterTimestamp") - read, 16, "what was known stayed known");
}

#[tokio::test]
async fn hostile_names_become_labels_and_nothing_else() {
    let name = "a\"b\\\n{x=\"y\"} 1.service";
    let bench = bench(&[], vec![FakeUnit::new(name), FakeUnit::new("-rf"), FakeUnit::new("")]);
    let families = bench.families().await;
    assert_eq!(words(&families, "systemd_unit_state", name, "state"), ["active"]);
    let written = families.iter().flat_map(|family| &family.samples).count();
    assert!(written > 0);
}

#[tokio::test]
async fn five_thousand_units_are_one_look() {
    let units =
        (0..5000).map(|n| FakeUnit::new(&format!("app@{n}.{}", if n < 500 { "service" } else { "device" })));
    let bench = bench(&["app.target"], units.collect());
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_service_restart_total", "app@499.service"), Some(0.0));
    let counts = families.iter().find(|family| family.name == "systemd_units").unwrap();
    assert_eq!(counts.samples.iter().map(|sample| sample.value).sum::<f64>(), 5000.0);
    assert_eq!(bench.fake.asked("ListUnits"), 1);
    assert_eq!(bench.fake.asked("NRestarts"), 2 * 500, "the mark and the details of what is published");
}
