//! Computes a job on a thread of its own: reads the files, trains, and reports over a channel. Called by
//! [`super::job_run`] and [`super::estimate`].
//!
//! It never talks to the database: [`super::job_run`] does that, so that a slow database never holds up a step and a
//! lost lease is noticed while a step runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::best::Standings;
use super::clocks::{Busy, MachineClocks};
use super::compatibility::{check_alike, check_told_apart};
use super::counts::{AnswerCounts, Measured, MeasuredBefore, why_not_counted};
use super::forecast::{Forecast, ForecastInputs, RunAccount};
use super::inputs::{Inputs, Surroundings};
use super::lease::{Control, Interrupt};
use super::meter::Meter;
use super::progress::{ClassFigures, Progress, StepFigures, Trained, TrainingPlan};
use super::pulse::count_step;
use super::quality::QualityFigures;
use crate::adapters::peft::{self};
use crate::datasets::{Dataset, Purpose};
use crate::engine::priority::{Priority, TrainingTurns};
use crate::jobs::JobApi;
use crate::jobs::worker::results;
use crate::jobs::{Error, Result};
use crate::model::lora::Adapter;
use crate::model::{BaseModel, device};
use crate::system::MemoryWatch;
use crate::train::calibration;
use crate::train::classification::ClassificationTask;
use crate::train::estimate::ForwardPasses;
use crate::train::mining;
use crate::train::rate::Watch;
use crate::train::settings;
use crate::train::{BeforeMicroStep, HeldOut, Question, StepReport, Trainer, TrainingMethod, Validation};

/// Time between checkpoints; the end of an epoch has one besides.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// Most metrics events of a job, besides those at the ends of epochs.
const METRICS_EVENTS: usize = 150;
/// Number of prompts of the validation file that base and fine-tuned model are asked at the end.
const QUESTIONS: usize = 3;
/// Longest time that a piece of work waits for requests, so that training never stands still.
const YIELD: Duration = Duration::from_millis(250);

/// Trains to the end. Returns [`Error::Cancelled`] after an interrupt; if the job may go on later, its last state is
/// reported.
pub(super) fn train(inputs: Inputs) -> Result<Trained> {
    let control = Arc::clone(&inputs.surroundings.control);
    let health = inputs.model.health.clone();
    match Run::prepare(inputs, true).and_then(Run::complete) {
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
    let control = Arc::clone(&inputs.surroundings.control);
    let (progress, mut reports) = tokio::sync::mpsc::channel(1);
    inputs.surroundings.progress = progress;
    let prepared = Run::prepare(inputs, false);
    control.check()?;
    drop(prepared?);
    match reports.try_recv() {
        Ok(Progress::Planned(plan)) => Ok(*plan),
        _ => Err(Error::Internal("no plan was made".into())),
    }
}

/// Returns the function that runs before each piece of work: it fails after an interrupt, and lets requests go first.
fn before_piece(control: &Arc<Control>, priority: &Arc<Priority>) -> impl FnMut() -> attune_train::Result<()> + use<> {
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
    /// Prepares a run; unless it `begins`, its hard negatives are estimated.
    fn prepare(mut inputs: Inputs, begins: bool) -> Result<Self> {
        let device = inputs.model.decoder.device();
        let (process_bytes, free) = (device::used_memory(device), device::free_memory(device));
        let render = inputs.render_settings()?;
        let Dataset { mut examples, mut report, digests } =
            inputs.read(&inputs.training_file, Purpose::Training, &render)?;
        let validation = inputs.validation_file.as_ref();
        let validation = validation.map(|file| inputs.read(file, Purpose::Validation, &render)).transpose()?;
        check_alike(&report, validation.as_ref().map(|data| &data.report), inputs.classification.as_ref())?;
        let shared = validation.as_ref().map(|data| data.digests.shared_with(&digests)).unwrap_or_default();
        drop(digests);
        let classification = inputs.classification_task(render.max_tokens)?;

        let resolved = inputs.resolve(&report)?;
        let count = resolved.hard_negatives.unwrap_or(0) as usize;
        let (mut negatives, mut searched) = (None, ForwardPasses::default());
        if count > 0 && begins {
            let Surroundings { control, priority, .. } = &inputs.surroundings;
            let found = inputs.hard_negatives(&examples, count, &mut before_piece(control, priority))?;
            examples = found.append(&examples, &mut report, &render.scratch)?;
            negatives = Some(found);
        } else if count > 0 {
            searched = ForwardPasses { tokens: report.tokens, times: 1 };
            mining::expect(&mut report, count)?;
        }
        let automatic_rate = settings::automatic_rate(inputs.method, &inputs.model.config);
        let samples = calibration::samples(TrainingMethod::of(&resolved), &examples)?;
        let (mut trainer, checkpoint_fault) = inputs.trainer(&resolved, examples)?;
        if let Some(negatives) = negatives {
            trainer.keep_negatives(negatives);
        }
        check_told_apart(&trainer, &report)?;
        let memory = inputs.choose_memory(&trainer, &report, process_bytes, free)?;
        trainer.recompute(memory.recomputation);

        let (steps, method) = (trainer.total_steps(), trainer.settings().method);
        let read = trainer.settings().epochs * report.tokens;
        let held_out = |Dataset { examples, report: counts, .. }| -> Result<_> {
            let mut held_out = HeldOut::new(examples, method.width()).between_epochs(read, steps);
            if inputs.api == JobApi::FineTuningJobs && method == TrainingMethod::Answers {
                held_out = held_out.counting_answers(read, &inputs.model)?;
            } else if inputs.api == JobApi::FineTuningJobs && !method.labels().quality.is_empty() {
                held_out = held_out.ordering();
            }
            Ok((held_out, counts))
        };
        let (held_out, validation) = validation.map(held_out).transpose()?.unzip();
        let Surroundings { rates, priority, control, progress, .. } = inputs.surroundings;
        let sorted = classification.as_ref().map_or(0, ClassificationTask::tokens);
        let passes = [ForwardPasses { tokens: sorted, times: trainer.settings().epochs }, searched];
        let grounds = ForecastInputs {
            model: &inputs.model,
            trainer: &trainer,
            resolved: &resolved,
            training: &report,
            validation: held_out.as_ref(),
            passes: &passes,
            samples: &samples,
            rates: &rates,
            memory,
            priority: &priority,
        };
        let forecast = Forecast::new(&grounds, &mut before_piece(&control, &priority))?;
        let plan = TrainingPlan {
            resolved,
            training: report,
            validation,
            shared,
            automatic_rate,
            method,
            total_steps: steps,
            resumed_at: trainer.step_number(),
            checkpoint_fault,
            classified: classification.as_ref().map(ClassificationTask::counts),
            forecast: forecast.clone(),
        };
        let (validation, model, api) = (held_out, inputs.model, inputs.api);
        let run = Self { trainer, forecast, validation, classification, model, api, priority, control, progress };
        run.report(Progress::Planned(Box::new(plan)))?;
        Ok(run)
    }

    fn complete(mut self) -> Result<Trained> {
        let every = self.trainer.total_steps().div_ceil(METRICS_EVENTS).max(1);
        let per_epoch = self.trainer.steps_per_epoch();
        let busy = Busy::enter();
        let device = self.model.decoder.device().clone();
        let clocks = MachineClocks::new(&device, Arc::clone(&self.priority), &busy);
        let memory = MemoryWatch::start(move || device::used_memory(&device));
        let mut before_micro_step = before_piece(&self.control, &self.priority);
        let began = Instant::now();
        self.count_before(&mut before_micro_step)?;
        let mut meter = Meter::start(self.trainer.step_number());
        let mut saved = meter.begin;
        loop {
            let mut watch = Watch::start(&clocks);
            let report = match self.trainer.step(&mut || watch.pause(&mut before_micro_step)) {
                Ok(Some(report)) => report,
                Ok(None) => break,
                Err(error) => return self.stopped(error.into()),
            };
            count_step(&self.model.id, &report);
            meter.add(&report, self.forecast.work_of(&report, per_epoch), watch.stop());
            let validation = self.validate_after(&report, &mut before_micro_step)?;
            let classes = self.classify_after(&report, &mut before_micro_step)?;
            let complete = self.trainer.is_complete();
            let (counts, quality) = (self.counts(), self.quality());
            let figures = StepFigures { step: report, validation, counts, quality, classes };
            if report.step % every == 0 || complete || validation.is_some() {
                let (tokens_per_second, remaining) = meter.speed(&report);
                self.report(Progress::Step { figures: figures.clone(), tokens_per_second, remaining })?;
            }
            self.report_measured(&figures)?;
            if let Some(done) = report.completed_epoch {
                self.report_epoch(done, figures)?;
            }
            // The last state needs no checkpoint: publishing takes less time than restoring.
            if !complete && (report.completed_epoch.is_some() || saved.elapsed() >= CHECKPOINT_EVERY) {
                self.checkpoint()?;
                saved = Instant::now();
            }
        }
        let (seconds, peak_bytes) = (began.elapsed().as_secs_f64(), memory.peak_bytes());
        let (forecast, tokens, rate) = (self.forecast.clone(), meter.tokens, meter.work.rate());
        self.result(RunAccount { forecast, seconds, tokens, rate, peak_bytes }, &mut before_micro_step)
    }

    /// Counts the right answers of the model that training begins with, and reports them in a first attempt; later ones
    /// have them from the checkpoint.
    fn count_before(&mut self, before_micro_step: BeforeMicroStep<'_>) -> Result<()> {
        let Some(held_out) = &self.validation else { return Ok(()) };
        let (first, reports) = (self.trainer.step_number() == 0, self.api == JobApi::FineTuningJobs);
        if held_out.orders() {
            self.trainer.order_before(held_out, before_micro_step)?;
            let before = self.quality_figures(self.trainer.quality_before());
            return if first { self.report(Progress::OrderedBefore(before)) } else { Ok(()) };
        }
        if let Some(why) = why_not_counted(held_out, self.trainer.settings().method).filter(|_| reports) {
            return if first { self.report(Progress::NotCounted(why)) } else { Ok(()) };
        }
        self.trainer.count_before(held_out, &self.model, before_micro_step)?;
        match self.trainer.before().and_then(|before| MeasuredBefore::new(held_out, before)).filter(|_| first) {
            Some(before) => self.report(Progress::Before(Box::new(before))),
            None => Ok(()),
        }
    }

    /// Returns the right answers after the last step; `None` if they were not counted there.
    fn counts(&self) -> Option<AnswerCounts> {
        let answers = self.trainer.history().last()?.right_answers.clone()?;
        let sheet = self.validation.as_ref()?.answers()?;
        Some(AnswerCounts::new(sheet, answers, self.trainer.before()))
    }

    /// Returns how well vectors or scores put the validation file in order after the last step; `None` if that was not
    /// measured there.
    fn quality(&self) -> Option<QualityFigures> {
        let figures = &self.trainer.history().last()?.quality;
        (!figures.is_empty()).then(|| self.quality_figures(figures))
    }

    /// Puts `figures` beside those of the model that training began with.
    fn quality_figures(&self, figures: &[f64]) -> QualityFigures {
        let names = self.trainer.settings().method.labels().quality;
        QualityFigures { names, now: figures.to_vec(), before: self.trainer.quality_before().to_vec() }
    }

    /// Reports the figures of the whole validation file, if they were measured.
    fn report_measured(&self, figures: &StepFigures) -> Result<()> {
        let StepFigures { step, validation, counts, quality, .. } = figures;
        let Some(validation) = validation.filter(|validation| validation.full.is_some()) else { return Ok(()) };
        let (counts, quality) = (counts.clone(), quality.clone());
        let measured = Measured { step: step.step, method: step.method, validation, counts, quality };
        self.report(Progress::Measured(Box::new(measured)))
    }

    /// Measures the adapter on the validation file if an evaluation is due after this step.
    fn validate_after(
        &mut self,
        report: &StepReport,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<Validation>> {
        let mut validation = None;
        // After an interrupt here the job goes on from the checkpoint before, so that no evaluation is missing.
        let whole = report.completed_epoch.is_some();
        if whole || self.validation.as_ref().is_some_and(|held_out| held_out.is_due(report.step)) {
            validation = self.validate(whole, before_micro_step)?;
        }
        if !whole && validation.is_some() && self.trainer.has_ended_early() {
            validation = self.validate(true, before_micro_step)?;
        }
        Ok(validation)
    }

    /// Sorts the validation file into classes at the end of an epoch, and records the figures. Returns them by column
    /// name; `None` within an epoch, and if no classes are measured.
    fn classify_after(
        &mut self,
        report: &StepReport,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<ClassFigures>> {
        let (Some(_), Some(task)) = (report.completed_epoch, &self.classification) else { return Ok(None) };
        let figures = self.trainer.classify(task, before_micro_step)?;
        self.trainer.record_classification(figures.clone());
        Ok(Some(task.columns().into_iter().zip(figures).collect()))
    }

    /// Reports epoch `done`, its figures of classes, and its adapter as a model.
    fn report_epoch(&self, done: usize, figures: StepFigures) -> Result<()> {
        if let Some(classes) = figures.classes.clone() {
            self.report(Progress::Classified { step: figures.step.step, figures: classes })?;
        }
        self.report(Progress::Epoch { done, of: self.trainer.settings().epochs })?;
        // This goes before the checkpoint: an attempt that is lost between the two makes this model again.
        if self.api == JobApi::FineTuningJobs {
            let files = peft::write(&self.trainer.adapter()?, &self.model.id)?;
            self.report(Progress::Model { figures, files })?;
        }
        Ok(())
    }

    /// Measures the adapter on the validation file and records the figures; `None` if there is no such file.
    fn validate(&mut self, whole: bool, before_micro_step: BeforeMicroStep<'_>) -> Result<Option<Validation>> {
        let Some(held_out) = &mut self.validation else { return Ok(None) };
        let validation = self.trainer.validate(held_out, whole, before_micro_step)?;
        if let Some(figures) = validation {
            self.trainer.record_validation(figures)?;
        }
        if whole && validation.is_some() {
            self.trainer.count_right(held_out, &self.model, before_micro_step)?;
            self.trainer.order_now(held_out, before_micro_step)?;
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

    fn result(self, account: RunAccount, before_micro_step: BeforeMicroStep<'_>) -> Result<Trained> {
        let (mut adapter, step) = self.trainer.result()?;
        let counts = self.counts_of(&adapter, step, before_micro_step)?;
        let quality = self.quality_of(&adapter, step, before_micro_step)?;
        let files = peft::write(&adapter, &self.model.id)?;
        adapter.id = files.id();
        let columns = self.classification.as_ref().map(ClassificationTask::columns).unwrap_or_default();
        let (history, labels) = (self.trainer.history(), self.trainer.settings().method.labels());
        let result_file = results::csv(self.api, history, self.validation.is_some(), labels, &columns)?;
        let standings = Standings::new(history, step, counts, quality);
        let chosen = (step < self.trainer.step_number()).then_some(step);
        let mut questions = Vec::new();
        for place in 0..if labels.of_texts { 0 } else { QUESTIONS } {
            let example = self.validation.as_ref().map(|held_out| held_out.example(place)).transpose()?.flatten();
            questions.extend(example.as_ref().and_then(Question::of));
        }
        let ended_early = self.trainer.has_ended_early().then(|| self.trainer.step_number());
        let tokens = self.trainer.trained_tokens() as i64;
        let adapter = Arc::new(self.model.decoder.served(&adapter)?);
        Ok(Trained { files, adapter, tokens, result_file, account, questions, standings, chosen, ended_early })
    }

    /// Returns the right answers of the resulting `adapter`, which is that of `step`; counts them if that step was not
    /// measured as a whole.
    fn counts_of(
        &self,
        adapter: &Adapter,
        step: usize,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<AnswerCounts>> {
        let Some(held_out) = &self.validation else { return Ok(None) };
        let known = self.trainer.history().get(step.saturating_sub(1)).and_then(|record| record.right_answers.clone());
        let answers = match known {
            Some(known) => Some(known),
            None => self.trainer.count_right_of(adapter, held_out, &self.model, before_micro_step)?,
        };
        let counts = |(sheet, answers)| AnswerCounts::new(sheet, answers, self.trainer.before());
        Ok(held_out.answers().zip(answers).map(counts))
    }

    /// Returns how well the resulting `adapter`, which is that of `step`, puts the validation file in order; measures it
    /// if that step was not measured as a whole.
    fn quality_of(
        &self,
        adapter: &Adapter,
        step: usize,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<QualityFigures>> {
        let Some(held_out) = self.validation.as_ref().filter(|held_out| held_out.orders()) else { return Ok(None) };
        let known = self.trainer.history().get(step.saturating_sub(1)).map(|record| record.quality.as_slice());
        Ok(Some(match known.filter(|known| !known.is_empty()) {
            Some(known) => self.quality_figures(known),
            None => self.quality_figures(&self.trainer.order_with(adapter, held_out, before_micro_step)?),
        }))
    }

    fn checkpoint(&self) -> Result<()> {
        self.report(Progress::Checkpoint { step: self.trainer.step_number(), state: self.trainer.save()? })
    }

    fn report(&self, progress: Progress) -> Result<()> {
        self.progress.blocking_send(progress).map_err(|_| Error::Cancelled)
    }
}
