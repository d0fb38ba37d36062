//! The start: flags → configuration → listeners → serve until a signal → exit code.
//!
//! Exit codes: 0 done, 1 the start failed, 64 (`EX_USAGE`) the command line or the configuration makes no sense.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use evenkeel_exporter::{
    cli::Arguments,
    collectors,
    config::{Config, Options},
};
use evenkeel_host::{build, log, web::Listener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const EXIT_USAGE: u8 = 64;

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
    let config = match arguments.config.as_deref().map(Config::load).transpose() {
        Ok(config) => config.unwrap_or_default(),
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
    match start(arguments, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&mut io::stderr(), format_args!("evenkeel-exporter: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// One line. `println!` would panic where it cannot be written, and change the exit code.
fn say(to: &mut impl Write, line: fmt::Arguments<'_>) {
    let _ = writeln!(to, "{line}");
}

fn start(arguments: Arguments, config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the worker threads")?;
    let served = runtime.block_on(serve(arguments, config));
    // A look that blocks its thread must not hold up the end.
    runtime.shutdown_background();
    served
}

async fn serve(arguments: Arguments, config: Config) -> anyhow::Result<()> {
    let shutdown = shutdown_by_signal()?;
    let mut listeners = Vec::new();
    for address in &arguments.listen {
        let listener = Listener::bind(address).await?;
        info!(address = listener.local_addr(), version = build::VERSION, "listening");
        if !address.is_loopback() {
            warn!(%address, "no authentication: whoever reaches this address can read the state of this host");
        }
        listeners.push(listener);
    }
    if rustix::process::geteuid().is_root() {
        warn!("running as root, which is not needed: see packaging/ for a unit with the least privileges");
    }
    let Arguments { telemetry_path, collectors, flags, .. } = arguments;
    let options = Options { config, collectors, telemetry_path, flags };
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
