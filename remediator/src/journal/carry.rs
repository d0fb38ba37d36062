//! What is carried from the state's own place to the fallback, and back again when that place can be written.
//!
//! The fallback lies in memory: it gets what limits, breaker, halts and open remediations need, and not the history.
//! Numbers go on where they were, so that coming back is putting each row in its old place.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use super::{Error, schema};

/// Carried whole, and back in place of what was there.
const WHOLE: [&str; 5] = ["start", "boot", "halt", "loss", "outbox"];
/// Of remediations that did nothing, so many of the newest are taken along: what the cooldown looks back on.
const NEWEST: i64 = 1000;

/// Takes along into the fresh `to` what `from` holds.
pub(super) fn away(from: &Path, to: &Path) -> Result<(), Error> {
    let mut db = open(to)?;
    attach(&db, from)?;
    // Of another version: its columns are not known.
    let (theirs, ours): (i64, i64) = (
        db.query_row("PRAGMA other.user_version", [], |row| row.get(0))?,
        db.query_row("PRAGMA main.user_version", [], |row| row.get(0))?,
    );
    if theirs != ours {
        return Err(Error::Damaged(format!("it has version {theirs}, and cannot be brought to {ours}")));
    }
    let transaction = db.transaction()?;
    for table in WHOLE {
        transaction.execute_batch(&format!("INSERT INTO main.{table} SELECT * FROM other.{table}"))?;
    }
    transaction.execute(
        "INSERT INTO main.remediation SELECT * FROM other.remediation
         WHERE outcome IS NULL OR acted = 1
         OR id > (SELECT coalesce(max(id), 0) FROM other.remediation) - ?1",
        params![NEWEST],
    )?;
    transaction.execute_batch(
        "INSERT INTO main.step SELECT * FROM other.step WHERE remediation IN (SELECT id FROM main.remediation);
         INSERT INTO main.event SELECT * FROM other.event WHERE remediation IN (SELECT id FROM main.remediation);
         INSERT INTO main.shown SELECT * FROM other.shown WHERE remediation IN (SELECT id FROM main.remediation);
         DELETE FROM main.sqlite_sequence;
         INSERT INTO main.sqlite_sequence SELECT name, seq FROM other.sqlite_sequence;",
    )?;
    Ok(transaction.commit()?)
}

/// Puts what the fallback `from` holds back into `db`. Done twice it is the same as done once.
pub(super) fn back(db: &mut Connection, from: &Path) -> Result<(), Error> {
    attach(db, from)?;
    let result = put_back(db);
    db.execute_batch("DETACH other")?;
    result
}

fn put_back(db: &mut Connection) -> Result<(), Error> {
    let transaction = db.transaction()?;
    // An older fallback has fewer columns, and a damaged one less than it says.
    let said: String = transaction.query_row("PRAGMA other.quick_check", [], |row| row.get(0))?;
    if said != "ok" {
        return Err(Error::Damaged(said));
    }
    for table in WHOLE {
        transaction.execute_batch(&format!(
            "DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM other.{table};"
        ))?;
    }
    transaction.execute_batch(
        // What was open and is there no more was joined to another.
        "DELETE FROM main.remediation WHERE outcome IS NULL AND id NOT IN (SELECT id FROM other.remediation);
         INSERT OR REPLACE INTO main.remediation SELECT * FROM other.remediation;
         INSERT OR REPLACE INTO main.step SELECT * FROM other.step;
         INSERT OR REPLACE INTO main.event SELECT * FROM other.event;
         INSERT OR REPLACE INTO main.shown SELECT * FROM other.shown;
         INSERT OR REPLACE INTO main.command SELECT * FROM other.command;
         CREATE TEMP TABLE sequence AS SELECT name, max(seq) AS seq FROM
           (SELECT name, seq FROM main.sqlite_sequence UNION ALL SELECT name, seq FROM other.sqlite_sequence)
           GROUP BY name;
         DELETE FROM main.sqlite_sequence;
         INSERT INTO main.sqlite_sequence SELECT name, seq FROM sequence;
         DROP TABLE sequence;",
    )?;
    Ok(transaction.commit()?)
}

/// Whether this fallback was begun without a look at what it stands for.
pub(super) fn is_blind(fallback: &Path) -> bool {
    let mark = || -> rusqlite::Result<i64> {
        let db = Connection::open_with_flags(fallback, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.query_row("PRAGMA application_id", [], |row| row.get(0))
    };
    mark().is_ok_and(|mark| mark == schema::BLIND)
}

/// Notes that it was.
pub(super) fn mark_blind(fallback: &Path) -> Result<(), Error> {
    Ok(open(fallback)?.pragma_update(None, "application_id", schema::BLIND)?)
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let db =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI)?;
    // A draft needs no way back.
    db.pragma_update(None, "journal_mode", "MEMORY")?;
    Ok(db)
}

/// Under the name `other`, for reading only.
fn attach(db: &Connection, path: &Path) -> Result<(), Error> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
    let encoded: String = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02x}") })
        .collect();
    db.execute("ATTACH ?1 AS other", params![format!("file:{encoded}?mode=ro")])?;
    Ok(())
}
