//! The filesystems of this host, under the names and with the meaning of node_exporter's filesystem collector: its rules
//! and dashboards work unchanged. Run one of the two.
//!
//! What is done better: a mount that hangs costs only itself, and a mount that our own sandbox hides, or another mount
//! covers, never gets the numbers of what is there instead.

mod selection;

use std::{borrow::Cow, collections::HashMap, ffi::OsStr, io, path::Path, sync::Arc};

use evenkeel_host::{
    filesystem::{Mount, ProbeError, Prober, Usage},
    metrics::{Family, Labels, Renewed},
};
use futures_util::future::BoxFuture;
use rustix::fs::makedev;
use tokio::time::Instant;

use super::{CollectError, Collector, Look};
use crate::evidence::{self, Piece};
use selection::Selection;
pub use selection::{Config, Expression, ExpressionError, Flags, Patience};

/// The name of the collector.
pub const NAME: &str = "filesystem";

/// Its subvolumes have device numbers of their own, which mountinfo does not show.
const WITHOUT_FIXED_DEVICE: &str = "btrfs";

/// The collector.
#[derive(Debug)]
pub struct FilesystemCollector {
    selection: Selection,
    /// Knows which mounts are stuck.
    prober: Prober,
    /// Sizes hardly ever change, free space does.
    told: Renewed,
}

impl FilesystemCollector {
    /// The collector for this host's filesystems.
    pub fn new(config: &Config, flags: &Flags) -> Self {
        Self { selection: Selection::new(config, flags), prober: Prober::default(), told: Renewed::default() }
    }

    async fn look(&self, deadline: Instant) -> Result<Look, CollectError> {
        let left = || deadline.saturating_duration_since(Instant::now());
        // Half of it: the list may have to wait for whoever is mounting something, and the mounts need their time too.
        let mounts = self.prober.mounts(left() / 2).await;
        let mounts =
            mounts.map_err(|error| CollectError::new(format_args!("cannot list the mounts: {error}")))?;
        let (mounts, others): (Vec<_>, Vec<_>) =
            mounts.iter().partition(|mount| self.selection.admits(mount));
        let (paths, places) = places(&mounts);
        let usages = self.prober.usages(paths, left().min(self.selection.mount_timeout)).await;
        let mut seen = on_top(&mounts, &places, &usages);
        seen.retain(|seen| !is_covered(seen, &others));
        // As the samples are sorted later: once here is cheaper than once for each family.
        seen.sort_by(|a, b| sorted_by(a.mount).cmp(&sorted_by(b.mount)));
        Ok(Look::of(self.told.blocks(families(&seen))).with(Piece::Filesystems(evidence(&seen))))
    }
}

impl Collector for FilesystemCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(self.look(deadline))
    }

    fn down(&self) -> Vec<Family> {
        Vec::new()
    }
}

/// Each place where something is mounted, and of every mount the number of its place: where several mounts lie on each
/// other, one question answers for all.
fn places(mounts: &[&Mount]) -> (Vec<Arc<Path>>, Vec<usize>) {
    let mut known = HashMap::<&OsStr, usize>::with_capacity(mounts.len());
    let mut paths = Vec::with_capacity(mounts.len());
    let mut numbers = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let number = *known.entry(mount.mount_point.as_os_str()).or_insert(paths.len());
        if number == paths.len() {
            paths.push(Arc::clone(&mount.mount_point));
        }
        numbers.push(number);
    }
    (paths, numbers)
}

/// Of the mounts at one place the one that shows: the others are covered by intention, which is no error. Where none of
/// them shows, the last one stands for all.
fn on_top<'a>(
    mounts: &[&'a Mount],
    places: &[usize],
    usages: &'a [Result<Usage, ProbeError>],
) -> Vec<Seen<'a>> {
    let mut seen: Vec<Option<Seen<'a>>> = usages.iter().map(|_| None).collect();
    for (&mount, &place) in mounts.iter().zip(places) {
        let this = Seen { mount, state: judge(mount, &usages[place]) };
        let shows_below = seen[place].as_ref().is_some_and(|below| !matches!(below.state, State::Hidden(_)));
        if !(shows_below && matches!(this.state, State::Hidden(_))) {
            seen[place] = Some(this);
        }
    }
    seen.into_iter().flatten().collect()
}

/// Whether what shows instead of a mount is one of those that are not published.
fn is_covered(seen: &Seen<'_>, others: &[&Mount]) -> bool {
    let State::Hidden(device) = seen.state else { return false };
    others.iter().any(|other| device_of(other) == device && other.mount_point == seen.mount.mount_point)
}

fn sorted_by(mount: &Mount) -> (&str, &str, &Path) {
    (&mount.device, &mount.fs_type, &mount.mount_point)
}

/// A mount and what was found there.
#[derive(Debug)]
struct Seen<'a> {
    mount: &'a Mount,
    state: State<'a>,
}

#[derive(Debug)]
enum State<'a> {
    /// Its numbers.
    Usage(&'a Usage),
    /// Another filesystem is at its place: the one with this `st_dev`.
    Hidden(u64),
    /// It could not be asked: the `device_error` label.
    Error(Cow<'static, str>),
}

fn judge<'a>(mount: &Mount, usage: &'a Result<Usage, ProbeError>) -> State<'a> {
    match usage {
        Ok(usage) => match usage.device {
            Some(device) if device != device_of(mount) && mount.fs_type != WITHOUT_FIXED_DEVICE => {
                State::Hidden(device)
            }
            _ => State::Usage(usage),
        },
        Err(ProbeError::Os(error)) => State::Error(as_go_says(error).into()),
        Err(ProbeError::Thread(_)) => State::Error("cannot start a thread".into()),
        Err(ProbeError::Stuck | ProbeError::TimedOut | ProbeError::TooMany) => {
            State::Error("mountpoint timeout".into())
        }
    }
}

fn device_of(mount: &Mount) -> u64 {
    makedev(mount.major, mount.minor)
}

fn evidence(seen: &[Seen<'_>]) -> Arc<[evidence::Filesystem]> {
    let filesystem = |Seen { mount, state }: &Seen<'_>| evidence::Filesystem {
        mount_point: Arc::clone(&mount.mount_point),
        fs_type: mount.fs_type.clone(),
        is_read_only: mount.read_only,
        usage: match state {
            State::Usage(usage) => {
                Ok(evidence::Used { bytes: usage.used_ratio(), inodes: usage.inodes_used_ratio() })
            }
            State::Hidden(_) => Err("hidden from the exporter".to_owned()),
            State::Error(error) => Err(error.clone().into_owned()),
        },
    };
    seen.iter().map(filesystem).collect()
}

/// The kernel's error in the words that node_exporter uses: `permission denied`.
fn as_go_says(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn families(seen: &[Seen<'_>]) -> Vec<Family> {
    let mut size = Family::gauge("node_filesystem_size_bytes", "Filesystem size in bytes.");
    let mut free = Family::gauge("node_filesystem_free_bytes", "Filesystem free space in bytes.");
    let mut avail = Family::gauge(
        "node_filesystem_avail_bytes",
        "Filesystem space available to non-root users in bytes.",
    );
    let mut files = Family::gauge("node_filesystem_files", "Filesystem total file nodes.");
    let mut files_free = Family::gauge("node_filesystem_files_free", "Filesystem total free file nodes.");
    let mut readonly = Family::gauge("node_filesystem_readonly", "Filesystem read-only status.");
    let mut device_error = Family::gauge(
        "node_filesystem_device_error",
        "Whether an error occurred while getting statistics for the given device.",
    );
    let mut mount_info = Family::gauge("node_filesystem_mount_info", "Filesystem mount information.");
    for Seen { mount, state } in seen {
        let mount_point = mount.mount_point.to_string_lossy();
        let error = match state {
            State::Usage(_) => "",
            State::Hidden(_) => "hidden",
            State::Error(error) => error,
        };
        let labels = Labels::new(&[
            ("device", mount.device.as_str()),
            ("device_error", error),
            ("fstype", mount.fs_type.as_str()),
            ("mountpoint", mount_point.as_ref()),
        ]);
        device_error.sample_of(labels.clone(), f64::from(u8::from(!error.is_empty())));
        readonly.sample_of(labels.clone(), f64::from(u8::from(mount.read_only)));
        let State::Usage(usage) = state else { continue };
        size.sample_of(labels.clone(), usage.size as f64);
        free.sample_of(labels.clone(), usage.free as f64);
        avail.sample_of(labels.clone(), usage.avail as f64);
        files.sample_of(labels.clone(), usage.files as f64);
        files_free.sample_of(labels, usage.files_free as f64);
        let (major, minor) = (mount.major.to_string(), mount.minor.to_string());
        let labels = [
            ("device", mount.device.as_str()),
            ("major", major.as_str()),
            ("minor", minor.as_str()),
            ("mountpoint", mount_point.as_ref()),
        ];
        mount_info.sample(&labels, 1.0);
    }
    vec![avail, device_error, files, files_free, free, mount_info, readonly, size]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use evenkeel_host::filesystem::parse_mountinfo;

    use super::*;

    fn mount(line: &str) -> Mount {
        parse_mountinfo(line).into_iter().next().expect(line)
    }

    fn root() -> Mount {
        mount("27 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw")
    }

    fn usage(major: u32, minor: u32) -> Usage {
        Usage {
            size: 1000,
            free: 300,
            avail: 200,
            files: 50,
            files_free: 40,
            read_only: false,
            device: Some(makedev(major, minor)),
        }
    }

    /// What is published of mounts whose places gave these answers.
    fn lines<const N: usize>(found: [(Mount, Result<Usage, ProbeError>); N]) -> Vec<String> {
        let (mounts, answers): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let mounts: Vec<&Mount> = mounts.iter().collect();
        let (paths, places) = places(&mounts);
        // As the prober does it: one answer for each place.
        let mut usages: Vec<Option<_>> = paths.iter().map(|_| None).collect();
        for (answer, &place) in answers.into_iter().zip(&places) {
            usages[place] = Some(answer);
        }
        let usages: Vec<_> = usages.into_iter().flatten().collect();
        let mut lines = Vec::new();
        for family in families(&on_top(&mounts, &places, &usages)) {
            for sample in &family.samples {
                let labels: Vec<_> =
                    sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                lines.push(format!("{} {} {}", family.name, labels.join(","), sample.value));
            }
        }
        lines
    }

    #[test]
    fn names_labels_and_values_are_node_exporters() {
        let labels = "device=/dev/vda1,device_error=,fstype=ext4,mountpoint=/";
        assert_eq!(
            lines([(root(), Ok(usage(254, 1)))]),
            [
                format!("node_filesystem_avail_bytes {labels} 200"),
                format!("node_filesystem_device_error {labels} 0"),
                format!("node_filesystem_files {labels} 50"),
                format!("node_filesystem_files_free {labels} 40"),
                format!("node_filesystem_free_bytes {labels} 300"),
                "node_filesystem_mount_info device=/dev/vda1,major=254,minor=1,mountpoint=/ 1".to_owned(),
                format!("node_filesystem_readonly {labels} 0"),
                format!("node_filesystem_size_bytes {labels} 1000"),
            ]
        );
    }

    #[test]
    fn a_mount_in_trouble_has_no_numbers() {
        let os = |code| Err(ProbeError::Os(io::Error::from_raw_os_error(code)));
        for (usage, error) in [
            (os(13), "permission denied"),
            (os(5), "input/output error"),
            (os(107), "transport endpoint is not connected"),
            (Err(ProbeError::TimedOut), "mountpoint timeout"),
            (Err(ProbeError::Stuck), "mountpoint timeout"),
            (Ok(usage(0, 99)), "hidden"),
        ] {
            let labels = format!("device=/dev/vda1,device_error={error},fstype=ext4,mountpoint=/");
            assert_eq!(
                lines([(root(), usage)]),
                [
                    format!("node_filesystem_device_error {labels} 1"),
                    format!("node_filesystem_readonly {labels} 0"),
                ]
            );
        }
    }

    #[test]
    fn btrfs_has_device_numbers_of_its_own() {
        let home = mount("62 27 0:44 /@home /home rw - btrfs /dev/sdb1 rw");
        assert!(matches!(judge(&home, &Ok(usage(0, 47))), State::Usage(_)));
    }

    #[test]
    fn a_kernel_that_does_not_tell_the_device_is_believed() {
        let usage = Ok(Usage { device: None, ..usage(0, 0) });
        assert!(matches!(judge(&root(), &usage), State::Usage(_)));
    }

    #[test]
    fn of_mounts_on_each_other_the_one_that_shows_is_told() {
        let below = mount("50 27 254:9 / /srv rw - ext4 /dev/vdb rw");
        let above = mount("51 50 0:60 / /srv ro - tmpfs tmpfs rw");
        let shows = lines([(below.clone(), Ok(usage(0, 60))), (above.clone(), Ok(usage(0, 60)))]);
        assert_eq!(shows.len(), 8, "{shows:?}");
        assert!(shows.iter().all(|line| line.contains("device=tmpfs,")), "{shows:?}");
        // The same filesystem twice is told once, as the one above is.
        let again = mount("49 27 0:60 / /srv rw - tmpfs tmpfs rw");
        let once = lines([(again, Ok(usage(0, 60))), (above.clone(), Ok(usage(0, 60)))]);
        assert_eq!(once, shows);
        // Where our own sandbox covers both, that is said of the upper one.
        let hidden = lines([(below, Ok(usage(0, 99))), (above, Ok(usage(0, 99)))]);
        assert!(hidden[0].contains("device=tmpfs,device_error=hidden"), "{hidden:?}");
        assert_eq!(hidden.len(), 2, "{hidden:?}");
    }

    #[test]
    fn a_mount_below_one_that_is_not_published_is_no_error() {
        let below = mount("50 27 254:9 / /srv rw - ext4 /dev/vdb rw");
        let overlay = mount("51 50 0:60 / /srv rw - overlay overlay rw");
        let elsewhere = mount("52 27 0:99 / /mnt rw - overlay overlay rw");
        let seen = |device| Seen { mount: &below, state: State::Hidden(device) };
        let others = [&overlay, &elsewhere];
        assert!(is_covered(&seen(makedev(0, 60)), &others));
        assert!(!is_covered(&seen(makedev(0, 99)), &others), "that one is mounted elsewhere");
    }

    #[test]
    fn read_only_is_what_the_mount_says() {
        let read_only = mount("27 1 254:1 / / ro,relatime - ext4 /dev/vda1 rw");
        let sandboxed = Usage { read_only: true, ..usage(254, 1) };
        let value = |mount, usage| {
            let lines = lines([(mount, Ok(usage))]);
            lines.into_iter().find(|line| line.starts_with("node_filesystem_readonly")).unwrap()
        };
        assert!(value(read_only, usage(254, 1)).ends_with(" 1"));
        assert!(value(root(), sandboxed).ends_with(" 0"), "our own sandbox is no news of the host");
    }

    #[test]
    fn odd_mount_points_are_one_label() {
        let line = "80 27 0:50 / /mnt/a\\040b\\012c\"d\\134e rw - tmpfs tmpfs rw";
        let lines = lines([(mount(line), Ok(usage(0, 50)))]);
        assert!(lines[0].ends_with("mountpoint=/mnt/a b\nc\"d\\e 200"), "{lines:?}");
    }

    #[tokio::test]
    async fn this_host_has_a_root_filesystem() {
        // In a container the root may be an overlay.
        let config = Config { fs_types_exclude: Some("^proc$".parse().unwrap()), ..Config::default() };
        let collector = FilesystemCollector::new(&config, &Flags::default());
        let deadline = Instant::now() + Duration::from_secs(60);
        let Look::Seen(crate::collectors::Seen { blocks, .. }) =
            Collector::look(&collector, deadline).await.unwrap()
        else {
            panic!("absent");
        };
        let families: Vec<Family> = blocks.iter().flat_map(|block| block.read_back()).collect();
        let size = families.iter().find(|family| family.name == "node_filesystem_size_bytes").unwrap();
        let root = size
            .samples
            .iter()
            .find(|sample| sample.labels.contains(&("mountpoint", "/".to_owned())))
            .unwrap();
        let expected = rustix::fs::statvfs("/").unwrap();
        assert!((root.value - (expected.f_blocks * expected.f_frsize) as f64).abs() < 1.0);
    }
}
