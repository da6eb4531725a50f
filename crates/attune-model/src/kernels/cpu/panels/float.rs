//! The micro-kernel over f32 and bf16 weights: a tile of rows times one or two panels, sums in registers.

use std::array;

use super::super::fetch;
use super::lanes::{Lanes, each_row};
use super::product::{Format, Input, Tile};

/// Rows of f32 activations.
#[derive(Clone, Copy)]
pub(super) struct FloatRows {
    pub(super) values: *const f32,
    /// Values from one row to the next.
    pub(super) stride: usize,
}

// SAFETY: the pointer comes from a shared slice that outlives the product, and is only read.
unsafe impl Send for FloatRows {}
// SAFETY: as above.
unsafe impl Sync for FloatRows {}

impl Input for FloatRows {
    unsafe fn at(self, row: usize, depth: usize) -> Self {
        // SAFETY: the place lies inside the activations, as the caller promises.
        Self { values: unsafe { self.values.add(row * self.stride + depth) }, stride: self.stride }
    }
}

/// Rows of f32 activations that stand in the columns of a matrix.
#[derive(Clone, Copy)]
pub(super) struct FloatColumns {
    pub(super) values: *const f32,
    /// Values from one input to the next.
    pub(super) stride: usize,
}

// SAFETY: as above.
unsafe impl Send for FloatColumns {}
// SAFETY: as above.
unsafe impl Sync for FloatColumns {}

impl Input for FloatColumns {
    unsafe fn at(self, row: usize, depth: usize) -> Self {
        // SAFETY: the place lies inside the activations, as the caller promises.
        Self { values: unsafe { self.values.add(row + depth * self.stride) }, stride: self.stride }
    }
}

/// How the micro-kernel finds its activations.
#[allow(clippy::inline_always, reason = "part of the kernels")]
pub(super) trait FloatInput: Input {
    /// Returns the address of the first row's first value.
    fn first(self) -> *const f32;
    /// Returns the values from one row to the next.
    fn row_stride(self) -> usize;
    /// Returns the values from one input to the next.
    fn input_stride(self) -> usize;
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl FloatInput for FloatRows {
    #[inline(always)]
    fn first(self) -> *const f32 {
        self.values
    }

    #[inline(always)]
    fn row_stride(self) -> usize {
        self.stride
    }

    #[inline(always)]
    fn input_stride(self) -> usize {
        1
    }
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl FloatInput for FloatColumns {
    #[inline(always)]
    fn first(self) -> *const f32 {
        self.values
    }

    #[inline(always)]
    fn row_stride(self) -> usize {
        1
    }

    #[inline(always)]
    fn input_stride(self) -> usize {
        self.stride
    }
}

/// A storage format of single weights.
pub(super) trait Stored {
    /// Bytes of one weight.
    const BYTES: usize;
    /// Depth of a pass over a tile's rows, small enough to stay in the first-level cache.
    const DEPTH: usize;
    /// Loads 16 weights.
    unsafe fn load<S: Lanes>(from: *const u8) -> S;
}

/// Weights of 4 bytes.
pub(in super::super) struct F32;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Stored for F32 {
    const BYTES: usize = 4;
    const DEPTH: usize = 288;

    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const u8) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::load(from.cast()) }
    }
}

/// Weights of 2 bytes: the upper half of an f32.
pub(super) struct Bf16;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Stored for Bf16 {
    const BYTES: usize = 2;
    const DEPTH: usize = 576;

    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const u8) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::load_bf16(from.cast()) }
    }
}

/// [`Bf16`] with its values in their own order at every level.
pub(in super::super) struct Words;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Stored for Words {
    const BYTES: usize = 2;
    const DEPTH: usize = <Bf16 as Stored>::DEPTH;

    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const u8) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::load_words(from.cast()) }
    }
}

/// The micro-kernels over floats of one instruction set.
pub(super) trait Floats: Lanes {
    /// Returns the panels at once and the most rows in one tile, for a product of `rows` rows of floats.
    fn float_shape(rows: usize) -> (usize, usize);
    /// Runs the micro-kernel of `rows` rows and `panels` panels.
    unsafe fn float_tile<X: FloatInput, W: Stored>(rows: usize, panels: usize, tile: &Tile<X>);
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<S: Floats, W: Stored> Format<S> for W {
    type Input = FloatRows;
    const DEPTH: usize = W::DEPTH;

    #[inline(always)]
    fn offset(depth: usize) -> usize {
        depth * 16 * W::BYTES
    }

    #[inline(always)]
    fn shape(rows: usize) -> (usize, usize) {
        S::float_shape(rows)
    }

    #[inline(always)]
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile<FloatRows>) {
        // SAFETY: the caller's promises.
        unsafe { S::float_tile::<FloatRows, W>(rows, panels, tile) }
    }
}

/// Weights of 4 bytes for activations that stand in columns.
pub(super) struct ByColumns;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<S: Floats> Format<S> for ByColumns {
    type Input = FloatColumns;
    const DEPTH: usize = <F32 as Stored>::DEPTH;

    #[inline(always)]
    fn offset(depth: usize) -> usize {
        <F32 as Format<S>>::offset(depth)
    }

    #[inline(always)]
    fn shape(rows: usize) -> (usize, usize) {
        S::float_shape(rows)
    }

    #[inline(always)]
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile<FloatColumns>) {
        // SAFETY: the caller's promises.
        unsafe { S::float_tile::<FloatColumns, F32>(rows, panels, tile) }
    }
}

/// Computes `y = start + x · Wᵀ` for `ROWS` rows and `PANELS` panels. Each sum runs over the depth in order, whatever
/// `ROWS` and `PANELS` are: a row's result does not depend on the rows beside it.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
pub(super) unsafe fn kernel<S: Lanes, X: FloatInput, W: Stored, const ROWS: usize, const PANELS: usize>(
    tile: &Tile<X>,
) {
    // SAFETY: the caller promises that the tile lies inside its matrices.
    unsafe {
        let mut sums = [[S::zero(); PANELS]; ROWS];
        tile.load_start(&mut sums);
        let mut weights = tile.weights;
        // One pointer for three rows: x86 addresses 0, 1 and 2 strides from it.
        let stride = tile.x.row_stride();
        let mut x: [*const f32; 6] = array::from_fn(|group| tile.x.first().wrapping_add(3 * group * stride));
        let step = tile.line_bytes / tile.ahead.tiles;
        let mut ahead = tile.ahead.weights;
        for _ in 0..tile.depth {
            fetch(ahead);
            if PANELS > 1 {
                fetch(ahead.wrapping_add(tile.panel_bytes));
            }
            ahead = ahead.wrapping_add(step);
            let first: S = W::load(weights);
            let second: S = if PANELS > 1 { W::load(weights.add(tile.panel_bytes)) } else { first };
            each_row!(ROWS, row, {
                let x = *x[row / 3].add(row % 3 * stride);
                sums[row][0] = sums[row][0].add_product(first, x);
                if PANELS > 1 {
                    sums[row][PANELS - 1] = sums[row][PANELS - 1].add_product(second, x);
                }
            });
            weights = weights.wrapping_add(tile.line_bytes);
            for x in &mut x {
                *x = x.wrapping_add(tile.x.input_stride());
            }
        }
        tile.store(&sums);
    }
}
