//! What encoders compute and decoders do not: layer norms, and activations without a gate. Called by the decoder's blocks
//! where a family has them.

use candle_core::Tensor;

use super::{Activation, Kernels, cpu, cuda};
use crate::Result;

impl Kernels {
    /// Computes `(x − mean) / deviation · weight + bias` over the last dimension (Ba et al., "Layer normalization", 2016).
    pub fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::layer_norm::forward(x, weight, bias, eps),
            Self::Gpu(gpu) => cuda::elementwise::layer_norm(gpu.launcher(), x, weight, bias, eps),
        }
    }

    /// Computes [`Kernels::layer_norm`] of `x`, which nothing else holds: on the CPU in place.
    pub fn layer_norm_into(&self, x: Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::layer_norm::forward_into(x, weight, bias, eps),
            Self::Gpu(_) => self.layer_norm(&x, weight, bias, eps),
        }
    }

    /// Computes the gradient of [`Kernels::layer_norm`] with respect to `x`.
    pub fn layer_norm_backward(&self, x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::layer_norm::backward(x, weight, eps, dy),
            Self::Gpu(gpu) => cuda::elementwise::layer_norm_backward(gpu.launcher(), x, weight, eps, dy, None),
        }
    }

    /// Computes `residual` plus the gradient of [`Kernels::layer_norm`], all `[rows, width]`.
    pub fn add_layer_norm_backward(
        &self,
        residual: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        dy: &Tensor,
    ) -> Result<Tensor> {
        match self {
            Self::Cpu => self.add_into(cpu::layer_norm::backward(x, weight, eps, dy)?, residual),
            Self::Gpu(gpu) => {
                cuda::elementwise::layer_norm_backward(gpu.launcher(), x, weight, eps, dy, Some(residual))
            }
        }
    }

    /// Computes activation(x), `[rows, width]`.
    pub fn activated(&self, activation: Activation, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::elementwise::activated(activation, x),
            Self::Gpu(gpu) => cuda::elementwise::activated(gpu.launcher(), activation, x),
        }
    }

    /// Computes [`Kernels::activated`] of `x`, which nothing else holds: on the CPU in place.
    pub fn activated_into(&self, activation: Activation, x: Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::elementwise::activated_into(activation, x),
            Self::Gpu(_) => self.activated(activation, &x),
        }
    }

    /// Computes the gradient of [`Kernels::activated`] with respect to `x`.
    pub fn activated_backward(&self, activation: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::elementwise::activated_backward(activation, x, dy),
            Self::Gpu(gpu) => cuda::elementwise::activated_backward(gpu.launcher(), activation, x, dy),
        }
    }
}
