//! How an engine's thread waits for work. Called by the queues that these threads sleep in.
//!
//! Steps and batches take and free the same buffers again and again, and the allocator keeps them for the next ones: tens of
//! MiB in each thread. They go back to the system once nothing has come for a while.

use std::time::Duration;

use attune_support::system;
use parking_lot::{Condvar, MutexGuard};

/// Time without work after which memory is given back: longer than from one request of a busy client to its next.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Sleeps while `is_idle`, whose changes are told by `changed`. The lock is free meanwhile. After a while it gives freed memory
/// back, and calls `rest` for what else can be.
pub(super) fn wait_while<T>(
    changed: &Condvar,
    state: &mut MutexGuard<'_, T>,
    mut is_idle: impl FnMut(&mut T) -> bool,
    rest: impl FnOnce(),
) {
    if changed.wait_while_for(state, &mut is_idle, REST_AFTER).timed_out() {
        MutexGuard::unlocked(state, || {
            rest();
            system::give_back_freed_memory_of_pool();
        });
        changed.wait_while(state, is_idle);
    }
}
