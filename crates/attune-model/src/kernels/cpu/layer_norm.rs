//! Layer norms of rows, with their gradient. Called through [`Kernels`](crate::kernels::Kernels).

use candle_core::Tensor;
use multiversion::multiversion;

use super::rows::{for_rows, for_rows_in_place};
use super::{Values, activations, tensor, vector};
use crate::Result;

/// See [`crate::kernels::Kernels::layer_norm`].
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let width = weight.elem_count();
    let (values, weight) = (Values::of(x)?, Values::of(weight)?);
    let bias = bias.map(Values::of).transpose()?;
    let mut y = vec![0.0; values.len()];
    for_rows(&mut y, width, |row, y| {
        y.copy_from_slice(&values[row * width..(row + 1) * width]);
        norm(y, &weight, bias.as_deref(), eps);
    });
    tensor(y, x.shape())
}

/// See [`crate::kernels::Kernels::layer_norm_into`].
pub fn forward_into(x: Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let width = weight.elem_count();
    let weight = Values::of(weight)?;
    let bias = bias.map(Values::of).transpose()?;
    for_rows_in_place(&x, width, |row| norm(row, &weight, bias.as_deref(), eps))?;
    Ok(x)
}

/// Computes the gradient of [`forward`]. With n = (x − mean) / deviation and g = dy · weight:
/// dx = (g − mean(g) − n · mean(g · n)) / deviation.
pub fn backward(x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    let width = weight.elem_count();
    let (values, weight, dy) = (Values::of(x)?, Values::of(weight)?, Values::of(dy)?);
    let mut dx = vec![0.0; values.len()];
    for_rows(&mut dx, width, |row, dx| {
        let place = row * width..(row + 1) * width;
        let mut normed = values[place.clone()].to_vec();
        let inverse = standardize(&mut normed, eps);
        for ((g, dy), weight) in dx.iter_mut().zip(&dy[place]).zip(weight.iter()) {
            *g = dy * weight;
        }
        let mean = vector::sum(dx) / width as f32;
        let along = vector::dot(dx, &normed) / width as f32;
        for (dx, normed) in dx.iter_mut().zip(normed) {
            *dx = (*dx - mean - normed * along) * inverse;
        }
    });
    tensor(dx, x.shape())
}

fn norm(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    standardize(row, eps);
    match bias {
        Some(bias) => multiply_and_add(row, weight, bias),
        None => activations::multiply_each(row, weight),
    }
}

/// Replaces `row` by (row − mean) / deviation; returns 1 / deviation.
fn standardize(row: &mut [f32], eps: f32) -> f32 {
    let width = row.len() as f32;
    let mean = vector::sum(row) / width;
    vector::add_constant(row, -mean);
    let inverse = 1.0 / (vector::dot(row, row) / width + eps).sqrt();
    vector::scale(row, inverse);
    inverse
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn multiply_and_add(row: &mut [f32], weight: &[f32], bias: &[f32]) {
    for ((value, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
        *value = *value * weight + bias;
    }
}
