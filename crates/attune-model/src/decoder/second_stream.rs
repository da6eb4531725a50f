//! The same weights for training, whose work a GPU does on a stream of its own: it neither waits for the steps that serve nor
//! stands in their way in one queue, and has its own workspace for products. There is one copy of the weights.

use candle_core::Tensor;

use super::{Block, Decoder};
use crate::Result;
use crate::device;
use crate::kernels::{GpuKernels, Kernels};
use crate::linear::Linear;

impl Decoder {
    /// The decoder that training computes with: these weights on another stream of their GPU. On the CPU, and with quantized
    /// blocks, whose products know but one stream, this very decoder.
    pub fn for_training(&self) -> &Self {
        let training = self.training.get_or_init(|| {
            let training = self.on_second_stream(self.kernels.gpu()?);
            if let Err(error) = &training {
                tracing::warn!(%error, "training shares the stream of requests");
            }
            training.ok().flatten().map(Box::new)
        });
        training.as_deref().unwrap_or(self)
    }

    fn on_second_stream(&self, first: &GpuKernels) -> Result<Option<Self>> {
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
            training: std::sync::OnceLock::new(),
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
            input_norm: change(&self.input_norm)?,
            q,
            k,
            v,
            o,
            query_key_norm: norms.transpose()?,
            post_attention_norm: change(&self.post_attention_norm)?,
            gate,
            up,
            down,
            kernels: Kernels::Gpu(kernels.clone()),
            ..*self
        }))
    }
}

/// All of them, or the first error.
fn all<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let values: Vec<T> = results.into_iter().collect::<Result<_>>()?;
    values.try_into().map_err(|_| crate::Error::Internal("as many as there were".into()))
}
