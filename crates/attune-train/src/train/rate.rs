//! Training speed of a machine: measured by [`super::calibration`] and by finished jobs, used by [`super::estimate`].

/// Tokens of examples and the seconds that the steps on them took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingRate {
    /// Tokens that were trained on.
    pub tokens: f64,
    /// Seconds of those steps.
    pub seconds: f64,
}

impl TrainingRate {
    /// Returns the tokens per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens / self.seconds.max(1e-9)
    }
}
