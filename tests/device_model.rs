//! The whole way of a GPU on the CPU, with every kernel run thread by thread: the tests of the model in f32, and the same models in
//! bf16 and f16.

#![cfg(not(feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod device;
#[path = "device/engine.rs"]
mod engine;
#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "device/halves.rs"]
mod halves;
#[path = "model/decoder.rs"]
mod model;
#[path = "device/rates.rs"]
mod rates;
#[path = "device/speed.rs"]
mod speed;
#[path = "device/training.rs"]
mod training;

use std::sync::Arc;

#[ctor::ctor]
fn emulate() {
    attune::model::kernels::cuda::emulate_with(Arc::new(device::Emulator { reversed: false }));
}
