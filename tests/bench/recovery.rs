//! How long a remediator that was killed takes until it takes the next delivery, with a long history behind it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{http, namespace, wait::wait_for};
use rusqlite::Connection;
use serde_json::Value;

use crate::{
    program::memory_mib,
    table::{Row, quantile},
    webhook::{self, delivery, post},
};

/// What is on record, as much as is ever kept.
const HISTORY: i64 = 100_000;
/// Of these were open when the process died.
const OPEN: i64 = 50;
const DEATHS: usize = 7;

pub(crate) async fn measure() -> Result<Vec<Row>> {
    let dir = namespace::place("bench-recovery")?;
    let mut remediator = webhook::remediator(&dir).await?;
    let url = format!("{}/api/v1/alerts", remediator.url());
    let client = http::client()?;
    post(&client, &url, &delivery(0, 1).to_string()).await?;
    wait_for("the first one to end", Duration::from_secs(20), async || {
        let history: Value = serde_json::from_str(&remediator.cli(&["history", "--json"]).await?)?;
        ensure!(history["outcome"].is_string(), "{history}");
        Ok(())
    })
    .await?;
    remediator.crash()?;
    let state = dir.join("state/evenkeel-remediator.sqlite");
    multiply(&state)?;
    let mut times = Vec::new();
    for death in 0..DEATHS {
        let begun = Instant::now();
        remediator.restart().await?;
        post(&client, &url, &delivery(0, 1).to_string()).await?;
        // The first finds a log that was carried over in order.
        if death > 0 {
            times.push(begun.elapsed());
        }
        // The next one finds a log that is full of what is not yet in the database.
        for number in 0..4 {
            post(&client, &url, &delivery(number * 500, 500).to_string()).await?;
        }
        if death + 1 < DEATHS {
            remediator.crash()?;
        }
    }
    let memory = memory_mib(remediator.process().id(), "VmRSS")?;
    let size = fs::metadata(&state)?.len() >> 20;
    let worst = quantile(&mut times, 1.0);
    let median = quantile(&mut times, 0.5);
    let what =
        format!("Killed with {HISTORY} records ({size} MiB) and started again: until a delivery is taken");
    Ok(vec![
        Row::new(what, format!("p50 {median:.0} ms, at most {worst:.0} ms; {memory:.0} MiB afterwards"))
            .at_most(worst, 1000.0, "ms"),
    ])
}

/// Makes a long history of the one remediation that is there, with all that belongs to it.
fn multiply(state: &Path) -> Result<()> {
    let db = Connection::open(state)?;
    let columns = |table: &str, without: &[&str]| -> Result<String> {
        let mut rows = db.prepare("SELECT name FROM pragma_table_info(?1)")?;
        let names = rows.query_map([table], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        Ok(names.into_iter().filter(|name| !without.contains(&name.as_str())).collect::<Vec<_>>().join(", "))
    };
    let first: i64 =
        db.query_row("SELECT id FROM remediation", [], |row| row.get(0)).context("the first one")?;
    let rest = columns("remediation", &["id", "target"])?;
    db.execute_batch(&format!(
        "BEGIN;
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {HISTORY})
         INSERT INTO remediation (target, {rest})
         SELECT 'bench-' || (1000000 + i) || '.service', {rest} FROM n, remediation WHERE id = {first};"
    ))?;
    for table in ["step", "event"] {
        let rest = columns(table, &["id", "remediation"])?;
        let of_one = rest.split(", ").map(|name| format!("one.{name}")).collect::<Vec<_>>().join(", ");
        db.execute_batch(&format!(
            "INSERT INTO {table} (remediation, {rest}) SELECT each.id, {of_one}
             FROM remediation AS each, {table} AS one WHERE one.remediation = {first} AND each.id <> {first};"
        ))?;
    }
    db.execute_batch(&format!(
        "UPDATE remediation SET phase = 'received', outcome = NULL, ended = NULL, ended_wall_ms = NULL
         WHERE id > (SELECT max(id) FROM remediation) - {OPEN};
         COMMIT;"
    ))?;
    Ok(())
}
