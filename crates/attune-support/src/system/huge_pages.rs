//! Huge pages, which the allocator asks for everywhere: what is read as a whole is read faster from them, but a piece of memory
//! of a few KiB takes up to 2 MiB in them. The program has them only where they are worth it: for weights, for training, and
//! for encoders, whose batches are large.

use std::sync::{Mutex, PoisonError};

/// How many ask for huge pages; `None` if the process has them anyway.
static WANTED: Mutex<Option<usize>> = Mutex::new(None);

/// Memory that is touched for the first time while this lives may get huge pages.
#[derive(Debug)]
pub struct HugePages(());

/// Keeps the process from huge pages, but for those that are asked for by [`HugePages`]. The ones that it has stay.
pub fn only_asked_for_huge_pages() {
    let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    if wanted.is_none() {
        *wanted = Some(0);
        allow(false);
    }
}

impl HugePages {
    /// Asks for huge pages.
    pub fn ask() -> Self {
        change(|wanted| wanted + 1);
        Self(())
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        change(|wanted| wanted.saturating_sub(1));
    }
}

fn change(count: impl FnOnce(usize) -> usize) {
    let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(wanted) = &mut *wanted {
        *wanted = count(*wanted);
        allow(*wanted > 0);
    }
}

/// Tells the system whether the process may get huge pages; one that knows no such setting goes on as before.
#[cfg(target_os = "linux")]
fn allow(is_allowed: bool) {
    let (is_forbidden, unused): (libc::c_ulong, libc::c_ulong) = (libc::c_ulong::from(!is_allowed), 0);
    // SAFETY: takes numbers and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, is_forbidden, unused, unused, unused) };
}

#[cfg(not(target_os = "linux"))]
fn allow(_is_allowed: bool) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn is_allowed() -> bool {
        let unused: libc::c_ulong = 0;
        // SAFETY: takes numbers and touches no memory.
        unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, unused, unused, unused, unused) == 0 }
    }

    #[test]
    fn a_process_has_huge_pages_while_somebody_asks_for_them() {
        let before = HugePages::ask();
        assert!(is_allowed(), "the process is not kept from them");
        only_asked_for_huge_pages();
        assert!(!is_allowed());
        let [one, other] = [HugePages::ask(), HugePages::ask()];
        drop(one);
        assert!(is_allowed());
        drop(other);
        assert!(!is_allowed());
        drop(before);
        let _later = HugePages::ask();
        assert!(is_allowed(), "who asked before does not count");
    }
}
