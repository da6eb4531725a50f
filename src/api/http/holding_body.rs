//! An answer's body that holds something until it is sent or given up. Called by `lingering` and by `access`.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

/// A body, and what is dropped with it.
struct HoldingBody<T> {
    body: Body,
    _held: T,
}

/// Returns `body` so that `held` is dropped when the body has been sent or its client has gone.
pub(crate) fn holding<T: Unpin + Send + 'static>(body: Body, held: T) -> Body {
    Body::new(HoldingBody { body, _held: held })
}

impl<T: Unpin> HttpBody for HoldingBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
