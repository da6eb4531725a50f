//! [`Lanes`], [`Floats`] and [`Bytes`] in the intrinsics of AVX2 and AVX-512.
//!
//! SAFETY of all blocks: the callers promise good pointers and the instruction set (see `lanes`).

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi32, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_sign_epi8, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_epi32,
    _mm512_add_epi32, _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_epi32,
};

use super::bytes::{ByteTile, Bytes, Wide, byte_kernel};
use super::float::{FloatInput, Floats, Stored, kernel};
use super::lanes::{Lanes, by_rows};
use super::product::Tile;

/// Two registers of 8.
#[derive(Clone, Copy)]
pub(super) struct Avx2(pub(super) __m256, pub(super) __m256);

/// One register of 16.
#[derive(Clone, Copy)]
pub(super) struct Avx512(pub(super) __m512);

#[allow(clippy::inline_always, reason = "kernels must be compiled as one function, see above")]
impl Lanes for Avx2 {
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
            let words = _mm256_loadu_si256(from.cast());
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        unsafe {
            let words = |from: *const u16| _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let widened = |words| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
            Self(widened(words(from)), widened(words(from.add(8))))
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
impl Floats for Avx2 {
    #[inline(always)]
    fn float_shape(rows: usize) -> (usize, usize) {
        // 12 of the 16 registers hold sums.
        if rows <= 3 { (2, 3) } else { (1, 6) }
    }

    #[inline(always)]
    unsafe fn float_tile<X: FloatInput, W: Stored>(rows: usize, panels: usize, tile: &Tile<X>) {
        unsafe {
            match panels {
                1 => by_rows!(rows, kernel, [Self, X, W], 1, tile; 1 2 3 4 5 6),
                _ => by_rows!(rows, kernel, [Self, X, W], 2, tile; 1 2 3),
            }
        }
    }
}

#[allow(clippy::inline_always, reason = "as above")]
impl Bytes for Avx2 {
    /// Weights of 8 outputs each.
    type Quad = (__m256i, __m256i);
    type Sums = (__m256i, __m256i);

    #[inline(always)]
    fn byte_shape(rows: usize) -> (usize, usize) {
        if rows <= 2 { (2, 2) } else { (1, 4) }
    }

    #[inline(always)]
    unsafe fn byte_tile<W: Wide>(rows: usize, panels: usize, tile: &ByteTile) {
        unsafe {
            match panels {
                1 => by_rows!(rows, byte_kernel, [Self, W], 1, tile; 1 2 3 4),
                _ => by_rows!(rows, byte_kernel, [Self, W], 2, tile; 1 2),
            }
        }
    }

    #[inline(always)]
    unsafe fn load_quad(from: *const u8) -> Self::Quad {
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }

    #[inline(always)]
    unsafe fn sums(start: i32) -> Self::Sums {
        unsafe { (_mm256_set1_epi32(start), _mm256_set1_epi32(start)) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, weights: Self::Quad, x: i32) -> Self::Sums {
        // |w| · (sign of w · x): the first factor must be unsigned, and 2 · 127 · 127 fits 16 bits.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let ones = _mm256_set1_epi16(1);
            let dot = |sum, weights| {
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones))
            };
            (dot(sums.0, weights.0), dot(sums.1, weights.1))
        }
    }

    #[inline(always)]
    unsafe fn raise(sums: Self::Sums, start: i32) -> Self::Sums {
        unsafe {
            let start = _mm256_set1_epi32(start);
            let raise = |sums| _mm256_add_epi32(_mm256_sub_epi32(_mm256_slli_epi32::<8>(sums), sums), start);
            (raise(sums.0), raise(sums.1))
        }
    }

    #[inline(always)]
    unsafe fn add_sums(sums: Self::Sums, other: Self::Sums) -> Self::Sums {
        unsafe { (_mm256_add_epi32(sums.0, other.0), _mm256_add_epi32(sums.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn add_scaled(self, sums: Self::Sums, scales: Self, x_scale: f32) -> Self {
        unsafe {
            let x_scale = _mm256_set1_ps(x_scale);
            Self(
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.0), _mm256_mul_ps(scales.0, x_scale), self.0),
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.1), _mm256_mul_ps(scales.1, x_scale), self.1),
            )
        }
    }
}

#[allow(clippy::inline_always, reason = "as above")]
impl Bytes for Avx512 {
    type Quad = __m512i;
    type Sums = __m512i;

    #[inline(always)]
    fn byte_shape(rows: usize) -> (usize, usize) {
        if (7..=12).contains(&rows) { (1, 12) } else { (2, 6) }
    }

    #[inline(always)]
    unsafe fn byte_tile<W: Wide>(rows: usize, panels: usize, tile: &ByteTile) {
        unsafe {
            match panels {
                1 => by_rows!(rows, byte_kernel, [Self, W], 1, tile; 1 2 3 4 5 6 7 8 9 10 11 12),
                _ => by_rows!(rows, byte_kernel, [Self, W], 2, tile; 1 2 3 4 5 6),
            }
        }
    }

    #[inline(always)]
    unsafe fn load_quad(from: *const u8) -> Self::Quad {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn sums(start: i32) -> Self::Sums {
        unsafe { _mm512_set1_epi32(start) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, weights: Self::Quad, x: i32) -> Self::Sums {
        // Weights are stored with 128 added, which the start of the sums takes back.
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn raise(sums: Self::Sums, start: i32) -> Self::Sums {
        unsafe {
            let raised = _mm512_sub_epi32(_mm512_slli_epi32::<8>(sums), sums);
            _mm512_add_epi32(raised, _mm512_set1_epi32(start))
        }
    }

    #[inline(always)]
    unsafe fn add_sums(sums: Self::Sums, other: Self::Sums) -> Self::Sums {
        unsafe { _mm512_add_epi32(sums, other) }
    }

    #[inline(always)]
    unsafe fn add_scaled(self, sums: Self::Sums, scales: Self, x_scale: f32) -> Self {
        unsafe {
            let scales = _mm512_mul_ps(scales.0, _mm512_set1_ps(x_scale));
            Self(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scales, self.0))
        }
    }
}

#[allow(clippy::inline_always, reason = "as above")]
impl Lanes for Avx512 {
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

#[allow(clippy::inline_always, reason = "as above")]
impl Floats for Avx512 {
    #[inline(always)]
    fn float_shape(rows: usize) -> (usize, usize) {
        // 24 of the 32 registers hold sums; up to 16 rows, one pass over the weights is worth more.
        if (13..=16).contains(&rows) { (1, 16) } else { (2, 12) }
    }

    #[inline(always)]
    unsafe fn float_tile<X: FloatInput, W: Stored>(rows: usize, panels: usize, tile: &Tile<X>) {
        unsafe {
            match panels {
                1 => by_rows!(rows, kernel, [Self, X, W], 1, tile; 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16),
                _ => by_rows!(rows, kernel, [Self, X, W], 2, tile; 1 2 3 4 5 6 7 8 9 10 11 12),
            }
        }
    }
}
