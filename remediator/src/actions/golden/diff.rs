//! What bringing a snapshot back changes, in words and line by line. Pure but for reading the two sides.

use evenkeel_host::systemd::snapshot::{self, Change, Entry, Found, Snapshot};

use super::Golden;
use crate::text::printable;

/// Files named in one line.
const NAMED: usize = 20;
/// Lines of a description.
const LINES: usize = 200;
/// Lines of a file that are compared one by one; longer ones are only said to differ.
const COMPARED: usize = 1000;

/// One file or link as it is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Wanted {
    /// Where.
    pub(in super::super) path: String,
    /// The unit that it belongs to.
    pub(in super::super) unit: String,
    /// How it differs now.
    pub(in super::super) change: Change,
    /// What it is to be; gone where there is none.
    pub(in super::super) entry: Option<Entry>,
}

/// Which files differ, and how, in one line.
pub(in super::super) fn describe<'a>(changes: impl Iterator<Item = (&'a str, Change)>) -> String {
    let all: Vec<(&str, Change)> = changes.collect();
    let mut named: Vec<String> =
        all.iter().take(NAMED).map(|(path, change)| format!("{path} {}", change.as_str())).collect();
    if all.len() > NAMED {
        named.push(format!("and {} more", all.len() - NAMED));
    }
    let files = if all.len() == 1 { "1 file".to_owned() } else { format!("{} files", all.len()) };
    format!("{files}: {}", named.join(", "))
}

/// The same line by line. What not everybody may read is not shown.
pub(in super::super) fn difference(golden: &Golden, snapshot: &Snapshot, wanted: &[Wanted]) -> String {
    let mut lines = Vec::new();
    for one in wanted {
        let now = snapshot::look(&golden.at(&one.path)).ok().flatten();
        let content = one.entry.as_ref().and_then(|_| snapshot.content(&one.path).ok());
        lines.push(format!("{} ({})", one.path, one.change.as_str()));
        lines.extend(compared(now.as_ref(), one.entry.as_ref(), content.as_deref()));
    }
    if lines.len() > LINES {
        let more = lines.len() - LINES;
        lines.truncate(LINES);
        lines.push(format!("… and {more} lines more"));
    }
    lines.join("\n")
}

fn compared(now: Option<&Found>, entry: Option<&Entry>, content: Option<&[u8]>) -> Vec<String> {
    let mut lines = Vec::new();
    for (sign, entry) in [('-', now.map(|now| &now.entry)), ('+', entry)] {
        match entry {
            None => {}
            Some(Entry::Link { to, .. }) => lines.push(format!("  {sign} link to {}", printable(to))),
            Some(Entry::File { mode, uid, gid, .. }) => {
                lines.push(format!("  {sign} file {mode} {uid}:{gid}"));
            }
        }
    }
    if let [old, new] = lines.as_slice()
        && old[3..] == new[3..]
    {
        lines.clear();
    }
    let is_secret = |entry: Option<&Entry>| entry.and_then(Entry::mode).is_some_and(|mode| mode & 0o004 == 0);
    if is_secret(now.map(|now| &now.entry)) || is_secret(entry) {
        lines.push("  (what is in it is not shown: not everybody may read it)".to_owned());
        return lines;
    }
    let text = |content: Option<&[u8]>| content.map(String::from_utf8_lossy).unwrap_or_default().into_owned();
    let (old, new) = (text(now.and_then(|now| now.content.as_deref())), text(content));
    lines.extend(by_line(&old, &new));
    lines
}

/// The lines that only one side has, in order.
fn by_line(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    if old.len() > COMPARED || new.len() > COMPARED {
        return vec![format!("  ({} lines become {})", old.len(), new.len())];
    }
    // How many lines the rests have in common, for each pair of places.
    let (start, old_end, new_end) = bounds(&old, &new);
    let mut common = vec![vec![0_u32; new_end + 1]; old_end + 1];
    for i in (start..old_end).rev() {
        for j in (start..new_end).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (start, start, Vec::new());
    while i < old_end || j < new_end {
        if i < old_end && j < new_end && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if i < old_end && (j == new_end || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("  - {}", shown(old[i])));
            i += 1;
        } else {
            lines.push(format!("  + {}", shown(new[j])));
            j += 1;
        }
    }
    lines
}

/// Where the lines begin to differ, and where in each they end to.
fn bounds(old: &[&str], new: &[&str]) -> (usize, usize, usize) {
    let start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let rests = old[start..].iter().rev().zip(new[start..].iter().rev());
    let end = rests.take_while(|(old, new)| old == new).count();
    (start, old.len() - end, new.len() - end)
}

/// A line fit to be shown. What is named like a secret is hidden, as far as its name says so.
fn shown(line: &str) -> String {
    let line = printable(line);
    let names_a_secret = |(place, _): &(usize, &str)| {
        let before = &line[..*place];
        let start = before.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
        let name = before[start..].to_ascii_uppercase();
        // What stands at the beginning is systemd's own word: LoadCredential= says where a secret lies.
        let is_own_word = start == 0 && name != "SETCREDENTIAL";
        !is_own_word && ["PASS", "SECRET", "TOKEN", "KEY", "CRED"].iter().any(|word| name.contains(word))
    };
    let mut text = match line.match_indices('=').find(names_a_secret) {
        Some((place, _)) => format!("{}(hidden)", &line[..=place]),
        None => line,
    };
    if let Some(start) = text.find("://").map(|at| at + 3)
        && let Some(end) = text[start..].find(|c: char| matches!(c, '@' | '/') || c.is_whitespace())
        && text[start + end..].starts_with('@')
    {
        text.replace_range(start..start + end, "(hidden)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_that_differ_are_shown() {
        let old = "[Unit]\nDescription=a\n[Service]\nExecStart=/bin/a\nNice=5\n";
        let new = "[Unit]\nDescription=a\n[Service]\nUser=qt\nExecStart=/bin/b\nNice=5\n";
        assert_eq!(by_line(old, new), ["  - ExecStart=/bin/a", "  + User=qt", "  + ExecStart=/bin/b"]);
        assert_eq!(by_line("", "a\nb\n"), ["  + a", "  + b"]);
        assert_eq!(by_line("a\nb\n", ""), ["  - a", "  - b"]);
        assert_eq!(by_line("a\nb\nc\n", "a\nc\n"), ["  - b"]);
        assert_eq!(by_line("a\nb\n", "b\na\nb\n"), ["  + b"]);
        assert_eq!(by_line("a\n", "a\n"), Vec::<String>::new());
        assert_eq!(by_line(&"x\n".repeat(COMPARED + 1), "y"), ["  (1001 lines become 1)"]);
    }

    #[test]
    fn what_is_named_like_a_secret_is_hidden() {
        for (line, expected) in [
            ("Environment=REDIS_HOST=127.0.0.1", "Environment=REDIS_HOST=127.0.0.1"),
            ("Environment=API_TOKEN=abc DEBUG=1", "Environment=API_TOKEN=(hidden)"),
            ("Environment=\"Db_Password=a b\"", "Environment=\"Db_Password=(hidden)"),
            ("LoadCredential=key:/etc/key", "LoadCredential=key:/etc/key"),
            ("SetCredential=key:abc", "SetCredential=(hidden)"),
            ("ExecStart=/bin/a --url redis://u:p@host/0", "ExecStart=/bin/a --url redis://(hidden)@host/0"),
            ("Documentation=https://example.org/a@b", "Documentation=https://example.org/a@b"),
            ("a\u{1b}[2J", "a\\u{1b}[2J"),
        ] {
            assert_eq!(shown(line), expected);
        }
    }

    #[test]
    fn modes_owners_and_links_are_said() {
        let file = |mode: &str| Entry::File {
            mode: mode.to_owned(),
            uid: 0,
            gid: 0,
            bytes: 2,
            sha256: Some(String::new()),
        };
        let found = |entry, text: &str| Found { entry, content: Some(text.as_bytes().to_vec()) };
        let link = |to: &str| Entry::Link { uid: 0, gid: 0, to: to.to_owned() };
        let now = found(file("0666"), "a\n");
        assert_eq!(
            compared(Some(&now), Some(&file("0644")), Some(b"a\n")),
            ["  - file 0666 0:0", "  + file 0644 0:0"]
        );
        let now = Found { entry: link("/opt/x"), content: None };
        assert_eq!(
            compared(Some(&now), Some(&link("../y")), None),
            ["  - link to /opt/x", "  + link to ../y"]
        );
        let secret = found(file("0600"), "TOP\n");
        let said = compared(Some(&secret), Some(&file("0600")), Some(b"OTHER\n"));
        assert_eq!(said, ["  (what is in it is not shown: not everybody may read it)"]);
        assert_eq!(compared(None, Some(&file("0644")), Some(b"a\n")), ["  + file 0644 0:0", "  + a"]);
    }

    #[test]
    fn many_files_are_counted() {
        let paths: Vec<String> = (0..25).map(|n| format!("/{n}")).collect();
        let said = describe(paths.iter().map(|path| (path.as_str(), Change::Missing)));
        assert!(said.starts_with("25 files: /0 missing, /1 missing"), "{said}");
        assert!(said.ends_with("/19 missing, and 5 more"), "{said}");
        assert_eq!(describe([("/a", Change::Added)].into_iter()), "1 file: /a added");
    }
}
