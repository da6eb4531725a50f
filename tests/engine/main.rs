//! The serving engine: over a model that is arithmetic, and over real weights.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/draws.rs"]
mod draws;
#[path = "../engine_support/mod.rs"]
mod engine_support;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod adapter_batches;
mod long_rope;
mod native;
mod prompt_logprobs;
mod real_weights;
mod static_models;
mod text;
