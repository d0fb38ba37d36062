//! What is told of systemd as metrics. Names, labels and meaning are systemd_exporter's where it has the metric.

mod units;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use evenkeel_host::metrics::Family;

use super::picture::Picture;
pub(super) use units::{Seen, seen, write};

/// `systemd_unit_state` has a series for each, in this order; systemd may know more.
const ACTIVE_STATES: [&str; 8] =
    ["activating", "active", "deactivating", "failed", "inactive", "maintenance", "refreshing", "reloading"];

const MANAGER_STATES: [&str; 6] =
    ["initializing", "starting", "running", "degraded", "maintenance", "stopping"];

/// `systemd_up`.
pub(super) fn up(is_up: bool) -> Family {
    Family::gauge("systemd_up", "Whether systemd answered over the system bus.")
        .with(&[], f64::from(u8::from(is_up)))
}

/// What is told of systemd as a whole. `state` is what it says of itself.
pub(super) fn general(picture: &Picture, state: &str, version: &str) -> Vec<Family> {
    let mut manager =
        Family::gauge("systemd_manager_state", "1 for the state systemd as a whole is in, 0 for the others.");
    for_each_state(&MANAGER_STATES, state, |known, value| manager.sample(&[("state", known)], value));
    let version = Family::gauge("systemd_version_info", "The version of systemd, always 1.")
        .with(&[("version", version)], 1.0);
    vec![up(true), manager, version, counts(picture)]
}

#[allow(clippy::cast_precision_loss, reason = "far fewer units than 2^53")]
fn counts(picture: &Picture) -> Family {
    let mut family =
        Family::gauge("systemd_units", "Units in systemd's memory in each active state, published or not.");
    let mut counts: BTreeMap<&str, usize> = ACTIVE_STATES.iter().map(|state| (*state, 0)).collect();
    for known in picture.units().filter(|known| known.is_known()) {
        *counts.entry(&known.unit.active_state).or_default() += 1;
    }
    for (state, count) in counts {
        family.sample(&[("state", state)], count as f64);
    }
    family
}

/// How far apart two times are.
pub(super) fn difference(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|error| error.duration())
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
pub(super) mod tests {
    use evenkeel_host::{metrics::Sample, systemd::Unit};
    use tokio::time::Instant;

    use super::*;

    pub(in super::super) fn unit(name: &str, load: &str, active: &str, sub: &str) -> Unit {
        Unit {
            name: name.into(),
            load_state: load.into(),
            active_state: active.into(),
            sub_state: sub.into(),
            job_id: 0,
            path: format!("/{}", name.replace(['.', '-', '@'], "_")).try_into().unwrap(),
        }
    }

    pub(in super::super) fn picture_of(list: Vec<Unit>) -> Picture {
        let mut picture = Picture::default();
        let since = picture.begin_list();
        picture.take_list(list, since, Instant::now());
        picture
    }

    /// The samples of one family, as `label=value … value`.
    pub(in super::super) fn lines(families: &[Family], name: &str) -> Vec<String> {
        let samples = families.iter().filter(|family| family.name == name).flat_map(|family| &family.samples);
        let line = |sample: &Sample| {
            let labels: String =
                sample.labels.iter().map(|(name, value)| format!("{name}={value} ")).collect();
            format!("{labels}{}", sample.value)
        };
        samples.map(line).collect()
    }

    #[test]
    fn the_whole_system() {
        let picture = picture_of(vec![
            unit("a.service", "loaded", "active", "running"),
            unit("b.device", "loaded", "active", "plugged"),
            unit("c.service", "loaded", "failed", "failed"),
        ]);
        let families = general(&picture, "degraded", "252.39-1~deb12u1");
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
        for line in ["state=active 2", "state=failed 1", "state=inactive 0"] {
            assert!(counts.contains(&line.into()), "{counts:?}");
        }
    }

    #[test]
    fn states_that_nobody_knew_get_a_series() {
        let picture = picture_of(vec![unit("a.service", "loaded", "levitating", "above")]);
        let families = general(&picture, "dreaming", "999");
        assert_eq!(lines(&families, "systemd_manager_state")[6], "state=dreaming 1");
        assert!(lines(&families, "systemd_units").contains(&"state=levitating 1".into()));
    }
}
