//! Changes that must not affect a run: packing, order and split of the examples. Results that a run must reach: a batch
//! learned by heart, and an adapter that equals its merge into the weights.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use crate::fixtures::{
    Reference, TRAINED_FAMILIES, add_to_weight, floats, load, max_difference, one_sequence, relative_difference,
    whole_model, whole_model_of,
};
use attune::datasets::{ExampleStore, TokenizedExample};
use attune::model::lora::{Adapter, Site};
use attune::train::YieldPolicy;
use attune::train::backward::{self, Gradients, PackedBatch, hidden_states};
use attune::train::hyperparameters::Hyperparameters;
use attune::train::packing::{pack, pack_in_order};
use attune::train::{TrainSettings, Trainer};
use candle_core::Device;

const CPU: Device = Device::Cpu;
/// Relative difference allowed for gradients of reordered examples: f32 adds them up in another order.
const REORDERED: f64 = 1e-5;

fn numbers(gradients: &Gradients) -> Vec<f32> {
    let pairs = gradients.iter().flat_map(|layer| Site::ALL.into_iter().filter_map(|site| layer.get(site)));
    pairs.flat_map(|pair| [floats(&pair.a), floats(&pair.b)].concat()).collect()
}

fn adapter(family: &str, config: &attune::model::ModelConfig) -> Adapter {
    Reference::read(family, "peft/adapter_model.safetensors").adapter("", config, 2.0, &CPU)
}

/// Returns examples of very unequal lengths, with targets on some tokens only and of unequal weights.
fn examples() -> Vec<TokenizedExample> {
    let lengths = [41, 2, 17, 3, 29, 5, 11, 36, 8, 23];
    let example = |(number, length): (usize, &usize)| TokenizedExample {
        tokens: (0..*length).map(|i| ((number * 53 + i * 31 + 7) % 150) as u32).collect(),
        weights: (0..*length).map(|i| [0.0, 1.0, 0.1][if i == 0 { 0 } else { (number + i) % 3 }]).collect(),
    };
    let mut examples: Vec<_> = lengths.iter().enumerate().map(example).collect();
    for example in &mut examples {
        // Each example has at least one target.
        *example.weights.last_mut().unwrap() = 1.0;
    }
    examples
}

#[test]
fn order_packing_and_split_into_micro_batches_change_neither_loss_nor_gradients() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family, &CPU);
        let adapter = adapter(family, &config);
        let run = |batches: Vec<PackedBatch>| {
            let weight =
                batches.iter().flat_map(|batch| &batch.targets).map(|target| f64::from(target.weight)).sum::<f64>();
            let (mut loss, mut sum) = (0.0, Vec::new());
            for batch in &batches {
                let (report, gradients) = backward::loss_and_gradients(&decoder, &adapter, batch, weight).unwrap();
                loss += report.loss_sum / weight;
                let gradients = numbers(&gradients);
                sum.resize(gradients.len(), 0.0);
                sum.iter_mut().zip(gradients).for_each(|(sum, gradient)| *sum += gradient);
            }
            (loss, sum)
        };
        let packed = |examples: &[TokenizedExample], budget| {
            pack(examples, 1, budget).into_iter().map(|pack| pack.batch).collect::<Vec<_>>()
        };
        let examples = examples();
        let (loss, gradients) = run(packed(&examples, 1000));
        let mut turned = examples.clone();
        turned.reverse();
        for (what, batches, count) in [
            ("each alone", packed(&examples, 1), 10),
            ("some together", packed(&examples, 45), 4),
            ("in their order", pack_in_order(&examples, 1000), 1),
            ("in the other order", pack_in_order(&turned, 1000), 1),
            ("in the other order, split", pack_in_order(&turned, 50), 4),
        ] {
            assert!(batches.len() >= count, "{what}: {} batches", batches.len());
            let (other_loss, others) = run(batches);
            assert!((other_loss - loss).abs() < 1e-6 * loss, "{family}, {what}: {other_loss} is not {loss}");
            let difference = relative_difference(&others, &gradients);
            assert!(difference < REORDERED, "{family}, {what}: gradients differ by {difference:e}");
        }
    }
}

#[test]
fn what_stands_beside_a_sequence_in_its_batch_changes_no_bit_of_its_loss() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family, &CPU);
        let adapter = adapter(family, &config);
        let batch = pack_in_order(&examples(), 1000).remove(0);
        let likelihoods = |batch: &PackedBatch| {
            backward::log_likelihoods(&decoder, Some(&adapter), batch, YieldPolicy::default()).unwrap()
        };
        let before = likelihoods(&batch);
        for (index, rows) in batch.sequences.iter().enumerate() {
            let mut poisoned = batch.clone();
            for (row, token) in poisoned.tokens.iter_mut().enumerate().filter(|(row, _)| !rows.contains(row)) {
                *token = (*token + 1 + row as u32) % 150;
            }
            let after = likelihoods(&poisoned);
            assert_eq!(after[index].to_bits(), before[index].to_bits(), "{family}, sequence {index}");
            assert_ne!(after, before, "nothing was poisoned");
        }
    }
}

#[test]
fn one_batch_is_learned_by_heart() {
    let mut failed = Vec::new();
    for family in TRAINED_FAMILIES {
        let example = |number: u32| TokenizedExample {
            tokens: (0..12).map(|i| (number * 37 + i * i * 11 + 3) % 150).collect(),
            weights: (0..12).map(|i| if i < 4 { 0.0 } else { 1.0 }).collect(),
        };
        let asked = Hyperparameters {
            n_epochs: Some(50),
            batch_size: Some(4),
            learning_rate: Some(2e-2),
            rank: Some(16),
            ..Hyperparameters::default()
        };
        let settings = TrainSettings { epochs: 150, ..TrainSettings::new(&asked, 1) };
        let examples = ExampleStore::of((0..4).map(example)).unwrap();
        let model = whole_model(family);
        // Under a cap c no token is certain: beside others at 0 it costs ln(1 + (vocabulary - 1) / e^c). Where
        // branches and logits have factors (Granite), what the adapter adds grows more slowly.
        let others = model.config.vocab_size as f64 - 1.0;
        let capped = |cap: f32| 2.0 * (1.0 + others * f64::from(-cap).exp()).ln();
        let form = model.config.logit_form;
        let factor = f64::from(form.scale * model.config.residual_multiplier).min(1.0);
        let limit = form.cap.map_or(0.01 / factor, capped);
        let mut trainer = Trainer::new(model, settings, examples, None).unwrap();
        let mut losses = Vec::new();
        while let Some(report) = trainer.step(&mut || Ok(())).unwrap() {
            losses.push(report.loss);
        }
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        if !(first > 3.0 && last < limit) {
            failed.push(format!("{family}: from {first} to {last}"));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn an_adapter_merged_into_the_weights_gives_the_same_logits() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family, &CPU);
        let adapter = adapter(family, &config);
        let merged = whole_model_of(family, |weights, _| {
            for (index, layer) in adapter.layers.iter().enumerate() {
                for site in config.sites_of(index) {
                    let pair = layer.get(site).unwrap();
                    let added = (pair.b.matmul(&pair.a).unwrap() * f64::from(pair.scale)).unwrap();
                    add_to_weight(weights, &config, (index, site), &added);
                }
            }
        });
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let logits = |decoder: &attune::model::decoder::Decoder, adapter: Option<&Adapter>| {
            let hidden = hidden_states(decoder, adapter, &one_sequence(&tokens)).unwrap();
            floats(&decoder.logits(&hidden).unwrap())
        };
        let (apart, base) = (logits(&decoder, Some(&adapter)), logits(&decoder, None));
        let difference = max_difference(&logits(&merged.decoder, None), &apart);
        assert!(difference < 1e-4, "{family}: logits differ by {difference:e}");
        assert!(max_difference(&apart, &base) > 0.1, "{family}: the adapter changes nothing");
        assert_eq!(logits(&decoder, None), base, "without it the base is what it was");
    }
}

#[test]
fn the_shared_base_is_the_same_model_before_while_and_after_it_is_trained_on() {
    let model = whole_model("qwen3");
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 150).collect();
    let logits = || {
        let hidden = hidden_states(&model.decoder, None, &one_sequence(&tokens)).unwrap();
        floats(&model.decoder.logits(&hidden).unwrap()).into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let before = logits();
    let asked = Hyperparameters { n_epochs: Some(3), batch_size: Some(4), ..Hyperparameters::default() };
    let settings = TrainSettings::new(&asked, 1);
    let mut trainer = Trainer::new(Arc::clone(&model), settings, ExampleStore::of(examples()).unwrap(), None).unwrap();
    while trainer.step(&mut || Ok(())).unwrap().is_some() {
        assert_eq!(logits(), before, "step {}", trainer.step_number());
    }
}
