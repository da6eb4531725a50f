//! Chooses the device that models run on, and finds out when it is lost.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "cuda")]
use super::gpu::open;
use crate::error::is_out_of_memory;
use crate::{Error, Result};
use attune_support::system::{self, FreeMemory};

/// The device that models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if the binary and the machine support one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this index.
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("device `{text}`: use auto, cpu or cuda:N")),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => write!(formatter, "auto"),
            Self::Cpu => write!(formatter, "cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Opens the device for `choice`; `auto` falls back to the CPU if the first GPU cannot be used.
pub fn select(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(open(0).unwrap_or_else(|error| {
            tracing::warn!(%error, "no usable GPU, running on the CPU");
            Device::Cpu
        })),
        DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => Err(Error::Setup(
            "this binary was built without CUDA: build it with the feature `cuda`, or set device to cpu or auto".into(),
        )),
        DeviceChoice::Cuda(index) => open(index)
            .map_err(|error| Error::Setup(format!("GPU {index} cannot be used: {error}; set device to cpu or auto"))),
    }
}

#[cfg(not(feature = "cuda"))]
fn open(index: usize) -> candle_core::Result<Device> {
    Device::new_cuda(index)
}

/// Returns true if `device` multiplies bf16: GPUs do from compute capability 8.0 on.
pub fn has_bf16(device: &Device) -> bool {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::gpu::has_bf16(device),
        _ => true,
    }
}

/// Returns the memory that is left for tensors on `device`; `None` if it is unknown.
pub fn free_memory(device: &Device) -> Option<FreeMemory> {
    match device {
        Device::Cpu => system::free_memory(),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::gpu::free_memory(device),
        _ => None,
    }
}

/// Returns the bytes that this process has of the memory for tensors on `device`; `None` if unknown.
pub fn used_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => system::resident_bytes(),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::gpu::used_memory(device),
        _ => None,
    }
}

/// Returns `tensor`, not copied, for work on `device`, another queue of the same device. Nothing may write it, and it
/// must outlive the result.
#[cfg_attr(not(feature = "cuda"), allow(clippy::unnecessary_wraps, reason = "a GPU can refuse"))]
pub(super) fn shared(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::gpu::shared(tensor, device),
        _ => Ok(tensor.clone()),
    }
}

/// Returns the MiB of a GPU for the keys and values of each of `models` models, given the `memory` that their weights
/// leave. The rest is for adapters, activations and training.
pub fn cache_share(memory: FreeMemory, models: usize) -> usize {
    const SHARE: f64 = 0.6;
    (memory.free as f64 * SHARE / models.max(1) as f64) as usize >> 20
}

/// Health of a model's device. After a GPU is lost, this process can do nothing with it and has to be restarted.
/// Running out of memory does not count as lost.
#[derive(Debug, Clone)]
pub struct DeviceHealth {
    device: Device,
    lost: CancellationToken,
}

impl DeviceHealth {
    /// Makes the health of `device`, good so far.
    pub fn new(device: Device) -> Self {
        Self { device, lost: CancellationToken::new() }
    }

    /// Returns true if the device still computes; to be called after a failure.
    pub fn check(&self) -> bool {
        if !self.is_lost()
            && let Err(error) = answers(&self.device)
        {
            tracing::error!(%error, "the GPU does not answer any more");
            self.lose();
        }
        !self.is_lost()
    }

    /// Returns `error` unchanged, or [`Error::DeviceLost`] if the GPU was lost, so that the caller retries elsewhere or
    /// later.
    pub fn or_device_lost(&self, error: Error) -> Error {
        let is_of_device = matches!(error, Error::Tensor(_) | Error::Internal(_));
        if is_of_device && !self.check() { Error::DeviceLost } else { error }
    }

    /// Marks the device as lost.
    pub fn lose(&self) {
        self.lost.cancel();
    }

    /// Returns true once the device was found lost.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Completes when the device is found lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// Computes a sum on `device`; an error if it does not answer.
fn answers(device: &Device) -> candle_core::Result<()> {
    if device.is_cpu() {
        return Ok(());
    }
    let sum = Tensor::new(&[1.0_f32, 2.0], device).and_then(|numbers| numbers.sum_all()?.to_scalar::<f32>());
    match sum {
        Err(error) if !is_out_of_memory(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caches_of_all_models_leave_room_for_adapters_and_training() {
        let memory = FreeMemory { total: 80 << 30, free: 64 << 30 };
        assert_eq!(cache_share(memory, 1), 39_321);
        assert!(3 * cache_share(memory, 3) <= cache_share(memory, 1));
        assert_eq!(cache_share(memory, 0), cache_share(memory, 1));
    }

    #[test]
    fn only_a_lost_device_changes_what_an_error_means() {
        let health = DeviceHealth::new(Device::Cpu);
        assert!(matches!(health.or_device_lost(Error::Internal("x".into())), Error::Internal(_)));
        health.lose();
        assert!(matches!(health.or_device_lost(Error::Internal("x".into())), Error::DeviceLost));
        assert!(matches!(health.or_device_lost(Error::OutOfMemory), Error::OutOfMemory));
    }
}
