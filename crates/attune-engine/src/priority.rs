//! Puts requests before training: the trainer calls this between pieces of work and waits while requests run, for a
//! bounded time, so that neither starves the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Number of engine steps that are running or due. Shared by the engines and the trainer of a device.
#[derive(Debug, Default)]
pub struct Priority {
    busy: Mutex<Busy>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Busy {
    /// Requests' steps that are running or due.
    steps: usize,
    /// Begin of the present busy time; `None` if no step is running or due.
    since: Option<Instant>,
    /// All busy times before that.
    before: Duration,
}

/// Guard that marks requests as running while it lives.
#[derive(Debug)]
pub struct BusyGuard<'a>(&'a Priority);

impl Priority {
    /// Marks requests as running until the guard drops.
    pub fn busy(&self) -> BusyGuard<'_> {
        let mut busy = self.busy.lock();
        busy.steps += 1;
        busy.since.get_or_insert_with(Instant::now);
        drop(busy);
        BusyGuard(self)
    }

    /// Returns the time in which requests have run so far.
    pub fn busy_time(&self) -> Duration {
        let busy = self.busy.lock();
        busy.before + busy.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Waits until no request runs, at most `at_most`.
    pub fn yield_to_requests(&self, at_most: Duration) {
        let mut busy = self.busy.lock();
        self.idle.wait_while_for(&mut busy, |busy| busy.steps > 0, at_most);
    }
}

/// Turns of training between requests. If requests run all the time, training gets half of the time.
#[derive(Debug)]
pub struct TrainingTurns {
    priority: Arc<Priority>,
    at_most: Duration,
    began: Instant,
}

impl TrainingTurns {
    /// Yields at most `at_most` at a time, and never longer than the previous piece of work took.
    pub fn new(priority: Arc<Priority>, at_most: Duration) -> Self {
        Self { priority, at_most, began: Instant::now() }
    }

    /// Lets requests go first; call it before each piece of work.
    pub fn next(&mut self) {
        self.priority.yield_to_requests(self.at_most.min(self.began.elapsed()));
        self.began = Instant::now();
    }
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock();
        busy.steps -= 1;
        if busy.steps == 0 {
            let lasted = busy.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            busy.before += lasted;
            self.0.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_requests_counts_once_however_many_run() {
        let priority = Priority::default();
        assert_eq!(priority.busy_time(), Duration::ZERO);
        let first = priority.busy();
        let second = priority.busy();
        drop(first);
        let within = priority.busy_time();
        drop(second);
        let after = priority.busy_time();
        assert!(after >= within && after > Duration::ZERO);
        assert_eq!(priority.busy_time(), after, "no request runs");
    }
}
