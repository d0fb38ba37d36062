//! A Redis on a free port of loopback, with nothing stored.

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::{
    namespace,
    process::{Frozen, Process, free_port},
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};

/// One on the own loopback of a host, where an exporter without configuration looks for it.
///
/// # Errors
///
/// When it cannot be started.
pub async fn on_host(host: &SystemdHost) -> Result<Process> {
    let dir = namespace::place("redis")?;
    let mut command = tools::command("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", host.pid().await?)).arg("--");
    let settings = ["--bind", "127.0.0.1", "--port", "6379", "--save", ""];
    command.arg(tools::program("redis-server")?).args(settings).arg("--dir").arg(&dir);
    Process::start("redis", &dir, command)
}

/// A running redis-server.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    port: u16,
}

impl RedisServer {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not answer within 10 s.
    pub async fn start() -> Result<Self> {
        Self::start_with(&["--save", "", "--appendonly", "no"]).await
    }

    /// The same with other settings, as flags.
    ///
    /// # Errors
    ///
    /// When it does not answer PING, or refuse it, within 10 s.
    pub async fn start_with(settings: &[&str]) -> Result<Self> {
        Self::start_in(&namespace::place("redis")?, settings).await
    }

    /// The same in a folder that may hold its data already.
    ///
    /// # Errors
    ///
    /// As [`RedisServer::start_with`].
    pub async fn start_in(dir: &Path, settings: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let mut command = tools::command(tools::program("redis-server")?);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.arg("--dir").arg(dir).args(settings);
        let mut redis = Self { process: Process::start("redis", dir, command)?, port };
        wait_for("redis to answer", Duration::from_secs(10), async || {
            redis.process.check_alive()?;
            ping(port).await
        })
        .await?;
        Ok(redis)
    }

    /// Its address as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its answer to a command as one would type it: as it comes, up to the end of the first line.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn ask(&self, command: &str) -> Result<String> {
        ask(self.port, command).await
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops it from running until the guard is dropped: it still accepts connections then.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn freeze(&self) -> Result<Frozen> {
        self.process.freeze()
    }
}

/// A Redis that lets in nobody without a password is there too, and so is one that reads its data.
async fn ping(port: u16) -> Result<()> {
    let answer = ask(port, "PING").await?;
    if answer != "+PONG" && !answer.starts_with("-NOAUTH") && !answer.starts_with("-LOADING") {
        bail!("answered {answer}");
    }
    Ok(())
}

async fn ask(port: u16, command: &str) -> Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    stream.write_all(format!("{command}\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    Ok(answer.trim_end().to_owned())
}
