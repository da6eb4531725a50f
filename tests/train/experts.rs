//! Fine-tunes that change experts: loss, gradients and twenty steps are those of PEFT, experts without a token get
//! nothing, runs resume to the bit, and the result is served from PEFT's own form. The references are those of
//! `tests/parity/make_expert_adapters.py`.

#![cfg(not(feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use attune::adapters::peft;
use attune::datasets::{ExampleStore, TokenizedExample};
use attune::model::ModelConfig;
use attune::model::lora::{Adapter, Site};
use attune::train::backward::{self, Gradients, PackedBatch, PassOptions, Target, hidden_states, loss_and_gradients};
use attune::train::hyperparameters::Hyperparameters;
use attune::train::optimizer::AdamSettings;
use attune::train::parameters::Parameters;
use attune::train::{Recomputation, StepReport, TrainSettings, Trainer};
use candle_core::{Device, Tensor};

use crate::fixtures::{
    EXPERT_FAMILIES, Reference, floats, folder, load, max_difference, one_sequence, relative_difference, whole_model,
};

const CPU: Device = Device::Cpu;
/// Difference to float32 of `PyTorch`, which is off by 1e-5 itself.
const TOLERANCE: f64 = 1e-4;

/// Adapters with gradients and training runs: of both parameters, with patterns of rank and alpha, with rsLoRA, of one.
const ADAPTERS: [(&str, &str); 6] = [
    ("qwen3_moe", "peft_experts"),
    ("mixtral", "peft_experts"),
    ("olmoe", "peft_experts"),
    ("olmoe", "peft_down"),
    ("gpt_oss", "peft_experts"),
    ("gpt_oss", "peft_gate_up"),
];

fn config_file(family: &str, name: &str) -> Vec<u8> {
    std::fs::read(folder(family).join(name).join("adapter_config.json")).unwrap()
}

fn adapter(family: &str, name: &str) -> Adapter {
    let weights = std::fs::read(folder(family).join(name).join("adapter_model.safetensors")).unwrap();
    let model = ModelConfig::read(&folder(family)).unwrap();
    peft::read(&config_file(family, name), &weights, &model, &CPU).unwrap()
}

/// Returns the adapter whose tensors have this prefix in the reference.
fn with_prefix(family: &str, name: &str, reference: &Reference, prefix: &str) -> Adapter {
    let own = |(tensor, values): (&String, &Tensor)| Some((tensor.strip_prefix(prefix)?.to_owned(), values.clone()));
    let tensors: HashMap<String, Tensor> = reference.0.iter().filter_map(own).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&tensors, file.path()).unwrap();
    let (weights, model) = (std::fs::read(file.path()).unwrap(), ModelConfig::read(&folder(family)).unwrap());
    peft::read(&config_file(family, name), &weights, &model, &CPU).unwrap()
}

/// Returns the tensors that PEFT's files have of `adapter`.
fn tensors(adapter: &Adapter) -> HashMap<String, Tensor> {
    let files = peft::write(adapter, "base").unwrap();
    candle_core::safetensors::load_buffer(&files.weights, &CPU).unwrap()
}

/// Returns gradients by the names of the tensors that they belong to.
fn named(adapter: &Adapter, gradients: &Gradients) -> HashMap<String, Tensor> {
    let mut parameters = Parameters::of(adapter).unwrap();
    parameters.values = parameters.gradients(gradients).unwrap();
    tensors(&parameters.adapter(&CPU).unwrap())
}

#[test]
fn loss_and_gradients_are_those_of_peft() {
    for (family, name) in ADAPTERS {
        let (_, decoder) = load(family, &CPU);
        let reference = Reference::read(family, &format!("{name}/reference.safetensors"));
        let (adapter, batch) = (adapter(family, name), reference.batch());
        let normalizer = batch.targets.len() as f64;
        let (report, gradients) = loss_and_gradients(&decoder, &adapter, &batch, normalizer).unwrap();
        let expected = f64::from(reference.scalar("loss"));
        assert!((report.loss_sum / normalizer - expected).abs() < TOLERANCE * expected, "{family}/{name}: {report:?}");
        let found = named(&adapter, &gradients);
        let expected = reference.0.iter().filter_map(|(tensor, values)| Some((tensor.strip_prefix("grad.")?, values)));
        let mut compared = 0;
        for (tensor, expected) in expected {
            let expected = floats(expected);
            let difference = relative_difference(&floats(&found[tensor]), &expected);
            assert!(difference < TOLERANCE, "{family}/{name}: {tensor} is off by {difference:e}");
            assert!(expected.iter().any(|value| value.abs() > 1e-4), "{tensor} has a gradient");
            compared += 1;
        }
        assert_eq!(compared, found.len(), "{family}/{name}");
    }
}

fn examples(reference: &Reference) -> ExampleStore {
    let (tokens, mask) = (reference.ids("batch_tokens"), reference.ids("batch_targets_mask"));
    let sequences = reference.batch().sequences.into_iter().map(|rows| {
        let first = rows.start;
        let weight = |row: usize| if row == first { 0.0 } else { mask[row] as f32 };
        TokenizedExample { tokens: tokens[rows.clone()].to_vec(), weights: rows.map(weight).collect() }
    });
    ExampleStore::of(sequences.collect::<Vec<_>>()).unwrap()
}

fn run(trainer: &mut Trainer) -> Vec<StepReport> {
    std::iter::from_fn(|| trainer.step(&mut || Ok(())).unwrap()).collect()
}

#[test]
fn twenty_steps_follow_the_run_of_peft() {
    for (family, name) in ADAPTERS {
        let reference = Reference::read(family, &format!("{name}/reference.safetensors"));
        let curve = Reference::read(family, &format!("{name}/curve.safetensors"));
        let initial = with_prefix(family, name, &curve, "init.");
        let settings = TrainSettings {
            epochs: 20,
            batch_size: 4,
            learning_rate: 5e-3,
            warmup: Some(0.2),
            adam: AdamSettings { weight_decay: 0.01, ..AdamSettings::default() },
            ..TrainSettings::new(&Hyperparameters::default(), 7)
        };
        let mut trainer = Trainer::new(whole_model(family), settings, examples(&reference), Some(&initial)).unwrap();
        let reports = run(&mut trainer);
        assert_eq!(reports.len(), 20);
        let close = |found: f64, expected: f32| (found - f64::from(expected)).abs() < TOLERANCE * f64::from(expected);
        for ((report, loss), norm) in reports.iter().zip(curve.floats("losses")).zip(curve.floats("grad_norms")) {
            assert!(close(report.loss, loss), "{family}/{name} {report:?}: loss {loss}");
            assert!(close(report.gradient_norm, norm), "{family}/{name} {report:?}: norm {norm}");
        }
        let (found, expected) = (tensors(&trainer.adapter().unwrap()), with_prefix(family, name, &curve, "final."));
        for (tensor, expected) in tensors(&expected) {
            let difference = relative_difference(&floats(&found[&tensor]), &floats(&expected));
            assert!(difference < TOLERANCE, "{family}/{name}: {tensor} is off by {difference:e} after 20 steps");
        }
    }
}

/// Returns two short sequences with a target in each row, so that every expert with a row has a gradient.
fn short_batch() -> PackedBatch {
    let target = |row: usize| Target { row, token: (row * 17 % 97) as u32, weight: 1.0 };
    PackedBatch {
        tokens: vec![5, 77, 5, 77],
        sequences: vec![0..2, 2..4],
        targets: (0..4).map(target).collect(),
        ..PackedBatch::default()
    }
}

#[test]
fn an_expert_without_a_token_has_a_gradient_of_exactly_zero() {
    for family in ["qwen3_moe", "olmoe", "gpt_oss"] {
        let (config, decoder) = load(family, &CPU);
        let adapter = adapter(family, "peft_experts");
        let (_, gradients) = loss_and_gradients(&decoder, &adapter, &short_batch(), 4.0).unwrap();
        let experts = config.experts.unwrap();
        let values = named(&adapter, &gradients);
        for block in 0..config.num_hidden_layers {
            let a = &values[&format!("base_model.model.model.layers.{block}.mlp.experts.lora_A.weight")];
            let rank = a.dim(0).unwrap() / experts.count;
            let with_rows = (0..experts.count).filter(|expert| {
                let own = floats(&a.narrow(0, expert * rank, rank).unwrap());
                let has_rows = gradients[block].expert(*expert, Site::Down).is_some();
                assert_eq!(own.iter().any(|value| *value != 0.0), has_rows, "{family}, expert {expert}: {own:?}");
                has_rows
            });
            let with_rows = with_rows.count();
            assert!((experts.chosen..experts.count).contains(&with_rows), "{family}: {with_rows} experts have rows");
        }
    }
}

#[test]
fn what_is_computed_again_changes_no_bit() {
    for family in EXPERT_FAMILIES {
        let (_, decoder) = load(family, &CPU);
        let batch = Reference::read(family, "peft_experts/reference.safetensors").batch();
        let adapter = adapter(family, "peft_experts");
        let run = |way| {
            let manner = PassOptions::recomputing(way);
            let objective = backward::Objective::Targets;
            let (report, gradients) =
                backward::objective_and_gradients(&decoder, &adapter, &batch, objective, 3.0, manner).unwrap();
            let values = Parameters::of(&adapter).unwrap().gradients(&gradients).unwrap();
            (report.loss_sum.to_bits(), values.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>())
        };
        let plain = run(Recomputation::None);
        for way in [Recomputation::Selective, Recomputation::Full] {
            assert!(run(way) == plain, "{family}, {way:?}: other bits");
        }
    }
}

fn new_run(family: &str, names: &[&str]) -> Trainer {
    let asked = Hyperparameters {
        target_modules: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        n_epochs: Some(4),
        // Several micro-batches and several steps.
        batch_size: Some(2),
        learning_rate: Some(5e-3),
        rank: Some(3),
        use_rslora: Some(true),
        ..Hyperparameters::default()
    };
    let settings = TrainSettings { batch_rows: 24, ..TrainSettings::new(&asked, 7) };
    let examples = examples(&Reference::read(family, "peft_experts/reference.safetensors"));
    Trainer::new(whole_model(family), settings, examples, None).unwrap()
}

#[test]
fn a_new_adapter_begins_as_peft_begins_one_and_its_result_is_served_from_its_files() {
    for family in EXPERT_FAMILIES {
        let mut trainer = new_run(family, &["o_proj", "gate_up_proj", "down_proj"]);
        let config = ModelConfig::read(&folder(family)).unwrap();
        let (experts, width) = (config.experts.unwrap().count, config.experts.unwrap().intermediate_size);
        let (hidden, per_expert) =
            (config.hidden_size, 3 * (config.hidden_size + 2 * width) + 3 * (width + config.hidden_size));
        let of_attention = 3 * (config.num_attention_heads * config.head_dim + hidden);
        assert_eq!(trainer.parameter_count(), config.num_hidden_layers * (of_attention + experts * per_expert));
        for (name, values) in tensors(&trainer.adapter().unwrap()) {
            let (values, input) = (floats(&values), values.dim(1).unwrap());
            if name.contains("lora_B") {
                assert!(values.iter().all(|value| *value == 0.0), "{name}");
                continue;
            }
            let bound = 1.0 / (input as f32).sqrt();
            let largest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{family}, {name}: up to {largest} of {bound}");
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            assert!(mean.abs() < 0.2 * bound, "{family}, {name}: {mean} on average");
        }
        let reports = run(&mut trainer);
        assert!(reports.last().unwrap().loss < reports[0].loss - 0.1, "{family}: {reports:?}");
        let trained = trainer.adapter().unwrap();
        let files = peft::write(&trained, family).unwrap();
        let read = peft::read(&files.config, &files.weights, &config, &CPU).unwrap();
        assert!(read.changes_experts());
        let (_, decoder) = load(family, &CPU);
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let logits = |adapter: Option<&Adapter>| {
            let hidden = hidden_states(&decoder, adapter, &one_sequence(&tokens)).unwrap();
            floats(&decoder.logits(&hidden).unwrap())
        };
        let [ours, read] = [&trained, &read].map(|adapter| logits(Some(adapter)));
        assert_eq!(ours, read, "{family}: every bit survives the files");
        assert!(max_difference(&ours, &logits(None)) > 0.1, "{family}: the adapter changes nothing");
    }
}

#[test]
fn a_resumed_run_is_bit_identical_and_a_continued_one_begins_where_the_last_one_ended() {
    for (family, names) in [("qwen3_moe", ["gate_up_proj", "down_proj"]), ("gpt_oss", ["q_proj", "down_proj"])] {
        let mut whole = new_run(family, &names);
        let reports = run(&mut whole);
        assert_eq!(reports.len(), 8);
        for stop in [1, 5] {
            let mut before = new_run(family, &names);
            for _ in 0..stop {
                before.step(&mut || Ok(())).unwrap();
            }
            let mut after = new_run(family, &names);
            after.restore(&before.save().unwrap()).unwrap();
            assert_eq!(run(&mut after), reports[stop..], "{family}");
            assert_eq!(after.save().unwrap(), whole.save().unwrap(), "{family}");
        }
        let other = new_run(family, &["down_proj"]);
        assert!(new_run(family, &names).restore(&other.save().unwrap()).is_err(), "other layers are another run");
        // Through the files, as a job continues a model.
        let (config, trained) = (ModelConfig::read(&folder(family)).unwrap(), whole.adapter().unwrap());
        let files = peft::write(&trained, family).unwrap();
        let read = peft::read(&files.config, &files.weights, &config, &CPU).unwrap();
        let examples = examples(&Reference::read(family, "peft_experts/reference.safetensors"));
        let settings = whole.settings().clone();
        let mut next = Trainer::new(whole_model(family), settings, examples, Some(&read)).unwrap();
        for (name, values) in tensors(&trained) {
            assert_eq!(floats(&tensors(&next.adapter().unwrap())[&name]), floats(&values), "{family}: {name}");
        }
        assert!(run(&mut next).last().unwrap().loss < reports.last().unwrap().loss, "{family}: it learns on");
    }
}

#[test]
fn an_adapter_of_single_experts_is_trained_further() {
    for family in ["qwen3_moe", "mixtral"] {
        let single = adapter(family, "peft_single");
        let examples = examples(&Reference::read(family, "peft_experts/reference.safetensors"));
        let settings = TrainSettings { epochs: 3, batch_size: 4, ..TrainSettings::new(&Hyperparameters::default(), 7) };
        let mut trainer = Trainer::new(whole_model(family), settings, examples, Some(&single)).unwrap();
        let batch = Reference::read(family, "peft_experts/reference.safetensors").batch();
        let (_, decoder) = load(family, &CPU);
        let of = |adapter: &Adapter| backward::loss(&decoder, Some(adapter), &batch).unwrap().loss_sum;
        let (before, beginning) = (of(&single), of(&trainer.adapter().unwrap()));
        assert!((before - beginning).abs() < 1e-5 * before, "{family}: {before} becomes {beginning}");
        run(&mut trainer);
        assert!(of(&trainer.adapter().unwrap()) < beginning, "{family}: it learns");
    }
}
