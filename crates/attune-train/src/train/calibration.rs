//! How fast this machine trains a model, found out with the model itself: a few batches of the job's own examples, for some
//! seconds at the most. Called by the worker where neither a calibration nor a finished job has told before.

use std::time::{Duration, Instant};

use candle_core::DType;

use crate::datasets::TokenizedExample;
use crate::train::backward::{self, Objective, PassOptions};
use crate::train::contrastive::Contrast;
use crate::train::estimate::TrainingRate;
use crate::train::optimizer::AdamSettings;
use crate::train::packing::{Packed, batch_rows, pack, rows};
use crate::train::parameters::Parameters;
use crate::train::recomputation::Recomputation;
use crate::train::state::{AdapterState, UpdateScales};
use crate::train::trainer::BeforeMicroStep;
use crate::{Error, Result};
use attune_model::decoder::Decoder;
use attune_model::kernels::Kernels;
use attune_model::lora::Adapter;

/// Time to measure at the most, besides the first, small batch.
const LIMIT: Duration = Duration::from_secs(3);
/// Batches to measure at the most.
const MAX_BATCHES: usize = 6;
/// Rows of the first batch: it wakes the machine up and tells how large a batch the time allows.
const FIRST_ROWS: usize = 32;
/// Examples that a calibration looks at.
pub const SAMPLES: usize = 64;

/// The rate of steps of `step_tokens` tokens on `samples`, with an adapter of the job's shape. The adapter does not change.
/// Under a `scale` the samples are single texts of pairs. `before` is asked before each batch, as in a step: requests go first,
/// and that time does not count.
pub fn calibrate(
    decoder: &Decoder,
    adapter: &Adapter,
    samples: &[TokenizedExample],
    scale: Option<f64>,
    step_tokens: f64,
    recomputation: Recomputation,
    before: BeforeMicroStep<'_>,
) -> Result<TrainingRate> {
    let (update, most_rows) = (update_seconds(adapter, decoder.kernels())?, batch_rows(decoder.kernels()));
    let mut batch = |examples: &[TokenizedExample]| -> Result<TrainingRate> {
        if let Some(scale) = scale {
            before()?;
            return time_texts(decoder, adapter, examples, scale, recomputation);
        }
        let (mut seconds, mut tokens) = (0.0, 0);
        for Packed { batch, .. } in pack(examples, 1, most_rows) {
            before()?;
            let begin = Instant::now();
            let (objective, manner) = (Objective::Targets, PassOptions::recomputing(recomputation));
            backward::objective_and_gradients(decoder, adapter, &batch, objective, 1.0, manner)?;
            seconds += begin.elapsed().as_secs_f64();
            // The last token of an example is predicted, not read.
            tokens += batch.tokens.len() + batch.sequences.len();
        }
        Ok(TrainingRate { tokens: tokens as f64, seconds })
    };
    let first = fitting(samples, FIRST_ROWS);
    if first.is_empty() {
        return Err(Error::Internal("nothing to calibrate with".into()));
    }
    let probe = batch(&first)?;
    // Larger batches are not slower by the token, so this many rows take a third of the time at the most.
    let affordable = LIMIT.as_secs_f64() / 3.0 * probe.tokens_per_second();
    let mut sum = TrainingRate { tokens: 0.0, seconds: 0.0 };
    let begin = Instant::now();
    if affordable as usize > FIRST_ROWS {
        let budget = most_rows.min(affordable as usize);
        let mut left = samples;
        for _ in 0..MAX_BATCHES {
            let part = fitting(left, budget);
            let measured = batch(&part)?;
            sum.tokens += measured.tokens;
            sum.seconds += measured.seconds;
            left = left.get(part.len()..).filter(|left| !left.is_empty()).unwrap_or(samples);
            if begin.elapsed() >= LIMIT {
                break;
            }
        }
    }
    let measured = if sum.tokens > 0.0 { sum } else { probe };
    let seconds = measured.seconds + update * measured.tokens / step_tokens.max(1.0);
    Ok(TrainingRate { tokens: measured.tokens, seconds })
}

/// Times one pass over single texts, all in one pack. Which texts are told apart makes no difference to the time.
fn time_texts(
    decoder: &Decoder,
    adapter: &Adapter,
    examples: &[TokenizedExample],
    scale: f64,
    recomputation: Recomputation,
) -> Result<TrainingRate> {
    let begin = Instant::now();
    let texts: Vec<_> = examples.iter().map(|example| example.tokens.clone()).collect();
    let pair = [TokenizedExample::of_texts(&texts)];
    let batch = Contrast { pairs: &pair, scale, budget: usize::MAX, dropout: None, recomputation };
    batch.loss_and_gradients(decoder, adapter, &mut || Ok(()))?;
    let tokens = pair[0].tokens.len() as f64;
    Ok(TrainingRate { tokens, seconds: begin.elapsed().as_secs_f64() })
}

/// Examples from the beginning of `samples` that fit into `budget` rows together; the first one is cut where it alone does
/// not.
fn fitting(samples: &[TokenizedExample], budget: usize) -> Vec<TokenizedExample> {
    let mut taken = Vec::new();
    let mut used = 0;
    for example in samples {
        let needed = rows(example);
        if used + needed <= budget {
            taken.push(example.clone());
        } else if taken.is_empty() {
            let mut weights = vec![0.0; budget + 1];
            weights[budget] = 1.0;
            taken.push(TokenizedExample { tokens: example.tokens[..=budget].to_vec(), weights });
        } else {
            break;
        }
        used += needed;
    }
    taken
}

/// Seconds of one update of the adapter's numbers, where the decoder's `kernels` take it.
fn update_seconds(adapter: &Adapter, kernels: &Kernels) -> Result<f64> {
    let mut state = AdapterState::new(Parameters::of(adapter)?, AdamSettings::default(), kernels, DType::F32)?;
    let gradients = adapter.layers.clone();
    let begin = Instant::now();
    state.step(&gradients, UpdateScales { learning_rate: 1e-6, clip: 0.0 }, |_| Ok(()))?;
    kernels.device().synchronize()?;
    Ok(begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(length: usize) -> TokenizedExample {
        let mut weights = vec![1.0; length];
        weights[0] = 0.0;
        TokenizedExample { tokens: vec![1; length], weights }
    }

    #[test]
    fn what_fits_is_taken_and_a_single_long_example_is_cut() {
        let samples = [example(11), example(11), example(11)];
        assert_eq!(fitting(&samples, 25).len(), 2);
        let cut = fitting(&samples, 5);
        assert_eq!((cut.len(), rows(&cut[0]), cut[0].targets()), (1, 5, 1));
        assert!(fitting(&[], 5).is_empty());
    }
}
