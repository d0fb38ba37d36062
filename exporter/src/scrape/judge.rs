//! The expectations in the frame: judged when all looks have ended, and told like one more collector.

use std::{panic::AssertUnwindSafe, sync::Arc};

use tokio::time::Instant;

use super::{
    record::{Record, words},
    slot::{Ending, Sighting, Slot, bounded, panic_words},
};
use crate::{
    collectors::Seen,
    evidence::{Evidence, Lack},
    expectations::{self, Expectations, Now, Verdict},
};

pub(super) struct Judge {
    expectations: Expectations,
    record: Record,
}

impl Judge {
    pub(super) fn new(expectations: Expectations) -> Self {
        Self { expectations, record: Record::new(expectations::NAME) }
    }

    /// What became of its judgements.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Judges what was seen.
    pub(super) fn verdicts(&self, seen: &[(&Arc<Slot>, Arc<Sighting>)]) -> Vec<Verdict> {
        self.expectations.judge(&evidence(seen), Now::present())
    }

    /// The same, as a look.
    pub(super) fn look(&self, seen: &[(&Arc<Slot>, Arc<Sighting>)]) -> Sighting {
        let begun = Instant::now();
        let judged = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let verdicts = self.verdicts(seen);
            (!verdicts.is_empty()).then(|| self.expectations.blocks(&verdicts))
        }));
        let ending = match judged {
            Ok(Some(blocks)) => Ending::Seen(Seen { blocks, piece: None }),
            Ok(None) => Ending::Absent("nothing is expected"),
            Err(panic) => Ending::Failed(bounded(&format!("panicked: {}", panic_words(panic.as_ref())))),
        };
        Sighting { ending, took: begun.elapsed() }
    }
}

fn evidence(seen: &[(&Arc<Slot>, Arc<Sighting>)]) -> Evidence {
    let mut evidence = Evidence::default();
    for (slot, sighting) in seen {
        match &sighting.ending {
            Ending::Seen(Seen { piece: Some(piece), .. }) => evidence.add(piece.clone()),
            Ending::Seen(_) => {}
            Ending::Absent(why) => evidence.lack(slot.name(), &Lack::Absent(why)),
            Ending::Failed(_) | Ending::Late => {
                evidence.lack(slot.name(), &Lack::Failed(words(&sighting.ending)));
            }
        }
    }
    evidence
}
