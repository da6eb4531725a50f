//! A second decoder over the same weights for training, whose work a GPU does on a stream of its own: it neither waits
//! for the steps that serve nor stands in their way in one queue, and has its own workspace for products. There is one
//! copy of the weights. Called by [`BaseModel::training_decoder`](crate::BaseModel::training_decoder).

use candle_core::Tensor;

use super::{Block, Decoder};
use crate::Result;
use crate::device;
use crate::kernels::{GpuKernels, Kernels};
use crate::linear::Linear;

impl Decoder {
    /// Returns these weights as a decoder whose work is done on another stream of the GPU; `None` on the CPU, and for
    /// quantized blocks, whose products know one stream only.
    pub(crate) fn on_second_stream(&self) -> Result<Option<Self>> {
        let Some(first) = self.kernels.gpu() else { return Ok(None) };
        let kernels = &first.on_second_stream()?;
        let shared = |tensor: &Tensor| device::shared(tensor, kernels.device());
        let Some(embedding) = self.embedding.with(kernels, &shared)? else { return Ok(None) };
        let head = self.untied_head.as_ref().map(|head| head.with(kernels, &shared)).transpose()?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let Some(block) = block.with(kernels, &shared)? else { return Ok(None) };
            blocks.push(block);
        }
        Ok(Some(Self {
            embedding,
            blocks,
            final_norm: shared(&self.final_norm)?,
            untied_head: head.flatten(),
            rope: self.rope.clone(),
            norm_eps: self.norm_eps,
            kernels: Kernels::Gpu(kernels.clone()),
            activation_dtype: self.activation_dtype,
            adapter_precision: self.adapter_precision,
        }))
    }
}

impl Block {
    /// Maps the block's tensors for `kernels`; `None` if its layers are packed or quantized.
    fn with(&self, kernels: &GpuKernels, change: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Option<Self>> {
        let layer = |layer: &Linear| layer.with(kernels, change);
        let layers = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down].map(layer);
        let [Some(q), Some(k), Some(v), Some(o), Some(gate), Some(up), Some(down)] = all(layers)? else {
            return Ok(None);
        };
        let norms = self.query_key_norm.as_ref().map(|(q, k)| Ok::<_, crate::Error>((change(q)?, change(k)?)));
        Ok(Some(Self {
            input_layernorm: change(&self.input_layernorm)?,
            q,
            k,
            v,
            o,
            query_key_norm: norms.transpose()?,
            post_attention_layernorm: change(&self.post_attention_layernorm)?,
            gate,
            up,
            down,
            kernels: Kernels::Gpu(kernels.clone()),
            ..*self
        }))
    }
}

/// Returns all values, or the first error.
fn all<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let values: Vec<T> = results.into_iter().collect::<Result<_>>()?;
    values.try_into().map_err(|_| crate::Error::Internal("as many as there were".into()))
}
