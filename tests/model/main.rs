//! Models and their kernels, against transformers, PEFT and plain formulas.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/exact.rs"]
mod exact;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod checkpoints;
mod decoder;
mod encoder_gguf;
mod encoder_precision;
mod encoders;
mod expert_adapters;
mod experts;
mod export;
mod export_experts;
mod export_forms;
mod fields;
mod gguf;
mod gradients;
mod kernels;
mod long_rope;
mod peft;
mod precision;
mod quantized;
mod tokens;

use attune::model::kernels::Kernels;

/// Returns the kernels under test: those of the device.
fn kernels() -> Kernels {
    Kernels::of(&fixtures::device()).unwrap()
}
