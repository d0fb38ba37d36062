//! A text that must never be shown. It comes from a file, never from the configuration itself.

use std::{fmt, path::Path};

use super::{ConfigError, read_bounded};

/// Longer than any password or token.
const MAX_BYTES: u64 = 64 << 10;

/// A password or token; neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret made in the program itself.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The content of a file without one trailing newline.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, larger than 64 KiB or not UTF-8.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let mut text = read_bounded(&origin, path, MAX_BYTES)?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.is_empty() {
            return Err(ConfigError::new(&origin, "the file is empty: write the secret into it"));
        }
        Ok(Self(text))
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_newline_goes_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("password");
        for (content, secret) in
            [("a b", "a b"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a \n", " a ")]
        {
            std::fs::write(&path, content).expect("written");
            assert_eq!(Secret::from_file(&path).expect("a secret").expose(), secret);
        }
        for content in ["", "\n"] {
            std::fs::write(&path, content).expect("written");
            let error = Secret::from_file(&path).expect_err("empty").to_string();
            assert_eq!(error, format!("{}: the file is empty: write the secret into it", path.display()));
        }
    }

    #[test]
    fn it_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "<secret> <secret>");
    }
}
