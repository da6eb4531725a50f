//! Measures how fast an attempt trains. Called by [`super::training`].

use std::time::{Duration, Instant};

use crate::train::StepReport;
use crate::train::rate::{RateSum, Timing};

/// Speedometer of an attempt.
pub(super) struct Meter {
    /// Time at which the attempt began.
    pub begin: Instant,
    /// Steps that earlier attempts have done.
    resumed_at: usize,
    /// Tokens read since the last event, and the time of that event.
    latest: (usize, Instant),
    /// Tokens read by this attempt.
    pub tokens: usize,
    /// Work done, and the time of the steps alone.
    pub work: RateSum,
}

impl Meter {
    /// Starts to measure an attempt that goes on after step `resumed_at`.
    pub(super) fn start(resumed_at: usize) -> Self {
        let begin = Instant::now();
        Self { begin, resumed_at, latest: (0, begin), tokens: 0, work: RateSum::default() }
    }

    /// Counts a step that did `work` in `time`.
    pub(super) fn add(&mut self, report: &StepReport, work: f64, time: Timing) {
        self.latest.0 += report.tokens;
        self.tokens += report.tokens;
        self.work.add(work, time);
    }

    /// Returns the tokens per second since the last call, and the time to the last step.
    pub(super) fn speed(&mut self, report: &StepReport) -> (f64, Duration) {
        let (tokens, since) = std::mem::replace(&mut self.latest, (0, Instant::now()));
        let tokens_per_second = tokens as f64 / since.elapsed().as_secs_f64().max(1e-9);
        let per_step = self.begin.elapsed() / (report.step - self.resumed_at).max(1) as u32;
        (tokens_per_second, per_step.saturating_mul((report.total_steps - report.step) as u32))
    }
}
