//! Gives up answers of HTTP/2 that their client does not take. It keeps its connection alive and lets one answer wait,
//! so that the connection's own limit, `write_progress`, does not see it. What the answer holds is let go. Called by
//! the router.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::Version;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// Pieces that are handed to the connection, copied: a slice would keep the whole answer.
const PIECE: usize = 64 << 10;

/// Answers a request; its client must take something of the answer within `limit` if there is something to take.
pub(crate) async fn watch(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let is_http2 = request.version() == Version::HTTP_2;
    let response = next.run(request).await;
    if !is_http2 || response.body().is_end_stream() {
        return response;
    }
    response.map(|body| Body::new(Answer::new(body, limit)))
}

/// An answer that lets its content go once nobody has taken any for a while.
struct Answer {
    held: Arc<Mutex<Held>>,
    watch: AbortHandle,
}

struct Held {
    /// `None` once it was given up.
    body: Option<Body>,
    /// What is left of its last frame.
    rest: Bytes,
    /// How often the connection has asked for more.
    asked: u64,
    /// True while the connection waits for the server, not the other way round.
    awaited: bool,
}

impl Answer {
    fn new(body: Body, limit: Duration) -> Self {
        let held = Held { body: Some(body), rest: Bytes::new(), asked: 0, awaited: false };
        let held = Arc::new(Mutex::new(held));
        let watch = tokio::spawn(give_up(Arc::downgrade(&held), limit)).abort_handle();
        Self { held, watch }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Drops the content once the connection has asked for none of it for `limit`.
async fn give_up(held: Weak<Mutex<Held>>, limit: Duration) {
    let mut before = 0;
    loop {
        tokio::time::sleep(limit).await;
        let Some(held) = held.upgrade() else { return };
        let mut held = held.lock();
        if held.asked == before && !held.awaited {
            (held.body, held.rest) = (None, Bytes::new());
            return;
        }
        before = held.asked;
    }
}

impl Held {
    /// Returns the next frame of the content; data stay in `rest`.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Option<Frame<Bytes>>, axum::Error>>> {
        let Some(body) = &mut self.body else {
            let fault = io::Error::new(io::ErrorKind::TimedOut, "the client took nothing of its answer for too long");
            return Poll::Ready(Some(Err(axum::Error::new(fault))));
        };
        let frame = Pin::new(body).poll_frame(context);
        self.awaited = frame.is_pending();
        Poll::Ready(match ready!(frame) {
            Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                Ok(data) => {
                    self.rest = data;
                    None
                }
                Err(frame) => Some(frame),
            })),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut held = self.held.lock();
        held.asked += 1;
        if held.rest.is_empty() {
            match ready!(held.poll_next(context)) {
                Some(Ok(None)) => {}
                Some(Ok(Some(frame))) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let length = held.rest.len().min(PIECE);
        let piece = held.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&piece)))))
    }

    fn is_end_stream(&self) -> bool {
        let held = self.held.lock();
        held.rest.is_empty() && held.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.lock();
        let Some(left) = held.body.as_ref().map(HttpBody::size_hint) else { return SizeHint::default() };
        let (rest, mut hint) = (held.rest.len() as u64, SizeHint::new());
        hint.set_lower(left.lower() + rest);
        if let Some(upper) = left.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures::{StreamExt as _, stream};

    use super::*;
    use crate::api::http::holding_body::holding;

    const LONG: Duration = Duration::from_mins(5);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn an_answer_that_nobody_takes_lets_go_what_it_holds() {
        let kept = Arc::new(());
        let answer = Answer::new(holding(Body::from(vec![7; 3 * PIECE]), Box::new(Arc::clone(&kept))), SHORT);
        let mut pieces = Body::new(answer).into_data_stream();
        let first = pieces.next().await.expect("a piece").expect("its bytes");
        assert_eq!(first.len(), PIECE, "no piece holds the whole answer");
        while Arc::strong_count(&kept) > 1 {
            tokio::time::sleep(SHORT).await;
        }
        assert!(pieces.next().await.expect("an end").is_err(), "a part is not the whole answer");
    }

    #[tokio::test]
    async fn an_answer_that_is_taken_is_whole_also_if_the_server_is_slow() {
        let content: Vec<u8> = (0..3 * PIECE as u32).map(|byte| byte as u8).collect();
        let answer = Answer::new(Body::from(content.clone()), LONG);
        assert_eq!(answer.size_hint().exact(), Some(content.len() as u64));
        assert_eq!(to_bytes(Body::new(answer), usize::MAX).await.expect("all of it"), content);

        let slow = stream::once(async {
            tokio::time::sleep(4 * SHORT).await;
            Ok::<_, io::Error>(Bytes::from("late"))
        });
        let answer = Answer::new(Body::from_stream(slow), SHORT);
        assert_eq!(to_bytes(Body::new(answer), usize::MAX).await.expect("all of it"), "late");
    }
}
