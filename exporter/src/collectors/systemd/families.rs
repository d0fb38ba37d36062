//! A picture of systemd as metrics. Names, labels and meaning are systemd_exporter's where it has the metric.

use std::time::SystemTime;

use evenkeel_host::metrics::Family;

use super::picture::{Picture, Seen};

/// `systemd_unit_state` has a series for each; systemd may know more.
const ACTIVE_STATES: [&str; 8] =
    ["active", "activating", "deactivating", "inactive", "failed", "reloading", "maintenance", "refreshing"];

const MANAGER_STATES: [&str; 6] =
    ["initializing", "starting", "running", "degraded", "maintenance", "stopping"];

/// `systemd_up`.
pub(super) fn up(is_up: bool) -> Family {
    Family::gauge("systemd_up", "Whether systemd answered over the system bus.")
        .with(&[], f64::from(u8::from(is_up)))
}

/// All of it.
pub(super) fn families(picture: &Picture) -> Vec<Family> {
    let mut families = vec![up(true), manager_state(picture), version(picture), counts(picture)];
    families.extend(units(&picture.units));
    families.extend(services(&picture.units));
    families
}

fn manager_state(picture: &Picture) -> Family {
    let mut family =
        Family::gauge("systemd_manager_state", "1 for the state systemd as a whole is in, 0 for the others.");
    let state = picture.manager.system_state.as_str();
    for_each_state(&MANAGER_STATES, state, |known, value| family.sample(&[("state", known)], value));
    family
}

fn version(picture: &Picture) -> Family {
    Family::gauge("systemd_version_info", "The version of systemd, always 1.")
        .with(&[("version", &picture.manager.version)], 1.0)
}

#[allow(clippy::cast_precision_loss, reason = "far fewer units than 2^53")]
fn counts(picture: &Picture) -> Family {
    let mut family =
        Family::gauge("systemd_units", "Units in systemd's memory in each active state, published or not.");
    let known = ACTIVE_STATES.iter().copied();
    let others = picture.counts.keys().map(String::as_str).filter(|state| !ACTIVE_STATES.contains(state));
    for state in known.chain(others) {
        let count = picture.counts.get(state).copied().unwrap_or(0);
        family.sample(&[("state", state)], count as f64);
    }
    family
}

fn units(units: &[Seen]) -> Vec<Family> {
    let mut state =
        Family::gauge("systemd_unit_state", "1 for the active state the unit is in, 0 for the others.");
    let mut load = Family::gauge(
        "systemd_unit_load_state",
        "The load state of watched units, and of units whose file has a problem, always 1. Not told of units that are missing and may be.",
    );
    let mut sub = Family::gauge("systemd_unit_sub_state", "The sub state the unit is in, always 1.");
    let mut active = Family::gauge(
        "systemd_unit_active_enter_time_seconds",
        "When the unit last became active, as Unix time, 0 for never.",
    );
    let mut inactive = Family::gauge(
        "systemd_unit_inactive_enter_time_seconds",
        "When the unit last became inactive, as Unix time, 0 for never.",
    );
    for seen in units {
        let unit = &seen.unit;
        let (name, kind) = (("name", unit.name.as_str()), ("type", unit.kind()));
        if seen.has_state() {
            for_each_state(&ACTIVE_STATES, &unit.active_state, |known, value| {
                state.sample(&[name, kind, ("state", known)], value);
            });
            sub.sample(&[name, kind, ("sub_state", &unit.sub_state)], 1.0);
        }
        if seen.has_load_state() {
            load.sample(&[name, kind, ("load_state", &unit.load_state)], 1.0);
        }
        if let Some(details) = &seen.details {
            // 0 for never, as systemd_exporter has it.
            active.sample(&[name, kind], details.active_enter.map_or(0.0, unix_time));
            inactive.sample(&[name, kind], details.inactive_enter.map_or(0.0, unix_time));
        }
    }
    vec![state, load, sub, active, inactive]
}

fn services(units: &[Seen]) -> Vec<Family> {
    let mut restarts = Family::counter(
        "systemd_service_restart_total",
        "Restarts of the service by its Restart= setting. Starts again from 0 with a manual restart and with reset-failed.",
    );
    let mut result =
        Family::gauge("systemd_service_result", "How the service's last run ended, or goes on, always 1.");
    let mut status = Family::gauge(
        "systemd_service_exec_main_status",
        "Exit status of the service's main process, or the number of the signal that killed it; absent until it has ended.",
    );
    let mut exit = Family::gauge(
        "systemd_service_exec_main_exit_timestamp_seconds",
        "When the service's main process ended, as Unix time; absent until it has.",
    );
    for seen in units {
        let Some(service) = seen.details.as_ref().and_then(|details| details.service.as_ref()) else {
            continue;
        };
        let name = ("name", seen.unit.name.as_str());
        restarts.sample(&[name], f64::from(service.n_restarts));
        result.sample(&[name, ("result", &service.result)], 1.0);
        if let Some(ended) = service.exec_main_exit {
            status.sample(&[name], f64::from(service.exec_main_status));
            exit.sample(&[name], unix_time(ended));
        }
    }
    vec![restarts, result, status, exit]
}

/// 1 for the current state, 0 for the others; a state that is not among the known ones gets a series of its own.
fn for_each_state<'a>(known: &[&'a str], current: &'a str, mut sample: impl FnMut(&'a str, f64)) {
    for state in known {
        sample(state, f64::from(u8::from(*state == current)));
    }
    if !known.contains(&current) {
        sample(current, 1.0);
    }
}

fn unix_time(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use evenkeel_host::{
        metrics::Sample,
        systemd::{Details, Manager, ServiceDetails, Unit},
    };

    use super::*;

    fn seen(name: &str, load: &str, active: &str, sub: &str, details: Option<Details>) -> Seen {
        let unit = Unit {
            name: name.into(),
            load_state: load.into(),
            active_state: active.into(),
            sub_state: sub.into(),
            job_id: 0,
            path: Default::default(),
        };
        Seen { unit, is_watched: false, may_be_missing: false, is_in_memory: true, details }
    }

    fn picture(units: Vec<Seen>) -> Picture {
        Picture {
            manager: Manager { version: "252.39-1~deb12u1".into(), system_state: "degraded".into() },
            counts: BTreeMap::from([("active".into(), 5), ("failed".into(), 1)]),
            units,
        }
    }

    /// The samples of one family, as `label=value … value`.
    fn lines(families: &[Family], name: &str) -> Vec<String> {
        let family = families.iter().find(|family| family.name == name).unwrap();
        let line = |sample: &Sample| {
            let labels: String =
                sample.labels.iter().map(|(name, value)| format!("{name}={value} ")).collect();
            format!("{labels}{}", sample.value)
        };
        family.samples.iter().map(line).collect()
    }

    fn at(seconds: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn the_whole_system() {
        let families = families(&picture(vec![]));
        assert_eq!(lines(&families, "systemd_up"), ["1"]);
        assert_eq!(lines(&families, "systemd_version_info"), ["version=252.39-1~deb12u1 1"]);
        assert_eq!(
            lines(&families, "systemd_manager_state"),
            [
                "state=initializing 0",
                "state=starting 0",
                "state=running 0",
                "state=degraded 1",
                "state=maintenance 0",
                "state=stopping 0",
            ]
        );
        let counts = lines(&families, "systemd_units");
        assert_eq!(counts.len(), 8);
        assert!(
            counts.contains(&"state=failed 1".into()) && counts.contains(&"state=inactive 0".into()),
            "{counts:?}"
        );
    }

    #[test]
    fn a_service_that_failed() {
        let service = ServiceDetails {
            n_restarts: 5,
            result: "exit-code".into(),
            exec_main_status: 203,
            exec_main_exit: at(1_700_000_100),
        };
        let details = Details {
            active_enter: at(1_700_000_000),
            inactive_enter: at(1_700_000_101),
            service: Some(service),
            fragment_path: None,
        };
        let families =
            families(&picture(vec![seen("web.service", "loaded", "failed", "failed", Some(details))]));
        assert_eq!(
            lines(&families, "systemd_unit_state"),
            [
                "name=web.service type=service state=active 0",
                "name=web.service type=service state=activating 0",
                "name=web.service type=service state=deactivating 0",
                "name=web.service type=service state=inactive 0",
                "name=web.service type=service state=failed 1",
                "name=web.service type=service state=reloading 0",
                "name=web.service type=service state=maintenance 0",
                "name=web.service type=service state=refreshing 0",
            ]
        );
        for (name, line) in [
            ("systemd_unit_sub_state", "name=web.service type=service sub_state=failed 1"),
            ("systemd_unit_active_enter_time_seconds", "name=web.service type=service 1700000000"),
            ("systemd_unit_inactive_enter_time_seconds", "name=web.service type=service 1700000101"),
            ("systemd_service_restart_total", "name=web.service 5"),
            ("systemd_service_result", "name=web.service result=exit-code 1"),
            ("systemd_service_exec_main_status", "name=web.service 203"),
            ("systemd_service_exec_main_exit_timestamp_seconds", "name=web.service 1700000100"),
        ] {
            assert_eq!(lines(&families, name), [line], "{name}");
        }
        assert!(lines(&families, "systemd_unit_load_state").is_empty());
    }

    #[test]
    fn a_process_that_has_not_ended_has_no_status() {
        let details = Details { service: Some(ServiceDetails::default()), ..Details::default() };
        let families =
            families(&picture(vec![seen("web.service", "loaded", "active", "running", Some(details))]));
        assert!(lines(&families, "systemd_service_exec_main_status").is_empty());
        assert!(lines(&families, "systemd_service_exec_main_exit_timestamp_seconds").is_empty());
        assert_eq!(lines(&families, "systemd_service_restart_total"), ["name=web.service 0"]);
        assert_eq!(
            lines(&families, "systemd_unit_active_enter_time_seconds"),
            ["name=web.service type=service 0"]
        );
    }

    #[test]
    fn states_that_nobody_knew_get_a_series() {
        let mut picture = picture(vec![seen("web.service", "loaded", "levitating", "above", None)]);
        picture.manager.system_state = "dreaming".into();
        picture.counts.insert("levitating".into(), 1);
        let families = families(&picture);
        let states = lines(&families, "systemd_unit_state");
        assert_eq!(states.len(), 9);
        assert_eq!(states[8], "name=web.service type=service state=levitating 1");
        assert!(states[..8].iter().all(|line| line.ends_with(" 0")));
        assert_eq!(lines(&families, "systemd_manager_state")[6], "state=dreaming 1");
        assert_eq!(lines(&families, "systemd_units")[8], "state=levitating 1");
    }

    #[test]
    fn load_states_of_trouble_are_told() {
        let mut watched = seen("b.service", "not-found", "inactive", "dead", None);
        watched.is_watched = true;
        let mut allowed = seen("c.service", "not-found", "inactive", "dead", None);
        (allowed.is_watched, allowed.may_be_missing) = (true, true);
        let broken = seen("a.timer", "bad-setting", "inactive", "dead", None);
        let families = families(&picture(vec![broken, watched, allowed]));
        assert_eq!(
            lines(&families, "systemd_unit_load_state"),
            [
                "name=a.timer type=timer load_state=bad-setting 1",
                "name=b.service type=service load_state=not-found 1"
            ]
        );
    }
}
