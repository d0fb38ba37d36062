//! Statements, prepared once for the life of their connection: preparing one costs as much as running it.

use rusqlite::{Connection, Params, Row, config::DbConfig};

/// So many are kept; there are fewer.
const KEPT: usize = 256;

/// Has a connection keep what it prepared, and keep it as it was planned: otherwise it would be planned anew for each
/// value that is bound.
pub(super) fn keep(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(KEPT);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Runs a statement and answers how many rows it changed.
pub(super) fn execute(db: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
    db.prepare_cached(sql)?.execute(params)
}

/// The first row of what a query finds.
pub(super) fn query_row<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    db.prepare_cached(sql)?.query_row(params, read)
}
