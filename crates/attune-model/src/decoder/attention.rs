//! Attention of a block: from the normed rows to the heads' outputs, which the layer `o` takes back to the residual
//! stream.

use candle_core::Tensor;

use super::loading::BlockWeights;
use super::projection::{Projection, project};
use super::{Context, distance};
use crate::Result;
use crate::config::QueryKeyNorm;
use crate::kernels::{AttentionForm, DistanceBias, GpuKernels, Kernels};
use crate::lora::Site;

/// Attention of one block.
#[derive(Debug)]
pub struct Attention {
    /// `self_attn.q_proj`
    pub q: Projection,
    /// `self_attn.k_proj`
    pub k: Projection,
    /// `self_attn.v_proj`
    pub v: Projection,
    /// `self_attn.o_proj`
    pub o: Projection,
    /// `self_attn.q_norm` and `self_attn.k_norm`, as wide as [`QueryKeyNorm`] says; `None` if the family has none.
    pub query_key_norm: Option<(Tensor, Tensor)>,
    /// `self_attn.sinks`, a logit without a value for each head, `[heads]`; `None` if the family has none.
    pub sinks: Option<Tensor>,
    /// Terms added by the distance of key and query; `None` if the family has none.
    pub distance_bias: Option<DistanceBias>,
    /// How queries score keys.
    pub form: AttentionForm,
    /// Kind of the rotation, of the decoder's `ropes`; `None` where positions are not rotated.
    pub rope: Option<usize>,
    /// Added to the mean of the squares in the norms of queries and keys.
    pub norm_eps: f32,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) kernels: Kernels,
}

/// Intermediate results of attention, as the backward pass needs them.
#[derive(Debug)]
pub struct AttentionActivations {
    /// Query and key before their norms, `[rows, heads, head_dim]`; `None` if the family has none.
    pub unnormed: Option<(Tensor, Tensor)>,
    /// Rotated queries, `[rows, heads, head_dim]`.
    pub q: Tensor,
    /// Rotated keys, `[rows, kv_heads, head_dim]`.
    pub k: Tensor,
    /// Values, `[rows, kv_heads, head_dim]`.
    pub v: Tensor,
    /// Attention's output, `[rows, heads · head_dim]`.
    pub attended: Tensor,
    /// Logarithm of each softmax's sum, `[rows, heads]`.
    pub log_sum_exp: Tensor,
}

/// Queries and keys as attention takes them, the result of [`Attention::norm_and_rotate`].
pub struct RotatedHeads {
    /// Rotated queries, `[rows, heads, head_dim]`.
    pub q: Tensor,
    /// Rotated keys, `[rows, kv_heads, head_dim]`.
    pub k: Tensor,
    /// Query and key before their norms, `[rows, heads, head_dim]`; `None` if the family has none.
    pub unnormed: Option<(Tensor, Tensor)>,
}

impl Attention {
    pub(super) fn load(from: &BlockWeights<'_>) -> Result<Self> {
        let (config, index) = (from.config, from.index);
        let query_key_norm = match config.query_key_norm {
            None => None,
            Some(width) => {
                let norm = |name: &'static str, heads: usize| {
                    let heads = if width == QueryKeyNorm::Row { heads } else { 1 };
                    from.norm(name, heads * config.head_dim)
                };
                let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
                Some((norm("self_attn.q_norm", heads)?, norm("self_attn.k_norm", kv_heads)?))
            }
        };
        let [q, k, v] = from.projections([Site::Query, Site::Key, Site::Value])?;
        Ok(Self {
            q,
            k,
            v,
            o: from.projection(Site::Output)?,
            query_key_norm,
            sinks: config
                .attention_sinks
                .then(|| from.tensor("self_attn.sinks", config.num_attention_heads))
                .transpose()?,
            distance_bias: distance::load(from)?,
            form: AttentionForm {
                window: config.sliding_windows[index],
                looks_ahead: config.is_encoder,
                scale: config.attention_scale,
                cap: config.attention_cap,
            },
            rope: config.rotary[index],
            norm_eps: config.rms_norm_eps,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            kernels: from.kernels.clone(),
        })
    }

    /// Computes attention of the normed rows `x` `[rows, hidden]`: all but the last product.
    pub fn activations(&self, x: &Tensor, context: &impl Context) -> Result<AttentionActivations> {
        let rows = x.dim(0)?;
        let [q, k, v] = project([&self.q, &self.k, &self.v], x, context)?;
        let [q, k, v] = self.split_heads([q, k, v])?;
        let RotatedHeads { q, k, unnormed } = self.norm_and_rotate(q, k, context)?;
        let (mut attended, mut log_sum_exp) = context.attend(self, &q, &k, &v)?; // [rows, heads, head_dim]
        if let Some(sinks) = &self.sinks {
            (attended, log_sum_exp) = self.kernels.add_sinks(&attended, &log_sum_exp, sinks)?;
        }
        let attended = attended.reshape((rows, self.heads * self.head_dim))?;
        Ok(AttentionActivations { unnormed, q, k, v, attended, log_sum_exp })
    }

    /// Splits query, key and value into heads, `[rows, heads, head_dim]` each.
    pub(super) fn split_heads(&self, [q, k, v]: [Tensor; 3]) -> Result<[Tensor; 3]> {
        let rows = q.dim(0)?;
        Ok([
            q.reshape((rows, self.heads, self.head_dim))?,
            k.reshape((rows, self.kv_heads, self.head_dim))?,
            v.reshape((rows, self.kv_heads, self.head_dim))?,
        ])
    }

    /// Norms, if the family does, and rotates query and key `[rows, heads, head_dim]`.
    pub fn norm_and_rotate(&self, mut q: Tensor, mut k: Tensor, context: &impl Context) -> Result<RotatedHeads> {
        let mut unnormed = None;
        if let Some((q_norm, k_norm)) = &self.query_key_norm {
            let normed_q = self.kernels.rms_norm(&q, q_norm, self.norm_eps)?;
            let normed_k = self.kernels.rms_norm(&k, k_norm, self.norm_eps)?;
            unnormed = Some((std::mem::replace(&mut q, normed_q), std::mem::replace(&mut k, normed_k)));
        }
        if let Some(rope) = self.rope {
            (q, k) = self.kernels.rope(&q, &k, context.angles(rope))?;
        }
        Ok(RotatedHeads { q, k, unnormed })
    }

    /// Returns the layers that adapters may change.
    pub(super) fn projections(&self) -> [&Projection; 4] {
        [&self.q, &self.k, &self.v, &self.o]
    }

    /// Maps the tensors for `kernels`; `None` if the layers are packed or quantized.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        let layer = |layer: &Projection| layer.with(kernels, change);
        let (Some(q), Some(k), Some(v), Some(o)) = (layer(&self.q)?, layer(&self.k)?, layer(&self.v)?, layer(&self.o)?)
        else {
            return Ok(None);
        };
        let norms = self.query_key_norm.as_ref().map(|(q, k)| Ok::<_, crate::Error>((change(q)?, change(k)?)));
        let query_key_norm = norms.transpose()?;
        let sinks = self.sinks.as_ref().map(change).transpose()?;
        let terms = self.distance_bias.as_ref().map(|bias| change(&bias.terms)).transpose()?;
        let distance_bias = terms.map(|terms| DistanceBias { terms });
        let kernels = Kernels::Gpu(kernels.clone());
        Ok(Some(Self { q, k, v, o, query_key_norm, sinks, distance_bias, kernels, ..*self }))
    }
}
