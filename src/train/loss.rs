//! The loss over the vocabulary, in chunks of targets: never the logits of the whole batch, and no head product for rows
//! without a target.

use candle_core::Tensor;

use crate::Result;
use crate::model::decoder::Decoder;
use crate::model::kernels;
use crate::train::backward::{LossReport, PackedBatch, Target};

/// Targets whose logits exist at one time.
pub const CHUNK: usize = 128;

/// How one target was predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetScore {
    /// Its cross entropy in nats: minus its log probability.
    pub loss: f32,
    /// It has the highest logit.
    pub correct: bool,
}

/// The scores of the targets of `batch`, in their order, from the hidden states after the final norm, `[rows, hidden]`, and,
/// where `divisor` is given, the gradient of each target's weighted cross entropy divided by it with respect to the hidden
/// state that predicts it, `[targets, hidden]`.
pub fn vocabulary_loss(
    decoder: &Decoder,
    hidden: &Tensor,
    batch: &PackedBatch,
    divisor: Option<f64>,
) -> Result<(Vec<TargetScore>, Option<Tensor>)> {
    let mut scores = Vec::with_capacity(batch.targets.len());
    let mut gradients = Vec::new();
    for targets in batch.targets.chunks(CHUNK) {
        let rows: Vec<u32> = targets.iter().map(|target| target.row as u32).collect();
        let rows = Tensor::new(rows, hidden.device())?;
        let logits = decoder.logits(&hidden.index_select(&rows, 0)?)?; // [chunk, vocabulary]
        let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let weight = |target: &Target| (f64::from(target.weight) / divisor.unwrap_or(1.0)) as f32;
        let weights: Vec<f32> = targets.iter().map(weight).collect();
        let chunk = kernels::cross_entropy(logits, &tokens, &weights)?;
        let pairs = chunk.losses.iter().zip(&chunk.correct);
        scores.extend(pairs.map(|(loss, correct)| TargetScore { loss: *loss, correct: *correct }));
        if divisor.is_some() {
            gradients.push(decoder.head().input_gradient(&chunk.gradient)?); // [chunk, hidden]
        }
    }
    let gradient = if gradients.is_empty() { None } else { Some(Tensor::cat(&gradients, 0)?) };
    Ok((scores, gradient))
}

/// The gradients of targets, `[targets, hidden]`, as those of all rows, `[rows, hidden]`: zero where nothing is predicted.
pub fn spread(hidden: &Tensor, batch: &PackedBatch, gradient: Option<Tensor>) -> Result<Tensor> {
    let zeros = hidden.zeros_like()?;
    let Some(gradient) = gradient else { return Ok(zeros) };
    let rows: Vec<u32> = batch.targets.iter().map(|target| target.row as u32).collect();
    // Once for all chunks: each addition copies the whole gradient.
    Ok(zeros.index_add(&Tensor::new(rows, hidden.device())?, &gradient, 0)?)
}

/// The sums of a batch whose targets were predicted so.
pub fn report(batch: &PackedBatch, scores: &[TargetScore]) -> LossReport {
    let mut report = LossReport::default();
    // For each sequence: targets of full weight, and those of them that were missed.
    let mut counts = vec![(0_usize, 0_usize); batch.sequences.len()];
    for (target, score) in batch.targets.iter().zip(scores) {
        report.loss_sum += f64::from(target.weight) * f64::from(score.loss);
        report.weight_sum += f64::from(target.weight);
        // Prompt tokens with a small weight shape the loss; how well prompts are guessed is nobody's measure.
        if target.weight >= 1.0 {
            report.targets += 1;
            report.correct += usize::from(score.correct);
            if let Some((targets, missed)) = counts.get_mut(batch.sequence_of(target)) {
                *targets += 1;
                *missed += usize::from(!score.correct);
            }
        }
    }
    report.sequences = counts.iter().filter(|(targets, _)| *targets > 0).count();
    report.exact = counts.iter().filter(|(targets, missed)| *targets > 0 && *missed == 0).count();
    report
}

/// The log probability of each sequence's targets together.
pub fn log_likelihoods(batch: &PackedBatch, scores: &[TargetScore]) -> Vec<f64> {
    let mut sums = vec![0.0; batch.sequences.len()];
    for (target, score) in batch.targets.iter().zip(scores) {
        if let Some(sum) = sums.get_mut(batch.sequence_of(target)) {
            *sum -= f64::from(score.loss);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_exact_where_every_target_of_full_weight_is_right() {
        let target = |row, weight| Target { row, token: 0, weight };
        let batch = PackedBatch {
            tokens: vec![0; 9],
            sequences: vec![0..3, 3..6, 6..8, 8..9],
            targets: vec![
                // A prompt token that is missed does not count; two answer tokens that are right do.
                target(0, 0.1),
                target(1, 1.0),
                target(2, 1.0),
                target(4, 1.0),
                target(5, 1.0),
                // Only a prompt: no completion to get right.
                target(6, 0.1),
                target(8, 1.0),
            ],
        };
        let score = |loss, correct| TargetScore { loss, correct };
        let scores = [
            score(4.0, false),
            score(0.5, true),
            score(0.25, true),
            score(0.5, true),
            score(2.0, false),
            score(1.0, true),
            score(1.0, false),
        ];
        let report = report(&batch, &scores);
        assert_eq!((report.targets, report.correct, report.sequences, report.exact), (5, 3, 3, 1));
        assert_eq!(log_likelihoods(&batch, &scores), [-4.75, -2.5, -1.0, -1.0]);
    }
}
