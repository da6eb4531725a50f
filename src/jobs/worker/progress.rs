//! Reports of the training thread to the worker that started it: the plan before the first step, progress on the way,
//! the result at the end. Sent by [`super::training`], written down by [`super::job_run`].

use std::sync::Arc;
use std::time::Duration;

use super::best::Standings;
use super::counts::{AnswerCounts, Measured, MeasuredBefore};
use super::forecast::{Forecast, RunAccount};
use super::quality::QualityFigures;
use crate::adapters::peft::PeftFiles;
use crate::datasets::{DatasetReport, NotedLines};
use crate::model::lora::Adapter;
use crate::train::hyperparameters::Hyperparameters;
use crate::train::{Question, StepReport, TrainingMethod, Validation};

/// Report of the thread while it works.
pub(super) enum Progress {
    /// The files are read, training begins.
    Planned(Box<TrainingPlan>),
    /// Right answers and loss of the model that training begins with.
    Before(Box<MeasuredBefore>),
    /// Hard negatives were found for so many pairs, of so many.
    Mined { negatives: usize, pairs: usize, of: usize },
    /// How well the model that training begins with puts the validation file in order.
    OrderedBefore(QualityFigures),
    /// Answers are not counted, and why.
    NotCounted(&'static str),
    /// Figures of a step, for an event.
    Step { figures: StepFigures, tokens_per_second: f64, remaining: Duration },
    /// Figures of the whole validation file.
    Measured(Box<Measured>),
    /// Classification metrics of the validation file after a step.
    Classified { step: usize, figures: ClassFigures },
    /// An epoch is complete.
    Epoch { done: usize, of: usize },
    /// The adapter at the end of an epoch, to be used as a model.
    Model { figures: StepFigures, files: PeftFiles },
    /// State that another attempt can go on from.
    Checkpoint { step: usize, state: Vec<u8> },
}

/// Figures of a step.
#[derive(Debug, Clone)]
pub(super) struct StepFigures {
    pub step: StepReport,
    /// Metrics of the validation file; `None` if they were not measured after this step.
    pub validation: Option<Validation>,
    /// Right answers of the validation file; `None` if they were not counted after this step.
    pub counts: Option<AnswerCounts>,
    /// How well vectors or scores put the validation file in order; `None` if not measured after this step.
    pub quality: Option<QualityFigures>,
    /// Classification metrics of the validation file; `None` if they were not measured after this step.
    pub classes: Option<ClassFigures>,
}

/// Classification metrics by the names of their columns in the result file; NaN if one is not defined.
pub(super) type ClassFigures = Vec<(String, f64)>;

/// Files, settings and forecast of a run, before its first step.
pub(super) struct TrainingPlan {
    pub method: TrainingMethod,
    pub resolved: Hyperparameters,
    pub training: DatasetReport,
    pub validation: Option<DatasetReport>,
    /// Lines of the validation file whose examples the training file has, too.
    pub shared: NotedLines,
    /// Learning rate that a request without one would get.
    pub automatic_rate: f64,
    pub total_steps: usize,
    /// Steps that an earlier attempt has done.
    pub resumed_at: usize,
    /// Reason why the checkpoint of an earlier attempt cannot be used; `None` if it is, or if there is none.
    pub checkpoint_fault: Option<String>,
    /// Numbers of validation examples that are classified and of those left out; `None` without classification metrics.
    pub classified: Option<(usize, usize)>,
    pub forecast: Forecast,
}

/// Result of a run.
pub(super) struct Trained {
    pub files: PeftFiles,
    /// Adapter of `files`, ready to serve.
    pub adapter: Arc<Adapter>,
    /// Tokens read, repeats counted.
    pub tokens: i64,
    pub result_file: Vec<u8>,
    pub account: RunAccount,
    /// First questions of the validation file.
    pub questions: Vec<Question>,
    /// Figures of the validation file in the whole run.
    pub standings: Standings,
    /// Step that the adapter is from; `None` if that is the last.
    pub chosen: Option<usize>,
    /// Last step of a run that ended early; `None` if all planned steps were done.
    pub ended_early: Option<usize>,
}
