//! Fits a LoRA adapter to a dataset. `jobs/worker/training.rs` drives a [`Trainer`] step by step; the base model is the one that is
//! serving, shared and frozen.
//!
//! [`settings`] turns what was asked for into numbers; [`trainer`] is the loop; [`packing`] makes its batches, [`backward`]
//! and [`loss`] its gradients, [`optimizer`] and [`schedule`] its updates on the [`parameters`]; [`checkpoint`] makes it
//! resumable to the bit; [`estimate`] tells what a run will take, from what a [`calibration`] measures; [`classification`] measures how prompts are sorted into classes; [`results`] writes the result file.

pub mod backward;
pub mod calibration;
pub mod checkpoint;
pub mod classification;
pub mod classification_metrics;
pub mod estimate;
pub mod loss;
pub mod optimizer;
pub mod packing;
pub mod parameters;
pub mod results;
pub mod schedule;
pub mod settings;
pub mod trainer;

pub use settings::TrainSettings;
pub use trainer::{Evaluation, StepReport, Trainer};
