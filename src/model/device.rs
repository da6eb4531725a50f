//! Chooses the device that models run on.

use candle_core::Device;

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
