//! Messages that wait until their receiver takes them. They are written in the same change as what they tell of, so
//! that a death in between loses none, and stay until delivered, given up, or too old to be news.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::{Error, Journal, Letter, Waiting, Write, query, statement::execute, store::json};
use crate::clock::Moment;

/// For so long a message is tried; then it is no news any more.
pub const KEPT: Duration = Duration::from_secs(86_400);
/// Messages that may wait for one receiver.
const MOST: i64 = 100;
/// As long as so many do not wait yet, those that need nobody are taken: however many they are, those that do find room.
const MOST_OF_NEWS: i64 = 60;

impl Journal {
    /// Writes messages down to be delivered; answers for how many there was no room.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn post(&self, letters: Vec<Letter>, now: Moment) -> Result<u64, Error> {
        self.change(move |db| post(db, &letters, &now)).await
    }

    /// The message that has been waiting for this receiver longest.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn next_letter(&self, receiver: String, now: Moment) -> Result<Option<Waiting>, Error> {
        self.change(move |db| next(db, &receiver, &query::on_timeline(db, &now)?)).await
    }

    /// It was tried, and is to be tried again.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn letter_tried(&self, id: i64) -> Result<(), Error> {
        self.change(move |db| {
            execute(db, "UPDATE outbox SET tries = tries + 1 WHERE id = ?1", params![id]).map(drop)
        })
        .await
    }

    /// It was delivered or given up.
    ///
    /// # Errors
    /// When it is not on disk; then it is delivered once more.
    pub async fn letter_done(&self, id: i64) -> Result<(), Error> {
        self.change(move |db| execute(db, "DELETE FROM outbox WHERE id = ?1", params![id]).map(drop)).await
    }
}

/// Writes to the receivers how a remediation stands.
pub(super) fn tell(db: &Connection, id: i64, write: Write, now: &Moment) -> rusqlite::Result<u64> {
    let Some(record) = query::records(db, "WHERE id = ?1", params![id])?.pop() else { return Ok(0) };
    post(db, &write(&record, &query::steps(db, id)?), now)
}

pub(super) fn post(db: &Connection, letters: &[Letter], now: &Moment) -> rusqlite::Result<u64> {
    let mut dropped = 0;
    for letter in letters {
        let posted = execute(
            db,
            "INSERT INTO outbox (receiver, body, queued)
             SELECT ?1, ?2, ?3 WHERE (SELECT count(*) FROM outbox WHERE receiver = ?1) < ?4",
            params![
                letter.receiver,
                letter.body,
                json(now)?,
                if letter.urgent { MOST } else { MOST_OF_NEWS }
            ],
        )?;
        dropped += u64::from(posted == 0);
    }
    Ok(dropped)
}

fn next(db: &Connection, receiver: &str, now: &Moment) -> rusqlite::Result<Option<Waiting>> {
    let mut rows = db.prepare_cached(&format!(
        "SELECT id, body, {}, tries FROM outbox AS one WHERE receiver = ?1 ORDER BY id LIMIT 1",
        query::moment("queued")
    ))?;
    rows.query_row(params![receiver], |row| {
        let queued: Moment = query::from_json(row, 2)?;
        Ok(Waiting { id: row.get(0)?, body: row.get(1)?, age: queued.age(now), tries: row.get(3)? })
    })
    .optional()
}
