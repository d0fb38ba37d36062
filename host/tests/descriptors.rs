//! What happens when file descriptors run out. A process of its own: the limit is the whole process's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evenkeel_host::web::{self, Caller, Limits, Listener, Request, Security, reply};
use hyper::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{Layer, layer::Context, prelude::*};

/// Counts warnings of the server and wakes who waits for them.
#[derive(Clone, Default)]
struct Warnings(Arc<(AtomicUsize, Notify)>);

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("evenkeel_host::web") {
            self.0.0.fetch_add(1, Ordering::SeqCst);
            self.0.1.notify_one();
        }
    }
}

#[tokio::test]
async fn the_server_waits_without_spinning_and_recovers() {
    let warnings = Warnings::default();
    tracing_subscriber::registry().with(warnings.clone()).init();
    let listener = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    let address = listener.local_addr();
    let shutdown = CancellationToken::new();
    let handler = |_: Request, _: Caller| async { reply::text(StatusCode::OK, "hello\n") };
    let server = tokio::spawn(web::serve(
        vec![listener],
        Limits::default(),
        Security::default(),
        handler,
        shutdown.clone(),
    ));

    let mut client = TcpStream::connect(&address).await.expect("connected");
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.ends_with("hello\n"), "{answer}");

    // Every descriptor is taken but the one for the client's own socket: none is left for the server's side of it.
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: before.maximum }).expect("lowered");
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held.pop().expect("some were free");
    let started = Instant::now();
    let mut client = TcpStream::connect(&address).await.expect("the last descriptor");
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");

    timeout(Duration::from_secs(20), async {
        while warnings.0.0.load(Ordering::SeqCst) < 3 {
            warnings.0.1.notified().await;
        }
    })
    .await
    .expect("the server says what is wrong");
    assert!(started.elapsed() >= Duration::from_millis(150), "paused 50 and 100 ms between the three");

    drop(held);
    let mut answer = String::new();
    timeout(Duration::from_secs(20), client.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("answered");
    assert!(answer.ends_with("hello\n"), "{answer}");
    shutdown.cancel();
    server.await.expect("the server ends");
}
