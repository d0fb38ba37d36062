//! The thread that writes: takes the changes that wait, commits them together, and answers. It holds the only writing
//! connection, and gets itself another one when the disk or the file under it fails.

use std::{
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::{mpsc, watch};

use super::{
    BATCH, Change, Done, Error, bound,
    place::{self, Known, Locks, Places, Standing, Trouble},
    statement::execute,
    timeline,
};
use crate::{clock::Clock, complaint::Complaint};

/// Between two looks at whether more has come.
const GLANCE: Duration = Duration::from_micros(50);

pub(super) struct Writer {
    /// None while it can be opened nowhere.
    connection: Option<Connection>,
    standing: watch::Sender<Standing>,
    places: Places,
    locks: Locks,
    clock: Clock,
}

impl Writer {
    /// Opens the state.
    pub(super) fn open(places: Places, clock: Clock) -> Result<Self, Error> {
        let mut locks = Locks::default();
        let (connection, standing) = place::open(&places, &mut locks, Known::Nothing, &clock.now())?;
        let standing = watch::Sender::new(standing);
        Ok(Self { connection: Some(connection), standing, places, locks, clock })
    }

    /// Where the state lies, as it changes.
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Writes until nobody can ask any more.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Change>) {
        let mut company = Company::default();
        while let Some(first) = queue.blocking_recv() {
            company.gather(&queue);
            if self.connection.is_none() {
                self.reopen(Known::Nothing);
            }
            let committed = commit(self.connection.as_ref(), first, &mut queue);
            if let Some((trouble, why)) = &committed.trouble {
                self.mend(*trouble, why);
            }
            company = committed.company;
        }
    }

    /// Sees to it that the next change finds a database that can be written.
    fn mend(&mut self, trouble: Trouble, why: &str) {
        let degraded = self.standing.borrow().degraded.is_some();
        match trouble {
            Trouble::Damaged if degraded => self.reopen(Known::FallbackDamaged(why)),
            Trouble::Damaged => self.reopen(Known::Damaged(why)),
            // The disk may have plenty. What is new waits until there is room again.
            Trouble::Full if self.connection.as_ref().is_some_and(forgets_at_its_bound) => {}
            Trouble::Full if !degraded && place::give_up_ballast(&self.places.dir) => {}
            // Where it fell back to fails as well: that is tried again with each change.
            Trouble::Full | Trouble::Failing if degraded => {}
            Trouble::Full | Trouble::Failing => self.reopen(Known::Failing(why)),
        }
    }

    fn reopen(&mut self, known: Known<'_>) {
        // The old one must not write any more when its file is moved.
        self.connection = None;
        match place::open(&self.places, &mut self.locks, known, &self.clock.now()) {
            Ok((connection, standing)) => {
                self.connection = Some(connection);
                self.standing.send_replace(standing);
            }
            Err(error) => {
                static NOWHERE: Complaint = Complaint::new();
                if let Some(untold) = NOWHERE.is_due() {
                    tracing::error!(%error, untold, "the state cannot be opened anywhere");
                }
            }
        }
    }
}

/// Whether the database is as large as it may be; then some of the oldest is forgotten.
fn forgets_at_its_bound(db: &Connection) -> bool {
    if !bound::is_reached(db) {
        return false;
    }
    match timeline::forget_idle(db) {
        Ok(forgotten) => {
            tracing::warn!(forgotten, "the state is as large as it may be: the oldest of it is forgotten");
        }
        Err(error) => tracing::error!(%error, "the state is as large as it may be"),
    }
    true
}

/// What the last commit was like. Whoever was answered together mostly comes again together: the first of them to come
/// back would otherwise be flushed alone, with all the others waiting for the next flush.
#[derive(Debug, Default)]
struct Company {
    changes: usize,
    flush: Duration,
}

impl Company {
    /// Waits for as many as there were, half a flush at most. One that was alone waits for nobody.
    fn gather(&self, queue: &mpsc::Receiver<Change>) {
        let end = Instant::now() + self.flush / 2;
        while queue.len() + 1 < self.changes && Instant::now() < end {
            thread::sleep(GLANCE);
        }
    }
}

/// What a commit was.
pub(super) struct Committed {
    company: Company,
    /// What is wrong with the database, if that came to light.
    pub(super) trouble: Option<(Trouble, String)>,
}

/// One commit: the first change and what has been queued behind it meanwhile.
pub(super) fn commit(
    connection: Option<&Connection>,
    first: Change,
    queue: &mut mpsc::Receiver<Change>,
) -> Committed {
    let begun = match connection {
        Some(connection) => match execute(connection, "BEGIN IMMEDIATE", []) {
            Ok(_) => Ok(connection),
            Err(error) => Err((Trouble::of(&error), error.to_string())),
        },
        None => Err((None, "it can be opened nowhere".to_owned())),
    };
    let mut found = None;
    let mut lost = false;
    let mut replies = Vec::new();
    let mut next = Some(first);
    while let Some(change) = next {
        let given = begun.as_ref().map_or_else(|(_, text)| Err(failure(text)), |connection| Ok(*connection));
        let Done { reply, trouble } = change(given);
        replies.push(reply);
        found = found.or(trouble);
        // Without a transaction each further change would be committed for itself, whatever it is told.
        lost = begun.as_ref().is_ok_and(|connection| connection.is_autocommit());
        next = if lost || replies.len() >= BATCH { None } else { queue.try_recv().ok() };
    }
    let flush = Instant::now();
    let committed = match begun {
        Ok(_) if lost => {
            Err((None, "a change failed in a way that undid all that shared its transaction".to_owned()))
        }
        Ok(connection) => execute(connection, "COMMIT", [])
            .map(drop)
            .map_err(|error| (Trouble::of(&error), error.to_string())),
        Err(error) => Err(error),
    };
    let company = Company { changes: replies.len(), flush: flush.elapsed() };
    if let Err((trouble, error)) = &committed {
        static UNWRITTEN: Complaint = Complaint::new();
        if let Some(untold) = UNWRITTEN.is_due() {
            tracing::error!(error, changes = replies.len(), untold, "the state could not be written");
        }
        found = found.or_else(|| trouble.map(|trouble| (trouble, error.clone())));
        // After a failed commit the transaction may still be open.
        if let Some(connection) = connection.filter(|connection| !connection.is_autocommit()) {
            drop(execute(connection, "ROLLBACK", []));
        }
    }
    for reply in replies {
        reply(committed.as_ref().map_or_else(|(_, text)| Err(failure(text)), |()| Ok(())));
    }
    Committed { company, trouble: found }
}

/// The error of a whole transaction, for each of its changes.
fn failure(text: &str) -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    Error::Sqlite(rusqlite::Error::SqliteFailure(code, Some(text.to_owned())))
}
