//! What comes of the same incidents under evenkeel and under a plain handler, the package `webhook` with the obvious
//! commands (`systemctl restart`, `docker restart`, `docker builder prune -af`), on a real systemd and a real dockerd.
//!
//! What was done is counted by the host: systemd's journal (jobs of the unit), Docker's events and the engine's own log of
//! requests, statvfs. What a handler says of itself is only ever held against that:
//!
//! - An *execution* is one restart job of systemd's, one restart of a container, one prune that the engine was asked for.
//! - It is *harmful* (or useless, which costs an interruption all the same) when there was nothing to cure, when it comes
//!   after a try that has just been shown not to help, when it is one more for the same need, or when it is about a thing
//!   that no execution can help. Fifty units that fail for one cause are one need.
//! - A *false success* is one said about a target that is not well [`HOLD`] later. The plain handler says it by a 200,
//!   which it sends when its command has ended with 0; evenkeel by the outcome `succeeded` or `not_needed`.

mod facts;
mod handler;
mod incidents;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use evenkeel_tests::{
    engine::{Engine, Options},
    systemd_host::SystemdHost,
};

use self::{handler::Kind, incidents::Incident};
use crate::table::{Row, short};

/// How long a target must have been well to count as cured, as evenkeel's rules say here too. They say a minute as shipped.
const HOLD: Duration = Duration::from_secs(5);

/// Where incidents about units and containers happen. Those about disks fill one of their own.
struct Lab {
    host: SystemdHost,
    engine: Arc<Engine>,
}

/// What an incident calls for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// One execution cures it.
    One,
    /// None cures it; whoever cannot know that may find out by one.
    AtMostOne,
    /// There is nothing to cure.
    Nothing,
}

/// What came of it.
#[derive(Clone, Copy)]
struct Course {
    executions: usize,
    false_successes: usize,
    /// From the first delivery until the target was well, if it is well at the end.
    effect: Option<Duration>,
}

impl Need {
    fn harmful(self, course: &Course) -> usize {
        course.executions.saturating_sub(usize::from(self != Self::Nothing))
    }

    fn goal(self) -> &'static str {
        match self {
            Self::One => "1 execution that cures it, 0 harmful, 0 false successes",
            Self::AtMostOne => "at most 1 execution, 0 harmful, 0 false successes",
            Self::Nothing => "no execution, 0 false successes",
        }
    }

    fn is_met_by(self, course: &Course) -> bool {
        let cured = course.executions == 1 && course.effect.is_some();
        self.harmful(course) == 0 && course.false_successes == 0 && (self != Self::One || cured)
    }
}

/// Every incident under both, one after the other.
pub(crate) async fn measure() -> Result<Vec<Row>> {
    let engine = Arc::new(Engine::start(Options::default()).await?);
    let lab = Lab { host: SystemdHost::start(Arc::clone(&engine)).await?, engine };
    let mut rows = Vec::new();
    for incident in Incident::ALL {
        let mut courses = Vec::new();
        for kind in [Kind::Evenkeel, Kind::Plain] {
            let course = incident.run(&lab, kind).await;
            courses.push(course.with_context(|| format!("{} under {}", incident.what(), kind.name()))?);
        }
        let need = incident.need();
        let row = Row::new(incident.what(), described(need, &courses[0]));
        let row = row.beside(format!("webhook: {}", described(need, &courses[1])));
        let row = row.must(need.goal(), need.is_met_by(&courses[0]));
        eprint!("{}", crate::table::lines(std::slice::from_ref(&row)));
        rows.push(row);
    }
    Ok(rows)
}

fn described(need: Need, course: &Course) -> String {
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let end = match course.effect {
        Some(after) => format!("well after {} s", short(after.as_secs_f64())),
        None => "not well at the end".to_owned(),
    };
    format!(
        "{}, {} harmful; {}; {end}",
        counted(course.executions, "execution"),
        need.harmful(course),
        // "false success" makes its plural by itself.
        format_args!(
            "{} false {}",
            course.false_successes,
            if course.false_successes == 1 { "success" } else { "successes" }
        ),
    )
}
