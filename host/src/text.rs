//! Text of others, made fit to be shown: names, error texts, lines of logs. It ends up in terminals, in logs and in
//! messages to people.

use std::fmt::Write as _;

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
        if is_unseen(character) {
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

/// JSON in which nothing steers a terminal or is hidden either; it means the same.
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        // What is no string has none of these.
        if character != '\n' && is_unseen(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Characters that steer, change the direction, or are not seen: all that are no part of a text by Unicode's categories
/// (Cc, Cf, Co, Cn, Z but the space), and those that are and show nothing.
pub fn is_unseen(character: char) -> bool {
    match character {
        ' '..='~' => false,
        '\u{34f}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{17b4}'
        | '\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{2800}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}'
        | '\u{e0100}'..='\u{e01ef}' => true,
        _ => {
            // Behind a letter, where a combining mark stands for itself.
            let mut text = [b'x', 0, 0, 0, 0];
            let end = 1 + character.encode_utf8(&mut text[1..]).len();
            std::str::from_utf8(&text[..end]).is_ok_and(|text| text.escape_debug().nth(1) == Some('\\'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_hidden() {
        for character in "\u{0}\u{7f}\u{9b}\u{ad}\u{61c}\u{115f}\u{200b}\u{202e}\u{2066}\u{2800}\u{3164}\u{fe0f}\u{feff}\u{ffa0}\u{e000}\u{378}\u{e0041}\u{e0100}".chars() {
            assert!(is_unseen(character), "{character:?}");
            let name = format!("a{character}b");
            assert!(printable(&name).is_ascii() && printable(&name).len() > 3, "{name:?}");
            let json = printable_json(&format!("{{\"name\":{}}}", serde_json::json!(name)));
            assert!(json.chars().all(|character| !is_unseen(character)), "{json:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["name"], name);
        }
        for text in ["größer ✓ 日本語 हिन्दी ไทย", "e\u{301}"] {
            assert_eq!(printable(text), text);
        }
    }

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
