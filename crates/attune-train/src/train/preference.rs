//! Computes the loss of direct preference optimisation (Rafailov et al., 2023) over pairs of sequences, and its
//! gradient. Called by [`super::backward`]; the trainer supplies the reference's log probabilities.
//!
//! With the log probabilities of a chosen and a rejected answer under the adapter (π) and under the reference, the
//! model that training began with, a pair's rewards are β · (log π − log reference) each, its margin m their
//! difference, and its loss −log σ(m). The slope with respect to an answer's log probability is ∓β · σ(−m): since that
//! is the negated sum of its tokens' cross entropies, the gradient of an answer is that of its cross entropy times this
//! slope.

use crate::train::batch::{LossReport, PackedBatch};
use crate::train::loss::{TargetScore, log_likelihoods, report};

/// Pairs of a batch: sequences 2k and 2k + 1 are the chosen and the rejected answer of a pair.
#[derive(Debug, Clone, Copy)]
pub struct Preferences<'a> {
    /// Strength β of the pull towards the reference.
    pub beta: f64,
    /// Log probability of each sequence's targets under the reference, in nats.
    pub reference: &'a [f64],
}

impl Preferences<'_> {
    /// Computes the sums over the pairs from their targets' scores, and for each target the slope of the loss with
    /// respect to its cross entropy. Accuracies are those of the chosen answers.
    pub(super) fn judge(&self, batch: &PackedBatch, scores: &[TargetScore]) -> (LossReport, Vec<f64>) {
        let log_likelihoods = log_likelihoods(batch, scores);
        let rewards: Vec<f64> =
            log_likelihoods.iter().zip(self.reference).map(|(own, reference)| own - reference).collect();
        let chosen = |sequence: usize| sequence.is_multiple_of(2);
        // A copy of the chosen answers' targets: the reported accuracy is that of the wanted answers.
        let (mut wanted, mut wanted_scores) = (PackedBatch { targets: Vec::new(), ..batch.clone() }, Vec::new());
        let mut sequences = Vec::with_capacity(batch.targets.len());
        for (target, score) in batch.targets.iter().zip(scores) {
            let sequence = batch.sequence_of(target);
            sequences.push(sequence);
            if chosen(sequence) {
                wanted.targets.push(*target);
                wanted_scores.push(*score);
            }
        }
        let mut sums = LossReport { loss_sum: 0.0, weight_sum: 0.0, ..report(&wanted, &wanted_scores) };
        let mut slopes = Vec::with_capacity(rewards.len() / 2);
        for pair in rewards.chunks_exact(2) {
            let margin = self.beta * (pair[0] - pair[1]);
            sums.loss_sum += minus_log_sigmoid(margin);
            sums.weight_sum += 1.0;
            sums.pairs += 1;
            sums.margin_sum += margin;
            sums.preferred += usize::from(margin > 0.0);
            slopes.push(self.beta / (1.0 + margin.exp()));
        }
        let slope = |sequence: usize| {
            let slope = slopes.get(sequence / 2).copied().unwrap_or_default();
            if chosen(sequence) { slope } else { -slope }
        };
        (sums, sequences.into_iter().map(slope).collect())
    }
}

/// Computes −log σ(x), without overflow on either side. NaN stays NaN.
fn minus_log_sigmoid(x: f64) -> f64 {
    if x > 0.0 { (-x).exp().ln_1p() } else { x.exp().ln_1p() - x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::batch::Target;

    fn pairs() -> PackedBatch {
        let target = |row| Target { row, token: 0, weight: 1.0 };
        PackedBatch {
            tokens: vec![0; 9],
            sequences: vec![0..3, 3..5, 5..7, 7..9],
            targets: [1, 2, 4, 5, 6, 8].map(target).to_vec(),
            ..PackedBatch::default()
        }
    }

    fn scores(losses: [f32; 6]) -> Vec<TargetScore> {
        losses.map(|loss| TargetScore { loss, correct: loss < 1.0 }).to_vec()
    }

    #[test]
    fn a_model_that_is_its_own_reference_has_the_loss_ln_2() {
        let (batch, scores) = (pairs(), scores([0.5, 1.5, 3.0, 0.25, 0.5, 2.0]));
        let reference = log_likelihoods(&batch, &scores);
        let (sums, slopes) = Preferences { beta: 0.3, reference: &reference }.judge(&batch, &scores);
        assert_eq!((sums.pairs, sums.preferred, sums.margin_sum), (2, 0, 0.0));
        assert!((sums.loss_sum / sums.weight_sum - std::f64::consts::LN_2).abs() < 1e-15);
        assert_eq!(slopes, [0.15, 0.15, -0.15, 0.15, 0.15, -0.15]);
    }

    #[test]
    fn accuracies_are_those_of_the_chosen_answers() {
        let (sums, _) =
            Preferences { beta: 0.1, reference: &[0.0; 4] }.judge(&pairs(), &scores([0.5, 1.5, 0.1, 0.25, 0.5, 0.1]));
        assert_eq!((sums.targets, sums.correct, sums.sequences, sums.exact), (4, 3, 2, 1));
    }

    #[test]
    fn slopes_are_the_differences_of_the_loss() {
        let (batch, reference) = (pairs(), [-1.0, -4.0, -2.0, -0.5]);
        let judge = |losses: [f64; 6]| {
            let scores = losses.map(|loss| TargetScore { loss: loss as f32, correct: true });
            Preferences { beta: 0.7, reference: &reference }.judge(&batch, &scores)
        };
        let losses = [0.5, 1.5, 3.0, 0.25, 0.5, 2.0];
        let (_, slopes) = judge(losses);
        for (index, slope) in slopes.iter().enumerate() {
            let moved = |step: f64| {
                let mut losses = losses;
                losses[index] += step;
                judge(losses).0.loss_sum
            };
            // The step is a power of two, so that f32 holds the moved losses exactly.
            let measured = (moved(1.0 / 1024.0) - moved(-1.0 / 1024.0)) * 512.0;
            assert!((measured - slope).abs() < 1e-6, "target {index}: {measured} is not {slope}");
        }
    }

    #[test]
    fn the_loss_neither_overflows_nor_hides_what_is_not_a_number() {
        assert!(minus_log_sigmoid(1e6).abs() < 1e-12);
        assert!((minus_log_sigmoid(-1e6) - 1e6).abs() < 1e-6);
        assert!(minus_log_sigmoid(f64::NAN).is_nan());
    }
}
