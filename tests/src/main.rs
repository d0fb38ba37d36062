//! `evenkeel-lab`: what `make up` and `make demo` run.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Starts evenkeel around a host to look at it. Needs root and what tests/fetch-tools.sh provides.
#[derive(Parser)]
#[command(name = "evenkeel-lab", version)]
enum Command {
    /// Watch this host, or a private one where this has neither a systemd bus nor Docker.
    Up {
        /// Where configuration, data and logs of this host's watch are kept, instead of .run/up.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Break a private host and watch it heal.
    Demo {
        /// Leave it running afterwards, so that its Prometheus and its pages can be looked at; Ctrl-C ends it.
        #[arg(long)]
        stay: bool,
    },
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Up { dir } => evenkeel_tests::up::main(dir.as_deref()),
        Command::Demo { stay } => evenkeel_tests::demo::main(stay),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("evenkeel-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
