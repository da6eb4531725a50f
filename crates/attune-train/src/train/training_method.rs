//! The methods of training, as settings name them. [`super::methods`] implements each of them.

use crate::train::hyperparameters::{Hyperparameters, TextLoss};

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
    /// Giving the vectors of two texts a given cosine.
    ScoredPairs,
    /// Scoring with the model's classification head how well a text answers another.
    LabelledPairs,
}

impl TrainingMethod {
    /// Returns the method that resolved hyperparameters ask for.
    pub fn of(resolved: &Hyperparameters) -> Self {
        match resolved {
            Hyperparameters { loss: Some(TextLoss::CosineSimilarity), .. } => Self::ScoredPairs,
            Hyperparameters { loss: Some(TextLoss::BinaryCrossEntropy), .. } => Self::LabelledPairs,
            // Jobs that began before losses had names have a scale alone.
            Hyperparameters { scale: Some(scale), .. } => Self::TextPairs { scale: *scale },
            Hyperparameters { beta: Some(beta), .. } => Self::Preferences { beta: *beta },
            _ => Self::Answers,
        }
    }
}
