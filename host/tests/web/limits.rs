//! The server's limits, seen from raw sockets.

use std::time::Duration;

use evenkeel_host::web::{Limits, Security};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

use crate::server::{MAX_BODY, PATIENCE, Server, exchange, get, limits};

#[tokio::test]
async fn a_body_in_pieces_arrives_whole_and_says_its_length() {
    let server = Server::start(limits()).await;
    let body: String = (0..100).map(|number| format!("piece {number}\n")).collect();
    let answer = server.get("/pieces").await;
    assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    assert!(answer.contains(&format!("content-length: {}\r\n", body.len())), "{answer}");
    let head = server.send(get("/pieces").replacen("GET", "HEAD", 1).as_bytes()).await;
    assert!(
        head.contains(&format!("content-length: {}\r\n", body.len())) && !head.contains("piece"),
        "{head}"
    );
    server.stop().await;
}

#[tokio::test]
async fn replies_carry_their_headers() {
    let server = Server::start(limits()).await;
    let page = server.get("/").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(
        page.contains("content-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff\r\n"),
        "{page}"
    );
    assert!(page.contains("\r\n\r\nhello 127.0.0.1:"), "{page}");
    let json = server.get("/json").await;
    assert!(
        json.contains("content-type: application/json\r\n") && json.ends_with("\r\n\r\n[\"a\"]"),
        "{json}"
    );
    let missing = server.get("/none").await;
    assert!(
        missing.starts_with("HTTP/1.1 404 Not Found\r\n") && missing.ends_with("\r\n\r\nnot found\n"),
        "{missing}"
    );
    let wrong = server.get("/post-only").await;
    assert!(
        wrong.starts_with("HTTP/1.1 405 Method Not Allowed\r\n") && wrong.contains("\r\nallow: POST\r\n"),
        "{wrong}"
    );
    let head = server.send(b"HEAD /json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(head.contains("content-length: 5\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    server.stop().await;
}

#[tokio::test]
async fn a_panicking_handler_is_a_500_and_the_server_lives() {
    let server = Server::start(limits()).await;
    for _ in 0..3 {
        let answer = server.get("/panic").await;
        assert!(
            answer.starts_with("HTTP/1.1 500 ") && answer.ends_with("\r\n\r\ninternal error\n"),
            "{answer}"
        );
    }
    assert!(server.get("/").await.contains("hello"));
    server.stop().await;
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_a_503() {
    let server = Server::start(Limits { request_timeout: Duration::from_millis(100), ..limits() }).await;
    let answer = server.get("/hang").await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("the request took too long\n"),
        "{answer}"
    );
    // A body that never comes counts as well.
    let answer = server.send(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn heads_that_do_not_arrive_end_the_connection() {
    let head_timeout = Duration::from_millis(100);
    let server = Server::start(Limits { head_timeout, idle_timeout: head_timeout, ..limits() }).await;
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\nhost: x\r\nx-slow"] {
        assert_eq!(server.send(bytes).await, "");
    }
    // Idle after an answer: closed too.
    let answer = server.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn heads_that_are_too_large_or_make_no_sense_are_refused() {
    let server = Server::start(limits()).await;
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(20 << 10));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(100));
    for request in [large, many] {
        let answer = server.send(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{answer}");
    }
    for request in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"]
    {
        let answer = server.send(request).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?}: {answer}");
    }
    assert!(server.get("/").await.contains("hello"));
    server.stop().await;
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = Server::start(limits()).await;
    let post = |head: &str, body: &str| {
        format!("POST /body HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n\r\n{body}")
    };
    let exact = "x".repeat(MAX_BODY);
    let chunk = format!("3e8\r\n{exact}\r\n");
    for (request, expected) in [
        (post("content-length: 1000", &exact), "200 OK"),
        (post("transfer-encoding: chunked", &format!("{chunk}0\r\n\r\n")), "200 OK"),
        // Announced: refused before any of it is sent.
        (post("content-length: 1001", ""), "413 Payload Too Large"),
        (post("transfer-encoding: chunked", &format!("{chunk}1\r\nx\r\n0\r\n\r\n")), "413 Payload Too Large"),
        (post("transfer-encoding: chunked", "zz\r\n"), "400 Bad Request"),
    ] {
        let answer = server.send(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{expected}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_above_the_cap_wait_for_their_turn() {
    let server = Server::start(Limits { connections: 1, ..limits() }).await;
    let mut gated = TcpStream::connect(&server.address).await.expect("connected");
    gated.write_all(get("/gate").as_bytes()).await.expect("sent");
    server.entered.notified().await;
    let mut waiting = TcpStream::connect(&server.address).await.expect("queued");
    waiting.write_all(get("/").as_bytes()).await.expect("sent");
    let mut byte = [0];
    let early = timeout(Duration::from_millis(200), waiting.read(&mut byte)).await;
    assert!(early.is_err(), "answered while the only slot was taken");
    server.gate.notify_one();
    assert!(exchange(gated, b"").await.ends_with("through\n"));
    assert!(exchange(waiting, b"").await.contains("hello"));
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_keep_its_slot() {
    let limits = Limits { connections: 1, request_timeout: Duration::from_millis(200), ..limits() };
    let server = Server::start(limits).await;
    let mut stalled = TcpStream::connect(&server.address).await.expect("connected");
    stalled.write_all(get("/large").as_bytes()).await.expect("sent");
    assert!(server.get("/").await.contains("hello"));
    drop(stalled);
    server.stop().await;
}

#[tokio::test]
async fn running_requests_end_after_the_shutdown_and_new_ones_are_refused() {
    let server = Server::start(limits()).await;
    let mut running = TcpStream::connect(&server.address).await.expect("connected");
    running.write_all(get("/gate").as_bytes()).await.expect("sent");
    server.entered.notified().await;
    let mut idle = TcpStream::connect(&server.address).await.expect("connected");
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut first = [0; 15];
    idle.read_exact(&mut first).await.expect("answered");
    server.shutdown.cancel();
    // The idle connection is closed, the listening socket too.
    exchange(idle, b"").await;
    timeout(PATIENCE, async { while TcpStream::connect(&server.address).await.is_ok() {} })
        .await
        .expect("refused");
    assert!(!server.task.is_finished());
    server.gate.notify_one();
    assert!(exchange(running, b"").await.ends_with("through\n"));
    server.stop().await;
}

#[tokio::test]
async fn the_drain_is_bounded() {
    let limits = Limits { drain: Duration::from_millis(100), request_timeout: PATIENCE * 10, ..limits() };
    let server = Server::start(limits).await;
    let mut running = TcpStream::connect(&server.address).await.expect("connected");
    running.write_all(get("/gate").as_bytes()).await.expect("sent");
    server.entered.notified().await;
    server.stop().await;
    assert_eq!(exchange(running, b"").await, "");
}

#[tokio::test]
async fn a_socket_file_serves_and_names_its_caller() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("web.sock");
    let server = Server::start_on(&format!("unix:{}", path.display()), limits(), Security::default()).await;
    assert_eq!(server.address, format!("unix:{}", path.display()));
    let answer = exchange(UnixStream::connect(&path).await.expect("connected"), get("/").as_bytes()).await;
    let uid = rustix::process::getuid().as_raw();
    assert!(answer.ends_with(&format!("\r\n\r\nhello uid {uid}\n")), "{answer}");
    server.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn trickled_heads_end_in_time_whatever_still_comes() {
    let server = Server::start(Limits { head_timeout: Duration::from_millis(300), ..limits() }).await;
    let (mut read, mut write) = TcpStream::connect(&server.address).await.expect("connected").into_split();
    let trickle = tokio::spawn(async move {
        write.write_all(b"GET / HTTP/1.1\r\n").await?;
        loop {
            write.write_all(b"a: b\r\n").await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        #[expect(unreachable_code, reason = "says what the block ends with")]
        std::io::Result::Ok(())
    });
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, read.read_to_end(&mut answer)).await.expect("the server closes");
    assert_eq!(answer, b"");
    assert!(timeout(PATIENCE, trickle).await.expect("it cannot write any more").expect("no panic").is_err());
    server.stop().await;
}

#[tokio::test]
async fn connections_that_say_nothing_make_room_for_one_that_asks() {
    let server = Server::start(Limits { connections: 3, ..limits() }).await;
    let mut greedy = Vec::new();
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\nhost", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        stream.write_all(bytes).await.expect("sent");
        greedy.push(stream);
    }
    for _ in 0..3 {
        assert!(server.get("/").await.contains("hello"));
    }
    drop(greedy);
    server.stop().await;
}

const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// Strangers who want all places for themselves: each asks all the time, and comes again when it is sent away.
fn crowd(address: &str) -> JoinSet<()> {
    let mut crowd = JoinSet::new();
    for _ in 0..8 {
        let address = address.to_owned();
        crowd.spawn(async move {
            loop {
                let Ok(mut stream) = TcpStream::connect(&address).await else { return };
                let mut answer = [0; 1000];
                while stream.write_all(ASK).await.is_ok() && matches!(stream.read(&mut answer).await, Ok(1..))
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
    }
    crowd
}

#[tokio::test]
async fn connections_that_never_stop_asking_make_room_for_one_that_comes() {
    let server = Server::start(Limits { connections: 4, ..limits() }).await;
    let crowd = crowd(&server.address);
    for _ in 0..10 {
        assert!(server.get("/").await.contains("hello"));
    }
    drop(crowd);
    server.stop().await;
}

#[tokio::test]
async fn strangers_do_not_take_the_place_of_one_who_has_shown_a_login() {
    let security = Security::default().accepting(|headers| headers.contains_key("authorization"));
    let server = Server::start_on("127.0.0.1:0", Limits { connections: 4, ..limits() }, security).await;
    let mut known = TcpStream::connect(&server.address).await.expect("connected");
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer x\r\n\r\n";
    let mut answer = [0; 1000];
    known.write_all(request).await.expect("sent");
    assert!(known.read(&mut answer).await.expect("answered") > 0);
    let crowd = crowd(&server.address);
    for _ in 0..5 {
        assert!(server.get("/").await.contains("hello"), "there is a crowd, and room is made");
    }
    known.write_all(request).await.expect("sent");
    assert!(timeout(PATIENCE, known.read(&mut answer)).await.expect("in time").expect("answered") > 0);
    drop(crowd);
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_is_being_answered_makes_no_room() {
    let server = Server::start(Limits { connections: 1, request_timeout: PATIENCE, ..limits() }).await;
    let mut gated = TcpStream::connect(&server.address).await.expect("connected");
    gated.write_all(get("/gate").as_bytes()).await.expect("sent");
    server.entered.notified().await;
    let mut waiting = TcpStream::connect(&server.address).await.expect("queued");
    waiting.write_all(get("/").as_bytes()).await.expect("sent");
    // Longer than an idle connection would be left alone.
    let early = timeout(Duration::from_secs(3), waiting.read(&mut [0])).await;
    assert!(early.is_err(), "answered while the only slot was taken");
    server.gate.notify_one();
    assert!(exchange(gated, b"").await.ends_with("through\n"));
    assert!(exchange(waiting, b"").await.contains("hello"));
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_left() {
    let limits = Limits { request_timeout: Duration::from_millis(300), ..limits() };
    let server = Server::start(limits).await;
    let mut slow = TcpStream::connect(&server.address).await.expect("connected");
    slow.write_all(get("/large").as_bytes()).await.expect("sent");
    let mut taken = 0;
    let mut piece = [0; 1024];
    // 64 MiB at 1 MiB/s would take a minute; at 10 KiB/s the patience is soon used up.
    let ended = timeout(PATIENCE, async {
        loop {
            match slow.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(bytes) => taken += bytes,
            }
            if taken < 200 << 10 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    ended.await.expect("the server closes");
    assert!(taken < 64 << 20, "{taken} bytes");
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_reaches_whoever_is_still_sending() {
    let server = Server::start(limits()).await;
    for (path, status) in
        [("/refused", "401 Unauthorized"), ("/body", "413 Payload Too Large"), ("/none", "404 Not Found")]
    {
        let mut stream = TcpStream::connect(&server.address).await.expect("connected");
        let length = 20 << 20;
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        // As a client that reads nothing before it has sent everything.
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..length / piece.len() {
            timeout(PATIENCE, stream.write_all(&piece)).await.expect("in time").expect("no broken pipe");
        }
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("closed").expect("no reset");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_thrown_away_is_bounded() {
    let server = Server::start(limits()).await;
    let (mut read, mut write) = TcpStream::connect(&server.address).await.expect("connected").into_split();
    let endless = tokio::spawn(async move {
        write.write_all(b"POST /refused HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await?;
        let chunk = [&b"10000\r\n"[..], &vec![b'x'; 1 << 16], b"\r\n"].concat();
        loop {
            write.write_all(&chunk).await?;
        }
        #[expect(unreachable_code, reason = "says what the block ends with")]
        std::io::Result::Ok(())
    });
    let mut answer = [0; 12];
    timeout(PATIENCE, read.read_exact(&mut answer)).await.expect("in time").expect("answered");
    assert_eq!(&answer, b"HTTP/1.1 401");
    assert!(timeout(PATIENCE, endless).await.expect("it cannot go on").expect("no panic").is_err());
    server.stop().await;
}
