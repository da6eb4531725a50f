//! One function per instruction set, compiled for it, into which the loops and micro-kernels are inlined.

use std::ops::Range;

use super::level::Level;
use super::portable::Portable;
use super::product::{Format, Input, Job, unit};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
pub(super) trait Everywhere<X>:
    Format<Portable, Input = X> + Format<Avx2, Input = X> + Format<Avx512, Input = X>
{
}
#[cfg(target_arch = "x86_64")]
impl<X: Input, F> Everywhere<X> for F where
    F: Format<Portable, Input = X> + Format<Avx2, Input = X> + Format<Avx512, Input = X>
{
}
/// A format that has kernels for every instruction set.
#[cfg(not(target_arch = "x86_64"))]
pub(super) trait Everywhere<X>: Format<Portable, Input = X> {}
#[cfg(not(target_arch = "x86_64"))]
impl<X: Input, F: Format<Portable, Input = X>> Everywhere<X> for F {}

/// Runs [`unit`] in the instruction set that the panels were packed for.
///
/// # Safety
/// As for [`unit`]; the CPU must have the instruction set.
pub(super) unsafe fn run<X: Input, F: Everywhere<X>>(job: &Job<'_>, x: X, rows: Range<usize>, first_panel: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        match job.panels.level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::<X, F>(job, x, rows, first_panel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::<X, F>(job, x, rows, first_panel),
            _ => unit::<Portable, F>(job, x, rows, first_panel),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<X: Input, F: Everywhere<X>>(job: &Job<'_>, x: X, rows: Range<usize>, first_panel: usize) {
    // SAFETY: the caller's promises.
    unsafe { unit::<Avx2, F>(job, x, rows, first_panel) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn avx512<X: Input, F: Everywhere<X>>(job: &Job<'_>, x: X, rows: Range<usize>, first_panel: usize) {
    // SAFETY: the caller's promises.
    unsafe { unit::<Avx512, F>(job, x, rows, first_panel) }
}
