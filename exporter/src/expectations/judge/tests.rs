//! Each kind of expectation, met, not met and unknown, with the names of hosts that were found in such states.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use evenkeel_host::{environ::Unread, redis::Failure, systemd};

use super::*;
use crate::{
    collectors::Config,
    evidence::{ContainerDetail, NoEnvironment},
    expectations::{Expectations, Verdict},
};

/// The verdict on the one expectation that a configuration asks for.
fn judged(text: &str, evidence: &Evidence) -> Verdict {
    let expectations = Expectations::new(&Config::parse("c.yml", text).expect(text));
    let asked = expectations.list.iter().find(|one| one.is_asked_for).expect("asked for").name.clone();
    let verdicts = expectations.judge(evidence, Now::present());
    verdicts.into_iter().find(|verdict| verdict.name == asked).expect("judged")
}

fn told(verdict: &Verdict) -> (State, Option<f64>, Vec<&str>) {
    (verdict.state, verdict.value, verdict.details.iter().map(String::as_str).collect())
}

fn unit(name: &str, load: &str, active: &str, sub: &str) -> Unit {
    let unit = systemd::Unit {
        name: name.into(),
        load_state: load.into(),
        active_state: active.into(),
        sub_state: sub.into(),
        job_id: 0,
        path: Default::default(),
    };
    Unit { unit: Arc::new(unit), restarts: Some(0), is_watched: true, may_be_missing: false }
}

fn units(units: Vec<Unit>) -> Evidence {
    Evidence { units: Answer::Seen(units.into()), ..Evidence::default() }
}

#[test]
fn failed_units_are_those_that_systemctl_shows() {
    let well = unit("quantum-risk-brain.service", "loaded", "active", "running");
    let ghost = unit("quantum-ai-engine.service", "not-found", "failed", "failed");
    let evidence = units(vec![well.clone(), ghost]);
    let verdict = judged("expectations: {failed_units: required}", &evidence);
    assert_eq!(told(&verdict), (State::NotMet, Some(1.0), vec!["quantum-ai-engine.service: not-found"]));
    let verdict = judged("expectations: {failed_units: {max: 1}}", &evidence);
    assert_eq!(verdict.state, State::Met);
    let excepted = "expectations: {failed_units: {except: [quantum-ai-engine.service]}}";
    assert_eq!(told(&judged(excepted, &evidence)), (State::Met, Some(0.0), vec![]));
    let verdict = judged("expectations: {failed_units: required}", &units(vec![well]));
    assert_eq!(told(&verdict), (State::Met, Some(0.0), vec![]));
}

#[test]
fn a_unit_that_waits_for_its_restart_loops() {
    let looping = unit("quantum-clm.service", "loaded", "activating", "auto-restart");
    let evidence = units(vec![Unit { restarts: Some(7), ..looping }]);
    let verdict = judged("expectations: {looping_units: required}", &evidence);
    assert_eq!(
        told(&verdict),
        (State::NotMet, Some(1.0), vec!["quantum-clm.service: auto-restart, 7 restarts"])
    );
}

#[test]
fn running_units_are_counted_by_their_pattern() {
    let missing = unit("quantum-pil.service", "not-found", "inactive", "dead");
    let evidence = units(vec![
        unit("quantum-execution.service", "loaded", "active", "running"),
        unit("quantum-ceo-brain.service", "loaded", "active", "running"),
        // Has ended well, and is not running.
        unit("quantum-migrate.service", "loaded", "active", "exited"),
        unit("quantum-clm.service", "loaded", "inactive", "dead"),
        Unit { may_be_missing: true, ..missing },
        unit("ssh.service", "loaded", "active", "running"),
    ]);
    let verdict = judged("expectations: {running: {'quantum-*.service': {min: 2}}}", &evidence);
    assert_eq!((verdict.state, verdict.value), (State::Met, Some(2.0)));
    let verdict = judged("expectations: {running: {'quantum-*.service': {min: 12}}}", &evidence);
    let resting = vec!["quantum-clm.service: inactive (dead)", "quantum-migrate.service: active (exited)"];
    assert_eq!(told(&verdict), (State::NotMet, Some(2.0), resting));
    let verdict = judged("expectations: {running: {'no-such-*.service': {min: 1}}}", &evidence);
    assert_eq!(told(&verdict), (State::NotMet, Some(0.0), vec!["no unit has such a name"]));
}

#[test]
fn units_that_may_be_missing_are_no_news() {
    let missing = |name| unit(name, "not-found", "inactive", "dead");
    let allowed = Unit { may_be_missing: true, ..missing("quantum-pil.service") };
    let unwatched = Unit { is_watched: false, ..missing("elsewhere.service") };
    let masked = unit("quantum-off.service", "masked", "inactive", "dead");
    let well = vec![allowed, unwatched, masked];
    let text = "expectations: {load_state: required}";
    assert_eq!(told(&judged(text, &units(well.clone()))), (State::Met, Some(0.0), vec![]));
    let odd =
        vec![missing("quantum-universe-os.service"), unit("a.service", "bad-setting", "inactive", "dead")];
    let verdict = judged(text, &units([well, odd].concat()));
    let names = vec!["a.service: bad-setting", "quantum-universe-os.service: not-found"];
    assert_eq!(told(&verdict), (State::NotMet, Some(2.0), names));
}

fn container(name: &str, health: Health) -> Container {
    Container {
        id: format!("{name}-id").into(),
        name: name.into(),
        is_up: true,
        is_running: true,
        health,
        is_probe_broken: false,
        detail: Some(ContainerDetail { restarts: 0, created: None, started: None, has_log_rotation: true }),
    }
}

fn containers(containers: Vec<Container>) -> Evidence {
    Evidence { containers: Answer::Seen(containers.into()), ..Evidence::default() }
}

#[test]
fn a_broken_healthcheck_is_said_of_an_unhealthy_container() {
    let broken = container("quantum_dashboard_frontend", Health::Unhealthy);
    let evidence = containers(vec![
        Container { is_probe_broken: true, ..broken },
        container("quantum_market_publisher", Health::Unhealthy),
        container("quantum_redis", Health::Healthy),
        container("young", Health::Starting),
    ]);
    let verdict = judged("expectations: {unhealthy_containers: required}", &evidence);
    let details =
        vec!["quantum_dashboard_frontend: its healthcheck cannot ever work", "quantum_market_publisher"];
    assert_eq!(told(&verdict), (State::NotMet, Some(2.0), details));
}

#[test]
fn running_containers_without_a_healthcheck_are_named() {
    let ended = Container { is_running: false, is_up: false, ..container("ended", Health::None) };
    let evidence = containers(vec![
        container("quantum_market_publisher", Health::None),
        container("quantum_redis", Health::Healthy),
        ended,
    ]);
    let verdict = judged("expectations: {healthcheck: required}", &evidence);
    assert_eq!(told(&verdict), (State::NotMet, Some(1.0), vec!["quantum_market_publisher"]));
    let excepted = "expectations: {healthcheck: {except: [quantum_market_publisher]}}";
    assert_eq!(judged(excepted, &evidence).state, State::Met);
}

#[test]
fn log_rotation_is_unknown_where_the_engine_does_not_say_and_the_others_are_well() {
    let with = |name: &str, rotates: bool| {
        let mut container = container(name, Health::None);
        container.detail =
            container.detail.map(|detail| ContainerDetail { has_log_rotation: rotates, ..detail });
        container
    };
    let text = "expectations: {log_rotation: required}";
    let silent = Container { detail: None, ..container("silent", Health::None) };
    assert_eq!(judged(text, &containers(vec![with("a", true)])).state, State::Met);
    let verdict = judged(text, &containers(vec![with("a", true), silent.clone()]));
    assert_eq!(told(&verdict), (State::Unknown, None, vec!["silent: the engine did not say"]));
    let verdict = judged(text, &containers(vec![with("a", false), silent]));
    assert_eq!((verdict.state, verdict.value), (State::NotMet, Some(1.0)));
    let stopped = Container { is_up: false, is_running: false, ..with("stopped", false) };
    assert_eq!(judged(text, &containers(vec![stopped])).state, State::Met, "it writes nothing");
}

#[test]
fn restarts_are_unknown_only_where_they_might_be_too_many() {
    let hours = |hours: u64| SystemTime::now().checked_sub(Duration::from_secs(hours * 3600));
    let restarted = |name: &str, restarts, created, started| {
        let detail = ContainerDetail {
            restarts,
            created: hours(created),
            started: hours(started),
            has_log_rotation: true,
        };
        Container { detail: Some(detail), ..container(name, Health::None) }
    };
    let text = "expectations: {restarts_per_day: {max: 3}}";
    let old = restarted("old", 50, 1000, 30);
    let young = restarted("young", 2, 10, 1);
    let verdict = judged(text, &containers(vec![old.clone(), young.clone()]));
    assert_eq!(told(&verdict), (State::Met, Some(2.0), vec![]));
    let unclear = restarted("unclear", 9, 1000, 1);
    let verdict = judged(text, &containers(vec![old, young, unclear.clone()]));
    let words = "unclear: between 0 and 9; known after a day of watching";
    assert_eq!(told(&verdict), (State::Unknown, None, vec![words]));
    let looping = restarted("looping", 9, 10, 0);
    let verdict = judged(text, &containers(vec![looping, unclear]));
    assert_eq!(told(&verdict), (State::NotMet, Some(9.0), vec!["looping: 9", words]));
}

fn filesystem(mount_point: &str, fs_type: &str, usage: Result<(f64, f64), &str>) -> Filesystem {
    Filesystem {
        mount_point: Path::new(mount_point).into(),
        fs_type: fs_type.into(),
        is_read_only: false,
        usage: usage.map(|(bytes, inodes)| Used { bytes, inodes: Some(inodes) }).map_err(str::to_owned),
    }
}

fn filesystems(filesystems: Vec<Filesystem>) -> Evidence {
    Evidence { filesystems: Answer::Seen(filesystems.into()), ..Evidence::default() }
}

#[test]
fn the_fullest_disk_decides() {
    let tmpfs = filesystem("/run", "tmpfs", Ok((0.99, 0.99)));
    let image = Filesystem { is_read_only: true, ..filesystem("/media", "ext4", Ok((1.0, 1.0))) };
    let full = vec![
        filesystem("/", "ext4", Ok((0.91, 0.2))),
        filesystem("/srv", "xfs", Ok((0.5, 0.9))),
        tmpfs,
        image,
    ];
    let disk = "expectations: {disk_usage: {max: 85%}}";
    assert_eq!(told(&judged(disk, &filesystems(full.clone()))), (State::NotMet, Some(0.91), vec!["/"]));
    let inodes = "expectations: {inodes: {max: 85%}}";
    assert_eq!(told(&judged(inodes, &filesystems(full))), (State::NotMet, Some(0.9), vec!["/srv"]));
    let cleaned = vec![filesystem("/", "ext4", Ok((0.82, 0.2)))];
    assert_eq!(told(&judged(disk, &filesystems(cleaned))), (State::Met, Some(0.82), vec!["/"]));
}

#[test]
fn a_mount_that_does_not_answer_might_be_full() {
    let dead = filesystem("/mnt/nfs", "nfs4", Err("mountpoint timeout"));
    let text = "expectations: {disk_usage: {max: 85%}}";
    let verdict = judged(text, &filesystems(vec![filesystem("/", "ext4", Ok((0.5, 0.5))), dead.clone()]));
    assert_eq!(told(&verdict), (State::Unknown, None, vec!["/", "/mnt/nfs: mountpoint timeout"]));
    let verdict = judged(text, &filesystems(vec![filesystem("/", "ext4", Ok((0.9, 0.5))), dead.clone()]));
    assert_eq!(verdict.state, State::NotMet, "one that is full is enough");
    assert_eq!(told(&judged(text, &filesystems(vec![dead]))).0, State::Unknown);
    let verdict = judged(text, &filesystems(vec![]));
    assert_eq!(told(&verdict), (State::Unknown, None, vec!["there is no filesystem that could fill up"]));
}

#[test]
fn build_cache_and_journal_have_a_size() {
    let of = |size| Evidence { build_cache: Answer::Seen(Arc::new(size)), ..Evidence::default() };
    let text = "expectations: {build_cache: {max: 1GB}}";
    assert_eq!(judged(text, &of(BuildCache::Bytes(13_590_000_000))).state, State::NotMet);
    assert_eq!(judged(text, &of(BuildCache::Bytes(44_910_000))).state, State::Met);
    let pending = judged(text, &of(BuildCache::Pending));
    assert_eq!((pending.state, pending.is_pending), (State::Unknown, true));
    let silent = judged(text, &of(BuildCache::Unknown));
    assert_eq!((silent.state, silent.is_pending), (State::Unknown, false));
    let journal = Evidence { journal: Answer::Seen(Arc::new(5_000_000_000)), ..Evidence::default() };
    let verdict = judged("expectations: {journal_size: {max: 4GB}}", &journal);
    assert_eq!((verdict.state, verdict.value), (State::NotMet, Some(5e9)));
}

#[test]
fn every_redis_has_to_be_ready() {
    let redis = |name: &str, failure: Option<Failure>| Redis {
        name: name.into(),
        is_ready: failure.is_none(),
        failure,
    };
    let all = [redis("local", None), redis("quantum_redis", Some(Failure::Dns))];
    let evidence = Evidence { redis: Answer::Seen(all.into()), ..Evidence::default() };
    let verdict = judged("expectations: {redis_ready: required}", &evidence);
    assert_eq!(told(&verdict), (State::NotMet, Some(1.0), vec!["quantum_redis: dns"]));
}

#[test]
fn a_name_that_does_not_resolve_is_not_as_expected() {
    let name = |host: &str, addresses, is_as_expected| Name { host: host.into(), addresses, is_as_expected };
    let elsewhere: Arc<[std::net::IpAddr]> = ["172.18.0.5".parse().expect("an address")].into();
    let all = [
        name("quantum_redis", Err(resolve::Failure::Again), Some(false)),
        name("db", Ok(Arc::clone(&elsewhere)), Some(false)),
        name("cache", Ok(Arc::clone(&elsewhere)), Some(true)),
        name("anything", Err(resolve::Failure::NotFound), None),
    ];
    let evidence = Evidence { names: Answer::Seen(all.into()), ..Evidence::default() };
    let verdict = judged("expectations: {resolve: required}", &evidence);
    let details = vec!["db: it has 172.18.0.5", "quantum_redis: temporary failure in name resolution"];
    assert_eq!(told(&verdict), (State::NotMet, Some(2.0), details));
}

#[test]
fn an_environment_that_cannot_be_read_is_unknown() {
    let environment = |unit: &str, variables| Environment { unit: unit.into(), variables };
    let text = "expectations: {environment: required}";
    let of =
        |all: Vec<Environment>| Evidence { environments: Answer::Seen(all.into()), ..Evidence::default() };
    let met = environment("a.service", Ok(vec![("REDIS_HOST".into(), Variable::Met)]));
    let closed = environment("b.service", Err(NoEnvironment::Unread(Unread::Permission)));
    let odd = environment(
        "quantum-portfolio-intelligence.service",
        Ok(vec![("REDIS_DB".into(), Variable::Missing), ("REDIS_HOST".into(), Variable::Different)]),
    );
    assert_eq!(told(&judged(text, &of(vec![met.clone()]))), (State::Met, Some(0.0), vec![]));
    let verdict = judged(text, &of(vec![met, closed]));
    assert_eq!((verdict.state, verdict.value), (State::Unknown, None));
    assert!(
        verdict.details[0].starts_with("b.service: its main process belongs to another user"),
        "{verdict:?}"
    );
    let verdict = judged(text, &of(vec![odd]));
    let details = vec![
        "quantum-portfolio-intelligence.service: REDIS_DB is not set",
        "quantum-portfolio-intelligence.service: REDIS_HOST has another value",
    ];
    assert_eq!(told(&verdict), (State::NotMet, Some(2.0), details));
}

#[test]
fn hostile_names_stay_on_one_line_and_are_not_endless() {
    let all: Vec<Unit> = (0..50)
        .map(|number| {
            unit(&format!("{number:02}\n{}\u{1b}[31m", "x".repeat(1000)), "loaded", "failed", "failed")
        })
        .collect();
    let verdict = judged("expectations: {failed_units: required}", &units(all));
    assert_eq!((verdict.value, verdict.details.len()), (Some(50.0), MOST_NAMED + 1));
    assert_eq!(verdict.details[MOST_NAMED], "and 30 more");
    for detail in &verdict.details {
        assert!(detail.chars().count() <= LONGEST && !detail.contains(char::is_control), "{detail:?}");
    }
}
