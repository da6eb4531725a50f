//! Work beside the products of a mixture of experts: the clamped activation of gpt-oss, and the sum of what a row's
//! experts computed. Called by `kernels::experts`.

use candle_core::Tensor;

use super::rows::for_rows;
use super::{SharedSlice, Values, tensor, vector};
use crate::config::GluLimits;
use crate::{Error, Result};

/// See [`crate::kernels::Kernels::clamped_glu`].
pub fn clamped_glu(gate: &Tensor, up: &Tensor, limits: GluLimits) -> Result<Tensor> {
    let (_, width) = gate.dims2()?;
    let (gates, ups) = (Values::of(gate)?, Values::of(up)?);
    let mut y = vec![0.0; gates.len()];
    for_rows(&mut y, width, |row, y| {
        let range = row * width..(row + 1) * width;
        for ((y, gate), up) in y.iter_mut().zip(&gates[range.clone()]).zip(&ups[range]) {
            let (gate, up) = limits.clamp(*gate, *up);
            *y = (up + 1.0) * gate * sigmoid(limits.alpha * gate);
        }
    });
    tensor(y, gate.shape())
}

/// See [`crate::kernels::Kernels::clamped_glu_backward`].
pub fn clamped_glu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor, limits: GluLimits) -> Result<(Tensor, Tensor)> {
    let (_, width) = gate.dims2()?;
    let (gates, ups, dy) = (Values::of(gate)?, Values::of(up)?, Values::of(dy)?);
    let mut dgate = vec![0.0; gates.len()];
    let mut dup = vec![0.0; gates.len()];
    let shared_dup = SharedSlice::new(&mut dup);
    for_rows(&mut dgate, width, |row, dgate| {
        let range = row * width..(row + 1) * width;
        // SAFETY: each row is handled once.
        let dup = unsafe { shared_dup.slice(range.clone()) };
        for (index, (dgate, dup)) in range.zip(dgate.iter_mut().zip(dup)) {
            (*dgate, *dup) = limits.slopes(gates[index], ups[index], sigmoid);
            *dgate *= dy[index];
            *dup *= dy[index];
        }
    });
    Ok((tensor(dgate, gate.shape())?, tensor(dup, gate.shape())?))
}

/// See [`crate::kernels::Kernels::sum_chosen`].
pub fn sum_chosen(sorted: &Tensor, places: &[u32], weights: Option<&[f32]>, chosen: usize) -> Result<Tensor> {
    let (count, width) = sorted.dims2()?;
    if chosen == 0 || places.len() != count || !places.len().is_multiple_of(chosen) {
        return Err(Error::Internal(format!("{} choices of {chosen} each for {count} rows", places.len())));
    }
    let values = Values::of(sorted)?;
    let rows = count / chosen;
    let mut y = vec![0.0; rows * width];
    for_rows(&mut y, width, |row, y| {
        for choice in row * chosen..(row + 1) * chosen {
            let place = places[choice] as usize;
            vector::add_scaled(y, weights.map_or(1.0, |weights| weights[choice]), &values[place * width..][..width]);
        }
    });
    tensor(y, (rows, width))
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + vector::exp(-x))
}
