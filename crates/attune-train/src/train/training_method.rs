//! The methods of training, as settings name them. [`super::methods`] says what each of them does.

use crate::train::hyperparameters::Hyperparameters;

/// What a run trains on, with the numbers that only this method has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrainingMethod {
    /// Answers to learn: the cross entropy of their tokens.
    Answers,
    /// Pairs of answers, of which one is preferred: direct preference optimisation.
    Preferences {
        /// How strongly the adapter is held to the model that training began with.
        beta: f64,
    },
    /// Pairs of texts whose vectors are to be near to each other.
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
