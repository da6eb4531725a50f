//! The training loop, one optimizer step at a time: order, pack, micro-steps, clip, update, record.
//!
//! `jobs/worker/training.rs` calls [`Trainer::step`] until it has no more, and saves, evaluates and stops in between. Every step is a
//! function of the state that [`Trainer::save`] writes, so a resumed run is bit-identical to an uninterrupted one on the
//! same machine.

use std::sync::Arc;

use candle_core::Device;

use crate::adapters::Adapter;
use crate::datasets::TokenizedExample;
use crate::model::BaseModel;
use crate::train::backward::{self, Gradients, LossReport, PackedBatch};
use crate::train::checkpoint;
use crate::train::optimizer::{AdamW, clip, global_norm};
use crate::train::packing::{BATCH_ROWS, pack};
use crate::train::parameters::{Parameters, add_gradients, epoch_order};
use crate::train::settings::TrainSettings;
use crate::{Error, Result};

/// Examples that one round of evaluation packs, so that packed copies never exceed a part of a large file.
const EVALUATION_EXAMPLES: usize = 256;

/// Asked before each micro-step: may wait for requests to go first; an error ends the step with nothing changed.
pub type BeforeMicroStep<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps so far, this one included.
    pub step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// Weighted mean cross entropy of the step's targets before its update, in nats.
    pub loss: f64,
    /// Share of the step's targets that had the highest logit.
    pub token_accuracy: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step's examples.
    pub tokens: usize,
    /// The epoch that ended with this step, counted from 1.
    pub completed_epoch: Option<usize>,
}

/// Figures of held-out examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Weighted mean cross entropy of all targets, in nats.
    pub loss: f64,
    /// Share of the targets that had the highest logit.
    pub token_accuracy: f64,
}

/// One line of the result file, kept for the whole run and in its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRecord {
    /// Tokens read so far, repeats counted.
    pub elapsed_tokens: u64,
    /// Examples read so far, repeats counted.
    pub elapsed_examples: u64,
    /// As in [`StepReport`].
    pub loss: f64,
    /// As in [`StepReport`].
    pub token_accuracy: f64,
    /// Of the validation file, where it was measured after this step.
    pub validation: Option<Evaluation>,
}

/// Where losses and gradients come from: the model, or a formula in tests of the loop.
pub(crate) trait LossSource: Send + Sync {
    fn device(&self) -> &Device;
    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        normalizer: f64,
    ) -> Result<(LossReport, Gradients)>;
    fn loss(&self, adapter: &Adapter, batch: &PackedBatch) -> Result<LossReport>;
}

impl LossSource for Arc<BaseModel> {
    fn device(&self) -> &Device {
        self.decoder.device()
    }

    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        normalizer: f64,
    ) -> Result<(LossReport, Gradients)> {
        backward::loss_and_gradients(&self.decoder, adapter, batch, normalizer)
    }

    fn loss(&self, adapter: &Adapter, batch: &PackedBatch) -> Result<LossReport> {
        backward::loss(&self.decoder, Some(adapter), batch)
    }
}

/// A training run.
pub struct Trainer {
    source: Box<dyn LossSource>,
    settings: TrainSettings,
    examples: Vec<TokenizedExample>,
    /// Hash of everything that determines the run; a checkpoint of another one is refused.
    fingerprint: String,
    parameters: Parameters,
    optimizer: AdamW,
    /// One entry per step done.
    history: Vec<StepRecord>,
    /// The current epoch and the order of its examples.
    order: (usize, Vec<usize>),
}

impl Trainer {
    /// A run over `examples` that begins from `initial`, or from a new adapter of the settings' rank on every layer.
    pub fn new(
        model: Arc<BaseModel>,
        settings: TrainSettings,
        examples: Vec<TokenizedExample>,
        initial: Option<&Adapter>,
    ) -> Result<Self> {
        let parameters = match initial {
            Some(adapter) => Parameters::of(adapter)?,
            None => Parameters::fresh(&model.config, settings.rank, settings.alpha, settings.seed),
        };
        let beginning = initial.map(|adapter| adapter.id.as_str());
        Self::with_source(Box::new(model), settings, examples, parameters, beginning)
    }

    pub(crate) fn with_source(
        source: Box<dyn LossSource>,
        settings: TrainSettings,
        examples: Vec<TokenizedExample>,
        parameters: Parameters,
        beginning: Option<&str>,
    ) -> Result<Self> {
        if parameters.places.is_empty() || settings.batch_size == 0 {
            return Err(Error::Internal("a run needs an adapter with layers and batches with examples".into()));
        }
        if !examples.iter().any(|example| example.targets() > 0) {
            return Err(Error::Internal("a run needs examples with targets".into()));
        }
        let fingerprint = checkpoint::fingerprint(&settings, &examples, beginning)?;
        let optimizer = AdamW::new(settings.adam, &parameters.values);
        let order = (0, epoch_order(settings.seed, 0, examples.len()));
        Ok(Self { source, settings, examples, fingerprint, parameters, optimizer, history: Vec::new(), order })
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.settings.epochs * self.steps_per_epoch()
    }

    /// Steps of one epoch; its last one takes the examples that are left.
    pub fn steps_per_epoch(&self) -> usize {
        self.examples.len().div_ceil(self.settings.batch_size)
    }

    /// Steps done.
    pub fn step_number(&self) -> usize {
        self.history.len()
    }

    /// Tokens read so far, repeats counted.
    pub fn trained_tokens(&self) -> u64 {
        self.history.last().map_or(0, |record| record.elapsed_tokens)
    }

    /// The records of all steps done.
    pub fn history(&self) -> &[StepRecord] {
        &self.history
    }

    /// Does one step; `None` when the run is complete. After an error nothing has changed and the step can be done again.
    pub fn step(&mut self, before_micro_step: BeforeMicroStep<'_>) -> Result<Option<StepReport>> {
        let (step, total_steps, per_epoch) = (self.step_number(), self.total_steps(), self.steps_per_epoch());
        if step >= total_steps {
            return Ok(None);
        }
        let (epoch, position) = (step / per_epoch, step % per_epoch);
        if self.order.0 != epoch {
            self.order = (epoch, epoch_order(self.settings.seed, epoch, self.examples.len()));
        }
        let start = position * self.settings.batch_size;
        let end = (start + self.settings.batch_size).min(self.examples.len());
        let examples: Vec<&TokenizedExample> =
            self.order.1[start..end].iter().map(|index| &self.examples[*index]).collect();
        let tokens = examples.iter().map(|example| example.tokens.len()).sum::<usize>();

        let (report, mut gradients) = self.gradients(&examples, before_micro_step)?;
        let gradient_norm = global_norm(&gradients);
        let loss = report.loss_sum / report.weight_sum;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(non_finite(step + 1, loss, gradient_norm));
        }
        clip(&mut gradients, gradient_norm, self.settings.clip);
        let warmup = self.settings.warmup_steps(total_steps);
        let learning_rate = self.settings.learning_rate * self.settings.schedule.factor(step, warmup, total_steps);
        self.optimizer.update(learning_rate, &mut self.parameters.values, &gradients);

        let before = self.history.last();
        let token_accuracy = report.correct as f64 / report.targets.max(1) as f64;
        self.history.push(StepRecord {
            elapsed_tokens: before.map_or(0, |record| record.elapsed_tokens) + tokens as u64,
            elapsed_examples: before.map_or(0, |record| record.elapsed_examples) + examples.len() as u64,
            loss,
            token_accuracy,
            validation: None,
        });
        let completed_epoch = (position + 1 == per_epoch).then_some(epoch + 1);
        let step = step + 1;
        Ok(Some(StepReport {
            step,
            total_steps,
            loss,
            token_accuracy,
            learning_rate,
            gradient_norm,
            tokens,
            completed_epoch,
        }))
    }

    /// Loss and gradients of one optimizer step: sums over its micro-batches, divided by the weights of the whole step, so
    /// that the split into micro-batches changes nothing but rounding.
    fn gradients(
        &self,
        examples: &[&TokenizedExample],
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Vec<Vec<f32>>)> {
        let batches = pack(examples, BATCH_ROWS);
        let weights = batches.iter().flat_map(|batch| &batch.targets).map(|target| f64::from(target.weight));
        let normalizer: f64 = weights.sum();
        let adapter = self.parameters.adapter(self.source.device())?;
        let mut sum: Option<(LossReport, Gradients)> = None;
        for batch in &batches {
            before_micro_step()?;
            let (report, gradients) = self.source.loss_and_gradients(&adapter, batch, normalizer)?;
            match &mut sum {
                None => sum = Some((report, gradients)),
                Some((total, accumulated)) => {
                    add_report(total, report);
                    add_gradients(accumulated, &gradients)?;
                }
            }
        }
        let (report, gradients) = sum.ok_or_else(|| Error::Internal("a step without targets".into()))?;
        Ok((report, self.parameters.gradients(&gradients)?))
    }

    /// Measures the current adapter on `examples`; `None` where they have no targets.
    pub fn evaluate(
        &self,
        examples: &[TokenizedExample],
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<Evaluation>> {
        let adapter = self.parameters.adapter(self.source.device())?;
        let mut total = LossReport::default();
        for part in examples.chunks(EVALUATION_EXAMPLES) {
            for batch in pack(&part.iter().collect::<Vec<_>>(), BATCH_ROWS) {
                before_micro_step()?;
                add_report(&mut total, self.source.loss(&adapter, &batch)?);
            }
        }
        Ok((total.targets > 0 && total.weight_sum > 0.0).then(|| Evaluation {
            loss: total.loss_sum / total.weight_sum,
            token_accuracy: total.correct as f64 / total.targets as f64,
        }))
    }

    /// Notes figures of the validation file with the last step.
    pub fn record_validation(&mut self, evaluation: Evaluation) {
        if let Some(record) = self.history.last_mut() {
            record.validation = Some(evaluation);
        }
    }

    /// The adapter as it stands, on the model's device; it has no name until its files are written.
    pub fn adapter(&self) -> Result<Adapter> {
        self.parameters.adapter(self.source.device())
    }

    /// Everything that [`Trainer::restore`] needs to go on from here.
    pub fn save(&self) -> Result<Vec<u8>> {
        checkpoint::write(&self.fingerprint, &self.parameters.values, &self.optimizer, &self.history)
    }

    /// Goes on from a checkpoint of the same run: same settings, same examples, same beginning. An error leaves the run
    /// where it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let state = checkpoint::read(bytes, &self.fingerprint, &self.parameters.values)?;
        if state.history.len() > self.total_steps() {
            return Err(Error::Setup("the checkpoint has more steps than the run".into()));
        }
        self.optimizer.updates = state.history.len() as u64;
        self.optimizer.moments = state.moments;
        self.parameters.values = state.values;
        self.history = state.history;
        Ok(())
    }
}

fn add_report(total: &mut LossReport, part: LossReport) {
    total.loss_sum += part.loss_sum;
    total.weight_sum += part.weight_sum;
    total.targets += part.targets;
    total.correct += part.correct;
}

fn non_finite(step: usize, loss: f64, norm: f64) -> Error {
    let what = if loss.is_finite() { format!("gradient norm is {norm}") } else { format!("loss is {loss}") };
    let message = format!("The {what} in step {step}: try a smaller learning_rate_multiplier.");
    Error::invalid_code("learning_rate_multiplier", "non_finite_loss", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{LoraLayer, LoraPair, Site};
    use crate::train::parameters::Place;
    use crate::train::schedule::Schedule;

    /// Pulls every parameter towards a value that depends on the batch's tokens: cheap, deterministic, and different for
    /// every batch and every state.
    struct Pull {
        broken_from: Option<usize>,
        calls: std::sync::atomic::AtomicUsize,
    }

    impl LossSource for Pull {
        fn device(&self) -> &Device {
            &Device::Cpu
        }

        fn loss_and_gradients(
            &self,
            adapter: &Adapter,
            batch: &PackedBatch,
            normalizer: f64,
        ) -> Result<(LossReport, Gradients)> {
            let calls = self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut report = self.loss(adapter, batch)?;
            if self.broken_from.is_some_and(|from| calls >= from) {
                report.loss_sum = f64::NAN;
            }
            let goal = batch.targets.iter().map(|target| f64::from(target.token)).sum::<f64>() / normalizer;
            let mut gradients = vec![LoraLayer::default(); adapter.layers.len()];
            for (layer, gradient) in adapter.layers.iter().zip(&mut gradients) {
                for site in Site::ALL {
                    let Some(pair) = layer.get(site) else { continue };
                    let a = pair.a.affine(1.0, -goal)?;
                    let b = pair.b.affine(1.0, goal / 3.0)?;
                    gradient.set(site, LoraPair { a, b, scale: pair.scale });
                }
            }
            Ok((report, gradients))
        }

        fn loss(&self, _: &Adapter, batch: &PackedBatch) -> Result<LossReport> {
            let weight_sum = batch.targets.iter().map(|target| f64::from(target.weight)).sum();
            let targets = batch.targets.len();
            Ok(LossReport { loss_sum: batch.tokens.len() as f64, weight_sum, targets, correct: targets / 2 })
        }
    }

    fn settings() -> TrainSettings {
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
        }
    }

    fn examples(count: u32) -> Vec<TokenizedExample> {
        let example = |i: u32| TokenizedExample { tokens: vec![i, i + 1, i + 2], weights: vec![0.0, 0.0, 1.0] };
        (0..count).map(example).collect()
    }

    fn trainer_with(settings: TrainSettings, examples: Vec<TokenizedExample>, broken_from: Option<usize>) -> Trainer {
        let place = Place { layer: 0, site: Site::Query, rank: 2, output: 5, input: 3, scale: 2.0 };
        let mut layer = LoraLayer::default();
        let a = candle_core::Tensor::new(&[[0.1f32, -0.2, 0.3], [0.4, 0.5, -0.6]], &Device::Cpu).unwrap();
        let b = candle_core::Tensor::zeros((place.output, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        layer.set(Site::Query, LoraPair { a, b, scale: 2.0 });
        let parameters = Parameters::of(&Adapter { id: String::new(), layers: vec![layer] }).unwrap();
        assert_eq!(parameters.places, [place]);
        let source = Pull { broken_from, calls: 0.into() };
        Trainer::with_source(Box::new(source), settings, examples, parameters, None).unwrap()
    }

    fn trainer() -> Trainer {
        trainer_with(settings(), examples(10), None)
    }

    fn run(trainer: &mut Trainer) -> Vec<StepReport> {
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
                before.record_validation(Evaluation { loss: 1.0, token_accuracy: 0.5 });
            }
            let mut after = trainer();
            after.restore(&before.save().unwrap()).unwrap();
            assert_eq!(after.history(), before.history());
            let rest = run(&mut after);
            assert_eq!(rest, reports.split_off(stop));
            assert_eq!(after.parameters, whole.parameters);
            assert_eq!(after.optimizer, whole.optimizer);
            reports = run(&mut trainer());
        }
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
        assert_eq!(one.parameters, trainer().parameters);
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
        assert_eq!(trainer.optimizer.updates, 0);
    }

    #[test]
    fn a_loss_that_is_not_finite_fails_with_its_own_code_and_keeps_the_last_good_state() {
        let mut trainer = trainer_with(settings(), examples(10), Some(1));
        trainer.step(&mut || Ok(())).unwrap();
        let good = trainer.save().unwrap();
        let error = trainer.step(&mut || Ok(())).unwrap_err();
        assert!(matches!(error, Error::Invalid { code: Some("non_finite_loss"), .. }));
        assert_eq!(trainer.save().unwrap(), good);
    }

    #[test]
    fn evaluation_averages_over_all_targets() {
        let evaluation = trainer().evaluate(&examples(10), &mut || Ok(())).unwrap().unwrap();
        // Each example has two rows and one target of weight 1.
        assert!((evaluation.loss - 2.0).abs() < 1e-12);
        assert!((evaluation.token_accuracy - 0.5).abs() < 1e-12);
    }

    impl LossSource for crate::model::decoder::Decoder {
        fn device(&self) -> &Device {
            self.device()
        }

        fn loss_and_gradients(
            &self,
            adapter: &Adapter,
            batch: &PackedBatch,
            normalizer: f64,
        ) -> Result<(LossReport, Gradients)> {
            backward::loss_and_gradients(self, adapter, batch, normalizer)
        }

        fn loss(&self, adapter: &Adapter, batch: &PackedBatch) -> Result<LossReport> {
            backward::loss(self, Some(adapter), batch)
        }
    }

    /// `tests/parity/README.md` describes the run; tolerances are its own, 1e-5 in float32 against float64, times ten.
    #[test]
    fn twenty_steps_follow_the_run_of_pytorch_and_peft() {
        use crate::model::{ModelConfig, decoder::Decoder, weights::Weights};
        let device = Device::Cpu;
        for family in ["llama", "qwen2", "qwen3", "smollm3"] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
            let config = ModelConfig::read(&folder).unwrap();
            let decoder = Decoder::load(&config, &Weights::open(&folder, &device).unwrap(), None).unwrap();
            let load = |file: &str| candle_core::safetensors::load(folder.join("peft").join(file), &device).unwrap();
            let (batch, curve) = (load("reference.safetensors"), load("curve.safetensors"));
            let ids = |name: &str| batch[name].to_vec1::<i64>().unwrap();
            let (tokens, mask) = (ids("batch_tokens"), ids("batch_targets_mask"));
            let mut start = 0;
            let sequence = |length: i64| {
                let rows = start..start + length as usize;
                start = rows.end;
                let tokens = tokens[rows.clone()].iter().map(|token| *token as u32).collect();
                let weights =
                    mask[rows].iter().enumerate().map(|(i, m)| if i == 0 { 0.0 } else { *m as f32 }).collect();
                TokenizedExample { tokens, weights }
            };
            let examples: Vec<_> = ids("batch_lengths").into_iter().map(sequence).collect();
            let adapter = |prefix: &str| {
                let mut layers = vec![LoraLayer::default(); config.num_hidden_layers];
                for (index, layer) in layers.iter_mut().enumerate() {
                    for site in Site::ALL {
                        let name = format!("{prefix}.base_model.model.model.layers.{index}.{}", site.path());
                        let tensor = |half: &str| curve[&format!("{name}.lora_{half}.weight")].clone();
                        layer.set(site, LoraPair { a: tensor("A"), b: tensor("B"), scale: 2.0 });
                    }
                }
                Parameters::of(&Adapter { id: String::new(), layers }).unwrap()
            };
            let adam = crate::train::optimizer::AdamSettings { weight_decay: 0.01, ..Default::default() };
            let settings =
                TrainSettings { epochs: 20, batch_size: 4, learning_rate: 5e-3, warmup: Some(4), adam, ..settings() };
            let mut trainer =
                Trainer::with_source(Box::new(decoder), settings, examples, adapter("init"), None).unwrap();
            let reports = run(&mut trainer);
            let expected = |name: &str| curve[name].to_vec1::<f32>().unwrap();
            for (report, (loss, norm)) in reports.iter().zip(expected("losses").iter().zip(expected("grad_norms"))) {
                assert!((report.loss - f64::from(*loss)).abs() < 1e-4, "{family} {report:?}: loss {loss}");
                let norm = f64::from(norm);
                assert!((report.gradient_norm - norm).abs() < 1e-4 * norm.max(1.0), "{family} {report:?}: norm {norm}");
            }
            assert_eq!(reports.len(), 20);
            let (mut difference, mut size) = (0.0, 0.0);
            for (value, wanted) in
                trainer.parameters.values.iter().flatten().zip(adapter("final").values.iter().flatten())
            {
                difference += f64::from(value - wanted).powi(2);
                size += f64::from(*wanted).powi(2);
            }
            assert!(difference.sqrt() < 1e-4 * size.sqrt(), "{family}: the final adapter differs");
        }
    }
}
