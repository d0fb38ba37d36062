//! The syntax of unit files (systemd.syntax(7)), with the place of every word, so that one word can be taken out and not a
//! byte more. As systemd itself reads them (src/shared/conf-parser.c): what it ignores is no assignment here either.
//!
//! Not here: which files a unit has ([`super::references`]), and what a directive means.

use std::ops::Range;

use super::is_unit_name;

/// Directives that name other units, by section. Not `Conflicts=`: that a unit which must not run does not exist is well.
const REFERENCES: [(&str, &[&str]); 2] = [
    (
        "Unit",
        &[
            "After",
            "Before",
            "BindsTo",
            "OnFailure",
            "OnSuccess",
            "PartOf",
            "Requires",
            "Requisite",
            "Upholds",
            "Wants",
        ],
    ),
    ("Install", &["Also"]),
];

/// What begins a comment, at the beginning of a line.
const COMMENT: [u8; 2] = [b'#', b';'];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A unit that a unit file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `After`, `Wants` …
    pub directive: &'static str,
    /// The unit's name; without specifiers (`%i`), which mean another unit in every unit.
    pub name: String,
    /// The line that the name is on, from 1.
    pub line: usize,
}

/// A unit file without one of the units that it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The whole file.
    pub text: Vec<u8>,
    /// The lines that differ.
    pub edits: Vec<Edit>,
}

/// One line that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Where it was, from 1.
    pub line: usize,
    /// What it said, without the end of the line.
    pub before: String,
    /// What it says; `None` for a line that is gone.
    pub after: Option<String>,
}

/// An assignment: its section, key and value, and where they are.
#[derive(Debug)]
struct Assignment {
    section: String,
    key: String,
    /// As one line.
    value: String,
    /// What it is made of.
    words: Vec<Word>,
    /// What follows them from a quote on that has no end; systemd ignores it.
    rest: String,
    /// The lines that it is on, without comments in between.
    lines: Vec<Line>,
}

/// A word of a value.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    /// Without quotes.
    text: String,
    /// Where it is, with its quotes.
    place: Range<usize>,
}

/// A line of the file, as it lies there.
#[derive(Debug, Clone)]
struct Line {
    /// From 1.
    number: usize,
    /// Without the end of the line.
    content: Range<usize>,
    /// With it.
    whole: Range<usize>,
}

/// The units that a unit file names, in its order.
pub fn references(text: &[u8]) -> Vec<Reference> {
    let mut found = Vec::new();
    for assignment in assignments(text) {
        let Some(directive) = assignment.directive() else { continue };
        for word in assignment.words.iter().filter(|word| is_reference(&word.text)) {
            found.push(Reference { directive, name: word.text.clone(), line: assignment.line_of(word) });
        }
    }
    found
}

/// The unit file without every reference to the unit `name`. Where nothing else is assigned, the assignment goes: an empty
/// one of these directives means nothing (systemd.unit(5)). Everything else stays, byte for byte.
///
/// `None` where the rest would not mean what it did: where lines end now so and now so, the ends of two may run together,
/// and what comes to the beginning or the end of a line may be a comment there, or ask for the next line.
pub fn without(text: &[u8], name: &str) -> Option<Removal> {
    let mut edits = Vec::new();
    for assignment in assignments(text).iter().filter(|assignment| assignment.directive().is_some()) {
        assignment.edits_without(text, name, &mut edits);
    }
    let mut left = Vec::with_capacity(text.len());
    let mut at = 0;
    for (line, after) in &edits {
        left.extend_from_slice(&text[at..line.whole.start]);
        if let Some(after) = after {
            // A mark of the byte order.
            left.extend_from_slice(&text[line.whole.start..line.content.start]);
            left.extend_from_slice(after);
            left.extend_from_slice(&text[line.content.end..line.whole.end]);
        }
        at = line.whole.end;
    }
    left.extend_from_slice(&text[at..]);
    let is_gone = references(&left).iter().all(|reference| reference.name != name);
    if !is_gone || says(text, name) != says(&left, name) {
        return None;
    }
    let edits = edits.into_iter().map(|(line, after)| Edit {
        line: line.number,
        before: shown(&text[line.content]),
        after: after.as_deref().map(shown),
    });
    Some(Removal { edits: edits.collect(), text: left })
}

/// Everything that a unit file assigns but the references to the unit `but`: section, key and value. Two files of which
/// this is the same differ for systemd in those references alone.
pub fn says(text: &[u8], but: &str) -> Vec<(String, String, String)> {
    let said = |assignment: Assignment| {
        let value = match assignment.directive() {
            None => assignment.value,
            Some(_) => {
                let words = assignment.words.iter().map(|word| word.text.as_str());
                let left: Vec<&str> = words.filter(|word| *word != but).chain([&*assignment.rest]).collect();
                // White space between them means nothing, and neither does an empty value.
                Some(left.join(" ")).filter(|left| !left.trim().is_empty())?
            }
        };
        Some((assignment.section, assignment.key, value))
    };
    assignments(text).into_iter().filter_map(said).collect()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether a word is the name of another unit: no template, which stands for the instance of the unit that names it.
fn is_reference(word: &str) -> bool {
    is_unit_name(word) && !word.contains("@.")
}

impl Assignment {
    /// The directive, if it is one that names units.
    fn directive(&self) -> Option<&'static str> {
        let (_, directives) = REFERENCES.iter().find(|(section, _)| *section == self.section)?;
        directives.iter().copied().find(|directive| *directive == self.key)
    }

    /// The number of the line that a word begins on.
    fn line_of(&self, word: &Word) -> usize {
        let behind = self.lines.partition_point(|line| line.whole.start <= word.place.start);
        self.lines[..behind].last().map_or(0, |line| line.number)
    }

    /// The words that lie on a line, or partly.
    fn words_on(&self, line: &Line) -> &[Word] {
        let first = self.words.partition_point(|word| word.place.end <= line.whole.start);
        let behind = self.words.partition_point(|word| word.place.start < line.whole.end);
        &self.words[first..behind]
    }

    /// The lines that change when a name goes, each with what it says then.
    fn edits_without(&self, text: &[u8], name: &str, edits: &mut Vec<(Line, Option<Vec<u8>>)>) {
        if !self.words.iter().any(|word| word.text == name) {
            return;
        }
        if self.rest.is_empty() && self.words.iter().all(|word| word.text == name) {
            edits.extend(self.lines.iter().map(|line| (line.clone(), None)));
            return;
        }
        let last = self.lines.len() - 1;
        for (position, line) in self.lines.iter().enumerate() {
            let on_it = self.words_on(line);
            if !on_it.iter().any(|word| word.text == name) {
                continue;
            }
            // A quote that has no end stays too.
            let has_more = !self.rest.is_empty() || on_it.iter().any(|word| word.text != name);
            let after = match position {
                _ if has_more || position == 0 => Some(cut(text, line, on_it, name)),
                // The end of the assignment stays an end.
                _ if position == last => Some(Vec::new()),
                _ => None,
            };
            edits.push((line.clone(), after));
        }
    }
}

/// A line without the words that are `name`, each with the white space that set it off from its neighbour.
fn cut(text: &[u8], line: &Line, words: &[Word], name: &str) -> Vec<u8> {
    let mut left = Vec::new();
    let mut at = line.content.start;
    let mut is_first = true;
    for (position, word) in words.iter().enumerate() {
        if word.text != name {
            is_first = false;
            continue;
        }
        let (start, end) = if is_first {
            // What follows moves to its place.
            let next = words.get(position + 1).map(|next| next.place.start);
            let blank = || word.place.end + blanks(&text[word.place.end..line.content.end]);
            (word.place.start, next.unwrap_or_else(blank))
        } else {
            let before = text[at..word.place.start].iter().rev().take_while(|byte| is_blank(**byte)).count();
            (word.place.start - before, word.place.end)
        };
        left.extend_from_slice(&text[at..start]);
        at = end;
    }
    left.extend_from_slice(&text[at..line.content.end]);
    left
}

/// How many bytes of white space there are at the beginning.
fn blanks(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| is_blank(**byte)).count()
}

/// systemd's `WHITESPACE`.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let start = blanks(bytes);
    let end = bytes.len() - bytes[start..].iter().rev().take_while(|byte| is_blank(**byte)).count();
    &bytes[start..end]
}

/// The lines of a text. They end as systemd has it: with a newline and a carriage return in either order or one of the two,
/// or a zero, or what all of these make together.
fn lines(text: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r' | 0);
        let length = text[start..].iter().take_while(|byte| !is_end(byte)).count();
        let content = start..start + length;
        let mut end = content.end;
        while end < text.len()
            && is_end(&text[end])
            && !text[content.end..end].contains(&text[end])
            && !text[content.end..end].contains(&0)
        {
            end += 1;
        }
        lines.push(Line { number: lines.len() + 1, content, whole: start..end });
        start = end;
    }
    lines
}

/// A line with those that continue it: its bytes, and where each lies.
#[derive(Default)]
struct Joined {
    bytes: Vec<u8>,
    places: Vec<usize>,
    lines: Vec<Line>,
}

impl Joined {
    /// Takes a line; says whether the next one continues it.
    fn take(&mut self, text: &[u8], line: Line) -> bool {
        let mut is_escaped = false;
        for place in line.content.clone() {
            is_escaped = !is_escaped && text[place] == b'\\';
            self.bytes.push(text[place]);
            self.places.push(place);
        }
        if is_escaped && let Some(last) = self.bytes.last_mut() {
            *last = b' ';
        }
        self.lines.push(line);
        is_escaped
    }
}

/// Everything that is assigned.
fn assignments(text: &[u8]) -> Vec<Assignment> {
    let mut found = Vec::new();
    let mut section = String::new();
    let mut joined = Joined::default();
    for mut line in lines(text) {
        if line.number == 1 && text.starts_with(BYTE_ORDER_MARK) {
            line.content.start += BYTE_ORDER_MARK.len();
        }
        let content = &text[line.content.clone()];
        // A comment may lie between lines that continue each other.
        if content.get(blanks(content)).is_some_and(|first| COMMENT.contains(first)) {
            continue;
        }
        if !joined.take(text, line) {
            read(std::mem::take(&mut joined), &mut section, &mut found);
        }
    }
    // The last line asks to be continued.
    read(joined, &mut section, &mut found);
    found
}

/// Reads one line, joined with those that continue it.
fn read(joined: Joined, section: &mut String, found: &mut Vec<Assignment>) {
    // What is no text systemd ignores as a whole.
    let Ok(line) = std::str::from_utf8(trimmed(&joined.bytes)) else { return };
    if let Some(header) = line.strip_prefix('[') {
        // With a broken header systemd takes nothing from the file.
        *section = header.strip_suffix(']').unwrap_or_default().to_owned();
        return;
    }
    let Some(equals) = joined.bytes.iter().position(|byte| *byte == b'=') else { return };
    let key = shown(trimmed(&joined.bytes[..equals]));
    if key.is_empty() {
        return;
    }
    let value = shown(trimmed(&joined.bytes[equals + 1..]));
    let (words, rest) = words(&joined, equals + 1);
    found.push(Assignment { section: section.clone(), key, value, words, rest, lines: joined.lines });
}

/// The words of a value, as systemd reads them in the directives that name units: set off by white space, or in quotes of
/// either kind, and with nothing special about a backslash. Also what is no word: from a quote on that has no end.
fn words(joined: &Joined, from: usize) -> (Vec<Word>, String) {
    let mut words = Vec::new();
    let mut at = from;
    loop {
        at += blanks(&joined.bytes[at..]);
        if at == joined.bytes.len() {
            return (words, String::new());
        }
        let (start, mut text, mut quote) = (at, Vec::new(), None);
        while let Some(byte) = joined.bytes.get(at) {
            match quote {
                Some(end) if end == *byte => quote = None,
                None if matches!(byte, b'"' | b'\'') => quote = Some(*byte),
                None if is_blank(*byte) => break,
                _ => text.push(*byte),
            }
            at += 1;
        }
        if quote.is_some() {
            return (words, shown(&joined.bytes[start..]));
        }
        let place = joined.places[start]..joined.places[at - 1] + 1;
        words.push(Word { text: shown(&text), place });
    }
}

/// What reads foreign bytes here, for tests.
#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "unit files",
    parse: |bytes| {
        if let Some(removal) = without(bytes, "b.service") {
            assert!(references(&removal.text).iter().all(|found| found.name != "b.service"));
            assert!(removal.edits.is_empty() == (removal.text == bytes));
        }
    },
    samples: &[
        "[Unit]\nDescription=x\nAfter=a.service b.service\nWants=b.service\n\n[Install]\nAlso=b.service c.service\n",
        "[Unit]\r\nAfter=a.service \\\r\n  # no\r\n  b.service \\\r\n  \"c.service\"\r\nWants=\r\n",
        "\u{feff}[Unit]\nRequires=b.service 'd.service \\\n b.service'\n.include /x\nBefore=%i.service 'b.service",
        "[X-Own]\nAfter=b.service\n[Unit\nAfter=b.service\n[Unit]\n; After=b.service\nPartOf = b.service\tb.service \\",
    ],
}];

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    fn removed(text: &str, name: &str) -> Removal {
        without(text.as_bytes(), name).unwrap()
    }

    fn left(text: &str) -> String {
        String::from_utf8(removed(text, "b.service").text).unwrap()
    }

    fn named(text: &str) -> Vec<String> {
        let found = references(text.as_bytes()).into_iter();
        found.map(|found| format!("{} {} {}", found.line, found.directive, found.name)).collect()
    }

    #[test]
    fn the_words_of_the_documents_go_as_they_did_by_hand() {
        let target = "[Unit]\nDescription=Trader\nWants=quantum-execution.service\nWants=quantum-ai-engine.service\nWants=quantum-pil.service\n\n[Install]\nWantedBy=multi-user.target\n";
        let removal = removed(target, "quantum-ai-engine.service");
        assert_eq!(
            String::from_utf8(removal.text).unwrap(),
            target.replace("Wants=quantum-ai-engine.service\n", "")
        );
        assert_eq!(
            removal.edits,
            [Edit { line: 4, before: "Wants=quantum-ai-engine.service".into(), after: None }]
        );
        let service = "[Unit]\nAfter=network.target quantum-ai-engine.service redis.service\n";
        let removal = removed(service, "quantum-ai-engine.service");
        assert_eq!(String::from_utf8(removal.text).unwrap(), "[Unit]\nAfter=network.target redis.service\n");
        assert_eq!(removal.edits[0].after.as_deref(), Some("After=network.target redis.service"));
    }

    #[test]
    fn names_are_found_where_systemd_finds_them() {
        let text = "\u{feff}[Unit]\n# After=no.service\n  ; no.service\nAfter=a.service \\\n# in between\n  b.service\\\n c.service\nDescription=After=no.service\nWants = \"d.service\" 'e.service'\nConflicts=no.service\n\n[Service]\nAfter=no.service\nExecStart=/bin/x a.service\n[Install]\nAlso=f.timer\nWantedBy=no.target\n";
        assert_eq!(
            named(text),
            [
                "4 After a.service",
                "6 After b.service",
                "7 After c.service",
                "9 Wants d.service",
                "9 Wants e.service",
                "16 Also f.timer"
            ]
        );
    }

    #[test]
    fn what_is_no_name_or_no_assignment_names_nothing() {
        for text in [
            "After=a.service\n",
            "[unit]\nAfter=a.service\n",
            "[Unit]\nafter=a.service\n",
            "[Unit]\nAfter=\n",
            "[Unit]\nAfter=%i.service foo@%i.service foo@.service notaname\n",
            "[Unit]\nAfter='a.service\n",
            "[Unit\nAfter=a.service\n",
            "[Unit]\n=a.service\n",
            "[Unit]\nAfter a.service\n",
            "[Unit]\n.include /etc/systemd/system/a.service\n",
            "[Unit]\nAfter=\"a.service b.service\"\n",
        ] {
            assert_eq!(named(text), Vec::<String>::new(), "{text:?}");
        }
        assert!(references(b"[Unit]\nAfter=a.service \xff\n").is_empty(), "no text");
        assert!(references(b"").is_empty());
        // An empty assignment resets nothing here: dependencies can only be added.
        assert_eq!(named("[Unit]\nAfter=a.service\nAfter=\n"), ["2 After a.service"]);
        assert_eq!(named("[Unit]\nAfter=a.service 'b.service"), ["2 After a.service"]);
    }

    #[test]
    fn lines_end_as_systemd_has_it() {
        for end in ["\n", "\r\n", "\r", "\n\r", "\0"] {
            let text =
                ["[Unit]", "After=a.service \\", "b.service", "Wants=b.service c.service", ""].join(end);
            assert_eq!(
                named(&text),
                ["2 After a.service", "3 After b.service", "4 Wants b.service", "4 Wants c.service"],
                "{end:?}"
            );
            let expected = ["[Unit]", "After=a.service \\", "", "Wants=c.service", ""].join(end);
            assert_eq!(left(&text), expected, "{end:?}");
        }
    }

    #[test]
    fn one_word_goes_and_its_neighbours_stay_as_they_are() {
        for (before, after) in [
            ("After=b.service a.service", "After=a.service"),
            ("After=  b.service\ta.service  ", "After=  a.service  "),
            ("After=a.service\tb.service  c.service", "After=a.service  c.service"),
            ("After=a.service b.service", "After=a.service"),
            // No comment: these are words too.
            ("After=a.service  b.service # b.service", "After=a.service #"),
            ("After=b.service a.service b.service b.service", "After=a.service"),
            ("After=b.service b.service a.service", "After=a.service"),
            ("After = 'b.service' a.service", "After = a.service"),
            (
                "After=a.service ab.service b.service.d b.services",
                "After=a.service ab.service b.service.d b.services",
            ),
            ("After=b.service %i.service", "After=%i.service"),
            ("After=b.service 'a.service", "After='a.service"),
            ("Description=b.service", "Description=b.service"),
        ] {
            let whole = |line: &str| format!("[Unit]\nX=1\n{line}\nY=2\n");
            assert_eq!(left(&whole(before)), whole(after), "{before}");
        }
    }

    #[test]
    fn an_assignment_of_nothing_else_goes_with_its_lines_and_leaves_comments() {
        assert_eq!(left("[Unit]\nAfter=b.service\nWants=a.service"), "[Unit]\nWants=a.service");
        assert_eq!(left("[Unit]\nAfter=b.service"), "[Unit]\n");
        assert_eq!(
            left("[Unit]\nAfter=b.service \\\n  # why\n  b.service \\\n\nX=1\n"),
            "[Unit]\n  # why\nX=1\n"
        );
        assert_eq!(left("[Unit]\n  Wants =\tb.service \nX=1\n"), "[Unit]\nX=1\n");
    }

    #[test]
    fn continued_lines_stay_continued() {
        for (before, after) in [
            ("After=b.service \\\n a.service", "After=\\\n a.service"),
            ("After=a.service \\\n b.service \\\n c.service", "After=a.service \\\n c.service"),
            ("After=a.service \\\n b.service", "After=a.service \\\n"),
            (
                "After=a.service \\\n b.service c.service \\\n d.service",
                "After=a.service \\\n c.service \\\n d.service",
            ),
            ("After=a.service \\\n # c\n b.service \\\n d.service", "After=a.service \\\n # c\n d.service"),
            ("After=\\\n b.service \\\n d.service", "After=\\\n d.service"),
            ("After='x \\\n y' b.service \\\n d.service", "After='x \\\n y' \\\n d.service"),
            ("After=a.service\\\nb.service\\\nc.service", "After=a.service\\\nc.service"),
            ("After=a.service b.service\\\nc.service", "After=a.service\\\nc.service"),
        ] {
            let text = format!("[Unit]\n{before}\nX=1\n");
            assert_eq!(left(&text), format!("[Unit]\n{after}\nX=1\n"), "{before}");
            assert_eq!(
                says(text.as_bytes(), "b.service"),
                says(left(&text).as_bytes(), "b.service"),
                "{before}"
            );
        }
    }

    #[test]
    fn a_file_is_left_alone_where_the_rest_would_mean_something_else() {
        for text in [
            "[Unit]\nAfter=a.service \\\n b.service #x\nX=1\n",
            "[Unit]\nAfter=a.service \\\n b.service \\\r\rX=1\n",
            "[Unit]\nAfter=a\\ b.service\nX=1\n",
        ] {
            assert_eq!(without(text.as_bytes(), "b.service"), None, "{text:?}");
        }
    }

    #[test]
    fn edits_name_the_lines_as_they_were() {
        let removal = removed("[Unit]\nAfter=a.service \\\n b.service\nWants=b.service\n", "b.service");
        assert_eq!(
            removal.edits,
            [
                Edit { line: 3, before: " b.service".into(), after: Some(String::new()) },
                Edit { line: 4, before: "Wants=b.service".into(), after: None },
            ]
        );
        let untouched = removed("[Unit]\nAfter=a.service\n", "b.service");
        assert!(untouched.edits.is_empty());
    }

    /// Texts that are mostly like unit files.
    fn unit_file() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            6 => Just("b.service".to_owned()),
            6 => Just("a.service".to_owned()),
            8 => Just(" ".to_owned()),
            5 => Just("\n".to_owned()),
            3 => Just(" \\\n".to_owned()),
            2 => Just("\r\n".to_owned()),
            3 => Just("After=".to_owned()),
            3 => Just("\nWants=".to_owned()),
            2 => Just("\n[Unit]\n".to_owned()),
            1 => Just("[Install]\nAlso=".to_owned()),
            1 => Just("\n# ".to_owned()),
            1 => Just("\"".to_owned()),
            1 => Just("'".to_owned()),
            1 => Just("\\".to_owned()),
            1 => Just("=".to_owned()),
            1 => Just("\t".to_owned()),
            1 => any::<char>().prop_map(String::from),
        ];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| format!("[Unit]\n{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn a_file_that_does_not_name_it_comes_back_as_it_was(text in unit_file()) {
            let removal = removed(&text, "other.service");
            prop_assert_eq!(removal.text, text.as_bytes());
            prop_assert!(removal.edits.is_empty());
        }

        #[test]
        fn removing_a_name_changes_nothing_else(text in unit_file()) {
            let is_it = |reference: &Reference| reference.name == "b.service";
            let named = references(text.as_bytes());
            let Some(removal) = without(text.as_bytes(), "b.service") else {
                let is_odd = text.contains(['\r', '\0', '#', ';']) || text.contains("\\ ") || text.contains("\\\t");
                prop_assert!(is_odd, "{:?}", text);
                return Ok(());
            };
            let others = |references: Vec<Reference>| -> Vec<(&str, String)> {
                let others = references.into_iter().filter(|reference| !is_it(reference));
                others.map(|reference| (reference.directive, reference.name)).collect()
            };
            prop_assert_eq!(removal.edits.is_empty(), !named.iter().any(is_it));
            prop_assert_eq!(others(named), others(references(&removal.text)));
            // Lines that are not told of are as they were, and those that are lose the name and white space alone.
            let mut lines: Vec<String> = lines(text.as_bytes()).into_iter().map(|line| shown(&text.as_bytes()[line.whole])).collect();
            for Edit { line, before, after } in removal.edits.iter().rev() {
                let end = lines[line - 1].split_off(before.len());
                prop_assert_eq!(&lines[line - 1], before);
                match after {
                    Some(after) => {
                        prop_assert!(before.len() > after.len());
                        lines[line - 1] = after.clone() + &end;
                    }
                    None => drop(lines.remove(line - 1)),
                }
            }
            prop_assert_eq!(lines.concat().into_bytes(), removal.text);
        }
    }
}
