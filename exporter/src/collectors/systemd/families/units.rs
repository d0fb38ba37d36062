//! The series of single units.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use evenkeel_host::{
    metrics::{Draft, Family, Samples},
    systemd::{Details, ServiceDetails, SocketCounters, TimerDetails, Unit},
};

use super::{ACTIVE_STATES, Picture, for_each_state, unix_time};
use crate::collectors::systemd::{
    selection::Role,
    stale::StaleReference,
    unannounced::{FileFact, FileFacts},
};

/// A unit that is published, as it is now.
#[derive(Debug, Clone)]
pub(in super::super) struct Seen {
    unit: Arc<Unit>,
    role: Role,
    /// `None` where nobody asked, the unit was gone when asked, or systemd does not have it in memory: what nothing needs it
    /// forgets, its times and counters with it.
    details: Option<Arc<Details>>,
    counters: Option<SocketCounters>,
    file: Option<FileFact>,
    stale: BTreeSet<StaleReference>,
}

/// All of them, by name. `resting` are the watched units that systemd does not have in memory.
pub(in super::super) fn seen(
    picture: &Picture,
    resting: &[(Arc<Unit>, Role)],
    files: &FileFacts,
) -> Vec<Seen> {
    let in_memory = picture.units().filter(|known| known.is_known()).filter_map(|known| {
        let (unit, role) = (Arc::clone(&known.unit), known.role?);
        let counters = known.counters.map(|(_, counters, _)| counters);
        let file = files.get(&unit.name).filter(|_| role.is_watched).cloned();
        let stale = files.stale.of(&unit.name);
        Some(Seen { unit, role, details: known.details.clone(), counters, file, stale })
    });
    let resting = resting.iter().map(|(unit, role)| {
        let file = files.get(&unit.name).cloned();
        let stale = files.stale.of(&unit.name);
        Seen { unit: Arc::clone(unit), role: *role, details: None, counters: None, file, stale }
    });
    let mut seen: Vec<Seen> = in_memory.chain(resting).collect();
    // Of one that has just woken up the picture knows more.
    seen.sort_by(|a, b| a.unit.name.cmp(&b.unit.name));
    seen.dedup_by(|later, first| later.unit.name == first.unit.name);
    seen
}

/// Writes all of their series, one unit after the other. `clock_start` is when the monotonic clock was 0.
pub(in super::super) fn write(draft: &mut Draft, units: &[Seen], clock_start: SystemTime) {
    states(draft, units);
    services(draft, units);
    timers(draft, units, clock_start);
    sockets(draft, units);
    unit_files(draft, units);
    stale_references(draft, units);
}

impl Seen {
    fn name(&self) -> (&'static str, &str) {
        ("name", &self.unit.name)
    }

    fn kind(&self) -> (&'static str, &str) {
        ("type", self.unit.kind())
    }
}

fn states(draft: &mut Draft, units: &[Seen]) {
    let family =
        Family::gauge("systemd_unit_state", "1 for the active state the unit is in, 0 for the others.");
    draft.tell(&family, |samples| {
        for seen in units.iter().filter(|seen| seen.role.has_state(&seen.unit)) {
            for_each_state(&ACTIVE_STATES, &seen.unit.active_state, |state, value| {
                samples.add(&[seen.name(), seen.kind(), ("state", state)], value);
            });
        }
    });
    let family = Family::gauge(
        "systemd_unit_load_state",
        "The load state of watched units, and of units whose file has a problem, always 1. Not told of units that are missing and may be.",
    );
    draft.tell(&family, |samples| {
        for seen in units.iter().filter(|seen| seen.role.has_load_state(&seen.unit)) {
            samples.add(&[seen.name(), seen.kind(), ("load_state", &seen.unit.load_state)], 1.0);
        }
    });
    let family = Family::gauge("systemd_unit_sub_state", "The sub state the unit is in, always 1.");
    draft.tell(&family, |samples| {
        for seen in units.iter().filter(|seen| seen.role.has_state(&seen.unit)) {
            samples.add(&[seen.name(), seen.kind(), ("sub_state", &seen.unit.sub_state)], 1.0);
        }
    });
    let family = Family::gauge(
        "systemd_unit_active_enter_time_seconds",
        "When the unit last became active, as Unix time, 0 for never.",
    );
    times(draft, &family, units, |details| details.active_enter);
    let family = Family::gauge(
        "systemd_unit_inactive_enter_time_seconds",
        "When the unit last became inactive, as Unix time, 0 for never.",
    );
    times(draft, &family, units, |details| details.inactive_enter);
}

/// 0 for never, as systemd_exporter has it.
fn times(draft: &mut Draft, family: &Family, units: &[Seen], time: impl Fn(&Details) -> Option<SystemTime>) {
    draft.tell(family, |samples| {
        for seen in units {
            if let Some(details) = &seen.details {
                samples.add(&[seen.name(), seen.kind()], time(details).map_or(0.0, unix_time));
            }
        }
    });
}

fn services(draft: &mut Draft, units: &[Seen]) {
    let mut tell = |family: Family, tell: fn(&Seen, &ServiceDetails, &mut Samples<'_>)| {
        draft.tell(&family, |samples| {
            for seen in units {
                if let Some(service) = seen.details.as_ref().and_then(|details| details.service.as_ref()) {
                    tell(seen, service, samples);
                }
            }
        });
    };
    let family = Family::counter(
        "systemd_service_restart_total",
        "Restarts of the service by its Restart= setting. Starts again from 0 with a manual restart and with reset-failed.",
    );
    tell(family, |seen, service, samples| samples.add(&[seen.name()], f64::from(service.n_restarts)));
    let family =
        Family::gauge("systemd_service_result", "How the service's last run ended, or goes on, always 1.");
    tell(family, |seen, service, samples| samples.add(&[seen.name(), ("result", &service.result)], 1.0));
    let family = Family::gauge(
        "systemd_service_exec_main_status",
        "Exit status of the service's main process, or the number of the signal that killed it; absent until it has ended.",
    );
    tell(family, |seen, service, samples| {
        if service.exec_main_exit.is_some() {
            samples.add(&[seen.name()], f64::from(service.exec_main_status));
        }
    });
    let family = Family::gauge(
        "systemd_service_exec_main_exit_timestamp_seconds",
        "When the service's main process ended, as Unix time; absent until it has.",
    );
    tell(family, |seen, service, samples| {
        if let Some(ended) = service.exec_main_exit {
            samples.add(&[seen.name()], unix_time(ended));
        }
    });
}

/// Names and meaning of the first are systemd_exporter's and node_exporter's.
fn timers(draft: &mut Draft, units: &[Seen], clock_start: SystemTime) {
    let timers = || units.iter().filter_map(|seen| Some((seen, seen.details.as_ref()?.timer.as_ref()?)));
    let family = Family::gauge(
        "systemd_timer_last_trigger_seconds",
        "When the timer last started its unit, as Unix time, 0 for never.",
    );
    draft.tell(&family, |samples| {
        for (seen, timer) in timers() {
            samples.add(&[seen.name()], timer.last_trigger.map_or(0.0, unix_time));
        }
    });
    let family = Family::gauge(
        "systemd_timer_next_trigger_seconds",
        "When the timer will next start its unit, as Unix time; absent while it does not know.",
    );
    draft.tell(&family, |samples| {
        for (seen, timer) in timers() {
            if let Some(time) = next_trigger(timer, clock_start) {
                samples.add(&[seen.name()], unix_time(time));
            }
        }
    });
    let family = Family::gauge("systemd_timer_info", "The unit that the timer starts, always 1.");
    draft.tell(&family, |samples| {
        for (seen, timer) in timers() {
            samples.add(&[seen.name(), ("unit", &timer.unit)], 1.0);
        }
    });
}

/// The earlier of what the calendar says and what the time since something says, as `systemctl list-timers` shows it.
fn next_trigger(timer: &TimerDetails, clock_start: SystemTime) -> Option<SystemTime> {
    let monotonic = timer.next_monotonic.and_then(|since| clock_start.checked_add(since));
    [timer.next_realtime, monotonic].into_iter().flatten().min()
}

fn sockets(draft: &mut Draft, units: &[Seen]) {
    let mut tell = |family: Family, value: fn(&SocketCounters) -> u32| {
        draft.tell(&family, |samples| {
            for seen in units {
                if let Some(counters) = &seen.counters {
                    samples.add(&[seen.name()], f64::from(value(counters)));
                }
            }
        });
    };
    let family = Family::counter(
        "systemd_socket_accepted_connections_total",
        "Connections that the socket accepted itself, with Accept=yes.",
    );
    tell(family, |counters| counters.accepted);
    let family = Family::gauge(
        "systemd_socket_current_connections",
        "Connections now that the socket accepted itself, with Accept=yes.",
    );
    tell(family, |counters| counters.connections);
    let family =
        Family::counter("systemd_socket_refused_connections_total", "Connections that the socket refused.");
    tell(family, |counters| counters.refused);
}

fn unit_files(draft: &mut Draft, units: &[Seen]) {
    let family = Family::gauge(
        "systemd_unit_need_daemon_reload",
        "Whether the watched unit's files on disk are newer than what systemd works with.",
    );
    draft.tell(&family, |samples| {
        for seen in units {
            if let Some(file) = &seen.file {
                samples.add(&[seen.name(), seen.kind()], f64::from(u8::from(file.needs_reload)));
            }
        }
    });
    let family = Family::gauge(
        "systemd_unit_file_state",
        "Whether the watched unit is enabled, and how, in systemd's words, always 1.",
    );
    draft.tell(&family, |samples| {
        for seen in units {
            if let Some(file) = seen.file.as_ref().filter(|file| !file.state.is_empty()) {
                samples.add(&[seen.name(), seen.kind(), ("unit_file_state", &file.state)], 1.0);
            }
        }
    });
}

fn stale_references(draft: &mut Draft, units: &[Seen]) {
    let family = Family::gauge(
        "systemd_unit_stale_reference",
        "A unit that does not exist, and that a file of the watched unit names which is the host's own, always 1.",
    );
    draft.tell(&family, |samples| {
        for seen in units {
            for StaleReference { directive, name } in &seen.stale {
                samples.add(&[seen.name(), ("directive", directive), ("reference", name)], 1.0);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use evenkeel_host::systemd::ServiceDetails;

    use super::*;
    use crate::collectors::systemd::families::tests::{lines, picture_of, unit};

    const WATCHED: Role = Role { is_watched: true, may_be_missing: false };

    fn seen(unit: &Unit, details: Option<&Details>) -> Seen {
        let (unit, details) = (Arc::new(unit.clone()), details.cloned().map(Arc::new));
        Seen { unit, role: Role::default(), details, counters: None, file: None, stale: BTreeSet::new() }
    }

    fn written(units: &[Seen]) -> Vec<Family> {
        written_since(units, SystemTime::UNIX_EPOCH)
    }

    fn written_since(units: &[Seen], clock_start: SystemTime) -> Vec<Family> {
        let mut draft = Draft::default();
        write(&mut draft, units, clock_start);
        draft.finish().read_back()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_service_that_failed() {
        let service = ServiceDetails {
            n_restarts: 5,
            result: "exit-code".into(),
            exec_main_status: 203,
            exec_main_exit: Some(at(1_700_000_100)),
        };
        let details = Details {
            active_enter: Some(at(1_700_000_000)),
            inactive_enter: Some(at(1_700_000_101)),
            service: Some(service),
            ..Details::default()
        };
        let unit = unit("web.service", "loaded", "failed", "failed");
        let seen = [seen(&unit, Some(&details))];
        let families = written(&seen);
        assert_eq!(
            lines(&families, "systemd_unit_state"),
            [
                "name=web.service type=service state=activating 0",
                "name=web.service type=service state=active 0",
                "name=web.service type=service state=deactivating 0",
                "name=web.service type=service state=failed 1",
                "name=web.service type=service state=inactive 0",
                "name=web.service type=service state=maintenance 0",
                "name=web.service type=service state=refreshing 0",
                "name=web.service type=service state=reloading 0",
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
        let unit = unit("web.service", "loaded", "active", "running");
        let seen = [seen(&unit, Some(&details))];
        let families = written(&seen);
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
        let unit = unit("web.service", "loaded", "levitating", "above");
        let states = lines(&written(&[seen(&unit, None)]), "systemd_unit_state");
        assert_eq!(states.len(), 9);
        assert_eq!(states[8], "name=web.service type=service state=levitating 1");
        assert!(states[..8].iter().all(|line| line.ends_with(" 0")));
    }

    #[test]
    fn load_states_of_trouble_are_told() {
        let broken = unit("a.timer", "bad-setting", "inactive", "dead");
        let missing = unit("b.service", "not-found", "inactive", "dead");
        let allowed = unit("c.service", "not-found", "inactive", "dead");
        let families = written(&[
            seen(&broken, None),
            Seen { role: WATCHED, ..seen(&missing, None) },
            Seen { role: Role { may_be_missing: true, ..WATCHED }, ..seen(&allowed, None) },
        ]);
        assert_eq!(
            lines(&families, "systemd_unit_load_state"),
            [
                "name=a.timer type=timer load_state=bad-setting 1",
                "name=b.service type=service load_state=not-found 1"
            ]
        );
    }

    #[test]
    fn timers_run_next_at_the_earlier_of_both_times() {
        let timer = |next_realtime, next_monotonic| TimerDetails {
            unit: "backup.service".into(),
            last_trigger: Some(at(1_700_000_000)),
            next_realtime,
            next_monotonic,
        };
        let (calendar, since_boot) = (Some(at(1_700_003_600)), Some(Duration::from_secs(100)));
        let boot = at(1_700_001_000);
        for (next_realtime, next_monotonic, expected) in [
            (calendar, None, Some("name=backup.timer 1700003600")),
            (None, since_boot, Some("name=backup.timer 1700001100")),
            (calendar, since_boot, Some("name=backup.timer 1700001100")),
            (Some(at(1_700_001_001)), since_boot, Some("name=backup.timer 1700001001")),
            (None, None, None),
            (None, Some(Duration::MAX), None),
        ] {
            let details = Details { timer: Some(timer(next_realtime, next_monotonic)), ..Details::default() };
            let unit = unit("backup.timer", "loaded", "active", "waiting");
            let families = written_since(&[seen(&unit, Some(&details))], boot);
            let next = lines(&families, "systemd_timer_next_trigger_seconds");
            assert_eq!(next.first().map(String::as_str), expected);
            assert_eq!(
                lines(&families, "systemd_timer_last_trigger_seconds"),
                ["name=backup.timer 1700000000"]
            );
            assert_eq!(lines(&families, "systemd_timer_info"), ["name=backup.timer unit=backup.service 1"]);
        }
    }

    #[test]
    fn counters_of_sockets_and_facts_of_files() {
        let unit = unit("ssh.socket", "loaded", "active", "listening");
        let file = FileFact::of(true, "enabled");
        let counters = SocketCounters { accepted: 5, connections: 2, refused: 1 };
        let seen = [Seen { counters: Some(counters), file: Some(file), ..seen(&unit, None) }];
        let families = written(&seen);
        for (name, line) in [
            ("systemd_socket_accepted_connections_total", "name=ssh.socket 5"),
            ("systemd_socket_current_connections", "name=ssh.socket 2"),
            ("systemd_socket_refused_connections_total", "name=ssh.socket 1"),
            ("systemd_unit_need_daemon_reload", "name=ssh.socket type=socket 1"),
            ("systemd_unit_file_state", "name=ssh.socket type=socket unit_file_state=enabled 1"),
        ] {
            assert_eq!(lines(&families, name), [line], "{name}");
        }
        let without = FileFact::of(false, "");
        let families = written(&[Seen { file: Some(without), ..seen[0].clone() }]);
        assert!(lines(&families, "systemd_unit_file_state").is_empty());
        assert_eq!(lines(&families, "systemd_unit_need_daemon_reload"), ["name=ssh.socket type=socket 0"]);
    }

    #[test]
    fn each_stale_reference_is_told() {
        let unit = unit("shop.target", "loaded", "active", "active");
        let stale =
            [("Wants", "shop-old.service"), ("After", "shop-old.service"), ("After", "shop-a.service")];
        let stale = stale.map(|(directive, name)| StaleReference { directive, name: name.to_owned() });
        let families = written(&[Seen { stale: stale.into(), ..seen(&unit, None) }]);
        assert_eq!(
            lines(&families, "systemd_unit_stale_reference"),
            [
                "name=shop.target directive=After reference=shop-a.service 1",
                "name=shop.target directive=After reference=shop-old.service 1",
                "name=shop.target directive=Wants reference=shop-old.service 1",
            ]
        );
    }

    #[test]
    fn what_nobody_publishes_is_not_told_and_resting_units_are() {
        let mut picture = picture_of(vec![
            unit("web.service", "loaded", "active", "running"),
            unit("vda.device", "loaded", "active", "plugged"),
        ]);
        picture.assign(|known| (known.unit.kind() == "service").then_some(Role::default()));
        let resting = [(Arc::new(unit("batch.service", "loaded", "inactive", "dead")), WATCHED)];
        let families = written(&super::seen(&picture, &resting, &FileFacts::default()));
        assert_eq!(
            lines(&families, "systemd_unit_sub_state"),
            [
                "name=batch.service type=service sub_state=dead 1",
                "name=web.service type=service sub_state=running 1"
            ]
        );
    }
}
