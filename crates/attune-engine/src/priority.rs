//! Puts requests before training: the trainer calls this between pieces of work and waits while requests run, for a
//! bounded time, so that neither starves the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Number of engine steps that are running or due. Shared by the engines and the trainer of a device.
#[derive(Debug, Default)]
pub struct Priority {
    busy: Mutex<usize>,
    idle: Condvar,
}

/// Guard that marks requests as running while it lives.
#[derive(Debug)]
pub struct BusyGuard<'a>(&'a Priority);

impl Priority {
    /// Marks requests as running until the guard drops.
    pub fn busy(&self) -> BusyGuard<'_> {
        *self.busy.lock() += 1;
        BusyGuard(self)
    }

    /// Waits until no request runs, at most `at_most`.
    pub fn yield_to_requests(&self, at_most: Duration) {
        let mut busy = self.busy.lock();
        self.idle.wait_while_for(&mut busy, |busy| *busy > 0, at_most);
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
        *busy -= 1;
        if *busy == 0 {
            self.0.idle.notify_all();
        }
    }
}
