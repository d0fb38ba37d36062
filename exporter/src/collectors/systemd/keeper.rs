//! Keeps the picture true: asks systemd, at each look, what the announcements have left open, and publishes what came
//! out. On a host on which nothing changes a look is one question.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use evenkeel_host::{
    metrics::Block,
    systemd::{Error, Systemd, Unit, machine_id, unit_files},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{sync::Notify, task::spawn_blocking, time::Instant};
use tracing::{debug, warn};

use super::{
    causes::Causes,
    evidence::{Evidence, Units},
    families,
    groups::Groups,
    link::Link,
    picture::{Doubt, Known, Picture, Proof},
    press::Press,
    resting::Resting,
    selection::{Selection, is_local},
    unannounced::FileFacts,
};

/// Units asked about at once.
const AT_ONCE: usize = 8;

/// How often a look asks again about what changed while it asked. What then still changes is published as it was last
/// seen, and in doubt again at the next look.
const ROUNDS: usize = 3;

/// What the collector knows and how it is kept.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) systemd: Systemd,
    /// Where the host's files are.
    pub(super) root: PathBuf,
    pub(super) selection: Selection,
    pub(super) picture: Arc<Mutex<Picture>>,
    /// Whoever asks sits here: a look, or one step of what goes on behind the looks.
    pub(super) desk: tokio::sync::Mutex<Desk>,
    /// Why services fail.
    causes: Mutex<Causes>,
    /// Somebody has looked: for each of those who wait behind the looks one of their own.
    pub(super) looked: Notify,
    pub(super) looked_for_causes: Notify,
    /// Units that were otherwise than announced.
    pub(super) missed: AtomicU64,
    /// How many units' details could not be read at the last look: logged when it changes.
    unreadable: AtomicUsize,
}

/// What is needed to ask, and what announcements are not about.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) link: Option<Link>,
    version: String,
    /// How often the unit files had been read when the version and the resting units were asked for.
    reloads: Option<u64>,
    /// The bus leads to the systemd of the host whose files we see.
    pub(super) is_here: bool,
    pub(super) resting: Resting,
    /// What the files of watched units say.
    pub(super) files: FileFacts,
    groups: Groups,
    press: Press,
    units: Units,
}

impl Keeper {
    /// `root` is where the host's files are.
    pub(super) fn new(systemd: Systemd, root: PathBuf, selection: Selection) -> Self {
        let groups = Groups::under(&root);
        Self {
            systemd,
            root,
            selection,
            picture: Arc::default(),
            desk: tokio::sync::Mutex::new(Desk { groups, ..Desk::default() }),
            causes: Mutex::default(),
            looked: Notify::new(),
            looked_for_causes: Notify::new(),
            missed: AtomicU64::new(0),
            unreadable: AtomicUsize::new(0),
        }
    }

    /// One look: the metrics, and the units for whoever judges them.
    pub(super) async fn look(&self) -> Result<(Vec<Arc<Block>>, Evidence), Error> {
        let mut desk = self.desk.lock().await;
        let was_linked = desk.link.as_ref().is_some_and(Link::is_alive);
        let seen = match self.try_to_look(&mut desk).await {
            // The bus has come back, and nobody had noticed that it was gone.
            Err(error) if was_linked && error.reason() == "lost" => self.try_to_look(&mut desk).await?,
            answer => answer?,
        };
        self.looked.notify_one();
        self.looked_for_causes.notify_one();
        Ok(seen)
    }

    async fn try_to_look(&self, desk: &mut Desk) -> Result<(Vec<Arc<Block>>, Evidence), Error> {
        // Put back only by a look that came to its end: after one that failed or was given up, nothing is believed.
        let link = match desk.link.take().filter(Link::is_alive) {
            Some(link) => link,
            None => self.open_link(desk).await?,
        };
        let state = link.catch_up().await?;
        self.settle(desk, &link).await?;
        desk.link = Some(link);
        self.read_groups(desk).await;
        let units = desk.units.of(&self.picture(), desk.resting.shown());
        Ok((self.print(desk, &state), units))
    }

    /// Reads what the processes of watched units use.
    async fn read_groups(&self, desk: &mut Desk) {
        desk.groups.follow(&self.picture());
        let gone = desk.groups.read().await;
        let mut picture = self.picture();
        for path in gone {
            if let Some(known) = picture.get_mut(&path) {
                known.control_group = Some(String::new());
            }
        }
    }

    fn print(&self, desk: &mut Desk, state: &str) -> Vec<Arc<Block>> {
        let Desk { press, groups, resting, files, version, .. } = desk;
        let (general, units) = {
            // Held for the values only: the text takes longer, and announcements are waiting.
            let picture = self.picture();
            let mut general = families::general(&picture, state, version);
            general.extend(self.causes().families(&picture, Instant::now()));
            let units = press.needs_units(picture.version()).map(|clock_start| {
                (families::seen(&picture, resting.shown(), files), clock_start, picture.version())
            });
            (general, units)
        };
        if let Some((units, clock_start, version)) = units {
            press.print_units(&units, clock_start, version);
        }
        press.blocks([general, groups.families()].concat())
    }

    async fn open_link(&self, desk: &mut Desk) -> Result<Link, Error> {
        let link = Link::open(&self.systemd, &self.picture).await?;
        let asked = unless_it_concerns_one_unit(self.systemd.machine_id().await)?;
        let root = self.root.clone();
        // Ends early only when the process does.
        let here = spawn_blocking(move || machine_id(&root).ok()).await.unwrap_or_default();
        desk.is_here = here.is_some() && here == asked;
        Ok(link)
    }

    /// Asks until nothing is in doubt.
    async fn settle(&self, desk: &mut Desk, link: &Link) -> Result<(), Error> {
        let mut is_blind = self.picture().is_blind(Instant::now());
        for _ in 0..ROUNDS {
            if !is_blind && !self.picture().list_is_due() {
                break;
            }
            is_blind = false;
            self.read_list(link).await?;
        }
        let reloads = self.picture().reloads();
        if desk.reloads != Some(reloads) {
            desk.version = self.systemd.version().await?;
            desk.resting = Resting::default();
            desk.files.doubt();
            desk.reloads = Some(reloads);
        }
        for _ in 0..ROUNDS {
            if self.picture().settle(desk.is_here) && desk.resting.is_complete() {
                return Ok(());
            }
            self.read_states().await?;
            if !self.picture().has_roles() || !desk.resting.is_complete() {
                self.find_roles(desk).await?;
            }
            self.read_details(desk.is_here).await?;
        }
        Ok(())
    }

    /// Reads the list of all units, and what was announced meanwhile. Says how many were otherwise than believed.
    pub(super) async fn read_list(&self, link: &Link) -> Result<u64, Error> {
        let since = self.picture().begin_list();
        let list = self.systemd.units().await?;
        link.catch_up().await?;
        Ok(self.picture().take_list(list, since, Instant::now()))
    }

    /// Asks for the states of units that were loaded, or changed in a way that was not announced in words.
    async fn read_states(&self) -> Result<(), Error> {
        let (unread, since) = {
            let picture = self.picture();
            (picture.unread(), picture.clock())
        };
        if unread.is_empty() {
            return Ok(());
        }
        let answer = unless_it_concerns_one_unit(self.systemd.units_by_names(&unread).await)?;
        self.picture().take_states(&unread, answer.unwrap_or_default(), since);
        Ok(())
    }

    /// Finds out which units are published and watched.
    async fn find_roles(&self, desk: &mut Desk) -> Result<(), Error> {
        if self.selection.is_by_file() {
            self.read_files().await?;
        }
        if !desk.resting.is_begun() {
            self.find_resting(desk).await?;
        }
        let unknown = desk.resting.unknown(&self.picture());
        if !unknown.is_empty() {
            let answer = self.systemd.units_by_names(&unknown).await;
            let answer = unless_it_concerns_one_unit(answer)?.unwrap_or_default();
            desk.resting.learn(unknown, answer);
        }
        let mut picture = self.picture();
        let wanted: BTreeSet<String> =
            picture.units().filter_map(|known| known.pulled_in.as_ref()).flatten().cloned().collect();
        picture.assign(|known| self.selection.role(&known.unit, known.file.as_deref(), &wanted));
        if desk.resting.show(&picture, &self.selection) {
            picture.was_changed();
        }
        Ok(())
    }

    /// Puts together which watched units may rest.
    pub(super) async fn find_resting(&self, desk: &mut Desk) -> Result<(), Error> {
        let files = if self.selection.needs_files() && desk.is_here {
            let root = self.root.clone();
            spawn_blocking(move || unit_files(&root)).await.unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        let candidates = self.selection.candidates(&files);
        desk.resting.refresh(candidates, &files);
        Ok(())
    }

    /// The unit files, and what the local targets pull in.
    async fn read_files(&self) -> Result<(), Error> {
        // Devices and scopes have no files of their own, what does not exist has none yet.
        let unknown = self.select(|known| {
            let unit = &known.unit;
            let has_file = unit.load_state != "not-found" && !matches!(unit.kind(), "device" | "scope");
            has_file && known.is_known() && known.file.is_none()
        });
        all_but_odd(stream::iter(unknown).map(async |unit| {
            let file = self.systemd.fragment_path(&unit).await?;
            if let Some(known) = self.picture().get_mut(&unit.path) {
                known.file = Some(file);
            }
            Ok(())
        }))
        .await?;
        let unknown = self.select(|known| {
            let is_local = known.file.as_deref().is_some_and(is_local);
            is_local && known.unit.kind() == "target" && known.pulled_in.is_none()
        });
        all_but_odd(stream::iter(unknown).map(async |unit| {
            let names = self.systemd.pulled_in(&unit).await?;
            if let Some(known) = self.picture().get_mut(&unit.path) {
                known.pulled_in = Some(names);
            }
            Ok(())
        }))
        .await
    }

    /// Asks for the details that are in doubt, and where watched units keep their processes.
    async fn read_details(&self, is_here: bool) -> Result<(), Error> {
        let doubts = self.picture().doubts();
        let mut unreadable = 0;
        {
            let mut answers = pin!(
                stream::iter(doubts)
                    .map(|(unit, doubt)| self.read_one(unit, doubt))
                    .buffer_unordered(AT_ONCE)
            );
            while let Some((unit, answer)) = answers.next().await {
                match answer {
                    Err(error) if !concerns_one_unit(&error) => return Err(error),
                    Err(error) if !error.is_no_such_unit() => {
                        unreadable += 1;
                        if self.unreadable.load(Ordering::Relaxed) == 0 {
                            warn!(unit = unit.name, %error, "cannot read a unit's details");
                        }
                    }
                    // A transient unit that ended since it was announced is no trouble.
                    _ => {}
                }
            }
        }
        self.unreadable.store(unreadable, Ordering::Relaxed);
        if !is_here {
            return Ok(());
        }
        let unknown = self.select(Known::lacks_control_group);
        all_but_odd(stream::iter(unknown).map(async |unit| {
            let group = unless_it_concerns_one_unit(self.systemd.control_group(&unit).await)?;
            let mut picture = self.picture();
            if let Some(known) = picture.get_mut(&unit.path) {
                known.control_group = Some(group.unwrap_or_default());
                // The groups are found anew.
                picture.was_changed();
            }
            Ok(())
        }))
        .await
    }

    /// Clears one doubt, if that can be done.
    async fn read_one(&self, unit: Arc<Unit>, doubt: Doubt) -> (Arc<Unit>, Result<(), Error>) {
        let since = self.picture().clock();
        let answer = async {
            if doubt == Doubt::Proof {
                let mark = self.systemd.mark(&unit).await?;
                if self.picture().prove(&unit, mark, since, Instant::now()) == Proof::Same {
                    return Ok(());
                }
            }
            let details = self.systemd.details(&unit).await;
            let is_over = details.as_ref().err().is_none_or(concerns_one_unit);
            if is_over {
                let details = details.as_ref().ok().cloned();
                self.picture().take_details(&unit, details, since, Instant::now());
            }
            details.map(drop)
        }
        .await;
        (unit, answer)
    }

    fn select(&self, choose: impl Fn(&Known) -> bool) -> Vec<Arc<Unit>> {
        let picture = self.picture();
        picture.units().filter(|known| choose(known)).map(|known| Arc::clone(&known.unit)).collect()
    }

    pub(super) fn causes(&self) -> MutexGuard<'_, Causes> {
        // As for the picture. Taken after it where both are.
        self.causes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn picture(&self) -> MutexGuard<'_, Picture> {
        // Nothing is left half done under this lock, whoever panicked while holding it.
        self.picture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks about several units at once. What is wrong with one unit is no reason to lose the others.
pub(super) async fn all_but_odd(
    questions: impl Stream<Item = impl Future<Output = Result<(), Error>>>,
) -> Result<(), Error> {
    let mut answers = pin!(questions.buffer_unordered(AT_ONCE));
    while let Some(answer) = answers.next().await {
        unless_it_concerns_one_unit(answer)?;
    }
    Ok(())
}

/// The answer, or nothing where the others may be asked all the same.
fn unless_it_concerns_one_unit<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error) if concerns_one_unit(&error) => {
            debug!(%error, "systemd would not answer");
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

/// Whether the other units may be asked all the same.
fn concerns_one_unit(error: &Error) -> bool {
    matches!(error, Error::Refused { .. } | Error::Malformed { .. }) && !error.is_no_systemd()
}
