//! Eight floats at a time: the few operations that the serving kernels ([`super::dots`], [`super::cached_attention`])
//! are written in, once with AVX2 and FMA and once in plain Rust, chosen at run time.
//!
//! Other loops leave it to the compiler to find the lanes (`vector.rs`); here sums across lanes would cost more than
//! the products, and the compiler does not find the shuffles that save them.

/// Floats in one value of [`Lanes`].
pub(super) const LANES: usize = 8;

/// Eight floats.
///
/// # Safety
/// A type's functions may be called only if the CPU has its instructions, which [`dispatch`] makes sure of. Pointers
/// must be valid for the floats that are read or written; they need not be aligned.
pub(super) trait Lanes: Copy {
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Loads the first `count` (below 8) floats, with zeros after them.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Returns `self + a · b`.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    /// Returns the sum of each of eight values across its lanes.
    unsafe fn sums(values: [Self; LANES]) -> Self;
}

/// Work that is compiled for each kind of [`Lanes`]. `run` and what it calls must be `#[inline(always)]`.
pub(super) trait Kernel {
    /// Does the work in the instructions of `L`.
    ///
    /// # Safety
    /// The CPU must have the instructions of `L`.
    unsafe fn run<L: Lanes>(self);
}

/// Runs `kernel` with the best instructions that the CPU has.
pub(super) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has both.
        return unsafe { avx2::run(kernel) };
    }
    // SAFETY: plain Rust needs nothing.
    unsafe { kernel.run::<Plain>() }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
        _mm256_maskload_ps, _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    use super::{Kernel, LANES, Lanes};

    /// Lane masks: the eight entries from `8 − count` on choose the first `count` lanes.
    static MASKS: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    /// Runs `kernel` with AVX2 and FMA.
    ///
    /// # Safety
    /// The CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run(kernel: impl Kernel) {
        // SAFETY: the caller's promise.
        unsafe { kernel.run::<__m256>() }
    }

    // SAFETY of all blocks: the trait's callers promise AVX2 and FMA, and valid pointers.
    impl Lanes for __m256 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            debug_assert!(count < LANES, "a partial load is one of fewer than 8 floats");
            unsafe {
                let mask = _mm256_loadu_si256(MASKS.as_ptr().add(LANES - count).cast());
                _mm256_maskload_ps(from, mask)
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        unsafe fn times(self, other: Self) -> Self {
            unsafe { _mm256_mul_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn sums(v: [Self; LANES]) -> Self {
            unsafe {
                let low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
                let high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
                // Each holds the sums of its four values' lower lanes, then of their upper ones.
                let lower = _mm256_permute2f128_ps::<0x20>(low, high);
                let upper = _mm256_permute2f128_ps::<0x31>(low, high);
                _mm256_add_ps(lower, upper)
            }
        }
    }
}

/// Lanes in plain Rust, for CPUs without AVX2. Sums run in the same order; products are rounded before they are added.
#[derive(Clone, Copy)]
struct Plain([f32; LANES]);

#[allow(clippy::inline_always, reason = "the loops below are unrolled into their callers")]
impl Lanes for Plain {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        let mut values = [0.0; LANES];
        // SAFETY: the caller's promise; `count` is below 8.
        unsafe { std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count) };
        Self(values)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn plus_product(mut self, a: Self, b: Self) -> Self {
        for lane in 0..LANES {
            self.0[lane] += a.0[lane] * b.0[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn times(mut self, other: Self) -> Self {
        for lane in 0..LANES {
            self.0[lane] *= other.0[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn sums(values: [Self; LANES]) -> Self {
        Self(values.map(|Self(v)| ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work that writes eight results of every function of the trait.
    struct Everything<'a>(&'a mut [f32; 4 * LANES]);

    impl Kernel for Everything<'_> {
        #[allow(clippy::inline_always, reason = "as all kernels")]
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            let values: [f32; 64] = std::array::from_fn(|i| (i as f32 * 0.37).sin());
            let to = self.0.as_mut_ptr();
            // SAFETY: all pointers are valid for eight floats.
            unsafe {
                let rows: [L; 8] = std::array::from_fn(|i| L::load(values.as_ptr().add(8 * i)));
                L::sums(rows).store(to);
                L::load_first(values.as_ptr(), 3).plus_product(L::splat(2.0), L::splat(4.0)).store(to.add(8));
                rows[2].times(rows[1]).store(to.add(16));
                L::load_first(values.as_ptr(), 0).store(to.add(24));
            }
        }
    }

    #[test]
    fn the_instructions_of_the_cpu_do_what_plain_rust_does() {
        let (mut best, mut plain) = ([f32::NAN; 32], [f32::NAN; 32]);
        dispatch(Everything(&mut best));
        // SAFETY: plain Rust needs nothing.
        unsafe { Everything(&mut plain).run::<Plain>() };
        assert_eq!(best.map(f32::to_bits), plain.map(f32::to_bits));
        assert_eq!(best[24..], [0.0; 8]);
    }
}
