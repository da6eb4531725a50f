//! Tests of the training loop with a formula in place of the model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device};

use super::*;
use crate::datasets::TokenizedExample;
use crate::datasets::classes::{ClassificationData, ClassifiedExample};
use crate::train::backward::{Gradients, LossReport, Objective, PackedBatch, PassOptions};
use crate::train::classification::ClassificationTask;
use crate::train::evaluation::HeldOut;
use crate::train::parameters::ParameterSpan;
use crate::train::records::{Evaluation, Validation};
use crate::train::schedule::Schedule;
use crate::train::training_method::TrainingMethod;
use crate::train::yielding::YieldPolicy;
use attune_model::decoder::Decoder;
use attune_model::kernels::Kernels;
use attune_model::lora::modules::PLAIN;
use attune_model::lora::{LoraLayer, LoraPair, Site};

/// Pulls every parameter towards a value that depends on the batch's tokens: cheap, deterministic, and different for
/// every batch and every state.
struct Pull {
    broken_from: Option<usize>,
    calls: std::sync::atomic::AtomicUsize,
}

impl LossSource for Pull {
    fn decoder(&self) -> &Decoder {
        unreachable!("pairs of texts are trained with the models of the test fixtures")
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn kernels(&self) -> &Kernels {
        &Kernels::Cpu
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        _: Objective<'_>,
        normalizer: f64,
        _: PassOptions<'_>,
    ) -> Result<(LossReport, Gradients)> {
        let calls = self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut report = self.loss(adapter, batch, Objective::Targets, YieldPolicy::default())?;
        if self.broken_from.is_some_and(|from| calls >= from) {
            report.loss_sum = f64::NAN;
        }
        let goal = batch.targets.iter().map(|target| f64::from(target.token)).sum::<f64>() / normalizer;
        let mut gradients = vec![LoraLayer::default(); adapter.layers.len()];
        for (layer, gradient) in adapter.layers.iter().zip(&mut gradients) {
            for site in Site::USUAL {
                let Some(pair) = layer.get(site) else { continue };
                let a = pair.a.affine(1.0, -goal)?;
                let b = pair.b.affine(1.0, goal / 3.0)?;
                gradient.set(site, LoraPair { a, b, scale: pair.scale });
            }
        }
        Ok((report, gradients))
    }

    fn loss(&self, _: &Adapter, batch: &PackedBatch, _: Objective<'_>, _: YieldPolicy<'_>) -> Result<LossReport> {
        let weight_sum = batch.targets.iter().map(|target| f64::from(target.weight)).sum();
        let targets = batch.targets.len();
        let (sequences, exact) = (batch.sequences.len(), batch.sequences.len() / 2);
        Ok(LossReport {
            loss_sum: batch.tokens.len() as f64,
            weight_sum,
            targets,
            correct: targets / 2,
            sequences,
            exact,
            ..LossReport::default()
        })
    }

    /// Makes a sequence likelier the larger its last target is.
    fn log_likelihoods(&self, _: Option<&Adapter>, batch: &PackedBatch, _: YieldPolicy<'_>) -> Result<Vec<f64>> {
        let last = |rows: &std::ops::Range<usize>| batch.targets.iter().rfind(|target| rows.contains(&target.row));
        Ok(batch.sequences.iter().map(|rows| last(rows).map_or(0.0, |target| f64::from(target.token))).collect())
    }
}

pub(super) fn settings() -> TrainSettings {
    TrainSettings {
        rank: 2,
        alpha: 4.0,
        epochs: 3,
        batch_size: 4,
        learning_rate: 1e-2,
        seed: 7,
        warmup: None,
        schedule: Schedule::Linear,
        adam: crate::train::optimizer::AdamSettings::default(),
        clip: 1.0,
        sites: Site::USUAL.to_vec(),
        experts: false,
        dropout: 0.0,
        patience: 0,
        keep_best: false,
        method: TrainingMethod::Answers,
        batch_rows: 512,
    }
}

pub(super) fn examples(count: u32) -> Vec<TokenizedExample> {
    let example = |i: u32| TokenizedExample { tokens: vec![i, i + 1, i + 2], weights: vec![0.0, 0.0, 1.0] };
    (0..count).map(example).collect()
}

pub(super) fn stored(count: u32) -> ExampleStore {
    ExampleStore::of(examples(count)).unwrap()
}

fn trainer_with(settings: TrainSettings, examples: Vec<TokenizedExample>, broken_from: Option<usize>) -> Trainer {
    let place =
        ParameterSpan { layer: 0, module: PLAIN[0], experts: None, rank: 2, outputs: vec![5], input: 3, scale: 2.0 };
    let mut layer = LoraLayer::default();
    let a = candle_core::Tensor::new(&[[0.1f32, -0.2, 0.3], [0.4, 0.5, -0.6]], &Device::Cpu).unwrap();
    let b = candle_core::Tensor::zeros(place.shapes()[1], candle_core::DType::F32, &Device::Cpu).unwrap();
    layer.set(Site::Query, LoraPair { a, b, scale: 2.0 });
    let parameters = Parameters::of(&Adapter::new(String::new(), vec![layer])).unwrap();
    assert_eq!(parameters.places, [place]);
    let source = Pull { broken_from, calls: 0.into() };
    let examples = ExampleStore::of(examples).unwrap();
    Trainer::with_source(Box::new(source), settings, examples, parameters, None).unwrap()
}

fn trainer() -> Trainer {
    trainer_with(settings(), examples(10), None)
}

pub(super) fn run(trainer: &mut Trainer) -> Vec<StepReport> {
    std::iter::from_fn(|| trainer.step(&mut || Ok(())).unwrap()).collect()
}

#[test]
fn a_run_has_every_epoch_and_every_example() {
    let mut trainer = trainer();
    let reports = run(&mut trainer);
    assert_eq!(reports.len(), 9);
    let epochs: Vec<_> = reports.iter().filter_map(|report| report.completed_epoch).collect();
    assert_eq!(epochs, [1, 2, 3]);
    assert_eq!(trainer.trained_tokens(), 3 * 10 * 3);
    assert_eq!(trainer.history().last().unwrap().elapsed_examples, 30);
    assert!(trainer.step(&mut || Ok(())).unwrap().is_none());
}

#[test]
fn every_epoch_has_its_own_order_of_all_examples() {
    use crate::train::parameters::epoch_order;

    let (first, second) = (epoch_order(7, 0, 100), epoch_order(7, 1, 100));
    assert_ne!(first, second);
    assert_eq!(first, epoch_order(7, 0, 100));
    for mut order in [first, second] {
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn a_resumed_run_is_bit_identical_to_an_uninterrupted_one() {
    let mut whole = trainer();
    let mut reports = run(&mut whole);
    for stop in 0..9 {
        let mut before = trainer();
        for _ in 0..stop {
            before.step(&mut || Ok(())).unwrap();
        }
        if stop == 3 {
            before.record_validation(validation(1.0)).unwrap();
            before.record_classification(vec![0.5, 0.75]);
        }
        let mut after = trainer();
        after.restore(&before.save().unwrap()).unwrap();
        assert_eq!(after.history(), before.history());
        let rest = run(&mut after);
        assert_eq!(rest, reports.split_off(stop));
        assert_eq!(after.state.values().unwrap(), whole.state.values().unwrap());
        assert_eq!(after.state.optimizer().unwrap(), whole.state.optimizer().unwrap());
        reports = run(&mut trainer());
    }
}

fn validation(loss: f64) -> Validation {
    let sample = Evaluation { loss, token_accuracy: 0.5, sequence_accuracy: 0.25, rewards: None };
    Validation { sample, full: (loss < 2.0).then_some(sample) }
}

/// Returns the metrics of all held-out examples.
pub(super) fn whole(trainer: &Trainer, held_out: &mut HeldOut) -> Evaluation {
    trainer.validate(held_out, true, &mut || Ok(())).unwrap().unwrap().full.unwrap()
}

/// Runs with an evaluation of these losses after each step; returns the number of steps.
fn run_with_losses(trainer: &mut Trainer, losses: &[f64]) -> usize {
    while trainer.step(&mut || Ok(())).unwrap().is_some() {
        trainer.record_validation(validation(losses[trainer.step_number() - 1])).unwrap();
    }
    trainer.step_number()
}

#[test]
fn a_run_ends_after_as_many_evaluations_in_vain_as_it_may_have() {
    let patient = |patience| trainer_with(TrainSettings { patience, ..settings() }, examples(10), None);
    let losses = [3.0, 2.0, 2.5, 1.5, 1.5, f64::NAN, 1.4, 1.6, 1.7];
    for (patience, end) in [(0, 9), (1, 3), (2, 6), (3, 9)] {
        let mut trainer = patient(patience);
        assert_eq!(run_with_losses(&mut trainer, &losses), end, "patience {patience}");
        assert_eq!(trainer.has_ended_early(), end < 9);
        assert!(trainer.is_complete());
    }
    let mut hopeless = patient(4);
    assert_eq!(run_with_losses(&mut hopeless, &[f64::NAN; 9]), 4);
    assert_eq!(hopeless.best_step(), None);
}

fn same_values(adapter: &Adapter, other: &Adapter) -> bool {
    Parameters::of(adapter).unwrap() == Parameters::of(other).unwrap()
}

#[test]
fn the_best_adapter_is_kept_and_survives_a_checkpoint() {
    let keeping = || trainer_with(TrainSettings { keep_best: true, ..settings() }, examples(10), None);
    let losses = [3.0, 2.0, 2.5, 1.5, 1.5, f64::NAN, 1.6, 1.6, 1.7];
    let mut trainer = keeping();
    let mut best = None;
    while trainer.step(&mut || Ok(())).unwrap().is_some() {
        let step = trainer.step_number();
        trainer.record_validation(validation(losses[step - 1])).unwrap();
        if step == 4 {
            best = Some(trainer.adapter().unwrap());
        }
        let mut resumed = keeping();
        resumed.restore(&trainer.save().unwrap()).unwrap();
        trainer = resumed;
    }
    let (result, step) = trainer.result().unwrap();
    assert_eq!((step, trainer.best_step()), (4, Some(4)), "the earliest of equals");
    assert!(same_values(&result, &best.unwrap()) && !same_values(&result, &trainer.adapter().unwrap()));
    let mut last = trainer_with(settings(), examples(10), None);
    run_with_losses(&mut last, &losses);
    let (result, step) = last.result().unwrap();
    assert!(step == 9 && same_values(&result, &last.adapter().unwrap()), "nobody asked for the best");
}

#[test]
fn gradients_are_clipped_only_where_there_is_a_limit() {
    let first_step = |clip| {
        let adam = crate::train::optimizer::AdamSettings { epsilon: 1.0, ..Default::default() };
        let mut trainer = trainer_with(TrainSettings { adam, clip, ..settings() }, examples(10), None);
        let norm = trainer.step(&mut || Ok(())).unwrap().unwrap().gradient_norm;
        (norm, trainer.state.values().unwrap().into_owned())
    };
    let ((norm, free), (_, wide), (_, tight)) = (first_step(0.0), first_step(1e6), first_step(1e-3));
    assert!(norm > 1e-3);
    assert_eq!(free, wide);
    assert_ne!(free, tight);
}

#[test]
fn the_same_run_saves_the_same_bytes() {
    let (mut one, mut two) = (trainer(), trainer());
    run(&mut one);
    run(&mut two);
    assert_eq!(one.save().unwrap(), two.save().unwrap());
}

#[test]
fn a_checkpoint_of_another_run_is_refused_and_changes_nothing() {
    let mut other = trainer_with(TrainSettings { seed: 8, ..settings() }, examples(10), None);
    other.step(&mut || Ok(())).unwrap();
    let mut one = trainer();
    assert!(one.restore(&other.save().unwrap()).is_err());
    let mut other_data = trainer_with(settings(), examples(11), None);
    other_data.step(&mut || Ok(())).unwrap();
    assert!(one.restore(&other_data.save().unwrap()).is_err());
    assert_eq!(one.step_number(), 0);
    assert_eq!(one.state.values().unwrap(), trainer().state.values().unwrap());
}

#[test]
fn a_damaged_checkpoint_is_an_error() {
    let mut other = trainer();
    run(&mut other);
    let bytes = other.save().unwrap();
    for end in [0, 7, 8, 100, bytes.len() - 1] {
        assert!(trainer().restore(&bytes[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn a_cancelled_step_changes_nothing() {
    let mut trainer = trainer();
    let error = trainer.step(&mut || Err(Error::Cancelled)).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    assert_eq!(trainer.step_number(), 0);
    assert_eq!(trainer.state.optimizer().unwrap().updates, 0);
}

#[test]
fn a_loss_that_is_not_finite_fails_with_its_own_code_and_keeps_the_last_good_state() {
    let mut trainer = trainer_with(settings(), examples(10), Some(1));
    trainer.step(&mut || Ok(())).unwrap();
    let good = trainer.save().unwrap();
    let error = trainer.step(&mut || Ok(())).unwrap_err();
    assert!(matches!(error, Error::NonFiniteLoss(_)));
    assert_eq!(trainer.save().unwrap(), good);
}

#[test]
fn evaluation_averages_over_all_targets() {
    let evaluation = whole(&trainer(), &mut HeldOut::new(stored(10), 1));
    // Each example has two rows and one target of weight 1.
    assert!((evaluation.loss - 2.0).abs() < 1e-12);
    assert!((evaluation.token_accuracy - 0.5).abs() < 1e-12);
    assert!((evaluation.sequence_accuracy - 0.5).abs() < 1e-12);
}

#[test]
fn every_prompt_is_measured_with_every_class() {
    let example = |i: usize| ClassifiedExample {
        prompt: vec![7; 1 + i % 5],
        completions: vec![vec![4], vec![5]],
        class: i % 3 % 2,
    };
    let examples = (0..300).map(example).collect();
    let data = ClassificationData { classes: vec!["a".into(), "b".into()], examples, ..Default::default() };
    let task = ClassificationTask::new(data, &[]);
    let mut batches = 0;
    let figures = trainer().classify(&task, &mut || {
        batches += 1;
        Ok(())
    });
    // The larger token always wins, which is correct for each third example; F1 of that class is 1/2.
    for (figure, expected) in figures.unwrap().into_iter().zip([1.0 / 3.0, 0.5 / 3.0]) {
        assert!((figure - expected).abs() < 1e-12, "{figure} is not {expected}");
    }
    assert!(batches > 1);
    assert!(trainer().classify(&task, &mut || Err(Error::Cancelled)).is_err());
}
