//! What encoders compute and decoders do not: layer norms, and activations without a gate. Called by the decoder's blocks
//! where a family has them. There are no kernels of a GPU for them.

use candle_core::Tensor;

use super::{Activation, Kernels, cpu};
use crate::{Error, Result};

impl Kernels {
    /// Computes `(x − mean) / deviation · weight + bias` over the last dimension (Ba et al., "Layer normalization", 2016).
    pub fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
        self.check_cpu()?;
        cpu::layer_norm::forward(x, weight, bias, eps)
    }

    /// Computes [`Kernels::layer_norm`] in place: nothing else holds `x`.
    pub fn layer_norm_into(&self, x: Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
        self.check_cpu()?;
        cpu::layer_norm::forward_into(x, weight, bias, eps)
    }

    /// Computes the gradient of [`Kernels::layer_norm`] with respect to `x`.
    pub fn layer_norm_backward(&self, x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
        self.check_cpu()?;
        cpu::layer_norm::backward(x, weight, eps, dy)
    }

    /// Computes activation(x), `[rows, width]`.
    pub fn activated(&self, activation: Activation, x: &Tensor) -> Result<Tensor> {
        self.check_cpu()?;
        cpu::elementwise::activated(activation, x)
    }

    /// Computes [`Kernels::activated`] in place: nothing else holds `x`.
    pub fn activated_into(&self, activation: Activation, x: Tensor) -> Result<Tensor> {
        self.check_cpu()?;
        cpu::elementwise::activated_into(activation, x)
    }

    /// Computes the gradient of [`Kernels::activated`] with respect to `x`.
    pub fn activated_backward(&self, activation: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        self.check_cpu()?;
        cpu::elementwise::activated_backward(activation, x, dy)
    }

    fn check_cpu(&self) -> Result<()> {
        if self.is_cpu() { Ok(()) } else { Err(Error::Internal("a GPU has no kernels of encoders".into())) }
    }
}
