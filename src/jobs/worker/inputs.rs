//! What the training thread is given, and the first thing that it makes of it: the files as tokens and the settings as
//! numbers. Called by [`super::training`].

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Sender;

use super::cancellable_reader::cancellable;
use super::compatibility::{check_alike, take_shape};
use super::lease::Control;
use super::progress::Progress;
use crate::datasets::classes::{self, Wanted};
use crate::datasets::{self, Dataset, DatasetReport, Purpose, RenderSettings};
use crate::engine::priority::Priority;
use crate::jobs::{JobApi, JobSpec, Result};
use crate::model::BaseModel;
use crate::model::lora::Adapter;
use crate::train::MemoryBounds;
use crate::train::classification::ClassificationTask;
use crate::train::estimate::TrainingRate;
use crate::train::hyperparameters::{Classification, Hyperparameters, Method};
use crate::train::settings;

/// All that the thread needs.
pub(super) struct Inputs {
    pub model: Arc<BaseModel>,
    pub api: JobApi,
    pub method: Method,
    pub asked: Hyperparameters,
    /// The settings of an earlier attempt, which this one goes on with.
    pub resolved: Option<Hyperparameters>,
    pub seed: u64,
    pub training_file: File,
    pub validation_file: Option<File>,
    /// The adapter to continue.
    pub initial: Option<Arc<Adapter>>,
    /// What to measure of classes, if the client asked for it.
    pub classification: Option<Classification>,
    /// The state of an earlier attempt.
    pub checkpoint: Option<Bytes>,
    /// How fast this machine has trained the model, by setup.
    pub rates: BTreeMap<String, TrainingRate>,
    /// What the operator says of memory.
    pub memory: MemoryBounds,
    /// The folder for temporary files.
    pub scratch: PathBuf,
    pub priority: Arc<Priority>,
    pub control: Arc<Control>,
    pub progress: Sender<Progress>,
}

impl Inputs {
    /// Gathers what a new job of `spec` needs on `model`: it continues no adapter, measures no classes, and nothing
    /// disturbs it.
    pub fn new(
        model: Arc<BaseModel>,
        api: JobApi,
        spec: &JobSpec,
        (training_file, validation_file): (File, Option<File>),
        known: Known,
        progress: Sender<Progress>,
    ) -> Self {
        let Known { rates, memory, scratch } = known;
        Self {
            model,
            api,
            method: spec.method,
            asked: spec.hyperparameters.clone(),
            resolved: None,
            seed: spec.seed,
            training_file,
            validation_file,
            initial: None,
            classification: None,
            checkpoint: None,
            rates,
            memory,
            scratch,
            priority: Arc::new(Priority::default()),
            control: Arc::new(Control::default()),
            progress,
        }
    }

    /// Turns what was asked for into numbers: those of an earlier attempt, if there was one.
    pub fn resolve(&self, training: &DatasetReport) -> Result<Hyperparameters> {
        let Inputs { model, api, method, asked, .. } = self;
        let mut resolved = match &self.resolved {
            Some(resolved) => resolved.clone(),
            None => settings::resolve(asked, api.defaults(), *method, training, &model.config)?,
        };
        if let Some(initial) = &self.initial {
            take_shape(&mut resolved, asked, initial)?;
        }
        Ok(resolved)
    }
}

/// What is known of the machine.
pub(super) struct Known {
    /// How fast it has trained the model, by setup.
    pub rates: BTreeMap<String, TrainingRate>,
    /// What the operator says of memory.
    pub memory: MemoryBounds,
    /// The folder for temporary files.
    pub scratch: PathBuf,
}

/// The files of a job as tokens.
pub(super) struct Files {
    pub training: Dataset,
    pub validation: Option<Dataset>,
    /// What to measure of classes, if the client asked for it.
    pub classification: Option<ClassificationTask>,
}

impl Files {
    /// Reads and renders the files of a job; an error says what is wrong in which line.
    pub fn read(inputs: &Inputs) -> Result<Self> {
        let Inputs { model, api, asked, control, training_file, validation_file, .. } = inputs;
        let render = RenderSettings {
            prompt_loss_weight: settings::prompt_loss_weight(asked, api.defaults()),
            max_tokens: settings::max_sequence_tokens(asked, &model.config)?,
            scratch: inputs.scratch.clone(),
        };
        let read = |file, purpose| {
            let file = cancellable(file, control)?;
            match inputs.method {
                Method::Supervised => datasets::read(file, purpose, &**model, &render),
                Method::Dpo => datasets::read_preferences(file, purpose, &**model, &render),
            }
        };
        let training = read(training_file, Purpose::Training)?;
        let validation = validation_file.as_ref().map(|file| read(file, Purpose::Validation)).transpose()?;
        check_alike(training.report.is_of_pairs(), validation.as_ref(), inputs.classification.as_ref())?;
        let classification = match (&inputs.classification, validation_file) {
            (Some(asked), Some(file)) if asked.compute == Some(true) => {
                let wanted = Wanted {
                    n_classes: asked.n_classes.map(|number| number as usize),
                    positive_class: asked.positive_class.as_deref(),
                };
                let files = (cancellable(training_file, control)?, cancellable(file, control)?);
                let data = classes::read(files.0, files.1, &**model, wanted, render.max_tokens)?;
                Some(ClassificationTask::new(data, asked.betas.as_deref().unwrap_or_default()))
            }
            _ => None,
        };
        Ok(Self { training, validation, classification })
    }
}
