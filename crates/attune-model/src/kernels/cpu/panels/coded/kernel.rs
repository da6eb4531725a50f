//! The micro-kernel of one row over numbers of a few bits, and the widening of blocks for all else.

use std::array;
use std::marker::PhantomData;

use super::super::super::fetch;
use super::super::bytes::{BLOCK, ByteTile, QUAD, QUADS, WideBlocks};
use super::super::product::Piece;
use super::Codes;
use super::factors::Factors;
use super::instructions::Kernel;
use super::numbers::Numbers;

/// Repeats `body` for each quad of a block: shifts by its number must be constants.
macro_rules! each_quad {
    ($quad:ident, $body:block) => {
        each_quad!(@all $quad $body 0 1 2 3 4 5 6 7)
    };
    (@all $quad:ident $body:block $($number:literal)*) => {
        $({
            let $quad: usize = $number;
            $body
        })*
    };
}

/// The kernel of wide blocks.
pub(super) struct Widened<const HALVES: usize, const OFFSETS: bool>;

#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
impl<const HALVES: usize, const OFFSETS: bool> Kernel for Widened<HALVES, OFFSETS> {
    #[inline(always)]
    unsafe fn run<S: Codes>(rows: usize, panels: usize, tile: &ByteTile) {
        // SAFETY: the caller's promises.
        unsafe { S::byte_tile::<WideBlocks<HALVES, OFFSETS>>(rows, panels, tile) }
    }
}

/// The kernel of one row over the numbers as they are stored.
pub(super) struct OneRow<N, F>(PhantomData<(N, F)>);

#[allow(clippy::inline_always, reason = "as above")]
impl<N: Numbers, F: Factors> Kernel for OneRow<N, F> {
    #[inline(always)]
    unsafe fn run<S: Codes>(_rows: usize, panels: usize, tile: &ByteTile) {
        // SAFETY: the caller's promises.
        unsafe {
            match panels {
                1 => one_row::<S, N, F, 1>(tile),
                _ => one_row::<S, N, F, 2>(tile),
            }
        }
    }
}

/// Computes one row of `y = start + x · Wᵀ`, with the sums of [`byte_kernel`](super::super::bytes::byte_kernel) over
/// widened blocks in the same order.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[allow(clippy::needless_range_loop, reason = "one index for several arrays")]
#[inline(always)]
unsafe fn one_row<S: Codes, N: Numbers, F: Factors, const PANELS: usize>(tile: &ByteTile) {
    // SAFETY: the caller promises that the tile lies inside its matrices.
    unsafe {
        let mut sums = [[S::zero(); PANELS]; 1];
        tile.load_start(&mut sums);
        let [mut sums] = sums;
        let x = tile.x;
        let (mut weights, mut ahead) = (tile.weights, tile.ahead.weights);
        for group in 0..tile.depth / (BLOCK * F::BLOCKS) {
            fetch_lines::<PANELS>(ahead, tile.panel_bytes, F::LINES);
            let headers: [*const u8; PANELS] = array::from_fn(|panel| weights.wrapping_add(panel * tile.panel_bytes));
            let shared: [(S, S); PANELS] = array::from_fn(|panel| F::shared(headers[panel]));
            (weights, ahead) = (weights.wrapping_add(F::LINES * 64), ahead.wrapping_add(F::LINES * 64));
            for block in 0..F::BLOCKS {
                fetch_lines::<PANELS>(ahead, tile.panel_bytes, N::LINES);
                let place = group * F::BLOCKS + block;
                let high = x.high.add(place * BLOCK);
                let low = high.wrapping_add(x.width);
                let mut dots = [[[S::sums(0); PANELS]; 2]; 2];
                each_quad!(quad, {
                    let [high, low] = [high, low].map(|bytes| bytes.add(quad * QUAD).cast::<i32>().read_unaligned());
                    for panel in 0..PANELS {
                        let numbers = N::quad::<S>(weights.wrapping_add(panel * tile.panel_bytes), tile.table, quad);
                        let [of_high, of_low] = &mut dots[quad * F::HALVES / QUADS];
                        of_high[panel] = S::dot(of_high[panel], numbers, high);
                        of_low[panel] = S::dot(of_low[panel], numbers, low);
                    }
                });
                let x_scale = *x.scales.add(place);
                for half in 0..F::HALVES {
                    let part = block * F::HALVES + half;
                    let start = *x.starts.add(place * F::HALVES + half);
                    let [of_high, of_low] = dots[half];
                    for panel in 0..PANELS {
                        let dots = S::add_sums(S::raise(of_high[panel], start), of_low[panel]);
                        let scale = F::scale(headers[panel], shared[panel], part);
                        sums[panel] = sums[panel].add_scaled(dots, scale, x_scale);
                        if F::OFFSETS {
                            let offset = F::offset(headers[panel], shared[panel], part);
                            sums[panel] = sums[panel].add_product(offset, *x.sums.add(place * F::HALVES + half));
                        }
                    }
                }
                (weights, ahead) = (weights.wrapping_add(N::LINES * 64), ahead.wrapping_add(N::LINES * 64));
            }
        }
        tile.store(&[sums]);
    }
}

/// Prefetches lines of as many panels.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
fn fetch_lines<const PANELS: usize>(from: *const u8, panel_bytes: usize, lines: usize) {
    for line in 0..lines {
        for panel in 0..PANELS {
            fetch(from.wrapping_add(panel * panel_bytes + line * 64));
        }
    }
}

/// Widens `blocks` blocks, whole groups of them.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
pub(super) unsafe fn widen<S: Codes, N: Numbers, F: Factors>(piece: &Piece, blocks: usize, mut to: *mut u8) {
    let wide_bytes = (QUADS + F::HALVES * if F::OFFSETS { 2 } else { 1 }) * 64;
    let (mut weights, mut ahead) = (piece.weights, piece.ahead);
    for _ in 0..blocks / F::BLOCKS {
        for block in 0..F::BLOCKS {
            // SAFETY: the caller promises that the blocks lie inside a panel and that there is room for them.
            unsafe { widen_block::<S, N, F>(weights, piece.table, block, to) };
            fetch_lines::<1>(ahead, 0, N::LINES);
            (ahead, to) = (ahead.wrapping_add(N::LINES * 64), to.wrapping_add(wide_bytes));
        }
        fetch_lines::<1>(ahead, 0, F::LINES);
        ahead = ahead.wrapping_add(F::LINES * 64);
        weights = weights.wrapping_add((F::LINES + F::BLOCKS * N::LINES) * 64);
    }
}

/// Widens one block of the group at `group`.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
pub(super) unsafe fn widen_block<S: Codes, N: Numbers, F: Factors>(
    group: *const u8,
    table: *const u8,
    block: usize,
    to: *mut u8,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let lines = group.add((F::LINES + block * N::LINES) * 64);
        each_quad!(quad, {
            S::store_quad(N::quad::<S>(lines, table, quad), to.add(quad * 64));
        });
        let shared = F::shared::<S>(group);
        for half in 0..F::HALVES {
            let part = block * F::HALVES + half;
            F::scale::<S>(group, shared, part).store(to.add((QUADS + half) * 64).cast());
            if F::OFFSETS {
                let line = QUADS + F::HALVES + half;
                F::offset::<S>(group, shared, part).store(to.add(line * 64).cast());
            }
        }
    }
}
