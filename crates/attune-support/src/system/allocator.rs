//! What this process asks of its allocator, so that its resident memory is what it uses: freed memory goes back to the
//! system after a while, or at once where a lot of it was freed for good; and zeros take no memory.

use std::ffi::c_long;

/// Milliseconds after which freed memory goes back to the system. Steps and batches take and free the same tens of MiB
/// again and again; with the allocator's own 10 ms, clearing fresh memory took a tenth of the time of long prompts.
const KEEP_FREED_MS: c_long = 1000;

/// Value of `mi_option_purge_delay` of mimalloc.h, for which the crate has no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

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

/// Makes zeros that take no memory until something else is written over them. The allocator's own zeros may lie in memory
/// that was used before: clearing it makes all of it resident.
pub fn untouched_zeros(count: usize) -> Vec<f32> {
    let mut zeros = vec![0.0; count];
    untouch(&mut zeros);
    zeros
}

/// Gives the pages below `zeros` back to the system, which makes zeros of them where they are touched again.
#[cfg(target_os = "linux")]
fn untouch(zeros: &mut [f32]) {
    // SAFETY: takes a number and touches no memory.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
    if !page.is_power_of_two() {
        return;
    }
    let start = zeros.as_mut_ptr().cast::<u8>();
    let before = start.align_offset(page);
    let pages = size_of_val(zeros).saturating_sub(before) / page * page;
    if pages > 0 {
        // SAFETY: the pages lie within the slice, which nobody else sees; they are memory of an allocator, private and of no
        // file, and such pages read as zeros afterwards, as before. If the system refuses, they stay as they are.
        unsafe { libc::madvise(start.add(before).cast(), pages, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
fn untouch(_zeros: &mut [f32]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_stay_zeros_without_their_pages() {
        for count in [0, 1, 1000, 1024, 5000, 1 << 20] {
            let mut zeros = vec![0.0; count];
            untouch(&mut zeros);
            assert!(zeros.iter().all(|value| value.to_bits() == 0), "{count}");
        }
        let mut pages = untouched_zeros(1 << 20);
        pages[1 << 19] = 1.0;
        assert_eq!((pages.iter().sum::<f32>(), pages.len()), (1.0, 1 << 20));
    }
}
