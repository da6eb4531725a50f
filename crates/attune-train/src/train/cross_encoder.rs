//! Trains cross-encoders: models that read two texts as one sequence and score with a classification head how well the
//! second answers the first. The loss is the cross entropy of the probability that the head's number stands for, with the
//! label: `BinaryCrossEntropyLoss` of sentence-transformers. The head stays as it is. Called by the trainer and its
//! evaluation.

use std::ops::Range;

use crate::train::backward::{self, Gradients, PassOptions};
use crate::train::batch::{LossReport, PackedBatch};
use crate::train::dropout::Dropout;
use crate::train::packing::{Packed, pack_texts};
use crate::train::parameters::add_gradients;
use crate::train::pooling::PooledRows;
use crate::train::recomputation::Recomputation;
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use crate::{Error, Result};
use attune_model::classifier::Classifier;
use attune_model::decoder::Decoder;
use attune_model::lora::Adapter;

/// Scale that brings the slopes of a step's numbers near to 1.
const GRADIENT_SCALE: f64 = 256.0;

/// Two texts that are one sequence, with their label.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledTexts {
    /// Tokens of the sequence.
    pub tokens: Vec<u32>,
    /// Index of the second text's first token; `None` if the tokenizer does not tell the texts apart.
    pub second: Option<usize>,
    /// Probability that the second text answers the first.
    pub label: f32,
}

impl LabelledTexts {
    /// Makes a sequence of its parts, as a training file's examples hold them.
    pub(super) fn of((parts, label): (Vec<Vec<u32>>, f32)) -> Self {
        let second = (parts.len() > 1).then(|| parts[0].len());
        Self { tokens: parts.concat(), second, label }
    }
}

/// A batch of labelled texts and the options of its loss.
#[derive(Debug, Clone, Copy)]
pub struct ScoredBatch<'a> {
    /// Head of the model, which has one label.
    pub classifier: &'a Classifier,
    /// Examples.
    pub examples: &'a [LabelledTexts],
    /// Most rows of a pack.
    pub budget: usize,
    /// Dropout of the first pack; the others have masks of their own.
    pub dropout: Option<Dropout>,
    /// Activations that the backward pass computes again.
    pub recomputation: Recomputation,
}

impl ScoredBatch<'_> {
    /// Computes the loss alone, and the head's number for each example, in order.
    pub fn loss(
        &self,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        before: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Vec<f64>)> {
        let (mut total, mut numbers) = (LossReport::default(), vec![0.0; self.examples.len()]);
        for Packed { batch, units } in self.packs() {
            before()?;
            let pace = YieldPolicy::asking(before);
            let hidden = backward::hidden_states_with(decoder, adapter, &batch, None, pace)?;
            let pooled = PooledRows::of(&hidden, &batch, &[self.classifier.pooling])?;
            for (unit, values) in units.into_iter().zip(pooled.values) {
                let number = self.number(values)?;
                total.add(judge(number, self.examples[unit].label).0);
                numbers[unit] = number;
            }
        }
        Ok((total, numbers))
    }

    /// Computes the sums over the examples and the gradients of the mean loss. Calls `before` before each pack.
    pub fn loss_and_gradients(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        before: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Gradients)> {
        let mut sum: Option<(LossReport, Gradients)> = None;
        for (index, Packed { batch, units }) in self.packs().iter().enumerate() {
            before()?;
            let dropout = self.dropout.map(|dropout| Dropout { batch: dropout.batch + index, ..dropout });
            let pace = YieldPolicy::asking(before);
            let manner = PassOptions { dropout: dropout.as_ref(), recomputation: self.recomputation, pace };
            let scale = decoder.gradient_scale(GRADIENT_SCALE);
            let (report, gradients) =
                backward::gradients_from_hidden(decoder, adapter, batch, manner, scale, |hidden| {
                    let pooled = PooledRows::of(hidden, batch, &[self.classifier.pooling])?;
                    let (mut report, mut slopes) = (LossReport::default(), Vec::with_capacity(units.len()));
                    for (unit, values) in units.iter().zip(&pooled.values) {
                        let (part, slope) = judge(self.number(values.clone())?, self.examples[*unit].label);
                        report.add(part);
                        let slope = slope / self.examples.len() as f64;
                        slopes.push(self.classifier.pooled_gradient(values.clone(), &[slope]));
                    }
                    Ok((report, (pooled.backward(&slopes, hidden)? * scale)?))
                })?;
            match &mut sum {
                None => sum = Some((report, gradients)),
                Some((total, accumulated)) => {
                    total.add(report);
                    add_gradients(accumulated, &gradients)?;
                }
            }
        }
        sum.ok_or_else(|| Error::Internal("a batch without examples".into()))
    }

    /// Returns the head's number of what was pooled.
    fn number(&self, pooled: Vec<f64>) -> Result<f64> {
        match self.classifier.logits(pooled)?.as_slice() {
            [number] => Ok(f64::from(*number)),
            others => Err(Error::Internal(format!("a head of {} labels was trained as one of one", others.len()))),
        }
    }

    fn packs(&self) -> Vec<Packed> {
        let texts: Vec<&[u32]> = self.examples.iter().map(|example| example.tokens.as_slice()).collect();
        let mut packs = pack_texts(&texts, self.budget);
        for Packed { batch, units } in &mut packs {
            batch.seconds = self.seconds(batch, units);
        }
        packs
    }

    /// Returns the rows of `batch` at which second texts begin.
    fn seconds(&self, batch: &PackedBatch, units: &[usize]) -> Vec<usize> {
        let begin = |(rows, unit): (&Range<usize>, &usize)| Some(rows.start + self.examples[*unit].second?);
        batch.sequences.iter().zip(units).filter_map(begin).collect()
    }
}

/// Computes the loss of one number, and its slope. The number counts as correct if it is on the label's side of 0, where
/// the probability is one half.
fn judge(number: f64, label: f32) -> (LossReport, f64) {
    let label = f64::from(label);
    let probability = 1.0 / (1.0 + (-number).exp());
    // ln(1 + eˣ) without overflow.
    let loss = number.max(0.0) - number * label + (-number.abs()).exp().ln_1p();
    let correct = usize::from(!number.is_nan() && (number >= 0.0) == (label >= 0.5));
    let report = LossReport {
        loss_sum: loss,
        weight_sum: 1.0,
        targets: 1,
        correct,
        sequences: 1,
        exact: correct,
        ..LossReport::default()
    };
    (report, probability - label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_the_cross_entropy_and_its_slope_the_difference_of_probabilities() {
        for (number, label) in [(0.3, 1.0), (-2.0, 0.0), (1.5, 0.25), (0.0, 0.5)] {
            let (report, slope) = judge(number, label);
            let probability = 1.0 / (1.0 + f64::exp(-number));
            let wanted = f64::from(label);
            let expected = -wanted * probability.ln() - (1.0 - wanted) * (1.0 - probability).ln();
            assert!((report.loss_sum - expected).abs() < 1e-12, "{number} {label}: {report:?}");
            let moved = |step: f64| judge(number + step, label).0.loss_sum;
            assert!(((moved(1e-6) - moved(-1e-6)) / 2e-6 - slope).abs() < 1e-8);
        }
        for (number, label, correct) in [(0.1, 1.0, 1), (-0.1, 1.0, 0), (-0.1, 0.4, 1), (f64::NAN, 0.0, 0)] {
            assert_eq!(judge(number, label).0.correct, correct, "{number} {label}");
        }
    }

    #[test]
    fn large_numbers_have_finite_losses() {
        assert!((judge(900.0, 0.0).0.loss_sum - 900.0).abs() < 1e-9);
        assert!((judge(-900.0, 1.0).0.loss_sum - 900.0).abs() < 1e-9);
        assert!(judge(900.0, 1.0).0.loss_sum < 1e-12 && judge(f64::NAN, 1.0).0.loss_sum.is_nan());
    }

    #[test]
    fn second_texts_are_found_in_every_pack() {
        let classifier = Classifier {
            labels: vec!["yes".into()],
            pooling: attune_model::vectors::Pooling::First,
            layers: Vec::new(),
            score: attune_model::classifier::ScoreForm::Identity,
            hidden_size: 4,
        };
        let example = |parts: &[usize]| LabelledTexts::of((parts.iter().map(|length| vec![7; *length]).collect(), 1.0));
        let examples = [example(&[2, 3]), example(&[4]), example(&[1, 5])];
        let batch = ScoredBatch {
            classifier: &classifier,
            examples: &examples,
            budget: 11,
            dropout: None,
            recomputation: Recomputation::None,
        };
        let packs = batch.packs();
        assert_eq!(packs.len(), 2);
        // The longest first: the third and the first example, then the second.
        assert_eq!(
            (packs[0].units.as_slice(), packs[0].batch.seconds.as_slice()),
            ([2, 0].as_slice(), [1, 8].as_slice())
        );
        assert!(packs[1].batch.seconds.is_empty());
    }
}
