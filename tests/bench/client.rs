//! A client that costs little itself: one connection that is kept, and answers that are counted and thrown away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::{ACCEPT, ACCEPT_ENCODING, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What Prometheus 3 sends.
pub(crate) const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
    application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
    text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

/// What Prometheus says about its patience, in seconds: its default.
const PATIENCE: &str = "10";

/// How an answer is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// As Prometheus wants it.
    Gzip,
    /// As it is.
    Identity,
}

/// A kept connection to `/metrics`.
pub(crate) struct Client {
    port: u16,
    coding: Coding,
    sender: SendRequest<Empty<Bytes>>,
}

/// One answer.
pub(crate) struct Answer {
    /// Until its last byte.
    pub(crate) took: Duration,
    /// Its body's bytes on the wire.
    pub(crate) bytes: usize,
}

impl Client {
    pub(crate) async fn connect(port: u16, coding: Coding) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { port, coding, sender })
    }

    /// A scrape as Prometheus makes it; an answer that is not 200 is an error.
    pub(crate) async fn scrape(&mut self) -> Result<Answer> {
        let coding = if self.coding == Coding::Gzip { "gzip" } else { "identity" };
        let request = Request::get("/metrics")
            .header(HOST, format!("127.0.0.1:{}", self.port))
            .header(ACCEPT, PROMETHEUS)
            .header(ACCEPT_ENCODING, coding)
            .header("X-Prometheus-Scrape-Timeout-Seconds", PATIENCE)
            .body(Empty::new())?;
        if self.sender.is_closed() {
            // As Prometheus does: a server may end a connection that is idle.
            *self = Self::connect(self.port, self.coding).await?;
        }
        let begun = Instant::now();
        self.sender.ready().await.context("the connection is gone")?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "{}", response.status());
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(Answer { took: begun.elapsed(), bytes })
    }
}

/// What a storm of requests was answered with.
pub(crate) struct Storm {
    pub(crate) answers: usize,
    pub(crate) errors: usize,
    pub(crate) took: Duration,
    pub(crate) times: Vec<Duration>,
}

impl Storm {
    #[expect(clippy::cast_precision_loss)]
    pub(crate) fn per_second(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64()
    }
}

/// Scrapes over `connections` at once, one after the other on each, for this long or this many.
pub(crate) async fn storm(port: u16, coding: Coding, connections: usize, until: Until) -> Result<Storm> {
    let begun = Instant::now();
    let mut each = tokio::task::JoinSet::new();
    for _ in 0..connections {
        each.spawn(async move {
            let mut client = Client::connect(port, coding).await?;
            let (mut times, mut errors) = (Vec::new(), 0);
            while until.goes_on(begun, times.len() + errors, connections) {
                match client.scrape().await {
                    Ok(answer) => times.push(answer.took),
                    Err(_) => {
                        errors += 1;
                        client = Client::connect(port, coding).await?;
                    }
                }
            }
            anyhow::Ok((times, errors))
        });
    }
    let mut storm = Storm { answers: 0, errors: 0, took: Duration::ZERO, times: Vec::new() };
    while let Some(one) = each.join_next().await {
        let (times, errors) = one??;
        storm.answers += times.len();
        storm.errors += errors;
        storm.times.extend(times);
    }
    storm.took = begun.elapsed();
    Ok(storm)
}

/// How long a storm lasts.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Time(Duration),
    /// Requests in all, if they are done within the time.
    Count(usize, Duration),
}

impl Until {
    fn goes_on(self, begun: Instant, done: usize, connections: usize) -> bool {
        match self {
            Self::Time(time) => begun.elapsed() < time,
            Self::Count(count, time) => done < count.div_ceil(connections) && begun.elapsed() < time,
        }
    }
}
