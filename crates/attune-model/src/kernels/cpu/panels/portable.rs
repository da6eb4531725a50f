//! [`Lanes`], [`Floats`] and [`Bytes`] as plain loops, for CPUs without AVX2 and for other architectures.

use super::bytes::{ByteTile, Bytes, RADIX, Wide, byte_kernel};
use super::float::{FloatInput, Floats, Stored, kernel};
use super::lanes::{Lanes, by_rows};
use super::product::Tile;

/// Sixteen values in plain loops.
#[derive(Clone, Copy)]
pub(super) struct Portable(pub(super) [f32; 16]);

#[allow(clippy::inline_always, reason = "kernels must be compiled as one function, see above")]
impl Lanes for Portable {
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
            // `mul_add` is a slow call on targets without the instruction.
            *sum = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                weight.mul_add(x, *sum)
            } else {
                *sum + weight * x
            };
        }
        self
    }
}

#[allow(clippy::inline_always, reason = "as above")]
impl Floats for Portable {
    #[inline(always)]
    fn float_shape(_rows: usize) -> (usize, usize) {
        (1, 4)
    }

    #[inline(always)]
    unsafe fn float_tile<X: FloatInput, W: Stored>(rows: usize, _panels: usize, tile: &Tile<X>) {
        // SAFETY: the caller's promises.
        unsafe { by_rows!(rows, kernel, [Self, X, W], 1, tile; 1 2 3 4) }
    }
}

#[allow(clippy::inline_always, reason = "as above")]
impl Bytes for Portable {
    type Quad = [[i8; 4]; 16];
    type Sums = [i32; 16];

    #[inline(always)]
    fn byte_shape(_rows: usize) -> (usize, usize) {
        (1, 2)
    }

    #[inline(always)]
    unsafe fn byte_tile<W: Wide>(rows: usize, _panels: usize, tile: &ByteTile) {
        // SAFETY: the caller's promises.
        unsafe { by_rows!(rows, byte_kernel, [Self, W], 1, tile; 1 2) }
    }

    #[inline(always)]
    unsafe fn load_quad(from: *const u8) -> Self::Quad {
        // SAFETY: 64 bytes are there, as the caller promises.
        unsafe { from.cast::<Self::Quad>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn sums(start: i32) -> Self::Sums {
        [start; 16]
    }

    #[inline(always)]
    unsafe fn dot(mut sums: Self::Sums, weights: Self::Quad, x: i32) -> Self::Sums {
        let x = x.to_ne_bytes().map(|byte| i32::from(byte as i8));
        for (sum, weights) in sums.iter_mut().zip(weights) {
            for (weight, x) in weights.into_iter().zip(x) {
                *sum += i32::from(weight) * x;
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn raise(sums: Self::Sums, start: i32) -> Self::Sums {
        sums.map(|sum| RADIX * sum + start)
    }

    #[inline(always)]
    unsafe fn add_sums(mut sums: Self::Sums, other: Self::Sums) -> Self::Sums {
        for (sum, other) in sums.iter_mut().zip(other) {
            *sum += other;
        }
        sums
    }

    #[inline(always)]
    unsafe fn add_scaled(mut self, sums: Self::Sums, scales: Self, x_scale: f32) -> Self {
        for ((y, sum), scale) in self.0.iter_mut().zip(sums).zip(scales.0) {
            *y += sum as f32 * (scale * x_scale);
        }
        self
    }
}
