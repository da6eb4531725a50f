//! The gradient `dy · W` from the panels of W. Each panel of the transposed weight is made just before it is used, and
//! multiplied with the forward pass's own kernel. So training needs no second copy of the weights.

use std::cell::RefCell;
use std::ops::Range;

use super::super::SharedSlice;
use super::float::{F32, FloatRows};
use super::lines::Lines;
use super::pack::floats_mut;
use super::product::{CHUNK as PIECE, Job, UNIT_PANELS, pieces};
use super::share::share;
use super::{Held, LANES, Line, Panels, Precision, dispatch};

/// Outputs of the weight that are transposed at a time.
const DEPTH: usize = 512;

/// Rows of `dy` that share one transposed panel: so many that transposing costs next to nothing beside the product.
const CHUNK: usize = 512;

/// Most transposed panels at a time: as many as the second-level cache holds beside their rows of `dy`, since each pass
/// over them reads all of `dy`.
const MOST_PANELS: usize = 6;

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

impl Panels {
    /// Computes `dy · W`, `[rows, inputs]`, from `dy` `[rows, outputs]`.
    pub fn gradient(&self, dy: &[f32], rows: usize) -> Vec<f32> {
        let mut dx = vec![0.0; rows * self.inputs];
        self.gradient_into(&mut dx, dy, rows, false);
        dx
    }

    /// Adds `dy · W` to `dx`, `[rows, inputs]`.
    pub fn add_gradient(&self, dx: &mut [f32], dy: &[f32], rows: usize) {
        self.gradient_into(dx, dy, rows, true);
    }

    /// Computes `dy · W`, plus what `dx` holds if `adds`.
    fn gradient_into(&self, dx: &mut [f32], dy: &[f32], rows: usize, adds: bool) {
        assert_eq!(dy.len(), rows * self.outputs, "the gradient has the weight's height");
        assert_eq!(dx.len(), rows * self.inputs, "the result has the weight's width");
        let shared_dx = SharedSlice::new(dx);
        let chunks: Vec<Range<usize>> = pieces(rows, CHUNK).collect();
        let shares = (3 * rayon::current_num_threads()).div_ceil(chunks.len().max(1));
        let panels = self.inputs.div_ceil(LANES).div_ceil(shares).next_multiple_of(UNIT_PANELS).min(MOST_PANELS);
        let columns_per_unit = panels * LANES;
        let units = self.inputs.div_ceil(columns_per_unit);
        share(chunks.len() * units, dy.len() * self.inputs, |index| {
            let column = index % units * columns_per_unit;
            let columns = column..(column + columns_per_unit).min(self.inputs);
            SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: each unit is done once, and writes to its own rows and columns.
                unsafe { self.gradient_unit(dy, chunks[index / units].clone(), columns, (shared_dx, adds), scratch) };
            });
        });
    }

    /// Computes `rows` and `columns` of `dx`, in addition to what it holds if `adds`.
    ///
    /// # Safety
    /// No other thread may be at the same rows and columns of `dx`, which must have room for them.
    unsafe fn gradient_unit(
        &self,
        dy: &[f32],
        rows: Range<usize>,
        columns: Range<usize>,
        (dx, adds): (SharedSlice<'_>, bool),
        scratch: &mut Vec<Line>,
    ) {
        for first in (0..self.outputs).step_by(DEPTH) {
            let depth = DEPTH.min(self.outputs - first);
            let panels = self.transpose(first..first + depth, columns.clone(), std::mem::take(scratch));
            let y = dx.start.wrapping_add(columns.start);
            let start = if first == 0 && !adds { std::ptr::null() } else { y.cast_const() };
            let job = Job { panels: &panels, start, start_stride: self.inputs, y, y_stride: self.inputs };
            let x = FloatRows { values: dy[first..].as_ptr(), stride: self.outputs };
            for piece in pieces(rows.len(), PIECE) {
                for panel in (0..panels.count()).step_by(UNIT_PANELS) {
                    let rows = rows.start + piece.start..rows.start + piece.end;
                    // SAFETY: the caller's promises; `dy` and `dx` have the weight's shape.
                    unsafe { dispatch::run::<FloatRows, F32>(&job, x, rows, panel) };
                }
            }
            *scratch = panels.lines.into_scratch();
        }
    }

    /// Returns the transposed weight's panels: `columns` of the weight as outputs, `outputs` as the depth. Reuses the
    /// memory of `lines`.
    fn transpose(&self, outputs: Range<usize>, columns: Range<usize>, mut lines: Vec<Line>) -> Self {
        let depth = outputs.len();
        let count = columns.len().div_ceil(LANES);
        lines.clear();
        lines.resize(count * depth, Line([0; 64]));
        let mut tile = [[0.0; LANES]; LANES];
        for (panel, lines) in lines.chunks_exact_mut(depth).enumerate() {
            let first_column = columns.start + panel * LANES;
            let width = LANES.min(columns.end - first_column);
            for (block, rows) in lines.chunks_mut(LANES).enumerate() {
                // `outputs` begins at a whole panel.
                self.unpack_tile(outputs.start / LANES + block, first_column, &mut tile[..width]);
                for (lane, row) in floats_mut(rows).iter_mut().enumerate() {
                    for (value, tile) in row.iter_mut().zip(&tile) {
                        *value = tile[lane];
                    }
                }
            }
        }
        Self {
            lines: Lines::Scratch(lines),
            lines_per_panel: depth,
            outputs: columns.len(),
            inputs: depth,
            padded_inputs: depth,
            held: Held::Rounded(Precision::F32),
            level: self.level,
            table: [0; 32],
        }
    }
}
