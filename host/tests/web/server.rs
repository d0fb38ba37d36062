//! The server under test: one path for each thing that a handler may do.

use std::{sync::Arc, time::Duration};

use evenkeel_host::web::{self, Caller, Limits, Listener, Request, Response, Security, reply};
use hyper::{StatusCode, body::Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const MAX_BODY: usize = 1000;

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
    /// Lets one `/gate` request end.
    pub(crate) gate: Arc<Notify>,
    /// Says that a `/gate` request has begun.
    pub(crate) entered: Arc<Notify>,
}

impl Server {
    pub(crate) async fn start(limits: Limits) -> Self {
        Self::start_on("127.0.0.1:0", limits, Security::default()).await
    }

    pub(crate) async fn start_on(address: &str, limits: Limits, security: Security) -> Self {
        let listener = Listener::bind(&address.parse().expect("an address")).await.expect("bound");
        Self::start_with(listener, limits, security)
    }

    pub(crate) fn start_with(listener: Listener, limits: Limits, security: Security) -> Self {
        let address = listener.local_addr();
        let (shutdown, gate, entered) =
            (CancellationToken::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (inside, outside) = (Arc::clone(&entered), Arc::clone(&gate));
        let handler = move |request: Request, caller: Caller| {
            let (entered, gate) = (Arc::clone(&inside), Arc::clone(&outside));
            async move { handle(request, caller, &entered, &gate).await }
        };
        let task = tokio::spawn(web::serve(vec![listener], limits, security, handler, shutdown.clone()));
        Self { address, shutdown, task, gate, entered }
    }

    pub(crate) async fn send(&self, bytes: &[u8]) -> String {
        let stream = TcpStream::connect(&self.address).await.expect("connected");
        exchange(stream, bytes).await
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        self.send(get(path).as_bytes()).await
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.expect("the server ends").expect("and does not panic");
    }
}

async fn handle(request: Request, caller: Caller, entered: &Notify, gate: &Notify) -> Response {
    match request.uri().path() {
        "/" => reply::text(StatusCode::OK, format!("hello {}\n", caller.peer)),
        "/who" => {
            let who = format!("logged in: {}, certificate: {}\n", caller.logged_in, caller.certificate);
            reply::text(StatusCode::OK, who)
        }
        "/refused" => reply::text(StatusCode::UNAUTHORIZED, "not you\n"),
        "/panic" => panic!("on purpose"),
        "/hang" => std::future::pending().await,
        "/gate" => {
            entered.notify_one();
            gate.notified().await;
            reply::text(StatusCode::OK, "through\n")
        }
        "/large" => reply::text(StatusCode::OK, vec![b'x'; 64 << 20]),
        "/body" => match web::read_body(request, MAX_BODY).await {
            Ok(body) => reply::text(StatusCode::OK, format!("{} bytes\n", body.len())),
            Err(error) => reply::text(error.status(), format!("{error}\n")),
        },
        "/pieces" => {
            let mut response = reply::text(StatusCode::OK, "");
            let pieces = (0..100).map(|number| Bytes::from(format!("piece {number}\n"))).collect::<Vec<_>>();
            *response.body_mut() = pieces.into();
            response
        }
        "/json" => reply::json(StatusCode::OK, &["a"]),
        "/post-only" => reply::method_not_allowed("POST"),
        _ => reply::not_found(),
    }
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

/// Sends bytes and reads until the server closes.
pub(crate) async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    // A reset after the answer is a close as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) fn limits() -> Limits {
    Limits { drain: Duration::from_secs(5), ..Limits::default() }
}
