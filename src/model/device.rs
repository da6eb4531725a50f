//! Chooses the device that models run on, and finds out when it is lost.

use candle_core::{Device, Tensor};
use tokio_util::sync::CancellationToken;

use crate::config::DeviceChoice;
use crate::{Error, Result};

/// The device for `choice`; `auto` takes the first GPU where binary and machine have one.
pub fn select(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(Device::new_cuda(0).unwrap_or_else(|error| {
            tracing::warn!(%error, "no usable GPU, running on the CPU");
            Device::Cpu
        })),
        DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => Err(Error::Setup(
            "this binary was built without CUDA: build it with the feature `cuda`, or set device to cpu or auto".into(),
        )),
        DeviceChoice::Cuda(index) => Device::new_cuda(index)
            .map_err(|error| Error::Setup(format!("GPU {index} cannot be used: {error}; set device to cpu or auto"))),
    }
}

/// Whether a model's device still computes. A GPU can be lost, after which the process can do nothing with it: it has to end
/// and be started again. What is merely out of memory is not lost.
#[derive(Debug, Clone)]
pub struct DeviceHealth {
    device: Device,
    lost: CancellationToken,
}

impl DeviceHealth {
    /// The health of `device`, good so far.
    pub fn new(device: Device) -> Self {
        Self { device, lost: CancellationToken::new() }
    }

    /// True where the device still computes, to be asked after something failed.
    pub fn check(&self) -> bool {
        if !self.is_lost()
            && let Err(error) = answers(&self.device)
        {
            tracing::error!(%error, "the GPU does not answer any more");
            self.lose();
        }
        !self.is_lost()
    }

    /// `error`, or where it came of a lost device that the same can be tried again elsewhere or later.
    pub fn blame(&self, error: Error) -> Error {
        let is_of_device = matches!(error, Error::Tensor(_) | Error::Internal(_));
        if is_of_device && !self.check() {
            Error::Unavailable("The GPU does not answer any more.".into())
        } else {
            error
        }
    }

    /// From now on the device counts as lost.
    pub fn lose(&self) {
        self.lost.cancel();
    }

    /// True once the device was found lost.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Ends when the device is found lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// Computes a sum on `device`.
fn answers(device: &Device) -> candle_core::Result<()> {
    if device.is_cpu() {
        return Ok(());
    }
    let sum = Tensor::new(&[1.0_f32, 2.0], device).and_then(|numbers| numbers.sum_all()?.to_scalar::<f32>());
    match sum {
        Err(error) if !error.to_string().contains("OUT_OF_MEMORY") => Err(error),
        _ => Ok(()),
    }
}
