//! What is said on a connection to Redis: AUTH, PING and INFO, each answer bounded. Not here: how the connection is made.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::future::{Either, select};
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{Endpoint, Failure, Info, Probe, within};

/// Everything a server may say in one probe. `INFO` is some 6 KB, and some 100 bytes more for each replica and each
/// database in use.
const ANSWER_LIMIT: u64 = 256 << 10;

/// AUTH, PING and INFO on a connected stream.
pub(super) async fn converse<S>(
    stream: S,
    endpoint: &Endpoint,
    end: Instant,
    seen: &mut Probe,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let beginning = Beginning::default();
    let reader = Overheard { reader: reader.take(ANSWER_LIMIT), beginning: Arc::clone(&beginning) };
    let bounded = tokio::io::join(reader, writer);
    // Nothing is sent on connecting: the library's own AUTH and SELECT would blur which stage failed.
    let setup = RedisConnectionInfo::default().set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let (mut redis, driver) = within(
        end,
        Failure::ResponseTimeout,
        MultiplexedConnection::new_with_config(&setup, bounded, config),
    )
    .await?
    .map_err(|error| reply_failure(&error))?;
    let conversation = std::pin::pin!(async move {
        authenticate(&mut redis, endpoint, end).await?;
        let ping = ping(&mut redis, end, seen).await;
        let info = info(&mut redis, end, seen).await;
        ping.and(info)
    });
    // The connection is driven here and not in a task, so that it ends with the probe.
    let result = match select(conversation, std::pin::pin!(driver)).await {
        Either::Left((result, _)) => result,
        Either::Right(((), conversation)) => conversation.await,
    };
    result.map_err(|failure| match failure {
        Failure::Protocol => turned_away(&beginning).unwrap_or(Failure::Protocol),
        other => other,
    })
}

/// The first bytes that a server has sent.
type Beginning = Arc<Mutex<Vec<u8>>>;

/// Enough for the word that says what is wrong.
const BEGINNING: usize = 32;

/// A server that has no room, or that lets in nobody from outside, says so before it was asked anything, and hangs up. The
/// library throws away what it did not ask for.
fn turned_away(beginning: &Beginning) -> Option<Failure> {
    let beginning = beginning.lock().unwrap_or_else(PoisonError::into_inner);
    let line = std::str::from_utf8(&beginning).ok()?.strip_prefix('-')?;
    Some(failure_of(line.split([' ', '\r']).next()?))
}

/// Keeps the beginning of what is read.
struct Overheard<R> {
    reader: R,
    beginning: Beginning,
}

impl<R: AsyncRead + Unpin> AsyncRead for Overheard<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.reader).poll_read(context, buffer);
        let mut beginning = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        let room = BEGINNING.saturating_sub(beginning.len());
        beginning.extend(buffer.filled()[before..].iter().take(room));
        result
    }
}

async fn authenticate(
    redis: &mut MultiplexedConnection,
    endpoint: &Endpoint,
    end: Instant,
) -> Result<(), Failure> {
    let Some(password) = &endpoint.password else { return Ok(()) };
    let mut auth = redis::cmd("AUTH");
    if let Some(username) = &endpoint.username {
        auth.arg(username);
    }
    auth.arg(password.expose());
    match within(end, Failure::ResponseTimeout, auth.query_async::<()>(redis)).await? {
        Ok(()) => Ok(()),
        Err(error) => Err(match reply_failure(&error) {
            // "ERR AUTH called without any password configured", "ERR unknown command": not with these credentials.
            Failure::ErrorReply if !has_too_many_clients(&error) => Failure::Auth,
            other => other,
        }),
    }
}

async fn ping(redis: &mut MultiplexedConnection, end: Instant, seen: &mut Probe) -> Result<(), Failure> {
    let start = Instant::now();
    let answer =
        within(end, Failure::ResponseTimeout, redis::cmd("PING").query_async::<String>(redis)).await?;
    match answer {
        Ok(pong) if pong == "PONG" => {
            seen.ping = Some(start.elapsed());
            seen.ready = true;
            Ok(())
        }
        Ok(_) => Err(Failure::Protocol),
        Err(error) => Err(reply_failure(&error)),
    }
}

async fn info(redis: &mut MultiplexedConnection, end: Instant, seen: &mut Probe) -> Result<(), Failure> {
    let answer =
        within(end, Failure::ResponseTimeout, redis::cmd("INFO").query_async::<Vec<u8>>(redis)).await?;
    let text = answer.map_err(|error| reply_failure(&error))?;
    let info = Info::parse(&String::from_utf8_lossy(&text));
    if info.get("redis_version").is_none() {
        return Err(Failure::Protocol);
    }
    seen.info = Some(info);
    seen.up = true;
    Ok(())
}

fn reply_failure(error: &RedisError) -> Failure {
    error.code().map_or(Failure::Protocol, failure_of)
}

/// By the first word of an error.
fn failure_of(code: &str) -> Failure {
    match code {
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => Failure::Auth,
        "LOADING" => Failure::Loading,
        _ => Failure::ErrorReply,
    }
}

/// The server says so to the first command, whatever it is, and closes.
fn has_too_many_clients(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("max number of clients"))
}
