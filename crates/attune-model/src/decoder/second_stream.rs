//! A second decoder over the same weights for training, whose work a GPU does on a stream of its own: it neither waits
//! for the steps that serve nor stands in their way in one queue, and has its own workspace for products. There is one
//! copy of the weights. Called by [`BaseModel::training_decoder`](crate::BaseModel::training_decoder).

use candle_core::Tensor;

use super::{Block, Decoder, Residual};
use crate::Result;
use crate::device;
use crate::kernels::{GpuKernels, Kernels};

impl Decoder {
    /// Returns these weights as a decoder whose work is done on another stream of the GPU; `None` on the CPU, and for
    /// quantized blocks, whose products know one stream only.
    pub(crate) fn on_second_stream(&self) -> Result<Option<Self>> {
        let Some(first) = self.kernels.gpu() else { return Ok(None) };
        let kernels = &first.on_second_stream()?;
        let shared = |tensor: &Tensor| device::shared(tensor, kernels.device());
        let Some(embeddings) = self.embeddings.with(kernels, &shared)? else { return Ok(None) };
        let head = self.untied_head.as_ref().map(|head| head.with(kernels, &shared)).transpose()?;
        let final_norm = self.final_norm.as_ref().map(|norm| norm.with(Kernels::Gpu(kernels.clone()), &shared));
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let Some(block) = block.with(kernels, &shared)? else { return Ok(None) };
            blocks.push(block);
        }
        Ok(Some(Self {
            embeddings,
            blocks,
            final_norm: final_norm.transpose()?,
            untied_head: head.flatten(),
            ropes: self.ropes.clone(),
            logit_form: self.logit_form,
            is_encoder: self.is_encoder,
            kernels: Kernels::Gpu(kernels.clone()),
            activation_dtype: self.activation_dtype,
            adapter_precision: self.adapter_precision,
        }))
    }
}

impl Block {
    /// Maps the block's tensors for `kernels`; `None` if its layers are packed or quantized.
    fn with(&self, kernels: &GpuKernels, change: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Option<Self>> {
        let Some(mixer) = self.mixer.with(kernels, change)? else { return Ok(None) };
        let Some(mlp) = self.mlp.with(kernels, change)? else { return Ok(None) };
        let residual = |residual: &Residual| residual.with(&Kernels::Gpu(kernels.clone()), change);
        Ok(Some(Self {
            index: self.index,
            mixer_residual: residual(&self.mixer_residual)?,
            mixer,
            mlp_residual: residual(&self.mlp_residual)?,
            mlp,
        }))
    }
}
