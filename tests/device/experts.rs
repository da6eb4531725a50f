//! Mixtures of experts as a GPU computes them, in each type of activations, beside the CPU's in f32. Gradients and whole
//! models in f32 are compared in `model/decoder.rs`, gradients and steps of adapters of experts with those of PEFT here.

use attune::adapters::peft;
use attune::datasets::{ExampleStore, TokenizedExample};
use attune::model::ModelConfig;
use attune::model::decoder::{BaseAlone, SequenceRows};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::{Dtype, Storage};
use attune::model::lora::Adapter;
use attune::model::rope::RopeTable;
use attune::train::backward::{Gradients, loss_and_gradients};
use attune::train::hyperparameters::Hyperparameters;
use attune::train::optimizer::AdamSettings;
use attune::train::parameters::Parameters;
use attune::train::{TrainSettings, Trainer};
use candle_core::{DType, Device, Tensor};

use crate::fixtures::{
    EXPERT_FAMILIES, Reference, device, floats, folder, load, load_on, max_difference, relative_difference,
    whole_model_on,
};
use crate::kernels;

const ROWS: usize = 40;

/// Returns the adapter of the fixture, or the one whose tensors have this prefix in its training run.
fn adapter(family: &str, config: &ModelConfig, prefix: Option<&str>) -> Adapter {
    let folder = folder(family).join("peft_experts");
    let settings = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let Some(prefix) = prefix else {
        let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        return peft::read(&settings, &weights, config, &device()).unwrap();
    };
    let curve = Reference::read(family, "peft_experts/curve.safetensors");
    let own = |(name, values): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), values.clone()));
    let tensors: std::collections::HashMap<String, Tensor> = curve.0.iter().filter_map(own).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&tensors, file.path()).unwrap();
    peft::read(&settings, &std::fs::read(file.path()).unwrap(), config, &device()).unwrap()
}

/// Compares gradients with those of PEFT; returns the largest relative difference of a tensor.
fn off(family: &str, adapter: &Adapter, gradients: &Gradients) -> f64 {
    let reference = Reference::read(family, "peft_experts/reference.safetensors");
    let mut parameters = Parameters::of(adapter).unwrap();
    parameters.values = parameters.gradients(gradients).unwrap();
    let files = peft::write(&parameters.adapter(&Device::Cpu).unwrap(), "base").unwrap();
    let found = candle_core::safetensors::load_buffer(&files.weights, &Device::Cpu).unwrap();
    let differences = found
        .iter()
        .map(|(name, gradient)| relative_difference(&floats(gradient), &reference.floats(&format!("grad.{name}"))));
    differences.fold(0.0, f64::max)
}

#[test]
fn gradients_of_experts_are_those_of_peft() {
    for family in EXPERT_FAMILIES {
        let batch = Reference::read(family, "peft_experts/reference.safetensors").batch();
        let run = |held: Dtype| {
            let (config, decoder) = load_on(family, &kernels(), &Storage { dtype: Some(held), quantize: None });
            let adapter = adapter(family, &config, None);
            let held = adapter.on(&device(), decoder.activation_dtype()).unwrap();
            let (_, gradients) = loss_and_gradients(&decoder, &held, &batch, batch.targets.len() as f64).unwrap();
            off(family, &adapter, &gradients)
        };
        // Rounded activations choose other experts for some rows.
        for (held, bound) in [(Dtype::F32, 1e-4), (Dtype::Bf16, 0.25), (Dtype::F16, 0.1)] {
            let difference = run(held);
            assert!(difference < bound, "{family}, {held:?}: {difference:e}");
        }
    }
}

#[test]
fn steps_of_experts_are_those_of_peft_and_can_be_taken_in_two_parts() {
    const STEPS: usize = 6;
    for family in ["qwen3_moe", "gpt_oss"] {
        let reference = Reference::read(family, "peft_experts/reference.safetensors");
        let new = || {
            let model = whole_model_on(family, &kernels());
            let initial = adapter(family, &model.config, Some("init."));
            let settings = TrainSettings {
                epochs: 20,
                batch_size: 4,
                learning_rate: 5e-3,
                warmup: Some(0.2),
                adam: AdamSettings { weight_decay: 0.01, ..AdamSettings::default() },
                ..TrainSettings::new(&Hyperparameters::default(), 7)
            };
            let (batch, mask) = (reference.batch(), reference.ids("batch_targets_mask"));
            let example = |rows: &std::ops::Range<usize>| {
                let mut weights: Vec<f32> = mask[rows.clone()].iter().map(|target| *target as f32).collect();
                weights[0] = 0.0;
                TokenizedExample { tokens: batch.tokens[rows.clone()].to_vec(), weights }
            };
            let examples = ExampleStore::of(batch.sequences.iter().map(example)).unwrap();
            Trainer::new(model, settings, examples, Some(&initial)).unwrap()
        };
        let curve = Reference::read(family, "peft_experts/curve.safetensors");
        let close = |found: f64, expected: f32| (found - f64::from(expected)).abs() < 1e-4 * f64::from(expected);
        let (mut whole, mut middle) = (new(), None);
        for (loss, norm) in curve.floats("losses").into_iter().zip(curve.floats("grad_norms")).take(STEPS) {
            let report = whole.step(&mut || Ok(())).unwrap().unwrap();
            assert!(
                close(report.loss, loss) && close(report.gradient_norm, norm),
                "{family}: {report:?}, {loss}, {norm}"
            );
            if report.step == STEPS / 2 {
                middle = Some(whole.save().unwrap());
            }
        }
        let mut rest = new();
        rest.restore(&middle.unwrap()).unwrap();
        for _ in STEPS / 2..STEPS {
            rest.step(&mut || Ok(())).unwrap();
        }
        assert_eq!(rest.save().unwrap(), whole.save().unwrap(), "{family}");
    }
}

#[test]
fn experts_compute_what_the_cpu_does() {
    for family in EXPERT_FAMILIES {
        let (config, exact) = load(family, &Device::Cpu);
        let values = (0..ROWS * config.hidden_size).map(|i| ((i * 7919 + 13) as f32 * 0.618).sin() * 1.4);
        let x = Tensor::from_vec(values.collect::<Vec<_>>(), (ROWS, config.hidden_size), &Device::Cpu).unwrap();
        // Activations are rounded between the layers of an expert.
        for (held, bound) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 3e-2), (Dtype::F16, 5e-3)] {
            let (_, decoder) = load_on(family, &kernels(), &Storage { dtype: Some(held), quantize: None });
            let own_x = x.to_device(&device()).unwrap().to_dtype(decoder.activation_dtype()).unwrap();
            for (exact, experts) in exact.blocks.iter().zip(&decoder.blocks) {
                let (exact, experts) = (exact.experts().unwrap(), experts.experts().unwrap());
                let (wanted, chosen) = (exact.route(&x).unwrap(), experts.route(&own_x).unwrap());
                let (wanted_y, y) =
                    (exact.forward(&x, &BaseAlone).unwrap(), experts.forward(&own_x, &BaseAlone).unwrap());
                let wide = |row: usize, y: &Tensor| -> Vec<f32> {
                    let row = y.narrow(0, row, 1).unwrap().to_dtype(DType::F32).unwrap();
                    row.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
                };
                let same = |row: &usize| wanted.indices[wanted.choices(*row)] == chosen.indices[chosen.choices(*row)];
                let rows: Vec<usize> = (0..ROWS).filter(same).collect();
                assert!(rows.len() > ROWS / 2, "{family}, {held:?}: {} rows choose alike", rows.len());
                let all = |y: &Tensor| rows.iter().flat_map(|row| wide(*row, y)).collect::<Vec<f32>>();
                let difference = relative_difference(&all(&y), &all(&wanted_y));
                assert!(difference < bound, "{family}, {held:?}: {difference:e}");
            }
        }
    }
}

#[test]
fn adapters_of_experts_change_their_own_rows() {
    for family in EXPERT_FAMILIES {
        let (config, decoder) = load_on(family, &kernels(), &Storage::default());
        let adapter = decoder.served(&adapter(family, &config, None)).unwrap();
        let reference = Reference::read(family, "peft_experts/reference.safetensors");
        let (tokens, base) = (reference.ids("input_ids"), Reference::read(family, "reference.safetensors"));
        let (count, blocks) = (tokens.len(), tokens.len().div_ceil(BLOCK_TOKENS));
        let cache = KvCache::new(&config, 3 * blocks, DType::F32, &device()).unwrap();
        let all: Vec<u32> = (0..3 * blocks as u32).collect();
        let sequence = |index: usize| SequenceRows {
            rows: index * count..(index + 1) * count,
            start: 0,
            blocks: &all[index * blocks..(index + 1) * blocks],
            adapter: (index != 1).then_some(&adapter),
            rope: RopeTable::Short,
        };
        let hidden = decoder.step(&tokens.repeat(3), &[0, 1, 2].map(sequence), &cache).unwrap();
        let logits = decoder.logits(&hidden).unwrap();
        for (index, expected) in [&reference, &base, &reference].into_iter().enumerate() {
            let found = floats(&logits.narrow(0, index * count, count).unwrap());
            let difference = max_difference(&found, &expected.floats("logits"));
            assert!(difference <= 1e-3, "{family}: logits of sequence {index} differ by {difference:e}");
        }
    }
}
