//! evenkeel's two binaries, started as a user starts them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{exposition::Exposition, http, process::Process, tools, wait::wait_for};

/// Where the exporter and the remediator look for the host.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `DBUS_SYSTEM_BUS_ADDRESS`; none means the machine's own.
    pub bus: Option<String>,
    /// `DOCKER_HOST`; none means the machine's own.
    pub docker: Option<String>,
}

impl Surroundings {
    /// Tells a program by the usual variables.
    pub fn apply(&self, command: &mut Command) {
        let pairs = [("DBUS_SYSTEM_BUS_ADDRESS", &self.bus), ("DOCKER_HOST", &self.docker)];
        for (name, value) in pairs {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
    }
}

/// The binary `name` that cargo built beside the program that runs now.
///
/// # Errors
///
/// When it has not been built.
pub fn built(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    // Programs lie in target/PROFILE, tests in target/PROFILE/deps.
    let folders = this.ancestors().skip(1).take(2);
    let mut found = folders.map(|folder| folder.join(name)).filter(|path| path.is_file());
    found.next().with_context(|| format!("{name} has not been built: cargo build --workspace"))
}

/// A running `evenkeel-exporter`.
#[derive(Debug)]
pub struct Exporter {
    process: Process,
    port: u16,
}

impl Exporter {
    /// Starts it on `port` with its log in `dir`, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn start(dir: &Path, port: u16, config: Option<&Path>, around: &Surroundings) -> Result<Self> {
        Self::start_with(dir, port, config, around, &[]).await
    }

    /// The same with flags.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn start_with(
        dir: &Path,
        port: u16,
        config: Option<&Path>,
        around: &Surroundings,
        flags: &[&str],
    ) -> Result<Self> {
        let mut command = tools::command(built("evenkeel-exporter")?);
        command.args(flags);
        if let Some(config) = config {
            command.arg(format!("--config.file={}", config.display()));
        }
        around.apply(&mut command);
        Self::start_as(dir, port, command).await
    }

    /// The same by a command that lacks only the address to listen on.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn start_as(dir: &Path, port: u16, mut command: Command) -> Result<Self> {
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let mut process = Process::start("exporter", dir, command)?;
        answers("the exporter", &mut process, port).await?;
        Ok(Self { process, port })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The program itself.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// One scrape.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn scrape(&self) -> Result<Exposition> {
        scrape(&self.url()).await
    }
}

/// A running `evenkeel-remediator serve`.
#[derive(Debug)]
pub struct Remediator {
    process: Process,
    port: u16,
    config: PathBuf,
    dir: PathBuf,
    around: Surroundings,
    serve: &'static [&'static str],
}

impl Remediator {
    /// Starts it with a configuration that makes it listen on `port`, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn start(dir: &Path, port: u16, config: &Path, around: &Surroundings) -> Result<Self> {
        Self::start_as(&["serve"], dir, port, config, around).await
    }

    /// The same, with flags: `serve` are the subcommand and those.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn start_as(
        serve: &'static [&'static str],
        dir: &Path,
        port: u16,
        config: &Path,
        around: &Surroundings,
    ) -> Result<Self> {
        let mut process = Process::start("remediator", dir, Self::command(config, around, serve)?)?;
        answers("the remediator", &mut process, port).await?;
        let (config, dir, around) = (config.to_owned(), dir.to_owned(), around.clone());
        Ok(Self { process, port, config, dir, around, serve })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The program itself.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// One scrape.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn scrape(&self) -> Result<Exposition> {
        scrape(&self.url()).await
    }

    /// Runs one of its other subcommands with the same configuration and returns what it printed.
    ///
    /// # Errors
    ///
    /// When the subcommand fails.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String> {
        tools::run(Self::command(&self.config, &self.around, arguments)?, Duration::from_secs(20)).await
    }

    /// One of its other subcommands with the same configuration, for who needs to see how it ends.
    ///
    /// # Errors
    ///
    /// When it has not been built.
    pub fn subcommand(&self, arguments: &[&str]) -> Result<Command> {
        Self::command(&self.config, &self.around, arguments)
    }

    /// Kills it (SIGKILL) as a crash does.
    ///
    /// # Errors
    ///
    /// When its end cannot be awaited.
    pub fn crash(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts it again with what it left behind.
    ///
    /// # Errors
    ///
    /// When it does not answer within 20 s.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.process =
            Process::start("remediator", &self.dir, Self::command(&self.config, &self.around, self.serve)?)?;
        answers("the remediator", &mut self.process, self.port).await
    }

    fn command(config: &Path, around: &Surroundings, arguments: &[&str]) -> Result<Command> {
        let [subcommand, rest @ ..] = arguments else { bail!("no subcommand") };
        let mut command = tools::command(built("evenkeel-remediator")?);
        command.arg(subcommand).arg("--config.file").arg(config).args(rest);
        command.envs(environment(include_str!("../../packaging/evenkeel-remediator.service")));
        around.apply(&mut command);
        Ok(command)
    }
}

/// What a unit file sets: a program is tried in the surroundings that it is shipped with.
fn environment(unit: &str) -> impl Iterator<Item = (&str, &str)> {
    let set = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    set.flat_map(str::split_whitespace).filter_map(|word| word.split_once('='))
}

async fn scrape(url: &str) -> Result<Exposition> {
    Ok(Exposition::parse(&http::get(&format!("{url}/metrics")).await?))
}

async fn answers(what: &str, process: &mut Process, port: u16) -> Result<()> {
    let url = format!("http://127.0.0.1:{port}/-/healthy");
    wait_for(what, Duration::from_secs(20), async || {
        process.check_alive()?;
        http::get(&url).await
    })
    .await
    .map(drop)
}
