//! Tests of the training loop with the models of the test fixtures: dropout, preferences, and twenty steps compared
//! with those of `PyTorch` and PEFT.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::Device;

use super::tests::{run, settings, stored, whole};
use super::*;
use crate::datasets::TokenizedExample;
use crate::train::calibration::{Calibration, calibrate};
use crate::train::evaluation::HeldOut;
use crate::train::loss_source::Heads;
use crate::train::rate::tests::Fixed;
use crate::train::recomputation::Recomputation;
use crate::train::training_method::TrainingMethod;
use attune_model::classifier::{Classifier, HeadLayer, ScoreForm};
use attune_model::decoder::Decoder;
use attune_model::lora::{LoraLayer, LoraPair, Site};
use attune_model::vectors::{DenseActivation, DenseLayer, Pooling, VectorForm};

fn fixture(family: &str) -> (attune_model::ModelConfig, attune_model::decoder::Decoder) {
    use attune_model::{ModelConfig, decoder::Decoder, linear::Storage, weights::Weights};
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(family);
    let config = ModelConfig::read(&folder).unwrap();
    let weights = Weights::open(&folder, &Device::Cpu).unwrap();
    let decoder = Decoder::load(&config, &weights, &Storage::default()).unwrap();
    (config, decoder)
}

#[test]
fn dropout_changes_training_and_a_resumed_run_is_still_bit_identical() {
    let with = |dropout| {
        let (config, decoder) = fixture("llama");
        let settings = TrainSettings { dropout, sites: vec![Site::Query, Site::Down], ..settings() };
        let parameters = Parameters::fresh(&config, &settings);
        assert_eq!(parameters.places.len(), 2 * config.num_hidden_layers);
        Trainer::with_source(Box::new(decoder), settings, stored(10), parameters, None).unwrap()
    };
    let mut whole = with(0.5);
    let reports = run(&mut whole);
    let mut without = with(0.0);
    let others = run(&mut without);
    assert_eq!(reports[0].loss.to_bits(), others[0].loss.to_bits(), "a new adapter changes nothing");
    assert_ne!(reports[5].loss.to_bits(), others[5].loss.to_bits());
    let mut before = with(0.5);
    for _ in 0..4 {
        before.step(&mut || Ok(())).unwrap();
    }
    let mut after = with(0.5);
    after.restore(&before.save().unwrap()).unwrap();
    assert_eq!(run(&mut after), reports[4..]);
    assert_eq!(after.state.values().unwrap(), whole.state.values().unwrap());
    assert_eq!(after.state.optimizer().unwrap(), whole.state.optimizer().unwrap());
    assert!(without.restore(&before.save().unwrap()).is_err(), "another dropout is another run");
}

#[test]
fn what_is_computed_again_changes_no_bit_and_a_run_may_go_on_with_another_way() {
    let with = |way| {
        let (config, decoder) = fixture("qwen3");
        let settings = TrainSettings { dropout: 0.2, ..settings() };
        let parameters = Parameters::fresh(&config, &settings);
        let mut trainer = Trainer::with_source(Box::new(decoder), settings, stored(10), parameters, None).unwrap();
        trainer.recompute(way);
        trainer
    };
    let mut plain = with(Recomputation::None);
    let reports = run(&mut plain);
    for way in [Recomputation::Selective, Recomputation::Full] {
        let mut before = with(way);
        for _ in 0..3 {
            before.step(&mut || Ok(())).unwrap();
        }
        let mut after = with(Recomputation::None);
        after.restore(&before.save().unwrap()).unwrap();
        after.recompute(way);
        assert_eq!(run(&mut after), reports[3..]);
        assert_eq!(after.save().unwrap(), plain.save().unwrap(), "{way:?}");
    }
}

#[test]
fn a_calibration_on_a_busy_machine_tells_the_time_of_an_idle_one() {
    for method in [TrainingMethod::Answers, TrainingMethod::TextPairs { scale: 20.0 }] {
        let measured = |used, waited| {
            let (config, decoder) = fixture("llama");
            let adapter = {
                let parameters = Parameters::fresh(&config, &settings());
                let source = Box::new(fixture("llama").1);
                Trainer::with_source(source, settings(), stored(10), parameters, None).unwrap().adapter().unwrap()
            };
            let wanted = Calibration {
                decoder: &decoder,
                heads: Heads { vectors: &VectorForm::of_model(&config), classifier: None },
                adapter: &adapter,
                training: method,
                step_tokens: 40.0,
                recomputation: Recomputation::None,
                clocks: &Fixed::new(used, waited, 1.0),
            };
            let samples: Vec<_> = (0..4).map(|index| stored(10).get(index).unwrap()).collect();
            calibrate(&wanted, &samples, &mut || Ok(())).unwrap()
        };
        let (idle, busy) = (measured(2.0, 0.0), measured(0.5, 1.5));
        assert_eq!((busy.tokens, busy.seconds), (idle.tokens, idle.seconds), "the wall's clock tells no difference");
        assert!((idle.slowdown() - 1.0).abs() < 1e-9 && (busy.slowdown() - 4.0).abs() < 1e-9, "{idle:?} {busy:?}");
        assert!((busy.tokens_per_second() - 4.0 * idle.tokens_per_second()).abs() < 1e-9, "{idle:?} {busy:?}");
    }
}

/// Returns pairs of answers to prompts: the chosen one rises, the rejected one falls.
fn preferences(count: u32) -> ExampleStore {
    let answer = |prompt: u32, last: [u32; 3]| TokenizedExample {
        tokens: [&[prompt % 90, 7 + prompt % 5], last.as_slice()].concat(),
        weights: vec![0.0, 0.0, 1.0, 1.0, 1.0],
    };
    ExampleStore::of((0..count).flat_map(|i| [answer(i, [20, 21, 22]), answer(i, [33, 32, 31])])).unwrap()
}

fn preference_trainer(beginning: Option<Adapter>) -> Trainer {
    let (config, decoder) = fixture("qwen3");
    let settings =
        TrainSettings { method: TrainingMethod::Preferences { beta: 0.5 }, epochs: 4, warmup: Some(0.0), ..settings() };
    let parameters = match &beginning {
        Some(adapter) => Parameters::of(adapter).unwrap(),
        None => Parameters::fresh(&config, &settings),
    };
    Trainer::with_source(Box::new(decoder), settings, preferences(10), parameters, beginning).unwrap()
}

#[test]
fn training_on_preferences_begins_at_ln_2_and_learns_to_prefer() {
    let mut trainer = preference_trainer(None);
    assert_eq!((trainer.steps_per_epoch(), trainer.total_steps()), (3, 12), "pairs are counted, not answers");
    let mut held_out = HeldOut::new(preferences(6), 2);
    let before = whole(&trainer, &mut held_out);
    assert!((before.loss - std::f64::consts::LN_2).abs() < 1e-15);
    let reports = run(&mut trainer);
    assert!((reports[0].loss - std::f64::consts::LN_2).abs() < 1e-15, "{:?}", reports[0]);
    let rewards = reports.iter().map(|report| report.rewards.unwrap()).collect::<Vec<_>>();
    assert_eq!((rewards[0].margin, rewards[0].accuracy), (0.0, 0.0));
    assert!(rewards[11].margin > 0.1 && rewards[11].accuracy > 0.99, "{:?}", reports[11]);
    assert!(reports[11].loss < reports[0].loss);
    assert_eq!(trainer.history().last().unwrap().elapsed_examples, 40);
    let after = whole(&trainer, &mut held_out);
    assert!(after.loss < before.loss && after.rewards.unwrap().accuracy > 0.99);
    // The reference's log probabilities were computed once; computing them again gives the same.
    let again = whole(&trainer, &mut HeldOut::new(preferences(6), 2));
    assert_eq!(again, after);
}

#[test]
fn resumed_training_on_preferences_is_bit_identical() {
    let mut whole = preference_trainer(None);
    let reports = run(&mut whole);
    for stop in [1, 3, 7] {
        let mut before = preference_trainer(None);
        for _ in 0..stop {
            before.step(&mut || Ok(())).unwrap();
        }
        let mut after = preference_trainer(None);
        after.restore(&before.save().unwrap()).unwrap();
        assert_eq!(run(&mut after), reports[stop..]);
        assert_eq!(after.state.values().unwrap(), whole.state.values().unwrap());
    }
}

#[test]
fn the_reference_of_a_continued_model_is_that_model() {
    let mut first = preference_trainer(None);
    run(&mut first);
    let mut next = preference_trainer(Some(first.adapter().unwrap()));
    let reports = run(&mut next);
    assert!((reports[0].loss - std::f64::consts::LN_2).abs() < 1e-15, "{:?}", reports[0]);
    assert!(reports[11].loss < reports[0].loss);
}

/// Returns pairs of texts, some with a negative; the positives are five texts, so that no batch holds more than five
/// pairs.
fn text_pairs(count: u32) -> ExampleStore {
    let pair = |i: u32| {
        let mut texts = vec![vec![5 + i % 40, 50 + i % 7, 60], vec![90 + i % 5, 70 + i % 5, 3]];
        if i.is_multiple_of(4) {
            texts.push(vec![100 + i % 11]);
        }
        texts
    };
    ExampleStore::of_texts((0..count).map(pair)).unwrap()
}

fn text_trainer(dropout: f64) -> Trainer {
    trainer_on_texts(TrainingMethod::TextPairs { scale: 20.0 }, dropout, text_pairs(50))
}

fn trainer_on_texts(method: TrainingMethod, dropout: f64, examples: ExampleStore) -> Trainer {
    let (config, decoder) = fixture("qwen2");
    let settings = TrainSettings { method, batch_size: 8, epochs: 6, dropout, ..settings() };
    let parameters = Parameters::fresh(&config, &settings);
    let weights: Vec<f32> = (0..config.hidden_size).map(|i| (i as f32 * 1.7).sin()).collect();
    let weight = candle_core::Tensor::from_vec(weights, (1, config.hidden_size), &Device::Cpu).unwrap();
    let classifier = Classifier {
        labels: vec!["LABEL_0".into()],
        pooling: Pooling::Last,
        layers: vec![HeadLayer::Dense(DenseLayer::new(&weight, None, DenseActivation::Identity).unwrap())],
        score: ScoreForm::Sigmoid,
        hidden_size: config.hidden_size,
    };
    let source = TextModel { decoder, vectors: VectorForm::of_model(&config), classifier: Some(classifier) };
    Trainer::with_source(Box::new(source), settings, examples, parameters, None).unwrap()
}

/// Returns pairs of texts with a number that the second text's first token tells: 1 if it is one of seven, else
/// `otherwise`.
fn scored_pairs(count: u32, otherwise: f32) -> ExampleStore {
    let pair = |i: u32| {
        let alike = i.is_multiple_of(2);
        let second = if alike { 40 + i % 7 } else { 60 + i % 7 };
        (vec![vec![5 + i % 7, 80 + i % 3], vec![second, 90 + i % 5, 70]], if alike { 1.0 } else { otherwise })
    };
    ExampleStore::of_scored((0..count).map(pair)).unwrap()
}

/// Decoder that makes vectors and scores.
struct TextModel {
    decoder: Decoder,
    vectors: VectorForm,
    classifier: Option<Classifier>,
}

impl LossSource for TextModel {
    fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn heads(&self) -> crate::Result<Heads<'_>> {
        Ok(Heads { vectors: &self.vectors, classifier: self.classifier.as_ref() })
    }
}

#[test]
fn training_on_pairs_of_texts_learns_which_belong_together() {
    let mut trainer = text_trainer(0.0);
    let mut held_out = HeldOut::new(text_pairs(19), 1);
    let before = whole(&trainer, &mut held_out);
    let reports = run(&mut trainer);
    assert_eq!(reports.len(), trainer.total_steps());
    assert!(reports.len() >= 6 * 10, "repeated texts need more batches: {}", reports.len());
    assert_eq!(reports.iter().filter_map(|report| report.completed_epoch).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(trainer.history().last().unwrap().elapsed_examples, 6 * 50);
    let after = whole(&trainer, &mut held_out);
    assert!(after.loss < 0.7 * before.loss, "{before:?} {after:?}");
    assert!(
        after.token_accuracy > before.token_accuracy
            && reports.iter().all(|report| report.method == trainer.settings().method)
    );
    let unchanged = whole(&trainer, &mut held_out);
    assert_eq!(unchanged, after, "the same pairs are compared in every evaluation");
}

#[test]
fn resumed_training_on_pairs_of_texts_is_bit_identical() {
    let mut whole = text_trainer(0.25);
    let reports = run(&mut whole);
    let first_epoch = whole.steps_per_epoch();
    for stop in [1, first_epoch - 1, first_epoch, first_epoch + 3, reports.len() - 1] {
        let mut before = text_trainer(0.25);
        for _ in 0..stop {
            before.step(&mut || Ok(())).unwrap();
        }
        let mut after = text_trainer(0.25);
        after.restore(&before.save().unwrap()).unwrap();
        assert_eq!(run(&mut after), reports[stop..]);
        assert_eq!(after.state.values().unwrap(), whole.state.values().unwrap());
        assert_eq!(after.state.optimizer().unwrap(), whole.state.optimizer().unwrap());
    }
}

#[test]
fn scores_and_labels_are_learned_and_their_figures_of_order_rise() {
    for (method, otherwise) in [(TrainingMethod::ScoredPairs, -0.5), (TrainingMethod::LabelledPairs, 0.0)] {
        let mut trainer = trainer_on_texts(method, 0.0, scored_pairs(50, otherwise));
        let mut held_out = HeldOut::new(scored_pairs(30, otherwise), 1).ordering();
        let before = whole(&trainer, &mut held_out);
        trainer.order_before(&held_out, &mut || Ok(())).unwrap();
        let reports = run(&mut trainer);
        assert_eq!((reports.len(), trainer.total_steps()), (6 * 7, 6 * 7), "{method:?}");
        let after = whole(&trainer, &mut held_out);
        assert!(after.loss < 0.7 * before.loss, "{method:?}: {before:?} {after:?}");
        assert!(after.token_accuracy > before.token_accuracy, "{method:?}: {before:?} {after:?}");
        trainer.order_now(&held_out, &mut || Ok(())).unwrap();
        let now = &trainer.history().last().unwrap().quality;
        assert_eq!((trainer.quality_before().len(), now.len()), (1, 1));
        let before = trainer.quality_before();
        assert!(now[0] > before[0] && now[0] > 0.7, "{method:?}: {before:?} {now:?}");
        // The figures of both models survive a restart.
        let mut resumed = trainer_on_texts(method, 0.0, scored_pairs(50, otherwise));
        resumed.restore(&trainer.save().unwrap()).unwrap();
        assert_eq!((resumed.quality_before(), resumed.history()), (trainer.quality_before(), trainer.history()));
        resumed.order_before(&HeldOut::new(scored_pairs(4, 0.0), 1).ordering(), &mut || Ok(())).unwrap();
        assert_eq!(resumed.quality_before(), trainer.quality_before(), "measured once");
    }
}

#[test]
fn resumed_training_on_scores_and_labels_is_bit_identical() {
    for method in [TrainingMethod::ScoredPairs, TrainingMethod::LabelledPairs] {
        let new = || trainer_on_texts(method, 0.25, scored_pairs(20, 0.0));
        let mut whole = new();
        let reports = run(&mut whole);
        for stop in [1, 3, 10] {
            let mut before = new();
            for _ in 0..stop {
                before.step(&mut || Ok(())).unwrap();
            }
            let mut after = new();
            after.restore(&before.save().unwrap()).unwrap();
            assert_eq!(run(&mut after), reports[stop..]);
            assert_eq!(after.state.values().unwrap(), whole.state.values().unwrap());
        }
    }
}

#[test]
fn anchors_find_their_own_positives_after_training_on_pairs() {
    let pairs = |count: u32| {
        let pair = |i: u32| vec![vec![5 + i, 50 + i % 7], vec![95 + i, 70 + i % 5, 3]];
        ExampleStore::of_texts((0..count).map(pair)).unwrap()
    };
    let mut trainer = trainer_on_texts(TrainingMethod::TextPairs { scale: 20.0 }, 0.0, pairs(40));
    let held_out = HeldOut::new(pairs(40), 1).ordering();
    trainer.order_before(&held_out, &mut || Ok(())).unwrap();
    run(&mut trainer);
    trainer.order_now(&held_out, &mut || Ok(())).unwrap();
    let (before, now) = (trainer.quality_before().to_vec(), trainer.history().last().unwrap().quality.clone());
    assert!(now[0] > before[0] + 0.3 && now[1] >= now[0] && before[1] >= before[0], "{before:?} {now:?}");
    let adapter = trainer.adapter().unwrap();
    assert_eq!(trainer.order_with(&adapter, &held_out, &mut || Ok(())).unwrap(), now);
}

/// Follows the run that `tests/parity/README.md` describes; the tolerances are ten times its own of 1e-5 (float32
/// against float64).
#[test]
fn twenty_steps_follow_the_run_of_pytorch_and_peft() {
    let device = Device::Cpu;
    for family in [
        "llama",
        "qwen2",
        "qwen3",
        "smollm3",
        "gemma2",
        "gemma3",
        "granite",
        "granite_hybrid",
        "olmo2",
        "phi3_longrope",
        "ministral3",
        "qwen3_moe",
        "mixtral",
        "olmoe",
        "gpt_oss",
        "lfm2",
    ] {
        let (config, decoder) = fixture(family);
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(family);
        let load = |file: &str| candle_core::safetensors::load(folder.join("peft").join(file), &device).unwrap();
        let (batch, curve) = (load("reference.safetensors"), load("curve.safetensors"));
        let ids = |name: &str| batch[name].to_vec1::<i64>().unwrap();
        let (tokens, mask) = (ids("batch_tokens"), ids("batch_targets_mask"));
        let mut start = 0;
        let sequence = |length: i64| {
            let rows = start..start + length as usize;
            start = rows.end;
            let tokens = tokens[rows.clone()].iter().map(|token| *token as u32).collect();
            let weights = mask[rows].iter().enumerate().map(|(i, m)| if i == 0 { 0.0 } else { *m as f32 }).collect();
            TokenizedExample { tokens, weights }
        };
        let examples: Vec<_> = ids("batch_lengths").into_iter().map(sequence).collect();
        let adapter = |prefix: &str| {
            let mut layers = vec![LoraLayer::default(); config.num_hidden_layers];
            for (index, layer) in layers.iter_mut().enumerate() {
                for module in config.modules_of(index) {
                    let name = format!("{prefix}.base_model.model.model.layers.{index}.{}", module.path);
                    let tensor = |half: &str| curve[&format!("{name}.lora_{half}.weight")].clone();
                    let pair = LoraPair { a: tensor("A"), b: tensor("B"), scale: 2.0 };
                    layer.set_whole(module.rows(&config), &pair).unwrap();
                }
            }
            Parameters::of(&Adapter::of_blocks(String::new(), layers, config.block_names())).unwrap()
        };
        let adam = crate::train::optimizer::AdamSettings { weight_decay: 0.01, ..Default::default() };
        let settings =
            TrainSettings { epochs: 20, batch_size: 4, learning_rate: 5e-3, warmup: Some(0.2), adam, ..settings() };
        let examples = ExampleStore::of(examples).unwrap();
        let mut trainer = Trainer::with_source(Box::new(decoder), settings, examples, adapter("init"), None).unwrap();
        let reports = run(&mut trainer);
        let expected = |name: &str| curve[name].to_vec1::<f32>().unwrap();
        for (report, (loss, norm)) in reports.iter().zip(expected("losses").iter().zip(expected("grad_norms"))) {
            let (loss, norm) = (f64::from(*loss), f64::from(norm));
            assert!((report.loss - loss).abs() < 1e-4 * loss, "{family} {report:?}: loss {loss}");
            assert!((report.gradient_norm - norm).abs() < 1e-4 * norm, "{family} {report:?}: norm {norm}");
        }
        assert_eq!(reports.len(), 20);
        let (mut difference, mut size) = (0.0, 0.0);
        for (value, wanted) in
            trainer.state.values().unwrap().iter().flatten().zip(adapter("final").values.iter().flatten())
        {
            difference += f64::from(value - wanted).powi(2);
            size += f64::from(*wanted).powi(2);
        }
        assert!(difference.sqrt() < 1e-4 * size.sqrt(), "{family}: the final adapter differs");
    }
}

#[test]
fn a_sample_is_measured_as_if_it_were_the_whole_and_the_whole_as_without_one() {
    let trainer = preference_trainer(None);
    let mut all = HeldOut::new(preferences(40), 2).between_epochs(50_000, 100);
    let sample = trainer.validate(&mut all, false, &mut || Ok(())).unwrap().unwrap();
    assert_eq!(sample.full, None);
    let both = trainer.validate(&mut all, true, &mut || Ok(())).unwrap().unwrap();
    assert_eq!(both.sample, sample.sample);
    assert_eq!(both.full.unwrap(), both.sample, "there is time for all of them");

    let mut some = HeldOut::new(preferences(40), 2).between_epochs(8_000, 100);
    let both = trainer.validate(&mut some, true, &mut || Ok(())).unwrap().unwrap();
    let first = whole(&trainer, &mut HeldOut::new(preferences(16), 2));
    assert_eq!(both.sample, first);
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    close(both.full.unwrap().loss, whole(&trainer, &mut HeldOut::new(preferences(40), 2)).loss);
    close(both.full.unwrap().token_accuracy, whole(&trainer, &mut HeldOut::new(preferences(40), 2)).token_accuracy);
}
