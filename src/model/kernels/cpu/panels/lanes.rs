//! Sixteen f32 values at a time, in each instruction set: what the micro-kernels are written with.
//!
//! Every method is `unsafe` for two reasons alone: pointers must be good for what is read or written, and the CPU must have
//! the instruction set. All are inlined into a function that is compiled for it ([`super::dispatch`]).

use super::float::{FloatTile, Stored};

/// Sixteen f32 values: one row of a panel.
pub(super) trait Lanes: Copy {
    /// Panels at once and most rows in one tile, for a product of `rows` rows of floats.
    fn float_shape(rows: usize) -> (usize, usize);
    /// Runs the micro-kernel of `rows` rows and `panels` panels.
    unsafe fn float_tile<W: Stored>(rows: usize, panels: usize, tile: &FloatTile);
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Widens 16 bf16 values in the order of the level.
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self + weights · x`
    unsafe fn add_product(self, weights: Self, x: f32) -> Self;
}

/// Calls `kernel` with the number of rows as a constant, so that its sums stay in registers.
macro_rules! by_rows {
    ($rows:expr, $kernel:ident, $lanes:ty, $weights:ty, $panels:literal, $tile:expr; $($count:literal)*) => {
        match $rows {
            $($count => $kernel::<$lanes, $weights, $count, $panels>($tile),)*
            _ => unreachable!("no kernel for {} rows", $rows),
        }
    };
}

/// Plain loops.
#[derive(Clone, Copy)]
pub(super) struct Portable(pub(super) [f32; 16]);

#[allow(clippy::inline_always, reason = "kernels must be compiled as one function, see above")]
impl Lanes for Portable {
    #[inline(always)]
    fn float_shape(_rows: usize) -> (usize, usize) {
        (1, 4)
    }

    #[inline(always)]
    unsafe fn float_tile<W: Stored>(rows: usize, _panels: usize, tile: &FloatTile) {
        use super::float::kernel;
        // SAFETY: the caller's promises.
        unsafe { by_rows!(rows, kernel, Self, W, 1, tile; 1 2 3 4) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 16])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 16 values are there, as the caller promises.
        Self(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: 16 values are there, as the caller promises.
        let words = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        Self(words.map(|word| f32::from_bits(u32::from(word) << 16)))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 16 places are there, as the caller promises.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add_product(mut self, weights: Self, x: f32) -> Self {
        for (sum, weight) in self.0.iter_mut().zip(weights.0) {
            // Where it is no instruction, `mul_add` is a slow call.
            *sum = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                weight.mul_add(x, *sum)
            } else {
                *sum + weight * x
            };
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    //! The same in intrinsics.

    use std::arch::x86_64::{
        __m256, __m512, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_load_si256, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
        _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
        _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    };

    use super::super::float::{FloatTile, Stored, kernel};
    use super::Lanes;

    /// Two registers of 8.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(pub(in super::super) __m256, pub(in super::super) __m256);

    /// One register of 16.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(pub(in super::super) __m512);

    // SAFETY of all blocks below: the caller promises good pointers and the instruction set.
    #[allow(clippy::inline_always, reason = "kernels must be compiled as one function, see above")]
    impl Lanes for Avx2 {
        #[inline(always)]
        fn float_shape(rows: usize) -> (usize, usize) {
            // 12 of the 16 registers hold sums.
            if rows <= 3 { (2, 3) } else { (1, 6) }
        }

        #[inline(always)]
        unsafe fn float_tile<W: Stored>(rows: usize, panels: usize, tile: &FloatTile) {
            unsafe {
                match panels {
                    1 => by_rows!(rows, kernel, Self, W, 1, tile; 1 2 3 4 5 6),
                    _ => by_rows!(rows, kernel, Self, W, 2, tile; 1 2 3),
                }
            }
        }

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            unsafe {
                let words = _mm256_load_si256(from.cast());
                let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(high))
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn add_product(self, weights: Self, x: f32) -> Self {
            unsafe {
                let x = _mm256_set1_ps(x);
                Self(_mm256_fmadd_ps(weights.0, x, self.0), _mm256_fmadd_ps(weights.1, x, self.1))
            }
        }
    }

    #[allow(clippy::inline_always, reason = "as above")]
    impl Lanes for Avx512 {
        #[inline(always)]
        fn float_shape(rows: usize) -> (usize, usize) {
            // 24 of the 32 registers hold sums; up to 16 rows, one pass over the weights is worth more.
            if (13..=16).contains(&rows) { (1, 16) } else { (2, 12) }
        }

        #[inline(always)]
        unsafe fn float_tile<W: Stored>(rows: usize, panels: usize, tile: &FloatTile) {
            unsafe {
                match panels {
                    1 => by_rows!(rows, kernel, Self, W, 1, tile; 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16),
                    _ => by_rows!(rows, kernel, Self, W, 2, tile; 1 2 3 4 5 6 7 8 9 10 11 12),
                }
            }
        }

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm512_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn add_product(self, weights: Self, x: f32) -> Self {
            unsafe { Self(_mm512_fmadd_ps(weights.0, _mm512_set1_ps(x), self.0)) }
        }
    }
}
