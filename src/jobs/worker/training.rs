//! The part of a job that computes: runs on a thread of its own, reads the files, trains, and reports over a channel.
//!
//! It neither writes nor asks anything of the database: [`super::job_run`] does that, so that a slow database never
//! holds up a step and a lost lease is noticed while a step runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::clock::Clock;
use super::compatibility::check_told_apart;
use super::forecast::{Busy, Forecast, ForecastInputs, RunAccount};
use super::inputs::{Files, Inputs};
use super::lease::{Control, Interrupt};
use super::progress::{Progress, TrainingPlan};
use crate::adapters::peft::{self, PeftFiles};
use crate::datasets::Dataset;
use crate::engine::priority::{Priority, TrainingTurns};
use crate::jobs::JobApi;
use crate::jobs::worker::results;
use crate::jobs::{Error, Result};
use crate::model::lora::Adapter;
use crate::model::{BaseModel, device};
use crate::system::MemoryWatch;
use crate::train::calibration;
use crate::train::classification::ClassificationTask;
use crate::train::estimate::TrainingMemory;
use crate::train::{BeforeMicroStep, HeldOut, Question, StepReport, TrainSettings, Trainer, Validation};

/// Time between checkpoints; the end of an epoch has one besides.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// Metrics events of a job, besides those at the ends of epochs.
const METRICS_EVENTS: usize = 150;
/// Prompts of the validation file that base and fine-tuned model are asked at the end.
const QUESTIONS: usize = 3;
/// How long a piece of work waits for requests at most, so that training never stands still.
const YIELD: Duration = Duration::from_millis(250);

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
    /// The step that the adapter is from; `None` if that is the last.
    pub chosen: Option<usize>,
    /// The last step, if more were planned.
    pub ended_early: Option<usize>,
}

/// Trains to the end; [`Error::Cancelled`] after an interrupt, with the last state reported if the job may go on
/// later.
pub(super) fn train(inputs: Inputs) -> Result<Trained> {
    let control = Arc::clone(&inputs.control);
    let health = inputs.model.health.clone();
    match Run::prepare(inputs).and_then(Run::complete) {
        // Reading a file ends with an error of its own when interrupted.
        Err(error) if control.raised().is_some() => {
            tracing::debug!("training stopped: {error}");
            Err(Error::Cancelled)
        }
        Err(error) if error.may_be_of_device() && !health.check() => Err(crate::model::Error::DeviceLost.into()),
        outcome => outcome,
    }
}

/// Plans what the job would do, without doing it.
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

/// Makes what is asked before each piece of work: it ends the work when the job is interrupted, and lets requests go
/// first.
fn yielding(control: &Arc<Control>, priority: &Arc<Priority>) -> impl FnMut() -> attune_train::Result<()> + use<> {
    let (control, mut turns) = (Arc::clone(control), TrainingTurns::new(Arc::clone(priority), YIELD));
    move || {
        control.check()?;
        turns.next();
        Ok(())
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
    fn prepare(mut inputs: Inputs) -> Result<Self> {
        let model = Arc::clone(&inputs.model);
        let device = model.decoder.device();
        let (process_bytes, free) = (device::used_memory(device), device::free_memory(device));
        let Files { training: Dataset { examples, report }, validation, classification } = Files::read(&inputs)?;
        let resolved = inputs.resolve(&report)?;
        let settings = TrainSettings::new(&resolved, inputs.seed).on(device);
        let (method, epochs) = (settings.method, settings.epochs);
        let samples = calibration::samples(method, &examples)?;
        let mut trainer = Trainer::new(Arc::clone(&model), settings, examples, inputs.initial.as_deref())?;
        let checkpoint = inputs.checkpoint.take();
        let checkpoint_fault =
            checkpoint.and_then(|checkpoint| trainer.restore(&checkpoint).err()).map(|error| error.to_string());
        check_told_apart(&trainer, &report)?;
        let memory_of = |way| {
            let (parameters, settings) = (trainer.parameter_count(), trainer.settings());
            TrainingMemory::new(&model, parameters, settings, &report, process_bytes, way)
        };
        let memory = inputs.memory.choose(memory_of, free, report.longest)?;
        trainer.recompute(memory.recomputation);
        let steps = trainer.total_steps();
        let held_out = |Dataset { examples, report: counts }| {
            (HeldOut::new(examples, method.width()).between_epochs(epochs * report.tokens, steps), counts)
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
        let forecast = Forecast::new(&grounds, &mut yielding(&inputs.control, &inputs.priority))?;
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
        let Inputs { api, priority, control, progress, .. } = inputs;
        let validation = held_out;
        let run = Self { trainer, forecast, validation, classification, model, api, priority, control, progress };
        run.report(Progress::Planned(Box::new(plan)))?;
        Ok(run)
    }

    fn complete(mut self) -> Result<Trained> {
        let (total, per_epoch) = (self.trainer.total_steps(), self.trainer.steps_per_epoch());
        let every = total.div_ceil(METRICS_EVENTS).max(1);
        let mut clock = Clock::start(self.trainer.step_number());
        let _busy = Busy::enter();
        let device = self.model.decoder.device().clone();
        let memory = MemoryWatch::start(move || device::used_memory(&device));
        let mut before_micro_step = yielding(&self.control, &self.priority);
        loop {
            let step_began = Instant::now();
            let report = match self.trainer.step(&mut before_micro_step) {
                Ok(Some(report)) => report,
                Ok(None) => break,
                Err(error) => return self.stopped(error.into()),
            };
            clock.count(report.tokens, self.forecast.work_of(&report, per_epoch), step_began.elapsed());
            // Interrupted here, the job goes on from the checkpoint before, so that no evaluation is missing.
            let validation = self.validate_after(&report, &mut before_micro_step)?;
            let figures = self.classify_after(&report, &mut before_micro_step)?;
            let complete = self.trainer.is_complete();
            if report.step % every == 0 || complete || validation.is_some() {
                let (tokens_per_second, remaining) = clock.speed(report.step, total);
                self.report(Progress::Step { step: report, validation, tokens_per_second, remaining })?;
            }
            self.report_epoch(report, validation, figures)?;
            // The last state needs no checkpoint: publishing takes less time than restoring.
            if !complete && (report.completed_epoch.is_some() || clock.saved.elapsed() >= CHECKPOINT_EVERY) {
                self.checkpoint()?;
                clock.saved = Instant::now();
            }
        }
        let (seconds, peak_bytes) = (clock.begin.elapsed().as_secs_f64(), memory.peak_bytes());
        let (forecast, tokens, rate) = (self.forecast.clone(), clock.read, clock.shown);
        self.result(RunAccount { forecast, seconds, tokens, rate, peak_bytes })
    }

    /// Measures the adapter on the validation file if that is due after a step: at the end of an epoch, and of the run,
    /// on all of it.
    fn validate_after(
        &mut self,
        report: &StepReport,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<Validation>> {
        let whole = report.completed_epoch.is_some();
        let mut validation = None;
        if whole || self.validation.as_ref().is_some_and(|held_out| held_out.is_due(report.step)) {
            validation = self.validate(whole, before_micro_step)?;
        }
        if !whole && validation.is_some() && self.trainer.has_ended_early() {
            validation = self.validate(true, before_micro_step)?;
        }
        Ok(validation)
    }

    /// Measures at the end of an epoch how the validation file is sorted into classes, if the job asks for that:
    /// figures by name.
    fn classify_after(
        &mut self,
        report: &StepReport,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<Vec<(String, f64)>>> {
        let (Some(_), Some(task)) = (report.completed_epoch, &self.classification) else { return Ok(None) };
        let figures = self.trainer.classify(task, before_micro_step)?;
        self.trainer.record_classification(figures.clone());
        Ok(Some(task.columns().into_iter().zip(figures).collect()))
    }

    /// Reports the epoch that a step ends, if it ends one, and the model at its end.
    fn report_epoch(
        &self,
        step: StepReport,
        validation: Option<Validation>,
        figures: Option<Vec<(String, f64)>>,
    ) -> Result<()> {
        let Some(done) = step.completed_epoch else { return Ok(()) };
        if let Some(figures) = figures {
            self.report(Progress::Classified(figures))?;
        }
        self.report(Progress::Epoch { done, of: self.trainer.settings().epochs })?;
        // Before the state to go on from: an attempt that is lost between the two makes this model again.
        if self.api == JobApi::FineTuningJobs {
            let files = peft::write(&self.trainer.adapter()?, &self.model.id)?;
            self.report(Progress::Model { step, validation, files })?;
        }
        Ok(())
    }

    /// Measures the adapter on the validation file, if there is one, and notes its figures.
    fn validate(&mut self, whole: bool, before_micro_step: BeforeMicroStep<'_>) -> Result<Option<Validation>> {
        let Some(held_out) = &mut self.validation else { return Ok(None) };
        let validation = self.trainer.validate(held_out, whole, before_micro_step)?;
        if let Some(figures) = validation {
            self.trainer.record_validation(figures)?;
        }
        Ok(validation)
    }

    /// Ends the run after an error in a step. Saves the last whole step if it was an interrupt that the job may go on
    /// from.
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
        let (history, labels) = (self.trainer.history(), self.trainer.settings().method.labels());
        let result_file = results::csv(self.api, history, self.validation.is_some(), labels, &columns)?;
        let chosen = (step < self.trainer.step_number()).then_some(step);
        let mut questions = Vec::new();
        for place in 0..if labels.vectors { 0 } else { QUESTIONS } {
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
