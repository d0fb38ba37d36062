//! Text that goes to people and into commands: names by which things are known, and words for a shell. What others said
//! is made fit to be shown by [`printable`].

pub use evenkeel_host::text::{is_unseen, printable, printable_json};

/// Behind so many bytes no further line begins.
const MOST_OF_LINES: usize = 16 * 1024;

/// The same of several lines, each by itself and all of them bounded together: what would be changed in files.
pub fn printable_lines(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines() {
        if shown.len() > MOST_OF_LINES {
            shown.push_str("\n…");
            break;
        }
        if !shown.is_empty() {
            shown.push('\n');
        }
        shown.push_str(&printable(line));
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
    fn lines_stay_lines_and_are_bounded_together() {
        assert_eq!(printable_lines("a\n  - b\u{1b}[2J\r\n\nc\n"), "a\n  - b\\u{1b}[2J\n\nc");
        let long =
            printable_lines(&"x".repeat(1000).lines().cycle().take(100).collect::<Vec<_>>().join("\n"));
        assert!(long.len() < MOST_OF_LINES + 2000 && long.ends_with("\n…"), "{}", long.len());
        assert_eq!(printable_lines(""), "");
    }

    #[test]
    fn what_is_pasted_stays_one_word() {
        assert_eq!(shell_word("/var/lib/docker"), "/var/lib/docker");
        assert_eq!(shell_word("app@1.service"), "app@1.service");
        assert_eq!(shell_word("/srv/$(reboot)"), "'/srv/$(reboot)'");
        assert_eq!(shell_word("/srv/it's; reboot"), "'/srv/it'\\''s; reboot'");
    }
}
