//! A state in memory that outlives the process which writes it, as a disk does: for simulated time, where nothing may
//! be waited for that happens outside it. The schema, the transactions and their batches are those of the file.

use std::sync::{Arc, Mutex, MutexGuard};

use rusqlite::Connection;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    Change, Journal, QUEUE, Record, Standing, StepRecord, StepState, fuse::Fuse, query, schema, statement,
    writer,
};
use crate::clock::Moment;

/// The database. What was committed is there for the next process; what was not is gone with the one that asked for it.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Mutex<Connection>>);

impl Memory {
    pub(crate) fn new() -> Self {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::shape(&mut connection, 0).unwrap();
        statement::keep(&connection).unwrap();
        Self(Arc::new(Mutex::new(connection)))
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap()
    }

    /// As new, which is much cheaper than a new one.
    pub(crate) fn clear(&self) {
        let db = self.db();
        let tables: Vec<String> = db
            .prepare("SELECT name FROM sqlite_master WHERE type = 'table'")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        for table in tables {
            db.execute(&format!("DELETE FROM {table}"), []).unwrap();
        }
    }

    /// A process's way to it. The process dies with the task: what is queued and not committed by then never happened.
    pub(crate) fn journal(&self) -> (Journal, JoinHandle<()>) {
        let (changes, queue) = mpsc::channel(QUEUE);
        let writer = tokio::spawn(write(self.clone(), queue));
        let standing = Standing { path: ":memory:".into(), degraded: None, damaged: None };
        let (_, standing) = watch::channel(standing);
        (Journal { changes, standing, fuse: Fuse::of_a_task() }, writer)
    }

    /// Every remediation on record, oldest first, with its steps.
    pub(crate) fn records(&self) -> Vec<(Record, Vec<StepRecord>)> {
        let db = self.db();
        let records = query::records(&db, "ORDER BY id", []).unwrap();
        records
            .into_iter()
            .map(|record| {
                let steps = query::steps(&db, record.id).unwrap();
                (record, steps)
            })
            .collect()
    }

    /// The steps that a process that has died left running, and of which remediation.
    pub(crate) fn interrupted(&self) -> Vec<(Record, StepRecord)> {
        let db = self.db();
        let open = query::records(&db, "WHERE outcome IS NULL", []).unwrap();
        let interrupted = open.into_iter().filter_map(|record| {
            let (_, step) = query::interrupted_step(&db, record.id).unwrap()?;
            (step.state == StepState::Running).then_some((record, step))
        });
        interrupted.collect()
    }

    /// The remediations that wait for a person.
    pub(crate) fn awaiting(&self) -> Vec<i64> {
        let open = query::records(&self.db(), "WHERE phase = 'awaiting' AND outcome IS NULL", []).unwrap();
        open.into_iter().map(|record| record.id).collect()
    }

    /// How many remediations have no outcome.
    pub(crate) fn open(&self) -> usize {
        self.db()
            .query_row("SELECT count(*) FROM remediation WHERE outcome IS NULL", [], |row| row.get(0))
            .unwrap()
    }

    /// When a remediation ended, by the clocks.
    pub(crate) fn ended(&self, id: i64) -> Option<Moment> {
        self.db()
            .query_row("SELECT ended FROM remediation WHERE id = ?1", [id], |row| query::from_json(row, 0))
            .ok()
    }
}

async fn write(memory: Memory, mut queue: mpsc::Receiver<Change>) {
    while let Some(first) = queue.recv().await {
        writer::commit(Some(&memory.db()), first, &mut queue);
    }
}
