//! The collector against a fake systemd: what is asked, what is taken from announcements, and when it counts as down.

use std::{fs, time::Duration};

use evenkeel_host::{
    metrics::Block,
    systemd::fake::{FakeSystemd, FakeUnit, Mood},
};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
/// For looks that cannot end.
const IMPATIENCE: Duration = Duration::from_millis(200);
const MACHINE: &str = "5febec7ea311400ca131ebf308af5858";

struct Bench {
    folder: TempDir,
    fake: FakeSystemd,
    collector: SystemdCollector,
}

fn bench(watch: &[&str], units: Vec<FakeUnit>) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSystemd::start(folder.path(), units);
    let collector = collector(watch, &fake, folder.path());
    Bench { folder, fake, collector }
}

fn collector(watch: &[&str], fake: &FakeSystemd, root: &Path) -> SystemdCollector {
    let config =
        Config { watch: watch.iter().map(|text| text.parse().unwrap()).collect(), ..Config::default() };
    let source = Systemd::at(&fake.address()).with_limit(PATIENCE);
    SystemdCollector::over(source, root, false, &config, &UnitFilter::default())
}

/// Running services `app@0.service` and so on.
fn apps(count: usize) -> Vec<FakeUnit> {
    (0..count).map(|n| FakeUnit::new(&format!("app@{n}.service"))).collect()
}

impl Bench {
    async fn blocks(&self) -> Vec<Arc<Block>> {
        match Collector::look(&self.collector, Instant::now() + PATIENCE).await.unwrap() {
            Look::Seen(seen) => seen.blocks,
            Look::Absent(why) => panic!("absent: {why}"),
        }
    }

    async fn families(&self) -> Vec<Family> {
        self.blocks().await.iter().flat_map(|block| block.read_back()).collect()
    }

    /// What happens every minute.
    async fn check(&self) {
        check::check(&self.collector.keeper, &self.collector.pace).await.unwrap();
    }

    /// How many questions were asked since the last time.
    fn questions(&self) -> u64 {
        std::mem::take(&mut self.fake.state().asked).values().sum()
    }

    /// The fake is the systemd of the host whose files are in the folder.
    fn make_it_the_host(&self) {
        fs::create_dir_all(self.folder.path().join("etc")).unwrap();
        fs::write(self.folder.path().join("etc/machine-id"), format!("{MACHINE}\n")).unwrap();
        self.fake.state().machine_id = MACHINE.to_owned();
    }

    /// Gives the host of the fake a unit file that only systemd's folders know of.
    fn write_unit_file(&self, name: &str) {
        self.make_it_the_host();
        let folder = self.folder.path().join("etc/systemd/system");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), "").unwrap();
        let file = format!("/etc/systemd/system/{name}");
        let unit = FakeUnit::new(name).states("loaded", "inactive", "dead").with("FragmentPath", file);
        self.fake.state().on_disk.push(unit);
    }

    async fn restarts(&self, name: &str) -> f64 {
        value(&self.families().await, "systemd_service_restart_total", name).unwrap()
    }

    /// How many changes were found that nobody had announced.
    fn missed(&self) -> u64 {
        self.collector.missed_changes().unwrap()
    }
}

fn restart(unit: &mut FakeUnit) {
    unit.set("StateChangeTimestampMonotonic", 2_000_000_u64);
    unit.set("ActiveEnterTimestamp", 1_700_000_500_000_000_u64);
    unit.set("NRestarts", 1_u32);
    unit.set("Result", "signal");
}

/// The value of the unit's sample that is not 0, or of its only one.
fn value(families: &[Family], metric: &str, unit: &str) -> Option<f64> {
    let family = families.iter().find(|family| family.name == metric)?;
    let of_unit = family.samples.iter().find(|sample| sample.labels.contains(&("name", unit.to_owned())))?;
    Some(of_unit.value)
}

/// The values of the label in the unit's samples that are 1.
fn words(families: &[Family], metric: &str, unit: &str, label: &str) -> Vec<String> {
    let samples = families.iter().filter(|family| family.name == metric).flat_map(|family| &family.samples);
    let of_unit = samples.filter(|sample| sample.labels.contains(&("name", unit.to_owned())));
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
    assert!(matches!(unexpected.look().await, Ok(Look::Absent(_))));
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
    assert!(matches!(bench.collector.look().await, Ok(Look::Absent(_))));
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
async fn an_idle_host_is_asked_one_question_at_each_look() {
    for count in [1, 30, 600] {
        let bench = bench(&[], apps(count));
        let first = bench.blocks().await;
        bench.questions();
        for _ in 0..3 {
            let again = bench.blocks().await;
            assert_eq!(bench.questions(), 1, "{count} units");
            for (before, after) in first.iter().zip(&again) {
                assert!(Arc::ptr_eq(before, after), "nothing is printed anew");
            }
        }
    }
}

#[tokio::test]
async fn what_was_announced_is_published_without_a_question() {
    let bench = bench(&[], apps(100));
    bench.families().await;
    bench.questions();
    bench.fake.announce("app@99.service", restart).await;
    bench.fake.announce("app@98.service", |unit| unit.active_state = "failed".to_owned()).await;
    let families = bench.families().await;
    assert_eq!(bench.questions(), 1);
    assert_eq!(value(&families, "systemd_service_restart_total", "app@99.service"), Some(1.0));
    let entered = value(&families, "systemd_unit_active_enter_time_seconds", "app@99.service");
    assert_eq!(entered, Some(1_700_000_500.0));
    assert_eq!(words(&families, "systemd_service_result", "app@99.service", "result"), ["signal"]);
    assert_eq!(words(&families, "systemd_unit_state", "app@98.service", "state"), ["failed"]);
}

#[tokio::test]
async fn the_state_of_the_whole_is_asked_at_each_look() {
    let bench = bench(&[], apps(1));
    bench.families().await;
    bench.fake.state().system_state = "degraded".to_owned();
    let families = bench.families().await;
    let states = families.iter().find(|family| family.name == "systemd_manager_state").unwrap();
    let now = states.samples.iter().find(|sample| sample.value == 1.0).unwrap();
    assert_eq!(now.labels[..], [("state", "degraded".to_owned())]);
}

#[tokio::test]
async fn what_was_not_announced_is_found_by_the_next_check_and_counted() {
    let bench = bench(&[], apps(10));
    bench.families().await;
    bench.fake.change("app@1.service", |unit| unit.active_state = "failed".to_owned());
    bench.fake.change("app@2.service", restart);
    bench.fake.state().units.push(FakeUnit::new("new.service"));
    bench.fake.state().units.remove(0);
    let before = bench.families().await;
    assert_eq!(words(&before, "systemd_unit_state", "app@1.service", "state"), ["active"]);
    bench.check().await;
    let after = bench.families().await;
    assert_eq!(words(&after, "systemd_unit_state", "app@1.service", "state"), ["failed"]);
    assert_eq!(value(&after, "systemd_unit_state", "app@0.service"), None);
    assert_eq!(value(&after, "systemd_service_restart_total", "new.service"), Some(0.0));
    // Of the ten services eight are in a sample.
    bench.check().await;
    assert_eq!(bench.restarts("app@2.service").await, 1.0);
    assert_eq!(bench.missed(), 4);
}

#[tokio::test]
async fn a_check_of_a_host_that_announces_everything_finds_nothing() {
    let bench = bench(&[], apps(50));
    bench.families().await;
    for n in 0..20 {
        bench.fake.announce(&format!("app@{n}.service"), restart).await;
    }
    bench.fake.load(FakeUnit::new("new.service")).await;
    bench.fake.unload("app@49.service").await;
    bench.check().await;
    bench.fake.reload(|_| {}).await;
    bench.check().await;
    assert_eq!(bench.missed(), 0);
}

#[tokio::test]
async fn everything_is_proved_in_turn() {
    let bench = bench(&[], apps(40));
    bench.families().await;
    for n in 0..40 {
        bench.fake.change(&format!("app@{n}.service"), restart);
    }
    for round in 1..=5 {
        bench.check().await;
        assert_eq!(bench.missed(), 8 * round);
    }
    bench.check().await;
    assert_eq!(bench.missed(), 40);
    assert_eq!(bench.restarts("app@39.service").await, 1.0);
}

#[tokio::test]
async fn a_restart_counter_that_is_set_back_is_seen_by_the_next_check() {
    let mut units = apps(500);
    units[499].set("NRestarts", 7_u32);
    let bench = bench(&[], units);
    assert_eq!(bench.restarts("app@499.service").await, 7.0);
    // By `reset-failed` on a service that runs, and nothing announces it.
    bench.fake.change("app@499.service", |unit| unit.set("NRestarts", 0_u32));
    bench.check().await;
    assert_eq!(bench.restarts("app@499.service").await, 0.0);
    assert_eq!(bench.missed(), 0, "that is as it should be");
}

#[tokio::test]
async fn what_a_check_costs() {
    let bench = bench(&["app.target"], apps(640));
    bench.families().await;
    bench.check().await;
    bench.questions();
    bench.check().await;
    // The list, two questions to catch up, and two of each mark in the sample.
    assert_eq!(bench.questions(), 1 + 2 + 2 * (640 / 64));
}

#[tokio::test]
async fn units_that_come_are_asked_about_and_those_that_go_are_gone() {
    let bench = bench(&[], apps(20));
    bench.families().await;
    bench.questions();
    bench.fake.load(FakeUnit::new("new.service").with("NRestarts", 3_u32)).await;
    bench.fake.load(FakeUnit::new("brief.service")).await;
    bench.fake.unload("brief.service").await;
    bench.fake.unload("app@0.service").await;
    let families = bench.families().await;
    assert_eq!(bench.fake.asked("ListUnitsByNames"), 1);
    assert_eq!(bench.fake.asked("ListUnits"), 0);
    assert_eq!(bench.fake.asked("NRestarts"), 1, "of the new one only");
    assert_eq!(value(&families, "systemd_service_restart_total", "new.service"), Some(3.0));
    for gone in ["brief.service", "app@0.service"] {
        assert_eq!(value(&families, "systemd_unit_state", gone), None, "{gone}");
    }
}

#[tokio::test]
async fn a_unit_that_goes_while_it_is_asked_about_costs_only_itself() {
    let bench = bench(&[], apps(3));
    bench.families().await;
    bench.fake.load(FakeUnit::new("run-1.service")).await;
    // Gone from the bus, and its removal not announced yet.
    let position = bench.fake.state().units.iter().position(|unit| unit.name == "run-1.service").unwrap();
    bench.fake.state().units.remove(position);
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_unit_state", "run-1.service"), None);
    assert_eq!(value(&families, "systemd_service_restart_total", "app@1.service"), Some(0.0));
}

#[tokio::test]
async fn a_reload_is_one_list() {
    let bench = bench(&["app@*"], apps(500));
    bench.families().await;
    bench.questions();
    bench
        .fake
        .reload(|state| {
            state.units.remove(0);
            state.units.push(FakeUnit::new("app@new.service").with("NRestarts", 2_u32));
            state.units[10].load_state = "bad-setting".to_owned();
            restart(&mut state.units[20]);
            state.units[20].sub_state = "start".to_owned();
            state.version = "257.1".to_owned();
        })
        .await;
    let families = bench.families().await;
    assert_eq!((bench.fake.asked("ListUnits"), bench.fake.asked("ListUnitsByNames")), (1, 0));
    assert_eq!(bench.fake.asked("NRestarts"), 3, "of those that the list shows otherwise");
    assert_eq!(value(&families, "systemd_unit_state", "app@0.service"), None);
    assert_eq!(value(&families, "systemd_service_restart_total", "app@new.service"), Some(2.0));
    let changed = |families: &[Family], unit| words(families, "systemd_unit_load_state", unit, "load_state");
    assert_eq!(changed(&families, "app@11.service"), ["bad-setting"]);
    assert_eq!(value(&families, "systemd_service_restart_total", "app@21.service"), Some(1.0));
    let version = families.iter().find(|family| family.name == "systemd_version_info").unwrap();
    assert_eq!(version.samples[0].labels[..], [("version", "257.1".to_owned())]);
    bench.questions();
    bench.families().await;
    assert_eq!(bench.questions(), 1, "and then it is idle again");
}

#[tokio::test]
async fn a_stream_that_was_lost_puts_all_in_doubt() {
    let bench = bench(&["app@*"], apps(100));
    bench.families().await;
    for end in ["hung up", "another systemd"] {
        bench.questions();
        bench.fake.change("app@7.service", |unit| {
            restart(unit);
            unit.set("NRestarts", if end == "hung up" { 1_u32 } else { 2_u32 });
        });
        bench.fake.change("app@8.service", |unit| unit.active_state = "failed".to_owned());
        match end {
            "hung up" => bench.fake.hang_up().await,
            _ => bench.fake.replace_systemd(":1.99").await,
        }
        let families = bench.families().await;
        assert_eq!(bench.fake.asked("ListUnits"), 1, "{end}");
        assert_eq!(bench.fake.asked("Subscribe"), 1, "{end}");
        let restarts = value(&families, "systemd_service_restart_total", "app@7.service");
        assert_eq!(restarts, Some(if end == "hung up" { 1.0 } else { 2.0 }), "{end}");
        assert_eq!(words(&families, "systemd_unit_state", "app@8.service", "state"), ["failed"], "{end}");
        assert!(bench.fake.asked("Result") <= 2, "{end}: what is proved is not read");
    }
    assert_eq!(bench.missed(), 0, "nothing was to be believed");
}

#[tokio::test]
async fn a_picture_that_cannot_be_confirmed_is_not_published() {
    for deaf_to in ["SystemState", "ListUnits"] {
        let bench = bench(&[], apps(3));
        bench.families().await;
        bench.fake.hang_up().await;
        bench.fake.state().mood = Mood::DeafTo(deaf_to);
        timeout(IMPATIENCE, bench.collector.look()).await.unwrap_err();
        assert_eq!(up(&bench.collector.down()), [0.0]);
        bench.fake.state().mood = Mood::Refusing("org.freedesktop.DBus.Error.NoReply");
        assert!(bench.collector.look().await.is_err());
        bench.fake.state().mood = Mood::Well;
        assert_eq!(up(&bench.families().await), [1.0]);
    }
}

#[tokio::test]
async fn what_an_announcement_leaves_unclear_is_asked() {
    let bench = bench(&[], apps(3));
    bench.families().await;
    bench.fake.change("app@1.service", |unit| {
        restart(unit);
        unit.sub_state = "dead".to_owned();
    });
    let path = "/org/freedesktop/systemd1/unit/app_401_2eservice";
    let properties = "org.freedesktop.DBus.Properties";
    bench.fake.emit(path, properties, "PropertiesChanged", &7_u32).await;
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_service_restart_total", "app@1.service"), Some(1.0));
    assert_eq!(words(&families, "systemd_unit_sub_state", "app@1.service", "sub_state"), ["dead"]);
    // Of a unit that nobody has heard of.
    let path = "/org/freedesktop/systemd1/unit/stranger_2eservice";
    bench.questions();
    bench.fake.emit(path, properties, "PropertiesChanged", &7_u32).await;
    bench.families().await;
    assert_eq!(bench.fake.asked("ListUnits"), 1);
}

#[tokio::test]
async fn a_rush_is_answered_with_the_list() {
    let bench = bench(&[], apps(20));
    bench.families().await;
    for _ in 0..600 {
        bench.fake.announce("app@1.service", restart).await;
    }
    bench.fake.change("app@2.service", |unit| unit.active_state = "failed".to_owned());
    bench.questions();
    for round in 1..=2 {
        let families = bench.families().await;
        assert_eq!(bench.fake.asked("ListUnits"), round);
        assert_eq!(value(&families, "systemd_service_restart_total", "app@1.service"), Some(1.0));
        assert_eq!(words(&families, "systemd_unit_state", "app@2.service", "state"), ["failed"]);
    }
    bench.check().await;
    assert_eq!(bench.missed(), 0, "announcements are not believed now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn looks_go_on_while_changes_pour_in() {
    let bench = Arc::new(bench(&[], apps(10)));
    bench.families().await;
    let pouring = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move {
            loop {
                for n in 0..10 {
                    bench.fake.announce(&format!("app@{n}.service"), restart).await;
                }
                bench.fake.reload(|_| {}).await;
            }
        }
    });
    for _ in 0..5 {
        let families = timeout(PATIENCE, bench.families()).await.expect("a look ends");
        assert_eq!(up(&families), [1.0]);
    }
    pouring.abort();
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
    bench.fake.reload(|_| {}).await;
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
    // The load state is in no announcement.
    bench
        .fake
        .announce("new.service", |unit| {
            unit.load_state = "loaded".to_owned();
            unit.set("FragmentPath", "/etc/systemd/system/new.service");
        })
        .await;
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
    assert_eq!(bench.fake.asked("FragmentPath"), 0, "a watch list needs no unit files");
}

#[tokio::test]
async fn stopped_units_of_the_host_do_not_vanish() {
    for watch in [&[][..], &["batch-*"], &["batch-1.service"]] {
        let bench = bench(watch, vec![FakeUnit::new("web.service")]);
        bench.write_unit_file("batch-1.service");
        for _ in 0..3 {
            let families = bench.families().await;
            let load = words(&families, "systemd_unit_load_state", "batch-1.service", "load_state");
            assert_eq!(load, ["loaded"]);
            assert_eq!(words(&families, "systemd_unit_state", "batch-1.service", "state"), ["inactive"]);
            let restarts = value(&families, "systemd_service_restart_total", "batch-1.service");
            assert_eq!(restarts, None, "not in memory");
            bench.check().await;
        }
        assert_eq!(bench.fake.asked("ListUnitsByNames"), 1, "{watch:?}");
        // Started, it is a unit as any other.
        let file = "/etc/systemd/system/batch-1.service";
        bench.fake.load(FakeUnit::new("batch-1.service").with("FragmentPath", file)).await;
        let families = bench.families().await;
        assert_eq!(words(&families, "systemd_unit_state", "batch-1.service", "state"), ["active"]);
        assert_eq!(value(&families, "systemd_service_restart_total", "batch-1.service"), Some(0.0));
        bench.fake.unload("batch-1.service").await;
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
async fn hostile_names_become_labels_and_nothing_else() {
    let name = "a\"b\\\n{x=\"y\"} 1.service";
    let bench = bench(&[], vec![FakeUnit::new(name), FakeUnit::new("-rf"), FakeUnit::new("")]);
    let families = bench.families().await;
    assert_eq!(words(&families, "systemd_unit_state", name, "state"), ["active"]);
    let written = families.iter().flat_map(|family| &family.samples).count();
    assert!(written > 0);
}

#[tokio::test]
async fn a_look_that_is_dropped_leaves_what_it_read() {
    let bench = bench(&[], apps(50));
    bench.fake.state().mood = Mood::DeafTo("Result");
    timeout(IMPATIENCE, bench.collector.look()).await.unwrap_err();
    bench.fake.state().mood = Mood::Well;
    bench.families().await;
    bench.questions();
    bench.fake.hang_up().await;
    bench.fake.state().mood = Mood::DeafTo("FragmentPath");
    timeout(IMPATIENCE, bench.collector.look()).await.unwrap_err();
    bench.fake.state().mood = Mood::Well;
    assert!(value(&bench.families().await, "systemd_unit_state", "app@49.service").is_some());
    assert_eq!(bench.fake.asked("ActiveEnterTimestamp"), 0, "what was known stayed known, and was proved");
}

#[tokio::test]
async fn sockets_and_files_are_asked_about_in_checks() {
    let bench = bench(
        &["ssh.socket", "web.service"],
        vec![
            FakeUnit::new("ssh.socket").states("loaded", "active", "listening").with("Accept", true),
            FakeUnit::new("docker.socket").states("loaded", "active", "running"),
            FakeUnit::new("web.service"),
        ],
    );
    let accepted = "systemd_socket_accepted_connections_total";
    assert_eq!(value(&bench.families().await, accepted, "ssh.socket"), None);
    bench.fake.change("ssh.socket", |unit| unit.set("NAccepted", 5_u32));
    bench.check().await;
    let families = bench.families().await;
    assert_eq!(value(&families, accepted, "ssh.socket"), Some(5.0));
    assert_eq!(value(&families, accepted, "docker.socket"), Some(0.0));
    for watched in ["ssh.socket", "web.service"] {
        assert_eq!(value(&families, "systemd_unit_need_daemon_reload", watched), Some(0.0));
        let state = words(&families, "systemd_unit_file_state", watched, "unit_file_state");
        assert_eq!(state, ["enabled"]);
    }
    assert_eq!(value(&families, "systemd_unit_need_daemon_reload", "docker.socket"), None);
}

#[tokio::test]
async fn what_unit_files_say_is_asked_again_when_one_has_changed() {
    let mut bench = bench(&["web.service"], vec![FakeUnit::new("web.service")]);
    bench.write_unit_file("web.service");
    bench.collector.pace.slow = Duration::ZERO;
    bench.families().await;
    for _ in 0..3 {
        bench.check().await;
        bench.families().await;
    }
    assert_eq!(bench.fake.asked("NeedDaemonReload"), 1, "no file has changed");
    let needs = async |expected| {
        bench.check().await;
        let families = bench.families().await;
        assert_eq!(value(&families, "systemd_unit_need_daemon_reload", "web.service"), Some(expected));
    };
    fs::write(bench.folder.path().join("etc/systemd/system/web.service"), "[Service]\n").unwrap();
    bench.fake.change("web.service", |unit| unit.set("NeedDaemonReload", true));
    needs(1.0).await;
    bench.fake.change("web.service", |unit| unit.set("NeedDaemonReload", false));
    needs(1.0).await;
    bench.fake.reload(|_| {}).await;
    bench.families().await;
    needs(0.0).await;
}

#[tokio::test]
async fn units_that_do_not_exist_are_found_where_they_are_named() {
    let ghost = FakeUnit::new("ghost.service").states("not-found", "failed", "failed");
    let device = FakeUnit::new("dev-sda.device");
    let mut bench = bench(&["web.service"], vec![FakeUnit::new("web.service"), ghost, device]);
    bench.write_unit_file("web.service");
    bench.write_unit_file("db.service");
    bench.collector.pace.slow = Duration::ZERO;
    let file = bench.folder.path().join("etc/systemd/system/web.service");
    let says = async |text: &str| {
        fs::write(&file, text).unwrap();
        bench.families().await;
        bench.check().await;
        let families = bench.families().await;
        let words = |label| words(&families, "systemd_unit_stale_reference", "web.service", label);
        (words("directive"), words("reference"))
    };
    let text = "[Unit]\nAfter=ghost.service db.service dev-sda.device\nWants=never.service\n";
    assert_eq!(
        says(text).await,
        (vec!["After".into(), "Wants".into()], vec!["ghost.service".into(), "never.service".into()])
    );
    assert_eq!(says("[Unit]\nAfter=db.service\n").await, (vec![], vec![]));
}

#[tokio::test]
async fn watched_units_tell_what_they_use() {
    let mut bench = bench(
        &[],
        vec![
            FakeUnit::new("web.service"),
            FakeUnit::new("idle.service").states("loaded", "inactive", "dead").with("ControlGroup", ""),
            FakeUnit::new("ssh.service"),
        ],
    );
    bench.make_it_the_host();
    let cgroups = bench.folder.path().join("sys/fs/cgroup");
    let web = cgroups.join("system.slice/web.service");
    fs::create_dir_all(&web).unwrap();
    fs::write(cgroups.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    let write = |cpu: u32, memory: u32| {
        fs::write(web.join("cpu.stat"), format!("usage_usec {cpu}\n")).unwrap();
        fs::write(web.join("memory.current"), format!("{memory}\n")).unwrap();
        fs::write(web.join("memory.stat"), "inactive_file 1000\n").unwrap();
        fs::write(web.join("pids.current"), "3\n").unwrap();
        fs::write(web.join("pids.max"), "100\n").unwrap();
    };
    write(1_500_000, 5_000);
    bench.collector = collector(&["web.service", "idle.service"], &bench.fake, bench.folder.path());
    let families = bench.families().await;
    for (metric, expected) in [
        ("systemd_unit_cpu_seconds_total", 1.5),
        ("systemd_unit_memory_bytes", 4_000.0),
        ("systemd_unit_tasks_current", 3.0),
        ("systemd_unit_tasks_max", 100.0),
    ] {
        assert_eq!(value(&families, metric, "web.service"), Some(expected), "{metric}");
        for other in ["idle.service", "ssh.service"] {
            assert_eq!(value(&families, metric, other), None, "{metric} of {other}");
        }
    }
    bench.questions();
    write(1_600_000, 6_000);
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_unit_cpu_seconds_total", "web.service"), Some(1.6));
    assert_eq!(value(&families, "systemd_unit_memory_bytes", "web.service"), Some(5_000.0));
    assert_eq!(bench.questions(), 1, "systemd is not asked for that");
    // Started, the other one has a group too.
    bench
        .fake
        .announce("idle.service", |unit| {
            (unit.active_state, unit.sub_state) = ("active".to_owned(), "running".to_owned());
            unit.set("ControlGroup", "/system.slice/web.service");
        })
        .await;
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_unit_cpu_seconds_total", "idle.service"), Some(1.6));
    // What it used is gone with it.
    fs::remove_dir_all(&web).unwrap();
    let families = bench.families().await;
    assert_eq!(value(&families, "systemd_unit_cpu_seconds_total", "web.service"), None);
}

#[tokio::test]
async fn another_hosts_control_groups_are_not_looked_at() {
    let bench = bench(&["web.service"], vec![FakeUnit::new("web.service")]);
    bench.make_it_the_host();
    bench.fake.state().machine_id = "124ecb50790b4e01bf9c327cc554df43".to_owned();
    bench.families().await;
    assert_eq!(bench.fake.asked("ControlGroup"), 0);
}

#[tokio::test]
async fn timers_tell_when_they_run_next() {
    let bench = bench(&[], vec![FakeUnit::new("backup.timer").states("loaded", "active", "waiting")]);
    let next = "systemd_timer_next_trigger_seconds";
    let families = bench.families().await;
    assert_eq!(value(&families, next, "backup.timer"), None);
    assert_eq!(words(&families, "systemd_timer_info", "backup.timer", "unit"), ["backup.service"]);
    bench
        .fake
        .announce("backup.timer", |unit| unit.set("NextElapseUSecRealtime", 1_700_000_000_000_000_u64))
        .await;
    assert_eq!(value(&bench.families().await, next, "backup.timer"), Some(1_700_000_000.0));
}

#[tokio::test]
async fn checks_follow_the_looks_and_end_with_the_collector() {
    let bench = bench(&[], apps(3));
    let keeper = Arc::clone(&bench.collector.keeper);
    let pace = Pace { check: Duration::from_millis(1), slow: PATIENCE };
    let task = tokio::spawn(check::keep_checking(keeper, pace));
    bench.families().await;
    let lists = async |least: u64| {
        while bench.fake.asked("ListUnits") < least {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, lists(2)).await.expect("a check after the first look");
    // Nobody has looked since.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.fake.asked("ListUnits"), 2);
    bench.families().await;
    timeout(PATIENCE, lists(3)).await.expect("a check after the next");
    task.abort();
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
    assert_eq!(bench.fake.asked("NRestarts"), 500, "only details of what is published");
}

#[tokio::test]
async fn why_a_service_fails_is_told_at_the_look_after_the_one_that_saw_it() {
    // Each with what nobody needs a journal for.
    let failed = |name: &str, result: &str| {
        FakeUnit::new(name).states("loaded", "failed", "failed").with("Result", result.to_owned())
    };
    let bench = bench(&[], vec![failed("slow.service", "timeout"), FakeUnit::new("web.service")]);
    let causes = async || {
        let families = bench.families().await;
        let family = families.iter().find(|family| family.name == "systemd_service_failure_cause");
        family
            .into_iter()
            .flat_map(|family| &family.samples)
            .map(|sample| sample.labels.to_vec())
            .collect::<Vec<_>>()
    };
    assert!(causes().await.is_empty(), "no look waits for it");
    bench.questions();
    super::causes::read_due(&bench.collector.keeper).await;
    assert!(bench.questions() > 0);
    let labels = |cause: &str| vec![("name", "slow.service".to_owned()), ("cause", cause.to_owned())];
    assert_eq!(causes().await, [labels("timeout")]);
    bench.questions();
    super::causes::read_due(&bench.collector.keeper).await;
    assert_eq!(bench.questions(), 0, "nothing has changed");
    bench
        .fake
        .announce("slow.service", |unit| {
            (unit.active_state, unit.sub_state) = ("active".to_owned(), "running".to_owned());
        })
        .await;
    assert!(causes().await.is_empty(), "what runs fails of nothing");
}
