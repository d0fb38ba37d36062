//! The answers of the scripts, read one value after the other. Whoever can write to Redis can make it answer anything:
//! what does not fit is an error, and text is made fit to be shown.

use std::{time::Duration, vec};

use redis::Value;

use super::{fault::Fault, ledger::FleetPause};
use crate::text::printable;

/// No text in an answer is longer than this, in characters; what is, is cut.
const TEXT_MAX: usize = 300;

/// What is left of an answer.
pub(super) struct Reply(vec::IntoIter<Value>);

impl Reply {
    /// An answer of several values.
    pub(super) fn of(value: Value) -> Result<Self, Fault> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            _ => Err(Fault::nonsense("no list where one belongs")),
        }
    }

    fn next(&mut self) -> Result<Value, Fault> {
        self.0.next().ok_or_else(|| Fault::nonsense("it ended early"))
    }

    /// The next value, a text.
    pub(super) fn text(&mut self) -> Result<String, Fault> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(shown(&String::from_utf8_lossy(&bytes))),
            Value::SimpleString(text) => Ok(shown(&text)),
            _ => Err(Fault::nonsense("no text where one belongs")),
        }
    }

    fn signed(&mut self) -> Result<i64, Fault> {
        match self.next()? {
            Value::Int(number) => Ok(number),
            _ => Err(Fault::nonsense("no number where one belongs")),
        }
    }

    /// The next value, a number.
    pub(super) fn number(&mut self) -> Result<u64, Fault> {
        u64::try_from(self.signed()?).map_err(|_| Fault::nonsense("a number below 0"))
    }

    /// The next value, a number that may be missing: -1.
    pub(super) fn number_or_none(&mut self) -> Result<Option<u64>, Fault> {
        Ok(u64::try_from(self.signed()?).ok())
    }

    /// The next value, a place in a list.
    pub(super) fn index(&mut self) -> Result<usize, Fault> {
        usize::try_from(self.signed()?).map_err(|_| Fault::nonsense("a number below 0"))
    }

    /// The next value, in milliseconds.
    pub(super) fn duration(&mut self) -> Result<Duration, Fault> {
        Ok(Duration::from_millis(self.number()?))
    }

    /// The next three values: a pause that is in force.
    pub(super) fn pause(&mut self) -> Result<FleetPause, Fault> {
        let left = self.number_or_none()?.map(Duration::from_millis);
        Ok(FleetPause { left, author: self.text()?, reason: self.text()? })
    }

    /// The next three values: a pause, or one that lasts no longer.
    pub(super) fn pause_or_none(&mut self) -> Result<Option<FleetPause>, Fault> {
        Ok(Some(self.pause()?).filter(|pause| pause.left != Some(Duration::ZERO)))
    }

    /// The next value, a list.
    pub(super) fn list(&mut self) -> Result<Self, Fault> {
        Self::of(self.next()?)
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    /// All that is left, as texts.
    pub(super) fn rest(&mut self) -> Result<Vec<String>, Fault> {
        let mut texts = Vec::new();
        while !self.is_empty() {
            texts.push(self.text()?);
        }
        Ok(texts)
    }
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(TEXT_MAX).collect();
    printable(&short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::fault::Kind;

    #[test]
    fn what_is_no_answer_is_an_error_and_no_panic() {
        for value in [Value::Nil, Value::Okay, Value::Int(1), Value::BulkString(b"x".to_vec())] {
            assert_eq!(Reply::of(value).err().unwrap().kind, Kind::Nonsense);
        }
        let reply = |values: Vec<Value>| Reply::of(Value::Array(values)).unwrap();
        assert!(reply(vec![]).number().is_err());
        assert!(reply(vec![Value::Int(-5)]).number().is_err());
        assert!(reply(vec![Value::Int(-5)]).index().is_err());
        assert!(reply(vec![Value::BulkString(b"5".to_vec())]).number().is_err());
        assert!(reply(vec![Value::Int(5)]).text().is_err());
        assert_eq!(reply(vec![Value::Int(-1)]).number_or_none().unwrap(), None);
    }

    #[test]
    fn texts_are_bounded_and_steer_no_terminal() {
        let text =
            |bytes: &[u8]| Reply::of(Value::Array(vec![Value::BulkString(bytes.to_vec())])).unwrap().text();
        assert_eq!(text(b"a\x1b[2Jb").unwrap(), "a\\u{1b}[2Jb");
        assert_eq!(text(&[0xff, 0xfe]).unwrap(), "\u{fffd}\u{fffd}");
        assert!(text("x".repeat(100_000).as_bytes()).unwrap().len() <= TEXT_MAX + 4);
    }
}
