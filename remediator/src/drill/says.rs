//! What a drill says: a line for each thing that was seen, with its time, and on a terminal what it is waiting for.

use std::{
    io::{self, Write},
    time::Instant,
};

use evenkeel_host::{
    config::PromDuration,
    progress::{Progress, since},
};
use jiff::Timestamp;

use super::{Drill, Order, Stage, Stop, UNIT, plan::Plan};
use crate::text::printable;

pub(super) struct Says<'a, W> {
    out: &'a mut W,
    progress: Progress,
}

impl<'a, W: Write> Says<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self { out, progress: Progress::new() }
    }

    /// What is going to happen.
    pub(super) fn head(&mut self, plan: &Plan, order: Order) -> io::Result<()> {
        let by = if plan.end_to_end {
            "Prometheus raises its alert"
        } else {
            "its alert is raised in Alertmanager"
        };
        writeln!(
            self.out,
            "drill: {UNIT} is made to fail, {by}, and rule {} (mode {}) is to repair it, all within {}",
            plan.rule,
            plan.mode.as_str(),
            PromDuration::new(order.within)
        )
    }

    /// Something was seen.
    pub(super) fn seen(&mut self, began: Instant, stage: Stage, words: &str) -> io::Result<()> {
        self.progress.clear();
        let time = Timestamp::now().strftime("%H:%M:%S");
        writeln!(
            self.out,
            "{}  {time}Z  {:<9}  {}",
            since(began.elapsed()),
            stage.as_str(),
            printable(words)
        )?;
        self.out.flush()
    }

    /// Nothing was seen yet. Only for those who watch.
    pub(super) fn waiting(&mut self, began: Instant, stage: Stage, words: &str) {
        self.progress.show(&format!("{}  …          {:<9}  {words}", since(began.elapsed()), stage.as_str()));
    }

    /// What was put back.
    pub(super) fn cleaned(&mut self, cleaned: &Result<(), Vec<String>>, touched: bool) -> io::Result<()> {
        self.progress.clear();
        match cleaned {
            Ok(()) if touched => {
                writeln!(self.out, "put back: {UNIT} is stopped and well, nothing is raised any more")
            }
            Ok(()) => Ok(()),
            Err(failures) => {
                for failure in failures {
                    writeln!(self.out, "NOT PUT BACK: {}", printable(failure))?;
                }
                Ok(())
            }
        }
    }

    /// How it went.
    pub(super) fn verdict(&mut self, drill: &Drill<'_>, stop: Option<&Stop>) -> io::Result<()> {
        let Some(stop) = stop else {
            return writeln!(self.out, "passed: an alert finds its way here, and is acted on");
        };
        let place = drill.awaited.map_or("the end", Stage::as_str);
        let how = if stop.is_found { "STOPPED before" } else { "NOT KNOWN: it ended before" };
        writeln!(self.out, "{how} {place}: {}", printable(&stop.why))?;
        writeln!(self.out, "look at: {}", printable(&stop.look_at))
    }
}
