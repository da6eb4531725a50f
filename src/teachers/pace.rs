//! The pace of requests to one teacher: so many a minute, and none for as long as it asked to be left alone. All jobs
//! and graders of this process share it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// When the next request may go.
#[derive(Debug)]
pub(super) struct Pace {
    /// Time between two requests.
    gap: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Makes the pace of so many requests a minute; without a number they only wait where the teacher asks for it.
    pub(super) fn new(requests_per_minute: Option<u32>) -> Self {
        let gap = requests_per_minute.map_or(Duration::ZERO, |rate| Duration::from_mins(1) / rate.max(1));
        Self { gap, next: Mutex::new(None) }
    }

    /// Waits until a request may go.
    pub(super) async fn turn(&self) {
        while let Some(at) = self.ask(Instant::now()) {
            sleep_until(at).await;
        }
    }

    /// Takes the turn at `now`, or returns when there may be one.
    fn ask(&self, now: Instant) -> Option<Instant> {
        let mut next = self.next.lock();
        if let Some(at) = next.filter(|at| *at > now) {
            return Some(at);
        }
        *next = Some(now + self.gap);
        None
    }

    /// Lets no request go for `wait`.
    pub(super) fn rest(&self, wait: Duration) {
        self.rest_until(Instant::now() + wait);
    }

    fn rest_until(&self, until: Instant) {
        let mut next = self.next.lock();
        *next = Some(next.map_or(until, |next| next.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_their_distance_and_wait_as_long_as_they_are_told_to() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let pace = Pace::new(Some(60));
        assert_eq!((pace.ask(began), pace.ask(began)), (None, Some(began + second)));
        assert_eq!(pace.ask(began + second), None);
        pace.rest_until(began + second * 30);
        assert_eq!(pace.ask(began + second * 3), Some(began + second * 30));
        assert_eq!(pace.ask(began + second * 30), None);
        let free = Pace::new(None);
        assert_eq!((free.ask(began), free.ask(began)), (None, None));
    }
}
