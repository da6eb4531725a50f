//! The training loop, one optimizer step at a time (stub).

/// Settings, all numbers.
#[derive(Debug, Clone)]
pub struct TrainSettings {}
/// One step.
#[derive(Debug, Clone)]
pub struct StepReport {}
/// Validation figures.
#[derive(Debug, Clone)]
pub struct Evaluation {}
/// The trainer.
#[derive(Debug)]
pub struct Trainer {}
