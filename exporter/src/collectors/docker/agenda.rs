//! Which containers to ask the engine about, why, and when. Pure: the time comes as a parameter.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::picture::Id;

/// Questions at a time.
pub(super) const IN_FLIGHT: usize = 8;

/// Until a failed question is asked again: doubled each time up to the second.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// How long an announcement may take on its way.
const LATENESS: Duration = Duration::from_secs(2);

/// More changes in a second than this are not worth following one by one.
const FLOOD: u32 = 200;

/// How long there must be no flood until changes are followed again.
const QUIET: Duration = Duration::from_secs(60);

/// Why a container is asked about; the strongest reason counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// What is known of it is old enough.
    Old,
    /// The list says something else than what is known.
    Differs,
    /// Everything is asked for anew.
    Beginning,
    /// The engine announced a change.
    Announced,
}

/// What is to be asked, and what was asked and not answered.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    open: HashMap<Id, Question>,
    /// To be asked now, in this order.
    ready: VecDeque<Id>,
    /// To be asked again.
    later: Vec<(Instant, Id)>,
    in_flight: usize,
    /// How many have not been answered at all since the beginning.
    unread: usize,
    /// Changes that came without an announcement, which may still be on its way.
    doubts: HashMap<Id, (Instant, Why)>,
}

#[derive(Debug)]
struct Question {
    why: Why,
    place: Place,
    failures: u32,
    is_unread: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    Later,
    Asked,
    /// Something happened after the question: the answer may be too old.
    AskedTooEarly,
}

impl Agenda {
    /// Wants a container to be asked about.
    pub(super) fn mark(&mut self, id: &str, why: Why) {
        if why == Why::Announced {
            self.doubts.remove(id);
        }
        let Some(question) = self.open.get_mut(id) else {
            let is_unread = why == Why::Beginning;
            self.unread += usize::from(is_unread);
            self.open.insert(id.into(), Question { why, place: Place::Ready, failures: 0, is_unread });
            self.ready.push_back(id.into());
            return;
        };
        question.why = question.why.max(why);
        if why == Why::Beginning && !question.is_unread {
            question.is_unread = true;
            self.unread += 1;
        }
        match question.place {
            Place::Asked if why == Why::Announced => question.place = Place::AskedTooEarly,
            Place::Later if why == Why::Announced => {
                question.place = Place::Ready;
                self.later.retain(|(_, other)| **other != *id);
                self.ready.push_back(id.into());
            }
            Place::Ready | Place::Later | Place::Asked | Place::AskedTooEarly => {}
        }
    }

    /// What to ask now, if anything.
    pub(super) fn next(&mut self, now: Instant) -> Option<Id> {
        for (_, id) in self.later.extract_if(.., |(due, _)| *due <= now) {
            if let Some(question) = self.open.get_mut(&id) {
                question.place = Place::Ready;
                self.ready.push_back(id);
            }
        }
        if self.in_flight >= IN_FLIGHT {
            return None;
        }
        let id = self.ready.pop_front()?;
        self.open.get_mut(&id)?.place = Place::Asked;
        self.in_flight += 1;
        Some(id)
    }

    /// Takes note of an answer and says why it was asked for. A failed question is asked again.
    pub(super) fn answered(&mut self, id: &str, success: bool, now: Instant) -> Option<Why> {
        let question = self.open.get_mut(id)?;
        self.in_flight -= 1;
        self.unread -= usize::from(std::mem::take(&mut question.is_unread));
        let why = question.why;
        if question.place == Place::AskedTooEarly {
            question.place = Place::Ready;
            self.ready.push_back(id.into());
        } else if success {
            self.open.remove(id);
        } else {
            let [first, longest] = RETRY;
            let pause = (first * 2_u32.saturating_pow(question.failures.min(10))).min(longest);
            question.failures += 1;
            question.place = Place::Later;
            self.later.push((now + pause, id.into()));
        }
        Some(why)
    }

    /// How many are to be asked about.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether everything has been asked about since the beginning.
    pub(super) fn is_read(&self) -> bool {
        self.unread == 0
    }

    /// A container has changed, and nothing said so yet.
    pub(super) fn doubt(&mut self, id: &str, why: Why, now: Instant) {
        self.doubts.insert(id.into(), (now + LATENESS, why));
    }

    /// The changes of which it is certain now that nothing announced them: why each was found.
    pub(super) fn unannounced(&mut self, now: Instant) -> Vec<Why> {
        self.doubts.extract_if(|_, (until, _)| *until <= now).map(|(_, (_, why))| why).collect()
    }

    /// When there is something to do without anything happening.
    pub(super) fn wake(&self) -> Option<Instant> {
        let later = self.later.iter().map(|(due, _)| *due);
        later.chain(self.doubts.values().map(|(until, _)| *until)).min()
    }
}

/// How fast announcements come.
#[derive(Debug)]
pub(super) struct Rate {
    second: Instant,
    heard: u32,
    flood_until: Option<Instant>,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { second: now, heard: 0, flood_until: None }
    }

    /// Counts one; whether they come too fast.
    pub(super) fn hear(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.heard = 0;
        }
        self.heard = self.heard.saturating_add(1);
        if self.heard > FLOOD {
            self.overflow(now);
        }
        self.flood_until.is_some()
    }

    /// More has come than can be followed.
    pub(super) fn overflow(&mut self, now: Instant) {
        self.flood_until = Some(now + QUIET);
    }

    /// When the flood is over if nothing more comes.
    pub(super) fn flood_until(&self) -> Option<Instant> {
        self.flood_until
    }

    /// Whether a flood was there and is over.
    pub(super) fn ebbs(&mut self, now: Instant) -> bool {
        self.flood_until.take_if(|until| *until <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Everything that is asked now.
    fn asked(agenda: &mut Agenda, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| agenda.next(now)).map(String::from).collect()
    }

    #[test]
    fn a_container_is_asked_about_once_however_often_it_is_marked() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        agenda.mark("a", Why::Old);
        agenda.mark("a", Why::Announced);
        agenda.mark("b", Why::Announced);
        assert_eq!(asked(&mut agenda, now), ["a", "b"]);
        assert_eq!(agenda.answered("a", true, now), Some(Why::Announced));
        assert!(!agenda.open.contains_key("a") && agenda.open.contains_key("b"));
    }

    #[test]
    fn what_happens_during_a_question_is_asked_about_again() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        agenda.mark("a", Why::Announced);
        assert_eq!(asked(&mut agenda, now).len(), 1);
        agenda.mark("a", Why::Announced);
        assert_eq!(asked(&mut agenda, now).len(), 0);
        agenda.answered("a", true, now);
        assert_eq!(asked(&mut agenda, now).len(), 1);
        agenda.answered("a", true, now);
        assert!(!agenda.open.contains_key("a"));
    }

    #[test]
    fn no_more_than_eight_are_asked_at_once() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        (0..20).for_each(|n| agenda.mark(&format!("c{n}"), Why::Beginning));
        let first = asked(&mut agenda, now);
        assert_eq!(first.len(), 8);
        agenda.answered(&first[0], true, now);
        agenda.answered(&first[1], false, now);
        assert_eq!(asked(&mut agenda, now).len(), 2);
        assert!(!agenda.is_read());
    }

    #[test]
    fn a_failed_question_is_asked_again_ever_later_or_when_something_happens() {
        let start = Instant::now();
        let mut now = start;
        let mut agenda = Agenda::default();
        agenda.mark("a", Why::Beginning);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_eq!(asked(&mut agenda, now).len(), 1);
            agenda.answered("a", false, now);
            assert!(agenda.is_read());
            let due = agenda.wake().expect("a retry");
            pauses.push((due - now).as_secs());
            assert_eq!(asked(&mut agenda, due - SECOND / 10).len(), 0);
            now = due;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15, 15]);
        assert_eq!(asked(&mut agenda, now).len(), 1);
        agenda.answered("a", false, now);
        agenda.mark("a", Why::Announced);
        assert_eq!(asked(&mut agenda, now).len(), 1);
        agenda.answered("a", true, now);
        assert_eq!(agenda.wake(), None);
    }

    #[test]
    fn a_change_is_missed_when_no_announcement_follows_in_time() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        agenda.doubt("late", Why::Old, now);
        agenda.doubt("missed", Why::Differs, now);
        assert_eq!(agenda.unannounced(now + SECOND), []);
        agenda.mark("late", Why::Announced);
        assert_eq!(agenda.unannounced(now + 2 * SECOND), [Why::Differs]);
        assert_eq!(agenda.unannounced(now + 3 * SECOND), []);
    }

    #[test]
    fn a_flood_lasts_until_a_minute_is_quiet() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert!((0..200).all(|_| !rate.hear(start)));
        assert!((0..200).all(|_| !rate.hear(start + SECOND)));
        assert!(rate.hear(start + SECOND));
        assert!(!rate.ebbs(start + 60 * SECOND));
        // A few are no flood, and do not make it longer.
        assert!(rate.hear(start + 30 * SECOND));
        assert_eq!(rate.flood_until(), Some(start + 61 * SECOND));
        assert!(rate.ebbs(start + 61 * SECOND));
        assert!(!rate.hear(start + 62 * SECOND));
    }
}
