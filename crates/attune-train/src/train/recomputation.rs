//! What the forward pass keeps of each block for the backward pass, and what is computed again there: time for memory.
//!
//! [`super::backward`] keeps and computes again, to the very same bits; [`super::memory_bounds`] picks the way of a
//! job.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;
use attune_model::decoder::{Activations, Block, Context, RotatedHeads};

/// How much of the forward pass is computed again in the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recomputation {
    /// Nothing: all activations are kept.
    #[default]
    None,
    /// What costs almost nothing: the outputs of norms and activation functions, and rotations behind norms. The
    /// results of products and of attention are kept.
    Selective,
    /// Everything: of each block its input alone is kept.
    Full,
}

impl Recomputation {
    /// All of them, the one that needs the most memory first.
    pub const ALL: [Self; 3] = [Self::None, Self::Selective, Self::Full];

    /// Those that are chosen from, the fastest first. To keep everything is slower than to make the cheap part again:
    /// fresh memory costs more than a norm (`benches/decoder.rs`).
    pub(crate) const CHOSEN: [Self; 2] = [Self::Selective, Self::Full];

    /// Returns its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Selective => "selective",
            Self::Full => "full",
        }
    }

    /// Says what is done with activations, for people.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::None => "activations are kept",
            Self::Selective => "cheap activations are computed again",
            Self::Full => "activations are computed again",
        }
    }
}

/// What is kept of a block until the backward pass comes to it.
pub(crate) enum SavedActivations {
    /// All activations.
    Everything(Box<Activations>),
    /// The input, and what products and attention made.
    Products(Box<Products>),
    /// The input, `[rows, hidden]`.
    Input(Tensor),
}

/// The fields of [`Activations`] that are dear to make.
pub(crate) struct Products {
    input: Tensor,
    /// Query and key: before their norms where they have some, else rotated.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    log_sum_exp: Tensor,
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
}

impl SavedActivations {
    /// Keeps what `recomputation` says of a block's activations.
    pub(crate) fn of(activations: Activations, recomputation: Recomputation) -> Self {
        match recomputation {
            Recomputation::None => Self::Everything(Box::new(activations)),
            Recomputation::Full => Self::Input(activations.input),
            Recomputation::Selective => {
                let Activations { input, unnormed, q, k, v, attended, log_sum_exp, middle, gate, up, .. } = activations;
                let (q, k) = unnormed.unwrap_or((q, k));
                Self::Products(Box::new(Products { input, q, k, v, attended, log_sum_exp, middle, gate, up }))
            }
        }
    }

    /// Computes all activations of `block` again, to the bit: by the forward pass's own formulas, from the same
    /// numbers.
    pub(crate) fn activations(self, block: &Block, context: &impl Context) -> Result<Activations> {
        let Products { input, q, k, v, attended, log_sum_exp, middle, gate, up } = match self {
            Self::Everything(activations) => return Ok(*activations),
            Self::Input(input) => return Ok(block.activations(input, context)?),
            Self::Products(products) => *products,
        };
        let RotatedHeads { q, k, unnormed } = match &block.query_key_norm {
            Some(_) => block.norm_and_rotate(q, k, context.angles())?,
            None => RotatedHeads { q, k, unnormed: None },
        };
        let kernels = block.kernels();
        Ok(Activations {
            attention_input: kernels.rms_norm(&input, &block.input_norm, block.norm_eps)?,
            mlp_input: kernels.rms_norm(&middle, &block.post_attention_norm, block.norm_eps)?,
            gated: kernels.swiglu(&gate, &up)?,
            input,
            unnormed,
            q,
            k,
            v,
            attended,
            log_sum_exp,
            middle,
            gate,
            up,
        })
    }
}
