//! The filesystems of this host, under the names and with the meaning of node_exporter's filesystem collector: its rules
//! and dashboards work unchanged. Run one of the two.
//!
//! What is done better: a mount that hangs costs only itself, and a mount that our own sandbox hides, or another mount
//! covers, never gets the numbers of what is there instead.

use std::{collections::BTreeSet, fmt, io, path::Path, str::FromStr, time::Duration};

use evenkeel_host::{
    filesystem::{Mount, ProbeError, Prober, Usage},
    metrics::Family,
};
use futures_util::{StreamExt, future::BoxFuture, stream};
use regex::Regex;
use rustix::fs::makedev;
use serde::{Deserialize, Deserializer, de};
use tokio::time::Instant;

use super::{CollectError, Collector, Look};

/// The name of the collector.
pub const NAME: &str = "filesystem";

/// node_exporter's defaults.
const MOUNT_POINTS_EXCLUDE: &str =
    "^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)";
const FS_TYPES_EXCLUDE: &str = "^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|fusectl|hugetlbfs|iso9660|mqueue|nsfs|overlay|proc|procfs|pstore|rpc_pipefs|securityfs|selinuxfs|squashfs|erofs|sysfs|tracefs)$";

/// Never asked, whatever is configured: asking for its size would mount what it stands for.
const AUTOMOUNT: &str = "autofs";

/// Its subvolumes have device numbers of their own, which mountinfo does not show.
const WITHOUT_FIXED_DEVICE: &str = "btrfs";

/// Mounts asked at once.
const AT_ONCE: usize = 8;

/// The `filesystem` section of the configuration. The expressions match anywhere in the text, as in node_exporter.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Mount points that are not looked at.
    pub mount_points_exclude: Expression,
    /// Types of filesystems that are not looked at.
    pub fs_types_exclude: Expression,
}

impl Default for Config {
    fn default() -> Self {
        let expression =
            |text: &str| Expression(Regex::new(text).expect("the default is a regular expression"));
        Self {
            mount_points_exclude: expression(MOUNT_POINTS_EXCLUDE),
            fs_types_exclude: expression(FS_TYPES_EXCLUDE),
        }
    }
}

impl Config {
    fn excludes(&self, mount: &Mount) -> bool {
        mount.fs_type == AUTOMOUNT
            || self.fs_types_exclude.0.is_match(&mount.fs_type)
            || self.mount_points_exclude.0.is_match(&mount.mount_point.to_string_lossy())
    }
}

/// A regular expression.
#[derive(Debug, Clone)]
pub struct Expression(Regex);

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        Regex::new(text).map(Self).map_err(|error| {
            // Its last line says what is wrong, those above point at the place.
            let error = error.to_string();
            let cause = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            ExpressionError { text: text.chars().take(64).collect(), cause: cause.to_owned() }
        })
    }
}

/// A text that is no regular expression.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no regular expression ({cause}): write one such as ^/(mnt|media)($|/)")]
pub struct ExpressionError {
    text: String,
    cause: String,
}

impl fmt::Display for Expression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The collector.
#[derive(Debug)]
pub struct FilesystemCollector {
    config: Config,
    /// Knows which mounts are stuck.
    prober: Prober,
}

impl FilesystemCollector {
    /// The collector for this host's filesystems.
    pub fn new(config: &Config) -> Self {
        Self { config: config.clone(), prober: Prober::default() }
    }

    async fn look(&self, deadline: Instant) -> Result<Look, CollectError> {
        let mounts = self.prober.mounts(half_of_the_rest(deadline)).await;
        let mounts =
            mounts.map_err(|error| CollectError::new(format_args!("cannot list the mounts: {error}")))?;
        let wanted = mounts.into_iter().filter(|mount| !self.config.excludes(mount));
        let seen = stream::iter(wanted)
            .map(async |mount: Mount| {
                let usage = self.prober.usage(&mount.mount_point, half_of_the_rest(deadline)).await;
                Seen { state: judge(&mount, usage), mount }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        Ok(Look::fresh(families(&without_covered(seen))))
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

/// How long one mount may take: half of what is left when its turn comes, so that however many are dead at once, those
/// behind them get their turn before the deadline.
fn half_of_the_rest(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()) / 2
}

/// A mount and what was found there.
#[derive(Debug)]
struct Seen {
    mount: Mount,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its numbers.
    Usage(Usage),
    /// Another filesystem is at its place.
    Hidden,
    /// It could not be asked: the `device_error` label.
    Error(String),
}

fn judge(mount: &Mount, usage: Result<Usage, ProbeError>) -> State {
    match usage {
        Ok(usage) => {
            let expected = makedev(mount.major, mount.minor);
            let is_another = usage.device.is_some_and(|device| device != expected);
            if is_another && mount.fs_type != WITHOUT_FIXED_DEVICE {
                State::Hidden
            } else {
                State::Usage(usage)
            }
        }
        Err(ProbeError::Os(error)) => State::Error(as_go_says(&error)),
        Err(ProbeError::Thread(_)) => State::Error("cannot start a thread".to_owned()),
        Err(ProbeError::Stuck | ProbeError::TimedOut | ProbeError::TooMany) => {
            State::Error("mountpoint timeout".to_owned())
        }
    }
}

/// The kernel's error in the words that node_exporter uses: `permission denied`.
fn as_go_says(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// Where several mounts lie on each other, the one that shows: the others are covered by intention, which is no error.
fn without_covered(mut seen: Vec<Seen>) -> Vec<Seen> {
    let shows = |seen: &&Seen| !matches!(seen.state, State::Hidden);
    let showing: BTreeSet<_> = seen.iter().filter(shows).map(|seen| seen.mount.mount_point.clone()).collect();
    seen.retain(|seen| !matches!(seen.state, State::Hidden) || !showing.contains(&seen.mount.mount_point));
    seen
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn families(seen: &[Seen]) -> Vec<Family> {
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
        let mount_point = label(&mount.mount_point);
        let error = match state {
            State::Usage(_) => "",
            State::Hidden => "hidden",
            State::Error(error) => error,
        };
        let labels = [
            ("device", mount.device.as_str()),
            ("device_error", error),
            ("fstype", mount.fs_type.as_str()),
            ("mountpoint", mount_point.as_str()),
        ];
        device_error.sample(&labels, f64::from(u8::from(!error.is_empty())));
        readonly.sample(&labels, f64::from(u8::from(mount.read_only)));
        let State::Usage(usage) = state else { continue };
        size.sample(&labels, usage.size as f64);
        free.sample(&labels, usage.free as f64);
        avail.sample(&labels, usage.avail as f64);
        files.sample(&labels, usage.files as f64);
        files_free.sample(&labels, usage.files_free as f64);
        let (major, minor) = (mount.major.to_string(), mount.minor.to_string());
        let labels = [
            ("device", labels[0].1),
            ("major", major.as_str()),
            ("minor", minor.as_str()),
            ("mountpoint", labels[3].1),
        ];
        mount_info.sample(&labels, 1.0);
    }
    vec![avail, device_error, files, files_free, free, mount_info, readonly, size]
}

fn label(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
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

    fn lines(seen: Vec<Seen>) -> Vec<String> {
        let mut lines = Vec::new();
        for family in families(&without_covered(seen)) {
            for sample in &family.samples {
                let labels: Vec<_> =
                    sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                lines.push(format!("{} {} {}", family.name, labels.join(","), sample.value));
            }
        }
        lines
    }

    fn seen(mount: Mount, usage: Result<Usage, ProbeError>) -> Seen {
        Seen { state: judge(&mount, usage), mount }
    }

    #[test]
    fn names_labels_and_values_are_node_exporters() {
        let labels = "device=/dev/vda1,device_error=,fstype=ext4,mountpoint=/";
        assert_eq!(
            lines(vec![seen(root(), Ok(usage(254, 1)))]),
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
                lines(vec![seen(root(), usage)]),
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
        assert!(matches!(judge(&home, Ok(usage(0, 47))), State::Usage(_)));
    }

    #[test]
    fn a_kernel_that_does_not_tell_the_device_is_believed() {
        let usage = Usage { device: None, ..usage(0, 0) };
        assert!(matches!(judge(&root(), Ok(usage)), State::Usage(_)));
    }

    #[test]
    fn of_mounts_on_each_other_the_one_that_shows_is_told() {
        let below = mount("50 27 254:9 / /srv rw - ext4 /dev/vdb rw");
        let above = mount("51 50 0:60 / /srv rw - tmpfs tmpfs rw");
        let lines = lines(vec![seen(below, Ok(usage(0, 60))), seen(above, Ok(usage(0, 60)))]);
        assert!(lines.iter().all(|line| !line.contains("/dev/vdb")), "{lines:?}");
        assert!(
            lines.contains(
                &"node_filesystem_size_bytes device=tmpfs,device_error=,fstype=tmpfs,mountpoint=/srv 1000"
                    .to_owned()
            )
        );
    }

    #[test]
    fn read_only_is_what_the_mount_says() {
        let read_only = mount("27 1 254:1 / / ro,relatime - ext4 /dev/vda1 rw");
        let sandboxed = Usage { read_only: true, ..usage(254, 1) };
        let value = |mount, usage| {
            let lines = lines(vec![seen(mount, Ok(usage))]);
            lines.into_iter().find(|line| line.starts_with("node_filesystem_readonly")).unwrap()
        };
        assert!(value(read_only, usage(254, 1)).ends_with(" 1"));
        assert!(value(root(), sandboxed).ends_with(" 0"), "our own sandbox is no news of the host");
    }

    #[test]
    fn excludes_what_node_exporter_excludes() {
        let config = Config::default();
        for (point, fs_type, excluded) in [
            ("/", "ext4", false),
            ("/data", "xfs", false),
            ("/run", "tmpfs", false),
            ("/dev", "tmpfs", true),
            ("/dev/shm", "tmpfs", true),
            ("/devel", "ext4", false),
            ("/sys/fs/cgroup", "tmpfs", true),
            ("/run/credentials/systemd-sysusers.service", "ramfs", true),
            ("/run/credentials", "tmpfs", false),
            ("/var/lib/docker", "ext4", false),
            ("/var/lib/docker/overlay2/x/merged", "ext4", true),
            ("/mnt", "overlay", true),
            ("/snap/core/1", "squashfs", true),
            ("/mnt/nfs", "nfs4", false),
        ] {
            let mount = mount(&format!("1 1 0:1 / {point} rw - {fs_type} x rw"));
            assert_eq!(config.excludes(&mount), excluded, "{point} {fs_type}");
        }
    }

    #[test]
    fn automounts_are_never_touched() {
        let expression = |text: &str| text.parse().unwrap();
        let config = Config { mount_points_exclude: expression("^$"), fs_types_exclude: expression("^$") };
        assert!(config.excludes(&mount("34 22 0:29 / /mnt/nas rw - autofs systemd-1 rw")));
        assert!(!config.excludes(&mount("34 22 0:29 / /proc rw - proc proc rw")));
    }

    #[tokio::test]
    async fn this_host_has_a_root_filesystem() {
        // In a container the root may be an overlay.
        let config = Config { fs_types_exclude: "^proc$".parse().unwrap(), ..Config::default() };
        let collector = FilesystemCollector::new(&config);
        let deadline = Instant::now() + Duration::from_secs(60);
        let Look::Seen(blocks) = Collector::look(&collector, deadline).await.unwrap() else {
            panic!("absent");
        };
        let families = blocks[0].read_back();
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
