//! The part of a job that computes: runs on a thread of its own, reads the files, trains, and reports over a channel.
//!
//! It neither writes nor asks anything of the database: [`super::job_run`] does that, so that a slow database never holds up
//! a step and a lost lease is noticed while a step runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::Sender;

use super::cancellable_reader::cancellable;
use super::compatibility::{check_alike, check_told_apart, take_shape};
use super::forecast::{Busy, Forecast, ForecastInputs, RunAccount, samples};
use super::lease::{Control, Interrupt};
use crate::adapters::peft::{self, PeftFiles};
use crate::datasets::classes::{self, Wanted};
use crate::datasets::{self, Dataset, DatasetReport, Purpose, RenderSettings};
use crate::engine::priority::{Priority, TrainingTurns};
use crate::jobs::JobApi;
use crate::jobs::worker::results;
use crate::model::lora::Adapter;
use crate::model::{BaseModel, device};
use crate::system::MemoryWatch;
use crate::train::classification::ClassificationTask;
use crate::train::estimate::{TrainingMemory, TrainingRate};
use crate::train::hyperparameters::{Classification, Hyperparameters, Method};
use crate::train::recomputation::MemoryBounds;
use crate::train::trainer::BeforeMicroStep;
use crate::train::{HeldOut, Question, StepReport, TrainSettings, Trainer, Validation, settings};
use crate::{Error, Result};

/// Time between checkpoints; the end of an epoch has one besides.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// Metrics events of a job, besides those at the ends of epochs.
const METRICS_EVENTS: usize = 150;
/// Prompts of the validation file that base and fine-tuned model are asked at the end.
const QUESTIONS: usize = 3;
/// How long a piece of work waits for requests at most, so that training never stands still.
const YIELD: Duration = Duration::from_millis(250);

/// All that the thread needs.
pub(super) struct Inputs {
    pub model: Arc<BaseModel>,
    pub api: JobApi,
    pub method: Method,
    pub asked: Hyperparameters,
    /// The settings of an earlier attempt, which this one goes on with.
    pub resolved: Option<Hyperparameters>,
    pub seed: u64,
    pub training_file: std::fs::File,
    pub validation_file: Option<std::fs::File>,
    /// The adapter to continue.
    pub initial: Option<Arc<Adapter>>,
    /// What to measure of classes, where the client asked for it.
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
    pub method: Method,
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

/// Trains to the end; [`Error::Cancelled`] after an interrupt, with the last state reported where the job may go on later.
pub(super) fn train(inputs: Inputs) -> Result<Trained> {
    let control = Arc::clone(&inputs.control);
    let health = inputs.model.health.clone();
    match Run::prepare(inputs).and_then(Run::complete) {
        // Reading a file ends with an error of its own when interrupted.
        Err(error) if control.raised().is_some() => {
            tracing::debug!("training stopped: {error}");
            Err(Error::Cancelled)
        }
        Err(Error::Tensor(_) | Error::Internal(_)) if !health.check() => Err(crate::model::Error::DeviceLost.into()),
        outcome => outcome,
    }
}

/// What the job would do, without doing it.
pub(super) fn plan(mut inputs: Inputs) -> Result<TrainingPlan> {
    let control = Arc::clone(&inputs.control);
    let (progress, mut reports) = tokio::sync::mpsc::channel(1);
    inputs.progress = progress;
    let prepared = Run::prepare(inputs);
    control.check()?;
    drop(prepared?);
    match reports.try_recv() {
        Ok(Progress::Planned(plan)) => Ok(*plan),
        _ => Err(Error::Internal("no plan was made".into())),
    }
}

struct Run {
    trainer: Trainer,
    forecast: Forecast,
    validation: Option<HeldOut>,
    classification: Option<ClassificationTask>,
    model: Arc<BaseModel>,
    api: JobApi,
    priority: Arc<Priority>,
    control: Arc<Control>,
    progress: Sender<Progress>,
}

impl Run {
    fn prepare(inputs: Inputs) -> Result<Self> {
        let Inputs { model, api, method, asked, control, .. } = inputs;
        let device = model.decoder.device();
        let (process_bytes, free) = (device::used_memory(device), device::free_memory(device));
        let render = RenderSettings {
            prompt_loss_weight: settings::prompt_loss_weight(&asked, api.defaults()),
            max_tokens: settings::max_sequence_tokens(&asked, &model.config)?,
            scratch: inputs.scratch,
        };
        let (training_file, validation_file) = (inputs.training_file, inputs.validation_file);
        let read = |file, purpose| {
            let file = cancellable(file, &control)?;
            match method {
                Method::Supervised => datasets::read(file, purpose, &*model, &render),
                Method::Dpo => datasets::read_preferences(file, purpose, &*model, &render),
            }
        };
        let training = read(&training_file, Purpose::Training)?;
        let validation = validation_file.as_ref().map(|file| read(file, Purpose::Validation)).transpose()?;
        let texts = training.report.is_of_pairs();
        check_alike(texts, validation.as_ref(), inputs.classification.as_ref())?;
        let classification = match (&inputs.classification, &validation_file) {
            (Some(asked), Some(file)) if asked.compute == Some(true) => {
                let wanted = Wanted {
                    n_classes: asked.n_classes.map(|number| number as usize),
                    positive_class: asked.positive_class.as_deref(),
                };
                let files = (cancellable(&training_file, &control)?, cancellable(file, &control)?);
                let data = classes::read(files.0, files.1, &*model, wanted, render.max_tokens)?;
                Some(ClassificationTask::new(data, asked.betas.as_deref().unwrap_or_default()))
            }
            _ => None,
        };

        let mut resolved = match inputs.resolved {
            Some(resolved) => resolved,
            None => settings::resolve(&asked, api.defaults(), method, &training.report, &model.config)?,
        };
        if let Some(initial) = &inputs.initial {
            take_shape(&mut resolved, &asked, initial)?;
        }
        let settings = TrainSettings::new(&resolved, inputs.seed).on(model.decoder.kernels());
        let (width, epochs) = (settings.width(), settings.epochs);
        let report = training.report;
        let samples = samples(&training.examples)?;
        let mut trainer = Trainer::new(Arc::clone(&model), settings, training.examples, inputs.initial.as_deref())?;
        let checkpoint_fault =
            inputs.checkpoint.and_then(|checkpoint| trainer.restore(&checkpoint).err()).map(|error| error.to_string());
        check_told_apart(&trainer, &report)?;
        let memory_of = |way| {
            let (parameters, settings) = (trainer.parameter_count(), trainer.settings());
            TrainingMemory::new(&model, parameters, settings, &report, process_bytes, way)
        };
        let memory = inputs.memory.choose(memory_of, free, report.longest)?;
        trainer.recompute(memory.recomputation);
        let mut turns = TrainingTurns::new(Arc::clone(&inputs.priority), YIELD);
        let mut before_piece = || {
            control.check()?;
            turns.next();
            Ok(())
        };
        let steps = trainer.total_steps();
        let held_out = |Dataset { examples, report: counts }| {
            (HeldOut::new(examples, width).between_epochs(epochs * report.tokens, steps), counts)
        };
        let (held_out, validation) = validation.map(held_out).unzip();
        let grounds = ForecastInputs {
            model: &model,
            trainer: &trainer,
            resolved: &resolved,
            training: &report,
            validation: held_out.as_ref(),
            samples: &samples,
            rates: &inputs.rates,
            memory,
        };
        let forecast = Forecast::new(&grounds, &mut before_piece)?;
        let plan = TrainingPlan {
            resolved,
            training: report,
            validation,
            method,
            total_steps: steps,
            resumed_at: trainer.step_number(),
            checkpoint_fault,
            classified: classification.as_ref().map(ClassificationTask::counts),
            forecast: forecast.clone(),
        };
        let run = Self {
            trainer,
            forecast,
            validation: held_out,
            classification,
            model,
            api,
            priority: inputs.priority,
            control,
            progress: inputs.progress,
        };
        run.report(Progress::Planned(Box::new(plan)))?;
        Ok(run)
    }

    fn complete(mut self) -> Result<Trained> {
        let total = self.trainer.total_steps();
        let (per_epoch, epochs) = (self.trainer.steps_per_epoch(), self.trainer.settings().epochs);
        let every = total.div_ceil(METRICS_EVENTS).max(1);
        let (begin, resumed_at) = (Instant::now(), self.trainer.step_number());
        let (mut since, mut tokens) = (begin, 0);
        let mut saved = begin;
        let _busy = Busy::enter();
        let device = self.model.decoder.device().clone();
        let memory = MemoryWatch::start(move || device::used_memory(&device));
        let (mut shown, mut read) = (TrainingRate { tokens: 0.0, seconds: 0.0 }, 0);
        let (control, mut turns) = (Arc::clone(&self.control), TrainingTurns::new(Arc::clone(&self.priority), YIELD));
        let mut before_micro_step = move || {
            control.check()?;
            turns.next();
            Ok(())
        };
        loop {
            let step_began = Instant::now();
            let report = match self.trainer.step(&mut before_micro_step) {
                Ok(Some(report)) => report,
                Ok(None) => break,
                Err(error) => return self.stopped(error.into()),
            };
            tokens += report.tokens;
            read += report.tokens;
            shown.tokens += self.forecast.work_of(&report, per_epoch);
            shown.seconds += step_began.elapsed().as_secs_f64();
            let mut validation = None;
            // Interrupted here, the job goes on from the checkpoint before, so that no evaluation is missing.
            let whole = report.completed_epoch.is_some();
            if whole || self.validation.as_ref().is_some_and(|held_out| held_out.is_due(report.step)) {
                validation = self.validate(whole, &mut before_micro_step)?;
            }
            if !whole && validation.is_some() && self.trainer.has_ended_early() {
                validation = self.validate(true, &mut before_micro_step)?;
            }
            let figures = match (report.completed_epoch, &self.classification) {
                (Some(_), Some(task)) => {
                    let figures = self.trainer.classify(task, &mut before_micro_step)?;
                    self.trainer.record_classification(figures.clone());
                    Some(task.columns().into_iter().zip(figures).collect())
                }
                _ => None,
            };
            let complete = self.trainer.is_complete();
            if report.step % every == 0 || complete || validation.is_some() {
                let tokens_per_second = tokens as f64 / since.elapsed().as_secs_f64().max(1e-9);
                (since, tokens) = (Instant::now(), 0);
                let per_step = begin.elapsed() / (report.step - resumed_at).max(1) as u32;
                let remaining = per_step.saturating_mul((total - report.step) as u32);
                self.report(Progress::Step { step: report, validation, tokens_per_second, remaining })?;
            }
            if let Some(done) = report.completed_epoch {
                if let Some(figures) = figures {
                    self.report(Progress::Classified(figures))?;
                }
                self.report(Progress::Epoch { done, of: epochs })?;
                // Before the state to go on from: an attempt that is lost between the two makes this model again.
                if self.api == JobApi::FineTuningJobs {
                    let files = peft::write(&self.trainer.adapter()?, &self.model.id)?;
                    self.report(Progress::Model { step: report, validation, files })?;
                }
            }
            // The last state needs no checkpoint: publishing takes less time than restoring.
            if !complete && (report.completed_epoch.is_some() || saved.elapsed() >= CHECKPOINT_EVERY) {
                self.checkpoint()?;
                saved = Instant::now();
            }
        }
        let (seconds, peak_bytes) = (begin.elapsed().as_secs_f64(), memory.peak_bytes());
        let account = RunAccount { forecast: self.forecast.clone(), seconds, tokens: read, rate: shown, peak_bytes };
        self.result(account)
    }

    /// Measures the adapter on the validation file, where there is one, and notes its figures.
    fn validate(&mut self, whole: bool, before_micro_step: BeforeMicroStep<'_>) -> Result<Option<Validation>> {
        let Some(held_out) = &mut self.validation else { return Ok(None) };
        let validation = self.trainer.validate(held_out, whole, before_micro_step)?;
        if let Some(figures) = validation {
            self.trainer.record_validation(figures)?;
        }
        Ok(validation)
    }

    /// After an error in a step: an interrupt that the job may go on from saves the last whole step.
    fn stopped(&self, error: Error) -> Result<Trained> {
        if matches!(self.control.raised(), Some(Interrupt::Shutdown | Interrupt::Pause)) {
            self.checkpoint()?;
        }
        Err(error)
    }

    fn result(self, account: RunAccount) -> Result<Trained> {
        let (mut adapter, step) = self.trainer.result()?;
        let files = peft::write(&adapter, &self.model.id)?;
        adapter.id = files.id();
        let columns = self.classification.as_ref().map(ClassificationTask::columns).unwrap_or_default();
        let (history, texts) = (self.trainer.history(), self.trainer.settings().scale.is_some());
        let result_file = results::csv(self.api, history, self.validation.is_some(), texts, &columns)?;
        let chosen = (step < self.trainer.step_number()).then_some(step);
        let mut questions = Vec::new();
        // Pairs of texts ask nothing.
        for place in 0..if texts { 0 } else { QUESTIONS } {
            let example = self.validation.as_ref().map(|held_out| held_out.example(place)).transpose()?.flatten();
            questions.extend(example.as_ref().and_then(Question::of));
        }
        let ended_early = self.trainer.has_ended_early().then(|| self.trainer.step_number());
        let tokens = self.trainer.trained_tokens();
        let adapter = Arc::new(self.model.decoder.served(&adapter)?);
        Ok(Trained { files, adapter, tokens, result_file, account, questions, chosen, ended_early })
    }

    fn checkpoint(&self) -> Result<()> {
        self.report(Progress::Checkpoint { step: self.trainer.step_number(), state: self.trainer.save()? })
    }

    fn report(&self, progress: Progress) -> Result<()> {
        self.progress.blocking_send(progress).map_err(|_| Error::Cancelled)
    }
}
