//! [`Kernels`]: the operations that the CPU and a GPU both compute.

use candle_core::{Device, Tensor};

use super::{Activation, CrossEntropy, GpuKernels, LogitForm, cpu, cuda};
use crate::lora::LoraPair;
use crate::rope::Angles;
use crate::{Error, Result};

/// The kernels of one device: chosen once with it, held by whatever computes there. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Kernels {
    /// Our own code for the CPU, in f32.
    Cpu,
    /// Kernels that a launcher starts on a GPU.
    Gpu(GpuKernels),
}

impl Kernels {
    /// Returns the kernels of `device`; an error for devices that have none.
    pub fn of(device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => Ok(Self::Gpu(GpuKernels::of(cuda))),
            other => Err(Error::Internal(format!("there are no kernels for the device {:?}", other.location()))),
        }
    }

    /// Returns the kernels of a GPU with the operations that only it has; `None` on the CPU.
    pub fn gpu(&self) -> Option<&GpuKernels> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(gpu),
        }
    }

    /// Returns true if our own code for the CPU computes.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// Returns the device whose tensors the kernels take.
    pub fn device(&self) -> &Device {
        match self {
            Self::Cpu => &Device::Cpu,
            Self::Gpu(gpu) => gpu.device(),
        }
    }

    /// Computes `x · Wᵀ`: `x` `[rows, in]`, `weight` `[out, in]` to `[rows, out]`.
    pub fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::product::linear(x, weight),
            Self::Gpu(gpu) => cuda::product::linear(gpu.launcher(), x, weight),
        }
    }

    /// Returns true if [`GpuKernels::project`] norms `x` `[rows, in]` on the way, in one launch with the products.
    pub(crate) fn norms_on_the_way(&self, x: &Tensor) -> Result<bool> {
        Ok(!self.is_cpu() && cuda::product::is_few(x)?)
    }

    /// Computes `a · b`: `[m, k]` times `[k, n]`.
    pub fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::product::matmul(a, b, false),
            Self::Gpu(gpu) => cuda::product::matmul(gpu.launcher(), a, b),
        }
    }

    /// Computes `y + a · b`: `[m, k]` times `[k, n]`, added to `y` `[m, n]`, a fresh tensor of the same type that
    /// nothing else holds.
    pub fn add_product(&self, y: Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::product::add_product(y, a, b),
            Self::Gpu(gpu) => cuda::product::add_product(gpu.launcher(), y, a, b),
        }
    }

    /// Computes `y + x`, `[rows, width]` both; `y` is a fresh tensor of the same type that nothing else holds.
    pub fn add_into(&self, y: Tensor, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::elementwise::add_into(y, x),
            Self::Gpu(_) => Ok((y + x)?),
        }
    }

    /// Computes `aᵀ · b`: `[k, m]` and `[k, n]` to `[m, n]`.
    pub fn matmul_transposed(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::product::matmul(a, b, true),
            Self::Gpu(gpu) => cuda::product::matmul_transposed(gpu.launcher(), a, b),
        }
    }

    /// Adds `scale · B(A x)` to `y`: `x` `[rows, in]`, `y` `[rows, out]`, a fresh tensor that nothing else holds.
    pub fn add_lora(&self, y: Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::product::add_lora(y, x, pair),
            Self::Gpu(gpu) => cuda::product::add_lora(gpu.launcher(), y, x, pair),
        }
    }

    /// Computes `x / rms(x) · weight` over the last dimension (Zhang and Sennrich, 2019).
    pub fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::elementwise::rms_norm(x, weight, eps),
            Self::Gpu(gpu) => cuda::elementwise::rms_norm(gpu.launcher(), x, weight, eps),
        }
    }

    /// Computes the gradient of [`Kernels::rms_norm`] with respect to `x`.
    pub fn rms_norm_backward(&self, x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::elementwise::rms_norm_backward(x, weight, eps, dy),
            Self::Gpu(gpu) => cuda::elementwise::rms_norm_backward(gpu.launcher(), x, weight, eps, dy, None),
        }
    }

    /// Computes `residual` plus the gradient of [`Kernels::rms_norm`], all `[rows, width]`.
    pub fn add_rms_norm_backward(
        &self,
        residual: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        dy: &Tensor,
    ) -> Result<Tensor> {
        match self {
            Self::Cpu => self.add_into(cpu::elementwise::rms_norm_backward(x, weight, eps, dy)?, residual),
            Self::Gpu(gpu) => cuda::elementwise::rms_norm_backward(gpu.launcher(), x, weight, eps, dy, Some(residual)),
        }
    }

    /// Rotates the halves of each head of queries and keys, `[rows, heads, head_dim]` each, or of its first elements if
    /// there are angles for less than the head; then scales the queries if the angles say so.
    pub fn rope(&self, q: &Tensor, k: &Tensor, angles: &Angles) -> Result<(Tensor, Tensor)> {
        self.rotate(q, k, angles, 1.0)
    }

    /// Computes the gradients of [`Kernels::rope`]: the rotation backwards, with the same scale.
    pub fn rope_backward(&self, dq: &Tensor, dk: &Tensor, angles: &Angles) -> Result<(Tensor, Tensor)> {
        self.rotate(dq, dk, angles, -1.0)
    }

    fn rotate(&self, q: &Tensor, k: &Tensor, angles: &Angles, direction: f32) -> Result<(Tensor, Tensor)> {
        let (q, k) = match self {
            Self::Cpu => (cpu::elementwise::rope(q, angles, direction)?, cpu::elementwise::rope(k, angles, direction)?),
            Self::Gpu(gpu) => cuda::elementwise::rope(gpu.launcher(), q, k, angles, direction)?,
        };
        Ok((angles.scale_queries(q)?, k))
    }

    /// Computes `activation(gate) · up`.
    pub fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => cpu::elementwise::gated(activation, gate, up),
            Self::Gpu(gpu) => cuda::elementwise::gated(gpu.launcher(), activation, gate, up),
        }
    }

    /// Computes the gradients of [`Kernels::gated`] with respect to `gate` and `up`.
    pub fn gated_backward(
        &self,
        activation: Activation,
        gate: &Tensor,
        up: &Tensor,
        dy: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Cpu => cpu::elementwise::gated_backward(activation, gate, up, dy),
            Self::Gpu(gpu) => cuda::elementwise::gated_backward(gpu.launcher(), activation, gate, up, dy),
        }
    }

    /// Makes logits of the output head's `products` `[rows, classes]`.
    pub fn to_logits(&self, products: Tensor, form: LogitForm) -> Result<Tensor> {
        match self {
            _ if form == LogitForm::PLAIN => Ok(products),
            Self::Cpu => cpu::elementwise::to_logits(&products, form),
            Self::Gpu(gpu) => cuda::elementwise::to_logits(gpu.launcher(), &products, form),
        }
    }

    /// Computes per row of the output head's `products` `[rows, classes]`, whose logits have this `form`, the cross
    /// entropy of `targets[row]`, whether it is the most probable class, and the gradient of the products,
    /// `weights[row] · (softmax − onehot)` times the form's slope, `[rows, classes]`, for which `products` is consumed.
    pub fn cross_entropy(
        &self,
        products: Tensor,
        form: LogitForm,
        targets: &[u32],
        weights: &[f32],
    ) -> Result<CrossEntropy> {
        match self {
            Self::Cpu => cpu::cross_entropy::forward(products, form, targets, weights),
            Self::Gpu(gpu) => cuda::loss::cross_entropy(gpu.launcher(), &products, form, targets, weights),
        }
    }
}
