//! Requests before training: the trainer asks here between pieces of work and waits while requests run, for a bounded
//! time, so that neither starves the other.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Counts engine steps that are running or due. Shared by the engines and the trainer of a device.
#[derive(Debug, Default)]
pub struct Priority {
    busy: Mutex<usize>,
    idle: Condvar,
}

/// While it lives, requests are running.
#[derive(Debug)]
pub struct BusyGuard<'a>(&'a Priority);

impl Priority {
    /// Marks requests as running until the guard drops.
    pub fn busy(&self) -> BusyGuard<'_> {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        BusyGuard(self)
    }

    /// Waits until no request runs, `at_most` this long.
    pub fn yield_to_requests(&self, at_most: Duration) {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.idle.wait_timeout_while(busy, at_most, |busy| *busy > 0));
    }
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock().unwrap_or_else(PoisonError::into_inner);
        *busy -= 1;
        if *busy == 0 {
            self.0.idle.notify_all();
        }
    }
}
