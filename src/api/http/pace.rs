//! How slowly a client may send an upload: it must keep to a least speed, and come to an end. Called by `form`.

use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout};

use crate::api::http::error::{Problem, Result};

/// Time of waiting for the client in which it must send what the least speed asks for. The first of them is its grace.
const WINDOW: Duration = Duration::from_secs(30);

/// The time and the speed that are left to a body.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    limit: Duration,
    end: Instant,
    /// Time that is left of the window.
    left: Duration,
    /// Bytes that must still come within it.
    missing: u64,
}

impl Pace {
    /// Begins now. The client must send `bytes_per_second` on average, and all within `limit`.
    pub(crate) fn new(bytes_per_second: u64, limit: Duration) -> Self {
        let missing = bytes_per_second.saturating_mul(WINDOW.as_secs());
        Self { bytes_per_second, limit, end: Instant::now() + limit, left: WINDOW, missing }
    }

    /// Waits for the next piece of `body`; `None` at its end. An error is a client that is too slow, or gone.
    pub(crate) async fn next(&mut self, body: &mut BodyDataStream) -> Result<Option<Bytes>> {
        let begin = Instant::now();
        let until_end = self.end.saturating_duration_since(begin);
        let Ok(piece) = timeout(self.left.min(until_end), body.next()).await else {
            return Err(self.too_slow(until_end <= self.left));
        };
        let piece = piece.transpose();
        let piece = piece.map_err(|error| Problem::bad_request(format!("The body could not be read: {error}.")))?;
        // Time in which the server was busy with the piece before is not the client's.
        self.count(begin.elapsed(), piece.as_ref().map_or(0, |piece| piece.len() as u64));
        Ok(piece)
    }

    /// Counts `bytes` that came after `waited`.
    fn count(&mut self, waited: Duration, bytes: u64) {
        self.left = self.left.saturating_sub(waited);
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 {
            (self.left, self.missing) = (WINDOW, self.bytes_per_second.saturating_mul(WINDOW.as_secs()));
        }
    }

    fn too_slow(&self, at_end: bool) -> Problem {
        let (limit, least, window) = (self.limit.as_secs(), self.bytes_per_second, WINDOW.as_secs());
        Problem::too_slow(if at_end {
            format!(
                "The upload did not end within the {limit} seconds that it may take: send a smaller file, or faster."
            )
        } else {
            format!(
                "The upload came too slowly: at least {least} bytes per second must arrive, on average of {window} \
                 seconds. Send it again over a faster connection."
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures::stream;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_window_ends_when_its_bytes_have_come_and_a_trickle_uses_it_up() {
        let mut pace = Pace::new(1024, 3600 * SECOND);
        for _ in 0..1000 {
            pace.count(25 * SECOND, 30 * 1024);
            assert_eq!(pace.left, WINDOW, "30 KiB in less than 30 seconds");
        }
        for second in 1..=30 {
            pace.count(SECOND, 1);
            assert_eq!(pace.left + second * SECOND, WINDOW);
        }
        pace.count(SECOND, 1023);
        assert_eq!(pace.left, Duration::ZERO, "more bytes than before are not enough");
    }

    #[tokio::test]
    async fn a_client_that_is_too_slow_or_takes_too_long_is_told_which() {
        let silent = || Body::from_stream(stream::pending::<std::io::Result<Bytes>>()).into_data_stream();
        let mut pace = Pace::new(1024, 3600 * SECOND);
        pace.left = Duration::ZERO;
        let slow = pace.next(&mut silent()).await.expect_err("nothing came");
        assert_eq!(slow.status, 408);
        assert!(slow.error.message.contains("1024 bytes per second"), "{slow}");
        let long = Pace::new(1024, Duration::ZERO).next(&mut silent()).await.expect_err("the time is up");
        assert_eq!(long.status, 408);
        assert!(long.error.message.contains("0 seconds that it may take"), "{long}");
        let mut body = Body::from("content").into_data_stream();
        let mut pace = Pace::new(1024, 3600 * SECOND);
        assert_eq!(pace.next(&mut body).await.expect("it is there").as_deref(), Some(&b"content"[..]));
        assert_eq!(pace.next(&mut body).await.expect("the end"), None);
    }
}
