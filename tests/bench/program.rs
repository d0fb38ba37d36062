//! The exporters that are measured, each as a process of its own with a clock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use evenkeel_tests::{
    binaries, namespace,
    process::{Process, free_port},
    tools,
    wait::wait_for,
};

use crate::{
    client::{Client, Coding},
    cpu::Clock,
};

/// Where an exporter finds what it observes, and what it is told.
#[derive(Clone, Default)]
pub(crate) struct Setting {
    pub(crate) flags: Vec<String>,
    pub(crate) variables: Vec<(&'static str, String)>,
    /// A process whose mounts it sees, as those of process 1.
    pub(crate) mounts_of: Option<u32>,
}

impl Setting {
    pub(crate) fn flags(flags: &[&str]) -> Self {
        Self { flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), ..Self::default() }
    }

    pub(crate) fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((variable, value.into()));
        self
    }
}

/// A running exporter.
pub(crate) struct Program {
    process: Process,
    /// The exporter itself, also where another program stands before it.
    id: u32,
    pub(crate) port: u16,
    pub(crate) cpu: Clock,
}

impl Program {
    /// Starts evenkeel's and waits for its first answer.
    pub(crate) async fn evenkeel(setting: &Setting) -> Result<Self> {
        let port = free_port()?;
        let listen = format!("--web.listen-address=127.0.0.1:{port}");
        Self::start(&binaries::built("evenkeel-exporter")?, port, &listen, setting).await
    }

    /// Starts a peer of the same conventions and waits for its first answer.
    pub(crate) async fn peer(name: &str, setting: &Setting) -> Result<Self> {
        let port = free_port()?;
        Self::start(&tools::program(name)?, port, &format!("--web.listen-address=127.0.0.1:{port}"), setting)
            .await
    }

    async fn start(program: &Path, port: u16, listen: &str, setting: &Setting) -> Result<Self> {
        let mut command = match setting.mounts_of {
            None => tools::command(program),
            Some(process) => within(process, program),
        };
        command.arg(listen).args(&setting.flags).envs(setting.variables.iter().map(|(k, v)| (k, v)));
        let name = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        let mut process = Process::start(&name, &namespace::place(&name)?, command)?;
        wait_for(&format!("{name} to answer"), Duration::from_secs(60), async || {
            process.check_alive()?;
            Client::connect(port, Coding::Gzip).await?.scrape().await
        })
        .await?;
        let id = match setting.mounts_of {
            None => process.id(),
            Some(_) => only_child(process.id())?,
        };
        Ok(Self { process, id, port, cpu: Clock::of(&[id]) })
    }

    /// A field of /proc/PID/status in MiB: `VmRSS` now, `VmHWM` at most so far.
    pub(crate) fn memory_mib(&self, field: &str) -> Result<f64> {
        memory_mib(self.id, field)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // What stands before the exporter waits for it whatever it is asked, and takes it along when it is killed.
        if self.id != self.process.id()
            && let Err(error) = self.process.kill()
        {
            eprintln!("{error:#}");
        }
    }
}

/// A command that runs `program` with the mounts of a process, which are those of process 1 then.
pub(crate) fn within(process: u32, program: impl AsRef<Path>) -> Command {
    let mut command = tools::command("nsenter");
    command.arg(format!("--mount=/proc/{process}/ns/mnt")).arg("--");
    command.args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(program.as_ref());
    command
}

fn only_child(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.trim().parse().with_context(|| format!("the children of {pid}: {children:?}"))
}

pub(crate) fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

/// The size of a built binary in MiB.
pub(crate) fn size_mib(name: &str) -> Result<f64> {
    let path: PathBuf = binaries::built(name)?;
    #[expect(clippy::cast_precision_loss)]
    Ok(fs::metadata(path)?.len() as f64 / 1_048_576.0)
}
