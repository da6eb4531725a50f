//! The numeric kernels behind one small interface: methods of [`Kernels`], called by the decoder's forward and backward.
//!
//! On the CPU they run our own f32 code ([`cpu`], spread over the one rayon pool), on a GPU kernels of our own ([`cuda`]). Tests
//! hold both against the same formulas in plain candle operations ([`reference`]).
//!
//! Shapes are written `[rows, width]`; rows are tokens. Backward methods take the gradient of the output and return the
//! gradient of the input; no gradient of a frozen weight is ever formed.

mod attention;
pub mod cpu;
pub mod cuda;
mod gpu;
mod operations;
pub mod reference;
mod sequences;

use std::ops::Range;

pub use attention::{CachedStep, PackedRows};
use candle_core::Tensor;
pub use cuda::DeviceEvent;
pub use gpu::GpuKernels;
pub use operations::Kernels;
pub use sequences::{AttentionState, NewHeads, SequenceRows};

use crate::Result;
use crate::lora::LoraPair;
use crate::lora::pointers::AdapterPointers;

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

/// An RMS norm, see [`Kernels::rms_norm`].
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[width]`, f32
    pub weight: &'a Tensor,
    /// Added to the mean of the squares.
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

/// The token that [`GpuKernels::draw`] returns for logits that are not finite.
pub const NO_TOKEN: u32 = u32::MAX;

/// The result of [`Kernels::cross_entropy`].
#[derive(Debug)]
pub struct CrossEntropy {
    /// Natural logarithm, per row, not weighted.
    pub losses: Vec<f32>,
    /// Per row: the target is the most probable class.
    pub correct: Vec<bool>,
    /// `[rows, classes]`
    pub gradient: Tensor,
}

/// Factors of one step of `AdamW`, computed by the optimizer of training.
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
