//! Inputs of a training thread, and the preparations that need nothing else: reading the files, turning every `auto`
//! into a number, building the trainer. Gathered by [`super::job_run`] and [`super::estimate`], used by
//! [`super::training`].

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Sender;

use super::cancellable_reader::cancellable;
use super::compatibility::take_shape;
use super::lease::Control;
use super::progress::Progress;
use crate::datasets::classes::{self, Wanted};
use crate::datasets::parse::Format;
use crate::datasets::{self, Dataset, DatasetReport, ExampleStore, Purpose, RenderSettings};
use crate::engine::priority::Priority;
use crate::jobs::{Error, Result};
use crate::jobs::{JobApi, JobSpec};
use crate::model::BaseModel;
use crate::model::lora::Adapter;
use crate::system::FreeMemory;
use crate::train::MemoryBounds;
use crate::train::checkpoint;
use crate::train::classification::ClassificationTask;
use crate::train::estimate::{TrainingMemory, TrainingRate};
use crate::train::hyperparameters::{Classification, Hyperparameters, Method};
use crate::train::mining::HardNegatives;
use crate::train::{BeforeMicroStep, TrainSettings, Trainer, settings, text_settings};

/// Inputs of a training thread.
pub(super) struct Inputs {
    pub model: Arc<BaseModel>,
    pub api: JobApi,
    pub method: Method,
    pub asked: Hyperparameters,
    /// Settings of an earlier attempt, which this one goes on with; `None` for a first attempt.
    pub resolved: Option<Hyperparameters>,
    pub seed: u64,
    pub training_file: File,
    pub validation_file: Option<File>,
    /// Adapter to continue; `None` for a new one.
    pub initial: Option<Arc<Adapter>>,
    /// Classification metrics that the client asked for.
    pub classification: Option<Classification>,
    /// State of an earlier attempt; `None` to begin at the first step.
    pub checkpoint: Option<Bytes>,
    /// Unix second that chat templates take for the present.
    pub now: i64,
    pub surroundings: Surroundings,
}

/// Inputs that come from the server or the command, and not from the job.
pub(super) struct Surroundings {
    /// Known rates of this machine and model, by setup.
    pub rates: BTreeMap<String, TrainingRate>,
    /// Operator's bounds of memory.
    pub memory: MemoryBounds,
    /// Folder for temporary files.
    pub scratch: PathBuf,
    pub priority: Arc<Priority>,
    pub control: Arc<Control>,
    pub progress: Sender<Progress>,
}

impl Inputs {
    /// Builds the inputs of a first attempt at `spec`, with a new adapter and without classification metrics.
    pub(super) fn new(
        model: Arc<BaseModel>,
        api: JobApi,
        spec: &JobSpec,
        (training_file, validation_file): (File, Option<File>),
        surroundings: Surroundings,
    ) -> Self {
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
            now: jiff::Timestamp::now().as_second(),
            surroundings,
        }
    }

    /// Returns the settings of rendering the files to tokens.
    pub(super) fn render_settings(&self) -> Result<RenderSettings> {
        Ok(RenderSettings {
            prompt_loss_weight: settings::prompt_loss_weight(&self.asked, self.api.defaults()),
            max_tokens: settings::max_sequence_tokens(&self.asked, &self.model.config)?,
            scratch: self.surroundings.scratch.clone(),
            now: self.now,
            prompts: text_settings::prompts(&self.asked, &self.model.vectors)?,
        })
    }

    /// Reads and tokenizes one of the files in the format of the training method.
    pub(super) fn read(&self, file: &File, purpose: Purpose, render: &RenderSettings) -> Result<Dataset> {
        let file = cancellable(file, &self.surroundings.control)?;
        let dataset = match self.method {
            Method::Supervised => datasets::read(file, purpose, &*self.model, render),
            Method::Dpo => datasets::read_preferences(file, purpose, &*self.model, render),
        };
        Ok(dataset?)
    }

    /// Reads both files as a classification task; `None` if the client did not ask for its metrics or there is no
    /// validation file.
    pub(super) fn classification_task(&self, max_tokens: usize) -> Result<Option<ClassificationTask>> {
        let (Some(asked), Some(validation_file)) = (&self.classification, &self.validation_file) else {
            return Ok(None);
        };
        if asked.compute != Some(true) {
            return Ok(None);
        }
        let wanted = Wanted {
            n_classes: asked.n_classes.map(|number| number as usize),
            positive_class: asked.positive_class.as_deref(),
        };
        let control = &self.surroundings.control;
        let (training, validation) =
            (cancellable(&self.training_file, control)?, cancellable(validation_file, control)?);
        let data = classes::read(training, validation, &*self.model, wanted, max_tokens)?;
        Ok(Some(ClassificationTask::new(data, asked.betas.as_deref().unwrap_or_default())))
    }

    /// Returns the settings of an earlier attempt, or turns every `auto` into a number; an adapter to continue gives
    /// its shape.
    pub(super) fn resolve(&self, report: &DatasetReport) -> Result<Hyperparameters> {
        let mut resolved = match &self.resolved {
            Some(resolved) => resolved.clone(),
            None => settings::resolve(&self.asked, self.api.defaults(), self.method, report, &self.model.config)?,
        };
        if report.is_of_texts() {
            // What is longer is cut there, whatever the request allows.
            let most = self.model.vectors.max_tokens as u32;
            resolved.max_seq_length = resolved.max_seq_length.map(|tokens| tokens.min(most));
        }
        if report.format.is_some_and(Format::is_of_vectors) {
            let usual = &self.model.vectors.default_prompt;
            for prompt in [&mut resolved.query_prompt, &mut resolved.document_prompt] {
                *prompt = prompt.take().or_else(|| usual.clone());
            }
        }
        if let Some(initial) = &self.initial {
            take_shape(&mut resolved, &self.asked, initial)?;
        }
        settings::check_experts(&resolved, &self.model.config)?;
        Ok(resolved)
    }

    /// Returns hard negatives of `examples`: those that an earlier attempt has found, or new ones, which are reported.
    /// Calls `before` before each piece of that work.
    pub(super) fn hard_negatives(
        &self,
        examples: &ExampleStore,
        count: usize,
        before: BeforeMicroStep<'_>,
    ) -> Result<HardNegatives> {
        let saved = self.checkpoint.as_ref().and_then(|state| checkpoint::hard_negatives(state).ok().flatten());
        if let Some(saved) = saved.filter(|saved| saved.fits(examples)) {
            return Ok(saved);
        }
        let found = HardNegatives::search(&self.model, self.initial.as_deref(), examples, count, before)?;
        let report = Progress::Mined { negatives: found.len(), pairs: found.pairs(), of: examples.len() };
        self.surroundings.progress.blocking_send(report).map_err(|_| Error::Cancelled)?;
        Ok(found)
    }

    /// Builds the trainer and restores the checkpoint of an earlier attempt. Returns the reason, too, if it could not
    /// be restored; the run then begins anew.
    pub(super) fn trainer(
        &mut self,
        resolved: &Hyperparameters,
        examples: ExampleStore,
    ) -> Result<(Trainer, Option<String>)> {
        let settings = TrainSettings::new(resolved, self.seed);
        let settings = settings.on(self.model.decoder.kernels(), self.model.config.hidden_size);
        let mut trainer = Trainer::new(Arc::clone(&self.model), settings, examples, self.initial.as_deref())?;
        let fault = self.checkpoint.take().and_then(|checkpoint| trainer.restore(&checkpoint).err());
        Ok((trainer, fault.map(|error| error.to_string())))
    }

    /// Chooses how much the backward pass recomputes, so that the run fits into the memory. Refuses a run whose adapter
    /// could not be served.
    pub(super) fn choose_memory(
        &self,
        trainer: &Trainer,
        report: &DatasetReport,
        process_bytes: Option<u64>,
        free: Option<FreeMemory>,
    ) -> Result<TrainingMemory> {
        let adapter = trainer.adapter()?;
        let precision = self.model.decoder.adapter_precision().size_in_bytes();
        self.surroundings.memory.check_served((adapter.elements() * precision) as u64)?;
        let memory_of = |way| {
            let (parameters, settings) = (trainer.parameter_count(), trainer.settings());
            TrainingMemory::new(&self.model, parameters, settings, report, process_bytes, way)
        };
        Ok(self.surroundings.memory.choose(memory_of, free, report.longest)?)
    }
}
