//! The syntax of unit names, as `man systemd.unit` gives it.

const SUFFIXES: [&str; 11] = [
    "service",
    "socket",
    "device",
    "mount",
    "automount",
    "swap",
    "target",
    "path",
    "timer",
    "slice",
    "scope",
];

/// Whether `name` is a syntactically valid unit name: at most 255 characters, a known suffix, and before it only ASCII
/// letters, digits and `: - _ . \ @`. Globs are not names; templates without an instance (`getty@.service`) are.
pub fn is_unit_name(name: &str) -> bool {
    let Some((prefix, suffix)) = name.rsplit_once('.') else { return false };
    name.len() <= 255
        && SUFFIXES.contains(&suffix)
        && !prefix.is_empty()
        && !prefix.starts_with('@')
        && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_systemd_takes() {
        for name in [
            "ssh.service",
            "quantum-trader.target",
            "getty@tty1.service",
            "getty@.service",
            "dev-disk-by\\x2duuid-1.swap",
            "-.mount",
            "user@1000.service",
            "a:b.socket",
            "foo@bar@baz.service",
        ] {
            assert!(is_unit_name(name), "{name}");
        }
    }

    #[test]
    fn names_that_systemd_refuses() {
        let long = format!("{}.service", "a".repeat(248));
        for name in [
            "",
            ".service",
            "@.service",
            "@tty1.service",
            "ssh",
            "ssh.",
            "ssh.conf",
            "ssh.service ",
            "../x.service",
            "-rf",
            "a b.service",
            "a\n.service",
            "quantum-*.service",
            "q?.service",
            "q[a].service",
            "ü.service",
            "a/b.service",
            long.as_str(),
        ] {
            assert!(!is_unit_name(name), "{name:?}");
        }
        assert!(is_unit_name(&long[1..]));
    }
}
