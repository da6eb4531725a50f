//! Keeps connections of HTTP/1 sound where an answer is given before the request's body was read: an unknown path, a
//! missing key, a body that is too large. A short rest is read, so that the connection serves the next request. Before
//! a long one the answer says `Connection: close`, and what still comes is read and thrown away for a while: closing a
//! socket with unread bytes would take the answer from a client that sends first and reads then. Called by `transport`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt as _;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::api::http::holding_body::holding;

/// Bytes of an unread body for which a connection is kept.
const SHORT: u64 = 256 * 1024;
/// Time in which these must come. An answer waits that long at most.
const SOON: Duration = Duration::from_millis(500);
/// Time for which a body is thrown away after its answer.
const LINGER: Duration = Duration::from_secs(30);
/// Silence of the client that ends this time.
const PAUSE: Duration = Duration::from_secs(2);

/// Answers a request, and sees to the rest of its body. HTTP/2 needs no such care: its requests do not follow each
/// other in one stream of bytes.
pub(super) async fn care_for_the_rest(request: Request, next: Next) -> Response {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    // Such a client sends its body only when it is asked to, which reading would do.
    let waits = request.headers().contains_key(EXPECT);
    let (head, body) = request.into_parts();
    let rest = SharedBody(Arc::new(Mutex::new(Reading { body, state: State::Untouched })));
    let response = next.run(Request::from_parts(head, Body::new(rest.clone()))).await;
    if rest.ends_soon(waits).await {
        return response;
    }
    let (mut head, answer) = response.into_parts();
    head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Response::from_parts(head, holding(answer, Unread(rest)))
}

/// A request's body that can still be read when its handler has dropped it.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Reading>>);

struct Reading {
    body: Body,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Untouched,
    Begun,
    Ended,
    Failed,
}

impl SharedBody {
    /// Reads a short rest, and returns whether the body is at its end. `waits` says that the client sends none unasked.
    async fn ends_soon(&self, waits: bool) -> bool {
        let (state, left) = {
            let reading = self.0.lock();
            (reading.state, reading.body.size_hint().lower())
        };
        match state {
            State::Ended => true,
            State::Failed => false,
            State::Untouched if waits => false,
            State::Untouched | State::Begun => {
                left <= SHORT && timeout(SOON, self.discard(SHORT, SOON)).await.is_ok() && self.is_at_end()
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.0.lock().state == State::Ended
    }

    /// Reads and throws away, until the end, `most` bytes, or a silence of `pause`.
    async fn discard(&self, most: u64, pause: Duration) {
        let mut pieces = Body::new(self.clone()).into_data_stream();
        let mut bytes = 0;
        while bytes <= most
            && let Ok(Some(Ok(piece))) = timeout(pause, pieces.next()).await
        {
            bytes += piece.len() as u64;
        }
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut reading = self.0.lock();
        if reading.state == State::Untouched {
            reading.state = State::Begun;
        }
        let frame = ready!(Pin::new(&mut reading.body).poll_frame(context));
        if matches!(frame, Some(Err(_))) {
            reading.state = State::Failed;
        } else if reading.state != State::Failed && (frame.is_none() || reading.body.is_end_stream()) {
            reading.state = State::Ended;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}

/// The rest of a request on its connection's last answer. When that is sent, the rest is thrown away.
struct Unread(SharedBody);

impl Drop for Unread {
    fn drop(&mut self) {
        let rest = self.0.clone();
        // There is no runtime any more where the process ends.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { timeout(LINGER, rest.discard(u64::MAX, PAUSE)).await });
        }
    }
}
