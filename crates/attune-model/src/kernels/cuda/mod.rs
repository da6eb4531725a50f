//! The kernels in CUDA C: what runs on a GPU. `sources/` holds them, this module and its parts give them tensors.
//!
//! Every function takes a [`Launcher`]. In the engine that is the GPU's driver; tests run the same kernels on the CPU, thread
//! by thread, and hold them against [`reference`](super::reference). Elements are f32 or bf16, arithmetic is f32.

pub mod attention;
pub mod decode;
pub mod draw;
#[cfg(feature = "cuda")]
mod driver;
pub mod elementwise;
pub mod launch;
pub mod lora;
pub mod loss;
pub mod optimizer;
pub mod product;
pub mod rows;

use std::sync::{Arc, OnceLock};

use candle_core::Device;
pub use launch::{DeviceEvent, Kernel, Launcher, Shape};
pub use rows::RowTables;

use crate::{Error, Result};

/// What stands in for a GPU.
static EMULATOR: OnceLock<Arc<dyn Launcher>> = OnceLock::new();

/// Makes the process hold and compute on the CPU what a GPU would, with `launcher` to run the kernels: for tests, before they
/// load anything.
pub fn emulate_with(launcher: Arc<dyn Launcher>) {
    EMULATOR.get_or_init(|| launcher);
}

pub(super) fn emulator() -> Option<&'static Arc<dyn Launcher>> {
    EMULATOR.get()
}

/// What starts kernels on `device`.
pub(super) fn launcher(device: &Device) -> Result<Arc<dyn Launcher>> {
    match (device, emulator()) {
        #[cfg(feature = "cuda")]
        (Device::Cuda(device), _) => Ok(Arc::new(driver::Driver::new(device.clone()))),
        (Device::Cpu, Some(emulator)) => Ok(emulator.clone()),
        (other, _) => Err(Error::Internal(format!("there are no kernels for the device {:?}", other.location()))),
    }
}
