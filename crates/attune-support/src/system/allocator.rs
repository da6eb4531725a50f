//! What this process asks of its allocator, so that its resident memory is what it uses: freed memory goes back to the
//! system after a while, or at once where a lot of it was freed for good; and zeros take no memory.

use std::ffi::c_long;
use std::sync::{Mutex, PoisonError};

/// Milliseconds after which freed memory goes back to the system. Steps and batches take and free the same tens of MiB
/// again and again; with the allocator's own 10 ms, clearing fresh memory took a tenth of the time of long prompts.
const KEEP_FREED_MS: c_long = 1000;

/// Value of `mi_option_purge_delay` of mimalloc.h, for which the crate has no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// How many want freed memory to go back at once.
static AT_ONCE: Mutex<usize> = Mutex::new(0);

/// Freed memory goes back to the system at once while this lives, if mimalloc is the program's allocator. For the load of a
/// model: it frees much that lies between what stays, and of that [`give_back_freed_memory`] finds a part only (mimalloc 3
/// forgets pieces that it meant to give back later: of Gemma's vocabulary they are 12 MiB).
#[derive(Debug)]
pub struct FreeAtOnce(());

impl FreeAtOnce {
    /// Begins to give back at once.
    #[allow(clippy::new_without_default, reason = "it changes the whole process")]
    pub fn new() -> Self {
        Self::change(|count| count + 1);
        Self(())
    }

    fn change(count: impl FnOnce(usize) -> usize) {
        let mut at_once = AT_ONCE.lock().unwrap_or_else(PoisonError::into_inner);
        *at_once = count(*at_once);
        let delay = if *at_once > 0 { 0 } else { KEEP_FREED_MS };
        // SAFETY: writes one aligned word, under the lock. Threads that free memory at this moment read the number from before
        // or this one, and may act by either.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, delay) };
    }
}

impl Drop for FreeAtOnce {
    fn drop(&mut self) {
        Self::change(|count| count.saturating_sub(1));
    }
}

/// Lets mimalloc, if that is the program's allocator, keep freed memory for a while.
///
/// # Safety
/// No other thread may be running yet.
pub unsafe fn keep_freed_memory() {
    // SAFETY: the caller promises that no other thread runs.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEEP_FREED_MS) };
}

/// Gives the memory that this thread has freed back to the system now, if mimalloc is the program's allocator. For
/// after the load of a model, which takes and frees more than requests ever take again.
pub fn give_back_freed_memory() {
    let at_once = true;
    // SAFETY: may be called at any time; it touches only memory that nobody owns.
    unsafe { libmimalloc_sys::mi_collect(at_once) };
}

/// Does the same for the threads of the pool as well, each once it is free; waits for none of them.
pub fn give_back_freed_memory_of_pool() {
    give_back_freed_memory();
    rayon::spawn_broadcast(|_| give_back_freed_memory());
}

/// Makes zeros that take no memory until something else is written over them, and then no more than that, in small pages. The
/// allocator's own zeros may lie in memory that was used before: clearing it makes all of it resident.
pub fn untouched_zeros(count: usize) -> Vec<f32> {
    let mut zeros = vec![0.0; count];
    untouch(&mut zeros);
    advise(&mut zeros, PageSize::Small);
    zeros
}

/// Gives the memory of numbers that nobody needs any more back, until they are written again: each is what it was or zero.
pub fn give_back_numbers(numbers: &mut [f32]) {
    untouch(numbers);
}

/// Pages in which the system is to hold memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum PageSize {
    Small,
    Huge,
}

/// Gives the pages within `data` back to the system, which makes zeros of them where they are touched again. If it refuses,
/// they stay as they are.
#[cfg(target_os = "linux")]
pub(super) fn untouch<T: Copy>(data: &mut [T]) {
    advise_pages(data, libc::MADV_DONTNEED);
}

/// Asks the system for pages of a size for the memory of `data`.
#[cfg(target_os = "linux")]
pub(super) fn advise<T: Copy>(data: &mut [T], size: PageSize) {
    advise_pages(data, if let PageSize::Huge = size { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
}

#[cfg(target_os = "linux")]
fn advise_pages<T: Copy>(data: &mut [T], advice: libc::c_int) {
    // SAFETY: takes a number and touches no memory.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
    if !page.is_power_of_two() {
        return;
    }
    let start = data.as_mut_ptr().cast::<u8>();
    let before = start.align_offset(page);
    let pages = size_of_val(data).saturating_sub(before) / page * page;
    if pages > 0 {
        // SAFETY: the pages lie within the slice, which nobody else sees; they are memory of an allocator, private and of no
        // file, and such pages read as zeros after they were given back. All callers' types can be zeros.
        unsafe { libc::madvise(start.add(before).cast(), pages, advice) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn untouch<T: Copy>(_data: &mut [T]) {}

#[cfg(not(target_os = "linux"))]
pub(super) fn advise<T: Copy>(_data: &mut [T], _size: PageSize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_stay_zeros_without_their_pages() {
        for count in [0, 1, 1000, 1024, 5000, 1 << 20] {
            let mut zeros = vec![0.0_f32; count];
            untouch(&mut zeros);
            assert!(zeros.iter().all(|value| value.to_bits() == 0), "{count}");
        }
        let mut pages = untouched_zeros(1 << 20);
        pages[1 << 19] = 1.0;
        assert_eq!((pages.iter().sum::<f32>(), pages.len()), (1.0, 1 << 20));
    }
}
