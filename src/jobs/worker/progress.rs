//! Reports of the training thread to the worker that started it: progress on the way, the plan before the first step, the
//! result at the end. Sent by [`super::training`], written down by `job_run.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::forecast::{Forecast, RunAccount};
use crate::adapters::peft::PeftFiles;
use crate::datasets::DatasetReport;
use crate::model::lora::Adapter;
use crate::train::hyperparameters::Hyperparameters;
use crate::train::{Question, StepReport, TrainingMethod, Validation};

/// What the thread reports while it works.
pub(super) enum Progress {
    /// The files are read, training begins.
    Planned(Box<TrainingPlan>),
    /// A step that is worth an event.
    Step { step: StepReport, validation: Option<Validation>, tokens_per_second: f64, remaining: Duration },
    /// How well the validation file is sorted into classes: figures by name.
    Classified(Vec<(String, f64)>),
    /// An epoch is complete.
    Epoch { done: usize, of: usize },
    /// The adapter at the end of an epoch, to be used as a model.
    Model { step: StepReport, validation: Option<Validation>, files: PeftFiles },
    /// A state to go on from.
    Checkpoint { step: usize, state: Vec<u8> },
}

/// What will be done.
pub(super) struct TrainingPlan {
    pub method: TrainingMethod,
    pub resolved: Hyperparameters,
    pub training: DatasetReport,
    pub validation: Option<DatasetReport>,
    pub total_steps: usize,
    /// Steps that an earlier attempt has done.
    pub resumed_at: usize,
    /// Why the checkpoint of an earlier attempt is not used.
    pub checkpoint_fault: Option<String>,
    /// Validation examples that are sorted into classes, and those that are not.
    pub classified: Option<(usize, usize)>,
    pub forecast: Forecast,
}

/// The result.
pub(super) struct Trained {
    pub files: PeftFiles,
    /// The same, ready to be asked.
    pub adapter: Arc<Adapter>,
    /// Tokens read, repeats counted.
    pub tokens: u64,
    pub result_file: Vec<u8>,
    pub account: RunAccount,
    /// The first questions of the validation file.
    pub questions: Vec<Question>,
    /// The step that the adapter is from, where that is not the last.
    pub chosen: Option<usize>,
    /// The last step, where more were planned.
    pub ended_early: Option<usize>,
}
