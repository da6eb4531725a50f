//! Sixteen f32 values at a time, in each instruction set: what the micro-kernels are written with.
//!
//! Every method is `unsafe` for two reasons alone: pointers must be good for what is read or written, and the CPU must have
//! the instruction set. All are inlined into a function that is compiled for it ([`super::dispatch`]).

use super::bytes::{ByteTile, Bytes, byte_kernel};
use super::float::{FloatTile, Stored, kernel};

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
    /// Widens 16 bf16 values in their own order, which is that of most levels.
    #[allow(clippy::inline_always, reason = "part of the kernels")]
    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        // SAFETY: the caller's promises.
        unsafe { Self::load_bf16(from) }
    }
    unsafe fn store(self, to: *mut f32);
    /// `self + weights · x`
    unsafe fn add_product(self, weights: Self, x: f32) -> Self;
}

/// Calls `kernel` with the number of rows as a constant, so that its sums stay in registers.
macro_rules! by_rows {
    (@one $kernel:ident [$($of:ty),*] $count:literal $panels:literal $tile:expr) => {
        $kernel::<$($of,)* $count, $panels>($tile)
    };
    ($rows:expr, $kernel:ident, $of:tt, $panels:literal, $tile:expr; $($count:literal)*) => {
        match $rows {
            $($count => by_rows!(@one $kernel $of $count $panels $tile),)*
            _ => unreachable!("no kernel for {} rows", $rows),
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use by_rows;

/// Repeats `body` for each row below `rows`, a constant: loops that the compiler may leave as loops would put the sums into
/// memory.
macro_rules! each_row {
    ($rows:ident, $row:ident, $body:block) => {
        each_row!(@all $rows $row $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@all $rows:ident $row:ident $body:block $($number:literal)*) => {
        $(if $number < $rows {
            let $row: usize = $number;
            $body
        })*
    };
}
pub(super) use each_row;

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
        // SAFETY: the caller's promises.
        unsafe { by_rows!(rows, kernel, [Self, W], 1, tile; 1 2 3 4) }
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

#[allow(clippy::inline_always, reason = "as above")]
impl Bytes for Portable {
    type Quad = [[i8; 4]; 16];
    type Sums = [i32; 16];

    #[inline(always)]
    fn byte_shape(_rows: usize) -> (usize, usize) {
        (1, 2)
    }

    #[inline(always)]
    unsafe fn byte_tile(rows: usize, _panels: usize, tile: &ByteTile) {
        // SAFETY: the caller's promises.
        unsafe { by_rows!(rows, byte_kernel, [Self], 1, tile; 1 2) }
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
    unsafe fn add_scaled(mut self, sums: Self::Sums, scales: Self, x_scale: f32) -> Self {
        for ((y, sum), scale) in self.0.iter_mut().zip(sums).zip(scales.0) {
            *y += sum as f32 * (scale * x_scale);
        }
        self
    }
}
