//! A token bucket that can be in debt. The cost of an answer is known only once it has ended, so its tokens must be
//! taken even if fewer are left; the next request waits until they have flowed in again. The buckets of the common
//! crates refuse to go into debt, so this one is our own.
//!
//! Every call takes the time as an argument, so that tests need no clock.

use std::time::{Duration, Instant};

/// Time in which an empty bucket fills.
const WINDOW: Duration = Duration::from_mins(1);
/// Missing part of a unit that is ignored: sums of parts are not exact in floating point.
const TOLERANCE: f64 = 1e-6;

/// A store of units that flow in evenly, up to a limit per minute.
#[derive(Debug)]
pub(crate) struct Bucket {
    limit: u64,
    level: f64,
    /// Time at which `level` was computed.
    at: Instant,
}

/// The state of a bucket as a client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    /// Units per minute.
    pub limit: u64,
    /// Units that can be taken now.
    pub remaining: u64,
    /// Time until the bucket is full.
    pub reset: Duration,
}

impl Bucket {
    /// Creates a full bucket.
    pub(crate) fn new(limit: u64, now: Instant) -> Self {
        Self { limit, level: limit as f64, at: now }
    }

    /// Units per minute.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes `amount` units, or fails with the time until they have flowed in. More than the limit never flows in.
    pub(crate) fn take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.flow(now);
        let missing = amount as f64 - self.level;
        if missing > TOLERANCE {
            return Err(self.time_for(missing));
        }
        self.level -= amount as f64;
        Ok(())
    }

    /// Takes `amount` units, into debt if fewer are left.
    pub(crate) fn debit(&mut self, amount: u64, now: Instant) {
        self.flow(now);
        self.level -= amount as f64;
    }

    /// Puts back `amount` units that were taken and not used.
    pub(crate) fn give_back(&mut self, amount: u64, now: Instant) {
        self.flow(now);
        self.level = (self.level + amount as f64).min(self.limit as f64);
    }

    /// Returns the state of the bucket at `now`.
    pub(crate) fn level(&mut self, now: Instant) -> Level {
        self.flow(now);
        let remaining = (self.level + TOLERANCE).max(0.0) as u64;
        Level { limit: self.limit, remaining, reset: self.time_for(self.limit as f64 - self.level) }
    }

    fn flow(&mut self, now: Instant) {
        let minutes = now.saturating_duration_since(self.at).as_secs_f64() / WINDOW.as_secs_f64();
        self.level = (self.level + minutes * self.limit as f64).min(self.limit as f64);
        self.at = self.at.max(now);
    }

    fn time_for(&self, amount: f64) -> Duration {
        let seconds = amount.max(0.0) / self.limit as f64 * WINDOW.as_secs_f64();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_gives_its_limit_at_once_and_then_one_unit_at_a_time() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(3, begin);
        for _ in 0..3 {
            assert_eq!(bucket.take(1, begin), Ok(()));
        }
        let wait = bucket.take(1, begin).expect_err("empty");
        assert_eq!(wait, Duration::from_secs(20));
        assert!(bucket.take(1, begin + Duration::from_secs(19)).is_err());
        assert_eq!(bucket.take(1, begin + wait), Ok(()), "the time that was told is enough");
        assert!(bucket.take(1, begin + wait).is_err());
    }

    #[test]
    fn a_refused_request_takes_nothing() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(10, begin);
        assert!(bucket.take(11, begin).is_err());
        assert_eq!(bucket.take(10, begin), Ok(()));
    }

    #[test]
    fn a_debt_is_paid_off_before_anything_can_be_taken() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(60, begin);
        bucket.debit(90, begin);
        let level = bucket.level(begin);
        assert_eq!((level.remaining, level.reset), (0, Duration::from_secs(90)));
        assert_eq!(bucket.take(1, begin), Err(Duration::from_secs(31)));
        assert!(bucket.take(1, begin + Duration::from_secs(30)).is_err());
        assert_eq!(bucket.take(1, begin + Duration::from_secs(31)), Ok(()));
    }

    #[test]
    fn it_never_holds_more_than_its_limit_and_time_never_runs_back() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(5, begin + Duration::from_mins(1));
        bucket.give_back(3, begin);
        assert_eq!(bucket.level(begin + Duration::from_hours(9)).remaining, 5);
        assert_eq!(bucket.take(5, begin), Ok(()));
        assert_eq!(bucket.level(begin).remaining, 0);
        bucket.give_back(2, begin);
        assert_eq!(bucket.level(begin).remaining, 2);
    }
}
