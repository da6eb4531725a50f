//! Attention sinks: a learned logit for each head that takes part in the softmax and has no value (Xiao et al.,
//! "Efficient streaming language models with attention sinks", 2023; gpt-oss). They are added to the results of
//! attention without sinks, so that the kernels of attention need not know them. Called by the decoder.

use candle_core::Tensor;

use super::{Kernels, cpu};
use crate::Result;

impl Kernels {
    /// Adds `sinks` `[heads]` to attention's softmax: `out` `[rows, heads, d]` times Σ exp(s) / (Σ exp(s) + exp(sink)),
    /// and the logarithm of the larger sum, of `log_sum_exp` `[rows, heads]` without it.
    ///
    /// The backward pass of attention takes both as they are: its probabilities come from the sum with the sink.
    pub fn add_sinks(&self, out: &Tensor, log_sum_exp: &Tensor, sinks: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.is_cpu() {
            return cpu::sinks::add(out, log_sum_exp, sinks);
        }
        let max = log_sum_exp.broadcast_maximum(sinks)?; // [rows, heads]
        let with_sink = ((log_sum_exp - &max)?.exp()? + sinks.broadcast_sub(&max)?.exp()?)?;
        let with_sink = (with_sink.log()? + &max)?;
        let share = (log_sum_exp - &with_sink)?.exp()?.unsqueeze(2)?; // [rows, heads, 1]
        Ok((out.broadcast_mul(&share.to_dtype(out.dtype())?)?, with_sink))
    }
}
