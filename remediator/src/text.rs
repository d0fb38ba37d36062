//! Text of others, made fit to be shown: file names, answers of daemons, error texts. It ends up in terminals, in logs
//! and in messages to people.

/// Longer texts are cut, in characters.
const MOST: usize = 2000;

/// The text on one line, bounded, and without anything that steers a terminal or hides a part of it.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for character in text.trim_end().chars().take(MOST) {
        if character.is_control() || is_unseen(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    if text.trim_end().chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

/// A short name for a text, the same in every build: FNV-1a (draft-eastlake-fnv). Nothing secret can be read from it,
/// and nothing may rely on it being hard to match.
pub fn digest(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Characters that change the direction or are not seen at all.
fn is_unseen(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// An argument of a command that a person may paste into a shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '@' | ':' | '+' | ',' | '=')
    };
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
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

    #[test]
    fn what_is_pasted_stays_one_word() {
        assert_eq!(shell_word("/var/lib/docker"), "/var/lib/docker");
        assert_eq!(shell_word("app@1.service"), "app@1.service");
        assert_eq!(shell_word("/srv/$(reboot)"), "'/srv/$(reboot)'");
        assert_eq!(shell_word("/srv/it's; reboot"), "'/srv/it'\\''s; reboot'");
    }
}
