//! Spreads the units of a product over the pool: each thread has a contiguous share and helps the others at the end.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Units of one thread, in a cache line of its own, since all threads count on it.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

/// Parts that the remaining units of a share are divided into; a thread takes one of them at a time.
const PARTS: usize = 4;

/// Multiply-adds below which a fork costs more than it saves, from inside the pool and from outside.
const SMALL_INSIDE: usize = 1 << 16;
const SMALL_OUTSIDE: usize = 1 << 20;

/// Calls `work` with each number below `units`, on the threads of the one pool. `cost` is the total in multiply-adds.
pub(in super::super) fn share(units: usize, cost: usize, work: impl Fn(usize) + Sync) {
    let small = if rayon::current_thread_index().is_some() { SMALL_INSIDE } else { SMALL_OUTSIDE };
    let threads = rayon::current_num_threads().min(units);
    if threads <= 1 || cost < small {
        return (0..units).for_each(work);
    }
    let shares: Vec<Share> = (0..threads)
        .map(|thread| Share { next: AtomicUsize::new(thread * units / threads), end: (thread + 1) * units / threads })
        .collect();
    fork(0, threads, &|first| {
        for share in shares[first..].iter().chain(&shares[..first]) {
            loop {
                // Only a part of the rest, so that threads end together. Not a single unit, since counting waits for
                // all memory accesses before it, which is costly if units wait for memory.
                let left = share.end.saturating_sub(share.next.load(Ordering::Relaxed));
                let taken = (left / PARTS).max(1);
                let first = share.next.fetch_add(taken, Ordering::Relaxed);
                if first >= share.end {
                    break;
                }
                (first..share.end.min(first + taken)).for_each(&work);
            }
        }
    });
}

/// Calls `work` with each number from `first` up to `end`, in parallel while threads are free.
fn fork(first: usize, end: usize, work: &(impl Fn(usize) + Sync)) {
    if end - first == 1 {
        return work(first);
    }
    let middle = first.midpoint(end);
    rayon::join(|| fork(first, middle, work), || fork(middle, end, work));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_done_once() {
        for units in [0, 1, 2, 7, 100] {
            for cost in [0, usize::MAX] {
                let counts: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                share(units, cost, |unit| {
                    counts[unit].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{units} units");
            }
        }
    }
}
