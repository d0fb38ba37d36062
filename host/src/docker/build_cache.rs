//! BuildKit's records one by one, for who wants to know what a prune of the old ones would free: `GET /system/df`.

use std::{io::Read, time::SystemTime};

use serde::Deserialize;

use super::{
    Error,
    container::time,
    cut,
    disk_usage::{Sums, present},
};

/// The build cache, record by record where the engine lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildCache {
    /// Bytes that nothing uses.
    pub reclaimable_bytes: u64,
    /// The records; `None` from engines that tell only sums (API 1.53).
    pub records: Option<Vec<CacheRecord>>,
}

/// One record of BuildKit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecord {
    /// `regular`, `source.local`, `exec.cachemount`, `internal`, `frontend` …
    pub kind: String,
    /// On disk.
    pub bytes: u64,
    /// A build is using it.
    pub in_use: bool,
    /// An image uses it too: deleting it frees nothing.
    pub shared: bool,
    /// When a build used it last, or made it.
    pub last_used: Option<SystemTime>,
}

impl BuildCache {
    /// Reads an answer of any shape.
    ///
    /// # Errors
    /// When it is not JSON, or tells nothing of the build cache.
    pub fn read(body: impl Read) -> Result<Self, Error> {
        let raw: Raw = serde_json::from_reader(body)
            .map_err(|error| Error::Answer(cut(&format!("/system/df: {error}")).to_owned()))?;
        let sums = raw.build_cache_usage.map(Sums::usage);
        let listed =
            raw.build_cache.map(|records| records.into_iter().map(Record::known).collect::<Vec<_>>());
        match (sums, listed) {
            (None, None) => Err(Error::Answer("/system/df has no known field for build_cache".to_owned())),
            (None, Some(records)) => {
                let unused = records.iter().filter(|record| !record.in_use && !record.shared);
                let reclaimable_bytes = unused.map(|record| record.bytes).fold(0, u64::saturating_add);
                Ok(Self { reclaimable_bytes, records: Some(records) })
            }
            // API 1.52 leaves the list empty beside the sums unless asked to be verbose.
            (Some(sums), listed) => Ok(Self {
                reclaimable_bytes: sums.reclaimable_bytes,
                records: listed.filter(|records| !records.is_empty() || sums.objects == 0),
            }),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Raw {
    #[serde(deserialize_with = "present")]
    build_cache: Option<Vec<Record>>,
    build_cache_usage: Option<Sums>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Record {
    #[serde(rename = "Type")]
    kind: String,
    size: i64,
    in_use: bool,
    shared: bool,
    created_at: Option<String>,
    last_used_at: Option<String>,
}

impl Record {
    fn known(self) -> CacheRecord {
        CacheRecord {
            kind: self.kind,
            bytes: u64::try_from(self.size).unwrap_or(0),
            in_use: self.in_use,
            shared: self.shared,
            last_used: time(self.last_used_at.as_deref()).or_else(|| time(self.created_at.as_deref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_build_cache_is_read_record_by_record_where_it_is_listed() {
        let listed = br#"{"LayersSize": 0, "BuildCache": [
            {"ID": "a", "Type": "regular", "Size": 10, "InUse": false, "Shared": false,
             "CreatedAt": "1970-01-01T00:01:00Z", "LastUsedAt": "1970-01-01T00:02:00Z"},
            {"ID": "b", "Type": "frontend", "Size": 5, "CreatedAt": "1970-01-01T00:01:00Z", "LastUsedAt": null}]}"#;
        let cache = BuildCache::read(&listed[..]).unwrap();
        let records = cache.records.unwrap();
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!((cache.reclaimable_bytes, records.len()), (15, 2));
        assert_eq!((records[0].last_used, records[1].last_used), (at(120), at(60)));
        assert_eq!(records[1].kind, "frontend");
    }

    /// Sums beside a list that was not asked for, and sums alone: how old what is, is not told.
    #[test]
    fn sums_alone_say_nothing_of_age() {
        let sums = r#""BuildCacheUsage": {"TotalCount": 3, "Reclaimable": 4096, "TotalSize": 4196}"#;
        for body in [format!("{{{sums}}}"), format!("{{\"BuildCache\": [], {sums}}}")] {
            let cache = BuildCache::read(body.as_bytes()).unwrap();
            assert_eq!((cache.reclaimable_bytes, cache.records), (4096, None));
        }
        let empty = BuildCache::read(&br#"{"LayersSize": 0, "BuildCache": null}"#[..]).unwrap();
        assert_eq!(empty, BuildCache { reclaimable_bytes: 0, records: Some(Vec::new()) });
        assert_eq!(BuildCache::read(&b"{}"[..]).unwrap_err().reason(), "bad_answer");
    }
}
