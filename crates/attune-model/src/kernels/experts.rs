//! Work beside the products of a mixture of experts, on the CPU and on a GPU. Called by the decoder and by the backward
//! pass. A GPU computes it with candle's own operations.

use candle_core::{DType, Tensor};

use super::{Kernels, cpu};
use crate::Result;
use crate::config::GluLimits;

impl Kernels {
    /// Computes gpt-oss's `(u + 1) · g · σ(α g)` with `g` = `gate`, at most the limit, and `u` = `up`, within the limit
    /// on both sides; `[rows, width]` each.
    pub fn clamped_glu(&self, gate: &Tensor, up: &Tensor, limits: GluLimits) -> Result<Tensor> {
        if self.is_cpu() {
            return cpu::experts::clamped_glu(gate, up, limits);
        }
        let (gate, up) = clamped(gate, up, limits)?;
        let swish = (&gate * sigmoid(&(&gate * f64::from(limits.alpha))?)?)?;
        Ok(((up + 1.0)? * swish)?)
    }

    /// Computes the gradients of [`Kernels::clamped_glu`] with respect to `gate` and `up`.
    pub fn clamped_glu_backward(
        &self,
        gate: &Tensor,
        up: &Tensor,
        dy: &Tensor,
        limits: GluLimits,
    ) -> Result<(Tensor, Tensor)> {
        if self.is_cpu() {
            return cpu::experts::clamped_glu_backward(gate, up, dy, limits);
        }
        let limit = f64::from(limits.limit);
        let is_free = (gate.le(limit)?.to_dtype(dy.dtype())?, up.abs()?.le(limit)?.to_dtype(dy.dtype())?);
        let (gate, up) = clamped(gate, up, limits)?;
        let alpha = f64::from(limits.alpha);
        let share = sigmoid(&(&gate * alpha)?)?;
        let slope = (&share + ((&gate * alpha)? * (&share * (1.0 - &share)?)?)?)?;
        let dgate = (((dy * (up + 1.0)?)? * slope)? * is_free.0)?;
        let dup = (((dy * &gate)? * share)? * is_free.1)?;
        Ok((dgate, dup))
    }

    /// Adds up for each row the rows of `sorted` `[rows · chosen, width]` at its `places` `[rows, chosen]`, times its
    /// `weights` `[rows, chosen]` if there are some, in this order: `[rows, width]`.
    pub fn sum_chosen(
        &self,
        sorted: &Tensor,
        places: &[u32],
        weights: Option<&[f32]>,
        chosen: usize,
    ) -> Result<Tensor> {
        if self.is_cpu() {
            return cpu::experts::sum_chosen(sorted, places, weights, chosen);
        }
        let (width, device) = (sorted.dim(1)?, sorted.device());
        let rows = places.len() / chosen.max(1);
        let gathered = sorted.index_select(&Tensor::new(places, device)?, 0)?.to_dtype(DType::F32)?;
        let gathered = gathered.reshape((rows, chosen, width))?;
        let weighted = match weights {
            Some(weights) => gathered.broadcast_mul(&Tensor::from_slice(weights, (rows, chosen, 1), device)?)?,
            None => gathered,
        };
        Ok(weighted.sum(1)?.to_dtype(sorted.dtype())?)
    }
}

fn clamped(gate: &Tensor, up: &Tensor, limits: GluLimits) -> Result<(Tensor, Tensor)> {
    let limit = f64::from(limits.limit);
    Ok((gate.minimum(limit)?, up.clamp(-limit, limit)?))
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}
