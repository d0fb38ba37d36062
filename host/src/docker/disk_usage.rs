//! What images, build cache, volumes and containers take on the engine's disk: `GET /system/df`.
//!
//! The answer has three shapes: API ≤ 1.51 lists every object, 1.52 has lists and sums, ≥ 1.53 sums only. bollard
//! reads one of them and gives `None` for the others without an error, and its `type=` never works; so this module
//! reads the JSON itself and fails when no shape fits. The sums are those of `docker system df`.

use std::io::{self, Read};

use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Error, cut, http};

/// The longest answer that is read. Engines that list every object have been seen to send 30 MB of build cache.
const ANSWER_LIMIT: usize = 64 << 20;

/// Pieces of an answer that wait to be read.
const PIECES: usize = 4;

/// What `docker system df` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// Image layers.
    Images,
    /// BuildKit's records.
    BuildCache,
    /// Local volumes.
    Volumes,
    /// Writable layers.
    Containers,
}

impl Object {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Images, Self::BuildCache, Self::Volumes, Self::Containers];

    /// The label value and the configuration key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::BuildCache => "build_cache",
            Self::Volumes => "volumes",
            Self::Containers => "containers",
        }
    }

    /// The word for `?type=`.
    fn query_word(self) -> &'static str {
        match self {
            Self::Images => "image",
            Self::BuildCache => "build-cache",
            Self::Volumes => "volume",
            Self::Containers => "container",
        }
    }
}

/// The first API version whose engine can be asked for some objects only.
pub const TYPE_FILTER_SINCE: (u32, u32) = (1, 42);

/// One answer. What was not asked for is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    images: Option<ObjectUsage>,
    build_cache: Option<ObjectUsage>,
    volumes: Option<ObjectUsage>,
    containers: Option<ObjectUsage>,
}

impl DiskUsage {
    /// Reads an answer of any shape; every one of `asked` must be in it.
    ///
    /// # Errors
    /// When it is not JSON, or when an object that was asked for is missing: an unknown shape must never look like an
    /// empty disk.
    pub fn read(body: impl Read, asked: &[Object]) -> Result<Self, Error> {
        let raw: Raw = serde_json::from_reader(body)
            .map_err(|error| Error::Answer(cut(&format!("/system/df: {error}")).to_owned()))?;
        let mut usage = raw.usage();
        if let Some(object) = asked.iter().find(|object| usage.get(**object).is_none()) {
            return Err(Error::Answer(format!("/system/df has no known field for {}", object.as_str())));
        }
        // The lists of what was not asked for come as `null`, which must not pass for empty.
        for object in Object::ALL {
            if !asked.contains(&object) {
                *usage.slot(object) = None;
            }
        }
        Ok(usage)
    }

    /// What one kind of object takes, if it was asked for.
    pub fn get(&self, object: Object) -> Option<ObjectUsage> {
        match object {
            Object::Images => self.images,
            Object::BuildCache => self.build_cache,
            Object::Volumes => self.volumes,
            Object::Containers => self.containers,
        }
    }

    fn slot(&mut self, object: Object) -> &mut Option<ObjectUsage> {
        match object {
            Object::Images => &mut self.images,
            Object::BuildCache => &mut self.build_cache,
            Object::Volumes => &mut self.volumes,
            Object::Containers => &mut self.containers,
        }
    }
}

/// One line of `docker system df`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectUsage {
    /// Bytes in all, shared ones once.
    pub bytes: u64,
    /// Bytes of what nothing uses.
    pub reclaimable_bytes: u64,
    /// How many there are.
    pub objects: u64,
    /// How many of them are in use.
    pub active_objects: u64,
}

/// Reads an answer while it comes, on a thread of its own: its text, which may be long, is never in memory as a whole.
pub(super) async fn receive<T: Send + 'static>(
    mut answer: http::Answer,
    read: impl FnOnce(Pieces) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let reading = tokio::task::spawn_blocking(move || read(Pieces { receiver, rest: Bytes::new() }));
    let mut length = 0;
    while let Some(piece) = answer.next().await? {
        length += piece.len();
        if length > ANSWER_LIMIT {
            return Err(Error::Answer(format!("/system/df: more than {ANSWER_LIMIT} bytes")));
        }
        // Who has read enough to refuse it hangs up.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    reading.await.map_err(|error| Error::Answer(format!("/system/df: {error}")))?
}

/// The text that comes in pieces. It ends when nobody can send more of them.
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

/// The path to ask an engine of this version; an old one sends everything whatever is asked.
pub(super) fn path(api_version: (u32, u32), objects: &[Object]) -> String {
    let mut path = "/system/df".to_owned();
    if api_version >= TYPE_FILTER_SINCE {
        for (index, object) in objects.iter().enumerate() {
            path.push(if index == 0 { '?' } else { '&' });
            path.push_str("type=");
            path.push_str(object.query_word());
        }
    }
    path
}

/// The fields of all shapes together. A list that is empty comes as `null` or `[]`, both present; a field of
/// another shape is absent, which [`present`] tells apart.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Raw {
    layers_size: Option<i64>,
    #[serde(deserialize_with = "present")]
    images: Option<Vec<Image>>,
    #[serde(deserialize_with = "present")]
    containers: Option<Vec<Container>>,
    #[serde(deserialize_with = "present")]
    volumes: Option<Vec<Volume>>,
    #[serde(deserialize_with = "present")]
    build_cache: Option<Vec<CacheRecord>>,
    image_usage: Option<Sums>,
    container_usage: Option<Sums>,
    volume_usage: Option<Sums>,
    build_cache_usage: Option<Sums>,
}

/// `null` is Go's empty list.
pub(super) fn present<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Some(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default()))
}

/// API ≥ 1.52. A zero is left out of the JSON, so only the object itself shows that the shape is this one.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Sums {
    total_count: i64,
    active_count: i64,
    total_size: i64,
    reclaimable: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Image {
    size: i64,
    shared_size: i64,
    containers: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    size_rw: i64,
    state: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Volume {
    usage_data: Option<VolumeUsage>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct VolumeUsage {
    size: i64,
    ref_count: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct CacheRecord {
    size: i64,
    in_use: bool,
    shared: bool,
}

impl Raw {
    fn usage(self) -> DiskUsage {
        let layers_size = self.layers_size;
        DiskUsage {
            images: self.image_usage.map(Sums::usage).or_else(|| Some(images(&self.images?, layers_size?))),
            build_cache: self
                .build_cache_usage
                .map(Sums::usage)
                .or_else(|| self.build_cache.as_deref().map(build_cache)),
            volumes: self.volume_usage.map(Sums::usage).or_else(|| self.volumes.as_deref().map(volumes)),
            containers: self
                .container_usage
                .map(Sums::usage)
                .or_else(|| self.containers.as_deref().map(containers)),
        }
    }
}

impl Sums {
    pub(super) fn usage(self) -> ObjectUsage {
        ObjectUsage {
            bytes: unsigned(self.total_size),
            reclaimable_bytes: unsigned(self.reclaimable),
            objects: unsigned(self.total_count),
            active_objects: unsigned(self.active_count),
        }
    }
}

/// -1 means "not calculated" for the size of a shared layer.
fn images(images: &[Image], layers_size: i64) -> ObjectUsage {
    let active = || images.iter().filter(|image| image.containers > 0);
    let used = active()
        .filter(|image| image.size >= 0 && image.shared_size >= 0)
        .fold(0, |sum: i64, image| sum.saturating_add(image.size.saturating_sub(image.shared_size)));
    ObjectUsage {
        bytes: unsigned(layers_size),
        reclaimable_bytes: unsigned(layers_size.saturating_sub(used)),
        objects: count(images.iter()),
        active_objects: count(active()),
    }
}

fn containers(containers: &[Container]) -> ObjectUsage {
    let is_active =
        |container: &&Container| matches!(container.state.as_str(), "running" | "paused" | "restarting");
    ObjectUsage {
        bytes: sum(containers.iter().map(|container| container.size_rw)),
        reclaimable_bytes: sum(containers
            .iter()
            .filter(|container| !is_active(container))
            .map(|container| container.size_rw)),
        objects: count(containers.iter()),
        active_objects: count(containers.iter().filter(is_active)),
    }
}

/// Volumes of other drivers have no usage data, or -1 for the size.
fn volumes(volumes: &[Volume]) -> ObjectUsage {
    let known = || volumes.iter().filter_map(|volume| volume.usage_data.as_ref());
    ObjectUsage {
        bytes: sum(known().map(|usage| usage.size)),
        reclaimable_bytes: sum(known().filter(|usage| usage.ref_count == 0).map(|usage| usage.size)),
        objects: count(volumes.iter()),
        active_objects: count(known().filter(|usage| usage.ref_count > 0)),
    }
}

/// Shared records are layers of images and counted there.
fn build_cache(records: &[CacheRecord]) -> ObjectUsage {
    let own = || records.iter().filter(|record| !record.shared);
    ObjectUsage {
        bytes: sum(own().map(|record| record.size)),
        reclaimable_bytes: sum(own().filter(|record| !record.in_use).map(|record| record.size)),
        objects: count(records.iter()),
        active_objects: count(records.iter().filter(|record| record.in_use)),
    }
}

fn sum(sizes: impl Iterator<Item = i64>) -> u64 {
    sizes.map(unsigned).fold(0, u64::saturating_add)
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    items.fold(0, |count, _| count + 1)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// What the recorded answers have none of: sizes that nobody knows, what is shared, a paused container.
    const ODD: &[u8] = br#"{
        "LayersSize": 1000,
        "Images": [
            {"Id": "sha256:1", "Size": 600, "SharedSize": 100, "Containers": 2, "RepoTags": ["a:1"], "Labels": null},
            {"Id": "sha256:2", "Size": 400, "SharedSize": 100, "Containers": 0}
        ],
        "Containers": [
            {"Id": "1", "SizeRw": 10, "SizeRootFs": 610, "State": "running"},
            {"Id": "2", "SizeRootFs": 600, "State": "paused"},
            {"Id": "3", "SizeRw": 7, "State": "exited"}
        ],
        "Volumes": [
            {"Name": "v1", "UsageData": {"RefCount": 1, "Size": 50}},
            {"Name": "v2", "UsageData": {"RefCount": 0, "Size": 30}},
            {"Name": "nfs", "UsageData": {"RefCount": 0, "Size": -1}},
            {"Name": "unknown", "UsageData": null}
        ],
        "BuildCache": [
            {"ID": "a", "Parent": "", "Type": "regular", "InUse": false, "Shared": false, "Size": 4096},
            {"ID": "b", "InUse": true, "Shared": false, "Size": 100},
            {"ID": "c", "InUse": false, "Shared": true, "Size": 99999}
        ],
        "BuilderSize": 4196
    }"#;

    /// API 1.52: the old lists and the new sums. The sums are the engine's own and win.
    const BOTH: &[u8] = br#"{
        "LayersSize": 5, "Images": [], "Containers": [], "Volumes": [], "BuildCache": [],
        "ImageUsage": {"ActiveCount": 1, "TotalCount": 2, "Reclaimable": 500, "TotalSize": 1000},
        "ContainerUsage": {"ActiveCount": 2, "TotalCount": 3, "Reclaimable": 7, "TotalSize": 17},
        "VolumeUsage": {"ActiveCount": 1, "TotalCount": 4, "Reclaimable": 30, "TotalSize": 80},
        "BuildCacheUsage": {"ActiveCount": 1, "TotalCount": 3, "Reclaimable": 4096, "TotalSize": 4196}
    }"#;

    /// API 1.53, `?type=image&type=build-cache`: only what was asked, zeros left out.
    const SUMS: &[u8] = br#"{"ImageUsage": {"TotalCount": 2, "TotalSize": 1000, "Items": [{"x": 1}]}, "BuildCacheUsage": {}}"#;

    fn usage(bytes: u64, reclaimable_bytes: u64, objects: u64, active_objects: u64) -> Option<ObjectUsage> {
        Some(ObjectUsage { bytes, reclaimable_bytes, objects, active_objects })
    }

    /// An answer under `tests/system_df/`, which says where each is from.
    fn recorded(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system_df");
        fs::read(folder.join(format!("{name}.json"))).unwrap()
    }

    #[test]
    fn every_engine_gives_the_figures_of_the_command_line() {
        let (images, build_cache) = (usage(2_382_256, 2_382_256, 2, 1), usage(2_282_471, 2_282_471, 13, 0));
        for name in [
            "engine-20.10.24-api-1.41",
            "engine-26.1.5-api-1.45",
            "engine-28.5.2-api-1.51",
            "api-1.52",
            "api-1.53",
        ] {
            let seen = DiskUsage::read(&*recorded(name), &Object::ALL).unwrap();
            assert_eq!(seen.get(Object::Images), images, "{name}");
            assert_eq!(seen.get(Object::Containers), usage(70_000, 20_000, 2, 1), "{name}");
            assert_eq!(seen.get(Object::Volumes), usage(100_000, 30_000, 2, 1), "{name}");
            assert_eq!(seen.get(Object::BuildCache), build_cache, "{name}");
        }
        let some = recorded("engine-28.5.2-api-1.51-images-and-build-cache");
        let seen = DiskUsage::read(&*some, &[Object::Images, Object::BuildCache]).unwrap();
        assert_eq!((seen.get(Object::Images), seen.get(Object::BuildCache)), (images, build_cache));
        assert_eq!((seen.get(Object::Containers), seen.get(Object::Volumes)), (None, None));
    }

    #[test]
    fn odd_objects_are_summed_as_the_command_line_does() {
        for body in [ODD, BOTH] {
            let seen = DiskUsage::read(body, &Object::ALL).unwrap();
            assert_eq!(seen.get(Object::Images), usage(1000, 500, 2, 1));
            assert_eq!(seen.get(Object::Containers), usage(17, 7, 3, 2));
            assert_eq!(seen.get(Object::Volumes), usage(80, 30, 4, 1));
            assert_eq!(seen.get(Object::BuildCache), usage(4196, 4096, 3, 1));
        }
        let seen = DiskUsage::read(SUMS, &[Object::Images, Object::BuildCache]).unwrap();
        assert_eq!(seen.get(Object::Images), usage(1000, 0, 2, 0));
        assert_eq!(seen.get(Object::BuildCache), usage(0, 0, 0, 0));
        assert_eq!(seen.get(Object::Volumes), None);
    }

    #[test]
    fn what_was_not_asked_for_is_not_an_empty_disk() {
        let body =
            br#"{"LayersSize": 0, "Images": null, "Containers": null, "Volumes": null, "BuildCache": null}"#;
        let seen = DiskUsage::read(&body[..], &[Object::BuildCache]).unwrap();
        assert_eq!(seen.get(Object::BuildCache), usage(0, 0, 0, 0));
        assert_eq!(seen.get(Object::Images), None);
    }

    #[test]
    fn an_unknown_shape_is_an_error() {
        for (body, message) in [
            (&br#"{"DiskUsage": {"Images": {"Total": 5}}}"#[..], "/system/df has no known field for images"),
            (br#"{"Images": []}"#, "/system/df has no known field for images"),
            (br#"{"ImageUsage": {"TotalSize": 1}}"#, "/system/df has no known field for build_cache"),
            (
                br#"{"ImagesDiskUsage": {}, "BuildCacheDiskUsage": {}}"#,
                "/system/df has no known field for images",
            ),
            (b"{}", "/system/df has no known field for images"),
        ] {
            let error = DiskUsage::read(body, &[Object::Images, Object::BuildCache]).unwrap_err();
            assert_eq!(error.reason(), "bad_answer");
            assert_eq!(error.to_string(), format!("the Docker engine's answer cannot be read: {message}"));
        }
        for body in [&b""[..], b"[]", b"<html>", br#"{"ImageUsage": 5}"#, br#"{"Images": [{"Size": "big"}]}"#]
        {
            assert_eq!(DiskUsage::read(body, &[Object::Images]).unwrap_err().reason(), "bad_answer");
        }
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let body = br#"{"LayersSize": 9223372036854775807,
            "Images": [{"Size": 9223372036854775807, "Containers": 1}, {"Size": 9223372036854775807, "Containers": 1}],
            "BuildCache": [{"Size": 9223372036854775807}, {"Size": 9223372036854775807}, {"Size": 9223372036854775807}]}"#;
        let seen = DiskUsage::read(&body[..], &[Object::Images, Object::BuildCache]).unwrap();
        assert_eq!(seen.get(Object::Images), usage(i64::MAX.unsigned_abs(), 0, 2, 2));
        assert_eq!(seen.get(Object::BuildCache).unwrap().bytes, u64::MAX);
    }

    #[test]
    fn the_filter_is_sent_where_the_engine_knows_it() {
        let some = [Object::Images, Object::BuildCache];
        assert_eq!(path((1, 41), &some), "/system/df");
        assert_eq!(path((1, 42), &some), "/system/df?type=image&type=build-cache");
    }
}
