//! Matrix products, and the low-rank part of one adapter for all rows, as training needs it.

use candle_core::{DType, Tensor};

use super::launch::Launcher;
use crate::Result;
use crate::adapters::LoraPair;

/// `x · Wᵀ` in the type of `x`.
pub fn linear(launcher: &dyn Launcher, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    launcher.product(x, &like(x, weight)?.t()?, x.dtype())
}

/// `a · b` in the type of `a`.
pub fn matmul(launcher: &dyn Launcher, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launcher.product(a, &like(a, b)?, a.dtype())
}

/// `aᵀ · b` in f32: gradients of adapters, which add up over micro-batches.
pub fn matmul_transposed(launcher: &dyn Launcher, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launcher.product(&a.t()?, &like(a, b)?, DType::F32)
}

/// See [`add_lora`](crate::model::kernels::add_lora): A and B in any type.
pub fn add_lora(launcher: &dyn Launcher, y: &Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    let shrunk = (linear(launcher, x, &pair.a)? * f64::from(pair.scale))?; // [rows, rank]
    Ok((y + linear(launcher, &shrunk, &pair.b)?)?)
}

/// `matrix` in the type of `x`.
fn like(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    Ok(matrix.to_dtype(x.dtype())?)
}
