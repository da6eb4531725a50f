//! Kernels in CUDA C for a GPU: `sources/` holds them, this module and its parts launch them on tensors.
//!
//! Every function takes a [`Launcher`]. In the engine this is the GPU's driver; tests run the same kernels on the CPU,
//! thread by thread, and compare them with [`reference`](super::reference). Elements are f32, bf16 or f16, arithmetic
//! is f32.

pub mod attention;
pub mod convolution;
pub mod decode;
pub mod draw;
#[cfg(feature = "cuda")]
pub(super) mod driver;
pub mod elementwise;
pub mod launch;
pub mod lora;
pub mod loss;
pub mod optimizer;
pub mod product;
pub mod rows;

pub use launch::{DeviceEvent, Kernel, Launcher, Shape};
pub use rows::RowTables;
