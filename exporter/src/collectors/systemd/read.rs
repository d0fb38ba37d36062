//! Asks systemd for what a [`Picture`] needs, and remembers what need not be asked again.
//!
//! The list is read at each look. Details are read again for units whose [`Mark`] changed; the mark is one or two small
//! questions, the details up to seven. What is remembered outlives a look that ran into its deadline, so that on a slow
//! host each look gets further.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicUsize, atomic::Ordering},
};

use evenkeel_host::systemd::{Details, Error, Mark, Systemd, Unit, machine_id, unit_files};
use futures_util::{Stream, StreamExt, join, stream};
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{
    picture::{Files, Picture, Seen, Selection, is_local},
    resting::Resting,
};

/// Units asked about at once.
const AT_ONCE: usize = 8;

/// Details read again at each look although nothing says that they changed, those first that were read longest ago: what
/// is remembered is never trusted for ever.
const PROVED_PER_LOOK: usize = 16;

/// Reads pictures.
#[derive(Debug)]
pub(super) struct Reader {
    systemd: Systemd,
    root: PathBuf,
    memory: Mutex<Memory>,
    /// How many units' details could not be read at the last look: logged when it changes.
    unreadable: AtomicUsize,
}

#[derive(Debug, Default)]
struct Memory {
    /// Counts looks.
    now: u64,
    details: HashMap<String, Known>,
    /// When systemd had read the unit files that the next two speak of.
    units_loaded: u64,
    paths: BTreeMap<String, String>,
    pulled_in: BTreeMap<String, Vec<String>>,
    resting: Resting,
}

#[derive(Debug, Clone)]
struct Known {
    mark: Mark,
    details: Details,
    /// The look that read them.
    read: u64,
}

impl Reader {
    /// `root` is where the host's files are.
    pub(super) fn new(systemd: Systemd, root: &Path) -> Self {
        Self { systemd, root: root.to_path_buf(), memory: Mutex::default(), unreadable: AtomicUsize::new(0) }
    }

    /// One look.
    pub(super) async fn picture(&self, selection: &Selection) -> Result<Picture, Error> {
        let (units, manager, loaded) =
            join!(self.systemd.units(), self.systemd.manager(), self.systemd.units_loaded());
        let (units, manager, loaded) = (units?, manager?, loaded?);
        let mut counts = BTreeMap::new();
        for unit in &units {
            *counts.entry(unit.active_state.clone()).or_insert(0) += 1;
        }
        self.begin(loaded);
        let asked_for = self.asked_for(&units, selection).await?;
        self.forget_all_but(&units, &asked_for);
        let files = if selection.is_by_file() { self.files(&units).await? } else { Files::default() };
        let mut seen = selection.choose(units, asked_for, &files);
        self.add_details(&mut seen).await?;
        Ok(Picture { manager, counts, units: seen })
    }

    /// Counts the look, and forgets what the files said when they have been read again.
    fn begin(&self, loaded: u64) {
        let mut memory = self.memory();
        memory.now += 1;
        if memory.units_loaded != loaded {
            memory.units_loaded = loaded;
            memory.paths.clear();
            memory.pulled_in.clear();
            memory.resting = Resting::default();
        }
    }

    /// Forgets units that are gone.
    fn forget_all_but(&self, units: &[Unit], asked_for: &[Unit]) {
        let names: BTreeSet<&str> = units.iter().chain(asked_for).map(|unit| unit.name.as_str()).collect();
        // A start finds a new file without reading all of them again.
        let missing = units.iter().filter(|unit| unit.load_state == "not-found");
        let missing: BTreeSet<&str> = missing.map(|unit| unit.name.as_str()).collect();
        let mut memory = self.memory();
        memory.details.retain(|name, _| names.contains(name.as_str()));
        memory.paths.retain(|name, _| names.contains(name.as_str()) && !missing.contains(name.as_str()));
        memory.pulled_in.retain(|name, _| names.contains(name.as_str()));
    }

    /// The watched units that the list lacks.
    async fn asked_for(&self, listed: &[Unit], selection: &Selection) -> Result<Vec<Unit>, Error> {
        let listed: BTreeSet<&str> = listed.iter().map(|unit| unit.name.as_str()).collect();
        if !self.memory().resting.is_fresh() {
            let files = self.unit_files(selection).await?;
            let candidates = selection.candidates(&files);
            let mut memory = self.memory();
            // Asking for the file of a unit that rests would load it once more.
            let paths = candidates
                .iter()
                .filter_map(|name| Some((name.clone(), files.get(name)?.to_str()?.to_owned())));
            memory.paths.extend(paths);
            memory.resting.refresh(candidates);
        }
        let unknown = self.memory().resting.unknown(&listed);
        let mut units = Vec::new();
        if !unknown.is_empty() {
            let answer = match self.systemd.units_by_names(&unknown).await {
                Err(error) if concerns_one_unit(&error) => {
                    debug!(units = ?unknown, %error, "cannot ask for watched units by name");
                    Vec::new()
                }
                answer => answer?,
            };
            units = self.memory().resting.learn(unknown, answer);
        }
        units.extend(self.memory().resting.units(&listed));
        Ok(units)
    }

    /// The host's unit files, where they matter and the bus leads to the systemd of the host whose files we see.
    async fn unit_files(&self, selection: &Selection) -> Result<BTreeMap<String, PathBuf>, Error> {
        if !selection.needs_files() {
            return Ok(BTreeMap::new());
        }
        let asked = match self.systemd.machine_id().await {
            Err(error) if concerns_one_unit(&error) => None,
            asked => Some(asked?),
        };
        let root = self.root.clone();
        let read = move || {
            let is_here = machine_id(&root).ok().is_some_and(|here| asked == Some(here));
            if is_here { unit_files(&root) } else { BTreeMap::new() }
        };
        // Ends early only when the process does.
        Ok(spawn_blocking(read).await.unwrap_or_default())
    }

    /// The unit files, and what the local targets pull in.
    async fn files(&self, listed: &[Unit]) -> Result<Files, Error> {
        // Devices and scopes have no files of their own, what does not exist has none yet.
        let unknown = self.select(listed, |memory, unit| {
            let has_file = unit.load_state != "not-found" && !matches!(unit.kind(), "device" | "scope");
            has_file && !memory.paths.contains_key(&unit.name)
        });
        all_but_odd(stream::iter(unknown).map(|unit| self.learn_path(unit))).await?;
        let unknown = self.select(listed, |memory, unit| {
            let is_local = memory.paths.get(&unit.name).is_some_and(|path| is_local(path));
            is_local && unit.kind() == "target" && !memory.pulled_in.contains_key(&unit.name)
        });
        all_but_odd(stream::iter(unknown).map(|unit| self.learn_pulled_in(unit))).await?;
        let memory = self.memory();
        Ok(Files { paths: memory.paths.clone(), pulled_in: memory.pulled_in.clone() })
    }

    fn select(&self, units: &[Unit], choose: impl Fn(&Memory, &Unit) -> bool) -> Vec<Unit> {
        let memory = self.memory();
        units.iter().filter(|unit| choose(&memory, unit)).cloned().collect()
    }

    async fn learn_path(&self, unit: Unit) -> Result<(), Error> {
        let path = self.systemd.fragment_path(&unit).await?;
        self.memory().paths.insert(unit.name, path);
        Ok(())
    }

    async fn learn_pulled_in(&self, unit: Unit) -> Result<(), Error> {
        let names = self.systemd.pulled_in(&unit).await?;
        self.memory().pulled_in.insert(unit.name, names);
        Ok(())
    }

    /// Fills in the details.
    async fn add_details(&self, seen: &mut [Seen]) -> Result<(), Error> {
        let (now, due) = self.due(seen);
        let wanted = seen.iter().enumerate().filter(|(_, seen)| seen.has_details());
        let wanted: Vec<(usize, Unit)> = wanted.map(|(index, seen)| (index, seen.unit.clone())).collect();
        let mut answers = stream::iter(wanted)
            .map(|(index, unit)| {
                let is_due = due.contains(&unit.name);
                async move { (index, self.details(&unit, now, is_due).await) }
            })
            .buffer_unordered(AT_ONCE);
        let mut unreadable = 0;
        while let Some((index, answer)) = answers.next().await {
            match answer {
                Ok(details) => seen[index].details = Some(details),
                // A transient unit that ended since the list was read.
                Err(error) if error.is_no_such_unit() => {}
                Err(error) if concerns_one_unit(&error) => {
                    unreadable += 1;
                    if self.unreadable.load(Ordering::Relaxed) == 0 {
                        warn!(unit = seen[index].unit.name, %error, "cannot read a unit's details");
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.unreadable.store(unreadable, Ordering::Relaxed);
        Ok(())
    }

    /// This look's number, and the units whose details are read again in any case.
    fn due(&self, seen: &[Seen]) -> (u64, BTreeSet<String>) {
        let memory = self.memory();
        let known = |seen: &Seen| {
            memory.details.get(&seen.unit.name).map(|known| (known.read, seen.unit.name.clone()))
        };
        let mut known: Vec<(u64, String)> = seen.iter().filter_map(known).collect();
        known.sort_unstable();
        (memory.now, known.into_iter().take(PROVED_PER_LOOK).map(|(_, name)| name).collect())
    }

    /// A unit's details, remembered ones where its mark says that they still hold.
    async fn details(&self, unit: &Unit, now: u64, is_due: bool) -> Result<Details, Error> {
        // The mark first: what changes while the details are being read makes the next mark differ.
        let mark = self.systemd.mark(unit).await?;
        let known = self.memory().details.get(&unit.name).cloned();
        if let Some(known) = known
            && known.mark == mark
            && !is_due
        {
            return Ok(known.details);
        }
        let details = self.systemd.details(unit).await?;
        let known = Known { mark, details: details.clone(), read: now };
        self.memory().details.insert(unit.name.clone(), known);
        Ok(details)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks about several units at once. What is wrong with one unit is no reason to lose the others.
async fn all_but_odd(
    questions: impl Stream<Item = impl Future<Output = Result<(), Error>>>,
) -> Result<(), Error> {
    let mut answers = pin!(questions.buffer_unordered(AT_ONCE));
    while let Some(answer) = answers.next().await {
        if let Err(error) = answer
            && !concerns_one_unit(&error)
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Whether the other units may be asked all the same.
fn concerns_one_unit(error: &Error) -> bool {
    matches!(error, Error::Refused { .. } | Error::Malformed { .. }) && !error.is_no_systemd()
}
