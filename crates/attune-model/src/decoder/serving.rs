//! The forward pass of serving, called by `engine`: new rows of many sequences over the paged cache, each with its own
//! adapter.

use candle_core::Tensor;

use super::projection::{Projection, project};
use super::{Attention, Block, Convolution, Decoder, DenseMlp, Group, LowRank, Mixer, Mlp, Residual, RowPlace};
use crate::kernels::{CachedStep, Kernels, NewHeads, Norm, SequenceRows};
use crate::kv_cache::KvCache;
use crate::linear::Linear;
use crate::lora::Site;
use crate::rope::Angles;
use crate::routes::Routes;
use crate::{Error, Result};

impl Decoder {
    /// Computes one step: `tokens` are the new rows of all `sequences`, in order; sequences of one adapter stand next
    /// to each other. Writes their keys and values into `cache`; returns the hidden states after the final norm,
    /// `[rows, hidden]`.
    pub fn step(&self, tokens: &[u32], sequences: &[SequenceRows<'_>], cache: &KvCache) -> Result<Tensor> {
        if self.is_encoder {
            return Err(Error::Internal("an encoder reads whole texts, not steps".into()));
        }
        let places = sequences.iter().flat_map(|sequence| {
            let positions = sequence.start..sequence.start + sequence.rows.len();
            positions.map(|position| RowPlace { position, table: sequence.rope, is_second: false })
        });
        let places: Vec<_> = places.collect();
        let context = ServeContext {
            step: CachedStep::new(sequences, &self.kernels)?,
            routes: Routes::new(
                self.blocks.len(),
                &self.kernels,
                sequences.iter().map(|sequence| (sequence.rows.clone(), sequence.adapter)),
            )?,
            cache,
            angles: self.angles(&places)?,
        };
        let mut x = self.embed(tokens, &places)?; // [rows, hidden]
        for block in &self.blocks {
            x = block.serve(x, &context)?;
        }
        self.hidden(x)
    }
}

/// Context of a step over the paged cache.
struct ServeContext<'a> {
    step: CachedStep<'a>,
    routes: Routes<'a>,
    cache: &'a KvCache,
    /// By kind of rotation.
    angles: Vec<Angles>,
}

impl LowRank for ServeContext<'_> {
    fn add_lora(&self, layer: usize, sites: &[Site], x: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
        self.routes.add(layer, sites[0], x, outputs)
    }

    fn add_expert_lora(
        &self,
        layer: usize,
        group: &Group,
        sites: &[Site],
        x: &Tensor,
        outputs: &mut [Tensor],
    ) -> Result<()> {
        self.routes.add_of_expert(layer, (group.expert, &group.rows), sites, x, outputs)
    }
}

impl Block {
    /// Computes the block's output `[rows, hidden]` of `x` `[rows, hidden]` as [`Block::forward`] does, with norms,
    /// products and activation in one kernel if that is faster. An adapter whose B is 0 changes no bit of it.
    fn serve(&self, x: Tensor, context: &ServeContext<'_>) -> Result<Tensor> {
        // Attention: middle = x + m · after(W_o · attend(q, k, v)), with q, k, v of before(x)
        let inner = self.mixer.serve(&x, self.mixer_residual.norm(), context)?; // [rows, heads · head_dim]
        let middle = self.mixer_residual.add_projection_into(x, self.mixer.last(), &inner, context)?; // [rows, hidden]

        // MLP: y = middle + m · after(mlp(before(middle)))
        self.mlp.serve(middle, &self.mlp_residual, context) // [rows, hidden]
    }
}

impl Mixer {
    /// Computes the input of the last layer of `x` `[rows, hidden]`, which `norm` norms first, `[rows, in]`.
    fn serve(&self, x: &Tensor, norm: Option<Norm<'_>>, context: &ServeContext<'_>) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.serve(x, norm, context),
            Self::Convolution(convolution) => convolution.serve(x, norm, context),
        }
    }
}

impl Convolution {
    /// Computes the convolution of `x` `[rows, hidden]`, which `norm` norms first, `[rows, hidden]`.
    fn serve(&self, x: &Tensor, norm: Option<Norm<'_>>, context: &ServeContext<'_>) -> Result<Tensor> {
        let [projected] = project_normed([&self.input], x, norm, &self.kernels, context)?; // [rows, 3 · hidden]
        let inputs = &context.cache.keys[self.input.block];
        self.kernels.cached_convolution(&projected, &self.filters, inputs, &context.step)
    }
}

impl Attention {
    /// Computes attention of `x` `[rows, hidden]`, which `norm` norms first, `[rows, heads · head_dim]`.
    fn serve(&self, x: &Tensor, norm: Option<Norm<'_>>, context: &ServeContext<'_>) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let projected = project_normed([&self.q, &self.k, &self.v], x, norm, &self.kernels, context)?;
        let [q, k, v] = self.split_heads(projected)?;
        let norm = |weight| Norm { weight, eps: self.norm_eps };
        let new = NewHeads {
            q: &q,
            k: &k,
            v: &v,
            norms: self.query_key_norm.as_ref().map(|(q_norm, k_norm)| [norm(q_norm), norm(k_norm)]),
            angles: self.rope.map(|rope| &context.angles[rope]),
            sinks: self.sinks.as_ref(),
        };
        let (keys, values) = (&context.cache.keys[self.q.block], &context.cache.values[self.q.block]);
        let attended = self.kernels.attend_new(new, keys, values, &context.step, self.form)?; // [rows, heads, head_dim]
        Ok(attended.reshape((rows, self.heads * self.head_dim))?)
    }
}

impl Mlp {
    /// Computes the stream after the MLP, from the stream `middle` before it, `[rows, hidden]` both.
    fn serve(&self, middle: Tensor, residual: &Residual, context: &ServeContext<'_>) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => {
                let gated = mlp.serve(&middle, residual.norm(), context)?; // [rows, intermediate]
                residual.add_projection_into(middle, &mlp.down, &gated, context)
            }
            Self::Experts(experts) => {
                let x = residual.input(&middle)?; // [rows, hidden]
                Ok(residual.add(&middle, &experts.forward(&x, context)?)?.y)
            }
        }
    }
}

impl DenseMlp {
    /// Computes `activation(W_gate · m) · (W_up · m)`, `[rows, intermediate]`, of the normed `middle` m `[rows,
    /// hidden]`.
    fn serve(&self, middle: &Tensor, norm: Option<Norm<'_>>, context: &ServeContext<'_>) -> Result<Tensor> {
        let Some(up) = &self.up else { return Err(Error::Internal("a decoder's MLP has a gate".into())) };
        if !context.routes.change(self.gate.block, self.gate.site) {
            return Linear::forward_gated([&self.gate.linear, &up.linear], middle, norm, self.activation);
        }
        let [gate, up] = project_normed([&self.gate, up], middle, norm, &self.kernels, context)?;
        self.gated(&gate, Some(&up))
    }
}

/// Computes [`project`] of the normed `x` `[rows, in]`.
fn project_normed<const N: usize>(
    layers: [&Projection; N],
    x: &Tensor,
    norm: Option<Norm<'_>>,
    kernels: &Kernels,
    context: &ServeContext<'_>,
) -> Result<[Tensor; N]> {
    let Some(norm) = norm else { return project(layers, x, context) };
    if !kernels.norms_on_the_way(x)? {
        return project(layers, &norm.of(kernels, x)?, context);
    }
    let mut outputs = Linear::forward_each(layers.map(|layer| &layer.linear), x, Some(norm))?;
    if let Some(first) = layers.first().filter(|first| context.routes.change(first.block, first.site)) {
        let sites = layers.map(|layer| layer.site);
        context.add_lora(first.block, &sites, &norm.of(kernels, x)?, &mut outputs)?;
    }
    Ok(outputs)
}
