//! What one connection's client may do to its server: how long it may take for a request's head, how slowly it may read
//! an answer, and how it is told that its body is not wanted. Below TLS, so that a handshake is bounded too.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::slots::Activity;

/// A client that reads more slowly than this uses its patience up. Bytes per second.
const SLOWEST_READER: u32 = 16 << 10;

/// After an answer that did not wait for the whole request: what is still on its way is read and thrown away, for so
/// long and so much. Otherwise the kernel would answer it with a reset, which takes the answer with it.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 64 << 20;

/// Thrown away at a time.
const SCRATCH: usize = 16 << 10;

/// A stream whose other side has a bounded time for everything.
pub(super) struct Guard<S> {
    inner: S,
    activity: Arc<Activity>,
    /// For a head to arrive whole, from its first byte.
    head_limit: Duration,
    head: Head,
    patience: Patience,
    closing: Closing,
    timer: Timer,
}

/// Whether a request's head, or before it the handshake, is on its way.
enum Head {
    /// Nothing has come since the last request.
    Idle,
    /// Begun, when so many requests had come before.
    Begun { before: usize, until: Instant },
}

enum Closing {
    Open,
    /// Our side is closed.
    Lingering {
        until: Instant,
        left: usize,
    },
    Closed,
}

impl<S> Guard<S> {
    /// The head's time runs from now on. `patience` is how long the client may leave an answer unread.
    pub(super) fn new(inner: S, activity: Arc<Activity>, head_limit: Duration, patience: Duration) -> Self {
        Self {
            inner,
            activity,
            head_limit,
            head: Head::Begun { before: 0, until: Instant::now() + head_limit },
            patience: Patience { most: patience, left: patience, since: None },
            closing: Closing::Open,
            timer: Timer::new(),
        }
    }

    /// Passes a write's outcome on, or ends it when it has been waiting too long.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(outcome) => {
                let bytes = outcome.as_ref().map_or(0, bytes);
                if bytes > 0 {
                    self.activity.progresses();
                }
                self.patience.progress(bytes);
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                let until = self.patience.wait();
                ready!(self.timer.poll_until(until, context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly")))
            }
        }
    }
}

/// How long a client may still let us wait: used up by waiting, filled up by reading.
struct Patience {
    most: Duration,
    left: Duration,
    /// Waiting since then.
    since: Option<Instant>,
}

impl Patience {
    fn wait(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now) + self.left
    }

    fn progress(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        let earned = Duration::from_secs_f64(bytes as f64 / f64::from(SLOWEST_READER));
        self.left = (self.left + earned).min(self.most);
    }
}

/// One timer for whichever limit is near.
struct Timer {
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    fn new() -> Self {
        Self { sleep: Box::pin(sleep(Duration::ZERO)) }
    }

    fn poll_until(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        if self.sleep.deadline() != until {
            self.sleep.as_mut().reset(until);
        }
        self.sleep.as_mut().poll(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let requests = this.activity.requests();
        if matches!(this.head, Head::Begun { before, .. } if before != requests) {
            this.head = Head::Idle;
        }
        let filled = buffer.filled().len();
        if let Poll::Ready(outcome) = Pin::new(&mut this.inner).poll_read(context, buffer) {
            if buffer.filled().len() > filled {
                this.activity.hears();
                if matches!(this.head, Head::Idle) && !this.activity.is_busy() {
                    this.head = Head::Begun { before: requests, until: Instant::now() + this.head_limit };
                }
            }
            return Poll::Ready(outcome);
        }
        if let Head::Begun { until, .. } = this.head
            && !this.activity.is_busy()
        {
            ready!(this.timer.poll_until(until, context));
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no whole request came in time",
            )));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write(context, data);
        this.written(context, outcome, |bytes| *bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write_vectored(context, data);
        this.written(context, outcome, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_flush(context);
        this.written(context, outcome, |()| 0)
    }

    /// Closes our side, then listens on where the client may still be sending.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.closing {
                Closing::Open => {
                    let outcome = Pin::new(&mut this.inner).poll_shutdown(context);
                    ready!(this.written(context, outcome, |()| 0))?;
                    this.closing = match this.activity.has_more_to_say() {
                        true => Closing::Lingering { until: Instant::now() + LINGER, left: LINGER_BYTES },
                        false => Closing::Closed,
                    };
                }
                Closing::Lingering { until, left } => {
                    let mut scratch = [0; SCRATCH];
                    let mut buffer = ReadBuf::new(&mut scratch);
                    match Pin::new(&mut this.inner).poll_read(context, &mut buffer) {
                        Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                            *left = left.saturating_sub(buffer.filled().len());
                        }
                        Poll::Ready(_) => *left = 0,
                        Poll::Pending => {
                            ready!(this.timer.poll_until(*until, context));
                            *left = 0;
                        }
                    }
                    if *left == 0 || Instant::now() >= *until {
                        this.closing = Closing::Closed;
                    }
                }
                Closing::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}
