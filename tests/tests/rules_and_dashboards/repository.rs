//! Files of this repository, by their path in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

pub(crate) fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(relative)
}

pub(crate) fn text(relative: &str) -> String {
    fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

pub(crate) fn yaml<T: DeserializeOwned>(relative: &str) -> T {
    serde_saphyr::from_str(&text(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

pub(crate) fn json<T: DeserializeOwned>(relative: &str) -> T {
    serde_json::from_str(&text(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// The files in `folder` whose names end with `suffix`, as paths in the repository, sorted.
pub(crate) fn files(folder: &str, suffix: &str) -> Vec<String> {
    let entries = fs::read_dir(path(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut found: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(suffix))
        .map(|name| format!("{folder}/{name}"))
        .collect();
    assert!(!found.is_empty(), "no {suffix} in {folder}");
    found.sort();
    found
}
