//! The micro-kernel over 8-bit weights and activations of 16 or 8 bits: integer sums inside a block of 32 inputs, f32
//! across blocks.
//!
//! A **wide** block of a panel is 8 cache lines of weights, each with 4 inputs of 16 outputs, then lines with the 16
//! outputs' scales: one for the block, or one for each half of it. Lines with offsets may follow. Weights of `q8_0`
//! are stored so; those of fewer bits become so on the way ([`super::coded`]). Activations are quantized per row and
//! block as they come in, each to two signed bytes whose products are summed apart: `255 · high + low`. With a single
//! byte the most probable token would be another one at three of a hundred places; for vectors of whole texts, which
//! differ by about what rounding the weights costs them, it is enough, and twice as fast.

use std::array;

use multiversion::multiversion;
use rayon::prelude::*;

use super::super::fetch;
use super::lanes::{Lanes, each_row};
use super::product::{Format, Input, Tile};

/// Inputs that share a scale.
pub(super) const BLOCK: usize = 32;

/// Inputs of one line of weights.
pub(super) const QUAD: usize = 4;

/// Lines of weights of a wide block.
pub(super) const QUADS: usize = BLOCK / QUAD;

/// Number that an activation's high byte counts.
pub(super) const RADIX: i32 = 255;

/// Largest magnitude of a byte.
const BYTE_LIMIT: i32 = 127;

/// Largest magnitude of an activation of two bytes: both are 127.
const LIMIT: f32 = (BYTE_LIMIT * RADIX + BYTE_LIMIT) as f32;

/// Quantized rows.
#[derive(Clone, Copy)]
pub(super) struct ByteRows {
    /// High bytes of the first row, or its only ones.
    pub(super) high: *const i8,
    /// Bytes from a high byte to its low one.
    pub(super) width: usize,
    /// Bytes from one row to the next.
    stride: usize,
    /// Scale of each block.
    pub(super) scales: *const f32,
    /// Start of each block's or half's integer sum.
    pub(super) starts: *const i32,
    /// Sum of each block or half, as the quantized values have it, for products with offsets.
    pub(super) sums: *const f32,
    /// Blocks in a row.
    blocks: usize,
    /// Integer sums of a block: 1, or 2 for halves.
    halves: usize,
}

// SAFETY: the pointers come from `Activations`, which outlive the product, and are only read.
unsafe impl Send for ByteRows {}
// SAFETY: as above.
unsafe impl Sync for ByteRows {}

impl Input for ByteRows {
    unsafe fn at(self, row: usize, depth: usize) -> Self {
        let block = row * self.blocks + depth / BLOCK;
        // SAFETY: the place lies inside the activations, as the caller promises.
        unsafe {
            Self {
                high: self.high.add(row * self.stride + depth),
                scales: self.scales.add(block),
                starts: self.starts.add(block * self.halves),
                sums: self.sums.wrapping_add(block * self.halves),
                ..self
            }
        }
    }
}

pub(super) type ByteTile = Tile<ByteRows>;

/// Products of bytes in one instruction set, summed as integers.
pub(super) trait Bytes: Lanes {
    /// Weights of 4 inputs for 16 outputs.
    type Quad: Copy;
    /// Integer sums of 16 outputs.
    type Sums: Copy;
    /// Returns the panels at once and the most rows in one tile, for a product of `rows` rows of bytes.
    fn byte_shape(rows: usize) -> (usize, usize);
    /// Runs the micro-kernel of `rows` rows and `panels` panels.
    unsafe fn byte_tile<W: Wide>(rows: usize, panels: usize, tile: &ByteTile);
    unsafe fn load_quad(from: *const u8) -> Self::Quad;
    unsafe fn sums(start: i32) -> Self::Sums;
    /// Adds the products with 4 inputs, which lie in the bytes of `x`.
    unsafe fn dot(sums: Self::Sums, weights: Self::Quad, x: i32) -> Self::Sums;
    /// Returns `255 · sums + start`: what sums over high bytes are, for those over the low ones to be added to.
    unsafe fn raise(sums: Self::Sums, start: i32) -> Self::Sums;
    unsafe fn add_sums(sums: Self::Sums, other: Self::Sums) -> Self::Sums;
    /// Returns `self + sums · scales · x_scale`.
    unsafe fn add_scaled(self, sums: Self::Sums, scales: Self, x_scale: f32) -> Self;
}

/// What a wide block holds beside its weights.
pub(super) trait Wide {
    /// Scales of an output: 1, or 2 for halves.
    const HALVES: usize;
    /// True if there are offsets, as many as scales.
    const OFFSETS: bool;
    /// Bytes of an activation that is multiplied with them.
    const BYTES: usize;
    /// Lines of a block.
    const LINES: usize = QUADS + Self::HALVES * if Self::OFFSETS { 2 } else { 1 };
}

/// Wide blocks with so many scales, with or without offsets, for activations of so many bytes.
pub(super) struct WideBlocks<const HALVES: usize, const OFFSETS: bool, const BYTES: usize = 2>;

impl<const HALVES: usize, const OFFSETS: bool, const BYTES: usize> Wide for WideBlocks<HALVES, OFFSETS, BYTES> {
    const HALVES: usize = HALVES;
    const OFFSETS: bool = OFFSETS;
    const BYTES: usize = BYTES;
}

/// Weight format of 8 bits and a scale for each 32 inputs, for activations of so many bytes.
pub(super) type Q8<const BYTES: usize> = WideBlocks<1, false, BYTES>;

/// Lines of a block of [`Q8`].
pub(super) const BLOCK_LINES: usize = Q8::<1>::LINES;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<S: Bytes, const BYTES: usize> Format<S> for Q8<BYTES> {
    type Input = ByteRows;
    const DEPTH: usize = 1024;

    #[inline(always)]
    fn offset(depth: usize) -> usize {
        depth / BLOCK * BLOCK_LINES * 64
    }

    #[inline(always)]
    fn shape(rows: usize) -> (usize, usize) {
        S::byte_shape(rows)
    }

    #[inline(always)]
    unsafe fn tile(rows: usize, panels: usize, tile: &ByteTile) {
        // SAFETY: the caller's promises.
        unsafe { S::byte_tile::<Self>(rows, panels, tile) }
    }
}

/// Computes `y = start + x · Wᵀ` like the kernel for floats: each sum in order, whatever `ROWS` and `PANELS` are.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
pub(super) unsafe fn byte_kernel<S: Bytes, W: Wide, const ROWS: usize, const PANELS: usize>(tile: &ByteTile) {
    // SAFETY: the caller promises that the tile lies inside its matrices.
    unsafe {
        let mut sums = [[S::zero(); PANELS]; ROWS];
        tile.load_start(&mut sums);
        let mut weights = tile.weights;
        let mut ahead = tile.ahead.weights;
        for block in 0..tile.depth / BLOCK {
            for line in 0..W::LINES.div_ceil(tile.ahead.tiles) {
                fetch(ahead.wrapping_add(line * 64));
                if PANELS > 1 {
                    fetch(ahead.wrapping_add(tile.panel_bytes + line * 64));
                }
            }
            ahead = ahead.wrapping_add(W::LINES * 64 / tile.ahead.tiles);
            let stride = tile.x.stride;
            let high: [*const i8; 6] =
                array::from_fn(|group| tile.x.high.wrapping_add(block * BLOCK + 3 * group * stride));
            let low = high.map(|high| high.wrapping_add(tile.x.width));
            let next = weights.wrapping_add(tile.panel_bytes);
            for half in 0..W::HALVES {
                let place = |row: usize| (row * tile.x.blocks + block) * W::HALVES + half;
                let mut dots = [[S::sums(0); PANELS]; ROWS];
                if W::BYTES == 1 {
                    each_row!(ROWS, row, {
                        dots[row] = [S::sums(*tile.x.starts.add(place(row))); PANELS];
                    });
                }
                for (pass, bytes) in [high, low].into_iter().take(W::BYTES).enumerate() {
                    for quad in half * QUADS / W::HALVES..(half + 1) * QUADS / W::HALVES {
                        let first = S::load_quad(weights.add(quad * 64));
                        let second = if PANELS > 1 { S::load_quad(next.add(quad * 64)) } else { first };
                        each_row!(ROWS, row, {
                            let x = bytes[row / 3].add(row % 3 * stride + quad * QUAD).cast::<i32>().read_unaligned();
                            dots[row][0] = S::dot(dots[row][0], first, x);
                            if PANELS > 1 {
                                dots[row][PANELS - 1] = S::dot(dots[row][PANELS - 1], second, x);
                            }
                        });
                    }
                    if pass == 0 && W::BYTES == 2 {
                        each_row!(ROWS, row, {
                            let start = *tile.x.starts.add(place(row));
                            dots[row][0] = S::raise(dots[row][0], start);
                            if PANELS > 1 {
                                dots[row][PANELS - 1] = S::raise(dots[row][PANELS - 1], start);
                            }
                        });
                    }
                }
                let factor = |from: *const u8, line: usize| S::load(from.add((QUADS + line) * 64).cast());
                let first = factor(weights, half);
                let second = if PANELS > 1 { factor(next, half) } else { first };
                each_row!(ROWS, row, {
                    let x_scale = *tile.x.scales.add(row * tile.x.blocks + block);
                    sums[row][0] = sums[row][0].add_scaled(dots[row][0], first, x_scale);
                    if PANELS > 1 {
                        sums[row][PANELS - 1] =
                            sums[row][PANELS - 1].add_scaled(dots[row][PANELS - 1], second, x_scale);
                    }
                });
                if W::OFFSETS {
                    let first = factor(weights, W::HALVES + half);
                    let second = if PANELS > 1 { factor(next, W::HALVES + half) } else { first };
                    each_row!(ROWS, row, {
                        let x_sum = *tile.x.sums.add(place(row));
                        sums[row][0] = sums[row][0].add_product(first, x_sum);
                        if PANELS > 1 {
                            sums[row][PANELS - 1] = sums[row][PANELS - 1].add_product(second, x_sum);
                        }
                    });
                }
            }
            weights = weights.add(W::LINES * 64);
        }
        tile.store(&sums);
    }
}

/// What a format of weights asks of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Width that rows are filled up to with zeros.
    pub(super) width: usize,
    /// Bytes of an activation: 1 or 2.
    pub(super) bytes: usize,
    /// Integer sums of a block: 1, or 2 for halves.
    pub(super) halves: usize,
    /// Number added to each stored weight, by which a sum of products is too large for each unit of activation.
    pub(super) zero: i32,
}

/// A row of activations and its quantized form: the bytes, each block's scale, and each part's start and sum.
type Row<'a> = ((&'a [f32], &'a mut [i8]), (&'a mut [f32], (&'a mut [i32], &'a mut [f32])));

/// Rows of activations, quantized for one format.
pub(super) struct Activations {
    /// The high bytes of each row, then its low ones; or its only ones.
    bytes: Vec<i8>,
    scales: Vec<f32>,
    starts: Vec<i32>,
    sums: Vec<f32>,
    wanted: Wanted,
}

impl Activations {
    /// Quantizes `x`, `[rows, inputs]`.
    pub(super) fn quantize(x: &[f32], rows: usize, inputs: usize, wanted: Wanted) -> Self {
        let Wanted { width, halves, .. } = wanted;
        let (blocks, stride) = (width / BLOCK, wanted.bytes * width);
        let mut activations = Self {
            bytes: vec![0; rows * stride],
            scales: vec![0.0; rows * blocks],
            starts: vec![0; rows * blocks * halves],
            sums: vec![0.0; rows * blocks * halves],
            wanted,
        };
        if x.is_empty() {
            return activations;
        }
        let quantize = |((x, bytes), (scales, (starts, sums))): Row<'_>| {
            let (high, low) = bytes.split_at_mut(width);
            let radix = if low.is_empty() {
                quantize_row_to_bytes(x, high, scales);
                1
            } else {
                quantize_row(x, high, low, scales);
                RADIX
            };
            let total = |bytes: &[i8]| bytes.iter().map(|byte| i32::from(*byte)).sum::<i32>();
            let mut low = low.chunks_exact(BLOCK / halves).map(total);
            let high = high.chunks_exact(BLOCK / halves).map(total);
            for (part, ((high, start), sum)) in high.zip(starts).zip(sums).enumerate() {
                let total = radix * high + low.next().unwrap_or(0);
                *start = -wanted.zero * total;
                *sum = total as f32 * scales[part / halves];
            }
        };
        let Self { bytes, scales, starts, sums, .. } = &mut activations;
        if x.len() < 1 << 14 {
            let parts = starts.chunks_exact_mut(blocks * halves).zip(sums.chunks_exact_mut(blocks * halves));
            (x.chunks_exact(inputs).zip(bytes.chunks_exact_mut(stride)))
                .zip(scales.chunks_exact_mut(blocks).zip(parts))
                .for_each(quantize);
        } else {
            let parts = starts.par_chunks_exact_mut(blocks * halves).zip(sums.par_chunks_exact_mut(blocks * halves));
            (x.par_chunks_exact(inputs).zip(bytes.par_chunks_exact_mut(stride)))
                .zip(scales.par_chunks_exact_mut(blocks).zip(parts))
                .with_min_len((1 << 13) / inputs)
                .for_each(quantize);
        }
        activations
    }

    /// Returns what the activations were quantized for.
    pub(super) fn wanted(&self) -> Wanted {
        self.wanted
    }

    pub(super) fn rows(&self) -> ByteRows {
        ByteRows {
            high: self.bytes.as_ptr(),
            width: self.wanted.width,
            stride: self.wanted.bytes * self.wanted.width,
            scales: self.scales.as_ptr(),
            starts: self.starts.as_ptr(),
            sums: self.sums.as_ptr(),
            blocks: self.wanted.width / BLOCK,
            halves: self.wanted.halves,
        }
    }
}

/// Quantizes `x` in blocks: the largest magnitude of each becomes [`BYTE_LIMIT`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn quantize_row_to_bytes(x: &[f32], bytes: &mut [i8], scales: &mut [f32]) {
    for ((x, bytes), scale) in x.chunks(BLOCK).zip(bytes.chunks_exact_mut(BLOCK)).zip(scales) {
        let largest = largest(x);
        *scale = largest / BYTE_LIMIT as f32;
        // A block of (almost) zeros becomes zeros.
        let inverse = if largest < 1e-30 { 0.0 } else { BYTE_LIMIT as f32 / largest };
        for (byte, x) in bytes.iter_mut().zip(x) {
            *byte = rounded(x * inverse) as i8;
        }
    }
}

/// Quantizes `x` in blocks: the largest magnitude of each becomes [`LIMIT`]. Returns each value's two bytes.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn quantize_row(x: &[f32], high: &mut [i8], low: &mut [i8], scales: &mut [f32]) {
    let bytes = high.chunks_exact_mut(BLOCK).zip(low.chunks_exact_mut(BLOCK));
    for ((x, (high, low)), scale) in x.chunks(BLOCK).zip(bytes).zip(scales) {
        let largest = largest(x);
        *scale = largest / LIMIT;
        // A block of (almost) zeros becomes zeros.
        let inverse = if largest < 1e-30 { 0.0 } else { LIMIT / largest };
        for ((high, low), x) in high.iter_mut().zip(low).zip(x) {
            let value = rounded(x * inverse);
            // ⌊(value + 127) / 255⌋, of a number without a sign: the division is exact for 16 bits.
            let shifted = value.wrapping_add(127 + 128 * RADIX) as u32;
            let counted = (shifted.wrapping_mul(0x8081) >> 23) as i32 - 128;
            (*high, *low) = (counted as i8, value.wrapping_sub(RADIX * counted) as i8);
        }
    }
}

/// Returns the largest magnitude. Compared as integers, so that NaN counts as the largest and stays in the scale.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().map_or(0.0, f32::from_bits)
}

/// Rounds to the nearest integer: adding 1.5·2^23 does so, and leaves it in the lowest bits.
#[allow(clippy::inline_always, reason = "as above")]
#[inline(always)]
pub(super) fn rounded(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4b40_0000)
}
