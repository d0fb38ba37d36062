//! Stands between a binary and a Unix socket and counts what is asked, changing nothing.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use crate::{
    client::{Client, Coding},
    period,
    program::{Program, Setting},
};

/// What is counted in the bytes towards the server.
#[derive(Clone, Copy)]
pub(crate) enum Protocol {
    /// Requests of HTTP/1.1.
    Http,
    /// Method calls of D-Bus.
    DBus,
}

/// A counting socket in front of another.
pub(crate) struct Proxy {
    path: PathBuf,
    calls: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on `path` and forwards to `server`.
    pub(crate) fn start(path: PathBuf, server: &Path, protocol: Protocol) -> Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let calls = Arc::new(AtomicU64::new(0));
        let (counter, server) = (calls.clone(), server.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, server.clone(), protocol, counter.clone()));
            }
        });
        Ok(Self { path, calls })
    }

    /// Where to connect to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

/// How many calls one scrape makes, of those that come through `proxy`, once everything is known.
pub(crate) async fn calls_per_scrape(proxy: &Proxy, setting: &Setting) -> Result<f64> {
    const SCRAPES: u32 = 30;
    let program = Program::evenkeel(setting).await?;
    period::settle(&program).await?;
    let mut client = Client::connect(program.port, Coding::Gzip).await?;
    let mut inside = 0;
    for _ in 0..SCRAPES {
        let before = proxy.calls();
        client.scrape().await?;
        inside += proxy.calls() - before;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    #[expect(clippy::cast_precision_loss)]
    let each = inside as f64 / f64::from(SCRAPES);
    Ok(each)
}

async fn forward(client: UnixStream, server: PathBuf, protocol: Protocol, calls: Arc<AtomicU64>) {
    let Ok(server) = UnixStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut pending = Vec::new();
    let mut talking = matches!(protocol, Protocol::Http);
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from_client.read(&mut buffer).await {
        if read == 0 || to_server.write_all(&buffer[..read]).await.is_err() {
            break;
        }
        pending.extend_from_slice(&buffer[..read]);
        if !talking && let Some(end) = find(&pending, b"BEGIN\r\n") {
            pending.drain(..end);
            talking = true;
        }
        if talking {
            let counted = match protocol {
                Protocol::Http => requests(&mut pending),
                Protocol::DBus => method_calls(&mut pending),
            };
            calls.fetch_add(counted, Ordering::Relaxed);
        }
    }
    back.abort();
}

/// The position behind `needle`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle).map(|at| at + needle.len())
}

/// Counts and removes whole request lines.
fn requests(pending: &mut Vec<u8>) -> u64 {
    let mut count = 0;
    while let Some(end) = find(pending, b" HTTP/1.1\r\n") {
        pending.drain(..end);
        count += 1;
    }
    count
}

/// Counts and removes whole messages; type 1 is a method call (D-Bus Specification, "Message Format").
fn method_calls(pending: &mut Vec<u8>) -> u64 {
    let mut count = 0;
    while pending.len() >= 16 {
        let number =
            |at: usize| u32::from_le_bytes([pending[at], pending[at + 1], pending[at + 2], pending[at + 3]]);
        let (body, fields) = (number(4) as usize, number(12) as usize);
        let length = (16 + fields).next_multiple_of(8) + body;
        if pending.len() < length {
            break;
        }
        count += u64::from(pending[1] == 1);
        pending.drain(..length);
    }
    count
}
