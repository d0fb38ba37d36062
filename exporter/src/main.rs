//! The start: flags → configuration → listeners → serve until a signal → exit code; or one of the commands.
//!
//! Exit codes: 0 done, 1 the start failed, 64 (`EX_USAGE`) the command line or the configuration makes no sense; of `check` 0
//! all met, 1 something is not met, 2 something cannot be told.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use evenkeel_exporter::{
    by_root,
    check::{self, Baseline},
    cli::{Arguments, Command, Facts},
    collectors,
    config::{Config, Options, WebOptions},
    generate::{self, Generate},
};
use evenkeel_host::{
    build,
    config::ConfigError,
    log,
    web::{Inherited, Listener, Security},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const EXIT_USAGE: u8 = 64;

/// Enough for hundreds of scrapes a second. One for each core, as would be usual, gives each of them an allocator's arena
/// of its own, and on a large machine an exporter that does nothing takes memory by the core.
const WORKERS: usize = 2;
/// How long a thread for reading files waits for the next: longer than from one scrape to the next, or each would start
/// anew.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let mut arguments = match Arguments::parse(std::env::args_os(), &collectors::names()) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where neither stdout nor stderr can be written there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let (config, security) = match configuration(&arguments) {
        Ok(configuration) => configuration,
        Err(error) => {
            say(&mut io::stderr(), format_args!("evenkeel-exporter: {error}"));
            return EXIT_USAGE.into();
        }
    };
    arguments.heed(&config.collectors);
    if arguments.check {
        say(&mut io::stdout(), format_args!("the configuration is good"));
        return ExitCode::SUCCESS;
    }
    let done = match &arguments.command {
        None => {
            log::init(&arguments.log_level, arguments.log_format);
            start(arguments, config, security).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Check(_)) => {
            // What is wrong with a source is in the answer.
            log::init("error", arguments.log_format);
            look(arguments, config)
        }
        Some(Command::Facts(facts)) => {
            log::init(&arguments.log_level, arguments.log_format);
            leave_facts(&arguments, facts, &config)
        }
        Some(Command::Generate { what }) => write(what),
    };
    done.unwrap_or_else(|error| {
        say(&mut io::stderr(), format_args!("evenkeel-exporter: {error:#}"));
        ExitCode::FAILURE
    })
}

/// What the two files say; each may be missing.
fn configuration(arguments: &Arguments) -> Result<(Config, Security), ConfigError> {
    if matches!(arguments.command, Some(Command::Generate { .. })) {
        // Whoever writes a first configuration has none yet.
        return Ok(Default::default());
    }
    let config = arguments.config.as_deref().map(Config::load).transpose()?;
    let security = arguments.web_config.as_deref().map(Security::load).transpose()?;
    Ok((config.unwrap_or_default(), security.unwrap_or_default()))
}

/// One line. `println!` would panic where it cannot be written, and change the exit code.
fn say(to: &mut impl Write, line: fmt::Arguments<'_>) {
    let _ = writeln!(to, "{line}");
}

/// `check`. Its own exit codes are 0, 1 and 2.
fn look(arguments: Arguments, config: Config) -> anyhow::Result<ExitCode> {
    let Arguments { collectors, flags, command: Some(Command::Check(flags_of_check)), .. } = arguments else {
        anyhow::bail!("there is nothing to check");
    };
    let before = match flags_of_check.baseline.as_deref().map(Baseline::load).transpose() {
        Ok(before) => before,
        Err(error) => {
            say(&mut io::stderr(), format_args!("evenkeel-exporter: {error}"));
            return Ok(EXIT_USAGE.into());
        }
    };
    let options = Options { config, collectors, web: WebOptions::default(), flags };
    let runtime = runtime()?;
    let answer = runtime.block_on(check::run(options, &flags_of_check, before.as_ref()));
    runtime.shutdown_background();
    if let Some(trouble) = answer.trouble {
        say(&mut io::stderr(), format_args!("evenkeel-exporter: {trouble}"));
    }
    // Whoever reads it may have gone away: the exit code is for him too.
    let _ = io::stdout().write_all(answer.text.as_bytes());
    Ok(answer.code.into())
}

/// `generate`.
fn write(what: &Generate) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let written = runtime.block_on(generate::write(what, &mut io::stdout()));
    runtime.shutdown_background();
    written.map(|()| ExitCode::SUCCESS)
}

/// `facts`.
fn leave_facts(arguments: &Arguments, facts: &Facts, config: &Config) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let left = runtime.block_on(by_root::leave(config, arguments.config.as_deref(), &facts.output));
    runtime.shutdown_background();
    left.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_keep_alive(KEEP_ALIVE)
        .enable_all()
        .build()
        .context("cannot start the worker threads")
}

fn start(arguments: Arguments, config: Config, security: Security) -> anyhow::Result<()> {
    // Before there are threads: it changes the environment.
    let inherited = arguments.systemd_socket.then(Inherited::take).transpose()?;
    let runtime = runtime()?;
    let served = runtime.block_on(serve(arguments, inherited, config, security));
    // A look that blocks its thread must not hold up the end.
    runtime.shutdown_background();
    served
}

async fn serve(
    arguments: Arguments,
    inherited: Option<Inherited>,
    config: Config,
    security: Security,
) -> anyhow::Result<()> {
    let shutdown = shutdown_by_signal()?;
    let listeners = match inherited {
        Some(inherited) => inherited.listeners()?,
        None => Listener::bind_all(&arguments.listen).await?,
    };
    let offers = security.offers();
    for listener in &listeners {
        let address = listener.local_addr();
        info!(address, version = build::VERSION, tls = offers.tls, "listening");
        if listener.is_loopback() {
            continue;
        }
        if !offers.authentication() {
            warn!(
                address,
                "no authentication: whoever reaches this address can read the state of this host; name users or a client CA in --web.config.file"
            );
        } else if !offers.tls {
            warn!(
                address,
                "no TLS: passwords cross the network in clear; add tls_server_config to --web.config.file"
            );
        }
    }
    if rustix::process::geteuid().is_root() {
        warn!("running as root, which is not needed: see packaging/ for a unit with the least privileges");
    }
    let off: Vec<&str> =
        collectors::names().into_iter().filter(|name| !arguments.collectors.contains(name)).collect();
    if !off.is_empty() {
        info!(collectors = off.join(", "), "not watched: switched off by flags or by the configuration");
    }
    let Arguments { telemetry_path, max_requests, collectors, flags, .. } = arguments;
    let web = WebOptions { telemetry_path, max_requests, security };
    let options = Options { config, collectors, web, flags };
    evenkeel_exporter::run(options, listeners, shutdown).await;
    info!("stopped");
    Ok(())
}

/// A token that SIGTERM and SIGINT cancel.
fn shutdown_by_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("stopping on SIGTERM"),
            _ = interrupt.recv() => info!("stopping on SIGINT"),
        }
        token.cancel();
    });
    Ok(shutdown)
}
