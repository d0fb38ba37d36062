//! Collectors that behave as they are told.

// Each test binary uses its part of it.
#![allow(dead_code)]

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use evenkeel_exporter::{
    collectors::{CollectError, Collector, Look},
    evidence::Piece,
};
use evenkeel_host::metrics::Family;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep};

/// What a look does.
#[derive(Clone)]
pub(crate) enum Does {
    /// Answers with one gauge, named after the collector.
    See(Family),
    /// The same, and shows what expectations are judged by.
    Show(Family, Piece),
    /// Finds nothing to look at.
    FindNothing,
    /// Ends with an error.
    Fail(&'static str),
    /// Never ends.
    Hang,
    /// Panics.
    Panic,
    /// Answers after this time.
    Take(Duration, Family),
    /// Answers exactly at its deadline.
    UseUp(Family),
    /// Blocks its thread until something is received.
    Block(Arc<Mutex<mpsc::Receiver<()>>>, Family),
}

pub(crate) struct Fake {
    name: &'static str,
    does: Mutex<Does>,
    looks: AtomicUsize,
}

impl Fake {
    pub(crate) fn new(name: &'static str, does: Does) -> Arc<Self> {
        Arc::new(Self { name, does: Mutex::new(does), looks: AtomicUsize::new(0) })
    }

    pub(crate) fn does_now(&self, does: Does) {
        *self.does.lock().expect("unpoisoned") = does;
    }

    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }
}

impl Collector for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let does = self.does.lock().expect("unpoisoned").clone();
        async move {
            match does {
                Does::See(family) => Ok(Look::fresh(vec![family])),
                Does::Show(family, piece) => Ok(Look::fresh(vec![family]).with(piece)),
                Does::FindNothing => Ok(Look::Absent("there is none")),
                Does::Fail(why) => Err(CollectError::new(why)),
                Does::Hang => pending().await,
                Does::Panic => panic!("on purpose"),
                Does::Take(time, family) => {
                    sleep(time).await;
                    Ok(Look::fresh(vec![family]))
                }
                Does::UseUp(family) => {
                    tokio::time::sleep_until(deadline).await;
                    Ok(Look::fresh(vec![family]))
                }
                Does::Block(gate, family) => {
                    gate.lock().expect("unpoisoned").recv().expect("released");
                    Ok(Look::fresh(vec![family]))
                }
            }
        }
        .boxed()
    }

    fn down(&self) -> Vec<Family> {
        match self.name {
            "panics_twice" => panic!("also on purpose"),
            "systemd" => vec![Family::gauge("systemd_up", "Whether systemd answered.").with(&[], 0.0)],
            _ => vec![Family::gauge("fake_up", "Whether it answered.").with(&[("fake", self.name)], 0.0)],
        }
    }
}

/// One sample that says that systemd is up.
pub(crate) fn up() -> Family {
    Family::gauge("systemd_up", "Whether systemd answered.").with(&[], 1.0)
}

/// One sample with a label.
pub(crate) fn value(name: &'static str, label: &str) -> Family {
    Family::gauge(name, "A value.").with(&[("label", label)], 1.0)
}
