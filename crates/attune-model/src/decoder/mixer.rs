//! What mixes the rows of a sequence in a block: attention, or a convolution in its place. Called by the block's passes.

use candle_core::Tensor;

use super::loading::BlockWeights;
use super::projection::Projection;
use super::{Attention, AttentionActivations, Context, Convolution, ConvolutionActivations};
use crate::Result;
use crate::kernels::GpuKernels;

/// The mixer of one block.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each block")]
pub enum Mixer {
    /// Attention over all rows, or those in a window.
    Attention(Attention),
    /// A convolution over the last rows.
    Convolution(Convolution),
}

/// Intermediate results of a mixer, as the backward pass needs them.
#[derive(Debug)]
pub enum MixerActivations {
    /// Those of [`Mixer::Attention`].
    Attention(AttentionActivations),
    /// Those of [`Mixer::Convolution`].
    Convolution(ConvolutionActivations),
}

impl Mixer {
    pub(super) fn load(from: &BlockWeights<'_>) -> Result<Self> {
        match from.config.convolution_of(from.index) {
            Some(config) => Convolution::load(from, config).map(Self::Convolution),
            None => Attention::load(from).map(Self::Attention),
        }
    }

    /// Computes the intermediate results for the normed rows `x` `[rows, hidden]`: all but the last product.
    pub fn activations(&self, x: &Tensor, context: &impl Context) -> Result<MixerActivations> {
        match self {
            Self::Attention(attention) => attention.activations(x, context).map(MixerActivations::Attention),
            Self::Convolution(convolution) => convolution.activations(x, context).map(MixerActivations::Convolution),
        }
    }

    /// Returns the last layer, which takes the result back to the residual stream.
    pub fn last(&self) -> &Projection {
        match self {
            Self::Attention(attention) => &attention.o,
            Self::Convolution(convolution) => &convolution.output,
        }
    }

    /// Returns the layers that adapters may change.
    pub(super) fn projections(&self) -> Vec<&Projection> {
        match self {
            Self::Attention(attention) => attention.projections().into(),
            Self::Convolution(convolution) => vec![&convolution.input, &convolution.output],
        }
    }

    /// Maps the tensors for `kernels`; `None` if the layers are packed or quantized.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        match self {
            Self::Attention(attention) => Ok(attention.with(kernels, change)?.map(Self::Attention)),
            Self::Convolution(convolution) => Ok(convolution.with(kernels, change)?.map(Self::Convolution)),
        }
    }
}

impl MixerActivations {
    /// Returns the input of the mixer's last layer, `[rows, in]`.
    pub fn inner(&self) -> &Tensor {
        match self {
            Self::Attention(attention) => &attention.attended,
            Self::Convolution(convolution) => &convolution.convolved,
        }
    }
}
