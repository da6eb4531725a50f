//! The forward pass of serving, called by `engine`: new rows of many sequences over the paged cache, each with its own
//! adapter.

use candle_core::Tensor;

use super::{Block, Decoder, LowRank};
use crate::Result;
use crate::kernels::{CachedStep, NewHeads, Norm, SequenceRows};
use crate::kv_cache::KvCache;
use crate::linear::Linear;
use crate::lora::Site;
use crate::rope::Angles;
use crate::routes::Routes;

impl Decoder {
    /// Computes one step: `tokens` are the new rows of all `sequences`, in order; sequences of one adapter stand next
    /// to each other. Writes their keys and values into `cache`; returns the hidden states after the final norm,
    /// `[rows, hidden]`.
    pub fn step(&self, tokens: &[u32], sequences: &[SequenceRows<'_>], cache: &KvCache) -> Result<Tensor> {
        let positions: Vec<usize> =
            sequences.iter().flat_map(|sequence| sequence.start..sequence.start + sequence.rows.len()).collect();
        let context = ServeContext {
            step: CachedStep::new(sequences, &self.kernels)?,
            routes: Routes::new(
                self.blocks.len(),
                &self.kernels,
                sequences.iter().map(|sequence| (sequence.rows.clone(), sequence.adapter)),
            )?,
            cache,
            angles: self.rope.angles(positions.iter().copied(), self.device())?,
        };
        let mut x = self.embed(tokens)?; // [rows, hidden]
        for block in &self.blocks {
            x = block.serve(x, &context)?;
        }
        self.kernels.rms_norm(&x, &self.final_norm, self.norm_eps)
    }
}

/// Context of a step over the paged cache.
struct ServeContext<'a> {
    step: CachedStep<'a>,
    routes: Routes<'a>,
    cache: &'a KvCache,
    angles: Angles,
}

impl LowRank for ServeContext<'_> {
    fn add_lora(&self, layer: usize, sites: &[Site], x: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
        self.routes.add(layer, sites[0], x, outputs)
    }
}

impl Block {
    /// Computes the block's output `[rows, hidden]` of `x` `[rows, hidden]` as [`Block::forward`] does, with norms,
    /// products and activation in one kernel if that is faster. An adapter whose B is 0 changes no bit of it.
    fn serve(&self, x: Tensor, context: &ServeContext<'_>) -> Result<Tensor> {
        // Attention: middle = x + W_o · attend(q, k, v)
        let attended = self.attend(&x, context)?; // [rows, heads · head_dim]
        let middle = self.project_into(x, Site::Output, &attended, context)?; // [rows, hidden]

        // MLP: y = middle + W_down · (silu(W_gate · m) · (W_up · m))
        let gated = self.gate(&middle, context)?; // [rows, intermediate]
        self.project_into(middle, Site::Down, &gated, context) // [rows, hidden]
    }

    /// Computes [`Block::project_onto`] in place: nothing else holds `residual`.
    fn project_into(&self, residual: Tensor, site: Site, x: &Tensor, context: &ServeContext<'_>) -> Result<Tensor> {
        let mut output = [self.linear(site).forward_into(residual, x)?];
        context.add_lora(self.index, &[site], x, &mut output)?;
        let [output] = output;
        Ok(output)
    }

    /// Computes attention of the normed `x` `[rows, hidden]`, `[rows, heads · head_dim]`.
    fn attend(&self, x: &Tensor, context: &ServeContext<'_>) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let norm = self.norm(&self.input_layernorm);
        let [q, k, v] = self.project_normed([Site::Query, Site::Key, Site::Value], x, norm, context)?;
        let new = NewHeads {
            q: &q.reshape((rows, self.heads, self.head_dim))?,
            k: &k.reshape((rows, self.kv_heads, self.head_dim))?,
            v: &v.reshape((rows, self.kv_heads, self.head_dim))?,
            norms: self.query_key_norm.as_ref().map(|(q_norm, k_norm)| [self.norm(q_norm), self.norm(k_norm)]),
            angles: self.rotary.then_some(&context.angles),
        };
        let (keys, values) = (&context.cache.keys[self.index], &context.cache.values[self.index]);
        let attended = self.kernels.attend_new(new, keys, values, &context.step, self.window)?; // [rows, heads, head_dim]
        Ok(attended.reshape((rows, self.heads * self.head_dim))?)
    }

    /// Computes `silu(W_gate · m) · (W_up · m)`, `[rows, intermediate]`, of the normed `middle` m `[rows, hidden]`.
    fn gate(&self, middle: &Tensor, context: &ServeContext<'_>) -> Result<Tensor> {
        let norm = self.norm(&self.post_attention_layernorm);
        if !context.routes.change(self.index, Site::Gate) {
            return Linear::forward_gated([&self.gate, &self.up], middle, norm);
        }
        let [gate, up] = self.project_normed([Site::Gate, Site::Up], middle, norm, context)?; // [rows, intermediate] each
        self.kernels.swiglu(&gate, &up)
    }

    /// Computes [`Block::project`] of the normed `x` `[rows, in]`.
    fn project_normed<const N: usize>(
        &self,
        sites: [Site; N],
        x: &Tensor,
        norm: Norm<'_>,
        context: &ServeContext<'_>,
    ) -> Result<[Tensor; N]> {
        if !self.kernels.norms_on_the_way(x)? {
            return self.project(sites, &norm.of(&self.kernels, x)?, context);
        }
        let mut outputs = Linear::forward_each(sites.map(|site| self.linear(site)), x, Some(norm))?;
        if context.routes.change(self.index, sites[0]) {
            context.add_lora(self.index, &sites, &norm.of(&self.kernels, x)?, &mut outputs)?;
        }
        Ok(outputs)
    }

    fn norm<'a>(&self, weight: &'a Tensor) -> Norm<'a> {
        Norm { weight, eps: self.norm_eps }
    }
}
