//! The body of an answer.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Bytes, Frame, SizeHint};

/// A body that is whole in memory, in one piece or in several that several answers may share.
#[derive(Debug, Default)]
pub struct Body {
    pieces: VecDeque<Bytes>,
}

impl Body {
    fn left(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl From<Vec<Bytes>> for Body {
    fn from(pieces: Vec<Bytes>) -> Self {
        Self { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect() }
    }
}

impl From<Bytes> for Body {
    fn from(piece: Bytes) -> Self {
        vec![piece].into()
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Known, so that the answer says its length and a client sees when it was cut short.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}
