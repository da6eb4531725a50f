//! Computes the learning rate of each step, in closed form. Called by the trainer.

use serde::{Deserialize, Serialize};

/// Decay of the learning rate after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Straight line that reaches zero one step after the last.
    #[default]
    Linear,
    /// Half a cosine that reaches zero one step after the last.
    Cosine,
    /// No decay.
    Constant,
}

impl Schedule {
    /// Returns the factor on the peak learning rate in `step` of `total` (both counted from 0).
    ///
    /// The first `warmup` steps rise by equal amounts, `(step + 1) / warmup`; step `warmup` is the first of the decay
    /// and still has the peak.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Linear => 1.0 - progress,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Self::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-12, "{left} is not {right}");
    }

    #[test]
    fn warmup_rises_in_equal_steps_to_the_peak() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            for step in 0..4 {
                close(schedule.factor(step, 4, 20), (step + 1) as f64 / 4.0);
            }
            close(schedule.factor(4, 4, 20), 1.0);
        }
    }

    #[test]
    fn linear_decay_follows_its_closed_form() {
        for step in 4..20 {
            close(Schedule::Linear.factor(step, 4, 20), (20 - step) as f64 / 16.0);
        }
    }

    #[test]
    fn cosine_decay_is_half_way_down_at_half_time_and_near_zero_at_the_end() {
        close(Schedule::Cosine.factor(12, 4, 20), 0.5);
        close(Schedule::Cosine.factor(8, 4, 20), f64::midpoint(1.0, std::f64::consts::FRAC_1_SQRT_2));
        assert!(Schedule::Cosine.factor(19, 4, 20) < 0.01);
    }

    #[test]
    fn a_constant_rate_and_a_run_of_one_step_keep_the_peak() {
        close(Schedule::Constant.factor(19, 4, 20), 1.0);
        close(Schedule::Linear.factor(0, 0, 1), 1.0);
        close(Schedule::Linear.factor(0, 1, 1), 1.0);
    }
}
