//! The methods of training, as settings name them. [`super::methods`] implements each of them.

use crate::train::hyperparameters::Hyperparameters;

/// Kind of training, with the numbers that only this kind has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrainingMethod {
    /// Learning given answers: the cross entropy of their tokens.
    Answers,
    /// Direct preference optimisation on pairs of answers, one of which is preferred.
    Preferences {
        /// Strength of the pull towards the model that training began with.
        beta: f64,
    },
    /// Pulling the vectors of paired texts near to each other.
    TextPairs {
        /// Factor on the similarities.
        scale: f64,
    },
}

impl TrainingMethod {
    /// Returns the method that resolved hyperparameters ask for.
    pub fn of(resolved: &Hyperparameters) -> Self {
        match (resolved.scale, resolved.beta) {
            (Some(scale), _) => Self::TextPairs { scale },
            (None, Some(beta)) => Self::Preferences { beta },
            (None, None) => Self::Answers,
        }
    }
}
