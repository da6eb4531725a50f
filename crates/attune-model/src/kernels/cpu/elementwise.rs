//! Norms, rotation, activation and logits: work on rows, memory bound, spread over the pool.

use candle_core::Tensor;

use super::activations::{self, Gated};
use super::rows::{for_rows, for_rows_in_place};
use super::{Values, tensor, vector, with_values_mut};
use crate::Result;
use crate::kernels::{Activation, LogitForm};
use crate::rope::Angles;

/// See [`crate::kernels::Kernels::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let width = weight.elem_count();
    let (values, weight) = (Values::of(x)?, Values::of(weight)?);
    let mut y = vec![0.0; values.len()];
    for_rows(&mut y, width, |row, y| {
        let x = &values[row * width..(row + 1) * width];
        let inverse = 1.0 / (vector::dot(x, x) / width as f32 + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight.iter()) {
            *y = x * inverse * weight;
        }
    });
    tensor(y, x.shape())
}

/// Computes the gradient of [`rms_norm`]. With r = 1 / rms(x) and g = dy · weight:
/// dx = r · g − x · r³ · (g · x) / width.
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    let width = weight.elem_count();
    let (values, weight, dy) = (Values::of(x)?, Values::of(weight)?, Values::of(dy)?);
    let mut dx = vec![0.0; values.len()];
    for_rows(&mut dx, width, |row, dx| {
        let x = &values[row * width..(row + 1) * width];
        let dy = &dy[row * width..(row + 1) * width];
        let inverse = 1.0 / (vector::dot(x, x) / width as f32 + eps).sqrt();
        for ((g, dy), weight) in dx.iter_mut().zip(dy).zip(weight.iter()) {
            *g = dy * weight;
        }
        let shared = vector::dot(dx, x) * inverse * inverse * inverse / width as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = *dx * inverse - x * shared;
        }
    });
    tensor(dx, x.shape())
}

/// Rotates the first elements of each head, as many as there are angles for, forwards (`direction` 1) or backwards
/// (−1).
pub fn rope(x: &Tensor, angles: &Angles, direction: f32) -> Result<Tensor> {
    let (_, heads, head_dim) = x.dims3()?;
    let half = angles.half(head_dim)?;
    let (values, cos, sin) = (Values::of(x)?, Values::of(&angles.cos)?, Values::of(&angles.sin)?);
    let width = heads * head_dim;
    let mut y = vec![0.0; values.len()];
    for_rows(&mut y, width, |row, y| {
        let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
        let x = &values[row * width..(row + 1) * width];
        for (y, x) in y.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
            let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
            y2[half..].copy_from_slice(&x2[half..]);
            for i in 0..half {
                let sin = sin[i] * direction;
                y1[i] = x1[i] * cos[i] - x2[i] * sin;
                y2[i] = x2[i] * cos[i] + x1[i] * sin;
            }
        }
    });
    tensor(y, x.shape())
}

/// See [`crate::kernels::Kernels::gated`].
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (_, width) = gate.dims2()?;
    let (gates, ups) = (Values::of(gate)?, Values::of(up)?);
    let mut y = vec![0.0; gates.len()];
    for_rows(&mut y, width, |row, y| {
        let range = row * width..(row + 1) * width;
        activations::gated(activation, y, &gates[range.clone()], &ups[range]);
    });
    tensor(y, gate.shape())
}

/// See [`crate::kernels::Kernels::gated_backward`].
pub fn gated_backward(activation: Activation, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, width) = gate.dims2()?;
    let (gates, ups, dy) = (Values::of(gate)?, Values::of(up)?, Values::of(dy)?);
    let mut dgate = vec![0.0; gates.len()];
    let mut dup = vec![0.0; gates.len()];
    let shared_dup = super::SharedSlice::new(&mut dup);
    for_rows(&mut dgate, width, |row, dgate| {
        let range = row * width..(row + 1) * width;
        // SAFETY: each row is handled once.
        let dup = unsafe { shared_dup.slice(range.clone()) };
        let saved = Gated { gate: &gates[range.clone()], up: &ups[range.clone()], dy: &dy[range] };
        activations::gated_backward(activation, dgate, dup, saved);
    });
    Ok((tensor(dgate, gate.shape())?, tensor(dup, gate.shape())?))
}

/// See [`crate::kernels::Kernels::activated`].
pub fn activated(activation: Activation, x: &Tensor) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let values = Values::of(x)?;
    let mut y = vec![0.0; values.len()];
    for_rows(&mut y, width, |row, y| {
        y.copy_from_slice(&values[row * width..(row + 1) * width]);
        activations::activate(activation, y);
    });
    tensor(y, x.shape())
}

/// See [`crate::kernels::Kernels::activated_into`].
pub fn activated_into(activation: Activation, x: Tensor) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    for_rows_in_place(&x, width, |row| activations::activate(activation, row))?;
    Ok(x)
}

/// See [`crate::kernels::Kernels::activated_backward`].
pub fn activated_backward(activation: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let (values, dy) = (Values::of(x)?, Values::of(dy)?);
    let mut dx = vec![0.0; values.len()];
    for_rows(&mut dx, width, |row, dx| {
        let place = row * width..(row + 1) * width;
        dx.copy_from_slice(&dy[place.clone()]);
        activations::multiply_slopes(activation, dx, &values[place]);
    });
    tensor(dx, x.shape())
}

/// See [`crate::kernels::Kernels::add_into`].
pub fn add_into(y: Tensor, x: &Tensor) -> Result<Tensor> {
    let (rows, width) = y.dims2()?;
    let x = Values::of(x)?;
    with_values_mut(std::slice::from_ref(&y), &|outputs| {
        // SAFETY: the only slice of the only output, whose rows are each handled once.
        let y = unsafe { outputs[0].slice(0..rows * width) };
        for_rows(y, width, |row, y| vector::add_each(y, &x[row * width..(row + 1) * width]));
        Ok(())
    })?;
    Ok(y)
}

/// See [`crate::kernels::Kernels::to_logits`].
pub fn to_logits(products: &Tensor, form: LogitForm) -> Result<Tensor> {
    let (_, classes) = products.dims2()?;
    let mut logits = Values::of(products)?.to_vec();
    for_rows(&mut logits, classes, |_, row| shape_logits(row, form));
    tensor(logits, products.shape())
}

/// Replaces products by logits.
pub(super) fn shape_logits(values: &mut [f32], form: LogitForm) {
    match form.cap {
        Some(cap) => activations::soft_cap(values, form.scale, cap),
        None => vector::scale(values, form.scale),
    }
}
