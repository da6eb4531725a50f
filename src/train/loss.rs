//! The loss over the vocabulary, in chunks of targets: never the logits of the whole batch, and no head product for rows
//! without a target.

use candle_core::Tensor;

use crate::Result;
use crate::model::decoder::Decoder;
use crate::model::kernels;
use crate::train::backward::{LossReport, PackedBatch, Target};

/// Targets whose logits exist at one time.
const CHUNK: usize = 128;

/// The loss of `batch` from the hidden states after the final norm, `[rows, hidden]`, and, where `normalizer` is given, the
/// gradient of `loss_sum / normalizer` with respect to them, `[rows, hidden]`.
pub fn vocabulary_loss(
    decoder: &Decoder,
    hidden: &Tensor,
    batch: &PackedBatch,
    normalizer: Option<f64>,
) -> Result<(LossReport, Option<Tensor>)> {
    let mut report = LossReport::default();
    let mut gradients = Vec::new();
    for targets in batch.targets.chunks(CHUNK) {
        let rows: Vec<u32> = targets.iter().map(|target| target.row as u32).collect();
        let rows = Tensor::new(rows, hidden.device())?;
        let logits = kernels::linear(&hidden.index_select(&rows, 0)?, &decoder.head)?; // [chunk, vocabulary]
        let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let divisor = normalizer.unwrap_or(1.0);
        let weights: Vec<f32> = targets.iter().map(|target| (f64::from(target.weight) / divisor) as f32).collect();
        let chunk = kernels::cross_entropy(logits, &tokens, &weights)?;
        add_to(&mut report, targets, &chunk);
        if normalizer.is_some() {
            gradients.push(kernels::matmul(&chunk.gradient, &decoder.head)?); // [chunk, hidden]
        }
    }
    if normalizer.is_none() {
        return Ok((report, None));
    }
    let mut gradient = hidden.zeros_like()?;
    if !gradients.is_empty() {
        // Once for all chunks: each addition copies the whole gradient.
        let rows: Vec<u32> = batch.targets.iter().map(|target| target.row as u32).collect();
        gradient = gradient.index_add(&Tensor::new(rows, hidden.device())?, &Tensor::cat(&gradients, 0)?, 0)?;
    }
    Ok((report, Some(gradient)))
}

fn add_to(report: &mut LossReport, targets: &[Target], chunk: &kernels::CrossEntropy) {
    for ((target, loss), correct) in targets.iter().zip(&chunk.losses).zip(&chunk.correct) {
        report.loss_sum += f64::from(target.weight) * f64::from(*loss);
        report.weight_sum += f64::from(target.weight);
        // Prompt tokens with a small weight shape the loss; how well prompts are guessed is nobody's measure.
        if target.weight >= 1.0 {
            report.targets += 1;
            report.correct += usize::from(*correct);
        }
    }
}
