//! Trades time for memory: decides which activations of each block the forward pass keeps for the backward pass, and
//! computes the others again.
//!
//! [`super::backward`] keeps and recomputes, with bit-identical results; [`super::memory_bounds`] picks the kind of
//! recomputation for a job.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};
use attune_model::decoder::{
    Activations, AttentionActivations, Block, Context, ConvolutionActivations, DenseActivations, ExpertActivations,
    Mixer, MixerActivations, Mlp, MlpActivations, RotatedHeads,
};

/// Part of the forward pass that the backward pass computes again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recomputation {
    /// Recomputes nothing: all activations are kept.
    #[default]
    None,
    /// Recomputes cheap activations: the outputs of norms and activation functions, rotations behind norms, and
    /// convolutions. The results of products and of attention are kept.
    Selective,
    /// Recomputes everything: only each block's input is kept.
    Full,
}

impl Recomputation {
    /// All kinds, the one that needs the most memory first.
    pub const ALL: [Self; 3] = [Self::None, Self::Selective, Self::Full];

    /// Kinds that are chosen automatically, the fastest first. Keeping everything is slower than recomputing the cheap
    /// part: fresh memory costs more than a norm (`benches/decoder.rs`).
    pub(crate) const CHOSEN: [Self; 2] = [Self::Selective, Self::Full];

    /// Returns the name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Selective => "selective",
            Self::Full => "full",
        }
    }

    /// Describes the treatment of activations for people.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::None => "activations are kept",
            Self::Selective => "cheap activations are computed again",
            Self::Full => "activations are computed again",
        }
    }
}

/// Activations of a block that are kept until its backward pass.
pub(crate) enum SavedActivations {
    /// All activations.
    Everything(Box<Activations>),
    /// Input, and results of products and attention.
    Products(Box<Products>),
    /// Input, `[rows, hidden]`.
    Input(Tensor),
}

/// Fields of [`Activations`] that are expensive to compute.
pub(crate) struct Products {
    input: Tensor,
    mixer: MixerProducts,
    mixer_branch: Option<Tensor>,
    middle: Tensor,
    mlp: MlpProducts,
    mlp_branch: Option<Tensor>,
}

/// Fields of [`MixerActivations`] that are expensive to compute.
enum MixerProducts {
    Attention {
        /// Query and key: before their norms if they have some, else rotated.
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attended: Tensor,
        log_sum_exp: Tensor,
    },
    Convolution {
        projected: Tensor,
    },
}

impl MixerProducts {
    fn of(activations: MixerActivations) -> Self {
        match activations {
            MixerActivations::Attention(AttentionActivations { unnormed, q, k, v, attended, log_sum_exp }) => {
                let (q, k) = unnormed.unwrap_or((q, k));
                Self::Attention { q, k, v, attended, log_sum_exp }
            }
            MixerActivations::Convolution(ConvolutionActivations { projected, .. }) => Self::Convolution { projected },
        }
    }

    fn activations(self, mixer: &Mixer, context: &impl Context) -> Result<MixerActivations> {
        match (self, mixer) {
            (Self::Attention { q, k, v, attended, log_sum_exp }, Mixer::Attention(attention)) => {
                let RotatedHeads { q, k, unnormed } = match &attention.query_key_norm {
                    Some(_) => attention.norm_and_rotate(q, k, context)?,
                    None => RotatedHeads { q, k, unnormed: None },
                };
                let activations = AttentionActivations { unnormed, q, k, v, attended, log_sum_exp };
                Ok(MixerActivations::Attention(activations))
            }
            (Self::Convolution { projected }, Mixer::Convolution(convolution)) => {
                let convolved = context.convolve(convolution, &projected)?;
                Ok(MixerActivations::Convolution(ConvolutionActivations { projected, convolved }))
            }
            _ => Err(Error::Internal("activations of another kind of mixer".into())),
        }
    }
}

/// Fields of [`MlpActivations`] that are expensive to compute.
enum MlpProducts {
    Dense {
        gate: Tensor,
        up: Option<Tensor>,
    },
    /// The backward pass computes again what experts do beside their products.
    Experts(ExpertActivations),
}

impl MlpProducts {
    fn of(activations: MlpActivations) -> Self {
        match activations {
            MlpActivations::Dense(DenseActivations { gate, up, .. }) => Self::Dense { gate, up },
            MlpActivations::Experts(activations) => Self::Experts(activations),
        }
    }

    fn activations(self, mlp: &Mlp) -> Result<MlpActivations> {
        match (self, mlp) {
            (Self::Dense { gate, up }, Mlp::Dense(mlp)) => {
                Ok(MlpActivations::Dense(DenseActivations { gated: mlp.gated(&gate, up.as_ref())?, gate, up }))
            }
            (Self::Experts(activations), _) => Ok(MlpActivations::Experts(activations)),
            (Self::Dense { .. }, Mlp::Experts(_)) => Err(Error::Internal("activations of another kind of MLP".into())),
        }
    }
}

impl SavedActivations {
    /// Keeps the part of a block's activations that `recomputation` asks for.
    pub(crate) fn of(activations: Activations, recomputation: Recomputation) -> Self {
        match recomputation {
            Recomputation::None => Self::Everything(Box::new(activations)),
            Recomputation::Full => Self::Input(activations.input),
            Recomputation::Selective => {
                let Activations { input, mixer, mixer_branch, middle, mlp, mlp_branch, .. } = activations;
                let (mixer, mlp) = (MixerProducts::of(mixer), MlpProducts::of(mlp));
                Self::Products(Box::new(Products { input, mixer, mixer_branch, middle, mlp, mlp_branch }))
            }
        }
    }

    /// Recomputes all activations of `block`, to the bit: by the forward pass's own formulas, from the same numbers.
    pub(crate) fn activations(self, block: &Block, context: &impl Context) -> Result<Activations> {
        let products = match self {
            Self::Everything(activations) => return Ok(*activations),
            Self::Input(input) => return Ok(block.activations(input, context)?.0),
            Self::Products(products) => *products,
        };
        let Products { input, mixer, mixer_branch, middle, mlp, mlp_branch } = products;
        Ok(Activations {
            mixer_input: block.mixer_residual.input(&input)?,
            mixer: mixer.activations(&block.mixer, context)?,
            mlp_input: block.mlp_residual.input(&middle)?,
            mlp: mlp.activations(&block.mlp)?,
            input,
            mixer_branch,
            middle,
            mlp_branch,
        })
    }
}
