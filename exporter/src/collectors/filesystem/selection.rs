//! Which filesystems are published: node_exporter's flags, with its defaults and their meaning, and the same in the
//! configuration file.

use std::{fmt, str::FromStr, time::Duration};

use clap::Args;
use evenkeel_host::{
    config::{ConfigError, Located, PromDuration},
    filesystem::Mount,
};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

/// node_exporter's defaults.
const MOUNT_POINTS_EXCLUDE: &str =
    "^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)";
const FS_TYPES_EXCLUDE: &str = "^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|fusectl|hugetlbfs|iso9660|mqueue|nsfs|overlay|proc|procfs|pstore|rpc_pipefs|securityfs|selinuxfs|squashfs|erofs|sysfs|tracefs)$";
const MOUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// Never asked, whatever is configured: asking for its size would mount what it stands for.
const AUTOMOUNT: &str = "autofs";

/// Which filesystems are looked at. The expressions match anywhere in the text, as in node_exporter.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Mount points that are not looked at.
    #[schemars(extend("default" = MOUNT_POINTS_EXCLUDE))]
    pub mount_points_exclude: Option<Expression>,
    /// Instead: the only mount points that are looked at.
    pub mount_points_include: Option<Located<Expression>>,
    /// Types of filesystems that are not looked at.
    #[schemars(extend("default" = FS_TYPES_EXCLUDE))]
    pub fs_types_exclude: Option<Expression>,
    /// Instead: the only types that are looked at.
    pub fs_types_include: Option<Located<Expression>>,
    /// How long to wait for mounts that do not answer.
    #[schemars(extend("default" = "5s"))]
    pub mount_timeout: Option<Patience>,
}

impl Config {
    /// What no single key can know.
    ///
    /// # Errors
    /// When both what to look at and what not to look at is given.
    pub fn check(&self, origin: &str) -> Result<(), ConfigError> {
        for (what, exclude, include) in [
            ("mount_points", &self.mount_points_exclude, &self.mount_points_include),
            ("fs_types", &self.fs_types_exclude, &self.fs_types_include),
        ] {
            if let (Some(_), Some(include)) = (exclude, include) {
                let message = format!(
                    "`filesystem`: `{what}_include` and `{what}_exclude` exclude each other: keep one"
                );
                return Err(ConfigError::at(origin, include, message));
            }
        }
        Ok(())
    }
}

/// The flags, which win over the configuration.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub struct Flags {
    #[arg(
        id = "collector.filesystem.mount-points-exclude",
        long,
        value_name = "REGEX",
        conflicts_with = "collector.filesystem.mount-points-include",
        help = format!("Do not look at mount points that match this regular expression [default: {MOUNT_POINTS_EXCLUDE}]")
    )]
    mount_points_exclude: Option<Expression>,

    /// Look only at mount points that match this regular expression.
    #[arg(id = "collector.filesystem.mount-points-include", long, value_name = "REGEX")]
    mount_points_include: Option<Expression>,

    #[arg(
        id = "collector.filesystem.fs-types-exclude",
        long,
        value_name = "REGEX",
        conflicts_with = "collector.filesystem.fs-types-include",
        help = format!("Do not look at filesystems of a type that matches this regular expression [default: {FS_TYPES_EXCLUDE}]")
    )]
    fs_types_exclude: Option<Expression>,

    /// Look only at filesystems of a type that matches this regular expression.
    #[arg(id = "collector.filesystem.fs-types-include", long, value_name = "REGEX")]
    fs_types_include: Option<Expression>,

    /// How long to wait for mounts that do not answer [default: 5s].
    #[arg(id = "collector.filesystem.mount-timeout", long, value_name = "DURATION")]
    mount_timeout: Option<Patience>,
}

/// What is looked at, and how long.
#[derive(Debug)]
pub(super) struct Selection {
    mount_points: Filter,
    fs_types: Filter,
    pub(super) mount_timeout: Duration,
}

impl Selection {
    pub(super) fn new(config: &Config, flags: &Flags) -> Self {
        let in_file = |expression: &Option<Located<Expression>>| Some(expression.as_ref()?.value.clone());
        let patience = flags.mount_timeout.or(config.mount_timeout);
        Self {
            mount_points: Filter::of(&flags.mount_points_include, &flags.mount_points_exclude)
                .or_else(|| Filter::of(&in_file(&config.mount_points_include), &config.mount_points_exclude))
                .unwrap_or_else(|| Filter::Except(Expression::default_of(MOUNT_POINTS_EXCLUDE))),
            fs_types: Filter::of(&flags.fs_types_include, &flags.fs_types_exclude)
                .or_else(|| Filter::of(&in_file(&config.fs_types_include), &config.fs_types_exclude))
                .unwrap_or_else(|| Filter::Except(Expression::default_of(FS_TYPES_EXCLUDE))),
            mount_timeout: patience.map_or(MOUNT_TIMEOUT, |patience| patience.0),
        }
    }

    pub(super) fn admits(&self, mount: &Mount) -> bool {
        mount.fs_type != AUTOMOUNT
            && self.fs_types.admits(&mount.fs_type)
            && self.mount_points.admits(&mount.mount_point.to_string_lossy())
    }
}

#[derive(Debug)]
enum Filter {
    Only(Expression),
    Except(Expression),
}

impl Filter {
    /// As in node_exporter: who says what to include means that the default exclusions do not count.
    fn of(include: &Option<Expression>, exclude: &Option<Expression>) -> Option<Self> {
        match (include, exclude) {
            (Some(include), _) if !include.is_empty() => Some(Self::Only(include.clone())),
            (_, exclude) => exclude.clone().map(Self::Except),
        }
    }

    fn admits(&self, text: &str) -> bool {
        match self {
            Self::Only(expression) => expression.0.is_match(text),
            // An empty one means that nothing is excluded, though by itself it matches everything.
            Self::Except(expression) => expression.is_empty() || !expression.0.is_match(text),
        }
    }
}

/// A regular expression.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(with = "String")]
pub struct Expression(Regex);

impl Expression {
    fn default_of(text: &str) -> Self {
        Self(Regex::new(text).expect("the default is a regular expression"))
    }

    fn is_empty(&self) -> bool {
        self.0.as_str().is_empty()
    }
}

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

/// A time to wait: without any, every mount would count as dead.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(with = "PromDuration")]
pub struct Patience(Duration);

impl FromStr for Patience {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = text.parse::<PromDuration>().map_err(|error| error.to_string())?.get();
        if duration.is_zero() {
            Err(format!("`{text}` is no time to wait: write 5s"))
        } else {
            Ok(Self(duration))
        }
    }
}

impl<'de> Deserialize<'de> for Patience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};
    use evenkeel_host::{config, filesystem::parse_mountinfo};

    use super::*;

    fn mount(point: &str, fs_type: &str) -> Mount {
        parse_mountinfo(&format!("1 1 0:1 / {point} rw - {fs_type} x rw")).remove(0)
    }

    fn flags(arguments: &[&str]) -> Flags {
        let command = Flags::augment_args(Command::new("x").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).expect("good flags");
        Flags::from_arg_matches(&matches).expect("good flags")
    }

    fn selection(yaml: &str, arguments: &[&str]) -> Selection {
        Selection::new(&config::parse("c.yml", yaml).expect("a good section"), &flags(arguments))
    }

    #[test]
    fn excludes_what_node_exporter_excludes() {
        let selection = selection("", &[]);
        for (point, fs_type, admitted) in [
            ("/", "ext4", true),
            ("/data", "xfs", true),
            ("/run", "tmpfs", true),
            ("/dev", "tmpfs", false),
            ("/dev/shm", "tmpfs", false),
            ("/devel", "ext4", true),
            ("/sys/fs/cgroup", "tmpfs", false),
            ("/run/credentials/systemd-sysusers.service", "ramfs", false),
            ("/run/credentials", "tmpfs", true),
            ("/var/lib/docker", "ext4", true),
            ("/var/lib/docker/overlay2/x/merged", "ext4", false),
            ("/mnt", "overlay", false),
            ("/snap/core/1", "squashfs", false),
            ("/mnt/nfs", "nfs4", true),
        ] {
            assert_eq!(selection.admits(&mount(point, fs_type)), admitted, "{point} {fs_type}");
        }
    }

    #[test]
    fn flags_win_over_the_file_and_both_over_the_defaults() {
        let mounts = [("/", "ext4"), ("/dev/shm", "tmpfs"), ("/mnt/a", "nfs4"), ("/snap/x", "squashfs")];
        for (yaml, arguments, admitted) in [
            ("", &[][..], &["/", "/mnt/a"][..]),
            ("mount_points_exclude: ^/mnt", &[], &["/", "/dev/shm"]),
            ("mount_points_include: ^/(dev|mnt)", &[], &["/dev/shm", "/mnt/a"]),
            ("fs_types_include: fs$", &[], &["/snap/x"]),
            ("fs_types_exclude: ^nfs", &[], &["/", "/snap/x"]),
            (
                "mount_points_include: ^/dev",
                &["--collector.filesystem.mount-points-exclude=^/$"],
                &["/dev/shm", "/mnt/a"],
            ),
            (
                "mount_points_exclude: ^/mnt",
                &[
                    "--collector.filesystem.mount-points-include=a$",
                    "--collector.filesystem.fs-types-exclude=x",
                ],
                &["/mnt/a"],
            ),
            ("", &["--collector.filesystem.fs-types-include=^(ext4|squashfs)$"], &["/", "/snap/x"]),
            // What one writes to exclude nothing.
            ("", &["--collector.filesystem.mount-points-exclude="], &["/", "/dev/shm", "/mnt/a"]),
            ("mount_points_include: ''", &[], &["/", "/mnt/a"]),
        ] {
            let selection = selection(yaml, arguments);
            let seen: Vec<_> =
                mounts.iter().filter(|(point, fs_type)| selection.admits(&mount(point, fs_type))).collect();
            assert_eq!(
                seen.iter().map(|(point, _)| *point).collect::<Vec<_>>(),
                admitted,
                "{yaml} {arguments:?}"
            );
        }
    }

    #[test]
    fn patience_is_node_exporters() {
        assert_eq!(selection("", &[]).mount_timeout, Duration::from_secs(5));
        assert_eq!(selection("mount_timeout: 1m", &[]).mount_timeout, Duration::from_secs(60));
        let arguments = ["--collector.filesystem.mount-timeout=500ms"];
        assert_eq!(selection("mount_timeout: 1m", &arguments).mount_timeout, Duration::from_millis(500));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let exclude = "--collector.filesystem.fs-types-exclude=a";
        for (arguments, says) in [
            (&["--collector.filesystem.fs-types-include=b", exclude][..], "cannot be used with"),
            (
                &["--collector.filesystem.mount-points-include=("],
                "`(` is no regular expression (unclosed group)",
            ),
            (&["--collector.filesystem.mount-timeout=0s"], "`0s` is no time to wait: write 5s"),
            (&["--collector.filesystem.mount-timeout=5"], "`5` is not a duration: write 30s"),
        ] {
            let command = Flags::augment_args(Command::new("x").no_binary_name(true));
            let error = command.try_get_matches_from(arguments).expect_err("refused").to_string();
            assert!(error.contains(says), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn automounts_are_never_touched() {
        let arguments =
            ["--collector.filesystem.mount-points-exclude=", "--collector.filesystem.fs-types-exclude="];
        let selection = selection("", &arguments);
        assert!(!selection.admits(&mount("/mnt/nas", "autofs")));
        assert!(selection.admits(&mount("/proc", "proc")));
    }
}
