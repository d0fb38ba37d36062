//! One connection to the fleet's Redis, made when it is needed and made anew when it broke. Every question has a time
//! limit, and every answer a size limit: whoever answers may be anybody.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use evenkeel_host::redis::{Failure, Stream, connect};
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    fault::{Fault, Kind},
    settings::Way,
};

/// A connection, or the lack of one.
pub(super) struct Link {
    way: Way,
    /// For connecting, and for each question.
    timeout: Duration,
    /// What is read between two questions at most, in bytes.
    answer_max: u64,
    open: Mutex<Option<Open>>,
}

/// A connection that was good when it was last used.
struct Open {
    redis: MultiplexedConnection,
    overflowed: Arc<AtomicBool>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    /// Connects to nobody yet.
    pub(super) fn new(way: Way, timeout: Duration, answer_max: u64) -> Self {
        Self { way, timeout, answer_max, open: Mutex::default() }
    }

    /// Asks a question. One that meets a connection that broke while nobody used it is asked once more on a new one, so it
    /// must do no harm to ask twice.
    ///
    /// # Errors
    /// When there is no answer in time, or it is a fault.
    pub(super) async fn ask<T, Q>(&self, question: impl Fn(MultiplexedConnection) -> Q) -> Result<T, Fault>
    where
        Q: Future<Output = Result<T, Fault>>,
    {
        self.ask_within(Duration::ZERO, question).await
    }

    /// The same where the answer is to wait for something, so long.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub(super) async fn ask_within<T, Q>(
        &self,
        waits: Duration,
        question: impl Fn(MultiplexedConnection) -> Q,
    ) -> Result<T, Fault>
    where
        Q: Future<Output = Result<T, Fault>>,
    {
        let end = Instant::now() + self.timeout + waits;
        let mut fresh = false;
        loop {
            fresh |= self.open.lock().await.is_none();
            let redis = self.connection(end.min(Instant::now() + self.timeout)).await?;
            let late = || Err(Fault::new(Kind::Timeout, "no answer"));
            let answer = timeout_at(end, question(redis)).await.unwrap_or_else(|_| late());
            let Err(fault) = answer else { return answer };
            let fault = self.after(fault).await;
            if fault.kind == Kind::Unreachable && !fresh {
                fresh = true;
                continue;
            }
            return Err(fault);
        }
    }

    /// Whether the connection is good for another question is known by its fault.
    async fn after(&self, fault: Fault) -> Fault {
        let mut open = self.open.lock().await;
        let overflowed = open.as_ref().is_some_and(|open| open.overflowed.load(Ordering::Relaxed));
        if matches!(fault.kind, Kind::Unreachable | Kind::Timeout | Kind::Nonsense | Kind::Auth) {
            // An answer that is late would be taken for that of the next question.
            *open = None;
        }
        if overflowed {
            Fault::new(Kind::TooLarge, &format!("more than {} bytes", self.answer_max))
        } else {
            fault
        }
    }

    /// The connection, made if there is none.
    async fn connection(&self, end: Instant) -> Result<MultiplexedConnection, Fault> {
        let mut open = self.open.lock().await;
        if let Some(open) = open.as_ref().filter(|open| !open.driver.is_finished()) {
            return Ok(open.redis.clone());
        }
        *open = None;
        let target = self.way.target()?;
        let stream = connect(&target, end).await.map_err(unreached)?;
        let overflowed = Arc::new(AtomicBool::new(false));
        let stream = Bounded {
            stream,
            left: self.answer_max,
            most: self.answer_max,
            overflowed: Arc::clone(&overflowed),
        };
        let login = target.login().ok_or_else(|| Fault::new(Kind::Unreachable, "no Redis URL"))?;
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let made = timeout_at(end, MultiplexedConnection::new_with_config(&login, stream, config)).await;
        let made = made.map_err(|_| Fault::new(Kind::Timeout, "no answer on connecting"))?;
        let (redis, driver) = made?;
        let driver = tokio::spawn(driver);
        *open = Some(Open { redis: redis.clone(), overflowed, driver });
        Ok(redis)
    }
}

fn unreached(failure: Failure) -> Fault {
    let kind = match failure {
        Failure::ConnectTimeout | Failure::ResponseTimeout => Kind::Timeout,
        _ => Kind::Unreachable,
    };
    Fault::new(kind, failure.as_str())
}

/// Ends the connection when more is read than is allowed since something was last written.
struct Bounded {
    stream: Box<dyn Stream>,
    left: u64,
    most: u64,
    overflowed: Arc<AtomicBool>,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = u64::try_from(buffer.filled().len() - before).unwrap_or(u64::MAX);
        let Some(left) = self.left.checked_sub(read) else {
            self.overflowed.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(io::Error::other("the answer is too large")));
        };
        self.left = left;
        result
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.left = self.most;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
