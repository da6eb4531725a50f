//! The numeric kernels behind one small interface: functions of tensors, called by the decoder's forward and backward.
//!
//! On the CPU they run our own f32 code ([`cpu`], spread over the one rayon pool), on a GPU kernels of our own ([`cuda`]). Tests
//! hold both against the same formulas in plain candle operations ([`reference`]).
//!
//! Shapes are written `[rows, width]`; rows are tokens. Backward functions take the gradient of the output and return the
//! gradient of the input; no gradient of a frozen weight is ever formed.

mod attention;
pub mod cpu;
pub mod cuda;
pub mod reference;

use std::ops::Range;
use std::sync::Arc;

pub use attention::{
    AttentionState, CachedRows, CachedStep, NewHeads, PackedRows, attend_new, cached_attention, packed_attention,
    packed_attention_backward, write_cache,
};
use candle_core::{Device, Tensor};
pub use cuda::DeviceEvent;
use cuda::Launcher;
use cuda::lora::AdapterPointers;

use crate::Result;
use crate::lora::{LoraPair, Site};
use crate::rope::Angles;

/// The address of a contiguous tensor's first element.
#[cfg(feature = "cuda")]
pub(super) fn address_of(tensor: &Tensor) -> Result<u64> {
    cuda::launch::address(tensor)
}

/// A place in the work that `device` was given; none where it does its work when it gets it.
pub fn mark(device: &Device) -> Result<Option<Box<dyn DeviceEvent>>> {
    if on_host(device) { Ok(None) } else { cuda::launcher(device)?.mark().map(Some) }
}

/// True where our own code for the CPU computes: on the CPU, unless a GPU is emulated there.
pub fn on_host(device: &Device) -> bool {
    device.is_cpu() && cuda::emulator().is_none()
}

/// What starts kernels for `tensor`; none where our own code for the CPU computes.
fn launcher(tensor: &Tensor) -> Result<Option<Arc<dyn Launcher>>> {
    if on_host(tensor.device()) { Ok(None) } else { cuda::launcher(tensor.device()).map(Some) }
}

/// `x · Wᵀ`: `x` `[rows, in]`, `weight` `[out, in]` to `[rows, out]`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match launcher(x)? {
        None => cpu::product::linear(x, weight),
        Some(launcher) => cuda::product::linear(&*launcher, x, weight),
    }
}

/// A matrix that is multiplied as it is, and what is added to the product.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    /// `[out, in]`
    pub weight: &'a Tensor,
    /// `[out]`
    pub bias: Option<&'a Tensor>,
    /// `[rows, out]`
    pub residual: Option<&'a Tensor>,
}

/// An RMS norm, see [`rms_norm`].
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[width]`, f32
    pub weight: &'a Tensor,
    /// What is added to the mean of the squares.
    pub eps: f32,
}

impl Norm<'_> {
    /// `x` `[rows, width]`, normed.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, self.weight, self.eps)
    }
}

/// `residual + norm(x) · Wᵀ + bias` for each of `matrices`, `[rows, out]` each: layers that share the input `x` `[rows, in]`. On
/// a GPU.
pub fn project(x: &Tensor, norm: Option<Norm<'_>>, matrices: &[Dense<'_>]) -> Result<Vec<Tensor>> {
    cuda::product::project(&*cuda::launcher(x.device())?, x, norm, matrices)
}

/// `residual + x · Wᵀ + bias`, of a residual that nothing else holds, which may be where the result is written. On a GPU.
pub fn project_into(residual: Tensor, x: &Tensor, matrix: Dense<'_>) -> Result<Tensor> {
    cuda::product::project_into(&*cuda::launcher(x.device())?, residual, x, matrix)
}

/// True where [`project`] norms `x` `[rows, in]` on the way, in one launch with the products.
pub fn norms_on_the_way(x: &Tensor) -> Result<bool> {
    Ok(!on_host(x.device()) && cuda::product::is_few(x)?)
}

/// `silu(gate(x)) · up(x)` with `norm(x)` for x, `[rows, in]` to `[rows, out]`. On a GPU.
pub fn project_gated(x: &Tensor, norm: Norm<'_>, gate_and_up: [Dense<'_>; 2]) -> Result<Tensor> {
    cuda::product::project_gated(&*cuda::launcher(x.device())?, x, norm, gate_and_up)
}

/// `a · b`: `[m, k]` times `[k, n]`.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match launcher(a)? {
        None => cpu::product::matmul(a, b, false),
        Some(launcher) => cuda::product::matmul(&*launcher, a, b),
    }
}

/// `y + a · b`: `[m, k]` times `[k, n]`, added to `y` `[m, n]`, a fresh tensor of the same type that nothing else holds.
pub fn add_product(y: Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match launcher(a)? {
        None => Ok((y + cpu::product::matmul(a, b, false)?)?),
        Some(launcher) => cuda::product::add_product(&*launcher, y, a, b),
    }
}

/// `aᵀ · b`: `[k, m]` and `[k, n]` to `[m, n]`.
pub fn matmul_transposed(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match launcher(a)? {
        None => cpu::product::matmul(a, b, true),
        Some(launcher) => cuda::product::matmul_transposed(&*launcher, a, b),
    }
}

/// Adds `scale · B(A x)` to `y`: `x` `[rows, in]`, `y` `[rows, out]`, a fresh tensor that nothing else holds.
pub fn add_lora(y: Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    match launcher(x)? {
        None => cpu::product::add_lora(y, x, pair),
        Some(launcher) => cuda::product::add_lora(&*launcher, y, x, pair),
    }
}

/// Adds the low-rank part of many adapters, each to its own rows of one of `outputs`: the products `[rows, out]` of `x`
/// `[rows, in]` with the layers that share it as their input, fresh tensors that nothing else holds.
///
/// A row's result does not depend on the other rows; rows without an adapter, and rows of one whose B is 0, keep every bit. On
/// the CPU.
pub fn add_lora_rows(outputs: &mut [Tensor], x: &Tensor, tasks: &[LoraRows<'_>]) -> Result<()> {
    cpu::lora::add(outputs, x, tasks)
}

/// The same on a GPU: what `runs` add in the block `layer` at the sites from `first` on, one for each of `outputs`.
pub fn add_lora_runs(outputs: &[Tensor], x: &Tensor, runs: &[LoraRun<'_>], layer: usize, first: Site) -> Result<()> {
    cuda::lora::add(&*cuda::launcher(x.device())?, outputs, x, runs, layer, first)
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

/// All neighbouring rows of one adapter.
#[derive(Debug, Clone)]
pub struct LoraRun<'a> {
    /// The rows; no other run has any of them.
    pub rows: Range<usize>,
    /// The adapter's updates.
    pub pointers: &'a AdapterPointers,
}

/// `x / rms(x) · weight` over the last dimension (Zhang and Sennrich, 2019).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    match launcher(x)? {
        None => cpu::elementwise::rms_norm(x, weight, eps),
        Some(launcher) => cuda::elementwise::rms_norm(&*launcher, x, weight, eps),
    }
}

/// The gradient of [`rms_norm`] with respect to `x`.
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    match launcher(x)? {
        None => cpu::elementwise::rms_norm_backward(x, weight, eps, dy),
        Some(launcher) => cuda::elementwise::rms_norm_backward(&*launcher, x, weight, eps, dy, None),
    }
}

/// `residual` plus the gradient of [`rms_norm`], all `[rows, width]`.
pub fn add_rms_norm_backward(residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    match launcher(x)? {
        None => Ok((residual + cpu::elementwise::rms_norm_backward(x, weight, eps, dy)?)?),
        Some(launcher) => cuda::elementwise::rms_norm_backward(&*launcher, x, weight, eps, dy, Some(residual)),
    }
}

/// Rotates the halves of each head of queries and keys: `[rows, heads, head_dim]` each.
pub fn rope(q: &Tensor, k: &Tensor, angles: &Angles) -> Result<(Tensor, Tensor)> {
    rotate(q, k, angles, 1.0)
}

/// The gradients of [`rope`]: the rotation backwards.
pub fn rope_backward(dq: &Tensor, dk: &Tensor, angles: &Angles) -> Result<(Tensor, Tensor)> {
    rotate(dq, dk, angles, -1.0)
}

fn rotate(q: &Tensor, k: &Tensor, angles: &Angles, direction: f32) -> Result<(Tensor, Tensor)> {
    match launcher(q)? {
        None => Ok((cpu::elementwise::rope(q, angles, direction)?, cpu::elementwise::rope(k, angles, direction)?)),
        Some(launcher) => cuda::elementwise::rope(&*launcher, q, k, angles, direction),
    }
}

/// `silu(gate) · up` (Shazeer, 2020).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match launcher(gate)? {
        None => cpu::elementwise::swiglu(gate, up),
        Some(launcher) => cuda::elementwise::swiglu(&*launcher, gate, up),
    }
}

/// The gradients of [`swiglu`] with respect to `gate` and `up`.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    match launcher(gate)? {
        None => cpu::elementwise::swiglu_backward(gate, up, dy),
        Some(launcher) => cuda::elementwise::swiglu_backward(&*launcher, gate, up, dy),
    }
}

/// How a token is drawn from a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// 0 takes the most probable token. Else a token weighs exp(logit / temperature).
    pub temperature: f32,
    /// The token at this point, 0 to 1, of all weights laid end to end: in the order of the tokens, or from the most probable one on
    /// where there is a `top_k` or a `top_p`.
    pub point: f64,
    /// Only that many of the most probable tokens; 0 for all.
    pub top_k: usize,
    /// Of these the fewest that have at least this share of their weights; 1 for all.
    pub top_p: f32,
    /// Of these those that weigh at least this part of the most probable one; 0 for all.
    pub min_p: f32,
}

impl Draw {
    /// The most probable token.
    pub const GREEDY: Self = Self { temperature: 0.0, point: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
}

/// A token for each row of `logits` `[rows, classes]`; [`NO_TOKEN`] where a logit is no finite number. On a GPU.
pub fn draw(logits: &Tensor, draws: &[Draw]) -> Result<Vec<u32>> {
    cuda::draw::draw(&*cuda::launcher(logits.device())?, logits, draws)
}

/// What [`draw`] gives for logits that are not finite.
pub const NO_TOKEN: u32 = u32::MAX;

/// Per row of `logits` `[rows, classes]`: the cross entropy of `targets[row]`, whether it is the most probable class, and
/// the gradient `weights[row] · (softmax − onehot)`, `[rows, classes]`, for which `logits` is consumed.
pub fn cross_entropy(logits: Tensor, targets: &[u32], weights: &[f32]) -> Result<CrossEntropy> {
    match launcher(&logits)? {
        None => cpu::cross_entropy::forward(logits, targets, weights),
        Some(launcher) => cuda::loss::cross_entropy(&*launcher, &logits, targets, weights),
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

/// What a step of `AdamW` multiplies with, see [`train::optimizer`](crate::kernels).
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct AdamCoefficients {
    /// Factor on the gradients, 1 where they are not clipped.
    pub clip: f32,
    /// 1 − lr · weight decay.
    pub keep: f32,
    /// lr / (1 − β₁ᵗ)
    pub step_size: f32,
    /// √(1 − β₂ᵗ)
    pub root_correction: f32,
    /// β₁
    pub decay1: f32,
    /// 1 − β₁
    pub gain1: f32,
    /// β₂
    pub decay2: f32,
    /// 1 − β₂
    pub gain2: f32,
    /// ε
    pub epsilon: f32,
}

/// The sum of the squares of all `gradients`, f32 each. On a GPU.
pub fn sum_of_squares(gradients: &[Tensor]) -> Result<f64> {
    let Some(first) = gradients.first() else { return Ok(0.0) };
    cuda::optimizer::sum_of_squares(&*cuda::launcher(first.device())?, gradients)
}

/// A step of `AdamW` in place: `values` and both moments `[parameters]`, f32, `gradients` theirs, one after the other. On a GPU.
pub fn adam_w(values_and_moments: [&Tensor; 3], gradients: &[Tensor], by: AdamCoefficients) -> Result<()> {
    let launcher = cuda::launcher(values_and_moments[0].device())?;
    cuda::optimizer::adam_w(&*launcher, values_and_moments, gradients, by)
}
