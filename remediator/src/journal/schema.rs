//! The database's shape, and how a file of an older shape becomes one of this.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, config::DbConfig, params};

use super::{Error, bound, statement, store::json, timeline::note_counted};
use crate::{clock::Moment, text::printable};

/// The shape of each version, as changes of the one before; `user_version` says how many are in a file.
const SHAPES: [&str; 5] = [TABLES, PEOPLE, TIMELINE, NEEDS, SHOWN];
/// The version known here.
const VERSION: i64 = 5;

/// How much database and log are grown beforehand, in bytes: room for thousands of remediations.
const GROWN: u32 = 4 << 20;

pub(super) const TABLES: &str = "
CREATE TABLE remediation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    rule TEXT NOT NULL,
    kind TEXT NOT NULL,
    target TEXT NOT NULL,
    phase TEXT NOT NULL,            -- received, reserved, running, verifying, ended
    step INTEGER NOT NULL DEFAULT 0,
    acted INTEGER NOT NULL DEFAULT 0,
    fingerprint TEXT NOT NULL,
    labels TEXT NOT NULL,           -- JSON
    deliveries INTEGER NOT NULL DEFAULT 1,
    received TEXT NOT NULL,         -- a Moment, JSON
    received_wall_ms INTEGER NOT NULL,
    last_seen_wall_ms INTEGER NOT NULL,
    resolved_wall_ms INTEGER,
    before TEXT,                    -- an Observation, JSON
    after TEXT,                     -- an Observation, JSON
    outcome TEXT,
    reason TEXT,
    detail TEXT,
    next_allowed_wall_ms INTEGER,
    ended TEXT,                     -- a Moment, JSON
    ended_wall_ms INTEGER
) STRICT;
-- At most one open remediation per rule and target: duplicates of an alert are absorbed by it.
CREATE UNIQUE INDEX remediation_open ON remediation (rule, kind, target) WHERE outcome IS NULL;
CREATE INDEX remediation_key ON remediation (rule, kind, target, id);
CREATE INDEX remediation_acted ON remediation (rule, kind, target, id) WHERE acted = 1;
CREATE TABLE step (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    remediation INTEGER NOT NULL REFERENCES remediation (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    action TEXT NOT NULL,
    class TEXT NOT NULL,
    plan TEXT NOT NULL,             -- the exact calls
    state TEXT NOT NULL,            -- planned, skipped, reserved, running, done, failed, unknown
    reason TEXT,
    detail TEXT,
    started_wall_ms INTEGER,
    ended_wall_ms INTEGER,
    claimed_freed_bytes INTEGER,
    measured_freed_bytes INTEGER
) STRICT;
CREATE INDEX step_remediation ON step (remediation, id);
CREATE TABLE start (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    scope TEXT NOT NULL,
    step INTEGER NOT NULL,          -- the step that was reserved; of a walk that only observes, minus its number
    moment TEXT NOT NULL            -- a Moment, JSON
) STRICT;
CREATE INDEX start_scope ON start (scope, id);
CREATE INDEX start_step ON start (step);
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    remediation INTEGER NOT NULL REFERENCES remediation (id) ON DELETE CASCADE,
    wall_ms INTEGER NOT NULL,
    what TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX event_remediation ON event (remediation, id);
-- One timeline over all boots, for the limits: inside a boot CLOCK_BOOTTIME counts, between two boots the wall clock,
-- and never backwards. Milliseconds.
CREATE TABLE boot (
    id TEXT PRIMARY KEY,
    began_ms INTEGER NOT NULL,      -- where on the timeline this boot began
    epoch_ms INTEGER NOT NULL,      -- when it began by what its wall clock said last
    counted_ms INTEGER NOT NULL     -- where on the timeline something was last counted in it
) STRICT;
";

/// What people decide, and what they are told.
const PEOPLE: &str = "
-- Whether its rule may interrupt a service: what a storm is counted by.
ALTER TABLE remediation ADD COLUMN impact INTEGER NOT NULL DEFAULT 0;
ALTER TABLE remediation ADD COLUMN asked TEXT;          -- a Moment, JSON: since when it waits for approval
ALTER TABLE remediation ADD COLUMN decided TEXT;        -- a Moment, JSON
ALTER TABLE remediation ADD COLUMN decided_by TEXT;
ALTER TABLE remediation ADD COLUMN verdict TEXT;        -- approve, reject
ALTER TABLE remediation ADD COLUMN acked_by TEXT;       -- who wants it tried again although it did not help
CREATE INDEX remediation_impact ON remediation (last_seen_wall_ms) WHERE impact = 1;
-- Why nothing is begun: a pause, a storm. In force until `last` is `lasts_ms` ago; for ever where that is not set.
CREATE TABLE halt (
    what TEXT PRIMARY KEY,          -- pause, storm
    reason TEXT NOT NULL,
    author TEXT NOT NULL,
    since TEXT NOT NULL,            -- a Moment, JSON
    last TEXT NOT NULL,             -- a Moment, JSON
    lasts_ms INTEGER
) STRICT;
-- What people told the remediator.
CREATE TABLE command (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    wall_ms INTEGER NOT NULL,
    author TEXT NOT NULL,
    what TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
-- Messages that a receiver has not taken yet.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    receiver TEXT NOT NULL,
    body TEXT NOT NULL,
    queued TEXT NOT NULL,           -- a Moment, JSON
    tries INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX outbox_receiver ON outbox (receiver, id);
";

/// Storms and retention by the timeline, and what is known of a loss.
const TIMELINE: &str = "
-- Where on the timeline the last alert came: what setting the wall clock does not move.
ALTER TABLE remediation ADD COLUMN seen_ms INTEGER NOT NULL DEFAULT 0;
UPDATE remediation SET seen_ms = last_seen_wall_ms;
DROP INDEX remediation_impact;
CREATE INDEX remediation_seen ON remediation (seen_ms);
-- An earlier state was lost: nobody knows what was started before, so every window counts as full at that moment.
CREATE TABLE loss (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    moment TEXT NOT NULL,           -- a Moment, JSON
    why TEXT NOT NULL
) STRICT;
";

/// What is taken up again between deliveries.
const NEEDS: &str = "
-- Where on the timeline that was: such a need counts for a storm, and its alert is no younger by it.
ALTER TABLE remediation ADD COLUMN taken_up_ms INTEGER;
CREATE INDEX remediation_taken_up ON remediation (taken_up_ms) WHERE taken_up_ms IS NOT NULL;
";

/// What an approval is for, and who began what no alert did.
const SHOWN: &str = "
-- What people were shown of each step that would be done: an approval is for this, and for nothing else.
CREATE TABLE shown (
    remediation INTEGER NOT NULL REFERENCES remediation (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    plan TEXT NOT NULL,             -- the exact calls
    changes TEXT,                   -- what they would change on this host, bounded
    digest TEXT NOT NULL,           -- of both, whole
    PRIMARY KEY (remediation, position)
) STRICT;
ALTER TABLE remediation ADD COLUMN triggered_by TEXT;   -- who began it by hand
-- It was kept among the labels, where an alert may have one of that name; only an alert has a fingerprint.
UPDATE remediation SET triggered_by = json_extract(labels, '$.triggered_by')
    WHERE fingerprint = '' AND json_valid(labels);
";

/// The tables of the first version: a database without them is somebody else's.
const FIRST: [&str; 5] = ["remediation", "step", "start", "event", "boot"];
/// What is looked through before a file is trusted, what counts most first.
const CHECKED: [&str; 10] =
    ["start", "boot", "halt", "loss", "outbox", "command", "remediation", "shown", "step", "event"];
/// So long a file is looked through at most: whoever asks waits for it.
const CHECK_MAX: Duration = Duration::from_millis(300);
/// Marks a fallback that was begun without a look at what it stands for.
pub(super) const BLIND: i64 = 0x65_76_6b_62;

/// Makes the file, whole or not at all: with all tables, and with a note of what was lost where something was.
pub(super) fn create(path: &Path, loss: Option<(&str, &Moment)>) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let draft = path.with_extension("new");
    let made = draft_of(&draft, loss);
    if made.is_err() {
        // On a full disk what was begun would only take room from the next try.
        drop(fs::remove_file(&draft));
        return made;
    }
    // The log of one that was set aside would be taken for this one's.
    for suffix in ["-wal", "-shm"] {
        drop(fs::remove_file(with_suffix(path, suffix)));
    }
    fs::rename(&draft, path).map_err(io)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

fn draft_of(draft: &Path, loss: Option<(&str, &Moment)>) -> Result<(), Error> {
    match fs::remove_file(draft) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Io { path: draft.to_owned(), source });
        }
        _ => {}
    }
    let mut connection = Connection::open(draft)?;
    // A draft needs no way back: what is left of a broken one is thrown away.
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    let transaction = connection.transaction()?;
    for shape in SHAPES {
        transaction.execute_batch(shape)?;
    }
    if let Some((why, now)) = loss {
        note_loss(&transaction, why, now)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

/// Opens the file for writing and brings it to this version.
///
/// # Errors
/// [`Error::Damaged`] when it is none of ours or no longer readable; [`Error::Newer`]; others when the disk does not
/// do its part.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.len() == 0 {
        return Err(Error::Damaged("it is empty".to_owned()));
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let found = recognize(path, &connection)?;
    if connection.is_readonly(MAIN_DB)? {
        return Err(io(io::ErrorKind::ReadOnlyFilesystem.into()));
    }
    check(&connection)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    // Nothing is taken from another disk either, which may be full as well.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Closing the last connection would delete the log that was grown beforehand, and the next start on a full disk
    // could not make it again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    statement::keep(&connection)?;
    shape(&mut connection, usize::try_from(found).unwrap_or(0))?;
    Ok(connection)
}

/// Brings what has the shape of version `known` to this one.
pub(super) fn shape(connection: &mut Connection, known: usize) -> rusqlite::Result<()> {
    if known < SHAPES.len() {
        let transaction = connection.transaction()?;
        for shape in SHAPES.iter().skip(known) {
            transaction.execute_batch(shape)?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    }
    Ok(())
}

/// The version of a file of ours. A newer one may look otherwise, and is nobody's to judge.
fn recognize(path: &Path, connection: &Connection) -> Result<i64, Error> {
    let found = version(path, connection)?;
    for table in FIRST {
        if !connection.table_exists(Some("main"), table)? {
            return Err(Error::Damaged(format!(
                "it has no table {table}: it is no state of evenkeel-remediator"
            )));
        }
    }
    Ok(found)
}

/// Looks the file through, as far as there is time; what it does not come to is found when it is used.
fn check(connection: &Connection) -> Result<(), Error> {
    let interrupt = connection.get_interrupt_handle();
    let (done, watched) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if watched.recv_timeout(CHECK_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            interrupt.interrupt();
        }
    });
    let result = check_all(connection);
    drop(done);
    // Nothing that comes later may be interrupted.
    drop(watch.join());
    match result {
        Err(Error::Sqlite(error)) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            tracing::info!("the state is large: only a part of it was looked through at the start");
            Ok(())
        }
        other => other,
    }
}

fn check_all(connection: &Connection) -> Result<(), Error> {
    for table in CHECKED {
        // An older version has fewer.
        if connection.table_exists(Some("main"), table)? {
            let said: String =
                connection.query_row(&format!("PRAGMA quick_check({table})"), [], |row| row.get(0))?;
            if said != "ok" {
                return Err(Error::Damaged(said));
            }
        }
    }
    Ok(())
}

/// What was started before is not known any more: it counts as all that may have been.
pub(super) fn note_loss(db: &Connection, why: &str, now: &Moment) -> rusqlite::Result<()> {
    note_counted(db, now)?;
    db.execute("INSERT INTO loss (moment, why) VALUES (?1, ?2)", params![json(now)?, printable(why)])
        .map(drop)
}

/// Sees to it that database and log have room for what may come.
pub(super) fn make_room(path: &Path, connection: &Connection) -> Result<(), Error> {
    let log = fs::metadata(with_suffix(path, "-wal")).map_or(0, |log| log.len());
    if log >= u64::from(GROWN) && has_free_pages(connection)? {
        return Ok(());
    }
    grow(connection)?;
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))?;
    Ok(())
}

/// The same inside a transaction: the log has grown with what was written.
pub(super) fn keep_room(connection: &Connection) -> rusqlite::Result<()> {
    let is_enough = has_free_pages(connection)? || !bound::admits(connection, GROWN.into())?;
    if is_enough { Ok(()) } else { grow(connection) }
}

fn has_free_pages(connection: &Connection) -> rusqlite::Result<bool> {
    let pragma = |name| connection.query_row(name, [], |row| row.get::<_, u64>(0));
    Ok(pragma("PRAGMA freelist_count")? * pragma("PRAGMA page_size")? >= u64::from(GROWN / 2))
}

/// The path with this behind it: how SQLite names what belongs to a database.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Takes room from the disk while there is some: database and log keep the size they once had, so that accepting,
/// reserving and recording go on when the disk is full (sqlite.org/wal.html: the log is overwritten in place).
fn grow(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "CREATE TABLE ballast (bytes BLOB);
         INSERT INTO ballast VALUES (zeroblob({GROWN}));
         DROP TABLE ballast;"
    ))
}

/// Opens the file for reading only, while a writer may be at work.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    statement::keep(&connection)?;
    version(path, &connection)?;
    Ok(connection)
}

/// The file's version; one that is not known here is refused.
fn version(path: &Path, connection: &Connection) -> Result<i64, Error> {
    let found = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > VERSION {
        return Err(Error::Newer { path: path.to_owned(), found, known: VERSION });
    }
    Ok(found)
}
