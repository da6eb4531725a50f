//! A gated short convolution in the place of a block's attention (LFM 2): `W_out` · (C ⊙ convolve(B ⊙ x)), with the gates B
//! and C and the value x of one layer, `W_in`. Each channel is convolved with a filter of its own over the sequence's last
//! tokens.

use candle_core::Tensor;

use super::Context;
use super::loading::BlockWeights;
use super::projection::Projection;
use crate::Result;
use crate::config::ConvolutionConfig;
use crate::kernels::{Filters, GpuKernels, Kernels};
use crate::lora::Site;

/// The convolution of one block.
#[derive(Debug)]
pub struct Convolution {
    /// `conv.in_proj`: B, C and x, one's rows after the other's.
    pub input: Projection,
    /// `conv.out_proj`
    pub output: Projection,
    /// `conv.conv`
    pub filters: Filters,
    pub(super) kernels: Kernels,
}

/// Intermediate results of a convolution, as the backward pass needs them.
#[derive(Debug)]
pub struct ConvolutionActivations {
    /// B, C and x, `[rows, 3 · hidden]`.
    pub projected: Tensor,
    /// C ⊙ convolve(B ⊙ x), `[rows, hidden]`.
    pub convolved: Tensor,
}

impl Convolution {
    pub(super) fn load(from: &BlockWeights<'_>, config: &ConvolutionConfig) -> Result<Self> {
        let hidden = from.config.hidden_size;
        let weight = from.filters("conv.conv.weight", [hidden, config.taps])?;
        let bias = config.bias.then(|| from.tensor("conv.conv.bias", hidden)).transpose()?;
        Ok(Self {
            input: from.projection(Site::ConvolutionInput)?,
            output: from.projection(Site::ConvolutionOutput)?,
            filters: Filters { weight, bias },
            kernels: from.kernels.clone(),
        })
    }

    /// Computes the convolution of the normed rows `x` `[rows, hidden]`: all but the last product.
    pub fn activations(&self, x: &Tensor, context: &impl Context) -> Result<ConvolutionActivations> {
        let projected = self.input.of(x, context)?; // [rows, 3 · hidden]
        let convolved = context.convolve(self, &projected)?; // [rows, hidden]
        Ok(ConvolutionActivations { projected, convolved })
    }
    /// Maps the tensors for `kernels`; `None` if the layers are packed or quantized.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        let (input, output) = (self.input.with(kernels, change)?, self.output.with(kernels, change)?);
        let (Some(input), Some(output)) = (input, output) else { return Ok(None) };
        let bias = self.filters.bias.as_ref().map(change).transpose()?;
        let filters = Filters { weight: change(&self.filters.weight)?, bias };
        Ok(Some(Self { input, output, filters, kernels: Kernels::Gpu(kernels.clone()) }))
    }
}
