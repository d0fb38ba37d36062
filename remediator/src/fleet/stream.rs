//! A host's alerts in Redis: how an entry is written by a gateway and read by an agent. An entry is a hint like any
//! webhook: it can select a declared rule and a target on its allow-list, and nothing else.

use redis::Value;
use serde_json::json;

use super::fault::Fault;
use crate::webhook::Alert;

/// The consumer group of a host's one agent, and its consumer.
pub(super) const GROUP: &str = "agent";
/// The one field of an entry.
pub(super) const FIELD: &str = "alert";
/// What an entry holds at most, in bytes: labels are 64 KiB at most, and JSON escapes some of them.
pub(super) const ENTRY_MAX: usize = 256 << 10;

/// An alert as it is passed on: what a rule looks at, and nothing else.
pub(super) fn write(alert: &Alert<'_>) -> Option<String> {
    let status = if alert.is_firing() { "firing" } else { "resolved" };
    let labels = alert.labels()?;
    let entry = json!({"status": status, "labels": labels, "fingerprint": alert.fingerprint()}).to_string();
    (entry.len() <= ENTRY_MAX).then_some(entry)
}

/// One entry as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// By which it is acknowledged.
    pub(super) id: String,
    /// Its alert; none when it has no such field, or was deleted meanwhile.
    pub(super) alert: Option<Vec<u8>>,
}

/// What `XREADGROUP` answers of one stream; nothing when nothing came in time.
pub(super) fn new_entries(value: Value) -> Result<Vec<Entry>, Fault> {
    match value {
        Value::Nil => Ok(Vec::new()),
        Value::Array(streams) => match <[Value; 1]>::try_from(streams) {
            Ok([Value::Array(stream)]) => match <[Value; 2]>::try_from(stream) {
                Ok([_, entries]) => list(entries),
                Err(_) => Err(Fault::nonsense("a stream without entries")),
            },
            _ => Err(Fault::nonsense("another number of streams than one")),
        },
        _ => Err(Fault::nonsense("no streams where some belong")),
    }
}

/// What `XAUTOCLAIM` answers: where to go on, and what was left.
pub(super) fn claimed(value: Value) -> Result<(String, Vec<Entry>), Fault> {
    let Value::Array(parts) = value else { return Err(Fault::nonsense("no list where one belongs")) };
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next()) {
        (Some(next), Some(entries)) => Ok((id(next)?, list(entries)?)),
        _ => Err(Fault::nonsense("it ended early")),
    }
}

/// The numbers of the entries that `XPENDING` lists.
pub(super) fn pending(value: Value) -> Result<Vec<String>, Fault> {
    let Value::Array(rows) = value else { return Err(Fault::nonsense("no list where one belongs")) };
    let first = |row| match row {
        Value::Array(columns) => columns.into_iter().next().ok_or_else(|| Fault::nonsense("an empty row")),
        _ => Err(Fault::nonsense("no row where one belongs")),
    };
    rows.into_iter().map(|row| id(first(row)?)).collect()
}

/// A list of entries, as `XRANGE` answers it too.
pub(super) fn list(value: Value) -> Result<Vec<Entry>, Fault> {
    let Value::Array(entries) = value else { return Err(Fault::nonsense("no entries where some belong")) };
    // Older servers name deleted ones as nil.
    entries.into_iter().filter(|entry| *entry != Value::Nil).map(entry).collect()
}

fn entry(value: Value) -> Result<Entry, Fault> {
    let Value::Array(parts) = value else { return Err(Fault::nonsense("an entry that is none")) };
    let mut parts = parts.into_iter();
    let id = id(parts.next().unwrap_or_default())?;
    let alert = match parts.next() {
        Some(Value::Array(fields)) => field(fields),
        _ => None,
    };
    Ok(Entry { id, alert })
}

fn field(fields: Vec<Value>) -> Option<Vec<u8>> {
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        if let (Value::BulkString(name), Value::BulkString(value)) = (name, value)
            && name == FIELD.as_bytes()
        {
            return Some(value);
        }
    }
    None
}

fn id(value: Value) -> Result<String, Fault> {
    let Value::BulkString(bytes) = value else { return Err(Fault::nonsense("an entry without a number")) };
    let plain = |byte: &u8| byte.is_ascii_digit() || *byte == b'-';
    let id = String::from_utf8(bytes).ok().filter(|id| id.len() <= 64 && id.as_bytes().iter().all(plain));
    id.ok_or_else(|| Fault::nonsense("an entry's number that is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn array(values: Vec<Value>) -> Value {
        Value::Array(values)
    }

    #[test]
    fn entries_are_read_whatever_else_they_hold() {
        let good = array(vec![text("1-0"), array(vec![text("x"), text("y"), text("alert"), text("{}")])]);
        let bare = array(vec![text("2-0"), array(vec![])]);
        let odd = array(vec![text("3-0"), array(vec![text("alert")])]);
        let deleted = array(vec![text("4-0"), Value::Nil]);
        let read = new_entries(array(vec![array(vec![
            text("key"),
            array(vec![good.clone(), bare, Value::Nil, odd, deleted]),
        ])]))
        .unwrap();
        let entry = |id: &str, alert: Option<&str>| Entry {
            id: id.to_owned(),
            alert: alert.map(|alert| alert.as_bytes().to_vec()),
        };
        assert_eq!(
            read,
            [entry("1-0", Some("{}")), entry("2-0", None), entry("3-0", None), entry("4-0", None)]
        );
        assert_eq!(new_entries(Value::Nil).unwrap(), []);
        let (next, left) = claimed(array(vec![text("0-0"), array(vec![good]), array(vec![])])).unwrap();
        assert_eq!((next.as_str(), left.len()), ("0-0", 1));
        let rows = array(vec![array(vec![text("1-0"), text("agent"), Value::Int(5), Value::Int(1)])]);
        assert_eq!(pending(rows).unwrap(), ["1-0"]);
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_no_panic() {
        for value in [
            Value::Okay,
            Value::Int(1),
            array(vec![]),
            array(vec![Value::Nil]),
            array(vec![array(vec![text("key")])]),
            array(vec![array(vec![text("key"), Value::Int(1)])]),
            array(vec![array(vec![text("key"), array(vec![Value::Int(1)])])]),
            array(vec![array(vec![text("key"), array(vec![array(vec![text("1-0; FLUSHALL")])])])]),
        ] {
            assert!(new_entries(value.clone()).is_err(), "{value:?}");
            assert!(claimed(value.clone()).is_err(), "{value:?}");
        }
        assert!(pending(array(vec![array(vec![])])).is_err());
    }
}
