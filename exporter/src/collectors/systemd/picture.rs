//! The picture of systemd's units that is kept between looks, and what announcements and answers make of it. Nothing
//! here asks.
//!
//! What an announcement says becomes the picture at once; what it leaves open becomes a [`Doubt`], to be asked about. An
//! answer counts only when nothing was announced of its unit while the question was under way.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use evenkeel_host::systemd::{Changed, Details, Effect, Mark, Signal, SocketCounters, Unit, UnitPath};
use tokio::time::Instant;

use super::selection::Role;

/// Announcements are counted over this time.
const WINDOW: Duration = Duration::from_secs(5);

/// More than 200 announcements a second cost more than a list at each look.
const MOST_IN_WINDOW: u32 = 1000;

/// How long it must be quiet before announcements are believed again.
const QUIET: Duration = Duration::from_secs(60);

/// What is known of the units in systemd's memory.
#[derive(Debug, Default)]
pub(super) struct Picture {
    units: HashMap<UnitPath, Known>,
    /// Counts announcements.
    clock: u64,
    /// Which connection's announcements count.
    listening: u64,
    /// Counts changes of what is published.
    version: u64,
    /// Counts how often systemd has read all unit files, as far as it is known.
    reloads: u64,
    /// Only the list says which units there are.
    list_is_due: bool,
    /// systemd is removing and adding every unit.
    is_reloading: bool,
    /// The roles are those of the units that there are.
    has_roles: bool,
    /// Nothing is in doubt.
    is_settled: bool,
    /// Units that were removed since the list is being read.
    removed: Option<HashSet<UnitPath>>,
    rush: Rush,
}

/// What is known of one unit.
#[derive(Debug)]
pub(super) struct Known {
    /// As in the list.
    pub(super) unit: Arc<Unit>,
    /// Whether and how it is published.
    pub(super) role: Option<Role>,
    /// What the list does not tell; only of published units, `None` where nobody has asked or the unit was gone.
    pub(super) details: Option<Arc<Details>>,
    /// Its file, until the files are read anew.
    pub(super) file: Option<String>,
    /// What it pulls in, of local targets.
    pub(super) pulled_in: Option<Vec<String>>,
    /// Its control group; empty for none.
    pub(super) control_group: Option<String>,
    /// Of sockets: whether it counts connections, the counters, and when they were read.
    pub(super) counters: Option<(bool, SocketCounters, Instant)>,
    doubt: Doubt,
    /// The last announcement about it.
    touched: u64,
    /// When it was last found to be as described.
    proved: Instant,
}

/// What is to be asked of a unit before it is published, each with what comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// Nothing.
    None,
    /// Whether its details still hold.
    Proof,
    /// Its details.
    Details,
    /// Its states.
    States,
}

/// What a question about a unit has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// It is as it was believed to be, or was announced to be otherwise meanwhile.
    Same,
    /// Its restart counter was set back, which systemd does not announce of a service that runs.
    Reset,
    /// It is otherwise.
    Different,
}

/// Whether announcements come faster than it is worth to follow them.
#[derive(Debug, Default)]
struct Rush {
    /// The window that is counted now.
    since: Option<Instant>,
    count: u32,
    until: Option<Instant>,
}

impl Picture {
    /// Believes nothing any more, and from here on only the announcements that are taken with the number returned.
    pub(super) fn begin(&mut self) -> u64 {
        self.listening += 1;
        self.is_reloading = false;
        self.begin_anew();
        for known in self.units.values_mut() {
            known.doubt(Doubt::Proof);
        }
        self.listening
    }

    /// After systemd has read all files: there may be other units, with other files. What became of those that stay it
    /// keeps, stamps and counters too, and it does nothing else meanwhile; the list shows which did not stay as they were.
    fn begin_anew(&mut self) {
        self.reloads += 1;
        self.list_is_due = true;
        (self.has_roles, self.is_settled) = (false, false);
        for known in self.units.values_mut() {
            // When a timer will run next it works out anew.
            if known.details.as_ref().is_some_and(|details| details.timer.is_some()) {
                known.doubt(Doubt::Details);
            }
            (known.file, known.pulled_in, known.control_group) = (None, None, None);
        }
    }

    /// Takes an announcement.
    pub(super) fn take(&mut self, listening: u64, signal: Signal, now: Instant) {
        if listening != self.listening {
            return;
        }
        self.clock += 1;
        match signal {
            Signal::Reloading(true) => self.is_reloading = true,
            Signal::Reloading(false) => {
                self.is_reloading = false;
                self.begin_anew();
            }
            // It is about every unit, and no unit has changed.
            _ if self.is_reloading => {}
            Signal::New { name, path } => {
                self.rush.count(now);
                self.add(name, path, now);
            }
            Signal::Removed { path } => {
                self.rush.count(now);
                let role = self.units.remove(&path).and_then(|known| known.role);
                if let Some(removed) = &mut self.removed {
                    removed.insert(path);
                }
                // A watched one rests now.
                (self.has_roles, self.is_settled) = (false, false);
                self.version += u64::from(role.is_some());
            }
            Signal::Changed(changed) => {
                self.rush.count(now);
                self.change(&changed, now);
            }
        }
    }

    fn add(&mut self, name: String, path: UnitPath, now: Instant) {
        let unread = Unit {
            name,
            load_state: String::new(),
            active_state: String::new(),
            sub_state: String::new(),
            job_id: 0,
            path: path.clone(),
        };
        let known = self.units.entry(path).or_insert_with(|| Known::new(unread, now));
        known.doubt(Doubt::States);
        known.touched = self.clock;
        self.has_roles = false;
        self.is_settled = false;
    }

    fn change(&mut self, changed: &Changed, now: Instant) {
        let is_rush = self.rush.is_on(now);
        let Some(known) = self.units.get_mut(changed.path()) else {
            self.list_is_due = true;
            return;
        };
        known.touched = self.clock;
        let effect = if is_rush { Effect::Unclear } else { known.apply(changed) };
        match effect {
            Effect::Nothing => {}
            Effect::Changed => self.version += u64::from(known.role.is_some()),
            Effect::Unclear => known.doubt(Doubt::States),
        }
        self.is_settled &= effect == Effect::Nothing;
    }

    /// Whether announcements alone do not say which units there are and in which states.
    pub(super) fn is_blind(&self, now: Instant) -> bool {
        self.is_reloading || self.rush.is_on(now)
    }

    /// Whether the list is to be read.
    pub(super) fn list_is_due(&self) -> bool {
        self.list_is_due
    }

    /// The list is being read. What is announced from here on may be newer than what it says.
    pub(super) fn begin_list(&mut self) -> u64 {
        self.list_is_due = false;
        self.removed = Some(HashSet::new());
        self.clock
    }

    /// Takes the list that was asked for at `since`, and says how many units it shows otherwise than they were believed
    /// to be.
    pub(super) fn take_list(&mut self, list: Vec<Unit>, since: u64, now: Instant) -> u64 {
        let removed = self.removed.take().unwrap_or_default();
        let (mut different, mut listed) = (0, HashSet::with_capacity(list.len()));
        for unit in list {
            listed.insert(unit.path.clone());
            match self.units.get_mut(&unit.path) {
                Some(known) if known.touched > since => {}
                Some(known) => {
                    let was_believed = known.doubt != Doubt::States;
                    different += u64::from(known.take_states(unit) && was_believed);
                }
                None if removed.contains(&unit.path) => {}
                None => {
                    different += 1;
                    self.units.insert(unit.path.clone(), Known::new(unit, now));
                }
            }
        }
        self.units.retain(|path, known| {
            let stays = known.touched > since || listed.contains(path);
            different += u64::from(!stays && known.doubt != Doubt::States);
            stays
        });
        (self.has_roles, self.is_settled) = (false, false);
        self.version += u64::from(different > 0);
        different
    }

    /// Units of which not even the states are known.
    pub(super) fn unread(&self) -> Vec<String> {
        let unread = self.units.values().filter(|known| known.doubt == Doubt::States);
        unread.map(|known| known.unit.name.clone()).collect()
    }

    /// Takes the states of the units that were asked for by name at `since`. One that did not come back is gone.
    pub(super) fn take_states(&mut self, asked: &[String], answer: Vec<Unit>, since: u64) {
        let mut answer: HashMap<String, Unit> =
            answer.into_iter().map(|unit| (unit.name.clone(), unit)).collect();
        let asked: HashSet<&String> = asked.iter().collect();
        self.units.retain(|_, known| {
            if known.doubt != Doubt::States || known.touched > since || !asked.contains(&known.unit.name) {
                return true;
            }
            let Some(unit) = answer.remove(&known.unit.name) else { return false };
            known.take_states(unit);
            true
        });
        self.has_roles = false;
        self.version += 1;
    }

    /// Every unit in memory.
    pub(super) fn units(&self) -> impl Iterator<Item = &Known> {
        self.units.values()
    }

    /// One of them.
    pub(super) fn get_mut(&mut self, path: &UnitPath) -> Option<&mut Known> {
        self.units.get_mut(path)
    }

    /// Whether there may be units whose role nobody has found yet.
    pub(super) fn has_roles(&self) -> bool {
        self.has_roles
    }

    /// Gives each unit its role.
    pub(super) fn assign(&mut self, role: impl Fn(&Known) -> Option<Role>) {
        for known in self.units.values_mut() {
            let role = role(known);
            if known.role != role {
                self.version += 1;
                self.is_settled = false;
                known.role = role;
            }
        }
        self.has_roles = true;
    }

    /// Published units that are to be asked about, and what.
    pub(super) fn doubts(&self) -> Vec<(Arc<Unit>, Doubt)> {
        let doubted = self.units.values().filter(|known| known.is_to_be_read());
        doubted.map(|known| (Arc::clone(&known.unit), known.doubt)).collect()
    }

    /// Takes the details of a unit, asked for at `since`; `None` for one that is gone or cannot be read.
    pub(super) fn take_details(&mut self, unit: &Unit, details: Option<Details>, since: u64, now: Instant) {
        let Some(known) = self.units.get_mut(&unit.path) else { return };
        if known.touched > since {
            return;
        }
        let details = details.map(Arc::new);
        self.version += u64::from(known.details != details);
        (known.details, known.doubt, known.proved) = (details, Doubt::None, now);
    }

    /// Compares a unit's mark, asked for at `since`, with what is known of it.
    pub(super) fn prove(&mut self, unit: &Unit, mark: Mark, since: u64, now: Instant) -> Proof {
        let Some(known) = self.units.get_mut(&unit.path).filter(|known| known.touched <= since) else {
            return Proof::Same;
        };
        known.proved = now;
        let believed = known.details.as_deref().map(Details::mark);
        if believed == Some(mark) {
            if known.doubt == Doubt::Proof {
                known.doubt = Doubt::None;
            }
            return Proof::Same;
        }
        known.doubt(Doubt::Details);
        self.is_settled = false;
        let is_reset = believed.is_some_and(|believed| {
            mark.state_change == believed.state_change && mark.n_restarts < believed.n_restarts
        });
        if is_reset { Proof::Reset } else { Proof::Different }
    }

    /// Published units to prove: `most` that have restarted, because nothing announces when their counters are set back,
    /// and of the others one in `share`, not fewer than `least` or more than `most`. The longest unproved first.
    pub(super) fn sample(&self, share: usize, least: usize, most: usize) -> Vec<Arc<Unit>> {
        let read = self.units.values().filter(|known| known.is_read());
        let (mut restarted, mut others): (Vec<&Known>, Vec<&Known>) =
            read.partition(|known| known.has_restarted());
        let some = (others.len() / share).clamp(least, most);
        for (known, wanted) in [(&mut restarted, most), (&mut others, some)] {
            known.sort_unstable_by_key(|known| known.proved);
            known.truncate(wanted);
        }
        restarted.into_iter().chain(others).map(|known| Arc::clone(&known.unit)).collect()
    }

    /// Finds out whether anything is still in doubt; for `has_groups`, also where watched units have their processes.
    pub(super) fn settle(&mut self, has_groups: bool) -> bool {
        if !self.is_settled {
            let is_open = |known: &Known| {
                known.doubt == Doubt::States
                    || known.is_to_be_read()
                    || (has_groups && known.lacks_control_group())
            };
            self.is_settled = self.has_roles && !self.units.values().any(is_open);
        }
        self.is_settled
    }

    /// Counts announcements.
    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// Is another one after systemd has read all unit files anew.
    pub(super) fn reloads(&self) -> u64 {
        self.reloads
    }

    /// Equal versions, equal series.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Something that no announcement tells is different now.
    pub(super) fn was_changed(&mut self) {
        self.version += 1;
    }
}

impl Known {
    fn new(unit: Unit, now: Instant) -> Self {
        Self {
            unit: Arc::new(unit),
            role: None,
            details: None,
            file: None,
            pulled_in: None,
            control_group: None,
            counters: None,
            doubt: Doubt::Details,
            touched: 0,
            proved: now,
        }
    }

    fn doubt(&mut self, doubt: Doubt) {
        self.doubt = self.doubt.max(doubt);
    }

    fn apply(&mut self, changed: &Changed) -> Effect {
        // A file that was missing may be there now, and this alone is not announced.
        if self.unit.load_state != "loaded" || self.doubt == Doubt::States {
            return Effect::Unclear;
        }
        let was_active = self.unit.active_state.clone();
        // A signal that brings some of it up to date would make the rest look proved.
        let details = self.details.as_mut().filter(|_| self.doubt == Doubt::None);
        let effect = changed.apply(Arc::make_mut(&mut self.unit), details.map(Arc::make_mut));
        if self.doubt != Doubt::None {
            self.doubt(Doubt::Details);
        }
        if self.unit.active_state != was_active {
            self.forget_missing_group();
        }
        effect
    }

    /// Takes a line of the list; true when it is otherwise than what was known.
    fn take_states(&mut self, unit: Unit) -> bool {
        let known = &self.unit;
        let is_same = (&known.load_state, &known.active_state, &known.sub_state)
            == (&unit.load_state, &unit.active_state, &unit.sub_state);
        if known.load_state != unit.load_state {
            self.file = None;
        }
        if known.active_state != unit.active_state {
            self.forget_missing_group();
        }
        if !is_same || self.doubt == Doubt::States {
            self.doubt = Doubt::Details;
        }
        self.unit = Arc::new(unit);
        !is_same
    }

    /// One that has none while it rests gets one when it starts.
    fn forget_missing_group(&mut self) {
        if self.control_group.as_deref() == Some("") {
            self.control_group = None;
        }
    }

    /// Whether systemd has said anything about it yet.
    pub(super) fn is_known(&self) -> bool {
        !self.unit.load_state.is_empty()
    }

    fn is_to_be_read(&self) -> bool {
        self.doubt != Doubt::None && self.role.is_some() && self.has_details()
    }

    fn has_restarted(&self) -> bool {
        let service = self.details.as_ref().and_then(|details| details.service.as_ref());
        service.is_some_and(|service| service.n_restarts > 0)
    }

    fn is_read(&self) -> bool {
        self.doubt == Doubt::None && self.role.is_some() && self.details.is_some()
    }

    /// Whether it is watched and may have processes now.
    pub(super) fn has_processes(&self) -> bool {
        let unit = &self.unit;
        let rests = matches!(unit.active_state.as_str(), "inactive" | "failed") || unit.sub_state == "exited";
        let is_watched = self.role.is_some_and(|role| role.is_watched);
        is_watched && !rests && matches!(unit.kind(), "service" | "scope" | "slice")
    }

    /// Whether it takes a question to know where its processes are.
    pub(super) fn lacks_control_group(&self) -> bool {
        self.control_group.is_none() && self.has_processes()
    }

    /// Whether there is more to know than the list tells.
    pub(super) fn has_details(&self) -> bool {
        self.unit.load_state == "loaded" || self.unit.active_state != "inactive"
    }
}

impl Rush {
    fn count(&mut self, now: Instant) {
        match self.since {
            Some(since) if now.duration_since(since) < WINDOW => self.count += 1,
            _ => (self.since, self.count) = (Some(now), 1),
        }
        if self.count > MOST_IN_WINDOW {
            self.until = Some(now + QUIET);
        }
    }

    fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
