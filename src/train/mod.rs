//! Fits a LoRA adapter to a dataset. `jobs/worker.rs` drives a [`Trainer`] step by step; the base model is the one that is
//! serving, shared and frozen.

pub mod backward;
pub mod checkpoint;
pub mod loss;
pub mod optimizer;
pub mod results;
pub mod schedule;
pub mod trainer;

pub use trainer::{Evaluation, StepReport, TrainSettings, Trainer};
