//! Tells a worker that is busy from one that hangs, for those who watch it from outside, and counts what it trains. The
//! claim loop beats at each turn, and a running job wherever it looks whether it must stop: before each piece of a
//! step, between two parts of a file, before each report. A worker that is silent for long can neither train nor be
//! stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::train::StepReport;

/// Time of a worker's last sign of life. Cheap to clone; all clones are the same pulse.
#[derive(Debug, Clone)]
pub struct Pulse {
    begin: Instant,
    /// Milliseconds from `begin` to the last beat.
    latest: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { begin: Instant::now(), latest: Arc::default() }
    }
}

impl Pulse {
    /// Notes that the worker turns.
    pub(super) fn beat(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.latest.fetch_max(now, Ordering::Relaxed);
    }

    /// Returns the time since the last beat.
    pub fn silence(&self) -> Duration {
        self.begin.elapsed().saturating_sub(Duration::from_millis(self.latest.load(Ordering::Relaxed)))
    }

    /// Writes the time since the last beat into the metrics.
    pub fn record(&self) {
        metrics::gauge!("attune_worker_silent_seconds").set(self.silence().as_secs_f64());
    }
}

/// Counts a job among the running ones until it is dropped.
#[derive(Debug)]
pub(super) struct RunningJob;

impl RunningJob {
    pub(super) fn enter() -> Self {
        metrics::gauge!("attune_training_running").increment(1.0);
        Self
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        metrics::gauge!("attune_training_running").decrement(1.0);
    }
}

/// Counts an attempt at a job by how it ended.
pub(super) fn count_attempt(outcome: &'static str) {
    metrics::counter!("attune_training_attempts_total", "outcome" => outcome).increment(1);
}

/// Counts a step of a job on the base model `base`.
pub(super) fn count_step(base: &str, report: &StepReport) {
    metrics::counter!("attune_training_steps_total", "model" => base.to_owned()).increment(1);
    let tokens = report.tokens as u64;
    metrics::counter!("attune_training_tokens_total", "model" => base.to_owned()).increment(tokens);
}

/// Describes the metrics, and makes those that have a value before the first job.
pub(super) fn describe() {
    use metrics::{describe_counter, describe_gauge, gauge};
    describe_gauge!("attune_worker_silent_seconds", "Time since the worker last gave a sign of life.");
    describe_gauge!("attune_training_running", "Jobs that this process runs.");
    describe_counter!("attune_training_attempts_total", "Attempts at jobs that ended, by how.");
    describe_counter!("attune_training_steps_total", "Training steps done.");
    describe_counter!("attune_training_tokens_total", "Tokens read by training steps.");
    gauge!("attune_training_running").set(0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_lasts_from_the_last_beat() {
        let begin = Instant::now().checked_sub(Duration::from_mins(1)).expect("the clock is older than a minute");
        let pulse = Pulse { begin, latest: Arc::default() };
        assert!(pulse.silence() >= Duration::from_mins(1));
        pulse.clone().beat();
        assert!(pulse.silence() < Duration::from_mins(1));
    }
}
