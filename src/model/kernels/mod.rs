//! The numeric kernels behind one small interface: functions of tensors, called by the decoder's forward and backward.
//!
//! On the CPU they run our own f32 code ([`cpu`], spread over the one rayon pool); on every other device the same formulas
//! in plain candle operations ([`reference`]). Tests hold the two against each other.
//!
//! Shapes are written `[rows, width]`; rows are tokens. Backward functions take the gradient of the output and return the
//! gradient of the input; no gradient of a frozen weight is ever formed.

pub mod cpu;
pub mod reference;

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::Result;
use crate::adapters::LoraPair;
use crate::model::rope::Angles;

/// The rows of one sequence in a step over the paged cache.
#[derive(Debug, Clone)]
pub struct CachedRows<'a> {
    /// Its rows among the queries.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub start: usize,
    /// Its blocks of the cache.
    pub blocks: &'a [u32],
}

fn on_cpu(tensor: &Tensor) -> bool {
    matches!(tensor.device(), Device::Cpu)
}

/// `x · Wᵀ`: `x` `[rows, in]`, `weight` `[out, in]` to `[rows, out]`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if on_cpu(x) { cpu::product::linear(x, weight) } else { reference::linear(x, weight) }
}

/// `a · b`: `[m, k]` times `[k, n]`.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if on_cpu(a) { cpu::product::matmul(a, b, false) } else { Ok(a.matmul(b)?) }
}

/// `aᵀ · b`: `[k, m]` and `[k, n]` to `[m, n]`.
pub fn matmul_transposed(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if on_cpu(a) { cpu::product::matmul(a, b, true) } else { Ok(a.t()?.matmul(b)?) }
}

/// Adds `scale · B(A x)` to `y`: `x` `[rows, in]`, `y` `[rows, out]`, a fresh tensor that nothing else holds.
pub fn add_lora(y: Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    if on_cpu(x) { cpu::product::add_lora(y, x, pair) } else { reference::add_lora(y, x, 0..x.dim(0)?, pair) }
}

/// Adds the low-rank part of many adapters, each to its own rows of one of `outputs`: the products `[rows, out]` of `x`
/// `[rows, in]` with the layers that share it as their input, fresh tensors that nothing else holds.
///
/// A row's result does not depend on the other rows; rows without an adapter, and rows of one whose B is 0, keep every bit.
pub fn add_lora_rows(outputs: &mut [Tensor], x: &Tensor, tasks: &[LoraRows<'_>]) -> Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    if on_cpu(x) {
        return cpu::lora::add(outputs, x, tasks);
    }
    for LoraRows { rows, output, pair } in tasks {
        outputs[*output] = reference::add_lora(outputs[*output].clone(), x, rows.clone(), pair)?;
    }
    Ok(())
}

/// Rows of one adapter at one of the layers that share an input.
#[derive(Debug, Clone)]
pub struct LoraRows<'a> {
    /// The rows; no other task of the same output has any of them.
    pub rows: Range<usize>,
    /// Which of the outputs.
    pub output: usize,
    /// What is added.
    pub pair: &'a LoraPair,
}

/// `x / rms(x) · weight` over the last dimension (Zhang and Sennrich, 2019).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if on_cpu(x) { cpu::elementwise::rms_norm(x, weight, eps) } else { reference::rms_norm(x, weight, eps) }
}

/// The gradient of [`rms_norm`] with respect to `x`.
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    if on_cpu(x) {
        cpu::elementwise::rms_norm_backward(x, weight, eps, dy)
    } else {
        reference::rms_norm_backward(x, weight, eps, dy)
    }
}

/// Rotates the halves of each head: `x` `[rows, heads, head_dim]`.
pub fn rope(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    if on_cpu(x) { cpu::elementwise::rope(x, angles, 1.0) } else { reference::rope(x, angles, 1.0) }
}

/// The gradient of [`rope`]: the rotation backwards.
pub fn rope_backward(dy: &Tensor, angles: &Angles) -> Result<Tensor> {
    if on_cpu(dy) { cpu::elementwise::rope(dy, angles, -1.0) } else { reference::rope(dy, angles, -1.0) }
}

/// `silu(gate) · up` (Shazeer, 2020).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if on_cpu(gate) { cpu::elementwise::swiglu(gate, up) } else { reference::swiglu(gate, up) }
}

/// The gradients of [`swiglu`] with respect to `gate` and `up`.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    if on_cpu(gate) {
        cpu::elementwise::swiglu_backward(gate, up, dy)
    } else {
        reference::swiglu_backward(gate, up, dy)
    }
}

/// Causal attention inside each of `sequences` (row ranges): `q` `[rows, heads, d]`, `k`, `v` `[rows, kv_heads, d]` to the
/// output `[rows, heads, d]` and the logarithm of each softmax's sum `[rows, heads]`.
pub fn packed_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sequences: &[Range<usize>],
    window: Option<usize>,
) -> Result<(Tensor, Tensor)> {
    if on_cpu(q) {
        cpu::packed_attention::forward(q, k, v, sequences, window)
    } else {
        reference::packed_attention(q, k, v, sequences, window)
    }
}

/// What [`packed_attention`] took and gave.
#[derive(Debug, Clone, Copy)]
pub struct AttentionState<'a> {
    /// Queries, `[rows, heads, d]`.
    pub q: &'a Tensor,
    /// Keys, `[rows, kv_heads, d]`.
    pub k: &'a Tensor,
    /// Values, `[rows, kv_heads, d]`.
    pub v: &'a Tensor,
    /// Output, `[rows, heads, d]`.
    pub out: &'a Tensor,
    /// Logarithm of each softmax's sum, `[rows, heads]`.
    pub log_sum_exp: &'a Tensor,
}

/// The gradients of [`packed_attention`] with respect to q, k and v, the probabilities computed again from the saved sums
/// (Dao et al., "FlashAttention", 2022).
pub fn packed_attention_backward(
    state: AttentionState<'_>,
    dout: &Tensor,
    sequences: &[Range<usize>],
    window: Option<usize>,
) -> Result<(Tensor, Tensor, Tensor)> {
    if on_cpu(dout) {
        cpu::packed_attention::backward(state, dout, sequences, window)
    } else {
        reference::packed_attention_backward(state, dout, sequences, window)
    }
}

/// Puts the rows `k` and `v` `[rows, kv_heads, d]` of all sequences into their places of the cache, `keys` and `values`
/// `[slots, kv_heads, d]`.
pub fn write_cache(keys: &Tensor, values: &Tensor, k: &Tensor, v: &Tensor, sequences: &[CachedRows<'_>]) -> Result<()> {
    if on_cpu(k) {
        return cpu::cached_attention::write(&[keys.clone(), values.clone()], k, v, sequences);
    }
    reference::write_cache(keys, k, sequences)?;
    reference::write_cache(values, v, sequences)
}

/// Causal attention of each sequence's rows over its blocks of the cache, which already hold the rows' own keys and
/// values: `q` `[rows, heads, d]`, `keys` and `values` `[slots, kv_heads, d]` to `[rows, heads, d]`.
pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sequences: &[CachedRows<'_>],
    window: Option<usize>,
) -> Result<Tensor> {
    if on_cpu(q) {
        cpu::cached_attention::forward(q, keys, values, sequences, window)
    } else {
        reference::cached_attention(q, keys, values, sequences, window)
    }
}

/// Per row of `logits` `[rows, classes]`: the cross entropy of `targets[row]`, whether it is the most probable class, and
/// the gradient `weights[row] · (softmax − onehot)`, `[rows, classes]`, for which `logits` is consumed.
pub fn cross_entropy(logits: Tensor, targets: &[u32], weights: &[f32]) -> Result<CrossEntropy> {
    if on_cpu(&logits) {
        cpu::cross_entropy::forward(logits, targets, weights)
    } else {
        reference::cross_entropy(&logits, targets, weights)
    }
}

/// The result of [`cross_entropy`].
#[derive(Debug)]
pub struct CrossEntropy {
    /// Natural logarithm, per row, not weighted.
    pub losses: Vec<f32>,
    /// Per row: the target is the most probable class.
    pub correct: Vec<bool>,
    /// `[rows, classes]`
    pub gradient: Tensor,
}
