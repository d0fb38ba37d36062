//! What the host itself says against acting now: it has only just started, packages are being installed, it is short
//! of something. Acting then hits the wrong cause. Pure; the looking is in `conditions`.

use std::time::Duration;

use super::{Reason, Refusal};
use crate::policy::Class;

/// How soon to look again at what ends at a time that nobody knows.
const AGAIN: Duration = Duration::from_secs(30);

/// When each gate is closed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gates {
    /// So long after the host, the bus or the remediator has started, nothing acts.
    pub grace: Duration,
    /// So long after the engine has started, nothing is deleted.
    pub engine_grace: Duration,
    /// Services are left alone above this share of the last minute in which everything stood still for want of memory
    /// or disk; 1 or more switches it off.
    pub stall: f64,
    /// Services are left alone above this load per processor (5 minutes).
    pub load: f64,
    /// Whether a running package manager closes them.
    pub package_manager: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5 * 60),
            engine_grace: Duration::from_secs(15 * 60),
            stall: 0.8,
            load: 10.0,
            package_manager: true,
        }
    }
}

/// What was seen of the host. What could not be seen is left out, and closes nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    /// For how long the host has been up.
    pub up: Option<Duration>,
    /// For how long this process has been.
    pub running: Option<Duration>,
    /// For how long the message bus has been.
    pub bus: Option<Duration>,
    /// For how long the engine has been.
    pub engine: Option<Duration>,
    /// systemd's own word: running, degraded, starting, stopping …
    pub system_state: Option<String>,
    /// The lock file that a package manager holds.
    pub package_lock: Option<String>,
    /// Share of the last minute in which every task waited for memory (PSI, full).
    pub memory_stall: Option<f64>,
    /// Share of the last minute in which every task waited for disks (PSI, full).
    pub io_stall: Option<f64>,
    /// Load of the last 5 minutes, per processor.
    pub load: Option<f64>,
}

impl Gates {
    /// Whether what was seen lets an action of this class begin.
    ///
    /// # Errors
    /// With the first gate that is closed.
    pub fn admit(&self, class: Class, seen: &Conditions) -> Result<(), Refusal> {
        if class <= Class::S1 {
            return Ok(());
        }
        let closed = self
            .state(seen)
            .or_else(|| self.young(class, seen))
            .or_else(|| self.packages(seen))
            .or_else(|| if class == Class::S2 { self.pressure(seen) } else { None });
        closed.map_or(Ok(()), Err)
    }

    fn state(&self, seen: &Conditions) -> Option<Refusal> {
        let state = seen.system_state.as_deref()?;
        // A host whose start never ends, because of one job that hangs, is no longer starting after a while.
        let young = seen.up.is_none_or(|up| up < self.grace * 3);
        let moving = match state {
            "initializing" | "starting" => young,
            "stopping" => true,
            _ => false,
        } && !self.grace.is_zero();
        moving.then(|| refusal(Reason::SystemState, format!("systemd is {state}"), AGAIN))
    }

    fn young(&self, class: Class, seen: &Conditions) -> Option<Refusal> {
        let deletes = class >= Class::D1;
        let ages = [
            (Reason::Grace, "the host has", seen.up, self.grace),
            (Reason::Grace, "the remediator has", seen.running, self.grace),
            (Reason::BusGrace, "the message bus has", seen.bus, self.grace),
            (Reason::EngineGrace, "the engine has", seen.engine.filter(|_| deletes), self.engine_grace),
        ];
        let young = ages.into_iter().filter_map(|(reason, what, age, grace)| {
            let age = age.filter(|age| *age < grace)?;
            let detail =
                format!("{what} been up for {} s, the grace is {} s", age.as_secs(), grace.as_secs());
            Some(refusal(reason, detail, grace - age))
        });
        young.max_by_key(|refusal| refusal.wait)
    }

    fn packages(&self, seen: &Conditions) -> Option<Refusal> {
        let lock = seen.package_lock.as_ref().filter(|_| self.package_manager)?;
        Some(refusal(Reason::PackageManager, format!("a package manager is at work: it holds {lock}"), AGAIN))
    }

    fn pressure(&self, seen: &Conditions) -> Option<Refusal> {
        let shares = [("memory", seen.memory_stall, self.stall), ("disks", seen.io_stall, self.stall)];
        let stalled = shares.into_iter().find_map(|(what, share, most)| {
            let share = share.filter(|share| *share > most)?;
            Some(format!("everything waited for {what} in {:.0} % of the last minute", share * 100.0))
        });
        let loaded = || {
            let load = seen.load.filter(|load| *load > self.load)?;
            Some(format!("the load is {load:.1} per processor"))
        };
        let detail = stalled.or_else(loaded)?;
        Some(refusal(Reason::Pressure, format!("{detail}: a restart would hit the wrong cause"), AGAIN))
    }
}

fn refusal(reason: Reason, detail: String, wait: Duration) -> Refusal {
    Refusal { reason, scope: "host", detail, wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(count: u64) -> Option<Duration> {
        Some(Duration::from_secs(60 * count))
    }

    fn closed(class: Class, seen: &Conditions) -> Option<(Reason, u64)> {
        Gates::default().admit(class, seen).err().map(|refusal| (refusal.reason, refusal.wait.as_secs()))
    }

    #[test]
    fn what_is_not_known_closes_nothing() {
        for class in Class::ALL {
            assert_eq!(closed(class, &Conditions::default()), None);
        }
    }

    #[test]
    fn what_has_just_started_is_left_alone_for_its_grace() {
        let up = |count| Conditions { up: minutes(count), ..Conditions::default() };
        assert_eq!(closed(Class::S2, &up(4)), Some((Reason::Grace, 60)));
        assert_eq!(closed(Class::D1, &up(4)), Some((Reason::Grace, 60)));
        assert_eq!(closed(Class::S2, &up(5)), None);
        // Observing and clearing a state interrupt nothing.
        assert_eq!(closed(Class::S0, &up(0)), None);
        assert_eq!(closed(Class::S1, &up(0)), None);
        let engine = Conditions { engine: minutes(10), ..Conditions::default() };
        assert_eq!(closed(Class::S2, &engine), None);
        assert_eq!(closed(Class::D1, &engine), Some((Reason::EngineGrace, 300)));
        // The longest of several.
        let both =
            Conditions { up: minutes(4), running: minutes(1), bus: minutes(2), ..Conditions::default() };
        assert_eq!(closed(Class::S2, &both), Some((Reason::Grace, 240)));
    }

    #[test]
    fn a_host_on_its_way_up_or_down_and_one_that_installs_packages_is_left_alone() {
        for (state, expected) in
            [("starting", true), ("stopping", true), ("running", false), ("degraded", false)]
        {
            let seen = Conditions { system_state: Some(state.to_owned()), ..Conditions::default() };
            let reason = closed(Class::S2, &seen).map(|(reason, _)| reason);
            assert_eq!(reason, expected.then_some(Reason::SystemState), "{state}");
        }
        // One job that hangs must not keep a host unrepaired for ever.
        let stuck = Conditions {
            system_state: Some("starting".to_owned()),
            up: minutes(15),
            ..Conditions::default()
        };
        assert_eq!(closed(Class::S2, &stuck), None);
        let seen =
            Conditions { package_lock: Some("/var/lib/dpkg/lock".to_owned()), ..Conditions::default() };
        assert_eq!(closed(Class::D2, &seen), Some((Reason::PackageManager, 30)));
    }

    #[test]
    fn pressure_protects_services_and_does_not_keep_a_full_disk_full() {
        let stalled = Conditions { io_stall: Some(0.9), ..Conditions::default() };
        assert_eq!(closed(Class::S2, &stalled), Some((Reason::Pressure, 30)));
        assert_eq!(closed(Class::D1, &stalled), None);
        let loaded = Conditions { load: Some(10.5), ..Conditions::default() };
        assert_eq!(closed(Class::S2, &loaded), Some((Reason::Pressure, 30)));
        assert_eq!(closed(Class::S2, &Conditions { load: Some(9.5), ..Conditions::default() }), None);
    }
}
