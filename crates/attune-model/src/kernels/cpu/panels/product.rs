//! The loops around the micro-kernels: rows in chunks, panels in pairs, depth in blocks, rows of a chunk in tiles.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::lanes::{Lanes, each_row};
use super::{LANES, Line, Panels};

/// Rows of activations in a product, as a format reads them.
pub(super) trait Input: Copy + Send + Sync {
    /// Returns the activations from `row` and `depth` on.
    unsafe fn at(self, row: usize, depth: usize) -> Self;
}

/// A format of weights in one instruction set.
pub(super) trait Format<S: Lanes> {
    type Input: Input;
    /// Depth of a pass over a chunk's rows.
    const DEPTH: usize;
    /// Returns the bytes from the start of a panel to `depth`.
    fn offset(depth: usize) -> usize;
    /// Returns the panels at once and the most rows in one tile, for a chunk of `rows` rows.
    fn shape(rows: usize) -> (usize, usize);
    /// Runs the micro-kernel.
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile<Self::Input>);
    /// Returns the bytes of `depth` inputs of a panel as they are widened for a chunk of `rows` rows; `None` if the
    /// micro-kernel reads them as they are stored.
    #[allow(clippy::inline_always, reason = "part of the kernels")]
    #[inline(always)]
    fn widened_bytes(_rows: usize, _depth: usize) -> Option<usize> {
        None
    }
    /// Widens `depth` inputs of a panel.
    unsafe fn widen(_piece: &Piece, _depth: usize, _to: *mut u8) {}
}

/// A piece of a panel that is to be widened.
pub(super) struct Piece {
    pub(super) weights: *const u8,
    /// Values that numbers of 4 bits stand for, as in [`Tile`].
    pub(super) table: *const u8,
    /// Weights after these, to be prefetched.
    pub(super) ahead: *const u8,
}

/// Lines that [`UNIT_PANELS`] panels have at most for a pass in a format that widens.
const WIDE_LINES: usize = 384;

/// Work of one call of a micro-kernel.
pub(super) struct Tile<X> {
    pub(super) x: X,
    pub(super) weights: *const u8,
    /// Values that numbers of 4 bits stand for: 16 signed bytes, then the same with 128 added.
    pub(super) table: *const u8,
    /// True if the weights have been widened.
    pub(super) widened: bool,
    /// Bytes from one panel to the next.
    pub(super) panel_bytes: usize,
    /// Bytes from one input to the next, in the formats of floats.
    pub(super) line_bytes: usize,
    pub(super) depth: usize,
    /// Start values of the sums; null for zeros.
    pub(super) start: *const f32,
    /// Values from one row of `start` to the next; 0 if all rows share one.
    pub(super) start_stride: usize,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    pub(super) ahead: Ahead,
}

/// Weights after a tile's own, which it prefetches as it goes: the CPU's own prefetching ends with each page of memory,
/// and would leave the arithmetic waiting at the next.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// This tile's part of those weights.
    pub(super) weights: *const u8,
    /// Tiles among which they are split.
    pub(super) tiles: usize,
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<X> Tile<X> {
    #[inline(always)]
    pub(super) unsafe fn load_start<S: Lanes, const ROWS: usize, const PANELS: usize>(
        &self,
        sums: &mut [[S; PANELS]; ROWS],
    ) {
        if self.start.is_null() {
            return;
        }
        each_row!(ROWS, row, {
            // SAFETY: the tile lies inside its matrices, as the kernel's caller promises.
            unsafe {
                let start = self.start.add(row * self.start_stride);
                sums[row][0] = S::load(start);
                if PANELS > 1 {
                    sums[row][PANELS - 1] = S::load(start.add(LANES));
                }
            }
        });
    }

    #[inline(always)]
    pub(super) unsafe fn store<S: Lanes, const ROWS: usize, const PANELS: usize>(&self, sums: &[[S; PANELS]; ROWS]) {
        each_row!(ROWS, row, {
            // SAFETY: as above.
            unsafe {
                let y = self.y.add(row * self.y_stride);
                sums[row][0].store(y);
                if PANELS > 1 {
                    sums[row][PANELS - 1].store(y.add(LANES));
                }
            }
        });
    }
}

/// One product: `y = start + x · Wᵀ`.
pub(super) struct Job<'a> {
    pub(super) panels: &'a Panels,
    /// Start values of the sums, as in [`Tile`].
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    /// Output, `[rows, out]`.
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

// SAFETY: threads write to different rows or columns of `y`.
unsafe impl Send for Job<'_> {}
// SAFETY: as above.
unsafe impl Sync for Job<'_> {}

/// Panels in a unit of work.
pub(super) const UNIT_PANELS: usize = 2;

/// Most rows of a product that are computed at a time: about as many as the second-level cache holds.
pub(super) const CHUNK: usize = 96;

/// Splits `rows` into even pieces of at most `most`.
pub(super) fn pieces(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(most);
    (0..count).map(move |piece| piece * rows / count..(piece + 1) * rows / count)
}

/// Splits `rows` into even chunks of at most [`CHUNK`].
pub(super) fn chunks(rows: usize) -> Vec<Range<usize>> {
    pieces(rows, CHUNK).collect()
}

/// Computes `rows` of `job` for the panels from `first_panel` on, [`UNIT_PANELS`] of them.
///
/// # Safety
/// `x` must hold the rows, `job.y` and `job.start` must have room for them, and no other thread may be at the same
/// unit.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
pub(super) unsafe fn unit<S: Lanes, F: Format<S>>(job: &Job<'_>, x: F::Input, rows: Range<usize>, first_panel: usize) {
    let panels = job.panels;
    let (at_once, most_rows) = F::shape(rows.len());
    let last = (first_panel + UNIT_PANELS).min(panels.count());
    let mut wide = MaybeUninit::<[Line; WIDE_LINES]>::uninit();
    let mut panel = first_panel;
    while panel < last {
        let count = at_once.min(last - panel);
        let mut depth = 0;
        while depth < panels.padded_inputs {
            let length = F::DEPTH.min(panels.padded_inputs - depth);
            let end = depth + length;
            let next = if end < panels.padded_inputs { (panel, end) } else { (panel + count, 0) };
            let [mut weights, next] =
                [(panel, depth), next].map(|(panel, depth)| panels.panel(panel).wrapping_add(F::offset(depth)));
            let (mut panel_bytes, table) = (panels.panel_bytes(), panels.table.as_ptr());
            let widened = F::widened_bytes(rows.len(), length);
            if let Some(bytes) = widened {
                let to = wide.as_mut_ptr().cast::<u8>();
                assert!(count * bytes <= size_of_val(&wide), "a pass of wide panels fits its buffer");
                for index in 0..count {
                    let [weights, ahead] = [weights, next].map(|from| from.wrapping_add(index * panel_bytes));
                    // SAFETY: the weights lie inside the panel, and the buffer has room.
                    unsafe { F::widen(&Piece { weights, table, ahead }, length, to.add(index * bytes)) };
                }
                (weights, panel_bytes) = (to.cast_const(), bytes);
            }
            let tiles = rows.len().div_ceil(most_rows);
            for (index, tile_rows) in pieces(rows.len(), most_rows).enumerate() {
                let ahead = if widened.is_some() {
                    // Fetched while they were widened.
                    Ahead { weights, tiles: usize::MAX }
                } else {
                    Ahead { weights: next.wrapping_add(index * F::offset(length) / tiles), tiles }
                };
                let row = rows.start + tile_rows.start;
                let column = panel * LANES;
                let y = job.y.wrapping_add(row * job.y_stride + column);
                let (start, start_stride) = if depth > 0 {
                    (y.cast_const(), job.y_stride)
                } else if job.start.is_null() {
                    (job.start, 0)
                } else {
                    (job.start.wrapping_add(row * job.start_stride + column), job.start_stride)
                };
                // SAFETY: the row lies inside x.
                let x = unsafe { x.at(row, depth) };
                let tile = Tile {
                    x,
                    weights,
                    table,
                    widened: widened.is_some(),
                    panel_bytes,
                    line_bytes: F::offset(1),
                    depth: length,
                    start,
                    start_stride,
                    y,
                    y_stride: job.y_stride,
                    ahead,
                };
                // SAFETY: the tile lies inside its matrices, the last panel's columns apart.
                unsafe {
                    if (panel + count) * LANES <= panels.outputs {
                        F::tile(tile_rows.len(), count, &tile);
                    } else {
                        edge::<S, F>(tile_rows.len(), count, &tile, panels.outputs - column);
                    }
                }
            }
            depth = end;
        }
        panel += count;
    }
}

/// Most rows of a tile in any instruction set.
pub(super) const MOST_ROWS: usize = 16;

/// Computes a tile of which only `columns` columns exist: into a buffer, from which they are copied to the output.
///
/// # Safety
/// As for [`Format::tile`], for the columns that exist.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
unsafe fn edge<S: Lanes, F: Format<S>>(rows: usize, panels: usize, tile: &Tile<F::Input>, columns: usize) {
    const STRIDE: usize = UNIT_PANELS * LANES;
    let mut values = [0.0_f32; MOST_ROWS * STRIDE];
    let start = if tile.start.is_null() {
        std::ptr::null()
    } else {
        for (row, values) in values.chunks_exact_mut(STRIDE).take(rows).enumerate() {
            // SAFETY: these columns exist.
            let start = unsafe { std::slice::from_raw_parts(tile.start.add(row * tile.start_stride), columns) };
            values[..columns].copy_from_slice(start);
        }
        values.as_ptr()
    };
    let beside = Tile { start, start_stride: STRIDE, y: values.as_mut_ptr(), y_stride: STRIDE, ..*tile };
    // SAFETY: `values` has room for whole panels.
    unsafe { F::tile(rows, panels, &beside) };
    for (row, values) in values.chunks_exact(STRIDE).take(rows).enumerate() {
        // SAFETY: these columns exist, and are this thread's.
        unsafe { std::slice::from_raw_parts_mut(tile.y.add(row * tile.y_stride), columns) }
            .copy_from_slice(&values[..columns]);
    }
}
