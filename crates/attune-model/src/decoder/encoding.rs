//! The forward pass of encoders, called by `engine`: whole texts, packed one after the other without any padding, each with
//! its own adapter. Every linear layer takes the rows of all texts at once; attention stays inside each text.

use std::ops::Range;

use candle_core::Tensor;

use super::projection::project;
use super::{Attention, Block, Context, Convolution, Decoder, DenseMlp, Group, LowRank, Mixer, Mlp, RowPlace};
use crate::kernels::{Kernels, PackedRows};
use crate::lora::{Adapter, Site};
use crate::rope::Angles;
use crate::routes::Routes;
use crate::{Error, Result};

/// A text, or a pair of texts, among those that are encoded together.
#[derive(Debug, Clone)]
pub struct TextRows<'a> {
    /// Rows in the list of tokens.
    pub rows: Range<usize>,
    /// Row at which the second text of a pair begins; `None` for one text.
    pub second: Option<usize>,
    /// Adapter of the rows.
    pub adapter: Option<&'a Adapter>,
}

impl Decoder {
    /// Computes the hidden states `[rows, hidden]` of `tokens`, the rows of all `texts` in order; texts of one adapter
    /// stand next to each other. What stands beside a text changes none of its bits but those of a product's rounding.
    pub fn encode(&self, tokens: &[u32], texts: &[TextRows<'_>]) -> Result<Tensor> {
        let sequences: Vec<_> = texts.iter().map(|text| text.rows.clone()).collect();
        let mut places = Vec::with_capacity(tokens.len());
        for text in texts {
            let rows = text.rows.len();
            let second = text.second.map(|second| second - text.rows.start);
            places.extend(RowPlace::of_text(rows, second, self.rope_table(rows)));
        }
        let context = EncodeContext {
            kernels: &self.kernels,
            sequences: PackedRows::new(&sequences, &self.kernels)?,
            routes: Routes::new(
                self.blocks.len(),
                &self.kernels,
                texts.iter().map(|text| (text.rows.clone(), text.adapter)),
            )?,
            angles: self.angles(&places)?,
        };
        let mut x = self.embed(tokens, &places)?; // [rows, hidden]
        for block in &self.blocks {
            x = block.encode(x, &context)?;
        }
        self.hidden(x)
    }
}

/// Context of texts that are encoded together.
struct EncodeContext<'a> {
    kernels: &'a Kernels,
    sequences: PackedRows<'a>,
    routes: Routes<'a>,
    /// By kind of rotation.
    angles: Vec<Angles>,
}

impl LowRank for EncodeContext<'_> {
    fn add_lora(&self, layer: usize, sites: &[Site], x: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
        let first = sites.first().ok_or_else(|| Error::Internal("a group of layers is never empty".into()))?;
        self.routes.add(layer, *first, x, outputs)
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

impl Context for EncodeContext<'_> {
    fn attend(&self, attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let bias = attention.distance_bias.as_ref();
        self.kernels.packed_attention(q, k, v, &self.sequences, attention.form, bias)
    }

    fn convolve(&self, convolution: &Convolution, projected: &Tensor) -> Result<Tensor> {
        self.kernels.packed_convolution(projected, &convolution.filters, &self.sequences)
    }

    fn angles(&self, rope: usize) -> &Angles {
        &self.angles[rope]
    }
}

impl Block {
    /// Computes the block's output `[rows, hidden]` of `x` `[rows, hidden]` as [`Block::forward`] does, in place where
    /// nothing else holds a tensor.
    fn encode(&self, x: Tensor, context: &EncodeContext<'_>) -> Result<Tensor> {
        // Attention: middle = behind(x + m · after(W_o · attend(q, k, v))), with q, k, v of before(x)
        let Mixer::Attention(attention) = &self.mixer else {
            return Err(Error::Internal("encoders have attention in every block".into()));
        };
        let attended = attention.activations(&self.mixer_residual.input(&x)?, context)?.attended; // [rows, heads · head_dim]
        let middle = self.mixer_residual.add_projection_into(x, &attention.o, &attended, context)?; // [rows, hidden]

        // MLP: y = behind(middle + m · after(mlp(before(middle))))
        let Mlp::Dense(mlp) = &self.mlp else {
            return Err(Error::Internal("encoders have one MLP in every block".into()));
        };
        let inner = mlp.encode(&self.mlp_residual.input(&middle)?, context)?; // [rows, intermediate]
        self.mlp_residual.add_projection_into(middle, &mlp.down, &inner, context) // [rows, hidden]
    }
}

impl DenseMlp {
    /// Computes activation(gate) · up, or activation(gate), `[rows, intermediate]`, of the normed `x` `[rows, hidden]`.
    fn encode(&self, x: &Tensor, context: &EncodeContext<'_>) -> Result<Tensor> {
        match &self.up {
            Some(up) => {
                let [gate, up] = project([&self.gate, up], x, context)?; // [rows, intermediate] each
                self.kernels.gated(self.activation, &gate, &up)
            }
            None => self.kernels.activated_into(self.activation, self.gate.of(x, context)?),
        }
    }
}
