//! The start: flags → configuration → listeners → serve until a signal → exit code.
//!
//! Exit codes: 0 done, 1 the start failed, 64 (`EX_USAGE`) the command line or the configuration makes no sense.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use evenkeel_exporter::{
    cli::Arguments,
    collectors,
    config::{Config, Options, WebOptions},
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
    let names: Vec<&'static str> = collectors::ALL.iter().map(|entry| entry.name).collect();
    let arguments = match Arguments::parse(std::env::args_os(), &names) {
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
    if arguments.check {
        say(&mut io::stdout(), format_args!("the configuration is good"));
        return ExitCode::SUCCESS;
    }
    log::init(&arguments.log_level, arguments.log_format);
    match start(arguments, config, security) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&mut io::stderr(), format_args!("evenkeel-exporter: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// What the two files say; each may be missing.
fn configuration(arguments: &Arguments) -> Result<(Config, Security), ConfigError> {
    let config = arguments.config.as_deref().map(Config::load).transpose()?;
    let security = arguments.web_config.as_deref().map(Security::load).transpose()?;
    Ok((config.unwrap_or_default(), security.unwrap_or_default()))
}

/// One line. `println!` would panic where it cannot be written, and change the exit code.
fn say(to: &mut impl Write, line: fmt::Arguments<'_>) {
    let _ = writeln!(to, "{line}");
}

fn start(arguments: Arguments, config: Config, security: Security) -> anyhow::Result<()> {
    // Before there are threads: it changes the environment.
    let inherited = arguments.systemd_socket.then(Inherited::take).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_keep_alive(KEEP_ALIVE)
        .enable_all()
        .build()
        .context("cannot start the worker threads")?;
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
