//! Computes the loss over the vocabulary in chunks of targets: never the logits of the whole batch, and no head product
//! for rows without a target.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::train::batch::{LossReport, PackedBatch, Target};
use attune_model::decoder::Decoder;
use attune_model::kernels::cpu::logits::position_of_max;
use attune_model::kernels::{Draw, Kernels};

/// Targets whose logits are in memory at one time.
const CHUNK: usize = 128;
/// The same on a GPU, where each chunk costs a read back to the host.
const GPU_CHUNK: usize = 1024;

/// Returns the number of targets whose logits are in memory at one time on `kernels`.
pub fn chunk_targets(kernels: &Kernels) -> usize {
    if kernels.is_cpu() { CHUNK } else { GPU_CHUNK }
}

/// Score of one target's prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetScore {
    /// Cross entropy in nats: minus the log probability.
    pub loss: f32,
    /// Whether the target has the highest logit.
    pub correct: bool,
}

/// Computes the scores of the targets of `batch`, in order, from the hidden states after the final norm, `[rows,
/// hidden]`. If `divisor` is given, also returns the gradient of each target's weighted cross entropy divided by
/// `divisor`, with respect to the predicting hidden state, `[targets, hidden]`.
pub fn vocabulary_loss(
    decoder: &Decoder,
    hidden: &Tensor,
    batch: &PackedBatch,
    divisor: Option<f64>,
) -> Result<(Vec<TargetScore>, Option<Tensor>)> {
    vocabulary_loss_by(chunk_targets(decoder.kernels()), decoder, hidden, batch, divisor, None)
}

/// Computes the scores of the targets of `batch`, and the token that is the most probable in the place of each.
pub fn vocabulary_predictions(
    decoder: &Decoder,
    hidden: &Tensor,
    batch: &PackedBatch,
) -> Result<(Vec<TargetScore>, Vec<u32>)> {
    let mut best = Vec::with_capacity(batch.targets.len());
    let size = chunk_targets(decoder.kernels());
    let (scores, _) = vocabulary_loss_by(size, decoder, hidden, batch, None, Some(&mut best))?;
    Ok((scores, best))
}

/// Returns the most probable token of each row of `logits`, `[rows, vocabulary]`, as the engine draws it at temperature
/// 0.
fn most_probable(kernels: &Kernels, logits: &Tensor) -> Result<Vec<u32>> {
    if let Some(gpu) = kernels.gpu() {
        return Ok(gpu.draw(logits, &vec![Draw::GREEDY; logits.dim(0)?])?);
    }
    let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    Ok(rows.iter().map(|row| position_of_max(row) as u32).collect())
}

/// Does the same as [`vocabulary_loss`] in chunks of `size` targets, and adds the most probable tokens to `best` if it
/// is given.
fn vocabulary_loss_by(
    size: usize,
    decoder: &Decoder,
    hidden: &Tensor,
    batch: &PackedBatch,
    divisor: Option<f64>,
    mut best: Option<&mut Vec<u32>>,
) -> Result<(Vec<TargetScore>, Option<Tensor>)> {
    let mut scores = Vec::with_capacity(batch.targets.len());
    let mut gradients = Vec::new();
    for targets in batch.targets.chunks(size) {
        let rows: Vec<u32> = targets.iter().map(|target| target.row as u32).collect();
        let rows = Tensor::new(rows, hidden.device())?;
        let (kernels, form) = (decoder.kernels(), decoder.logit_form);
        let products = decoder.head().forward(&hidden.index_select(&rows, 0)?)?; // [chunk, vocabulary]
        if let Some(best) = &mut best {
            best.extend(most_probable(kernels, &kernels.to_logits(products.clone(), form)?)?);
        }
        let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let weight = |target: &Target| (f64::from(target.weight) / divisor.unwrap_or(1.0)) as f32;
        let weights: Vec<f32> = targets.iter().map(weight).collect();
        let chunk = kernels.cross_entropy(products, form, &tokens, &weights)?;
        let pairs = chunk.losses.iter().zip(&chunk.correct);
        scores.extend(pairs.map(|(loss, correct)| TargetScore { loss: *loss, correct: *correct }));
        if divisor.is_some() {
            gradients.push(decoder.head().input_gradient(&chunk.gradient)?); // [chunk, hidden]
        }
    }
    let gradient = if gradients.is_empty() { None } else { Some(Tensor::cat(&gradients, 0)?) };
    Ok((scores, gradient))
}

/// Spreads the gradients of targets, `[targets, hidden]`, over all rows, `[rows, hidden]`: zero for rows without a
/// target.
pub fn spread(hidden: &Tensor, batch: &PackedBatch, gradient: Option<Tensor>) -> Result<Tensor> {
    let zeros = hidden.zeros_like()?;
    let Some(gradient) = gradient else { return Ok(zeros) };
    let rows: Vec<u32> = batch.targets.iter().map(|target| target.row as u32).collect();
    // Once for all chunks: each addition copies the whole gradient.
    Ok(zeros.index_add(&Tensor::new(rows, hidden.device())?, &gradient, 0)?)
}

/// Sums the scores of a batch's targets.
pub fn report(batch: &PackedBatch, scores: &[TargetScore]) -> LossReport {
    let mut report = LossReport::default();
    // For each sequence: targets of full weight, and those of them that were missed.
    let mut counts = vec![(0_usize, 0_usize); batch.sequences.len()];
    for (target, score) in batch.targets.iter().zip(scores) {
        report.loss_sum += f64::from(target.weight) * f64::from(score.loss);
        report.weight_sum += f64::from(target.weight);
        // Prompt tokens with a small weight shape the loss, but the accuracy of guessing prompts interests nobody.
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

/// Computes the summed log probability of each sequence's targets.
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
    use attune_model::decoder::RowPlace;

    use super::*;

    fn decoder() -> Decoder {
        use attune_model::{ModelConfig, linear::Storage, weights::Weights};
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen2");
        let weights = Weights::open(&folder, &candle_core::Device::Cpu).unwrap();
        Decoder::load(&ModelConfig::read(&folder).unwrap(), &weights, &Storage::default()).unwrap()
    }

    /// Returns hidden states of `rows` rows, each of which predicts a token.
    #[allow(clippy::single_range_in_vec_init, reason = "one sequence is meant")]
    fn predictions(decoder: &Decoder, rows: usize) -> (Tensor, PackedBatch) {
        let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 150).collect();
        let target = |row: usize| Target { row, token: (row * 31 % 150) as u32, weight: [1.0, 0.25][row % 2] };
        let batch = PackedBatch {
            sequences: vec![0..rows],
            targets: (0..rows).map(target).collect(),
            tokens: tokens.clone(),
            ..PackedBatch::default()
        };
        (decoder.embed(&tokens, &vec![RowPlace::default(); rows]).unwrap(), batch)
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn chunks_of_any_size_give_the_same_bits_and_the_loss_of_all_logits_at_once() {
        let decoder = decoder();
        for rows in [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3] {
            let (hidden, batch) = predictions(&decoder, rows);
            let by = |size| vocabulary_loss_by(size, &decoder, &hidden, &batch, Some(3.0), None).unwrap();
            let (scores, gradient) = vocabulary_loss(&decoder, &hidden, &batch, Some(3.0)).unwrap();
            let gradient = gradient.unwrap();
            for size in [1, 7, 64, CHUNK, rows] {
                let (others, other) = by(size);
                assert_eq!(others, scores, "{rows} rows in chunks of {size}");
                assert_eq!(bits(&other.unwrap()), bits(&gradient), "{rows} rows in chunks of {size}");
            }
            // Plain operations of candle, which its autograd differentiates.
            let variable = candle_core::Var::from_tensor(&hidden).unwrap();
            let all: Vec<u32> = (0..160).collect();
            let logits = variable.matmul(&decoder.head().rows(&all).unwrap().t().unwrap()).unwrap();
            let log_softmax = candle_nn::ops::log_softmax(&logits, 1).unwrap();
            let tokens: Vec<u32> = batch.targets.iter().map(|target| target.token).collect();
            let tokens = Tensor::new(tokens, hidden.device()).unwrap().unsqueeze(1).unwrap();
            let weights: Vec<f32> = batch.targets.iter().map(|target| target.weight).collect();
            let weights = Tensor::new(weights, hidden.device()).unwrap();
            let losses = log_softmax.gather(&tokens, 1).unwrap().squeeze(1).unwrap().neg().unwrap();
            let total = ((losses * weights).unwrap().sum_all().unwrap() / 3.0).unwrap();
            let expected = f64::from(total.to_scalar::<f32>().unwrap());
            let ours = report(&batch, &scores).loss_sum / 3.0;
            assert!((ours - expected).abs() < 1e-5 * expected, "{rows} rows: {ours} is not {expected}");
            let expected = total.backward().unwrap().get(&variable).unwrap().clone();
            let difference = (&gradient - &expected).unwrap().sqr().unwrap().sum_all().unwrap();
            let share = difference.to_scalar::<f32>().unwrap()
                / expected.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(share.sqrt() < 1e-5, "{rows} rows: the gradient differs by {:e}", share.sqrt());
        }
    }

    #[test]
    fn a_chunk_without_weight_changes_nothing_and_a_batch_without_targets_has_no_gradient() {
        let decoder = decoder();
        let (hidden, mut batch) = predictions(&decoder, 2 * CHUNK);
        for target in &mut batch.targets[..CHUNK] {
            target.weight = 0.0;
        }
        let half = PackedBatch { targets: batch.targets[CHUNK..].to_vec(), ..batch.clone() };
        let run = |batch: &PackedBatch| {
            let (scores, gradient) = vocabulary_loss(&decoder, &hidden, batch, Some(2.0)).unwrap();
            (report(batch, &scores), bits(&spread(&hidden, batch, gradient).unwrap()))
        };
        let ((whole, gradient), (expected, expected_gradient)) = (run(&batch), run(&half));
        assert_eq!((whole.loss_sum, whole.weight_sum), (expected.loss_sum, expected.weight_sum));
        let zero = |bits: &u32| if f32::from_bits(*bits) == 0.0 { 0 } else { *bits };
        assert!(gradient.iter().map(zero).eq(expected_gradient.iter().map(zero)));
        let none = PackedBatch { targets: Vec::new(), ..batch };
        let (empty, gradient) = run(&none);
        assert_eq!(empty, LossReport::default());
        assert!(gradient.iter().all(|bits| *bits == 0));
    }

    #[test]
    fn a_sequence_is_exact_where_every_target_of_full_weight_is_right() {
        let target = |row, weight| Target { row, token: 0, weight };
        let batch = PackedBatch {
            tokens: vec![0; 9],
            sequences: vec![0..3, 3..6, 6..8, 8..9],
            targets: vec![
                // A missed prompt token does not count; two correct answer tokens do.
                target(0, 0.1),
                target(1, 1.0),
                target(2, 1.0),
                target(4, 1.0),
                target(5, 1.0),
                // Only a prompt, without a completion to get right.
                target(6, 0.1),
                target(8, 1.0),
            ],
            ..PackedBatch::default()
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
