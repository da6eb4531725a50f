//! The decoder (stub, replaced on this branch).

use std::ops::Range;

use candle_core::Tensor;

use crate::Result;
use crate::adapters::Adapter;
use crate::model::ModelConfig;
use crate::model::kv_cache::KvCache;
use crate::model::weights::Weights;

/// The weights and the forward pass.
#[derive(Debug)]
pub struct Decoder {}

/// The rows of one sequence in a step.
#[derive(Debug)]
pub struct SequenceRows<'a> {
    /// Its rows in the step's token list.
    pub rows: Range<usize>,
    /// Position of the first row: the tokens that the cache already holds.
    pub start: usize,
    /// Blocks of the cache, enough for `start + rows.len()` tokens.
    pub blocks: &'a [u32],
    /// The adapter of its rows.
    pub adapter: Option<&'a Adapter>,
}

impl Decoder {
    /// Builds the decoder from a checkpoint's tensors.
    pub fn load(config: &ModelConfig, weights: &Weights, quantize: Option<&str>) -> Result<Self> {
        let _ = (config, weights, quantize);
        todo!()
    }

    /// One step: `tokens` are the new rows of all `sequences`, in order (sequences of one adapter next to each other).
    /// Writes their keys and values into `cache`; returns the hidden states after the final norm, `[rows, hidden]`.
    pub fn step(&self, tokens: &[u32], sequences: &[SequenceRows<'_>], cache: &KvCache) -> Result<Tensor> {
        let _ = (tokens, sequences, cache);
        todo!()
    }

    /// Logits of hidden states, `[rows, hidden]` to `[rows, vocabulary]`, f32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let _ = hidden;
        todo!()
    }
}
