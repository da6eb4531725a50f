//! Input and output of a pass over the model: sequences packed into a batch, and sums over its targets.

use std::ops::Range;

/// Whole sequences, one after the other; attention and targets stay inside each sequence.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// Token ids of all sequences, `[tokens]`.
    pub tokens: Vec<u32>,
    /// The rows of each sequence; positions restart at each start.
    pub sequences: Vec<Range<usize>>,
    /// Rows at which the second text of a sequence begins, in rising order; empty if each sequence is one text.
    pub seconds: Vec<usize>,
    /// Rows at the begin of each sequence that pooling leaves out; empty if it leaves out none.
    pub unpooled: Vec<usize>,
    /// Predictions that count.
    pub targets: Vec<Target>,
}

impl PackedBatch {
    /// Returns the index of the sequence that a target belongs to.
    pub fn sequence_of(&self, target: &Target) -> usize {
        self.sequences.partition_point(|rows| rows.end <= target.row)
    }

    /// Sorts one token for each target, in their order, by the sequences that the targets belong to.
    pub(super) fn by_sequence(&self, tokens: &[u32]) -> Vec<Vec<u32>> {
        let mut sequences = vec![Vec::new(); self.sequences.len()];
        for (target, token) in self.targets.iter().zip(tokens) {
            if let Some(sequence) = sequences.get_mut(self.sequence_of(target)) {
                sequence.push(*token);
            }
        }
        sequences
    }
}

/// One prediction that counts.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Row whose hidden state predicts the token.
    pub row: usize,
    /// Expected token.
    pub token: u32,
    /// Weight in the loss.
    pub weight: f32,
}

/// Sums over the targets of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossReport {
    /// Σ weight · cross entropy.
    pub loss_sum: f64,
    /// Σ weight.
    pub weight_sum: f64,
    /// Targets of full weight; accuracy is measured on these.
    pub targets: usize,
    /// Targets of full weight whose token has the highest logit.
    pub correct: usize,
    /// Sequences with targets of full weight.
    pub sequences: usize,
    /// Sequences in which each target of full weight has the highest logit.
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
