//! [`Codes`] in the intrinsics of AVX2 and AVX-512.
//!
//! SAFETY of all blocks: the callers promise good pointers and the instruction set.

use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi32_si128, _mm_loadl_epi64, _mm_loadu_si128, _mm256_add_epi32, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtph_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_shuffle_epi8, _mm256_sll_epi16, _mm256_slli_epi32, _mm256_srl_epi16, _mm256_srli_epi32,
    _mm256_storeu_si256, _mm256_sub_epi8, _mm256_sub_epi32, _mm256_xor_ps, _mm256_xor_si256, _mm512_add_epi32,
    _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_shuffle_epi8, _mm512_sll_epi16, _mm512_slli_epi32, _mm512_srl_epi16, _mm512_srli_epi32,
    _mm512_storeu_si512, _mm512_sub_epi8, _mm512_sub_epi32, _mm512_xor_si512,
};

use super::super::bytes::ByteTile;
use super::super::x86::{Avx2, Avx512};
use super::Codes;
use super::instructions::Kernel;

/// Applies a function of one register to both.
macro_rules! both {
    ($pair:expr, $each:expr) => {{
        let (each, pair) = ($each, $pair);
        (each(pair.0), each(pair.1))
    }};
}

/// Returns eight unsigned bytes in 32 bits each.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
unsafe fn eight_bytes(from: *const u8) -> __m256i {
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Codes for Avx2 {
    const UNSIGNED: bool = false;

    #[inline(always)]
    unsafe fn apart<K: Kernel>(rows: usize, panels: usize, tile: &ByteTile) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn compiled<K: Kernel>(rows: usize, panels: usize, tile: &ByteTile) {
            unsafe { K::run::<Avx2>(rows, panels, tile) }
        }
        unsafe { compiled::<K>(rows, panels, tile) }
    }

    #[inline(always)]
    unsafe fn store_quad(quad: Self::Quad, to: *mut u8) {
        unsafe {
            _mm256_storeu_si256(to.cast(), quad.0);
            _mm256_storeu_si256(to.add(32).cast(), quad.1);
        }
    }

    #[inline(always)]
    unsafe fn and(quad: Self::Quad, mask: u8) -> Self::Quad {
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            both!(quad, |bytes| _mm256_and_si256(bytes, mask))
        }
    }

    #[inline(always)]
    unsafe fn or(quad: Self::Quad, other: Self::Quad) -> Self::Quad {
        unsafe { (_mm256_or_si256(quad.0, other.0), _mm256_or_si256(quad.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn right(quad: Self::Quad, places: i32) -> Self::Quad {
        unsafe { both!(quad, |bytes| _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(places))) }
    }

    #[inline(always)]
    unsafe fn left(quad: Self::Quad, places: i32) -> Self::Quad {
        unsafe { both!(quad, |bytes| _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(places))) }
    }

    #[inline(always)]
    unsafe fn lookup(quad: Self::Quad, table: *const u8) -> Self::Quad {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()));
            both!(quad, |bytes| _mm256_shuffle_epi8(table, bytes))
        }
    }

    #[inline(always)]
    unsafe fn subtract(quad: Self::Quad, number: i32) -> Self::Quad {
        unsafe {
            let number = _mm256_set1_epi8(number as i8);
            both!(quad, |bytes| _mm256_sub_epi8(bytes, number))
        }
    }

    #[inline(always)]
    unsafe fn flip(quad: Self::Quad) -> Self::Quad {
        unsafe {
            let highest = _mm256_set1_epi8(i8::MIN);
            both!(quad, |bytes| _mm256_xor_si256(bytes, highest))
        }
    }

    #[inline(always)]
    unsafe fn from_halves(from: *const u8) -> Self {
        unsafe {
            Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())))
        }
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(eight_bytes(from)), _mm256_cvtepi32_ps(eight_bytes(from.add(8)))) }
    }

    #[inline(always)]
    unsafe fn from_signed(from: *const u8) -> Self {
        unsafe {
            let eight = |from: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
            Self(eight(from), eight(from.add(8)))
        }
    }

    #[inline(always)]
    unsafe fn from_exponents(from: *const u8) -> Self {
        unsafe { Self(powers(eight_bytes(from)), powers(eight_bytes(from.add(8)))) }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn negative(self) -> Self {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_xor_ps(self.0, sign), _mm256_xor_ps(self.1, sign))
        }
    }
}

/// Returns 2 to the power of each exponent less 128: two factors, since it may be below the smallest normal number.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
unsafe fn powers(exponents: __m256i) -> __m256 {
    unsafe {
        let bias = _mm256_set1_epi32(63);
        let half = _mm256_srli_epi32::<1>(exponents);
        let power = |exponent| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(exponent, bias)));
        _mm256_mul_ps(power(half), power(_mm256_sub_epi32(exponents, half)))
    }
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Codes for Avx512 {
    const UNSIGNED: bool = true;

    #[inline(always)]
    unsafe fn apart<K: Kernel>(rows: usize, panels: usize, tile: &ByteTile) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn compiled<K: Kernel>(rows: usize, panels: usize, tile: &ByteTile) {
            unsafe { K::run::<Avx512>(rows, panels, tile) }
        }
        unsafe { compiled::<K>(rows, panels, tile) }
    }

    #[inline(always)]
    unsafe fn store_quad(quad: Self::Quad, to: *mut u8) {
        unsafe { _mm512_storeu_si512(to.cast(), quad) }
    }

    #[inline(always)]
    unsafe fn and(quad: Self::Quad, mask: u8) -> Self::Quad {
        unsafe { _mm512_and_si512(quad, _mm512_set1_epi8(mask as i8)) }
    }

    #[inline(always)]
    unsafe fn or(quad: Self::Quad, other: Self::Quad) -> Self::Quad {
        unsafe { _mm512_or_si512(quad, other) }
    }

    #[inline(always)]
    unsafe fn right(quad: Self::Quad, places: i32) -> Self::Quad {
        unsafe { _mm512_srl_epi16(quad, _mm_cvtsi32_si128(places)) }
    }

    #[inline(always)]
    unsafe fn left(quad: Self::Quad, places: i32) -> Self::Quad {
        unsafe { _mm512_sll_epi16(quad, _mm_cvtsi32_si128(places)) }
    }

    #[inline(always)]
    unsafe fn lookup(quad: Self::Quad, table: *const u8) -> Self::Quad {
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.cast())), quad) }
    }

    #[inline(always)]
    unsafe fn subtract(quad: Self::Quad, number: i32) -> Self::Quad {
        unsafe { _mm512_sub_epi8(quad, _mm512_set1_epi8(number as i8)) }
    }

    #[inline(always)]
    unsafe fn flip(quad: Self::Quad) -> Self::Quad {
        unsafe { _mm512_xor_si512(quad, _mm512_set1_epi8(i8::MIN)) }
    }

    #[inline(always)]
    unsafe fn from_halves(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn from_signed(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn from_exponents(from: *const u8) -> Self {
        unsafe {
            let exponents = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let bias = _mm512_set1_epi32(63);
            let half = _mm512_srli_epi32::<1>(exponents);
            let power = |exponent| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(exponent, bias)));
            Self(_mm512_mul_ps(power(half), power(_mm512_sub_epi32(exponents, half))))
        }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn negative(self) -> Self {
        unsafe {
            let sign = _mm512_set1_epi32(i32::MIN);
            Self(_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(self.0), sign)))
        }
    }
}
