//! The work that compiling the grammars of one request may take: a deadline, an end when nobody waits any more, and a
//! number of comparisons of patterns. llguidance cannot be stopped; [`super::weight`] keeps each of its steps small
//! enough, and between its steps the compiler asks here whether it may go on.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Largest number of patterns that are built to compare patterns with each other and with names.
const MAX_COMPARISONS: usize = 5_000;

/// Why a compile ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyEnd {
    /// It took longer than it may.
    OutOfTime,
    /// Nobody waits for it any more.
    Abandoned,
}

/// The work that the grammars of one request may take to compile, all together. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct CompileBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    limit: Duration,
    abandoned: AtomicBool,
    comparisons: AtomicUsize,
    /// 0 while it may go on, 1 if it is out of time, 2 if it was abandoned.
    end: AtomicU8,
}

/// Abandons the compile when dropped: its client has gone.
#[derive(Debug)]
pub struct AbandonOnDrop(CompileBudget);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.shared.abandoned.store(true, Ordering::Release);
    }
}

impl CompileBudget {
    /// Starts a budget that ends `limit` from now.
    pub fn new(limit: Duration) -> Self {
        let shared = Shared {
            started: Instant::now(),
            limit,
            abandoned: AtomicBool::new(false),
            comparisons: AtomicUsize::new(0),
            end: AtomicU8::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns a guard that abandons the compile when dropped.
    pub fn abandon_on_drop(&self) -> AbandonOnDrop {
        AbandonOnDrop(self.clone())
    }

    /// Returns why the compile ended early; `None` if it did not.
    pub fn early_end(&self) -> Option<EarlyEnd> {
        match self.shared.end.load(Ordering::Acquire) {
            0 => None,
            1 => Some(EarlyEnd::OutOfTime),
            _ => Some(EarlyEnd::Abandoned),
        }
    }

    /// Returns an error, which is the reason, once the compile must end.
    pub fn check(&self) -> Result<(), String> {
        let Shared { started, limit, abandoned, end, .. } = &*self.shared;
        if abandoned.load(Ordering::Acquire) {
            end.store(2, Ordering::Release);
            return Err("its client has gone".into());
        }
        if started.elapsed() > *limit {
            end.store(1, Ordering::Release);
            return Err(format!("it takes longer than {} s to compile: make it smaller", limit.as_secs()));
        }
        Ok(())
    }
}

thread_local! {
    /// The budget of what this thread compiles; `None` outside of [`within`].
    static CURRENT: RefCell<Option<CompileBudget>> = const { RefCell::new(None) };
}

/// Runs `work` within `budget`: [`check`] and [`compare`] on this thread ask it.
pub(super) fn within<T>(budget: &CompileBudget, work: impl FnOnce() -> T) -> T {
    let before = CURRENT.replace(Some(budget.clone()));
    let result = work();
    CURRENT.set(before);
    result
}

/// Returns an error once the compile of this thread must end.
pub(super) fn check() -> Result<(), String> {
    CURRENT.with_borrow(|budget| budget.as_ref().map_or(Ok(()), CompileBudget::check))
}

/// Counts a pattern that is built to be compared; an error if there were too many.
pub(super) fn compare() -> Result<(), String> {
    check()?;
    CURRENT.with_borrow(|budget| {
        let Some(budget) = budget else { return Ok(()) };
        if budget.shared.comparisons.fetch_add(1, Ordering::Relaxed) < MAX_COMPARISONS {
            return Ok(());
        }
        Err(format!(
            "its patterns need more than {MAX_COMPARISONS} comparisons with each other and with names: make the patterns \
             fewer"
        ))
    })
}
