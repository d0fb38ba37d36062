//! What the binaries are made of: only free licences without copyleft on our own code, no OpenSSL, no second version
//! of a library without a reason written here.

#![expect(clippy::disallowed_types, reason = "the test asks cargo itself")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Licences that a dependency may be taken under.
const LICENCES: [&str; 12] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
];

/// Never in the tree: other TLS stacks than rustls with ring, and GPL relatives of this project.
const BANNED: [&str; 6] =
    ["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "monitord", "monitord-exporter"];

/// Libraries that are there twice on Linux, and why nothing can be done about it yet.
const TWICE: &[(&str, &str)] = &[
    ("base64", "bollard still takes 0.22"),
    ("getrandom", "ring still takes 0.2"),
    ("synstructure", "under an option of rcgen that is off: in the lock file, never built"),
    ("syn", "derive macros move at their own pace"),
    ("unicode-width", "the parser under promql-parser, in tests only, still takes 0.1"),
];

fn cargo(arguments: &[&str]) -> Vec<u8> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--manifest-path", manifest, "--locked"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Name, version and licence of every package that is built on Linux, build and test dependencies included.
fn packages() -> Vec<(String, String, String)> {
    let metadata =
        cargo(&["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let metadata: Value = serde_json::from_slice(&metadata).expect("cargo metadata is JSON");
    let used: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)))
        .map(|package| (text(&package["name"]), text(&package["version"]), text(&package["license"])))
        .collect()
}

/// Whether an SPDX expression can be met with [`LICENCES`]; `/` is the old way to write OR.
fn acceptable(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = expression.split_whitespace().peekable();
    any_of(&mut words) && words.peek().is_none()
}

fn any_of<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
    let mut acceptable = all_of(words);
    while words.next_if_eq(&"OR").is_some() {
        acceptable |= all_of(words);
    }
    acceptable
}

fn all_of<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
    let mut acceptable = one(words);
    while words.next_if_eq(&"AND").is_some() {
        acceptable &= one(words);
    }
    acceptable
}

fn one<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
    match words.next() {
        Some("(") => any_of(words) & words.next_if_eq(&")").is_some(),
        Some(licence) if words.next_if_eq(&"WITH").is_some() => {
            let with = format!("{licence} WITH {}", words.next().unwrap_or_default());
            LICENCES.contains(&with.as_str())
        }
        Some(licence) => LICENCES.contains(&licence),
        None => false,
    }
}

#[test]
fn expressions_are_understood() {
    for (expression, expected) in [
        ("MIT", true),
        ("MIT OR Apache-2.0", true),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0-or-later", false),
        ("GPL-3.0 OR MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("MIT AND GPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
        ("", false),
    ] {
        assert_eq!(acceptable(expression), expected, "{expression}");
    }
}

#[test]
fn every_licence_is_acceptable() {
    let packages = packages();
    assert!(packages.len() > 100, "only {} packages seen", packages.len());
    let bad: Vec<_> = packages.iter().filter(|(_, _, licence)| !acceptable(licence)).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn nothing_banned_and_nothing_twice() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, version, _) in packages() {
        assert!(!BANNED.contains(&name.as_str()), "{name} {version} is in the tree");
        versions.entry(name).or_default().insert(version);
    }
    let twice: BTreeMap<_, _> = versions.into_iter().filter(|(_, versions)| versions.len() > 1).collect();
    let unknown: BTreeMap<_, _> =
        twice.iter().filter(|(name, _)| !TWICE.iter().any(|(known, _)| known == name)).collect();
    assert!(unknown.is_empty(), "more than one version: {unknown:?}");
    let gone: Vec<_> = TWICE.iter().filter(|(name, _)| !twice.contains_key(*name)).collect();
    assert!(gone.is_empty(), "no longer there twice, take them off the list: {gone:?}");
}
