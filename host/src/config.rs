//! Reads a YAML configuration file strictly: what is not understood is an error that names file, line, key and cure.
//! The values with units are in [`quantity`], secrets in [`secret`], what editors are told in [`schema()`]. Not here: what any key means (beside its owner).

mod located;
mod mask;
mod quantity;
mod schema;
mod secret;

use std::{fmt, io::Read, path::Path};

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use serde_saphyr::{Error as YamlError, MessageFormatter, UserMessageFormatter};

pub use self::{
    located::Located,
    quantity::{Bytes, PromDuration, Ratio, format_bytes},
    schema::schema,
    secret::Secret,
};

/// No configuration comes near it; a device or a log given by mistake does.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Longest part of a line shown below a message, in characters.
const SNIPPET_CHARS: usize = 100;

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, or what stands for it.
    pub origin: String,
    /// Counted from 1.
    pub line: Option<u64>,
    /// Counted from 1, in characters.
    pub column: Option<u64>,
    /// Names the key, the rule and the cure.
    pub message: String,
    snippet: Option<String>,
}

impl ConfigError {
    /// For checks that concern no single place of the file.
    pub fn new(origin: &str, message: impl Into<String>) -> Self {
        Self { origin: origin.to_owned(), line: None, column: None, message: message.into(), snippet: None }
    }

    /// For checks of a value that was read as [`Located`].
    pub fn at<T>(origin: &str, value: &Located<T>, message: impl Into<String>) -> Self {
        let (line, column) = value.place.unzip();
        Self { line, column, ..Self::new(origin, message) }
    }

    /// For files whose lines may hold secrets: the place is enough.
    pub(crate) fn without_snippet(self) -> Self {
        Self { snippet: None, ..self }
    }

    fn from_yaml(origin: &str, text: &str, path: &str, error: &YamlError) -> Self {
        let location = error.location().filter(|location| location.line() > 0);
        let line = location.map(|location| location.line());
        let column = location.map(|location| location.column());
        // The value of a secret key is not shown, and neither is the line that it stands on, wherever that is.
        let is_secret = mask::is_secret_path(path);
        let snippet = line.zip(column).filter(|_| !is_secret);
        let snippet = snippet.and_then(|(line, column)| snippet_of(text, line, column));
        let message = if is_secret {
            format!("`{path}`: this is not what belongs here; its value is not shown, for it may be secret")
        } else {
            mask::urls(&explain(error, path))
        };
        Self { line, column, snippet, ..Self::new(origin, message) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}", self.message)?;
        match &self.snippet {
            Some(snippet) => write!(f, "\n{snippet}"),
            None => Ok(()),
        }
    }
}

/// Reads one YAML file strictly.
///
/// # Errors
/// When the file cannot be read, is larger than 1 MiB, or [`parse`] refuses it.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let origin = path.display().to_string();
    parse(&origin, &read_bounded(&origin, path, MAX_FILE_BYTES)?)
}

/// Reads YAML text strictly; `origin` stands for the file name in errors. Text without any content counts as `{}`.
///
/// # Errors
/// Unknown and duplicate keys, wrong types and bad syntax, each with its place in the text.
pub fn parse<T: DeserializeOwned>(origin: &str, text: &str) -> Result<T, ConfigError> {
    let blank = text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'));
    let yaml = if blank { "{}" } else { text };
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let mut path = String::new();
    serde_saphyr::with_deserializer_from_str_with_options(yaml, options, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = key_path(error.path());
            error.into_inner()
        })
    })
    .map_err(|error| ConfigError::from_yaml(origin, text, &path, &error))
}

/// The key as it stands in the file. A [`Located`] value is read as a map with a key `value`, which nobody wrote; no
/// configuration has a key of that name.
fn key_path(path: &serde_path_to_error::Path) -> String {
    let mut text = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Map { key } if key == "value" => {}
            Segment::Seq { .. } => text += &segment.to_string(),
            Segment::Unknown => {}
            _ if text.is_empty() => text += &segment.to_string(),
            _ => text += &format!(".{segment}"),
        }
    }
    text
}

/// The whole of a small text file.
fn read_bounded(origin: &str, path: &Path, limit: u64) -> Result<String, ConfigError> {
    let unreadable = |error| ConfigError::new(origin, format!("cannot read the file: {error}"));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(ConfigError::new(origin, format!("the file is larger than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| ConfigError::new(origin, "the file is not UTF-8 text"))
}

/// The reader's error in the words of someone who edits the file: the key by its full path, and what would be right.
fn explain(error: &YamlError, path: &str) -> String {
    let below = |key: &str| if path.is_empty() { format!("`{key}`") } else { format!("`{path}.{key}`") };
    let wanted = |expected: &str| match path {
        "" => format!("expected {expected}"),
        _ => format!("`{path}`: expected {expected}"),
    };
    match error {
        YamlError::AliasError { error, .. } => explain(error, path),
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let key = if path.ends_with(field.as_str()) { format!("`{path}`") } else { below(field) };
            format!("unknown key {key}: {}", one_of(field, expected))
        }
        YamlError::SerdeUnknownVariant { variant, expected, .. } => match path {
            "" => format!("unknown value `{variant}`: {}", one_of(variant, expected)),
            _ => format!("`{path}`: unknown value `{variant}`: {}", one_of(variant, expected)),
        },
        YamlError::SerdeMissingField { field, .. } => format!("missing key {}: it is required", below(field)),
        YamlError::DuplicateMappingKey { key: Some(key), .. } => {
            format!("duplicate key {}: each key may stand only once, remove one of the two", below(key))
        }
        YamlError::InvalidScalar { ty, .. } => wanted(described(ty)),
        YamlError::InvalidBooleanStrict { .. } => wanted("true or false"),
        YamlError::NullIntoString { .. } => wanted("a text, not an empty value"),
        YamlError::Unexpected { expected, .. } => wanted(match *expected {
            "string scalar" => "a single value, not a list or a map",
            "sequence start" => "a list: [a, b], or one item a line after `- `",
            "mapping start" => "a map of keys and values",
            other => other,
        }),
        YamlError::Message { msg, .. } => match path {
            "" => msg.clone(),
            _ => format!("`{path}`: {msg}"),
        },
        other => format!("not valid YAML here: {}", UserMessageFormatter.format_message(other)),
    }
}

/// The choices, and the one that was probably meant.
fn one_of(given: &str, expected: &[&str]) -> String {
    let list = expected.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let meant = expected.iter().min_by_key(|name| distance(given, name));
    match (expected.len(), meant) {
        (0, _) => "expected no keys".to_owned(),
        (1, _) => format!("expected {list}"),
        (_, Some(name)) if distance(given, name) <= 2 => {
            format!("expected one of {list}; did you mean `{name}`?")
        }
        _ => format!("expected one of {list}"),
    }
}

/// Edits (insert, delete, replace) between two short names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A Rust type in the words of someone who edits the file.
fn described(ty: &str) -> &'static str {
    match ty {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "u128" | "usize" => "a whole number, not negative",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" | "floating point" => "a number",
        _ => "another kind of value",
    }
}

/// The line in question with a mark below the column: secrets masked, control characters made harmless.
fn snippet_of(text: &str, line: u64, column: u64) -> Option<String> {
    let content = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let column = usize::try_from(column).ok()?.checked_sub(1)?;
    let content = mask::line(content);
    let shown: String =
        content.chars().take(SNIPPET_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let gutter = " ".repeat(line.to_string().len());
    let mut out = format!("  {line} | {shown}");
    if column <= shown.chars().count() {
        out.push_str(&format!("\n  {gutter} | {}^", " ".repeat(column)));
    }
    Some(out)
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "durations, ratios, sizes",
    parse: |bytes| {
        let text = crate::foreign_input::text(bytes);
        if let Ok(duration) = text.parse::<PromDuration>() {
            assert_eq!(duration.to_string().parse(), Ok(duration), "written and read again");
        }
        let _ = text.parse::<Ratio>();
        if let Ok(size) = text.parse::<Bytes>() {
            let _ = format_bytes(size.get());
        }
    },
    samples: &["1h30m", "1y2w3d4h5m6s7ms", "0", "85%", "99.5%", "1.5GB", "500MiB", "18446744073709551615"],
}];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct File {
        listen: String,
        port: u16,
        enabled: bool,
        interval: PromDuration,
        mark: Option<Ratio>,
        keep: Option<Bytes>,
        rules: Vec<Rule>,
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        name: Located<String>,
        #[serde(default)]
        mode: Mode,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Plan,
        Auto,
    }

    fn refused(text: &str) -> String {
        parse::<File>("evenkeel.yml", text).expect_err(text).to_string()
    }

    #[test]
    fn bad_files_are_refused_with_place_key_and_cure() {
        let cases = [
            (
                "lisen: a\n",
                "evenkeel.yml:1:1: unknown key `lisen`: expected one of `listen`, `port`, `enabled`, `interval`, \
                 `mark`, `keep`, `rules`, `labels`; did you mean `listen`?\n  1 | lisen: a\n    | ^",
            ),
            (
                "rules:\n  - name: a\n    color: red\n",
                "evenkeel.yml:3:5: unknown key `rules[0].color`: expected one of `name`, `mode`\n  \
                 3 |     color: red\n    |     ^",
            ),
            (
                "listen: a\nlisten: b\n",
                "evenkeel.yml:2:1: duplicate key `listen`: each key may stand only once, remove one of the two\n  \
                 2 | listen: b\n    | ^",
            ),
            (
                "labels: {a: b, a: c}\n",
                "evenkeel.yml:1:16: duplicate key `labels.a`: each key may stand only once, remove one of the two\n  \
                 1 | labels: {a: b, a: c}\n    |                ^",
            ),
            (
                "rules:\n  - {mode: plan}\n",
                "evenkeel.yml:2:6: missing key `rules[0].name`: it is required\n  2 |   - {mode: plan}\n    |      ^",
            ),
            (
                "port: http\n",
                "evenkeel.yml:1:7: `port`: expected a whole number from 0 to 65535\n  1 | port: http\n    |       ^",
            ),
            (
                "port: 70000\n",
                "evenkeel.yml:1:7: `port`: expected a whole number from 0 to 65535\n  1 | port: 70000\n    |       ^",
            ),
            (
                "enabled: yes\n",
                "evenkeel.yml:1:10: `enabled`: expected true or false\n  1 | enabled: yes\n    |          ^",
            ),
            (
                "listen: [a]\n",
                "evenkeel.yml:1:9: `listen`: expected a single value, not a list or a map\n  \
                 1 | listen: [a]\n    |         ^",
            ),
            (
                "listen:\n",
                "evenkeel.yml:1:7: `listen`: expected a text, not an empty value\n  1 | listen:\n    |       ^",
            ),
            (
                "rules: {name: a}\n",
                "evenkeel.yml:1:8: `rules`: expected a list: [a, b], or one item a line after `- `\n  \
                 1 | rules: {name: a}\n    |        ^",
            ),
            ("- a\n", "evenkeel.yml:1:1: expected a map of keys and values\n  1 | - a\n    | ^"),
            (
                "rules: [{name: a, mode: auto_}]\n",
                "evenkeel.yml:1:25: `rules[0].mode`: unknown value `auto_`: expected one of `plan`, `auto`; did you mean `auto`?\n  \
                 1 | rules: [{name: a, mode: auto_}]\n    |                         ^",
            ),
            (
                "rules: [{name: [a]}]\n",
                "evenkeel.yml:1:16: `rules[0].name`: expected a single value, not a list or a map\n  \
                 1 | rules: [{name: [a]}]\n    |                ^",
            ),
            (
                "interval: 15 parsecs\n",
                "evenkeel.yml:1:11: `interval`: `15 parsecs` is not a duration: write 30s, 15m, 1h30m, 7d or 100ms\n  \
                 1 | interval: 15 parsecs\n    |           ^",
            ),
            (
                "interval: 15\n",
                "evenkeel.yml:1:11: `interval`: `15` is not a duration: write 30s, 15m, 1h30m, 7d or 100ms\n  \
                 1 | interval: 15\n    |           ^",
            ),
            (
                "mark: 0.85\n",
                "evenkeel.yml:1:7: `mark`: `0.85` is not a percentage: write 85%, at most 100%\n  \
                 1 | mark: 0.85\n    |       ^",
            ),
            (
                "keep: ten GB\n",
                "evenkeel.yml:1:7: `keep`: `ten GB` is not a size: write 1GB, 1.5GB, 500MiB or a number of bytes\n  \
                 1 | keep: ten GB\n    |       ^",
            ),
            (
                "listen: a\n---\nlisten: b\n",
                "evenkeel.yml:3:1: not valid YAML here: only single YAML document expected but multiple found\n  \
                 3 | listen: b\n    | ^",
            ),
            (
                "listen: a\n  rules: 3\n",
                "evenkeel.yml:2:8: not valid YAML here: mapping values are not allowed in this context\n  \
                 2 |   rules: 3\n    |        ^",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(refused(text), expected, "\n--- for\n{text}");
        }
    }

    #[test]
    fn text_without_content_is_an_empty_map() {
        for text in ["", "\n", "# nothing yet\n\n  # still\n"] {
            assert_eq!(parse::<File>("f", text).expect("empty").port, 0);
        }
    }

    #[test]
    fn a_located_value_names_its_place() {
        let file: File = parse("f.yml", "rules:\n  - name: bad\n").expect("valid");
        let error = ConfigError::at("f.yml", &file.rules[0].name, "rule `bad`: no steps");
        assert_eq!(error.to_string(), "f.yml:2:11: rule `bad`: no steps");
        assert!(matches!(file.rules[0].mode, Mode::Plan));
        assert_eq!(ConfigError::new("f.yml", "no rules").to_string(), "f.yml: no rules");
    }

    #[test]
    fn alias_bombs_and_deep_files_end_in_an_error() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..9 {
            bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(","));
        }
        assert!(parse::<BTreeMap<String, serde_json::Value>>("f", &bomb).is_err());
        let deep = "[".repeat(100_000);
        assert!(parse::<serde_json::Value>("f", &deep).is_err());
    }

    #[test]
    fn unreadable_files_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let missing = dir.path().join("none.yml");
        let error = load::<File>(&missing).expect_err("missing").to_string();
        assert_eq!(
            error,
            format!("{}: cannot read the file: No such file or directory (os error 2)", missing.display())
        );
        let binary = dir.path().join("binary.yml");
        std::fs::write(&binary, [0xff, 0xfe]).expect("written");
        assert!(
            load::<File>(&binary).expect_err("binary").to_string().ends_with("the file is not UTF-8 text")
        );
        assert!(load::<File>(Path::new("/dev/zero")).expect_err("endless").message.contains("larger than"));
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its errors are of interest")]
    struct Notify {
        url: u32,
        #[serde(default)]
        on: Mode,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its errors are of interest")]
    struct Notifying {
        #[serde(default)]
        notify: Vec<Notify>,
    }

    #[test]
    fn the_value_of_a_secret_key_is_never_shown() {
        for text in [
            // Wrong is the key beside it, on the same line.
            "notify: [{url: https://chat.example/s3cr3t, onn: plan}]\n",
            "notify:\n  - {url: 'https://chat.example/s3cr3t', on: plann}\n",
            // Wrong is the secret itself, also on a line of its own and without a scheme.
            "notify:\n  - url: s3cr3t\n",
            "notify:\n  - url:\n      s3cr3t\n",
            "notify:\n  - url: [s3cr3t]\n",
            // It stands where a key should.
            "notify:\n  - https://chat.example/s3cr3t: 1\n",
            "notify: https://chat.example/s3cr3t\n",
            "https://user:s3cr3t@chat.example/\n",
            "password: s3cr3t\n",
            "notify:\n  - {url: 7, bearer_token: s3cr3t}\n",
            "notify: [{url: \"https://chat.example/s3cr3t\n",
        ] {
            let error = parse::<Notifying>("evenkeel.yml", text).expect_err(text);
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("s3cr3t"), "{text}: {shown}");
            assert!(error.to_string().starts_with("evenkeel.yml"), "{error}");
        }
        // What is beside it is shown, and the mark stands where it belongs.
        let error = parse::<Notifying>("r.yml", "notify: [{url: 1234, onn: plan}]\n").expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "r.yml:1:22: unknown key `notify[0].onn`: expected one of `url`, `on`; did you mean `on`?\n  \
             1 | notify: [{url: ****, onn: plan}]\n    |                      ^"
        );
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let shown = refused("listen: a\nport: \"\u{7}\"\n");
        assert!(!shown.contains('\u{7}'), "{shown:?}");
    }
}
