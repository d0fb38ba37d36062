//! A real Redis of its own for a simulation, and the ways that hosts have to it, which can be cut and led elsewhere.

#![expect(clippy::disallowed_types, reason = "a test starts a redis-server; nothing that ships does")]

use std::{
    net::TcpListener as Probe,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

/// A redis-server that ends with this value.
pub(super) struct Server {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Server {
    /// Starts one on a free port of loopback, and waits until it answers.
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = Probe::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port_text = port.to_string();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port_text, "--save", "", "--appendonly", "no"]);
        command
            .args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--dir"])
            .arg(dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.expect("there is no redis-server in PATH: `make tools` fetches one");
        let server = Self { child, port, _dir: dir };
        let end = Instant::now() + Duration::from_secs(20);
        while server.connect().await.is_err() {
            assert!(Instant::now() < end, "redis-server does not answer");
            sleep(Duration::from_millis(20)).await;
        }
        server
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        connection.set_response_timeout(Duration::from_secs(20));
        Ok(connection)
    }

    /// Its answer to a command of plain words.
    pub(super) async fn say(&self, words: &str) -> Value {
        let mut connection = self.connect().await.unwrap();
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut connection).await.unwrap()
    }

    /// What it had to do until now, and what it holds.
    pub(super) async fn toll(&self) -> Toll {
        let Value::BulkString(info) = self.say("INFO everything").await else { panic!("no text") };
        let info = String::from_utf8_lossy(&info).into_owned();
        let number = |name: &str| -> u64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| panic!("no {name}"))
        };
        let mut toll = Toll {
            calls: 0,
            bytes: number("total_net_input_bytes") + number("total_net_output_bytes"),
            busy_us: 0,
            memory: number("used_memory"),
        };
        // What scripts call is counted by itself too, and is part of their time.
        for line in info.lines().filter_map(|line| line.strip_prefix("cmdstat_")) {
            let Some((name, stats)) = line.split_once(":calls=") else { continue };
            let (calls, rest) = stats.split_once(",usec=").expect("usec");
            let usec = rest.split(',').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            if ["evalsha", "eval", "xadd", "expire", "xreadgroup", "xack", "xdel", "xautoclaim"]
                .contains(&name)
            {
                toll.calls += calls.parse::<u64>().unwrap_or(0);
                toll.busy_us += usec;
            }
        }
        toll
    }

    /// Becomes the replica of another one, and waits until it has all that the other one has.
    pub(super) async fn follow(&self, other: &Self) {
        self.say(&format!("REPLICAOF 127.0.0.1 {}", other.port)).await;
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let Value::BulkString(info) = self.say("INFO replication").await else { panic!("no text") };
            if String::from_utf8_lossy(&info).contains("master_link_status:up") {
                return;
            }
            assert!(Instant::now() < end, "the replica does not follow");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// As the kernel kills it for want of memory: at once, and with all it knew.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What a Redis had to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Toll {
    /// Commands that it was sent.
    pub(super) calls: u64,
    /// Both ways.
    pub(super) bytes: u64,
    /// Working on those commands, in microseconds.
    pub(super) busy_us: u64,
    /// In bytes.
    pub(super) memory: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where all ways lead: the port of the Redis of the moment.
#[derive(Clone)]
pub(super) struct Lead(Arc<AtomicU16>);

impl Lead {
    pub(super) fn to(server: &Server) -> Self {
        Self(Arc::new(AtomicU16::new(server.port())))
    }

    /// What connects from now on comes there; what is connected stays where it is.
    pub(super) fn turn(&self, server: &Server) {
        self.0.store(server.port(), Ordering::SeqCst);
    }
}

/// One host's way to Redis.
pub(super) struct Path {
    port: u16,
    /// Whether it is whole.
    whole: watch::Sender<bool>,
    knocks: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Path {
    pub(super) async fn open(lead: Lead) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (whole, watched) = watch::channel(true);
        let knocks = Arc::<AtomicUsize>::default();
        let heard = Arc::clone(&knocks);
        let task = tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                heard.fetch_add(1, Ordering::SeqCst);
                let (mut whole, to) = (watched.clone(), lead.0.load(Ordering::SeqCst));
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        // Also when it was cut before.
                        _ = whole.wait_for(|whole| !whole) => {}
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                    }
                });
            }
        });
        Self { port, whole, knocks, task }
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// How many connections came this way, cut or not.
    pub(super) fn knocks(&self) -> usize {
        self.knocks.load(Ordering::SeqCst)
    }

    /// What goes through ends, and nothing more comes through.
    pub(super) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(super) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.task.abort();
    }
}
