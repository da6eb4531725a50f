//! [`GpuKernels`]: starts kernels on a GPU, and has the operations without a counterpart on the CPU.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::cuda::{self, DeviceEvent, Launcher};
use super::{Activation, AdamCoefficients, Dense, Draw, LoraRun, Norm};
use crate::Result;
use crate::lora::Site;

/// Kernels of one GPU. Cheap to clone.
#[derive(Clone)]
pub struct GpuKernels {
    launcher: Arc<dyn Launcher>,
    device: Device,
}

impl GpuKernels {
    /// Returns kernels that `launcher` starts on tensors of `device`.
    pub fn new(launcher: Arc<dyn Launcher>, device: Device) -> Self {
        Self { launcher, device }
    }

    /// Returns the kernels of an NVIDIA GPU, which its driver starts on the stream of `device`.
    #[cfg(feature = "cuda")]
    pub(super) fn of(device: &candle_core::CudaDevice) -> Self {
        let driver = cuda::driver::Driver::new(device.clone());
        Self::new(Arc::new(driver), Device::Cuda(device.clone()))
    }

    /// Returns the kernels of the same GPU on another stream, as a device of its own; the same kernels if the device
    /// has no streams.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unnecessary_wraps, reason = "a GPU can refuse"))]
    pub(crate) fn on_second_stream(&self) -> Result<Self> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self::of(&crate::gpu::second_stream(device)?)),
            _ => Ok(self.clone()),
        }
    }

    pub(super) fn launcher(&self) -> &dyn Launcher {
        &*self.launcher
    }

    /// Returns the device whose tensors the kernels take.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Records an event after all work that was started so far.
    pub fn mark(&self) -> Result<Box<dyn DeviceEvent>> {
        self.launcher.mark()
    }

    /// Computes `residual + norm(x) · Wᵀ + bias` for each of `matrices`, `[rows, out]` each: layers that share the
    /// input `x` `[rows, in]`.
    pub fn project(&self, x: &Tensor, norm: Option<Norm<'_>>, matrices: &[Dense<'_>]) -> Result<Vec<Tensor>> {
        cuda::product::project(self.launcher(), x, norm, matrices)
    }

    /// Computes `residual + x · Wᵀ + bias`. Nothing else may hold the residual: the result may be written into it.
    pub fn project_into(&self, residual: Tensor, x: &Tensor, matrix: Dense<'_>) -> Result<Tensor> {
        cuda::product::project_into(self.launcher(), residual, x, matrix)
    }

    /// Computes `activation(gate(norm(x))) · up(norm(x))`, `[rows, in]` to `[rows, out]`.
    pub fn project_gated(
        &self,
        x: &Tensor,
        norm: Option<Norm<'_>>,
        gate_and_up: [Dense<'_>; 2],
        activation: Activation,
    ) -> Result<Tensor> {
        cuda::product::project_gated(self.launcher(), x, norm, gate_and_up, activation)
    }

    /// Adds the low-rank part of many adapters, each to its own rows of one of `outputs`: the updates of `runs` in the
    /// block `layer` at the sites from `first` on, one site for each of `outputs`. Otherwise like
    /// [`cpu::lora::add`](super::cpu::lora::add).
    pub fn add_lora_runs(
        &self,
        outputs: &[Tensor],
        x: &Tensor,
        runs: &[LoraRun<'_>],
        layer: usize,
        first: Site,
    ) -> Result<()> {
        cuda::lora::add(self.launcher(), outputs, x, runs, layer, first)
    }

    /// Draws a token for each row of `logits` `[rows, classes]`; [`NO_TOKEN`](super::NO_TOKEN) if a logit of the row is
    /// not finite.
    pub fn draw(&self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<u32>> {
        cuda::draw::draw(self.launcher(), logits, draws)
    }

    /// Computes the sum of the squares of all `gradients`, f32 each; 0 if there are none.
    pub fn sum_of_squares(&self, gradients: &[Tensor]) -> Result<f64> {
        cuda::optimizer::sum_of_squares(self.launcher(), gradients)
    }

    /// Takes a step of `AdamW` in place: `values` and both moments are `[parameters]`, f32, `gradients` their
    /// gradients, one after the other.
    pub fn adam_w(&self, values_and_moments: [&Tensor; 3], gradients: &[Tensor], by: AdamCoefficients) -> Result<()> {
        cuda::optimizer::adam_w(self.launcher(), values_and_moments, gradients, by)
    }
}

impl std::fmt::Debug for GpuKernels {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("GpuKernels").field("device", &self.device).finish_non_exhaustive()
    }
}
