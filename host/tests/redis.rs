//! The Redis probe against servers that behave in every bad way, each a task in this process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::Future,
    io,
    time::{Duration, Instant},
};

use evenkeel_host::{
    config::Secret,
    redis::{Failure, Probe, Target, probe},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener},
};

const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nused_memory:1000\r\n";

/// For servers that never answer: every such probe takes this long.
const SHORT: Duration = Duration::from_millis(400);

/// For servers that do, on a busy machine.
const AMPLE: Duration = Duration::from_secs(20);

/// Serves each connection by `behave`; gives the URL.
async fn server<F, W>(behave: F) -> String
where
    F: Fn(TcpStream) -> W + Send + 'static,
    W: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(behave(stream));
        }
    });
    format!("redis://{address}/0")
}

/// Answers every command by `answer`, given the command's words.
async fn answer<S, F, R>(stream: S, answer: F) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(&[String]) -> R,
    R: AsRef<[u8]>,
{
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let count: usize = line.trim_start_matches('*').trim().parse().map_err(io::Error::other)?;
        let mut words = Vec::new();
        for _ in 0..count {
            line.clear();
            stream.read_line(&mut line).await?;
            let length: usize = line.trim_start_matches('$').trim().parse().map_err(io::Error::other)?;
            let mut word = vec![0; length + 2];
            stream.read_exact(&mut word).await?;
            word.truncate(length);
            words.push(String::from_utf8(word).map_err(io::Error::other)?);
        }
        stream.write_all(answer(&words).as_ref()).await?;
        stream.flush().await?;
    }
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// A Redis that is well.
fn healthy(words: &[String]) -> String {
    match words[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        "INFO" => bulk(INFO),
        _ => "-ERR unknown command\r\n".to_owned(),
    }
}

async fn probe_url(url: &str, budget: Duration) -> Probe {
    let start = Instant::now();
    let target = Target { name: "test".into(), url: url.into(), ..Target::default() };
    let seen = probe(&target, budget).await;
    assert!(start.elapsed() < budget + Duration::from_secs(2), "{url} took {:?}", start.elapsed());
    seen
}

#[track_caller]
fn assert_down(seen: &Probe, failure: Failure) {
    assert_eq!((seen.up, seen.ready, seen.failure), (false, false, Some(failure)));
}

#[tokio::test]
async fn a_healthy_server_is_up_and_ready() {
    let seen = probe_url(&server(|stream| answer(stream, healthy)).await, AMPLE).await;
    assert_eq!((seen.up, seen.ready, seen.failure), (true, true, None));
    assert_eq!(seen.info.unwrap().get("used_memory"), Some("1000"));
    assert!(seen.connect.is_some() && seen.ping.is_some());
}

#[tokio::test]
async fn a_unix_socket_works_and_a_missing_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis.sock");
    let url = format!("unix://{}", path.display());
    assert_down(&probe_url(&url, AMPLE).await, Failure::Refused);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, healthy));
        }
    });
    let seen = probe_url(&url, AMPLE).await;
    assert_eq!((seen.up, seen.failure), (true, None));
}

#[tokio::test]
async fn nothing_listening_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_down(&probe_url(&format!("redis://{address}"), AMPLE).await, Failure::Refused);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_dns() {
    assert_down(&probe_url("redis://evenkeel-test.invalid:6379", SHORT).await, Failure::Dns);
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_a_connect_timeout() {
    // A full backlog drops the handshake, as a host behind a dropping firewall would.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
        assert!(queued.len() < 100, "the backlog never fills");
    }
    let seen = probe_url(&format!("redis://{address}"), SHORT).await;
    assert_down(&seen, Failure::ConnectTimeout);
    assert_eq!(seen.connect, None);
}

#[tokio::test]
async fn a_silent_server_is_a_response_timeout() {
    // Reads and never answers, like a stopped process behind a live kernel.
    let url = server(|mut stream| async move {
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(|_| ())
    })
    .await;
    let seen = probe_url(&url, SHORT).await;
    assert_down(&seen, Failure::ResponseTimeout);
    assert!(seen.connect.is_some());
    // The same in the handshake of TLS.
    assert_down(&probe_url(&url.replace("redis://", "rediss://"), SHORT).await, Failure::ResponseTimeout);
}

#[tokio::test]
async fn a_server_slower_than_the_budget_is_a_response_timeout() {
    let url = server(|mut stream| async move {
        for byte in "+PONG\r\n".bytes() {
            stream.write_all(&[byte]).await?;
            tokio::time::sleep(SHORT / 4).await;
        }
        Ok(())
    })
    .await;
    assert_down(&probe_url(&url, SHORT).await, Failure::ResponseTimeout);
}

#[tokio::test]
async fn a_loading_server_is_up_and_not_ready() {
    let url = server(|stream| {
        answer(stream, |words| match words[0].as_str() {
            "PING" => "-LOADING Redis is loading the dataset in memory\r\n".to_owned(),
            _ => healthy(words),
        })
    })
    .await;
    let seen = probe_url(&url, AMPLE).await;
    assert_eq!((seen.up, seen.ready, seen.failure), (true, false, Some(Failure::Loading)));
    let url = server(|stream| answer(stream, |_| "-LOADING no\r\n".to_owned())).await;
    assert_down(&probe_url(&url, AMPLE).await, Failure::Loading);
}

#[tokio::test]
async fn replies_are_told_apart() {
    for (reply, failure) in [
        ("-NOAUTH Authentication required.", Failure::Auth),
        ("-NOPERM this user has no permissions to run the 'ping' command", Failure::Auth),
        ("-DENIED Redis is running in protected mode", Failure::Auth),
        ("-BUSY Redis is busy running a script", Failure::ErrorReply),
        ("-MISCONF Redis is configured to save RDB snapshots", Failure::ErrorReply),
        ("-ERR max number of clients reached", Failure::ErrorReply),
        ("+HELLO", Failure::Protocol),
        (":1", Failure::Protocol),
        ("HTTP/1.1 400 Bad Request", Failure::Protocol),
        ("\u{0}\u{1}garbage", Failure::Protocol),
    ] {
        let url = server(move |stream| answer(stream, move |_| format!("{reply}\r\n"))).await;
        let seen = probe_url(&url, AMPLE).await;
        assert_eq!((seen.up, seen.ready, seen.failure), (false, false, Some(failure)), "{reply}");
    }
}

/// A server that answers everything well but this command.
async fn but(command: &'static str, reply: impl Into<Vec<u8>>) -> String {
    let reply = reply.into();
    server(move |stream| {
        let reply = reply.clone();
        answer(
            stream,
            move |words| {
                if words[0] == command { reply.clone() } else { healthy(words).into_bytes() }
            },
        )
    })
    .await
}

#[tokio::test]
async fn who_refuses_ping_but_answers_info_is_up_and_not_ready() {
    for (reply, failure) in [
        ("-MISCONF Redis is configured to save RDB snapshots", Failure::ErrorReply),
        ("-MASTERDOWN Link with MASTER is down", Failure::ErrorReply),
        ("-NOPERM this user has no permissions to run the 'ping' command", Failure::Auth),
        ("+PANG", Failure::Protocol),
        (":1", Failure::Protocol),
    ] {
        let seen = probe_url(&but("PING", format!("{reply}\r\n")).await, AMPLE).await;
        assert_eq!((seen.up, seen.ready, seen.failure), (true, false, Some(failure)), "{reply}");
    }
}

#[tokio::test]
async fn an_info_of_another_type_is_not_up() {
    for (reply, failure) in [
        ("-NOPERM this user has no permissions to run the 'info' command\r\n", Failure::Auth),
        (":5\r\n", Failure::Protocol),
        ("+OK\r\n", Failure::Protocol),
        ("$-1\r\n", Failure::Protocol),
        ("*-1\r\n", Failure::Protocol),
        ("*2\r\n:1\r\n:2\r\n", Failure::Protocol),
        ("%1\r\n+a\r\n+b\r\n", Failure::Protocol),
        ("$-7\r\n", Failure::Protocol),
        ("$99999999999999999999\r\n", Failure::Protocol),
        ("$4\r\nab\r\nc", Failure::Protocol),
    ] {
        let seen = probe_url(&but("INFO", reply).await, AMPLE).await;
        assert_eq!((seen.up, seen.ready, seen.failure), (false, true, Some(failure)), "{reply:?}");
    }
}

#[tokio::test]
async fn an_info_that_is_not_utf8_is_read_as_far_as_it_is() {
    let mut info = b"redis_version:7.0.15\r\nos:\xff\xfe\r\nused_memory:5\r\n".to_vec();
    let mut reply = format!("${}\r\n", info.len()).into_bytes();
    reply.append(&mut info);
    reply.extend(b"\r\n");
    let info = probe_url(&but("INFO", reply).await, AMPLE).await.info.unwrap();
    assert_eq!((info.get("os"), info.get("used_memory")), (Some("\u{fffd}\u{fffd}"), Some("5")));
}

#[tokio::test]
async fn answers_within_answers_do_not_end_the_process() {
    let seen = probe_url(&but("PING", "*1\r\n".repeat(20_000)).await, AMPLE).await;
    assert_eq!((seen.ready, seen.failure), (false, Some(Failure::Protocol)));
}

#[tokio::test]
async fn an_answer_that_never_ends_is_a_response_timeout() {
    let url = server(|stream| answer(stream, |_| "*1000000000\r\n".to_owned())).await;
    assert_down(&probe_url(&url, SHORT).await, Failure::ResponseTimeout);
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let url = server(|mut stream| async move {
        stream.write_all(b"$2000000000\r\n").await?;
        let chunk = vec![b'x'; 64 << 10];
        loop {
            stream.write_all(&chunk).await?;
        }
    })
    .await;
    assert_down(&probe_url(&url, AMPLE).await, Failure::Protocol);
}

#[tokio::test]
async fn an_info_that_is_not_redis_s_is_not_up() {
    let url = server(|stream| {
        answer(stream, |words| if words[0] == "INFO" { bulk("a:b\r\n") } else { healthy(words) })
    })
    .await;
    let seen = probe_url(&url, AMPLE).await;
    assert_eq!((seen.up, seen.ready, seen.failure), (false, true, Some(Failure::Protocol)));
}

#[tokio::test]
async fn who_is_turned_away_at_the_door_hears_why() {
    for (reply, failure) in [
        ("-ERR max number of clients reached\r\n", Failure::ErrorReply),
        ("-DENIED Redis is running in protected mode because\r\n", Failure::Auth),
        ("-LOADING\r\n", Failure::Loading),
        ("+HELLO\r\n", Failure::Protocol),
        ("-\u{fc}", Failure::ErrorReply),
    ] {
        // Before it was asked anything, and without reading what it is asked.
        let url = server(move |mut stream| async move { stream.write_all(reply.as_bytes()).await }).await;
        for _ in 0..20 {
            assert_down(&probe_url(&url, AMPLE).await, failure);
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_is_a_broken_protocol() {
    let url = server(|stream| async move {
        drop(stream);
        Ok(())
    })
    .await;
    assert_down(&probe_url(&url, AMPLE).await, Failure::Protocol);
}

#[tokio::test]
async fn credentials_are_sent_and_their_refusal_is_auth() {
    let url = server(|stream| {
        answer(stream, |words| match words {
            [auth, user, password] if auth == "AUTH" && user == "exporter" && password == "right" => {
                "+OK\r\n".to_owned()
            }
            // Some servers repeat what they do not understand.
            [auth, ..] if auth == "AUTH" => format!("-ERR unknown command {words:?}\r\n"),
            _ => healthy(words),
        })
    })
    .await;
    for (password, up, failure) in [("right", true, None), ("wrong", false, Some(Failure::Auth))] {
        let target = Target {
            name: "test".into(),
            url: url.clone(),
            username: Some("exporter".into()),
            password: Some(Secret::new(password)),
            ca_file: None,
        };
        let seen = probe(&target, AMPLE).await;
        assert_eq!((seen.up, seen.failure), (up, failure));
    }
}

#[tokio::test]
async fn a_plain_server_is_no_tls_server() {
    let url = server(|mut stream| async move { stream.write_all(b"-ERR plain\r\n").await }).await;
    let url = url.replace("redis://", "rediss://");
    assert_down(&probe_url(&url, AMPLE).await, Failure::Tls);
    let target = Target { url, ca_file: Some("/nonexistent/ca.pem".into()), ..Target::default() };
    assert_down(&probe(&target, AMPLE).await, Failure::Tls);
}
