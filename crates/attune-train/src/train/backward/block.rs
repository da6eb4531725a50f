//! The backward pass of one block, which mirrors [`Block::forward`] line by line, last line first. Called by
//! [`super::gradients_from_hidden`].
//!
//! Frozen weights get no gradient: a linear layer needs only W for dx, and the low-rank parts need dA and dB (Hu et al.,
//! "LoRA", 2021): dB = s · dyᵀ (x Aᵀ), dA = s · (dy B)ᵀ x, dx += s · (dy B) A, see [`low_rank`].

use candle_core::Tensor;

use super::low_rank::low_rank;
use super::{TrainContext, experts};
use crate::{Error, Result};
use attune_model::decoder::{
    Activations, Attention, AttentionActivations, Block, Convolution, ConvolutionActivations, DenseActivations,
    DenseMlp, Mixer, MixerActivations, Mlp, MlpActivations, Projection, Residual,
};
use attune_model::kernels::AttentionState;
use attune_model::lora::{LoraLayer, LoraPair};

/// Backward pass of one block.
pub(super) struct BlockBackward<'a, 'c> {
    pub(super) context: &'a TrainContext<'c>,
    pub(super) gradients: &'a mut LoraLayer,
}

impl BlockBackward<'_, '_> {
    /// Turns `dy`, the gradient of the block's output, into that of its input, `[rows, hidden]` both; `None` for the
    /// first block, whose input needs no gradient. Stores the gradients of the block's A and B.
    pub(super) fn run(&mut self, block: &Block, saved: &Activations, dy: Tensor) -> Result<Option<Tensor>> {
        // MLP: y = behind(middle + m · after(mlp(before(middle))))
        let dsum = of_sum(&block.mlp_residual, saved.mlp_branch.as_ref(), dy)?; // [rows, hidden]
        let dbranch = of_branch(&block.mlp_residual, saved.mlp_branch.as_ref(), &dsum)?; // [rows, hidden]
        let dinput = self.of_mlp(&block.mlp, &saved.mlp, &saved.mlp_input, &dbranch)?; // [rows, hidden]
        let dmiddle = self.of_input(&block.mlp_residual, &saved.middle, dinput, &dsum)?; // [rows, hidden]
        drop(dsum);

        // Mixer: middle = behind(x + m · after(mix(before(x))))
        let dsum = of_sum(&block.mixer_residual, saved.mixer_branch.as_ref(), dmiddle)?; // [rows, hidden]
        let dbranch = of_branch(&block.mixer_residual, saved.mixer_branch.as_ref(), &dsum)?;
        let is_first = block.index == 0;
        let Some(dinput) = self.of_mixer(&block.mixer, &saved.mixer, &saved.mixer_input, &dbranch, is_first)? else {
            return Ok(None);
        };
        Ok(Some(self.of_input(&block.mixer_residual, &saved.input, dinput, &dsum)?))
    }

    /// Turns the gradient of the mixer's result into that of its input `x`, `[rows, hidden]` both; `None` for the first
    /// block.
    fn of_mixer(
        &mut self,
        mixer: &Mixer,
        saved: &MixerActivations,
        x: &Tensor,
        dy: &Tensor,
        is_first: bool,
    ) -> Result<Option<Tensor>> {
        match (mixer, saved) {
            (Mixer::Attention(attention), MixerActivations::Attention(saved)) => {
                let [dq, dk, dv] = self.of_attention(attention, saved, dy)?;
                let Attention { q, k, v, .. } = attention;
                self.of_layers(&[(q, dq), (k, dk), (v, dv)], x, is_first)
            }
            (Mixer::Convolution(convolution), MixerActivations::Convolution(saved)) => {
                let dprojected = self.of_convolution(convolution, saved, dy)?;
                self.of_layers(&[(&convolution.input, dprojected)], x, is_first)
            }
            _ => Err(Error::Internal("activations of another kind of mixer".into())),
        }
    }

    /// Turns the gradients of the outputs of `layers`, `[rows, out]` each, into that of their common input `x`, `[rows,
    /// in]`; `None` for the first block.
    fn of_layers(&mut self, layers: &[(&Projection, Tensor)], x: &Tensor, is_first: bool) -> Result<Option<Tensor>> {
        let mut dx = None;
        for (layer, dy) in layers {
            if is_first {
                self.low_rank(layer, x, dy)?;
            } else {
                dx = Some(self.linear(dx, layer, x, dy)?);
            }
        }
        Ok(dx)
    }

    /// Turns the gradient of a convolution's result, `[rows, hidden]`, into that of the product with its first layer,
    /// `[rows, 3 · hidden]`.
    fn of_convolution(
        &mut self,
        convolution: &Convolution,
        saved: &ConvolutionActivations,
        dbranch: &Tensor,
    ) -> Result<Tensor> {
        let dconvolved = self.linear(None, &convolution.output, &saved.convolved, dbranch)?; // [rows, hidden]
        let (kernels, sequences) = (self.context.kernels, &self.context.sequences);
        Ok(kernels.packed_convolution_backward(&saved.projected, &convolution.filters, &dconvolved, sequences)?)
    }

    /// Turns the gradient of the MLP's result into that of its input `x`, `[rows, hidden]` both.
    fn of_mlp(&mut self, mlp: &Mlp, saved: &MlpActivations, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        match (mlp, saved) {
            (Mlp::Dense(mlp), MlpActivations::Dense(saved)) => self.of_dense_mlp(mlp, saved, x, dy),
            (Mlp::Experts(mlp), MlpActivations::Experts(saved)) => {
                experts::backward(mlp, saved, x, dy, self.context, self.gradients)
            }
            _ => Err(Error::Internal("activations of another kind of MLP".into())),
        }
    }

    /// Mirrors `W_down` · (`activation(W_gate` · m) · (`W_up` · m)), or `W_down` · `activation(W_gate` · m).
    fn of_dense_mlp(&mut self, mlp: &DenseMlp, saved: &DenseActivations, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let DenseActivations { gate, up, gated } = saved;
        let dgated = self.linear(None, &mlp.down, gated, dy)?; // [rows, intermediate]
        let kernels = self.context.kernels;
        match (&mlp.up, up) {
            (Some(up_layer), Some(up)) => {
                let (dgate, dup) = kernels.gated_backward(mlp.activation, gate, up, &dgated)?;
                let dx = self.linear(None, &mlp.gate, x, &dgate)?;
                self.linear(Some(dx), up_layer, x, &dup)
            }
            (None, None) => {
                let dgate = kernels.activated_backward(mlp.activation, gate, &dgated)?;
                self.linear(None, &mlp.gate, x, &dgate)
            }
            _ => Err(Error::Internal("activations of another kind of MLP".into())),
        }
    }

    /// Turns the gradient of attention's result, `[rows, hidden]`, into those of the products with query, key and value,
    /// `[rows, heads · head_dim]` each.
    fn of_attention(
        &mut self,
        attention: &Attention,
        saved: &AttentionActivations,
        dbranch: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let kernels = self.context.kernels;
        let (rows, shape) = (saved.q.dim(0)?, saved.q.shape().clone());
        let dattended = self.linear(None, &attention.o, &saved.attended, dbranch)?.reshape(&shape)?; // [rows, heads, d]
        let attended = saved.attended.reshape(&shape)?;
        let state =
            AttentionState { q: &saved.q, k: &saved.k, v: &saved.v, out: &attended, log_sum_exp: &saved.log_sum_exp };
        let sequences = &self.context.sequences;
        let (mut dq, mut dk, dv) = kernels.packed_attention_backward(
            state,
            &dattended,
            sequences,
            attention.form,
            attention.distance_bias.as_ref(),
        )?;
        if let Some(rope) = attention.rope {
            (dq, dk) = kernels.rope_backward(&dq, &dk, &self.context.angles[rope])?;
        }
        if let (Some((q_norm, k_norm)), Some((q, k))) = (&attention.query_key_norm, &saved.unnormed) {
            dq = kernels.rms_norm_backward(q, q_norm, attention.norm_eps, &dq)?;
            dk = kernels.rms_norm_backward(k, k_norm, attention.norm_eps, &dk)?;
        }
        Ok([dq.reshape((rows, ()))?, dk.reshape((rows, ()))?, dv.reshape((rows, ()))?])
    }

    /// Turns the gradient of a linear layer's output, `[rows, out]`, into that of its input, `[rows, in]`, and adds it
    /// to `others`, the gradients from other layers with the same input.
    fn linear(&mut self, others: Option<Tensor>, layer: &Projection, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let kernels = self.context.kernels;
        let dx = match others {
            Some(dx) => layer.linear.add_input_gradient(dx, dy)?,
            None => layer.linear.input_gradient(dy)?,
        };
        match self.low_rank(layer, x, dy)? {
            // dx += drop((s · dy B) A)
            Some((dshrunk, pair)) if self.context.dropout.is_none() => Ok(kernels.add_product(dx, &dshrunk, &pair.a)?),
            Some((dshrunk, pair)) => {
                let through_adapter = kernels.matmul(&dshrunk, &pair.a)?;
                Ok((dx + self.context.drop_out(layer.block, layer.site, &through_adapter)?)?)
            }
            None => Ok(dx),
        }
    }

    /// Stores dA and dB of the `layer`; returns `s · dy B`, `[rows, rank]`.
    fn low_rank(&mut self, layer: &Projection, x: &Tensor, dy: &Tensor) -> Result<Option<(Tensor, LoraPair)>> {
        let Projection { block, site, .. } = *layer;
        let Some(pair) = self.context.pair(block, site) else { return Ok(None) };
        let x = &self.context.drop_out(block, site, x)?;
        let (gradient, dshrunk) = low_rank(self.context.kernels, pair, x, dy, None)?;
        self.gradients.set(site, gradient);
        Ok(Some((dshrunk, pair.clone())))
    }

    /// Turns the gradient `dinput` of a branch's input, which nothing else holds, into that of the stream `x` before it, to
    /// which the gradient `dsum` of the sum behind it is added.
    fn of_input(&self, residual: &Residual, x: &Tensor, dinput: Tensor, dsum: &Tensor) -> Result<Tensor> {
        match &residual.before {
            Some(norm) => Ok(norm.add_backward(dsum, x, &dinput)?),
            None => Ok(self.context.kernels.add_into(dinput, dsum)?),
        }
    }
}

/// Turns the gradient `dy` of the stream behind a branch into that of the sum of stream and branch, which was `sum`.
fn of_sum(residual: &Residual, sum: Option<&Tensor>, dy: Tensor) -> Result<Tensor> {
    match (&residual.behind, sum) {
        (None, _) => Ok(dy),
        (Some(norm), Some(sum)) => Ok(norm.backward(sum, &dy)?),
        (Some(_), None) => Err(Error::Internal("a stream with a norm behind it keeps its sum".into())),
    }
}

/// Turns the gradient `dsum` of the sum of stream and branch into that of the branch's own result, which was `branch`.
fn of_branch(residual: &Residual, branch: Option<&Tensor>, dsum: &Tensor) -> Result<Tensor> {
    let scaled = if residual.is_unscaled() { dsum.clone() } else { (dsum * f64::from(residual.multiplier))? };
    match (&residual.after, branch) {
        (None, _) => Ok(scaled),
        (Some(norm), Some(branch)) => Ok(norm.backward(branch, &scaled)?),
        (Some(_), None) => Err(Error::Internal("a branch with a norm behind it keeps its result".into())),
    }
}
