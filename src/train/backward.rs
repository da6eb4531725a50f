//! Loss and gradients of a packed batch: the explicit forward and backward pass of the decoder with an adapter.

use std::ops::Range;

use crate::Result;
use crate::adapters::{Adapter, LoraLayer};
use crate::model::decoder::Decoder;

/// Whole sequences, one after the other; no attention and no target crosses from one to the next.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// Token ids of all sequences, `[tokens]`.
    pub tokens: Vec<u32>,
    /// The rows of each sequence; positions restart at each start.
    pub sequences: Vec<Range<usize>>,
    /// What is to be predicted.
    pub targets: Vec<Target>,
}

/// One prediction that counts.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The row whose hidden state predicts.
    pub row: usize,
    /// The token that should follow.
    pub token: u32,
    /// Its weight in the loss.
    pub weight: f32,
}

/// Sums over the targets of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossReport {
    /// Σ weight · cross entropy.
    pub loss_sum: f64,
    /// Σ weight.
    pub weight_sum: f64,
    /// Targets.
    pub targets: usize,
    /// Targets whose token has the highest logit.
    pub correct: usize,
}

/// Gradients of A and B, shaped like the adapter's layers (`scale` copies the adapter's).
pub type Gradients = Vec<LoraLayer>;

/// Loss of `batch` and the gradients of `loss_sum / normalizer` with respect to every A and B.
///
/// `normalizer` is the weight sum of the whole optimizer step, so that micro-batches add up exactly.
pub fn loss_and_gradients(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &PackedBatch,
    normalizer: f64,
) -> Result<(LossReport, Gradients)> {
    let _ = (decoder, adapter, batch, normalizer);
    todo!()
}

/// Loss of `batch` alone, for evaluation.
pub fn loss(decoder: &Decoder, adapter: Option<&Adapter>, batch: &PackedBatch) -> Result<LossReport> {
    let _ = (decoder, adapter, batch);
    todo!()
}
