//! A Redis on a free port of loopback, with nothing stored.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    namespace,
    process::{Frozen, Process, free_port},
    tools,
    wait::wait_for,
};

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
        let dir = namespace::place("redis")?;
        let port = free_port()?;
        let mut command = tools::command(tools::program("redis-server")?);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--port").arg(port.to_string()).arg("--dir").arg(&dir);
        let mut redis = Self { process: Process::start("redis", &dir, command)?, port };
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

    /// Stops it from running until the guard is dropped: it still accepts connections then.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn freeze(&self) -> Result<Frozen> {
        self.process.freeze()
    }
}

async fn ping(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    if &answer != b"+PONG\r\n" {
        bail!("answered {}", answer.escape_ascii());
    }
    Ok(())
}
