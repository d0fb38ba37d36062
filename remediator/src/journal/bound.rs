//! How large the database may become, whoever sends what, and what goes first when it has become so: the oldest of what
//! ended without acting. A part of it is kept for what is open already, which must come to its end.

use rusqlite::Connection;

use super::timeline;

/// Where it belongs, in bytes.
pub(super) const IN_PLACE: u64 = 256 << 20;
/// In the fallback, which lies in memory.
pub(super) const IN_FALLBACK: u64 = 32 << 20;
/// This part of it is not for what is new.
const RESERVED: u64 = 8;
/// Less than this, in bytes, is nothing: one change may need as much.
const SCRAP: u64 = 1 << 20;

/// Sets how large it may become. One that is larger keeps its size.
pub(super) fn set(db: &Connection, bytes: u64) -> rusqlite::Result<()> {
    let pages = bytes / pragma(db, "page_size")?;
    db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
}

/// How much may be written for what is new, in bytes; when it comes to an end, some of the oldest is forgotten first.
pub(super) fn left_for_new(db: &Connection) -> rusqlite::Result<u64> {
    let reserved = pragma(db, "max_page_count")? * pragma(db, "page_size")? / RESERVED;
    let left = || Ok::<_, rusqlite::Error>(left(db)?.saturating_sub(reserved));
    if left()? < reserved {
        timeline::forget_idle(db)?;
    }
    left()
}

/// Whether it is as large as it may be: then that is why it cannot be written, and not the disk.
pub(super) fn is_reached(db: &Connection) -> bool {
    left(db).is_ok_and(|left| left < SCRAP)
}

/// Whether it may grow by so many bytes.
pub(super) fn admits(db: &Connection, bytes: u64) -> rusqlite::Result<bool> {
    Ok(left(db)? >= bytes + SCRAP)
}

fn left(db: &Connection) -> rusqlite::Result<u64> {
    let unused = pragma(db, "max_page_count")?.saturating_sub(pragma(db, "page_count")?);
    Ok((unused + pragma(db, "freelist_count")?) * pragma(db, "page_size")?)
}

fn pragma(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    db.prepare_cached(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))
}
