//! The least that can be asked of a source, by clients that do nothing else: what an exporter's cost is measured by.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::cpu::{Clock, own_thread_ms};

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(10);

/// What one round costs, in milliseconds.
pub(crate) struct Floor {
    /// CPU of the client.
    pub(crate) client: f64,
    /// CPU of who was asked.
    pub(crate) source: f64,
}

impl Floor {
    pub(crate) fn total(&self) -> f64 {
        self.client + self.source
    }
}

/// Between two rounds, as between two scrapes: without it the floor would be that of a loop whose every byte lies in the
/// processor's caches, which no scrape's does.
const PAUSE: Duration = Duration::from_millis(200);

/// Does `round` so many times in a thread of its own.
pub(crate) async fn measure(
    source: Clock,
    rounds: u32,
    mut round: impl FnMut() -> Result<()> + Send + 'static,
) -> Result<Floor> {
    let rounds_done = tokio::task::spawn_blocking(move || {
        round()?;
        let idle = spent(&source, || std::thread::sleep(PAUSE * rounds));
        let mut each = Ok(());
        let own = own_thread_ms();
        let busy = spent(&source, || {
            for _ in 0..rounds {
                if each.is_ok() {
                    each = round();
                }
                std::thread::sleep(PAUSE);
            }
        });
        each?;
        let count = f64::from(rounds);
        anyhow::Ok(Floor { client: (own_thread_ms() - own) / count, source: (busy - idle) / count })
    });
    rounds_done.await?
}

/// What somebody uses while something is done.
fn spent(clock: &Clock, doing: impl FnOnce()) -> f64 {
    let before = clock.ms();
    doing();
    clock.ms() - before
}

// ---- systemd ---------------------------------------------------------------------------------------

/// A connection to a D-Bus daemon that can make calls without arguments, and nothing else.
pub(crate) struct Bus {
    stream: UnixStream,
    serial: u32,
}

impl Bus {
    pub(crate) fn connect(address: &str) -> Result<Self> {
        let path = address.strip_prefix("unix:path=").context("a path")?;
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // 30 is "0", the user id, in hexadecimal.
        stream.write_all(b"\0AUTH EXTERNAL 30\r\n")?;
        let mut line = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut line)?;
        ensure!(line.starts_with("OK "), "the bus says {line:?}");
        stream.write_all(b"BEGIN\r\n")?;
        let mut bus = Self { stream, serial: 0 };
        let daemon = "org.freedesktop.DBus";
        bus.call(daemon, "/org/freedesktop/DBus", daemon, "Hello")?;
        Ok(bus)
    }

    /// The length of systemd's whole list of units.
    pub(crate) fn list_units(&mut self) -> Result<usize> {
        let manager = "org.freedesktop.systemd1.Manager";
        self.call("org.freedesktop.systemd1", "/org/freedesktop/systemd1", manager, "ListUnits")
    }

    /// Calls and returns the length of the reply (D-Bus Specification, "Message Format").
    fn call(&mut self, to: &str, path: &str, interface: &str, member: &str) -> Result<usize> {
        self.serial += 1;
        let mut fields = Vec::new();
        for (code, kind, value) in [(1, b'o', path), (2, b's', interface), (3, b's', member), (6, b's', to)] {
            fields.resize(fields.len().next_multiple_of(8), 0);
            fields.extend([code, 1, kind, 0]);
            fields.extend(u32::try_from(value.len())?.to_le_bytes());
            fields.extend(value.as_bytes());
            fields.push(0);
        }
        let mut message = vec![b'l', 1, 0, 1, 0, 0, 0, 0];
        message.extend(self.serial.to_le_bytes());
        message.extend(u32::try_from(fields.len())?.to_le_bytes());
        message.extend(fields);
        message.resize(message.len().next_multiple_of(8), 0);
        self.stream.write_all(&message)?;
        loop {
            let mut head = [0; 16];
            self.stream.read_exact(&mut head)?;
            let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (body, fields) = (number(4) as usize, number(12) as usize);
            let mut rest = vec![0; fields.next_multiple_of(8) + body];
            self.stream.read_exact(&mut rest)?;
            match head[1] {
                2 => return Ok(body),
                3 => bail!("{member}: {}", rest.escape_ascii()),
                _ => {}
            }
        }
    }
}

// ---- Docker ----------------------------------------------------------------------------------------

/// A kept connection to an engine.
pub(crate) struct Engine(BufReader<UnixStream>);

impl Engine {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The body of an answer.
    pub(crate) fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        self.0.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n").as_bytes())?;
        let (mut length, mut line) = (None, String::new());
        self.0.read_line(&mut line)?;
        ensure!(line.contains(" 200 "), "{path}: {line}");
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(':') {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        match length {
            Some(length) => self.exactly(length),
            None => self.chunks(),
        }
    }

    fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim(), 16)?;
            let chunk = self.exactly(length + 2)?;
            body.extend(&chunk[..length]);
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

// ---- Redis -----------------------------------------------------------------------------------------

/// Connects, asks PING and INFO, and goes.
pub(crate) fn connect_ping_info(port: u16) -> Result<()> {
    ping_info(&mut redis(port)?)
}

/// A connection to a Redis.
pub(crate) fn redis(port: u16) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(BufReader::new(stream))
}

/// PING and INFO.
pub(crate) fn ping_info(redis: &mut BufReader<TcpStream>) -> Result<()> {
    redis.get_mut().write_all(b"PING\r\nINFO\r\n")?;
    let mut line = String::new();
    redis.read_line(&mut line)?;
    ensure!(line == "+PONG\r\n", "{line:?}");
    line.clear();
    redis.read_line(&mut line)?;
    let length: usize = line.trim().strip_prefix('$').context("no length")?.parse()?;
    redis.read_exact(&mut vec![0; length + 2])?;
    Ok(())
}

// ---- filesystems -----------------------------------------------------------------------------------

/// What this program is called with to be nothing but the floor of the filesystems, in a mount namespace of its own.
pub(crate) const FILESYSTEMS: &str = "--floor-of-filesystems";

/// Milliseconds of CPU for reading the list of mounts and asking each for its size, without what is no disk.
pub(crate) fn filesystems(rounds: u32) -> Result<f64> {
    all_filesystems()?;
    std::thread::sleep(PAUSE);
    let before = own_thread_ms();
    for _ in 0..rounds {
        all_filesystems()?;
        // Also, because the kernel adds up a thread's time when it rests.
        std::thread::sleep(PAUSE);
    }
    Ok((own_thread_ms() - before) / f64::from(rounds))
}

/// node_exporter's defaults, as far as this machine has such mounts.
fn all_filesystems() -> Result<usize> {
    const TYPES: [&str; 16] = [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "overlay",
        "proc",
        "sysfs",
        "tracefs",
    ];
    let list = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut asked = 0;
    for line in list.lines() {
        let (before, after) = line.split_once(" - ").context("no separator")?;
        let point = before.split(' ').nth(4).context("no mount point")?;
        let kind = after.split(' ').next().context("no type")?;
        let is_below =
            |top: &str| point.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if TYPES.contains(&kind) || ["/dev", "/proc", "/sys"].into_iter().any(is_below) {
            continue;
        }
        // A mount that another covers may not be there.
        asked += usize::from(rustix::fs::statvfs(point).is_ok());
    }
    Ok(asked)
}
