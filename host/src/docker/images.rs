//! Images as plain structs: which there are, by what names, and when they came here.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::{Error, container::time, decode};

/// One image as the list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// `sha256:…`.
    pub id: String,
    /// `REPOSITORY:TAG`, without the engine's `<none>`.
    pub tags: Vec<String>,
    /// `REPOSITORY@sha256:…`: where it can be pulled from again. Empty for what was built here and never pushed; the
    /// containerd image store has one for everything.
    pub digests: Vec<String>,
    /// When it was built, wherever that was.
    pub created: Option<SystemTime>,
    /// With its layers, also those that it shares with other images, in bytes.
    pub bytes: u64,
}

/// Reads `GET /images/json`.
pub(super) fn parse_list(body: &[u8]) -> Result<Vec<Image>, Error> {
    let list: Vec<Summary> = decode("/images/json", body)?;
    Ok(list.into_iter().map(image).collect())
}

/// Reads when an image got a name here, from `GET /images/{id}/json`.
pub(super) fn parse_tagged(body: &[u8]) -> Result<Option<SystemTime>, Error> {
    let inspected: Inspected = decode("/images/{id}/json", body)?;
    Ok(time(inspected.metadata.last_tag_time.as_deref()))
}

/// The engine's own form of an id.
pub(super) fn is_image_id(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// `Id` is required: without it this is no image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: String,
    repo_tags: Option<Vec<String>>,
    repo_digests: Option<Vec<String>>,
    created: Option<i64>,
    size: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    last_tag_time: Option<String>,
}

fn image(entry: Summary) -> Image {
    let named = |names: Option<Vec<String>>| {
        names.unwrap_or_default().into_iter().filter(|name| !name.starts_with("<none>")).collect()
    };
    let created =
        entry.created.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    Image {
        id: entry.id,
        tags: named(entry.repo_tags),
        digests: named(entry.repo_digests),
        created: created.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))),
        bytes: entry.size.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_and_nameless_ones_have_no_names() {
        let list = parse_list(
            br#"[{"Id": "sha256:1", "RepoTags": ["web:1", "web:latest"], "RepoDigests": ["web@sha256:9"],
                  "Created": 1700000000, "Size": 600, "SharedSize": -1, "Containers": -1, "Labels": null},
                 {"Id": "sha256:2", "RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"], "Size": -1},
                 {"Id": "sha256:3", "RepoTags": null, "RepoDigests": null, "Created": 0}]"#,
        )
        .unwrap();
        assert_eq!(list[0].tags, ["web:1", "web:latest"]);
        assert_eq!((list[0].bytes, list[0].digests.len()), (600, 1));
        assert_eq!(list[0].created, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        for nameless in &list[1..] {
            assert!(nameless.tags.is_empty() && nameless.digests.is_empty(), "{nameless:?}");
            assert_eq!((nameless.bytes, nameless.created), (0, None));
        }
        assert_eq!(parse_list(b"[{}]").unwrap_err().reason(), "bad_answer");
    }

    #[test]
    fn the_time_of_a_name_is_read_and_never_is_none() {
        let tagged = |text: &str| parse_tagged(text.as_bytes()).unwrap();
        let at = tagged(r#"{"Metadata": {"LastTagTime": "2026-11-20T10:00:00.5Z"}}"#);
        assert!(at.is_some());
        for never in
            [r#"{"Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"}}"#, r#"{"Metadata": {}}"#, r#"{}"#]
        {
            assert_eq!(tagged(never), None, "{never}");
        }
    }

    #[test]
    fn only_an_id_becomes_a_part_of_a_path() {
        assert!(is_image_id(&format!("sha256:{}", "a1".repeat(32))));
        for text in ["", "sha256:", "web:1", "sha256:../containers", &format!("sha256:{}", "g".repeat(64))] {
            assert!(!is_image_id(text), "{text}");
        }
    }
}
