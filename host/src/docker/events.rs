//! The engine's announcements that something about a container has changed.
//!
//! An announcement is a hint: what changed is found out by looking. Announcements get lost (the engine keeps 256 and
//! waits for no slow reader), so whoever follows them looks at everything now and then.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::{Error, decode, http, is_container_name};

/// The longest announcement that is read. It holds all labels of the container.
const LINE_LIMIT: usize = 1 << 20;

/// What a container's state depends on. Not the `exec_*` of healthchecks, of which there are several a second on any
/// larger host. An engine takes each word for the beginning of one: `health_status` is always followed by the verdict.
const ACTIONS: [&str; 13] = [
    "create",
    "start",
    "die",
    "stop",
    "kill",
    "oom",
    "pause",
    "unpause",
    "rename",
    "update",
    "destroy",
    "restart",
    "health_status",
];

/// One announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The full id of the container.
    pub container: String,
}

/// The announcements as they come. Dropping it closes the connection.
pub struct Events {
    answer: http::Answer,
    lines: Lines,
}

impl Events {
    pub(super) fn new(answer: http::Answer) -> Self {
        Self { answer, lines: Lines::default() }
    }

    /// Waits for the next one, for ever if nothing happens. Nothing is lost when this future is dropped.
    ///
    /// # Errors
    /// When the stream has ended, which it does not while the engine runs, or holds what is no announcement. It cannot
    /// be read on then.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            match self.lines.next()? {
                Some([]) => {}
                Some(line) => return parse(line),
                None => match self.answer.next().await? {
                    Some(bytes) => self.lines.push(&bytes),
                    None => return Err(Error::Broken("it sends no more events".into())),
                },
            }
        }
    }
}

/// The path of the stream, with what the engine still knows since then.
pub(super) fn path(since: SystemTime) -> String {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let actions = ACTIONS.map(|action| format!("%22{action}%22")).join(",");
    let filters = format!("%7B%22type%22:%5B%22container%22%5D,%22event%22:%5B{actions}%5D%7D");
    format!("/events?since={}.{:09}&filters={filters}", since.as_secs(), since.subsec_nanos())
}

fn parse(line: &[u8]) -> Result<Event, Error> {
    let Announcement { actor } = decode("/events", line)?;
    if is_container_name(&actor.id) {
        Ok(Event { container: actor.id })
    } else {
        Err(Error::Answer("/events: no container id".into()))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Announcement {
    actor: Actor,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
}

/// Cuts what comes in pieces into lines.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// Where the first line that was not given out begins.
    start: usize,
    /// There is no line break between `start` and here.
    searched: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, if there is one.
    fn next(&mut self) -> Result<Option<&[u8]>, Error> {
        let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let end = found.map_or(self.buffer.len(), |place| self.searched + place);
        if end - self.start > LINE_LIMIT {
            return Err(Error::Answer(format!("/events: a line of more than {LINE_LIMIT} bytes")));
        }
        if found.is_none() {
            self.searched = end;
            return Ok(None);
        }
        let line = &self.buffer[self.start..end];
        self.start = end + 1;
        self.searched = self.start;
        Ok(Some(line.trim_ascii()))
    }
}

/// Reads the bytes in pieces of every small size; where they are cut must make no difference.
#[cfg(feature = "foreign-input")]
pub(super) fn feed(bytes: &[u8]) {
    let read = |size: usize| {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in bytes.chunks(size) {
            lines.push(piece);
            while let Ok(Some(line)) = lines.next() {
                seen.push((line.to_vec(), parse(line).is_ok()));
            }
        }
        seen
    };
    let whole = read(bytes.len().max(1));
    for size in [1, 7, 4096] {
        assert_eq!(read(size), whole, "in pieces of {size}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines in pieces of this size.
    fn cut(text: &str, size: usize) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            lines.push(piece);
            while let Some(line) = lines.next().unwrap() {
                found.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        found
    }

    #[test]
    fn lines_are_found_however_they_are_cut() {
        for size in [1, 2, 3, 7, 100] {
            assert_eq!(cut("one\ntwo\r\n\nthree\nrest", size), ["one", "two", "", "three"], "{size}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 1 << 16];
        let refused = (0..100).find_map(|_| {
            lines.push(&piece);
            lines.next().err()
        });
        assert_eq!(refused.unwrap().reason(), "bad_answer");
        assert!(lines.buffer.len() <= LINE_LIMIT + piece.len());
    }

    #[test]
    fn an_announcement_names_a_container() {
        let line = br#"{"status":"die","id":"4f1c","from":"web","Type":"container","Action":"die",
            "Actor":{"ID":"4f1c","Attributes":{"exitCode":"1","name":"web"}},"scope":"local","time":1,"timeNano":1}"#;
        assert_eq!(parse(line).unwrap().container, "4f1c");
        for bad in [
            "",
            "nonsense",
            "{}",
            "[]",
            r#"{"Actor":{}}"#,
            r#"{"Actor":{"ID":5}}"#,
            r#"{"Actor":{"ID":"../../info"}}"#,
        ] {
            assert_eq!(parse(bad.as_bytes()).unwrap_err().reason(), "bad_answer", "{bad}");
        }
    }

    #[test]
    fn only_changes_are_asked_for() {
        let path = path(UNIX_EPOCH + Duration::from_millis(5_250));
        assert!(
            path.starts_with("/events?since=5.250000000&filters=%7B%22type%22:%5B%22container%22%5D,"),
            "{path}"
        );
        assert!(path.ends_with(",%22health_status%22%5D%7D") && !path.contains("exec"), "{path}");
    }
}
