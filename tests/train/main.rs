//! Training files and the trainer, without a database.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/characters.rs"]
mod characters;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod contrastive;
mod datasets;
mod encoders;
mod experts;
mod invariants;
mod masking;
mod pair_files;
mod preference_files;
mod quantized_bases;
mod round_trip;

use attune::model::kernels::Kernels;

/// Returns the kernels under test: those of the device.
fn kernels() -> Kernels {
    Kernels::of(&fixtures::device()).unwrap()
}
