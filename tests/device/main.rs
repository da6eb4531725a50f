//! Runs a GPU's code on the CPU, in an emulator that runs every kernel thread by thread: the kernels against plain
//! formulas, the number of launches of a step, and the whole way from embedding to gradients with the tests of the
//! model in f32 and the same models in bf16 and f16. `gpu.rs` runs the tests of the model on a GPU.

#![cfg(not(feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod emulator;
mod encoders;
mod engine;
mod experts;
mod halves;
mod kernels;
mod launches;
mod rates;
mod speed;
mod training;

#[path = "../common/draws.rs"]
mod draws;
#[path = "../common/fixtures.rs"]
mod fixtures;
#[path = "../model/decoder.rs"]
mod model;
#[path = "../train/encoders.rs"]
mod training_of_encoders;
#[path = "../model/encoders.rs"]
mod vectors;

use attune::model::kernels::Kernels;

/// Returns the kernels under test.
fn kernels() -> Kernels {
    emulator::kernels(std::sync::Arc::new(emulator::Emulator { reversed: false }))
}
