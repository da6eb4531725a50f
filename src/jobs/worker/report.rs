//! Words the events of a running job for its client, and the message of its failure. Called by [`super::job_run`].

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::Worker;
use super::forecast::{Forecast, RunAccount};
use super::progress::{StepFigures, Trained, TrainingPlan};
use super::warnings::warnings;
use crate::datasets::DatasetReport;
use crate::jobs::Blame;
use crate::jobs::Error;
use crate::jobs::Job;
use crate::jobs::cost::Cost;
use crate::jobs::queue::Outcome;
use crate::train::estimate::TrainingRate;
use crate::train::{Evaluation, Rewards, StepReport, Validation};
use crate::{format, system};

impl Worker {
    /// Writes the plan that the training thread made before its first step: settings, warnings, forecast.
    pub(super) async fn tell_plan(&self, job: &Job, base: &str, plan: &TrainingPlan) {
        if let Some(fault) = &plan.checkpoint_fault {
            tracing::warn!(job = job.id, "{fault}");
            self.say(job, "warn", "The checkpoint cannot be used; training starts over", None).await;
        }
        let finish = seconds_from_now(plan.forecast.present_seconds());
        if let Err(error) = self.queue.record_plan(job, &plan.resolved, Some(finish)).await {
            tracing::warn!(job = job.id, "cannot write the settings: {error}");
        }
        for (warning, lines) in warnings(plan) {
            self.say(job, "warn", &warning, Some(lines)).await;
        }
        if let Some((measured, left_out)) = plan.classified.filter(|(_, left_out)| *left_out > 0) {
            let message = format!(
                "Classification metrics are measured on {measured} of the validation examples; {left_out} are beyond the \
                 limit or too long"
            );
            self.say(job, "warn", &message, None).await;
        }
        let (message, data) = plan_event(plan);
        self.say(job, "info", &message, Some(data)).await;
        let Forecast { estimate, setup, calibrated, .. } = &plan.forecast;
        let cost = self.pricing.cost(base, plan.forecast.seconds(), estimate.trained_tokens);
        let (message, data) = estimate_event(&plan.forecast, &cost);
        self.say(job, "info", &message, Some(data)).await;
        if let Some(rate) = calibrated {
            self.keep_rate(base, setup, *rate).await;
        }
        if plan.resumed_at > 0 {
            self.say(job, "info", &format!("Resumed after step {}/{}", plan.resumed_at, plan.total_steps), None).await;
        }
    }

    /// Writes a step's figures as a metrics event.
    pub(super) async fn tell_step(&self, job: &Job, figures: &StepFigures, speed: Speed) {
        let (message, data) = (step_message(&figures.step, figures.validation), metrics(figures, speed));
        self.add_event(job, "info", "metrics", &message, Some(data)).await;
    }

    /// Writes time, memory and cost of the training beside the expected ones, and keeps the rate for the next estimate.
    pub(super) async fn tell_account(&self, job: &Job, base: &str, account: &RunAccount) {
        let RunAccount { forecast, seconds, rate, .. } = account;
        let tokens = forecast.estimate.trained_tokens;
        let costs = [forecast.seconds(), *seconds].map(|seconds| self.pricing.cost(base, seconds, tokens));
        let (message, data) = account_event(account, &costs);
        self.say(job, "info", &message, Some(data)).await;
        if let Some(rate) = rate {
            self.keep_rate(base, &forecast.setup, *rate).await;
        }
    }

    /// Stores a rate. Estimates only inform: nothing fails if it could not be written.
    pub(super) async fn keep_rate(&self, base: &str, setup: &str, rate: TrainingRate) {
        if let Err(error) = self.store.add_training_rate(&system::name(), base, setup, rate).await {
            tracing::warn!(model = base, "cannot write how fast training was: {error}");
        }
    }

    /// Writes the classification metrics after a step as an event.
    pub(super) async fn tell_classes(&self, job: &Job, step: usize, figures: &[(String, f64)]) {
        let defined = figures.iter().filter(|(_, figure)| !figure.is_nan());
        let text = |(name, figure): &(String, f64)| {
            format!("{}={figure:.3}", name.strip_prefix("classification/").unwrap_or(name))
        };
        let message = format!("Classification: {}", defined.map(text).collect::<Vec<_>>().join(", "));
        let mut data = json!({"step": step});
        add_classes(&mut data, figures);
        self.say(job, "info", &message, Some(data)).await;
    }

    /// Writes how training ended, if it ended early or the model is not the last step's.
    pub(super) async fn tell_end(&self, job: &Job, trained: &Trained) {
        if let Some(step) = trained.ended_early {
            let message = format!("Training ended early after step {step}: the validation loss does not fall any more");
            self.say(job, "info", &message, None).await;
        }
        if let Some(step) = trained.chosen {
            let message = format!("The model is the adapter of step {step}, which has the lowest validation loss");
            self.say(job, "info", &message, Some(json!({"step": step}))).await;
        }
    }

    /// Writes an event for people.
    pub(super) async fn say(&self, job: &Job, level: &str, message: &str, data: Option<Value>) {
        self.add_event(job, level, "message", message, data).await;
    }

    /// Writes an event. Events only inform: a job does not fail if one could not be written.
    async fn add_event(&self, job: &Job, level: &str, kind: &str, message: &str, data: Option<Value>) {
        if let Err(error) = self.queue.add_event(job, level, kind, message, data).await {
            tracing::warn!(job = job.id, message, "cannot write an event: {error}");
        }
    }

    /// Words an error for the client, and decides whether the job is tried again.
    pub(super) fn failure(&self, job: &Job, error: &Error) -> Outcome {
        let (fault, blame) = (self.describe_fault)(error, &job.spec);
        if error.storage_trouble().is_some() {
            tracing::error!(job = job.id, "the job waits for storage: {error}");
            return Outcome::Storage(fault);
        }
        if error.is_transient() {
            tracing::warn!(job = job.id, "the attempt failed: {error}");
            return Outcome::Retry(fault);
        }
        if blame == Blame::Server {
            tracing::error!(job = job.id, "the job failed: {error}");
            return Outcome::Broken(fault);
        }
        tracing::info!(job = job.id, code = fault.code, "the job failed: {error}");
        Outcome::Failed(fault)
    }
}

/// Speed of training.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub tokens_per_second: f64,
    /// Time since this attempt began.
    pub elapsed: Duration,
    /// Expected time to the last step.
    pub remaining: Duration,
}

/// Returns the unix second that is `seconds` from now.
pub(super) fn seconds_from_now(seconds: f64) -> i64 {
    jiff::Timestamp::now().as_second().saturating_add(seconds.ceil() as i64)
}

/// Words the estimate of an attempt.
fn estimate_event(forecast: &Forecast, cost: &Cost) -> (String, Value) {
    let (estimate, [low, high]) = (&forecast.estimate, forecast.bounds());
    let message = format!(
        "Expected: {} ({}) at {} tokens per second, {} of memory at the peak ({}){}",
        format::duration_range(low, high),
        estimate.uncertainty.in_words(),
        format::count(estimate.tokens_per_second),
        format::bytes(estimate.memory.peak),
        estimate.recomputation.in_words(),
        format::listed(&cost.in_words()),
    );
    let data = json!({
        "estimate": estimate,
        "duration_seconds": forecast.seconds(),
        "duration_low_seconds": low,
        "duration_high_seconds": high,
        "cost": cost,
    });
    (message, data)
}

/// Words time, memory and cost of a finished run beside the expected ones.
fn account_event(account: &RunAccount, [estimated, actual]: &[Cost; 2]) -> (String, Value) {
    let RunAccount { forecast, seconds, tokens, rate, peak_bytes } = account;
    let (estimate, [low, high]) = (&forecast.estimate, forecast.bounds());
    let tokens_per_second = *tokens as f64 / rate.map_or(0.0, |rate| rate.seconds).max(1e-9);
    let memory = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".into(), format::bytes);
    let mut message = format!(
        "Took {} ({} {}) at {} tokens per second ({}), {} of memory at the peak ({})",
        format::duration(*seconds),
        compared(*seconds, [low, high]),
        format::duration_range(low, high),
        format::count(tokens_per_second),
        format::count(estimate.tokens_per_second),
        memory(*peak_bytes),
        format::bytes(estimate.memory.peak),
    );
    for (actual, estimated) in actual.in_words().iter().zip(estimated.in_words()) {
        let _ = write!(message, ", {actual} ({estimated})");
    }
    let figures = |seconds: f64, rate: f64, peak: Option<u64>, cost: &Cost| json!({"duration_seconds": seconds, "tokens_per_second": rate, "peak_resident_bytes": peak, "cost": cost});
    let expected_peak = Some(estimate.memory.peak);
    let mut data = json!({
        "estimated": figures(forecast.seconds(), estimate.tokens_per_second, expected_peak, estimated),
        "actual": figures(*seconds, tokens_per_second, *peak_bytes, actual),
    });
    data["estimated"]["duration_low_seconds"] = low.into();
    data["estimated"]["duration_high_seconds"] = high.into();
    data["estimated"]["uncertainty"] = estimate.uncertainty.in_words().into();
    (message, data)
}

/// Compares a duration with the bounds that were expected, in words that stand before them.
fn compared(seconds: f64, [low, high]: [f64; 2]) -> &'static str {
    if seconds < low {
        "shorter than expected:"
    } else if seconds > high {
        "longer than expected:"
    } else {
        "expected"
    }
}

fn plan_event(plan: &TrainingPlan) -> (String, Value) {
    let settings = &plan.resolved;
    let epochs = settings.n_epochs.unwrap_or_default();
    let learning_rate = settings.learning_rate.unwrap_or_default() * settings.learning_rate_multiplier.unwrap_or(1.0);
    let labels = plan.method.labels();
    let what = labels.examples;
    let targets =
        if labels.of_texts { String::new() } else { format!(" ({} of them targets)", plan.training.target_tokens) };
    let message = format!(
        "Training on {} {what} with {} tokens{targets}: {epochs} epochs, {} steps of {} {what}, \
         learning rate {learning_rate:.2e}, rank {}",
        plan.training.examples,
        plan.training.tokens,
        plan.total_steps,
        settings.batch_size.unwrap_or_default(),
        settings.rank.unwrap_or_default(),
    );
    let counts = |report: &DatasetReport| {
        json!({
            "examples": report.examples,
            "tokens": report.tokens,
            "target_tokens": report.target_tokens,
            "truncated": report.truncated.count,
            "dropped": report.dropped.count,
            "duplicates": report.duplicates.count,
        })
    };
    let data = json!({
        "training": counts(&plan.training),
        "validation": plan.validation.as_ref().map(counts),
        "total_steps": plan.total_steps,
        "hyperparameters": settings,
    });
    (message, data)
}

fn step_message(report: &StepReport, validation: Option<Validation>) -> String {
    let mut message = format!("Step {}/{}: training loss={:.2}", report.step, report.total_steps, report.loss);
    if report.method.labels().of_texts {
        let _ = write!(message, ", accuracy={:.2}", report.token_accuracy);
    }
    if let Some(Rewards { accuracy, .. }) = report.rewards {
        let _ = write!(message, ", reward accuracy={accuracy:.2}");
    }
    if let Some(Validation { sample, full }) = validation {
        let _ = write!(message, ", validation loss={:.2}", sample.loss);
        let _ = full.map(|full| write!(message, ", full validation loss={:.2}", full.loss));
    }
    message
}

/// Makes the data of a metrics event.
fn metrics(figures: &StepFigures, speed: Speed) -> Value {
    let StepFigures { step: report, validation, counts, quality, classes } = figures;
    let validation = *validation;
    let figures = |evaluation: Option<Evaluation>| {
        (evaluation.map(|figures| figures.loss), evaluation.map(|figures| figures.token_accuracy))
    };
    let (loss, accuracy) = figures(validation.map(|validation| validation.sample));
    let (full_loss, full_accuracy) = figures(validation.and_then(|validation| validation.full));
    let named = report.method.labels().accuracy;
    let mut data = json!({
        "step": report.step,
        "total_steps": report.total_steps,
        "train_loss": report.loss,
        format!("train_{named}"): report.token_accuracy,
        "valid_loss": loss,
        format!("valid_{named}"): accuracy,
        "full_valid_loss": full_loss,
        format!("full_valid_{named}"): full_accuracy,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "tokens_per_second": speed.tokens_per_second,
        "elapsed_seconds": speed.elapsed.as_secs_f64(),
        "remaining_seconds": speed.remaining.as_secs_f64(),
    });
    add_rewards(&mut data, report, validation);
    if let Some(counts) = counts {
        counts.add_to(&mut data);
    }
    if let Some(quality) = quality {
        quality.add_to(&mut data);
    }
    add_classes(&mut data, classes.as_deref().unwrap_or_default());
    data
}

/// Adds classification metrics; null stands for one that is not defined.
fn add_classes(data: &mut Value, figures: &[(String, f64)]) {
    for (name, figure) in figures {
        data[name.as_str()] = figure.is_finite().then_some(*figure).into();
    }
}

/// Adds the figures of pairs of answers, if training is on preferences.
fn add_rewards(data: &mut Value, report: &StepReport, validation: Option<Validation>) {
    let judged = [("train", report.rewards), ("valid", validation.and_then(|validation| validation.sample.rewards))];
    for (name, Rewards { margin, accuracy }) in judged.into_iter().filter_map(|(name, rewards)| Some((name, rewards?)))
    {
        data[format!("{name}_reward_margin")] = margin.into();
        data[format!("{name}_reward_accuracy")] = accuracy.into();
    }
}

/// Makes the figures of a checkpoint; those of the validation file only if there is one.
pub(super) fn checkpoint_metrics(figures: &StepFigures) -> Value {
    let StepFigures { step: report, validation, counts, quality, .. } = figures;
    let validation = *validation;
    let named = report.method.labels().accuracy;
    let mut metrics = json!({
        "step": report.step,
        "train_loss": report.loss,
        format!("train_{named}"): report.token_accuracy,
    });
    let sample = validation.map(|validation| validation.sample);
    for (name, figures) in [("valid", sample), ("full_valid", validation.and_then(|validation| validation.full))] {
        if let Some(Evaluation { loss, token_accuracy, .. }) = figures {
            metrics[format!("{name}_loss")] = loss.into();
            metrics[format!("{name}_{named}")] = token_accuracy.into();
        }
    }
    add_rewards(&mut metrics, report, validation);
    if let Some(counts) = counts {
        counts.add_to(&mut metrics);
    }
    if let Some(quality) = quality {
        quality.add_to(&mut metrics);
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_of_classes_that_is_not_defined_is_null() {
        let mut data = json!({"step": 4});
        add_classes(&mut data, &[("classification/accuracy".into(), 0.75), ("classification/auroc".into(), f64::NAN)]);
        assert_eq!(data, json!({"step": 4, "classification/accuracy": 0.75, "classification/auroc": null}));
    }

    #[test]
    fn a_duration_is_compared_with_the_bounds_that_were_expected() {
        let words = |seconds| compared(seconds, [780.0, 3432.0]);
        assert_eq!([780.0, 3432.0].map(words), ["expected"; 2]);
        assert_eq!([779.0, 3433.0].map(words), ["shorter than expected:", "longer than expected:"]);
    }
}
