//! Products of two matrices of which neither is packed: those of attention, and those of training with an adapter's
//! matrices and their gradients. The one on the right becomes panels in f32 on the way. Called by `cpu::product` and
//! `cpu::packed_attention`.
//!
//! With few columns on the right, or few inputs, packing costs next to nothing; a general product packs both sides and is
//! several times slower for such shapes.

use std::cell::RefCell;
use std::mem::take;

use super::super::view::View;
use super::float::{ByColumns, F32, FloatColumns, FloatRows};
use super::level::Level;
use super::lines::Lines;
use super::pack::floats_mut;
use super::product::{CHUNK, Job, UNIT_PANELS};
use super::share::share;
use super::{Held, LANES, Line, Panels, Precision, dispatch};

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// The matrix on the right of a product.
#[derive(Clone, Copy)]
pub(in super::super) struct Right<'a> {
    /// `[outputs, inputs]`, whose rows or columns stand next to each other.
    pub(in super::super) matrix: View<'a>,
    /// Factor on all its values.
    pub(in super::super) factor: f32,
}

impl<'a> Right<'a> {
    /// Takes a matrix `[outputs, inputs]` as it is.
    pub(in super::super) fn plain(matrix: View<'a>) -> Self {
        Self { matrix, factor: 1.0 }
    }

    /// Packs the matrix for an instruction set, in the memory of `lines`.
    fn pack(self, level: Level, mut lines: Vec<Line>) -> Panels {
        let Self { matrix, factor } = self;
        let (outputs, inputs) = (matrix.rows, matrix.columns);
        lines.clear();
        lines.resize(outputs.div_ceil(LANES) * inputs, Line([0; 64]));
        for (panel, lines) in lines.chunks_exact_mut(inputs.max(1)).enumerate() {
            let lines = floats_mut(lines);
            let outputs = panel * LANES..outputs.min((panel + 1) * LANES);
            if matrix.column_stride == 1 {
                for (lane, output) in outputs.enumerate() {
                    let row = &matrix.values[output * matrix.row_stride..][..inputs];
                    for (line, value) in lines.iter_mut().zip(row) {
                        line[lane] = value * factor;
                    }
                }
            } else {
                assert!(matrix.row_stride == 1, "rows or columns stand next to each other");
                for (line, column) in lines.iter_mut().zip(matrix.values.chunks(matrix.column_stride)) {
                    for (place, value) in line.iter_mut().zip(&column[outputs.clone()]) {
                        *place = value * factor;
                    }
                }
            }
        }
        Panels {
            lines: Lines::Scratch(lines),
            lines_per_panel: inputs,
            outputs,
            inputs,
            padded_inputs: inputs,
            held: Held::Rounded(Precision::F32),
            level,
            table: [0; 32],
        }
    }
}

/// Where a product goes.
pub(in super::super) struct Output<'a> {
    /// `[rows, outputs]`
    pub(in super::super) values: &'a mut [f32],
    /// Values from one row to the next.
    pub(in super::super) stride: usize,
    /// True if the product is added to what is there.
    pub(in super::super) adds: bool,
}

/// Computes `x · Rᵀ`, `[rows, outputs]`, of `x` `[rows, inputs]` and the matrix R on the `right`, on the pool's threads.
pub(in super::super) fn multiply(y: Output<'_>, x: View<'_>, right: Right<'_>) {
    if let Some(y) = y.checked(&x, &right) {
        y.computed(x, &right.pack(Level::best(), Vec::new()), true);
    }
}

/// Computes the same on this thread: a small product among many.
pub(in super::super) fn multiply_here(y: Output<'_>, x: View<'_>, right: Right<'_>) {
    let Some(y) = y.checked(&x, &right) else { return };
    SCRATCH.with_borrow_mut(|scratch| {
        let panels = right.pack(Level::best(), take(scratch));
        y.computed(x, &panels, false);
        *scratch = panels.lines.into_scratch();
    });
}

impl Output<'_> {
    /// Checks the sizes of a product; `None` if nothing is left to compute.
    fn checked(self, x: &View<'_>, right: &Right<'_>) -> Option<Self> {
        let (rows, outputs) = (x.rows, right.matrix.rows);
        assert_eq!(x.columns, right.matrix.columns, "inner sizes of a product agree");
        x.check();
        right.matrix.check();
        if rows == 0 || outputs == 0 {
            return None;
        }
        assert!(
            outputs <= self.stride && (rows - 1) * self.stride + outputs <= self.values.len(),
            "room for a product"
        );
        if x.columns > 0 {
            return Some(self);
        }
        if !self.adds {
            self.values.chunks_mut(self.stride).take(rows).for_each(|row| row[..outputs].fill(0.0));
        }
        None
    }

    fn computed(self, x: View<'_>, panels: &Panels, in_parallel: bool) {
        let y = self.values.as_mut_ptr();
        let start = if self.adds { y.cast_const() } else { std::ptr::null() };
        let job = Job { panels, start, start_stride: self.stride, y, y_stride: self.stride };
        let units = panels.count().div_ceil(UNIT_PANELS);
        let count = x.rows.div_ceil(CHUNK);
        let unit = |index: usize| {
            let (chunk, panel) = (index / units, index % units * UNIT_PANELS);
            let rows = chunk * x.rows / count..(chunk + 1) * x.rows / count;
            let values = x.values.as_ptr();
            // SAFETY: sizes were checked, each unit is done once, and the CPU has the instruction set of the panels.
            unsafe {
                if x.column_stride == 1 {
                    let x = FloatRows { values, stride: x.row_stride };
                    dispatch::run::<FloatRows, F32>(&job, x, rows, panel);
                } else {
                    let x = FloatColumns { values, stride: x.column_stride };
                    dispatch::run::<FloatColumns, ByColumns>(&job, x, rows, panel);
                }
            }
        };
        if in_parallel {
            share(count * units, x.rows * panels.inputs * panels.outputs, unit);
        } else {
            (0..count * units).for_each(unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_close, naive, values};
    use super::*;

    /// Returns a matrix `[columns, rows]` of one `[rows, columns]`.
    fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
    }

    #[test]
    fn products_of_rows_and_columns_equal_naive_ones() {
        let shapes =
            [(1, 1, 1), (7, 3, 16), (100, 40, 17), (13, 300, 5), (97, 16, 70), (3, 600, 33), (9, 20, 1), (1, 9, 30)];
        for (rows, inputs, outputs) in shapes {
            let (x, right) = (values(rows * inputs, 1), values(outputs * inputs, 2));
            let exact = naive(&x, &right, outputs, inputs);
            let (x_columns, right_columns) = (transposed(&x, rows, inputs), transposed(&right, outputs, inputs));
            let xs = [View::dense(&x, rows, inputs), View::dense(&x_columns, inputs, rows).transposed()];
            let rights =
                [View::dense(&right, outputs, inputs), View::dense(&right_columns, inputs, outputs).transposed()];
            for (x, matrix) in xs.into_iter().flat_map(|x| rights.map(|right| (x, right))) {
                for level in Level::available() {
                    let what = format!("{level:?}, {rows} x {inputs} x {outputs}");
                    // Rows of the output stand apart, and what is between them stays.
                    let stride = outputs + 3;
                    let mut y = vec![7.0; rows * stride];
                    let panels = Right { matrix, factor: 0.5 }.pack(level, vec![Line([1; 64]); 3]);
                    for (in_parallel, times) in [(true, 0.5), (false, 1.0)] {
                        Output { values: &mut y, stride, adds: !in_parallel }.computed(x, &panels, in_parallel);
                        let inside: Vec<f32> = y.chunks(stride).flat_map(|row| row[..outputs].to_vec()).collect();
                        let expected: Vec<f64> = exact.iter().map(|value| times * value).collect();
                        assert_close(&inside, &expected, 1e-4, &what);
                        assert!(y.chunks(stride).all(|row| row[outputs..] == [7.0; 3]), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_product_over_nothing_is_zero() {
        let (x, right) = (View::dense(&[], 2, 0), Right::plain(View::dense(&[], 3, 0)));
        let mut y = [1.0; 6];
        multiply(Output { values: &mut y, stride: 3, adds: true }, x, right);
        assert!(y.iter().all(|value| value.to_bits() == 1.0_f32.to_bits()));
        multiply_here(Output { values: &mut y, stride: 3, adds: false }, x, right);
        assert!(y.iter().all(|value| value.to_bits() == 0));
    }
}
