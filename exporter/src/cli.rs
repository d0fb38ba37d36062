//! The command line: flags become checked values here. Their names are those of the exporter-toolkit family.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgGroup, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    ValueEnum, builder::PossibleValuesParser,
};
use evenkeel_host::{build, log, web::ListenAddress};

use crate::{
    by_root,
    collectors::{self, Switches},
    config::MAX_REQUESTS,
    generate::Generate,
};

/// The flags, checked.
#[derive(Debug)]
pub struct Arguments {
    /// Where to listen.
    pub listen: Vec<ListenAddress>,
    /// Listen on what systemd has passed instead.
    pub systemd_socket: bool,
    /// Where the metrics are.
    pub telemetry_path: String,
    /// Scrapes at the same time; 0 for any number.
    pub max_requests: usize,
    /// The web configuration file, if any.
    pub web_config: Option<PathBuf>,
    /// The configuration file, if any.
    pub config: Option<PathBuf>,
    /// Check the configuration and end.
    pub check: bool,
    /// The collectors that run, in the order of the list, as the flags have it.
    pub collectors: Vec<&'static str>,
    /// Those among them that a flag names: the configuration does not switch them off.
    pub demanded: Vec<&'static str>,
    /// What each collector's own flags say.
    pub flags: collectors::Flags,
    /// One of [`log::LEVELS`].
    pub log_level: String,
    /// How log lines look.
    pub log_format: log::Format,
    /// What to do instead of serving.
    pub command: Option<Command>,
}

/// What can be done instead of serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Looks at this host once and says whether it is as expected: exit code 0 when all is met, 1 when something is not, 2
    /// when something cannot be told.
    Check(Check),
    /// Finds out what takes root to see, and leaves it for an exporter that is not root. For evenkeel-facts.service.
    Facts(Facts),
    /// Writes a text that stands around the exporter: a first configuration for this host, the manual, completions.
    Generate {
        /// What to write.
        #[command(subcommand)]
        what: Generate,
    },
}

/// The flags of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// How it is told.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,

    /// Print what the watched targets pull in as a Mermaid diagram instead.
    #[arg(long, conflicts_with_all = ["format", "baseline"])]
    pub graph: bool,

    /// An earlier `check --format json`, for a column that says how it was before.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
}

/// How a check is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns, coloured on a terminal unless NO_COLOR is set.
    Text,
    /// A table for documents.
    Markdown,
    /// For programs, and for `--baseline`.
    Json,
}

/// The flags of `facts`.
#[derive(Debug, Args)]
pub struct Facts {
    /// Where to leave them.
    #[arg(long, value_name = "FILE", default_value = by_root::PATH)]
    pub output: PathBuf,
}

impl Arguments {
    /// Reads a command line, the program's name first; `collectors` are the names that have flags.
    ///
    /// # Errors
    /// For what makes no sense, and for `--help` and `--version`, which are no failures.
    pub fn parse(
        arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        collectors: &[&'static str],
    ) -> Result<Self, clap::Error> {
        let matches = command(collectors).version(build::line()).try_get_matches_from(arguments)?;
        let flags = Flags::from_arg_matches(&matches)?;
        let enabled = |name: &&&str| is_enabled(&matches, name, flags.disable_defaults);
        let demanded = |name: &&&str| is_demanded(&matches, name);
        Ok(Self {
            listen: flags.listen,
            systemd_socket: flags.systemd_socket,
            telemetry_path: flags.telemetry_path,
            max_requests: flags.max_requests,
            web_config: flags.web_config,
            config: flags.config,
            check: flags.check,
            collectors: collectors.iter().filter(enabled).copied().collect(),
            demanded: collectors.iter().filter(demanded).copied().collect(),
            flags: flags.of_collectors,
            log_level: flags.log_level,
            log_format: flags.log_format,
            command: flags.command,
        })
    }

    /// Leaves out the collectors that the configuration switches off, but for those that a flag names.
    pub fn heed(&mut self, switches: &Switches) {
        self.collectors.retain(|name| self.demanded.contains(name) || !switches.is_off(name));
    }
}

/// The flags and commands, with those of these collectors; for parsing, and for whoever describes them.
pub fn command(collectors: &[&'static str]) -> clap::Command {
    Flags::command().version(build::VERSION).args(collectors.iter().flat_map(|name| collector_flags(name)))
}

/// What the process ends with.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, of `check`: something is not as expected; 2 of `check`: something cannot be told; 64 the command line or the configuration makes no sense.";

/// Publishes the truth about this host for Prometheus: systemd units, Docker containers and disk usage, filesystems,
/// Redis, the journal's size, memory and load. It only looks and never changes the host.
#[derive(Debug, Parser)]
#[command(name = "evenkeel-exporter", after_help = EXIT_CODES, group = ArgGroup::new("files").args(["config", "web_config"]).multiple(true))]
struct Flags {
    /// Address to listen on: host:port, :port, [::1]:port or unix:/path. May be repeated.
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = "127.0.0.1:19847")]
    listen: Vec<ListenAddress>,

    /// Listen on the sockets that systemd passes, instead of the listen addresses.
    #[arg(long = "web.systemd-socket", conflicts_with = "listen")]
    systemd_socket: bool,

    /// File with TLS, client certificates, basic authentication and headers, in exporter-toolkit's format. It is read
    /// again when it changes.
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config: Option<PathBuf>,

    /// Scrapes at the same time; further ones are answered with 503. 0 for any number.
    #[arg(long = "web.max-requests", value_name = "NUMBER", default_value_t = MAX_REQUESTS)]
    max_requests: usize,

    /// Path of the metrics.
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    telemetry_path: String,

    /// Configuration file (YAML). Without it the defaults fit most hosts.
    #[arg(long = "config.file", value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Check the configuration files that are given and end: 0 when they are good, 64 when not.
    #[arg(long = "config.check", requires = "files")]
    check: bool,

    /// Run only the collectors that a flag names.
    #[arg(long = "collector.disable-defaults", global = true)]
    disable_defaults: bool,

    #[command(flatten)]
    of_collectors: collectors::Flags,

    /// Log only messages of this severity and above.
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info", value_parser = PossibleValuesParser::new(log::LEVELS))]
    log_level: String,

    /// How log lines look: text, logfmt or json.
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "text")]
    log_format: log::Format,

    #[command(subcommand)]
    command: Option<Command>,
}

/// `--collector.NAME` and `--no-collector.NAME`; of several the last one counts.
fn collector_flags(name: &str) -> [Arg; 2] {
    let (on, off) = (format!("collector.{name}"), format!("no-collector.{name}"));
    // Also over itself: a flag given twice is no mistake.
    let flag = |id: &str, help: String| {
        let arg = Arg::new(id.to_owned()).long(id.to_owned()).help(help);
        arg.overrides_with_all([on.clone(), off.clone()]).action(ArgAction::SetTrue).global(true)
    };
    [
        flag(&on, format!("Run the {name} collector (default: on)")),
        flag(&off, format!("Do not run the {name} collector")),
    ]
}

fn is_enabled(matches: &ArgMatches, name: &str, disable_defaults: bool) -> bool {
    let on = is_demanded(matches, name);
    let off = matches.get_flag(&format!("no-collector.{name}"));
    on || (!off && !disable_defaults)
}

fn is_demanded(matches: &ArgMatches, name: &str) -> bool {
    matches.get_flag(&format!("collector.{name}"))
}

fn telemetry_path(text: &str) -> Result<String, String> {
    let legal = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\"<>".contains(&byte));
    match text {
        "/" => Err("that is the landing page, write /metrics".to_owned()),
        _ if text.starts_with("/-/") => Err("paths below /-/ are taken, write /metrics".to_owned()),
        _ if !text.starts_with('/') || !legal => Err("a path starts with a slash, write /metrics".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    const COLLECTORS: [&str; 3] = ["systemd", "docker", "redis"];

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::parse(std::iter::once("evenkeel-exporter").chain(line.split_whitespace()), &COLLECTORS)
    }

    #[test]
    fn nothing_has_to_be_said() {
        let arguments = parse("").expect("defaults");
        assert_eq!(arguments.listen, ["127.0.0.1:19847".parse().expect("an address")]);
        assert_eq!(arguments.telemetry_path, "/metrics");
        assert_eq!(arguments.collectors, COLLECTORS);
        assert_eq!((arguments.log_level.as_str(), arguments.log_format), ("info", log::Format::Text));
        assert!(arguments.config.is_none() && !arguments.check && arguments.command.is_none());
    }

    #[test]
    fn collectors_are_chosen_by_flags() {
        for (line, enabled) in [
            ("--no-collector.docker", &["systemd", "redis"][..]),
            ("--collector.disable-defaults --collector.redis", &["redis"]),
            ("--collector.redis --collector.disable-defaults --collector.systemd", &["systemd", "redis"]),
            ("--collector.disable-defaults", &[]),
            ("--no-collector.redis --collector.redis", &COLLECTORS),
            ("--collector.redis --no-collector.redis", &["systemd", "docker"]),
            ("--no-collector.redis --no-collector.redis", &["systemd", "docker"]),
        ] {
            assert_eq!(parse(line).expect(line).collectors, enabled, "{line}");
        }
    }

    #[test]
    fn flags_win_over_the_switches_of_the_configuration() {
        let config = crate::config::Config::parse("e.yml", "collectors: {docker: false, redis: true}\n")
            .expect("good");
        for (line, enabled) in [
            ("", &["systemd", "redis"][..]),
            ("--collector.docker", &COLLECTORS),
            ("--no-collector.redis", &["systemd"]),
        ] {
            let mut arguments = parse(line).expect(line);
            arguments.heed(&config.collectors);
            assert_eq!(arguments.collectors, enabled, "{line}");
        }
    }

    #[test]
    fn flags_stand_before_or_behind_the_command() {
        for line in [
            "check --config.file=x --no-collector.docker --format json",
            "--config.file=x --no-collector.docker check --format=json",
        ] {
            let arguments = parse(line).expect(line);
            assert_eq!(arguments.config.as_deref(), Some(std::path::Path::new("x")), "{line}");
            assert_eq!(arguments.collectors, ["systemd", "redis"], "{line}");
            let Some(Command::Check(check)) = arguments.command else { panic!("{line}") };
            assert_eq!((check.format, check.graph), (Format::Json, false));
        }
        let Some(Command::Facts(facts)) = parse("facts").expect("facts").command else { panic!("facts") };
        assert_eq!(facts.output, std::path::Path::new(by_root::PATH));
        for line in ["chek", "check --format=xml", "check --graph --baseline=x", "facts --format=json"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn addresses_and_expressions_are_checked_values() {
        let arguments = parse(
            "--web.listen-address=:1 --web.listen-address=unix:/run/x.sock --collector.systemd.unit-include=a|b",
        )
        .expect("valid");
        assert_eq!(
            arguments.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [":1", "unix:/run/x.sock"]
        );
        let include = arguments.flags.systemd.include.expect("given");
        assert!(include.is_match("b") && !include.is_match("ab"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_cure() {
        for (line, says) in [
            ("--web.listen-address=80", "`80` is no address to listen on: write 127.0.0.1:9000"),
            ("--web.telemetry-path=metrics", "a path starts with a slash, write /metrics"),
            ("--web.telemetry-path=/", "that is the landing page, write /metrics"),
            ("--web.telemetry-path=/-/ready", "paths below /-/ are taken, write /metrics"),
            ("--config.check", "--config.file <FILE>"),
            ("--log.level=loud", "[possible values: error, warn, info, debug, trace]"),
            ("--log.format=xml", "`xml` is no log format: write text, logfmt or json"),
            ("--collector.systemd.unit-include=(", "unclosed group"),
            ("--collector.sytemd", "a similar argument exists: '--collector.systemd'"),
            ("stray", "unrecognized subcommand 'stray'"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.to_string().contains(says), "{line}: {error}");
            assert!(error.use_stderr(), "{line}");
        }
    }

    #[test]
    fn help_and_version_are_no_failures() {
        let version = parse("--version").expect_err("ends here");
        assert_eq!(version.kind(), ErrorKind::DisplayVersion);
        assert!(version.to_string().starts_with(concat!(
            "evenkeel-exporter ",
            env!("CARGO_PKG_VERSION"),
            " (revision "
        )));
        let help = parse("--help").expect_err("ends here");
        assert!(!help.use_stderr());
        assert!(help.to_string().contains("--no-collector.docker"));
    }
}
