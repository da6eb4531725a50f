//! Matrix products through the `gemm` crate, which chooses its micro-kernels by the CPU's features.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Values, tensor, with_values_mut};
use crate::Result;
use crate::lora::LoraPair;

/// Products of up to this many rows are computed as (W · xᵀ)ᵀ: with W on the left, `gemm` does not pack the large
/// matrix for so little work. Measured about three times faster between 2 and 32 rows.
const TRANSPOSED_ROWS: usize = 48;

/// A matrix in memory.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> View<'a> {
    /// Views `values` as row-major, without gaps.
    pub(super) fn dense(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Views rows of `columns` values that begin `row_stride` apart, such as one head of an interleaved tensor.
    pub(super) fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    fn check(&self) {
        let last = self.rows.saturating_sub(1) * self.row_stride + self.columns.saturating_sub(1) * self.column_stride;
        assert!(self.rows == 0 || self.columns == 0 || last < self.values.len(), "matrix lies inside its slice");
    }
}

/// Computes `dst = keep · dst + scale · a · b`; `dst` is row-major with rows `row_stride` apart.
pub(super) fn multiply(
    dst: &mut [f32],
    row_stride: usize,
    keep: Option<f32>,
    a: View<'_>,
    b: View<'_>,
    scale: f32,
    parallel: bool,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(b.rows, k, "inner sizes of a product agree");
    if m == 0 || n == 0 {
        return;
    }
    a.check();
    b.check();
    assert!((m - 1) * row_stride + n <= dst.len(), "product lies inside its output");
    let work = m * n * k;
    let parallelism = if parallel && work > 1 << 15 { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: all three matrices lie inside their slices, as asserted; `dst` is exclusive.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            row_stride as isize,
            keep.is_some(),
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            keep.unwrap_or(0.0),
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Computes `x · Wᵀ`: `[rows, in]`, `[out, in]` to `[rows, out]`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, input) = x.dims2()?;
    let (output, _) = weight.dims2()?;
    let (x, weight) = (Values::of(x)?, Values::of(weight)?);
    let (x, weight) = (View::dense(&x, rows, input), View::dense(&weight, output, input));
    let mut y = vec![0.0; rows * output];
    if (2..=TRANSPOSED_ROWS).contains(&rows) {
        let mut transposed = vec![0.0; rows * output]; // [out, rows]
        multiply(&mut transposed, rows, None, weight, x.transposed(), 1.0, true);
        for (row, y) in y.chunks_exact_mut(output).enumerate() {
            for (y, value) in y.iter_mut().zip(transposed[row..].iter().step_by(rows)) {
                *y = *value;
            }
        }
    } else {
        multiply(&mut y, output, None, x, weight.transposed(), 1.0, true);
    }
    tensor(y, (rows, output))
}

/// Computes `a · b`, or `aᵀ · b` if `transpose`.
pub fn matmul(a: &Tensor, b: &Tensor, transpose: bool) -> Result<Tensor> {
    let (a_rows, a_columns) = a.dims2()?;
    let (b_rows, b_columns) = b.dims2()?;
    let (a, b) = (Values::of(a)?, Values::of(b)?);
    let a = View::dense(&a, a_rows, a_columns);
    let a = if transpose { a.transposed() } else { a };
    let mut y = vec![0.0; a.rows * b_columns];
    multiply(&mut y, b_columns, None, a, View::dense(&b, b_rows, b_columns), 1.0, true);
    tensor(y, (a.rows, b_columns))
}

/// Adds `scale · B(A x)` to all rows of `y`, in place.
pub fn add_lora(y: Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    let ((rows, input), (output, rank)) = (x.dims2()?, pair.b.dims2()?);
    let (x, a, b) = (Values::of(x)?, Values::of(&pair.a)?, Values::of(&pair.b)?);
    let mut shrunk = vec![0.0; rows * rank]; // x · Aᵀ, [rows, rank]
    let shrink = View::dense(&a, rank, input).transposed();
    multiply(&mut shrunk, rank, None, View::dense(&x, rows, input), shrink, 1.0, true);
    with_values_mut(std::slice::from_ref(&y), &|outputs| {
        // SAFETY: the only slice of the only output.
        let y = unsafe { outputs[0].slice(0..rows * output) };
        let expand = View::dense(&b, output, rank).transposed(); // [rank, out]
        multiply(y, output, Some(1.0), View::dense(&shrunk, rows, rank), expand, pair.scale, true);
        Ok(())
    })?;
    Ok(y)
}

/// Runs `work` for each row of `dst` (`width` values), in parallel if that pays.
pub(super) fn for_rows(dst: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    const VALUES_PER_TASK: usize = 1 << 14;
    if dst.len() <= VALUES_PER_TASK {
        dst.chunks_exact_mut(width).enumerate().for_each(|(row, values)| work(row, values));
        return;
    }
    let rows_per_task = (VALUES_PER_TASK / width).max(1);
    dst.par_chunks_mut(rows_per_task * width).enumerate().for_each(|(task, chunk)| {
        for (offset, values) in chunk.chunks_exact_mut(width).enumerate() {
            work(task * rows_per_task + offset, values);
        }
    });
}

/// Runs `work` for each row of `x` (`width` values), which it changes in place; nothing else holds `x`.
pub(super) fn for_rows_in_place(x: &Tensor, width: usize, work: impl Fn(&mut [f32]) + Sync) -> Result<()> {
    with_values_mut(std::slice::from_ref(x), &|slices| {
        let [all] = slices else { return Ok(()) };
        let length = x.elem_count();
        // SAFETY: the only slice is this one, and each of its rows is handled once.
        for_rows(unsafe { all.slice(0..length) }, width, |_, row| work(row));
        Ok(())
    })
}
