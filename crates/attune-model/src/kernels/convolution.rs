//! Gated short convolutions along sequences, on the CPU and on a GPU. Called by the decoder and by its backward pass.

use candle_core::Tensor;

use super::{CachedStep, Filters, Kernels, PackedRows, cpu, cuda};
use crate::Result;

impl Kernels {
    /// Computes C ⊙ convolve(B ⊙ x), `[rows, channels]`, inside each sequence of `rows`; `projected` is B, C and x side by
    /// side, `[rows, 3 · channels]`.
    pub fn packed_convolution(&self, projected: &Tensor, filters: &Filters, rows: &PackedRows<'_>) -> Result<Tensor> {
        match (self, &rows.tables) {
            (Self::Gpu(gpu), Some(tables)) => cuda::convolution::packed(gpu.launcher(), projected, filters, tables),
            _ => cpu::convolution::forward(projected, filters, rows.sequences),
        }
    }

    /// Computes the gradient of [`Kernels::packed_convolution`] with respect to `projected`.
    pub fn packed_convolution_backward(
        &self,
        projected: &Tensor,
        filters: &Filters,
        dy: &Tensor,
        rows: &PackedRows<'_>,
    ) -> Result<Tensor> {
        match (self, &rows.tables) {
            (Self::Gpu(gpu), Some(tables)) => {
                cuda::convolution::packed_backward(gpu.launcher(), projected, filters, dy, tables)
            }
            _ => cpu::convolution::backward(projected, filters, dy, rows.sequences),
        }
    }

    /// Computes the same for a step's new rows over the cache, `inputs` `[blocks · (taps − 1), 1, channels]` with B ⊙ x of
    /// earlier rows, and writes that of the new ones into it.
    pub fn cached_convolution(
        &self,
        projected: &Tensor,
        filters: &Filters,
        inputs: &Tensor,
        step: &CachedStep<'_>,
    ) -> Result<Tensor> {
        match (self, &step.tables) {
            (Self::Gpu(gpu), Some(tables)) => {
                cuda::convolution::cached(gpu.launcher(), projected, filters, inputs, tables)
            }
            _ => cpu::convolution::cached(projected, filters, inputs, step.sequences),
        }
    }
}
