//! Calls of the kernel or the C library that may not come back for a long time, or ever: a dead mount, a resolver without
//! a network. Each runs on a thread of its own and is waited for with a limit. Not here: what the calls ask.

mod in_flight;
mod round;
mod threads;

use std::io;

pub(crate) use in_flight::InFlight;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An earlier call about the same has not come back yet.
    #[error("an earlier question about the same is still stuck")]
    Stuck,
    /// No answer in time.
    #[error("it did not answer in time")]
    TimedOut,
    /// Too many calls are stuck.
    #[error("too many questions are stuck")]
    TooMany,
    /// No thread to ask from.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The answer is an error.
    #[error("{0}")]
    Os(io::Error),
}

impl Error {
    /// The error in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Stuck => "stuck",
            Self::TimedOut => "timeout",
            Self::TooMany => "too_many",
            Self::Thread(_) => "thread",
            Self::Os(_) => "os",
        }
    }
}
