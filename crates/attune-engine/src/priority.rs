//! Puts requests before other work: the trainer, and whoever loads adapters, calls this between pieces of work and
//! waits while requests run, for a bounded time, so that neither starves the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use parking_lot::{Condvar, Mutex};

/// Rest after a piece of side work, as a multiple of the piece: side work gets a quarter of one core at the most while
/// requests run.
const REST: u32 = 3;
/// CPU time that a piece of side work is expected to take, until it has been measured.
const PIECE: Duration = Duration::from_micros(300);
/// Time by which side work may lag behind its turns and still catch up: a thread that wakes on a busy machine waits for
/// a core, most of all where many pieces are short.
const LAG: Duration = Duration::from_millis(10);

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

    /// Marks requests as running until the guard drops, which may live on its own.
    pub fn busy_owned(self: &Arc<Self>) -> OwnedBusyGuard {
        // The guard's end is counted by the owned one.
        std::mem::forget(self.busy());
        OwnedBusyGuard(self.clone())
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

    /// Waits until no request runs, at the latest until `time`; returns false if requests still run then.
    fn idle_before(&self, time: Instant) -> bool {
        let mut busy = self.busy.lock();
        !self.idle.wait_while_until(&mut busy, |busy| busy.steps > 0, time).timed_out()
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

/// Short work beside requests that requests wait for in the end, such as loading adapters. While requests run, all of
/// it together gets a fixed part of one thread's time, first come first served; else it goes on at once.
///
/// A step is as slow as its slowest thread, so a core that is taken from it for long delays every answer.
#[derive(Debug)]
pub struct SideWork {
    priority: Arc<Priority>,
    /// When the next piece may begin while requests run.
    next: Mutex<Instant>,
}

impl SideWork {
    /// Work that lets the requests of `priority` go first.
    pub fn new(priority: Arc<Priority>) -> Self {
        Self { priority, next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn; returns true if requests run, so that the piece is to be paid for.
    fn take_turn(&self) -> bool {
        let now = Instant::now();
        let mut is_idle = self.priority.idle_before(now);
        if !is_idle {
            let turn = {
                let mut next = self.next.lock();
                let turn = next.max(now.checked_sub(LAG).unwrap_or(now));
                *next = turn + PIECE * (1 + REST);
                turn
            };
            is_idle = self.priority.idle_before(turn);
        }
        if is_idle {
            *self.next.lock() = Instant::now();
        }
        !is_idle
    }

    /// Corrects what [`SideWork::take_turn`] expected by the CPU time that the piece took.
    fn end_turn(&self, took: Duration) {
        let mut next = self.next.lock();
        *next = (*next + took * (1 + REST)).checked_sub(PIECE * (1 + REST)).unwrap_or(*next);
    }
}

/// Turns of one piece of side work after the other, on one thread.
#[derive(Debug)]
pub struct SideTurns {
    work: Arc<SideWork>,
    /// CPU time of the thread at the begin of the piece under way, if that is to be paid for.
    began: Option<Duration>,
}

impl SideTurns {
    /// Turns of a work that has not begun.
    pub fn new(work: Arc<SideWork>) -> Self {
        Self { work, began: None }
    }

    /// Ends the piece under way and waits for the turn of the next; call it before each piece, always on one thread.
    /// While requests run, a thread that works alone rests three times as long as it works.
    pub fn next(&mut self) {
        self.end();
        self.began = self.work.take_turn().then(thread_time);
    }

    fn end(&mut self) {
        if let Some(began) = self.began.take() {
            self.work.end_turn(thread_time().saturating_sub(began));
        }
    }
}

impl Drop for SideTurns {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns the CPU time of this thread: what waits, for a disk or for a core, takes nothing from requests.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Guard like [`BusyGuard`] for work that no scope encloses.
#[derive(Debug)]
pub struct OwnedBusyGuard(Arc<Priority>);

impl Drop for OwnedBusyGuard {
    fn drop(&mut self) {
        drop(BusyGuard(&self.0));
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
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Time of a piece of work in these tests.
    const WORK: Duration = Duration::from_millis(1);

    fn work_in_turns(work: &Arc<SideWork>, pieces: usize) {
        let mut turns = SideTurns::new(Arc::clone(work));
        for _ in 0..pieces {
            turns.next();
            let begin = thread_time();
            while thread_time() < begin + WORK {
                std::hint::spin_loop();
            }
        }
    }

    #[test]
    fn while_requests_run_side_work_rests_longer_than_it_works_and_still_ends() {
        let begin = Instant::now();
        let priority = Arc::new(Priority::default());
        let work = Arc::new(SideWork::new(Arc::clone(&priority)));
        let busy = priority.busy();
        work_in_turns(&work, 6);
        // A rest after each piece but the last.
        assert!(begin.elapsed() >= WORK * (6 + 5 * REST), "{:?}", begin.elapsed());

        // Several threads share the same part of the time.
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| work_in_turns(&work, 10));
            }
        });
        assert!(begin.elapsed() >= WORK * 30 * 2, "{:?}", begin.elapsed());
        drop(busy);
    }

    #[test]
    fn what_waits_for_requests_goes_on_when_they_end_and_owes_nothing_then() {
        let far = Instant::now() + Duration::from_hours(100);
        let priority = Arc::new(Priority::default());
        let work = Arc::new(SideWork::new(Arc::clone(&priority)));
        *work.next.lock() = far;
        let busy = priority.busy();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| work_in_turns(&work, 1));
            // It has taken the turn that it waits for.
            while *work.next.lock() == far {
                std::thread::yield_now();
            }
            drop(busy);
            waiting.join().unwrap();
        });
        let _busy = priority.busy();
        work_in_turns(&work, 2);
    }

    #[test]
    fn a_piece_that_waits_for_a_slow_disk_is_not_taken_for_work() {
        let priority = Arc::new(Priority::default());
        let work = Arc::new(SideWork::new(Arc::clone(&priority)));
        let _busy = priority.busy();
        let mut turns = SideTurns::new(Arc::clone(&work));
        turns.next();
        std::thread::sleep(WORK * 50);
        drop(turns);
        assert!(*work.next.lock() < Instant::now(), "the next piece may begin at once");
    }

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
