//! `generate`: texts that stand around the exporter, each printed and nothing else done. Only the configuration looks at the
//! host.

mod config;

use std::{io::Write, path::PathBuf};

use clap::Subcommand;
use clap_complete::Shell;
use evenkeel_host::{cli, docker::Docker, survey, systemd::Systemd};

pub use self::config::configuration;
use crate::{cli::command, collectors};

/// What can be written.
#[derive(Debug, Clone, Subcommand)]
pub enum Generate {
    /// A commented configuration for this host, written from what is found on it.
    Config,
    /// The JSON Schema of the configuration file, for editors.
    Schema,
    /// The manual page of this program, for `man -l -`.
    Man {
        /// Write it and those of the commands into this folder instead, each into a file of its own.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// What a shell needs to complete flags and commands.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// Writes it.
///
/// # Errors
/// When `out` is closed, or the folder of manual pages cannot be written.
pub async fn write(what: &Generate, out: &mut impl Write) -> anyhow::Result<()> {
    let names = collectors::names();
    let text = match what {
        Generate::Config => configuration(&survey::look(&Systemd::system(), &Docker::from_env()).await),
        Generate::Schema => schema(),
        Generate::Man { dir: Some(dir) } => return cli::write_manuals(command(&names), dir),
        Generate::Man { dir: None } => cli::manual(command(&names)),
        Generate::Completions { shell } => cli::completions(command(&names), *shell),
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// The JSON Schema of the configuration file.
pub fn schema() -> String {
    evenkeel_host::config::schema::<collectors::Config>()
}
