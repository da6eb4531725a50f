//! What attention is given: the rows of sequences, their queries, keys and values. Read by the kernels of both devices.

use std::ops::Range;

use candle_core::Tensor;

use super::Norm;
use crate::lora::Adapter;
use crate::rope::Angles;

/// The rows of one sequence in a step over the paged cache.
#[derive(Debug, Clone)]
pub struct SequenceRows<'a> {
    /// Its rows in the step's token list.
    pub rows: Range<usize>,
    /// Position of the first row: the tokens that the cache already holds.
    pub start: usize,
    /// Blocks of the cache, enough for `start + rows.len()` tokens.
    pub blocks: &'a [u32],
    /// The adapter of its rows, which attention itself does not look at.
    pub adapter: Option<&'a Adapter>,
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

/// Queries, keys and values of new rows, as their layers compute them.
#[derive(Debug, Clone, Copy)]
pub struct NewHeads<'a> {
    /// `[rows, heads, d]`
    pub q: &'a Tensor,
    /// `[rows, kv_heads, d]`
    pub k: &'a Tensor,
    /// `[rows, kv_heads, d]`
    pub v: &'a Tensor,
    /// Norms of each query and of each key (Qwen 3).
    pub norms: Option<[Norm<'a>; 2]>,
    /// Rotates queries and keys; `None` where positions are not rotated.
    pub angles: Option<&'a Angles>,
}
