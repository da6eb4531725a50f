//! Counts the steps of an attempt and the time that they take. Called by [`super::training`].

use std::time::{Duration, Instant};

use crate::train::estimate::TrainingRate;

/// Counts the steps of an attempt and the time that they take.
pub(super) struct Clock {
    /// When the first step began.
    pub begin: Instant,
    /// Steps that earlier attempts did.
    resumed_at: usize,
    /// When the last checkpoint was made.
    pub saved: Instant,
    /// Tokens of the steps.
    pub read: usize,
    /// The steps' work in tokens that are trained on, and the time that it took.
    pub shown: TrainingRate,
    /// Since the last report: when it was made, and the tokens read.
    since: Instant,
    tokens: usize,
}

impl Clock {
    /// Starts with the first step after `resumed_at` steps.
    pub fn start(resumed_at: usize) -> Self {
        let (begin, shown) = (Instant::now(), TrainingRate { tokens: 0.0, seconds: 0.0 });
        Self { begin, resumed_at, saved: begin, read: 0, shown, since: begin, tokens: 0 }
    }

    /// Counts a step of so many tokens and so much work.
    pub fn count(&mut self, tokens: usize, work: f64, time: Duration) {
        self.tokens += tokens;
        self.read += tokens;
        self.shown.tokens += work;
        self.shown.seconds += time.as_secs_f64();
    }

    /// Returns the tokens per second since this was asked last, and the time that is left after `step` of `total`
    /// steps.
    pub fn speed(&mut self, step: usize, total: usize) -> (f64, Duration) {
        let tokens_per_second = self.tokens as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        (self.since, self.tokens) = (Instant::now(), 0);
        let per_step = self.begin.elapsed() / (step - self.resumed_at).max(1) as u32;
        (tokens_per_second, per_step.saturating_mul((total - step) as u32))
    }
}
