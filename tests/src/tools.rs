//! Where the programs are that the lab starts, and the one way to run one to its end.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::namespace;

/// The root of this repository.
///
/// # Panics
///
/// Never: the package lies one folder below the root.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies below the root")
}

/// The folder of everything that a run leaves on purpose: fetched tools, caches, logs of failures.
#[must_use]
pub fn run_folder() -> PathBuf {
    repository().join(".run")
}

/// The program `name` from `.run/tools/bin`.
///
/// # Errors
///
/// When `tests/fetch-tools.sh` has not provided it.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = run_folder().join("tools/bin").join(name);
    if !path.exists() {
        bail!("{name} is not in .run/tools/bin: run tests/fetch-tools.sh lab (make does)");
    }
    Ok(path)
}

/// `PATH` for everything the lab starts: what the run itself has made and the fetched tools first, then the machine's,
/// with the system folders that an ordinary user's `PATH` lacks.
#[must_use]
pub fn search_path() -> OsString {
    let mut path = OsString::new();
    if let Ok(programs) = namespace::programs() {
        path.push(programs);
        path.push(":");
    }
    path.push(run_folder().join("tools/bin"));
    if let Some(machine) = std::env::var_os("PATH") {
        path.push(":");
        path.push(machine);
    }
    path.push(":/usr/sbin:/sbin");
    path
}

/// A command with the lab's `PATH`, plain messages, and none of this process's own marks.
#[must_use]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env("PATH", search_path())
        .env("LC_ALL", "C.UTF-8")
        .env_remove(namespace::STAGE)
        .env_remove(namespace::RUN)
        .env_remove(namespace::WORLD)
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
///
/// When it cannot be started, is not done within `limit` (it is killed then), or fails; the error
/// holds the command line and what it said.
pub async fn run(command: Command, limit: Duration) -> Result<String> {
    let shown = shown(&command);
    checked(&shown, &output(command, limit).await?)
}

/// The same for a command that may fail: how it ended, and what it printed.
///
/// # Errors
///
/// When it cannot be started or is not done within `limit`; it is killed then.
pub async fn output(mut command: Command, limit: Duration) -> Result<Output> {
    let shown = shown(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let done = tokio::time::timeout(limit, command.output());
    let Ok(output) = done.await else { bail!("{shown}: not done after {} s", limit.as_secs()) };
    output.with_context(|| shown)
}

/// The same for code that must not be async, such as `Drop`.
///
/// # Errors
///
/// When the command cannot be started or fails.
pub fn run_blocking(mut command: Command) -> Result<String> {
    let shown = shown(&command);
    checked(&shown, &command.output().with_context(|| shown.clone())?)
}

fn shown(command: &Command) -> String {
    let mut line =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn checked(shown: &str, output: &Output) -> Result<String> {
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}: {}{}", output.status, said.trim(), printed.trim());
    }
    Ok(printed)
}
