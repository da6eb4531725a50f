//! Attention over packed sequences and over the paged cache, on the CPU and on a GPU. Called by the decoder.

use std::ops::Range;

use candle_core::Tensor;

use super::cuda::{self, RowTables};
use super::{AttentionForm, AttentionState, DistanceBias, Kernels, NewHeads, Norm, SequenceRows, cpu};
use crate::{Error, Result};

/// Whole sequences that lie one after the other; attention stays inside each.
#[derive(Debug)]
pub struct PackedRows<'a> {
    pub(super) sequences: &'a [Range<usize>],
    /// Tables for a GPU's kernels; `None` on the CPU.
    pub(super) tables: Option<RowTables>,
}

impl<'a> PackedRows<'a> {
    /// Prepares the rows of `sequences` for `kernels`.
    pub fn new(sequences: &'a [Range<usize>], kernels: &Kernels) -> Result<Self> {
        let tables = kernels.gpu().map(|gpu| RowTables::packed(sequences, gpu.device())).transpose()?;
        Ok(Self { sequences, tables })
    }
}

/// The sequences of a step over the paged cache, in the order of their rows.
#[derive(Debug)]
pub struct CachedStep<'a> {
    pub(super) sequences: &'a [SequenceRows<'a>],
    /// Tables for a GPU's kernels; `None` on the CPU.
    pub(super) tables: Option<RowTables>,
}

impl<'a> CachedStep<'a> {
    /// Prepares the rows of `sequences` for `kernels`.
    pub fn new(sequences: &'a [SequenceRows<'a>], kernels: &Kernels) -> Result<Self> {
        let tables = kernels.gpu().map(|gpu| RowTables::cached(sequences, gpu.device())).transpose()?;
        Ok(Self { sequences, tables })
    }
}

impl Kernels {
    /// Computes attention inside each sequence of `rows`, causal unless `form` looks ahead: `q` `[rows, heads, d]`, `k`, `v`
    /// `[rows, kv_heads, d]` to the output `[rows, heads, d]` and the logarithm of each softmax's sum `[rows, heads]`, f32.
    /// A `bias` is added to the scores.
    pub fn packed_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        rows: &PackedRows<'_>,
        form: AttentionForm,
        bias: Option<&DistanceBias>,
    ) -> Result<(Tensor, Tensor)> {
        match (self, &rows.tables) {
            (Self::Gpu(gpu), Some(tables)) => cuda::attention::packed(gpu.launcher(), q, k, v, tables, form, bias),
            _ => cpu::packed_attention::forward(q, k, v, rows.sequences, form, bias),
        }
    }

    /// Computes the gradients of [`Kernels::packed_attention`] with respect to q, k and v. The probabilities are
    /// recomputed from the saved sums (Dao et al., "FlashAttention", 2022).
    pub fn packed_attention_backward(
        &self,
        state: AttentionState<'_>,
        dout: &Tensor,
        rows: &PackedRows<'_>,
        form: AttentionForm,
        bias: Option<&DistanceBias>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        match (self, &rows.tables) {
            (Self::Gpu(gpu), Some(tables)) => {
                cuda::attention::packed_backward(gpu.launcher(), state, dout, tables, form, bias)
            }
            _ => cpu::packed_attention::backward(state, dout, rows.sequences, form, bias),
        }
    }

    /// Writes the rows `k` and `v` `[rows, kv_heads, d]` of a step into their slots of the cache, `keys` and `values`
    /// `[slots, kv_heads, d]`.
    pub fn write_cache(
        &self,
        keys: &Tensor,
        values: &Tensor,
        k: &Tensor,
        v: &Tensor,
        step: &CachedStep<'_>,
    ) -> Result<()> {
        match (self, &step.tables) {
            (Self::Gpu(gpu), Some(tables)) => cuda::attention::write_cache(gpu.launcher(), keys, values, k, v, tables),
            _ => cpu::cached_attention::write(&[keys.clone(), values.clone()], k, v, step.sequences),
        }
    }

    /// Computes causal attention of each sequence's rows over its blocks of the cache, which already hold the rows' own
    /// keys and values: `q` `[rows, heads, d]`, `keys` and `values` `[slots, kv_heads, d]` to `[rows, heads, d]`. A head's
    /// sink, if there are `sinks` `[heads]`, takes part in its softmax without a value.
    pub fn cached_attention(
        &self,
        q: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        step: &CachedStep<'_>,
        form: AttentionForm,
        sinks: Option<&Tensor>,
    ) -> Result<Tensor> {
        check_causal(form)?;
        match (self, &step.tables, sinks) {
            (Self::Gpu(gpu), Some(tables), None) => {
                cuda::attention::cached(gpu.launcher(), q, keys, values, tables, form)
            }
            (Self::Gpu(gpu), Some(tables), Some(sinks)) => {
                let (out, log_sum_exp) = cuda::attention::packed(gpu.launcher(), q, keys, values, tables, form, None)?;
                Ok(self.add_sinks(&out, &log_sum_exp, sinks)?.0)
            }
            _ => cpu::cached_attention::forward(q, keys, values, step.sequences, form, sinks),
        }
    }

    /// Norms and rotates new rows, writes them into the cache and attends over it, `[rows, heads, d]`:
    /// [`Kernels::rms_norm`], [`Kernels::rope`], [`Kernels::write_cache`] and [`Kernels::cached_attention`] in one.
    pub fn attend_new(
        &self,
        new: NewHeads<'_>,
        keys: &Tensor,
        values: &Tensor,
        step: &CachedStep<'_>,
        form: AttentionForm,
    ) -> Result<Tensor> {
        check_causal(form)?;
        // A kernel of its own norms heads, but not whole rows, and knows no sinks.
        let by_head = |norms: [Norm<'_>; 2]| new.q.dim(2).is_ok_and(|width| norms[0].weight.elem_count() == width);
        if let (Self::Gpu(gpu), Some(tables)) = (self, &step.tables)
            && new.angles.is_none_or(|angles| angles.query_scale.is_none())
            && new.norms.is_none_or(by_head)
            && new.sinks.is_none()
            && let Some(out) = cuda::decode::attention(gpu.launcher(), new, keys, values, tables, form)?
        {
            return Ok(out);
        }
        let (mut q, mut k) = (new.q.clone(), new.k.clone());
        if let Some([q_norm, k_norm]) = new.norms {
            (q, k) = (q_norm.of(self, &q)?, k_norm.of(self, &k)?);
        }
        if let Some(angles) = new.angles {
            (q, k) = self.rope(&q, &k, angles)?;
        }
        self.write_cache(keys, values, &k, new.v, step)?;
        self.cached_attention(&q, keys, values, step, form, new.sinks)
    }
}

/// Refuses a form that no step over the cache has: rows that come later are not there yet.
fn check_causal(form: AttentionForm) -> Result<()> {
    if form.looks_ahead { Err(Error::Internal("attention over the cache looks back alone".into())) } else { Ok(()) }
}
