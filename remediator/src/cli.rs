//! The command line. Exit codes: 0 done, 1 failed, 64 wrong usage or configuration; of `selftest` and `drill` also 2, not
//! known.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use evenkeel_host::{
    build,
    config::{ConfigError, PromDuration},
    log::{self, Format},
    web::{Inherited, Listener},
};
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attend, check_config,
    clock::Clock,
    config::{self, Config},
    control, daemon,
    drill::{self, Order, Verdict},
    explain,
    fleet::{orders, settings::Role},
    generate::{self, Alone, What},
    helper::{self, Verb},
    history, journal,
    pipeline::State,
    selftest, serve, simulate, status,
    text::printable_lines,
};

/// EX_USAGE of sysexits.h.
const USAGE: u8 = 64;
/// Whether all is well could not be told, or nothing was done.
const UNTOLD: u8 = 2;

/// What the process ends with.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, of `selftest`, `drill` and `--wait`: something is not well; 2 of `selftest` and `drill`: something cannot be told, of `--wait`: nothing was done; 64 the command line or the configuration makes no sense, or the state is a newer version's.";

#[derive(Debug, Parser)]
#[command(
    name = "evenkeel-remediator",
    version = build::line(),
    after_help = EXIT_CODES,
    about = "Repairs what is safe to repair when Alertmanager says so, and proves that it helped"
)]
struct Cli {
    /// The configuration.
    #[arg(
        long = "config.file",
        value_name = "FILE",
        global = true,
        default_value = "/etc/evenkeel/remediator.yml"
    )]
    config_file: PathBuf,
    /// Log only messages of this severity and above.
    #[arg(long = "log.level", value_name = "LEVEL", global = true, default_value = "info", value_parser = log::LEVELS)]
    log_level: String,
    /// How log lines look: text, logfmt or json.
    #[arg(long = "log.format", value_name = "FORMAT", global = true, default_value = "text")]
    log_format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive alerts and remediate.
    Serve {
        /// In a fleet: take this host's alerts by way of Redis, pass alerts on to the hosts that they are for, or both.
        #[arg(long, value_name = "ROLE")]
        role: Option<Role>,
    },
    /// Read the configuration, print each rule as it will work, and exit.
    CheckConfig,
    /// Say what a webhook's alerts would lead to on this host now, without any effect.
    Simulate {
        /// The webhook's body, as Alertmanager would post it.
        #[arg(long, value_name = "FILE")]
        payload: PathBuf,
    },
    /// What is open, what was done last, what the limits leave.
    Status,
    /// The remediations, newest first.
    History {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
        /// Only this rule's.
        #[arg(long, value_name = "RULE")]
        rule: Option<String>,
        /// Only this target's.
        #[arg(long, value_name = "TARGET")]
        target: Option<String>,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
    },
    /// Why a rule does or does not act on a target, and when it may next.
    Explain {
        /// The rule's name.
        rule: String,
        /// The target's name: a unit, a container, a mount point, a host name.
        target: String,
    },
    /// Let a remediation that waits for approval be done. With --wait the exit codes are those of `trigger --wait`.
    Approve {
        /// Its number.
        id: i64,
        /// Stay until it has ended, and say how.
        #[arg(long)]
        wait: bool,
    },
    /// Let a remediation that waits for approval not be done.
    Reject {
        /// Its number.
        id: i64,
    },
    /// Begin nothing that acts any more.
    Pause {
        /// Why, for whoever finds it.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// For how long; until `resume` when not given.
        #[arg(long = "for", value_name = "DURATION")]
        lasts: Option<PromDuration>,
        /// On all hosts of the fleet.
        #[arg(long)]
        fleet: bool,
    },
    /// End a pause, and a storm.
    Resume {
        /// The pause of the fleet.
        #[arg(long)]
        fleet: bool,
    },
    /// The whole fleet: hosts, who acts, what its budgets leave, who is lost, which alerts wait.
    Fleet {
        #[command(subcommand)]
        what: Fleet,
    },
    /// Say that somebody has looked at what did not help: one more try is admitted.
    Ack {
        /// The rule's name.
        rule: String,
        /// The target's name.
        target: String,
    },
    /// Begin a rule by hand; its need, gates and limits decide as for an alert. Exit codes with --wait: 0 the target is well,
    /// 1 it is not, 2 nothing was done: it is a plan, or a limit, a gate or a person's approval is in the way.
    Trigger {
        /// The rule's name.
        rule: String,
        /// The target's name, where the rule admits more than one.
        target: Option<String>,
        /// Stay until it has ended, and say how.
        #[arg(long)]
        wait: bool,
    },
    /// Look whether everything is there that a repair needs, up to the routes of Alertmanager. Exit codes: 0 all is well,
    /// 1 something is not, 2 something could not be told.
    Selftest,
    /// Make a unit of evenkeel's own fail, and follow its alert until it is repaired and over. Exit codes: 0 all of it
    /// was seen, 1 it did not get any further, 2 it could not be told.
    Drill {
        /// Let Prometheus raise the alert by what the exporter says, instead of raising it in Alertmanager.
        #[arg(long)]
        end_to_end: bool,
        /// How long all of it may take. From end to end that is the rule's `for` and `keep_firing_for` too.
        #[arg(long, value_name = "DURATION", default_value = "15m")]
        timeout: PromDuration,
    },
    /// Read the configuration again.
    Reload,
    /// For the template units: do what takes root.
    #[command(hide = true)]
    Helper {
        /// What to do.
        verb: Verb,
        /// The rule and the target, as the unit's instance has them.
        instance: String,
        /// Take back what it has left half done, and do nothing else.
        #[arg(long)]
        recover: bool,
    },
    /// Write a first configuration, or what stands around the daemon.
    Generate {
        /// What to write.
        #[command(subcommand)]
        what: What,
    },
}

/// The flags and commands, for whoever describes them.
pub fn command() -> clap::Command {
    Cli::command().version(build::VERSION)
}

#[derive(Debug, Subcommand)]
enum Fleet {
    /// How it is now.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say that nothing was started before its Redis began to remember, so that no budget waits for its window: for the
    /// first start of a fleet.
    TrustMemory,
}

/// Runs the command line and answers the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing to a closed terminal may fail; the exit code says it all the same.
            drop(error.print());
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    match start(cli) {
        Ok(code) => code,
        Err(error) if error.is::<ConfigError>() || is_newer_state(&error) => {
            complain(&error);
            ExitCode::from(USAGE)
        }
        // The reader of a pipe went away: `history | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// What comes before there are threads, and then everything else.
fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::Generate { what: What::Alone(what) } = &cli.command {
        // Whoever writes their first configuration has none yet.
        return to_the_end(write_alone(what));
    }
    let config = config::load(&cli.config_file)?;
    let inherited = match &cli.command {
        Command::Serve { .. } => inherited(&config)?,
        _ => None,
    };
    to_the_end(run(cli, config, inherited))
}

fn to_the_end(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let result = runtime.block_on(work);
    // A statvfs or a disk walk on a dead filesystem must not hold the exit up.
    runtime.shutdown_background();
    result
}

async fn write_alone(what: &Alone) -> anyhow::Result<ExitCode> {
    generate::write_alone(what, &mut std::io::stdout()).await.map(|()| ExitCode::SUCCESS)
}

/// The sockets of a socket unit, where the configuration says that there are some.
fn inherited(config: &Config) -> anyhow::Result<Option<Inherited>> {
    if !config.access.systemd_socket {
        return Ok(None);
    }
    let inherited = Inherited::take()?;
    if !inherited.are_loopback() {
        let message = |why| {
            format!("`server.systemd_socket`: a socket that systemd has passed is not loopback, and {why}")
        };
        config.access.beyond_loopback().map_err(|why| ConfigError::new("the socket unit", message(why)))?;
    }
    Ok(Some(inherited))
}

async fn run(cli: Cli, config: Config, inherited: Option<Inherited>) -> anyhow::Result<ExitCode> {
    let out = &mut std::io::stdout().lock();
    match cli.command {
        Command::Selftest => {
            let code = selftest::run(&config, out).await.map(|state| match state {
                State::Ok => ExitCode::SUCCESS,
                State::Failing => ExitCode::FAILURE,
                State::Unknown => ExitCode::from(UNTOLD),
            });
            return code.or_else(unheard);
        }
        Command::Drill { end_to_end, timeout } => {
            let order = Order { end_to_end, within: timeout.get() };
            let code = drill::run(config, order, out).await.map(|verdict| match verdict {
                Verdict::Passed => ExitCode::SUCCESS,
                Verdict::Stopped => ExitCode::FAILURE,
                Verdict::Untold => ExitCode::from(UNTOLD),
            });
            return code.or_else(unheard);
        }
        Command::Serve { role } => {
            log::init(&cli.log_level, cli.log_format);
            if let (Some(role), None) = (role, &config.fleet) {
                let message = format!("`--role={role}` takes a section `fleet`: write `fleet: {{redis: {{url: rediss://redis.example:6379}}}}`");
                return Err(ConfigError::new(&cli.config_file.display().to_string(), message).into());
            }
            serve(config, role.unwrap_or(Role::Agent), inherited).await
        }
        Command::CheckConfig => check_config::check_config(&config, out),
        Command::Simulate { payload } => {
            let body =
                std::fs::read(&payload).with_context(|| format!("cannot read {}", payload.display()))?;
            simulate::run(config, &body, out).await
        }
        Command::Status => {
            let daemon = daemon::ask(&config).await;
            status::status(&config, &daemon, &Clock::default(), out)
        }
        Command::History { json, rule, target, limit } => {
            history::history(&config, rule.as_deref(), target.as_deref(), limit, json, out)
        }
        Command::Generate { what: What::Around(what) } => generate::write(what, &config, out),
        Command::Generate { what: What::Alone(what) } => generate::write_alone(&what, out).await,
        Command::Explain { rule, target } => explain::target(config, &rule, &target, out).await,
        Command::Approve { id, wait } => {
            order(&config, &format!("/api/v1/remediations/{id}/approve"), json!({}), out).await?;
            if wait {
                return attend(&config, Some(id), None, out).await;
            }
            Ok(())
        }
        Command::Reject { id } => {
            order(&config, &format!("/api/v1/remediations/{id}/reject"), json!({}), out).await.map(drop)
        }
        Command::Pause { reason, lasts, fleet: true } => orders::pause(&config, &reason, lasts, out).await,
        Command::Resume { fleet: true } => orders::resume(&config, out).await,
        Command::Fleet { what: Fleet::Status { json } } => orders::status(&config, json, out).await,
        Command::Fleet { what: Fleet::TrustMemory } => orders::trust_memory(&config, out).await,
        Command::Pause { reason, lasts, fleet: false } => {
            let lasts = lasts.map(|lasts| lasts.to_string());
            order(&config, "/api/v1/pause", json!({"reason": reason, "for": lasts}), out).await.map(drop)
        }
        Command::Resume { fleet: false } => order(&config, "/api/v1/resume", json!({}), out).await.map(drop),
        Command::Ack { rule, target } => {
            order(&config, "/api/v1/ack", json!({"rule": rule, "target": target}), out).await.map(drop)
        }
        Command::Trigger { rule, target, wait } => {
            let said =
                order(&config, "/api/v1/trigger", json!({"rule": rule, "target": target}), out).await?;
            if wait {
                return attend(&config, attend::number(&said), Some(&rule), out).await;
            }
            Ok(())
        }
        Command::Reload => order(&config, "/-/reload", json!({}), out).await.map(drop),
        Command::Helper { verb, instance, recover: false } => {
            helper::run(config, &cli.config_file, verb, &instance, out).await
        }
        Command::Helper { verb, instance, recover: true } => {
            helper::recover(config, &cli.config_file, verb, &instance, out).await
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Whoever no longer listens has not heard that all is well: that is no success.
fn unheard(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    if is_broken_pipe(&error) { Ok(ExitCode::from(UNTOLD)) } else { Err(error) }
}

/// Gives the running remediator an order, and prints what it says.
async fn order(
    config: &Config,
    path: &str,
    body: serde_json::Value,
    out: &mut impl Write,
) -> anyhow::Result<String> {
    let said = control::order(config, path, &body).await?;
    // Whoever answers is the one who holds the socket, and may be anybody after that.
    writeln!(out, "{}", printable_lines(&said))?;
    Ok(said)
}

/// `--wait`.
async fn attend(
    config: &Config,
    number: Option<i64>,
    rule: Option<&str>,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    out.flush()?;
    Ok(match attend::attend(config, number, rule, out).await? {
        attend::Verdict::Well => ExitCode::SUCCESS,
        attend::Verdict::Unwell => ExitCode::FAILURE,
        attend::Verdict::Undone => ExitCode::from(UNTOLD),
    })
}

async fn serve(config: Config, role: Role, inherited: Option<Inherited>) -> anyhow::Result<()> {
    // reqwest takes the process's default provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // First of all: from here on a signal ends it in order, and not wherever it is.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let listeners = match inherited {
        Some(inherited) => inherited.listeners()?,
        None => Listener::bind_all(&config.access.listen).await?,
    };
    for listener in &listeners {
        tracing::info!(address = listener.local_addr(), "listening");
    }
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping: what runs is finished, nothing new is begun");
        signalled.cancel();
    });
    let hangups = Arc::new(Notify::new());
    let reload = hangups.clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload.notify_one();
        }
    });
    serve::run(config, role, listeners, hangups, stop).await
}

fn complain(error: &anyhow::Error) {
    // Nowhere is left to complain about a closed stderr.
    let _ = writeln!(std::io::stderr(), "evenkeel-remediator: {error:#}");
}

fn is_newer_state(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(journal::Error::Newer { .. }))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
