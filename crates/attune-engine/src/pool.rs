//! Computes steps inside the process's one pool of threads. Called by `runner.rs`.
//!
//! A step forks hundreds of times. From a thread of the pool that costs a fraction of a microsecond, from any other
//! thread about twenty: the pool has to be woken, and the caller after it. So an engine's thread hands each step over
//! as a whole.
//!
//! A thread of the pool that waits for a piece of its own work takes other work meanwhile. That must not be another
//! engine's step, which would delay the first one by its whole length, and others on top of it: engines take turns, in
//! the order in which they ask. So an engine waits for at most one step of each other engine. A trainer works from a
//! thread of its own, so a step meets at most one piece of one of its kernels at a time. No work in the pool waits for
//! a lock that a waiting step holds, so there is no deadlock.
//!
//! `parking_lot::FairMutex` is not enough: it keeps the order of sleeping threads, but a thread that still spins is
//! overtaken by the first to come back; on a busy machine that is an engine's next step.

use parking_lot::{Condvar, Mutex, MutexGuard};

static TURNS: Turns = Turns::new();

/// Computes `step` in the pool, once it is its turn.
pub(super) fn compute<T: Send>(step: impl FnOnce() -> T + Send) -> T {
    let _turn = TURNS.take();
    rayon::scope(|_| step())
}

/// A lock that threads get in the order in which they ask for it.
struct Turns {
    /// Next number to give out, and the number whose turn it is.
    state: Mutex<(u64, u64)>,
    changed: Condvar,
}

struct Turn<'a>(&'a Turns);

impl Turns {
    const fn new() -> Self {
        Self { state: Mutex::new((0, 0)), changed: Condvar::new() }
    }

    fn take(&self) -> Turn<'_> {
        let mut state = self.lock();
        let number = state.0;
        state.0 += 1;
        while state.1 != number {
            self.changed.wait(&mut state);
        }
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, (u64, u64)> {
        self.state.lock()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().1 += 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn turns_come_in_the_order_of_asking() {
        let turns = Turns::new();
        let first = turns.take();
        let (report, order) = mpsc::channel();
        std::thread::scope(|scope| {
            for index in 0..4_u64 {
                let (turns, report) = (&turns, report.clone());
                scope.spawn(move || {
                    let _turn = turns.take();
                    report.send(index).expect("a receiver");
                });
                // Each thread has asked before the next one starts.
                while turns.lock().0 != index + 2 {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn steps_of_many_engines_and_other_work_of_the_pool_all_end_and_steps_never_overlap() {
        let busy = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        compute(|| {
                            assert!(!busy.swap(true, Ordering::SeqCst), "another step is under way");
                            let sum: u32 = (0..2000_u32).into_par_iter().with_max_len(50).sum();
                            assert_eq!(sum, 1_999_000);
                            busy.store(false, Ordering::SeqCst);
                        });
                    }
                });
            }
            // As a trainer does: from outside the pool.
            scope.spawn(|| (0..200).for_each(|_| assert_eq!((0..500_u32).into_par_iter().sum::<u32>(), 124_750)));
        });
    }

    #[test]
    fn a_step_that_panics_gives_its_turn_back() {
        let panicked = std::panic::catch_unwind(|| compute(|| panic!("a broken step")));
        assert!(panicked.is_err());
        assert_eq!(compute(|| 7), 7);
    }
}
