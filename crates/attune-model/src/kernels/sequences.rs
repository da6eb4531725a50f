//! Inputs of attention: the rows of sequences, their queries, keys and values. Read by the kernels of both devices.

use std::ops::Range;

use candle_core::Tensor;

use super::Norm;
use crate::lora::Adapter;
use crate::rope::{Angles, RopeTable};

/// The rows of one sequence in a step over the paged cache.
#[derive(Debug, Clone)]
pub struct SequenceRows<'a> {
    /// Rows in the step's token list.
    pub rows: Range<usize>,
    /// Position of the first row, which is the number of tokens that the cache already holds.
    pub start: usize,
    /// Blocks of the cache, enough for `start + rows.len()` tokens.
    pub blocks: &'a [u32],
    /// Adapter of the rows, which attention itself does not read.
    pub adapter: Option<&'a Adapter>,
    /// Table that the sequence's positions are rotated by, the same in each of its steps.
    pub rope: RopeTable,
}

/// Inputs and results of [`packed_attention`](super::Kernels::packed_attention).
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

/// Terms that are added to attention's scores by the distance of key and query (T5's relative positions, as in MPNet).
#[derive(Debug, Clone)]
pub struct DistanceBias {
    /// Terms, `[heads, 2 · most + 1]`: those of the distances −most to most, key less query. Keys farther away have those
    /// of the farthest.
    pub terms: Tensor,
}

/// Queries, keys and values of new rows, as their layers compute them.
#[derive(Debug, Clone, Copy)]
pub struct NewHeads<'a> {
    /// Queries, `[rows, heads, d]`.
    pub q: &'a Tensor,
    /// Keys, `[rows, kv_heads, d]`.
    pub k: &'a Tensor,
    /// Values, `[rows, kv_heads, d]`.
    pub v: &'a Tensor,
    /// Norms of the queries and of the keys (Qwen 3); `None` if they are not normed.
    pub norms: Option<[Norm<'a>; 2]>,
    /// Angles that rotate queries and keys; `None` if positions are not rotated.
    pub angles: Option<&'a Angles>,
    /// Logits without values that take part in the softmax, `[heads]` (gpt-oss); `None` if there are none.
    pub sinks: Option<&'a Tensor>,
}
