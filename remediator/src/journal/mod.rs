//! The durable memory: what was received, what was started, what came of it. One SQLite file, one writer thread.
//!
//! Every change waits until it is on disk (WAL, `synchronous=FULL`); changes that wait at the same time share one
//! commit. The command line reads the same file read-only while the daemon runs. Not here: what any of it means
//! (`admission`, `worker`).

#[cfg(test)]
pub(crate) mod fuse;
mod held;
#[cfg(test)]
pub(crate) mod memory;
mod outbox;
mod people;
mod query;
mod record;
mod reserve;
mod schema;
mod store;
mod timeline;

use std::{
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
};

use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, oneshot};

pub use held::Held;
pub use outbox::KEPT as LETTERS_KEPT;
pub use query::Reader;
pub use record::{
    Accepted, Admission, Approval, Decided, End, Ended, Halt, HaltKind, Incoming, Letter, Loss, Phase,
    Question, Record, Renamed, Request, StepRecord, StepState, Storm, Tally, Verdict, Waiting, Write,
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
    /// SQLite said no.
    #[error("state database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Applies a change inside the open transaction, or is told that there is none, and returns what to tell the asker once
/// it is decided whether the commit held.
type Change = Box<dyn FnOnce(Result<&Connection, Error>) -> Reply + Send>;
/// Told whether the commit held.
type Reply = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// The writing side. Cloning it is cheap; the file closes when the last clone is gone.
#[derive(Clone)]
pub struct Journal {
    changes: mpsc::Sender<Change>,
    path: PathBuf,
    /// Where a test lets this process die.
    #[cfg(test)]
    pub(crate) fuse: fuse::Fuse,
}

impl Journal {
    /// Opens the state in `dir`, makes both if they are not there, and keeps every other writer out.
    ///
    /// # Errors
    /// When the directory or file cannot be used, is in use, or is from a newer version.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        // What alerts say of a host is not for everybody on it.
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::InUse(dir.to_owned()))?;
        let path = dir.join(FILE);
        let connection = schema::open(&path)?;
        let (changes, queue) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                write(&connection, queue);
                drop(lock);
            })
            .map_err(io(dir))?;
        Ok(Self {
            changes,
            path,
            #[cfg(test)]
            fuse: fuse::Fuse::default(),
        })
    }

    /// A reader of the same file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::open_file(&self.path)
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
        let result = connection.and_then(|connection| Ok(savepoint(connection, change)?));
        Box::new(move |committed| {
            // The asker may be gone, a closed connection of the webhook; the change holds all the same.
            drop(answer.send(result.and_then(|value| committed.map(|()| value))));
        })
    })
}

/// One change on its own inside the shared transaction: when it fails, the others stay.
fn savepoint<T>(
    connection: &Connection,
    change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.execute_batch("SAVEPOINT change")?;
    let result = change(connection);
    // After some errors of the disk, SQLite has rolled back the whole transaction by itself.
    if result.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK TO change")?;
    }
    if !connection.is_autocommit() {
        connection.execute_batch("RELEASE change")?;
    }
    result
}

/// The writer thread: takes what waits, commits it together, answers.
fn write(connection: &Connection, mut queue: mpsc::Receiver<Change>) {
    while let Some(first) = queue.blocking_recv() {
        commit(connection, first, &mut queue);
    }
}

/// One commit: the first change and what has been queued behind it meanwhile.
fn commit(connection: &Connection, first: Change, queue: &mut mpsc::Receiver<Change>) {
    let begun = connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| error.to_string());
    let mut lost = false;
    let mut replies = Vec::new();
    let mut next = Some(first);
    while let Some(change) = next {
        replies.push(change(begun.as_ref().map(|()| connection).map_err(|text| failure(text))));
        // Without a transaction each further change would be committed for itself, whatever it is told.
        lost = begun.is_ok() && connection.is_autocommit();
        next = if lost || replies.len() >= BATCH { None } else { queue.try_recv().ok() };
    }
    let committed = match &begun {
        Ok(()) if lost => {
            Err("a change failed in a way that undid all that shared its transaction".to_owned())
        }
        Ok(()) => connection.execute_batch("COMMIT").map_err(|error| error.to_string()),
        Err(text) => Err(text.clone()),
    };
    if let Err(error) = &committed {
        tracing::error!(error, changes = replies.len(), "the state could not be written");
        // After a failed commit the transaction may still be open.
        if !connection.is_autocommit() {
            drop(connection.execute_batch("ROLLBACK"));
        }
    }
    for reply in replies {
        reply(committed.clone().map_err(|text| failure(&text)));
    }
}

/// The error of a whole transaction, for each of its changes.
fn failure(text: &str) -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    Error::Sqlite(rusqlite::Error::SqliteFailure(code, Some(text.to_owned())))
}

#[cfg(test)]
mod tests;
