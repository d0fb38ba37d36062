//! The database's shape, and how a file of an older shape becomes one of this.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::Error;

/// The shape of each version, as changes of the one before; `user_version` says how many are in a file.
const SHAPES: [&str; 4] = [TABLES, PEOPLE, TIMELINE, NEEDS];
/// The version known here.
const VERSION: i64 = 4;

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

/// Opens the file for writing and brings it to this version.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    // Closing the last connection would delete the log that was grown beforehand, and the next start on a full disk
    // could not make it again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let found = version(path, &connection)?;
    let known = usize::try_from(found).unwrap_or(0);
    if known < SHAPES.len() {
        let transaction = connection.transaction()?;
        for shape in SHAPES.iter().skip(known) {
            transaction.execute_batch(shape)?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    }
    if known == 0 {
        grow(&connection)?;
    }
    Ok(connection)
}

/// Takes room from the disk while there is some: database and log keep the size they once had, so that accepting,
/// reserving and recording go on when the disk is full (sqlite.org/wal.html: the log is overwritten in place).
fn grow(connection: &Connection) -> Result<(), Error> {
    connection.execute_batch(&format!(
        "CREATE TABLE ballast (bytes BLOB);
         INSERT INTO ballast VALUES (zeroblob({GROWN}));
         DROP TABLE ballast;"
    ))?;
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))?;
    Ok(())
}

/// Opens the file for reading only, while a writer may be at work.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
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
