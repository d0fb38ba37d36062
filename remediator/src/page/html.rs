//! The few elements of the status page. A [`Cell`] is markup that was made here; text of others becomes a part of it
//! only by [`text`], escaped, on one line and bounded.

use std::{borrow::Cow, fmt::Write};

use evenkeel_host::web::page::Escaped;

use crate::{clock::rfc3339, text::printable};

/// Longer texts are cut on this page, in characters; `history` has the whole.
const LONGEST: usize = 300;

/// Markup.
pub(super) type Cell = String;

/// Text of others.
pub(super) fn text(foreign: &str) -> Cell {
    let shown = printable(&first(foreign));
    Escaped(&shown).to_string()
}

/// The beginning of a text.
fn first(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// A command to paste.
pub(super) fn code(command: &str) -> Cell {
    format!("<code>{}</code>", text(command))
}

/// Words that matter less.
pub(super) fn dim(words: &str) -> Cell {
    format!("<span class=\"dim\">{}</span>", text(words))
}

/// A word with what it means, by a sign and a colour.
pub(super) fn mark(tone: Tone, word: &str) -> Cell {
    let (class, sign) = match tone {
        Tone::Good => ("good", "✓"),
        Tone::Bad => ("bad", "✗"),
        Tone::Wait => ("wait", "◷"),
        Tone::Quiet => ("dim", "·"),
    };
    format!("<span class=\"{class}\"><span aria-hidden=\"true\">{sign} </span>{}</span>", text(word))
}

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Wait,
    Quiet,
}

/// A time, and how far from now it is.
pub(super) fn time(wall_ms: i64, now_ms: i64) -> Cell {
    let stamp = rfc3339(wall_ms);
    let shown = stamp.replacen('T', " ", 1).replacen('Z', " UTC", 1);
    format!("<time datetime=\"{stamp}\">{shown} ({})</time>", distance(wall_ms, now_ms))
}

/// `5 min ago`, `in 3 h`.
fn distance(wall_ms: i64, now_ms: i64) -> String {
    let seconds = (now_ms - wall_ms).unsigned_abs() / 1000;
    let span = match seconds {
        0 => return "now".to_owned(),
        1..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    };
    if wall_ms < now_ms { format!("{span} ago") } else { format!("in {span}") }
}

/// A list, or nothing at all.
pub(super) fn list(items: &[Cell]) -> Cell {
    if items.is_empty() {
        return String::new();
    }
    items.iter().fold("<ul>".to_owned(), |list, item| list + "<li>" + item + "</li>") + "</ul>"
}

/// Something that whoever opens the page must see first.
pub(super) fn notice(page: &mut String, tone: Tone, markup: &str) {
    let class = match tone {
        Tone::Good => "good",
        Tone::Bad => "bad",
        Tone::Wait => "wait",
        Tone::Quiet => "dim",
    };
    // Writing to a string never fails.
    let _ = writeln!(page, "<p class=\"notice {class}\">{markup}</p>");
}

/// A section of one table, or of the words that stand for an empty one. On a narrow screen each row becomes a box; the
/// roles keep it a table for those who listen to it.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) caption: String,
    pub(super) headings: &'static [&'static str],
    pub(super) rows: Vec<Vec<Cell>>,
    pub(super) empty: &'static str,
}

impl Table {
    pub(super) fn write(&self, page: &mut String) {
        let _ = writeln!(page, "<section>\n<h2>{}</h2>", self.title);
        if self.rows.is_empty() {
            let _ = writeln!(page, "<p class=\"dim\">{}</p>\n</section>", self.empty);
            return;
        }
        let _ = writeln!(page, "<table role=\"table\">\n<caption>{}</caption>", Escaped(&self.caption));
        let _ = write!(page, "<thead role=\"rowgroup\"><tr role=\"row\">");
        for heading in self.headings {
            let _ = write!(page, "<th role=\"columnheader\" scope=\"col\">{heading}</th>");
        }
        let _ = writeln!(page, "</tr></thead>\n<tbody role=\"rowgroup\">");
        for row in &self.rows {
            let _ = write!(page, "<tr role=\"row\">");
            for (position, (cell, heading)) in row.iter().zip(self.headings).enumerate() {
                let _ = match (position, cell.is_empty()) {
                    (0, _) => write!(page, "<th role=\"rowheader\" scope=\"row\">{cell}</th>"),
                    (_, true) => write!(page, "<td role=\"cell\" class=\"none\"></td>"),
                    _ => write!(page, "<td role=\"cell\" data-label=\"{heading}\"><div>{cell}</div></td>"),
                };
            }
            let _ = writeln!(page, "</tr>");
        }
        let _ = writeln!(page, "</tbody>\n</table>\n</section>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_told_in_words() {
        let now = 1_800_000_000_000;
        for (ago_ms, words) in [
            (0, "now"),
            (5_000, "5 s ago"),
            (-90_000, "in 90 s"),
            (360_000, "6 min ago"),
            (-7_300_000, "in 2 h"),
            (200_000_000, "2 d ago"),
        ] {
            assert_eq!(distance(now - ago_ms, now), words);
        }
        assert_eq!(
            time(now, now),
            "<time datetime=\"2027-01-15T08:00:00Z\">2027-01-15 08:00:00 UTC (now)</time>"
        );
    }

    #[test]
    fn text_of_others_is_short_and_no_markup() {
        assert_eq!(text("<b>\u{1b}[0m'\n"), "&lt;b&gt;\\u{1b}[0m&#39;");
        assert_eq!(text(&"<".repeat(100_000)).len(), LONGEST * 4 + "…".len());
    }
}
