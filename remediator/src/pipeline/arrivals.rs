//! Through which of Alertmanager's receivers deliveries have come since the process began. Newer Alertmanagers do not
//! show a receiver's address; that it leads here is known when something has come by it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Names that are remembered; there is one as a rule.
const MOST: usize = 32;
/// And of each, in characters.
const LONGEST: usize = 200;

/// Remembers them. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(Arc<Mutex<BTreeMap<String, i64>>>);

impl Arrivals {
    /// A delivery has come by this receiver, at this time in milliseconds since 1970.
    pub fn note(&self, receiver: &str, at_ms: i64) {
        if receiver.is_empty() || receiver.chars().nth(LONGEST).is_some() {
            return;
        }
        let mut names = self.names();
        if let Some(last) = names.get_mut(receiver) {
            *last = at_ms;
        } else if names.len() < MOST {
            names.insert(receiver.to_owned(), at_ms);
        }
    }

    /// The names, each with its last time.
    pub fn all(&self) -> BTreeMap<String, i64> {
        self.names().clone()
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        // Whoever panicked while holding it left whole values.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_remembered_with_their_last_time_and_never_without_end() {
        let arrivals = Arrivals::default();
        arrivals.note("evenkeel", 1);
        arrivals.note("evenkeel", 2);
        arrivals.note("", 3);
        arrivals.note(&"x".repeat(LONGEST + 1), 3);
        assert_eq!(arrivals.all(), BTreeMap::from([("evenkeel".to_owned(), 2)]));
        for number in 0..1000 {
            arrivals.note(&format!("receiver-{number}"), 4);
        }
        assert_eq!(arrivals.all().len(), MOST);
        arrivals.note("evenkeel", 5);
        assert_eq!(arrivals.all()["evenkeel"], 5, "a known one is not pushed out");
    }
}
