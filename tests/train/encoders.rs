//! Encoders and cross-encoders in training: loss, gradients and whole runs equal those of sentence-transformers and PEFT
//! (`tests/parity/make_encoders.py`). Part of several programs, each over its own kernels.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use candle_core::Tensor;
use serde_json::Value;

use crate::fixtures::{Reference, device, folder, relative_difference};
use attune::adapters::peft;
use attune::datasets::TextCodec as _;
use attune::model::BaseModel;
use attune::model::entry::ModelEntry;
use attune::model::linear::Dtype;
use attune::model::lora::{Adapter, LoraLayer};
use attune::train::Recomputation;
use attune::train::backward::LossReport;
use attune::train::contrastive::Contrast;
use attune::train::cross_encoder::{LabelledTexts, ScoredBatch};
use attune::train::optimizer::{AdamSettings, AdamW, clip_factor, global_norm};
use attune::train::pair_loss::PairLoss;
use attune::train::parameters::Parameters;

/// Encoders with an adapter.
pub(crate) const ENCODERS: [&str; 5] = ["bert", "modernbert", "mpnet", "nomic_bert", "xlm_roberta"];

/// Steps of a run, those in which the learning rate rises, and its peak (`tests/parity/make_fixtures.py`).
const STEPS: usize = 20;
const WARMUP: usize = 4;
const RATE: f64 = 5e-3;

pub(crate) struct Case {
    name: String,
    /// Folder of the adapter inside that of the model.
    adapter: &'static str,
    model: BaseModel,
    /// Contents of `pairs.json`.
    pairs: Value,
}

/// Relative errors of a batch.
pub(crate) struct Errors {
    pub(crate) loss: f64,
    pub(crate) gradients: Vec<f64>,
}

impl Case {
    fn load(name: &str, pairs: &str) -> Self {
        Self::load_as(name, pairs, Dtype::F32)
    }

    /// Loads the case over the kernels under test, with the model's weights in `dtype`.
    pub(crate) fn load_as(name: &str, pairs: &str, dtype: Dtype) -> Self {
        Self::with_adapter(name, "peft", pairs, dtype)
    }

    fn with_adapter(name: &str, adapter: &'static str, pairs: &str, dtype: Dtype) -> Self {
        let name = format!("encoders/{name}");
        let entry = ModelEntry { dtype: Some(dtype), ..ModelEntry::new(&name, folder(&name)) };
        let model = BaseModel::load_on(&entry, &crate::kernels()).unwrap();
        let pairs = serde_json::from_slice(&std::fs::read(folder(&name).join(pairs)).unwrap()).unwrap();
        Self { name, adapter, model, pairs }
    }

    fn reference(&self, file: &str) -> Reference {
        Reference::read(&self.name, &format!("{}/{file}", self.adapter))
    }

    /// Reads the tensors that begin with `prefix` as an adapter, as if PEFT had saved them.
    fn adapter(&self, tensors: &Reference, prefix: &str) -> Adapter {
        let tensors: HashMap<String, Tensor> = (tensors.0.iter())
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
            .filter(|(name, _)| name.starts_with("base_model."))
            .collect();
        let target = tempfile::NamedTempFile::new().unwrap();
        candle_core::safetensors::save(&tensors, target.path()).unwrap();
        let config = std::fs::read(folder(&self.name).join(self.adapter).join("adapter_config.json")).unwrap();
        peft::read(&config, &std::fs::read(target.path()).unwrap(), &self.model.config, &device()).unwrap()
    }

    /// Returns the cases of each batch.
    fn batches(&self) -> Vec<&[Value]> {
        let size = self.pairs["batch"].as_u64().unwrap() as usize;
        self.pairs["cases"].as_array().unwrap().chunks(size).collect()
    }

    /// Computes the loss of vectors of a batch and its gradients.
    fn of_vectors(&self, cases: &[Value], adapter: &Adapter, is_cosine: bool) -> (LossReport, Vec<LoraLayer>) {
        let text = |text: &Value| self.model.encode_text("", text.as_str().unwrap(), usize::MAX).unwrap().ids;
        let pairs: Vec<Vec<Vec<u32>>> =
            cases.iter().map(|case| case["texts"].as_array().unwrap().iter().map(text).collect()).collect();
        for (pair, case) in pairs.iter().zip(cases) {
            assert_eq!(serde_json::json!(pair), case["input_ids"], "{}: {}", self.name, case["texts"]);
        }
        let scores: Vec<f32> = cases.iter().map(|case| case["score"].as_f64().unwrap() as f32).collect();
        let loss = if is_cosine {
            PairLoss::Similarity { scores: &scores }
        } else {
            PairLoss::Ranking { scale: self.pairs["scale"].as_f64().unwrap() }
        };
        let batch = Contrast {
            form: &self.model.vectors,
            pairs: &pairs,
            unpooled: [0; 2],
            loss,
            budget: 30,
            dropout: None,
            recomputation: Recomputation::None,
        };
        batch.loss_and_gradients(&self.model.decoder, adapter, &mut || Ok(())).unwrap()
    }

    /// Computes the loss of labels of a batch and its gradients.
    fn of_labels(&self, cases: &[Value], adapter: &Adapter) -> (LossReport, Vec<LoraLayer>) {
        let example = |case: &Value| {
            let text = |key: &str| case[key].as_str().unwrap();
            let pair = self.model.encode_pair(text("query"), text("document"), usize::MAX).unwrap();
            assert_eq!(serde_json::json!(pair.ids), case["input_ids"], "{}: {case}", self.name);
            LabelledTexts { tokens: pair.ids, second: pair.second, label: case["label"].as_f64().unwrap() as f32 }
        };
        let examples: Vec<_> = cases.iter().map(example).collect();
        let batch = ScoredBatch {
            classifier: self.model.classifier.as_ref().unwrap(),
            examples: &examples,
            budget: 60,
            dropout: None,
            recomputation: Recomputation::None,
        };
        batch.loss_and_gradients(&self.model.decoder, adapter, &mut || Ok(())).unwrap()
    }

    /// Compares a loss and its gradients with those of the reference `file`.
    fn compare(&self, file: &str, results: (LossReport, Vec<LoraLayer>)) {
        self.check(self.errors(file, results));
    }

    fn check(&self, errors: Errors) {
        assert!(errors.loss <= 1e-4, "{}: the loss is off by {:e}", self.name, errors.loss);
        for (place, difference) in errors.gradients.into_iter().enumerate() {
            assert!(difference <= 1e-4, "{}: the gradient at place {place} differs by {difference:e}", self.name);
        }
    }

    /// Computes the relative errors of the first batch's loss of vectors and of its gradients.
    pub(crate) fn first_errors(&self) -> Errors {
        let adapter = self.adapter(&self.reference("adapter_model.safetensors"), "");
        self.errors("reference.safetensors", self.of_vectors(self.batches()[0], &adapter, false))
    }

    /// Computes the relative errors against the reference `file`.
    fn errors(&self, file: &str, (report, gradients): (LossReport, Vec<LoraLayer>)) -> Errors {
        let reference = self.reference(file);
        let (loss, expected) = (report.loss_sum / report.weight_sum, f64::from(reference.scalar("loss")));
        let wanted = self.adapter(&reference, "grad.");
        let parameters = Parameters::of(&wanted).unwrap();
        let found = parameters.gradients(&gradients).unwrap();
        let pairs = found.iter().zip(&parameters.values);
        let gradients = pairs.map(|(found, wanted)| relative_difference(found, wanted)).collect();
        Errors { loss: (loss - expected).abs() / expected, gradients }
    }

    /// Trains as the reference `file` did, and compares all losses, the gradients' norms and the last adapter.
    fn follow(&self, file: &str, loss: impl Fn(&[Value], &Adapter) -> (LossReport, Vec<LoraLayer>)) {
        let curve = self.reference(file);
        let (losses, norms) = (curve.floats("losses"), curve.floats("grad_norms"));
        let mut parameters = Parameters::of(&self.adapter(&curve, "init.")).unwrap();
        let mut optimizer = AdamW::new(AdamSettings { weight_decay: 0.0, ..Default::default() }, &parameters.values);
        let batches = self.batches();
        for step in 0..STEPS {
            let adapter = parameters.adapter(&device()).unwrap();
            let (report, gradients) = loss(batches[step % batches.len()], &adapter);
            let gradients = parameters.gradients(&gradients).unwrap();
            let (value, norm) = (report.loss_sum / report.weight_sum, global_norm(&gradients));
            for (found, wanted) in [(value, losses[step]), (norm, norms[step])] {
                let wanted = f64::from(wanted);
                assert!(
                    (found - wanted).abs() < 1e-4 * wanted,
                    "{}, {file}, step {step}: {found}, {wanted}",
                    self.name
                );
            }
            let factor = if step < WARMUP {
                (step + 1) as f64 / WARMUP as f64
            } else {
                (STEPS - step) as f64 / (STEPS - WARMUP) as f64
            };
            let by = optimizer.advance(RATE * factor, clip_factor(norm, 1.0));
            optimizer.update(by, &mut parameters.values, &gradients);
        }
        let wanted = Parameters::of(&self.adapter(&curve, "final.")).unwrap().values.concat();
        let difference = relative_difference(&parameters.values.concat(), &wanted);
        assert!(difference < 1e-4, "{}, {file}: the last adapter differs by {difference:e}", self.name);
    }
}

#[test]
fn losses_of_encoders_and_their_gradients_equal_sentence_transformers_and_peft() {
    // Adapters of Nomic's BERT have the names of transformers, or those of the published checkpoints' own code.
    let cases = ENCODERS.iter().map(|name| (*name, "peft")).chain([("nomic_bert", "peft_fused")]);
    for (name, adapter) in cases {
        let case = Case::with_adapter(name, adapter, "peft/pairs.json", Dtype::F32);
        case.check(case.first_errors());
        if name == "bert" {
            let adapter = case.adapter(&case.reference("adapter_model.safetensors"), "");
            let first = case.batches()[0];
            case.compare("cosine.safetensors", case.of_vectors(first, &adapter, true));
        }
    }
}

#[test]
fn losses_of_cross_encoders_and_their_gradients_equal_sentence_transformers_and_peft() {
    for name in ["bert_score", "nomic_bert_score"] {
        let case = Case::load(name, "pairs.json");
        let adapter = case.adapter(&case.reference("adapter_model.safetensors"), "");
        case.compare("reference.safetensors", case.of_labels(case.batches()[0], &adapter));
    }
}

#[test]
fn twenty_steps_follow_the_runs_of_sentence_transformers_and_peft() {
    let case = Case::load("bert", "peft/pairs.json");
    case.follow("curve_contrast.safetensors", |cases, adapter| case.of_vectors(cases, adapter, false));
    case.follow("curve_cosine.safetensors", |cases, adapter| case.of_vectors(cases, adapter, true));
    let case = Case::load("modernbert", "peft/pairs.json");
    case.follow("curve_contrast.safetensors", |cases, adapter| case.of_vectors(cases, adapter, false));
    for name in ["bert_score", "nomic_bert_score"] {
        let case = Case::load(name, "pairs.json");
        case.follow("curve_binary.safetensors", |cases, adapter| case.of_labels(cases, adapter));
    }
}
