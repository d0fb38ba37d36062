//! Text of others, made fit to be shown: names, error texts, lines of logs. It ends up in terminals, in logs and in
//! messages to people.

/// Longer texts are cut, in characters.
const MOST: usize = 2000;

/// The text on one line, bounded, and without anything that steers a terminal or hides a part of it.
pub fn printable(text: &str) -> String {
    printable_within(text, MOST)
}

/// The same, of `most` characters at most.
pub(crate) fn printable_within(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for character in text.trim_end().chars().take(most) {
        if character.is_control() || is_unseen(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    if text.trim_end().chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters that change the direction or are not seen at all.
pub(crate) fn is_unseen(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(printable("a b/ü ✓ 1.5 GB"), "a b/ü ✓ 1.5 GB");
        assert_eq!(
            printable("x\u{1b}]0;evil\u{7}\ny\r\u{202e}z\n\n"),
            "x\\u{1b}]0;evil\\u{7}\\ny\\r\\u{202e}z"
        );
        let long = printable(&"ä".repeat(5000));
        assert_eq!((long.chars().count(), long.chars().last()), (2001, Some('…')));
    }
}
