//! Models and their kernels, against transformers, PEFT and plain formulas.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/exact.rs"]
mod exact;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod decoder;
mod gradients;
mod kernels;
mod peft;
mod precision;
