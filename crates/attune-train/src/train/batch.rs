//! What a pass over the model takes and what it tells: sequences packed into a batch, and sums over its targets.

use std::ops::Range;

/// Whole sequences, one after the other; no attention and no target crosses from one to the next.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// Token ids of all sequences, `[tokens]`.
    pub tokens: Vec<u32>,
    /// The rows of each sequence; positions restart at each start.
    pub sequences: Vec<Range<usize>>,
    /// What is to be predicted.
    pub targets: Vec<Target>,
}

impl PackedBatch {
    /// Returns the index of the sequence that a target belongs to.
    pub fn sequence_of(&self, target: &Target) -> usize {
        self.sequences.partition_point(|rows| rows.end <= target.row)
    }
}

/// One prediction that counts.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The row whose hidden state predicts.
    pub row: usize,
    /// The token that should follow.
    pub token: u32,
    /// Its weight in the loss.
    pub weight: f32,
}

/// Sums over the targets of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossReport {
    /// Σ weight · cross entropy.
    pub loss_sum: f64,
    /// Σ weight.
    pub weight_sum: f64,
    /// Targets of full weight: what accuracy is measured on.
    pub targets: usize,
    /// Those of them whose token has the highest logit.
    pub correct: usize,
    /// Sequences with targets of full weight.
    pub sequences: usize,
    /// Those of them where each such target has the highest logit.
    pub exact: usize,
    /// Pairs of answers; 0 unless training is on preferences.
    pub pairs: usize,
    /// Σ margin of the pairs' rewards.
    pub margin_sum: f64,
    /// Pairs whose chosen answer has the higher reward.
    pub preferred: usize,
}

impl LossReport {
    /// Adds the sums of another batch.
    pub(crate) fn add(&mut self, part: Self) {
        self.loss_sum += part.loss_sum;
        self.weight_sum += part.weight_sum;
        self.targets += part.targets;
        self.correct += part.correct;
        self.sequences += part.sequences;
        self.exact += part.exact;
        self.pairs += part.pairs;
        self.margin_sum += part.margin_sum;
        self.preferred += part.preferred;
    }
}
