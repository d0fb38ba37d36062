//! A block of lines in the terminal: redrawn in place, or, where the output is no terminal, only the
//! lines that have changed.

use std::io::{IsTerminal as _, Write as _, stdout};

/// What is shown now.
#[derive(Debug, Default)]
pub struct Screen {
    shown: Vec<String>,
}

impl Screen {
    /// Shows these lines instead of the ones before.
    ///
    /// # Errors
    ///
    /// When the output is closed.
    pub fn show(&mut self, lines: Vec<String>) -> std::io::Result<()> {
        let lines: Vec<String> = lines.iter().map(|line| harmless(line)).collect();
        if lines == self.shown {
            return Ok(());
        }
        let mut out = stdout().lock();
        if out.is_terminal() {
            let width = rustix::termios::tcgetwinsize(&out).map_or(80, |size| size.ws_col.max(20));
            if !self.shown.is_empty() {
                // Up to the first line; each is then written over and its rest cleared.
                write!(out, "\x1b[{}A\r", self.shown.len())?;
            }
            for line in &lines {
                // A line that wraps would be two, and the way back up too short.
                let cut: String = line.chars().take(usize::from(width) - 1).collect();
                writeln!(out, "{cut}\x1b[K")?;
            }
            write!(out, "\x1b[J")?;
        } else {
            for line in lines.iter().filter(|line| !self.shown.contains(line)) {
                writeln!(out, "{line}")?;
            }
        }
        out.flush()?;
        self.shown = lines;
        Ok(())
    }
}

/// Names come from the host and may hold anything; a terminal obeys control characters.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\x1b[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
        assert_eq!(harmless("100 % – ä"), "100 % – ä");
    }
}
