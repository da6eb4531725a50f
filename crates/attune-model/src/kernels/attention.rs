//! Attention over packed sequences and over the paged cache: what the decoder calls, on the CPU and on a GPU.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::cuda::{self, RowTables};
use super::{Norm, cpu, launcher, on_host, rope};
use crate::Result;
use crate::rope::Angles;

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

/// Whole sequences that lie one after the other: attention stays inside each.
#[derive(Debug)]
pub struct PackedRows<'a> {
    sequences: &'a [Range<usize>],
    /// What kernels of a GPU read.
    tables: Option<RowTables>,
}

impl<'a> PackedRows<'a> {
    /// For rows on `device`.
    pub fn new(sequences: &'a [Range<usize>], device: &Device) -> Result<Self> {
        let tables = if on_host(device) { None } else { Some(RowTables::packed(sequences, device)?) };
        Ok(Self { sequences, tables })
    }
}

/// The sequences of a step over the paged cache, in the order of their rows.
#[derive(Debug)]
pub struct CachedStep<'a> {
    sequences: Vec<CachedRows<'a>>,
    /// What kernels of a GPU read.
    tables: Option<RowTables>,
}

impl<'a> CachedStep<'a> {
    /// For rows on `device`.
    pub fn new(sequences: Vec<CachedRows<'a>>, device: &Device) -> Result<Self> {
        let tables = if on_host(device) { None } else { Some(RowTables::cached(&sequences, device)?) };
        Ok(Self { sequences, tables })
    }
}

/// Causal attention inside each sequence of `rows`: `q` `[rows, heads, d]`, `k`, `v` `[rows, kv_heads, d]` to the output `[rows,
/// heads, d]` and the logarithm of each softmax's sum `[rows, heads]`, f32.
pub fn packed_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: &PackedRows<'_>,
    window: Option<usize>,
) -> Result<(Tensor, Tensor)> {
    match (launcher(q)?, &rows.tables) {
        (Some(launcher), Some(tables)) => cuda::attention::packed(&*launcher, q, k, v, tables, window),
        _ => cpu::packed_attention::forward(q, k, v, rows.sequences, window),
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
    rows: &PackedRows<'_>,
    window: Option<usize>,
) -> Result<(Tensor, Tensor, Tensor)> {
    match (launcher(dout)?, &rows.tables) {
        (Some(launcher), Some(tables)) => cuda::attention::packed_backward(&*launcher, state, dout, tables, window),
        _ => cpu::packed_attention::backward(state, dout, rows.sequences, window),
    }
}

/// Puts the rows `k` and `v` `[rows, kv_heads, d]` of a step into their places of the cache, `keys` and `values` `[slots,
/// kv_heads, d]`.
pub fn write_cache(keys: &Tensor, values: &Tensor, k: &Tensor, v: &Tensor, step: &CachedStep<'_>) -> Result<()> {
    match (launcher(k)?, &step.tables) {
        (Some(launcher), Some(tables)) => cuda::attention::write_cache(&*launcher, keys, values, k, v, tables),
        _ => cpu::cached_attention::write(&[keys.clone(), values.clone()], k, v, &step.sequences),
    }
}

/// Causal attention of each sequence's rows over its blocks of the cache, which already hold the rows' own keys and
/// values: `q` `[rows, heads, d]`, `keys` and `values` `[slots, kv_heads, d]` to `[rows, heads, d]`.
pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    step: &CachedStep<'_>,
    window: Option<usize>,
) -> Result<Tensor> {
    match (launcher(q)?, &step.tables) {
        (Some(launcher), Some(tables)) => cuda::attention::cached(&*launcher, q, keys, values, tables, window),
        _ => cpu::cached_attention::forward(q, keys, values, &step.sequences, window),
    }
}

/// What the layers make of new rows, as attention begins with it.
#[derive(Debug, Clone, Copy)]
pub struct NewHeads<'a> {
    /// `[rows, heads, d]`
    pub q: &'a Tensor,
    /// `[rows, kv_heads, d]`
    pub k: &'a Tensor,
    /// `[rows, kv_heads, d]`
    pub v: &'a Tensor,
    /// Norms of each query and of each key.
    pub norms: Option<[Norm<'a>; 2]>,
    /// By what queries and keys are rotated.
    pub angles: Option<&'a Angles>,
}

/// Norms and rotates new rows, puts them into the cache and attends over it, `[rows, heads, d]`: [`rms_norm`], [`rope`],
/// [`write_cache`] and [`cached_attention`] in one.
pub fn attend_new(
    new: NewHeads<'_>,
    keys: &Tensor,
    values: &Tensor,
    step: &CachedStep<'_>,
    window: Option<usize>,
) -> Result<Tensor> {
    if let (Some(launcher), Some(tables)) = (launcher(new.q)?, &step.tables)
        && let Some(out) = cuda::decode::attention(&*launcher, new, keys, values, tables, window)?
    {
        return Ok(out);
    }
    let (mut q, mut k) = (new.q.clone(), new.k.clone());
    if let Some([q_norm, k_norm]) = new.norms {
        (q, k) = (q_norm.of(&q)?, k_norm.of(&k)?);
    }
    if let Some(angles) = new.angles {
        (q, k) = rope(&q, &k, angles)?;
    }
    write_cache(keys, values, &k, new.v, step)?;
    cached_attention(&q, keys, values, step, window)
}
