//! A Docker engine's socket whose answers a test writes itself, in this process. Only for tests: behind the feature
//! `fake-docker`.

use std::{
    convert::Infallible,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Response, StatusCode,
    body::{Bytes, Frame},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixListener, sync::mpsc::UnboundedReceiver, task::JoinSet};

use super::lock;

/// How the engine answers one question.
#[derive(Debug)]
pub enum Answer {
    /// A status and a body.
    Says(u16, String),
    /// Never.
    Nothing,
    /// Headers, and a body that stops halfway without ending.
    Half(String),
    /// Headers, and a body without end.
    Endless,
    /// Headers, and then what is sent, until the sender is dropped.
    Follows(UnboundedReceiver<String>),
}

impl Answer {
    /// 200 and this JSON.
    pub fn json(body: impl ToString) -> Self {
        Self::Says(200, body.to_string())
    }
}

#[derive(Debug, Default)]
struct Load {
    connections: AtomicUsize,
    questions: AtomicUsize,
    most_questions: AtomicUsize,
}

/// Counts a question for as long as it is being answered.
struct Question(Arc<Load>);

impl Question {
    fn begin(load: &Arc<Load>) -> Self {
        let now = load.questions.fetch_add(1, Ordering::SeqCst) + 1;
        load.most_questions.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(load))
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.0.questions.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A listening engine; dropping it closes the socket and every connection, as a stopped daemon would.
#[derive(Debug)]
pub struct FakeDocker {
    requests: Arc<Mutex<Vec<String>>>,
    load: Arc<Load>,
    accepting: tokio::task::JoinHandle<()>,
}

impl FakeDocker {
    /// Answers on `socket` by `answer`, given path and query without the API version.
    pub fn start(socket: &Path, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket in the test's folder");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let load = Arc::new(Load::default());
        let answer = Arc::new(answer);
        let (log, counts) = (Arc::clone(&requests), Arc::clone(&load));
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and then every connection is.
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, counts, answer) = (Arc::clone(&log), Arc::clone(&counts), Arc::clone(&answer));
                serving.spawn(async move {
                    counts.connections.fetch_add(1, Ordering::SeqCst);
                    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                        let path = request.uri().to_string();
                        lock(&log).push(path.clone());
                        let question = Question::begin(&counts);
                        let answer = answer(unversioned(&path));
                        async move {
                            let response = respond(answer).await;
                            drop(question);
                            response
                        }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    counts.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { requests, load, accepting }
    }

    /// The questions since the last call, as they came.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.requests))
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.load.connections.load(Ordering::SeqCst)
    }

    /// Waits until every connection is closed; a client that leaves one open makes the test hang and fail.
    pub async fn all_closed(&self) {
        while self.load.connections.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The most questions that waited for their answer at one time.
    pub fn most_at_once(&self) -> usize {
        self.load.most_questions.load(Ordering::SeqCst)
    }
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// `/v1.41/info` → `/info`.
fn unversioned(path: &str) -> &str {
    match path.strip_prefix("/v").and_then(|rest| rest.find('/').map(|slash| &rest[slash..])) {
        Some(rest) if path.as_bytes().get(2).is_some_and(u8::is_ascii_digit) => rest,
        _ => path,
    }
}

async fn respond(answer: Answer) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let body = match answer {
        Answer::Says(status, body) => {
            let mut response = Response::new(Full::new(Bytes::from(body)).boxed());
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            return Ok(response);
        }
        Answer::Nothing => std::future::pending().await,
        Answer::Half(text) => {
            let mut rest = Some(Frame::data(Bytes::from(text)));
            StreamBody::new(stream::poll_fn(move |_| match rest.take() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Poll::Pending,
            }))
            .boxed()
        }
        Answer::Follows(mut lines) => StreamBody::new(stream::poll_fn(move |context| {
            lines.poll_recv(context).map(|line| Some(Ok(Frame::data(Bytes::from(line?)))))
        }))
        .boxed(),
        Answer::Endless => {
            let chunk = Bytes::from(vec![b' '; 1 << 20]);
            StreamBody::new(stream::repeat_with(move || Ok(Frame::data(chunk.clone())))).boxed()
        }
    };
    Ok(Response::new(body))
}
