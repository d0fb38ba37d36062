//! The durable memory: what was received, what was started, what came of it. One SQLite file, one writer thread.
//!
//! Every change waits until it is on disk (WAL, `synchronous=FULL`); changes that wait at the same time share one
//! commit. The command line reads the same file read-only while the daemon runs. Not here: what any of it means
//! (`admission`, `worker`).

mod bound;
mod carry;
#[cfg(test)]
pub(crate) mod fuse;
mod held;
#[cfg(test)]
pub(crate) mod memory;
mod outbox;
mod people;
mod place;
mod query;
mod record;
mod reserve;
mod room;
mod schema;
mod statement;
mod store;
mod timeline;
mod writer;

use std::{
    path::{Path, PathBuf},
    thread,
};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use self::{place::Trouble, statement::execute, writer::Writer};
use crate::clock::Clock;

pub use held::Held;
pub use outbox::KEPT as LETTERS_KEPT;
pub use place::{Places, Standing};
pub use query::Reader;
pub use record::{
    Accepted, Admission, Approval, Decided, End, Ended, Halt, HaltKind, Incoming, Labels, Letter, Loss, Open,
    Phase, Question, Record, Renamed, Request, Shown, StepRecord, StepState, Storm, Tally, Verdict, Waiting,
    Write,
};

/// Changes that may wait for the disk; more means that it does not keep up, and deliveries get 503.
const QUEUE: usize = 1024;
/// Changes in one commit at most.
const BATCH: usize = 256;
/// The database's name in the state directory.
const FILE: &str = "evenkeel-remediator.sqlite";

/// Why the memory failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many changes wait for the disk.
    #[error("the state's queue is full")]
    Full,
    /// The writer has ended.
    #[error("the state is closed")]
    Closed,
    /// Another process holds the state directory.
    #[error("{0} is in use by another evenkeel-remediator: stop it, or give this one a state.dir of its own")]
    InUse(PathBuf),
    /// The file was written by a newer version.
    #[error(
        "{path} has state version {found}, this version knows {known}: run the newer evenkeel-remediator, or move the file away"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest one known here.
        known: i64,
    },
    /// The directory or the lock file.
    #[error("{path}: {source}")]
    Io {
        /// What could not be made or opened.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// It could be opened, and not be written.
    #[error("the state could not be written: {0}")]
    Failing(String),
    /// Neither where the state belongs nor where it falls back to.
    #[error("{main}; and in its fallback: {fallback}")]
    Nowhere {
        /// What is wrong with its own place.
        main: Box<Error>,
        /// What is wrong with the fallback.
        fallback: Box<Error>,
    },
    /// SQLite said no.
    #[error("state database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl Error {
    /// What is wrong with the file, if that is what is wrong.
    fn damage(&self) -> Option<String> {
        match self {
            Self::Damaged(why) => Some(why.clone()),
            Self::Sqlite(error) if Trouble::of(error) == Some(Trouble::Damaged) => Some(error.to_string()),
            _ => None,
        }
    }

    /// Whether it is the disk that fails, and not whoever set it up: that is told at once, and not worked around.
    fn is_of_the_disk(&self) -> bool {
        use std::io::ErrorKind::{AlreadyExists, NotADirectory, PermissionDenied};
        match self {
            Self::InUse(_) | Self::Newer { .. } => false,
            // A file stands in the directory's place, or it is another user's.
            Self::Io { source, .. } => {
                !matches!(source.kind(), AlreadyExists | NotADirectory | PermissionDenied)
            }
            _ => true,
        }
    }

    /// Whether a little room on the disk may cure it.
    fn is_lack_of_room(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen)
            ),
            _ => false,
        }
    }
}

/// Applies a change inside the open transaction, or is told that there is none, and returns what to tell the asker once
/// it is decided whether the commit held.
type Change = Box<dyn FnOnce(Result<&Connection, Error>) -> Done + Send>;
/// Told whether the commit held.
type Reply = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A change that was applied.
struct Done {
    reply: Reply,
    /// What it found wrong with the database.
    trouble: Option<(Trouble, String)>,
}

/// The writing side. Cloning it is cheap; the file closes when the last clone is gone.
#[derive(Clone)]
pub struct Journal {
    changes: mpsc::Sender<Change>,
    standing: watch::Receiver<Standing>,
    /// Where a test lets this process die.
    #[cfg(test)]
    pub(crate) fuse: fuse::Fuse,
}

impl Journal {
    /// Opens the state in `dir` and nowhere else; see [`Journal::open_in`].
    ///
    /// # Errors
    /// When the directory or file cannot be used, is in use, or is from a newer version.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_in(Places::only(dir), Clock::default())
    }

    /// Opens the state, makes it if it is not there, and keeps every other writer out. A damaged one is set aside, and
    /// what was started before then counts as all that may have been. While its directory cannot be written, now or
    /// later, the state lies in the fallback; the next start brings it back.
    ///
    /// # Errors
    /// When it can be opened in neither place, is in use, or is from a newer version.
    pub fn open_in(places: Places, clock: Clock) -> Result<Self, Error> {
        let dir = places.dir.clone();
        let writer = Writer::open(places, clock)?;
        let standing = writer.standing();
        let (changes, queue) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|source| Error::Io { path: dir, source })?;
        Ok(Self {
            changes,
            standing,
            #[cfg(test)]
            fuse: fuse::Fuse::default(),
        })
    }

    /// Where the state lies, as it changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// A reader of the same file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::open_file(&self.standing.borrow().path)
    }

    /// Whether a change can be queued now.
    pub fn has_room(&self) -> bool {
        self.changes.capacity() > 0 && !self.changes.is_closed()
    }

    /// Runs `change` in a transaction and answers when it is on disk.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        #[cfg(test)]
        self.fuse.burn().await;
        #[cfg(test)]
        let standstill = self.fuse.standstill();
        self.changes.send(job(change, answer)).await.map_err(|_| Error::Closed)?;
        let answered = answered.await;
        #[cfg(test)]
        drop(standstill);
        #[cfg(test)]
        self.fuse.burn().await;
        answered.map_err(|_| Error::Closed)?
    }

    /// Like `change`, but refuses at once when the queue is full: for deliveries, whose sender tries again.
    async fn try_change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        #[cfg(test)]
        let _standstill = self.fuse.standstill();
        self.changes.try_send(job(change, answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Full,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

fn job<T: Send + 'static>(
    change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    answer: oneshot::Sender<Result<T, Error>>,
) -> Change {
    Box::new(move |connection| {
        let mut trouble = None;
        let result = connection.and_then(|connection| {
            savepoint(connection, change).map_err(|error| {
                trouble = Trouble::of(&error).map(|trouble| (trouble, error.to_string()));
                Error::Sqlite(error)
            })
        });
        let reply = Box::new(move |committed: Result<(), Error>| {
            // The asker may be gone, a closed connection of the webhook; the change holds all the same.
            drop(answer.send(result.and_then(|value| committed.map(|()| value))));
        });
        Done { reply, trouble }
    })
}

/// One change on its own inside the shared transaction: when it fails, the others stay.
fn savepoint<T>(
    connection: &Connection,
    change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    execute(connection, "SAVEPOINT change", [])?;
    let result = change(connection);
    // After some errors of the disk, SQLite has rolled back the whole transaction by itself.
    if result.is_err() && !connection.is_autocommit() {
        execute(connection, "ROLLBACK TO change", [])?;
    }
    if !connection.is_autocommit() {
        execute(connection, "RELEASE change", [])?;
    }
    result
}

#[cfg(test)]
mod tests;
