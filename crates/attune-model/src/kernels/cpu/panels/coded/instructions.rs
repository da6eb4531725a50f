//! What the kernels of numbers of a few bits do besides [`Bytes`], in each instruction set; plain loops here, the
//! others in `x86`.

use half::f16;

use super::super::bytes::{ByteTile, Bytes};
use super::super::portable::Portable;

/// A micro-kernel that is compiled once for each instruction set, not into each of its callers.
pub(in super::super) trait Kernel {
    /// Runs the kernel of `rows` rows and `panels` panels.
    unsafe fn run<S: Codes>(rows: usize, panels: usize, tile: &ByteTile);
}

/// Operations on the bytes of 4 inputs for 16 outputs, and on factors of 16 outputs.
///
/// As for all kernels, pointers must be valid, and the CPU must have the instruction set.
pub(in super::super) trait Codes: Bytes {
    /// True if products take unsigned weights, as those of VNNI do.
    const UNSIGNED: bool;
    /// Runs the kernel as a function of its own.
    unsafe fn apart<K: Kernel>(rows: usize, panels: usize, tile: &ByteTile);
    unsafe fn store_quad(quad: Self::Quad, to: *mut u8);
    unsafe fn and(quad: Self::Quad, mask: u8) -> Self::Quad;
    unsafe fn or(quad: Self::Quad, other: Self::Quad) -> Self::Quad;
    /// Shifts each byte to the right; what bits come in from its neighbour is not said.
    unsafe fn right(quad: Self::Quad, places: i32) -> Self::Quad;
    /// Shifts each byte to the left; what bits come in from its neighbour is not said.
    unsafe fn left(quad: Self::Quad, places: i32) -> Self::Quad;
    /// Replaces each number below 16 by that entry of the table.
    unsafe fn lookup(quad: Self::Quad, table: *const u8) -> Self::Quad;
    unsafe fn subtract(quad: Self::Quad, number: i32) -> Self::Quad;
    /// Adds 128 to each byte, without carry.
    unsafe fn flip(quad: Self::Quad) -> Self::Quad;
    /// Converts 16 numbers in f16.
    unsafe fn from_halves(from: *const u8) -> Self;
    /// Converts 16 unsigned bytes.
    unsafe fn from_bytes(from: *const u8) -> Self;
    /// Converts 16 signed bytes.
    unsafe fn from_signed(from: *const u8) -> Self;
    /// Returns 2 to the power of each of 16 unsigned bytes less 128.
    unsafe fn from_exponents(from: *const u8) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    unsafe fn negative(self) -> Self;
}

fn each(quad: [[i8; 4]; 16], change: impl Fn(u8) -> u8) -> [[i8; 4]; 16] {
    quad.map(|row| row.map(|byte| change(byte as u8) as i8))
}

fn converted(bytes: *const u8, convert: impl Fn(u8) -> f32) -> Portable {
    // SAFETY: 16 bytes are there, as the caller promises.
    Portable(unsafe { bytes.cast::<[u8; 16]>().read_unaligned() }.map(convert))
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Codes for Portable {
    const UNSIGNED: bool = false;

    #[inline(never)]
    unsafe fn apart<K: Kernel>(rows: usize, panels: usize, tile: &ByteTile) {
        // SAFETY: the caller's promises.
        unsafe { K::run::<Self>(rows, panels, tile) }
    }

    #[inline(always)]
    unsafe fn store_quad(quad: Self::Quad, to: *mut u8) {
        // SAFETY: 64 bytes are there, as the caller promises.
        unsafe { to.cast::<Self::Quad>().write_unaligned(quad) }
    }

    #[inline(always)]
    unsafe fn and(quad: Self::Quad, mask: u8) -> Self::Quad {
        each(quad, |byte| byte & mask)
    }

    #[inline(always)]
    unsafe fn or(mut quad: Self::Quad, other: Self::Quad) -> Self::Quad {
        for (byte, other) in quad.as_flattened_mut().iter_mut().zip(other.as_flattened()) {
            *byte |= other;
        }
        quad
    }

    #[inline(always)]
    unsafe fn right(quad: Self::Quad, places: i32) -> Self::Quad {
        each(quad, |byte| byte >> places)
    }

    #[inline(always)]
    unsafe fn left(quad: Self::Quad, places: i32) -> Self::Quad {
        each(quad, |byte| byte << places)
    }

    #[inline(always)]
    unsafe fn lookup(quad: Self::Quad, table: *const u8) -> Self::Quad {
        // SAFETY: the table has 16 bytes, as the caller promises.
        let table = unsafe { table.cast::<[u8; 16]>().read_unaligned() };
        each(quad, |byte| table[usize::from(byte & 15)])
    }

    #[inline(always)]
    unsafe fn subtract(quad: Self::Quad, number: i32) -> Self::Quad {
        each(quad, |byte| byte.wrapping_sub(number as u8))
    }

    #[inline(always)]
    unsafe fn flip(quad: Self::Quad) -> Self::Quad {
        each(quad, |byte| byte ^ 0x80)
    }

    #[inline(always)]
    unsafe fn from_halves(from: *const u8) -> Self {
        // SAFETY: 16 numbers are there, as the caller promises.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        Self(bits.map(|bits| f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        converted(from, f32::from)
    }

    #[inline(always)]
    unsafe fn from_signed(from: *const u8) -> Self {
        converted(from, |byte| f32::from(byte as i8))
    }

    #[inline(always)]
    unsafe fn from_exponents(from: *const u8) -> Self {
        converted(from, |byte| {
            // Two factors, since the power may be below the smallest normal number.
            let (exponent, half) = (u32::from(byte), u32::from(byte) / 2);
            f32::from_bits((half + 63) << 23) * f32::from_bits((exponent - half + 63) << 23)
        })
    }

    #[inline(always)]
    unsafe fn times(mut self, other: Self) -> Self {
        for (value, other) in self.0.iter_mut().zip(other.0) {
            *value *= other;
        }
        self
    }

    #[inline(always)]
    unsafe fn negative(self) -> Self {
        Self(self.0.map(|value| -value))
    }
}
