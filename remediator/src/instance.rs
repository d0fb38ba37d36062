//! Names of things as instances of template units, as `systemd-escape` writes them: `%I` in the unit is the name again.

/// Longest name of a unit, in bytes (systemd.unit(5)).
const LONGEST: usize = 255;

/// `template` (`name@.service`) with this instance.
///
/// # Errors
/// When the name would be longer than systemd takes.
pub fn unit(template: &str, instance: &str) -> Result<String, String> {
    let unit = template.replacen('@', &format!("@{instance}"), 1);
    if unit.len() > LONGEST {
        return Err(format!(
            "{template} cannot be started for it: the unit's name would have {} characters",
            unit.len()
        ));
    }
    Ok(unit)
}

/// Any text as an instance.
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if place == 0 => escaped.push_str("\\x2e"),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b':' | b'_' | b'.' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("\\x{other:02x}")),
        }
    }
    escaped
}

/// The text of an instance; `None` where it is none.
pub fn unescape(instance: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = instance.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'-' => bytes.push(b'/'),
            b'\\' => {
                let digits = std::str::from_utf8(after.strip_prefix(b"x")?.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &after[3..];
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_systemd_escape_does() {
        for (text, escaped) in [
            ("/", "-"),
            ("/var/lib/docker", "-var-lib-docker"),
            ("shop-api.service", "shop\\x2dapi.service"),
            (".hidden", "\\x2ehidden"),
            ("app@1.service", "app\\x401.service"),
            ("a b\n%$\"ü", "a\\x20b\\x0a\\x25\\x24\\x22\\xc3\\xbc"),
            ("", ""),
        ] {
            assert_eq!(escape(text), escaped);
            assert_eq!(unescape(escaped).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_instance_is_no_name() {
        for text in ["\\", "\\x", "\\x2", "\\xzz", "\\y2d", "\\xff"] {
            assert_eq!(unescape(text), None, "{text}");
        }
    }

    #[test]
    fn a_unit_s_name_is_never_longer_than_systemd_takes() {
        assert_eq!(unit("tidy@.service", "-srv").unwrap(), "tidy@-srv.service");
        assert!(unit("tidy@.service", &"x".repeat(300)).unwrap_err().contains("313 characters"));
    }
}
