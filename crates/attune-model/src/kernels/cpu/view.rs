//! Matrices in memory, by rows or by columns. Called by the products of attention and of an adapter's matrices.

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

    /// Refuses a matrix that does not lie inside its slice.
    pub(super) fn check(&self) {
        let last = self.rows.saturating_sub(1) * self.row_stride + self.columns.saturating_sub(1) * self.column_stride;
        assert!(self.rows == 0 || self.columns == 0 || last < self.values.len(), "matrix lies inside its slice");
    }
}
