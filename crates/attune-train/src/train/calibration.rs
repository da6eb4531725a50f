//! Measures how fast this machine trains a model, with the model itself: a few batches of the job's own examples, for a
//! few seconds at most. Called by the worker if neither a calibration on an idle machine nor a finished job has
//! measured it before.

use std::time::{Duration, Instant};

use candle_core::DType;

use crate::datasets::{ExampleStore, TokenizedExample};
use crate::train::loss_source::Heads;
use crate::train::methods::{Probe, method};
use crate::train::optimizer::AdamSettings;
use crate::train::packing::{batch_rows, rows};
use crate::train::parameters::Parameters;
use crate::train::rate::{Clocks, RateSum, Timing, TrainingRate, Watch};
use crate::train::recomputation::Recomputation;
use crate::train::state::{AdapterState, UpdateScales};
use crate::train::training_method::TrainingMethod;
use crate::train::yielding::BeforeMicroStep;
use crate::{Error, Result};
use attune_model::decoder::Decoder;
use attune_model::kernels::Kernels;
use attune_model::lora::Adapter;

/// Longest time to measure, besides the first, small batch.
const LIMIT: Duration = Duration::from_secs(3);
/// Most batches to measure.
const MAX_BATCHES: usize = 6;
/// Rows of the first batch, which wakes the machine up and shows how large a batch the time allows.
const FIRST_ROWS: usize = 32;
/// Examples that a calibration reads.
const SAMPLES: usize = 64;

/// Reads some examples from all over the file to measure with.
pub fn samples(training: TrainingMethod, examples: &ExampleStore) -> Result<Vec<TokenizedExample>> {
    let (every, method) = (examples.len().div_ceil(SAMPLES).max(1), method(training));
    let read = |index| method.samples(examples, index);
    Ok((0..examples.len()).step_by(every).map(read).collect::<Result<Vec<_>>>()?.concat())
}

/// Model and options of a calibration.
pub struct Calibration<'a> {
    /// Base model.
    pub decoder: &'a Decoder,
    /// Parts of the model that make vectors and scores.
    pub heads: Heads<'a>,
    /// Adapter of the job's shape; it does not change.
    pub adapter: &'a Adapter,
    /// Method of training.
    pub training: TrainingMethod,
    /// Tokens of a step.
    pub step_tokens: f64,
    /// Activations that the backward pass computes again.
    pub recomputation: Recomputation,
    /// Clocks to measure with.
    pub clocks: &'a dyn Clocks,
}

/// Measures the rate of training on [`samples`]. Calls `before` before each batch, as in a step: requests go first, and
/// that time does not count.
pub fn calibrate(
    wanted: &Calibration<'_>,
    samples: &[TokenizedExample],
    before: BeforeMicroStep<'_>,
) -> Result<TrainingRate> {
    let Calibration { decoder, heads, adapter, training, step_tokens, recomputation, clocks } = *wanted;
    let update = update_time(adapter, decoder.kernels(), clocks)?;
    let most_rows = batch_rows(decoder.kernels());
    let (method, probe) = (method(training), Probe { decoder, heads, adapter, rows: most_rows, recomputation, clocks });
    let mut woken = RateSum::default();
    method.calibrate(probe, &fitting(samples, FIRST_ROWS), before, &mut woken)?;
    let woken = woken.rate().ok_or_else(|| Error::Internal("nothing to calibrate with".into()))?;
    // The time per token does not grow with the batch, so this many rows take at most a third of the time.
    let affordable = LIMIT.as_secs_f64() / 3.0 * woken.tokens / woken.seconds.max(1e-9);
    let mut sum = RateSum::default();
    let begin = Instant::now();
    if affordable as usize > FIRST_ROWS {
        let budget = most_rows.min(affordable as usize);
        let mut left = samples;
        for _ in 0..MAX_BATCHES {
            let part = fitting(left, budget);
            method.calibrate(probe, &part, before, &mut sum)?;
            left = left.get(part.len()..).filter(|left| !left.is_empty()).unwrap_or(samples);
            if begin.elapsed() >= LIMIT {
                break;
            }
        }
    }
    let measured = sum.rate().unwrap_or(woken);
    let updates = measured.tokens / step_tokens.max(1.0);
    Ok(TrainingRate {
        seconds: measured.seconds + update.seconds * updates,
        idle_seconds: measured.idle_seconds + update.idle_seconds() * updates,
        ..measured
    })
}

/// Returns examples from the beginning of `samples` that fit into `budget` rows together; cuts the first one if it does
/// not fit alone.
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

/// Measures one update of the adapter's parameters, on the device of the decoder's `kernels`.
fn update_time(adapter: &Adapter, kernels: &Kernels, clocks: &dyn Clocks) -> Result<Timing> {
    let mut state = AdapterState::new(Parameters::of(adapter)?, AdamSettings::default(), kernels, DType::F32)?;
    let gradients = adapter.layers.clone();
    let watch = Watch::start(clocks);
    state.step(&gradients, UpdateScales { learning_rate: 1e-6, clip: 0.0 }, |_| Ok(()))?;
    kernels.device().synchronize()?;
    Ok(watch.stop())
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
