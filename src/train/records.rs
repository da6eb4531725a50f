//! What training says about itself: a report of each step for the worker, and the record that is kept of it for the result
//! file, for a checkpoint, and for the decision to end early.

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps so far, this one included.
    pub step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// Weighted mean cross entropy of the step's targets before its update, in nats.
    pub loss: f64,
    /// Share of the step's targets that had the highest logit.
    pub token_accuracy: f64,
    /// Share of the step's examples whose targets all had the highest logit.
    pub sequence_accuracy: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step's examples.
    pub tokens: usize,
    /// The epoch that ended with this step, counted from 1.
    pub completed_epoch: Option<usize>,
}

/// Figures of held-out examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Weighted mean cross entropy of all targets, in nats.
    pub loss: f64,
    /// Share of the targets that had the highest logit.
    pub token_accuracy: f64,
    /// Share of the examples whose targets all had the highest logit.
    pub sequence_accuracy: f64,
}

/// One line of the result file, kept for the whole run and in its checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// Tokens read so far, repeats counted.
    pub elapsed_tokens: u64,
    /// Examples read so far, repeats counted.
    pub elapsed_examples: u64,
    /// As in [`StepReport`].
    pub loss: f64,
    /// As in [`StepReport`].
    pub token_accuracy: f64,
    /// As in [`StepReport`].
    pub sequence_accuracy: f64,
    /// Of the validation file, where it was measured after this step.
    pub validation: Option<Evaluation>,
    /// Of its classes, where they were measured after this step: one figure for each of the task's columns, NaN where it is
    /// not defined.
    pub classification: Vec<f64>,
}
