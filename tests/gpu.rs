//! All tests for a GPU in one program, which `tools/gpu-check` carries to a machine that has one.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::duplicate_mod,
    reason = "a test fails by panicking; each part is a program of its own, too"
)]

#[path = "device/encoders.rs"]
mod encoders;
#[path = "device/engine.rs"]
mod engine;
#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "device/halves.rs"]
mod halves;
#[path = "device/memory.rs"]
mod memory;
#[path = "model/decoder.rs"]
mod model;
#[path = "device/rates.rs"]
mod rates;
#[path = "train/round_trip.rs"]
mod round_trip;
#[path = "device/speed.rs"]
mod speed;
#[path = "device/training.rs"]
mod training;
#[path = "train/encoders.rs"]
mod training_of_encoders;
#[path = "model/encoders.rs"]
mod vectors;

use attune::model::kernels::Kernels;

/// Returns the kernels under test.
fn kernels() -> Kernels {
    Kernels::of(&fixtures::device()).unwrap()
}
