//! One line in a terminal that says what is being waited for, written over itself; nothing at all where nobody watches.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use crate::text::printable;

/// Begins the line anew and empties it (ECMA-48: CR, EL).
const CLEAR: &str = "\r\u{1b}[K";

/// What is shown now. Dropping it takes the line away.
#[derive(Debug)]
pub struct Progress {
    watched: bool,
    is_shown: bool,
}

impl Progress {
    /// For a person, where both outputs are terminals: the results on stdout, the line on stderr.
    pub fn new() -> Self {
        Self { watched: io::stdout().is_terminal() && io::stderr().is_terminal(), is_shown: false }
    }

    /// Shows these words in place of those before.
    pub fn show(&mut self, words: &str) {
        if self.watched {
            self.is_shown = true;
            // Who no longer looks misses nothing.
            let _ = io::stderr().write_all(format!("{CLEAR}{}", printable(words)).as_bytes());
        }
    }

    /// Takes the line away, before a result is printed.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = io::stderr().write_all(CLEAR.as_bytes());
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A time since then, so that times stand below each other.
pub fn since(elapsed: Duration) -> String {
    format!("{:>7.1} s", elapsed.as_secs_f64())
}
