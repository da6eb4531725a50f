//! The numeric kernels behind one small interface: methods of [`Kernels`], called by the decoder's passes.
//!
//! On the CPU they run our own f32 code ([`cpu`], spread over the one rayon pool), on a GPU kernels of our own
//! ([`cuda`]). Tests hold both against the same formulas in plain candle operations ([`reference`]).
//!
//! Shapes are written `[rows, width]`; rows are tokens. Backward methods take the gradient of the output and return the
//! gradient of the input; no gradient of a frozen weight is ever formed.

mod attention;
mod convolution;
pub mod cpu;
pub mod cuda;
mod encoders;
mod experts;
mod gpu;
mod operations;
pub mod reference;
mod sequences;
mod sinks;

use std::ops::Range;

pub use crate::forms::{Activation, AttentionForm, LogitForm};
pub use attention::{CachedStep, PackedRows};
use candle_core::Tensor;
pub use cuda::DeviceEvent;
pub use gpu::GpuKernels;
pub use operations::Kernels;
pub use sequences::{AttentionState, DistanceBias, NewHeads, SequenceRows};

use crate::Result;
use crate::lora::LoraPair;
use crate::lora::pointers::AdapterPointers;

/// A dense weight matrix, and the terms that are added to its product.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    /// Weight, `[out, in]`.
    pub weight: &'a Tensor,
    /// Bias, `[out]`.
    pub bias: Option<&'a Tensor>,
    /// Residual, `[rows, out]`.
    pub residual: Option<&'a Tensor>,
}

/// Filters of a convolution, one for each channel.
#[derive(Debug)]
pub struct Filters {
    /// Weights, `[channels, taps]`: the last one is that of the current token.
    pub weight: Tensor,
    /// Biases, `[channels]`; `None` if there are none.
    pub bias: Option<Tensor>,
}

/// An RMS norm, see [`Kernels::rms_norm`].
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Weight, `[width]`, f32.
    pub weight: &'a Tensor,
    /// Epsilon that is added to the mean of the squares.
    pub eps: f32,
}

impl Norm<'_> {
    /// Norms `x` `[rows, width]`.
    pub(crate) fn of(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        kernels.rms_norm(x, self.weight, self.eps)
    }
}

/// Rows of one adapter at one of the layers that share an input.
#[derive(Debug, Clone)]
pub struct LoraRows<'a> {
    /// The rows; no other task of the same output has any of them.
    pub rows: Range<usize>,
    /// Index of the output.
    pub output: usize,
    /// The update to add.
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

/// Settings by which a token is drawn from a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Temperature: a token weighs exp(logit / temperature); 0 takes the most probable token.
    pub temperature: f32,
    /// Point, 0 to 1, on all weights laid end to end, at which the token lies. Weights are in the order of the tokens,
    /// or from the most probable one on if there is a `top_k` or a `top_p`.
    pub point: f64,
    /// Number of the most probable tokens to draw from; 0 for all.
    pub top_k: usize,
    /// Share of the weights: of the tokens so far, the fewest that have at least this share are drawn from; 1 for all.
    pub top_p: f32,
    /// Part of the largest weight: of the tokens so far, those that weigh at least this part of it are drawn from; 0
    /// for all.
    pub min_p: f32,
}

impl Draw {
    /// Draw of the most probable token.
    pub const GREEDY: Self = Self { temperature: 0.0, point: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
}

/// Token that [`GpuKernels::draw`] returns for logits that are not finite.
pub const NO_TOKEN: u32 = u32::MAX;

/// Result of [`Kernels::cross_entropy`].
#[derive(Debug)]
pub struct CrossEntropy {
    /// Cross entropy per row, with the natural logarithm, not weighted.
    pub losses: Vec<f32>,
    /// True per row if the target is the most probable class.
    pub correct: Vec<bool>,
    /// Gradient with respect to the logits, `[rows, classes]`.
    pub gradient: Tensor,
}

/// Factors of one step of `AdamW`, computed by the optimizer of training.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AdamCoefficients {
    /// Factor on the gradients; 1 if they are not clipped.
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
