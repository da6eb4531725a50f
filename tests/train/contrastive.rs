//! Embeddings in training: their vectors equal the server's, loss and gradients equal those of sentence-transformers
//! and PEFT, and a batch in many packs equals the batch in one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::fixtures::{
    Reference, TRAINED_FAMILIES, assert_gradient, device, floats, load, relative_difference, tensor_name, whole_model,
};
use attune::engine::EngineLimits;
use attune::engine::native::NativeEngine;
use attune::engine::{Backend as _, EmbedInput, EmbedRequest};
use attune::model::ModelConfig;
use attune::model::classifier::{Classifier, HeadLayer, ScoreForm};
use attune::model::decoder::Decoder;
use attune::model::lora::{Adapter, LoraLayer, Site};
use attune::model::vectors::{DenseActivation, DenseLayer, Pooling, VectorForm};
use attune::train::YieldPolicy;
use attune::train::backward::{LossReport, PackedBatch};
use attune::train::contrastive::{Contrast, embed};
use attune::train::cross_encoder::{LabelledTexts, ScoredBatch};
use attune::train::dropout::Dropout;
use attune::train::packing::pack_texts;
use attune::train::pair_loss::PairLoss;
use attune::train::recomputation::Recomputation;

/// Returns the texts of a family's triplets.
fn texts(reference: &Reference) -> Vec<Vec<u32>> {
    let mut tokens = reference.ids("texts").into_iter();
    reference.ids("lengths").iter().map(|length| tokens.by_ref().take(*length as usize).collect()).collect()
}

fn pairs(texts: &[Vec<u32>]) -> Vec<Vec<Vec<u32>>> {
    texts.chunks(3).map(<[_]>::to_vec).collect()
}

struct Case {
    config: ModelConfig,
    form: VectorForm,
    decoder: Decoder,
    adapter: Adapter,
    reference: Reference,
}

fn case(family: &str) -> Case {
    let (config, decoder) = load(family, &device());
    let adapter = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
    Case {
        form: VectorForm::of_model(&config),
        config,
        decoder,
        adapter,
        reference: Reference::read(family, "peft/triplets.safetensors"),
    }
}

impl Case {
    fn batch<'a>(&'a self, pairs: &'a [Vec<Vec<u32>>], scale: f64, budget: usize) -> Contrast<'a> {
        Contrast {
            form: &self.form,
            pairs,
            unpooled: [0; 2],
            loss: PairLoss::Ranking { scale },
            budget,
            dropout: None,
            recomputation: Recomputation::None,
        }
    }

    fn embed(&self, batch: &PackedBatch) -> Vec<Vec<f64>> {
        embed(&self.decoder, &self.form, Some(&self.adapter), batch, None, YieldPolicy::default()).unwrap()
    }

    fn run(&self, pairs: &[Vec<Vec<u32>>], budget: usize, dropout: Option<Dropout>) -> (LossReport, Vec<LoraLayer>) {
        let batch = Contrast { dropout, ..self.batch(pairs, 20.0, budget) };
        batch.loss_and_gradients(&self.decoder, &self.adapter, &mut || Ok(())).unwrap()
    }
}

fn flat(gradients: &[LoraLayer]) -> Vec<f32> {
    let pairs = gradients.iter().flat_map(|layer| Site::ALL.into_iter().filter_map(|site| layer.get(site).cloned()));
    pairs.flat_map(|pair| [floats(&pair.a), floats(&pair.b)]).flatten().collect()
}

#[test]
fn vectors_loss_and_gradients_equal_sentence_transformers_and_peft() {
    for family in TRAINED_FAMILIES {
        let case = case(family);
        let texts = texts(&case.reference);
        let places: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let packs = pack_texts(&places, 512);
        assert_eq!(packs.len(), 1);
        let vectors = case.embed(&packs[0].batch);
        let expected = case.reference.floats("vectors");
        let width = expected.len() / texts.len();
        for (vector, text) in vectors.iter().zip(&packs[0].units) {
            let vector: Vec<f32> = vector.iter().map(|value| *value as f32).collect();
            let difference = relative_difference(&vector, &expected[text * width..][..width]);
            assert!(difference <= 1e-4, "{family}: the vector of text {text} differs by {difference:e}");
        }
        // In one pack and in many.
        for budget in [512, 20] {
            let (report, gradients) = case.run(&pairs(&texts), budget, None);
            let (loss, expected) = (report.loss_sum / report.weight_sum, f64::from(case.reference.scalar("loss")));
            assert!((loss - expected).abs() <= 1e-4 * expected, "{family}: loss {loss} instead of {expected}");
            let accuracy = report.correct as f64 / report.targets as f64;
            assert!((accuracy - f64::from(case.reference.scalar("accuracy"))).abs() < 1e-6, "{family}: {accuracy}");
            for (index, layer) in gradients.iter().enumerate() {
                for module in case.config.modules_of(index) {
                    let (pair, name) = (layer.whole_gradient(module).unwrap().unwrap(), tensor_name(index, module));
                    for (tensor, part) in [(&pair.a, "lora_A"), (&pair.b, "lora_B")] {
                        let expected = case.reference.floats(&format!("grad.{name}.{part}.weight"));
                        let difference = relative_difference(&floats(tensor), &expected);
                        assert!(difference <= 1e-4, "{family}: gradient of {name}.{part} differs by {difference:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_batch_in_many_packs_is_the_batch_in_one() {
    let case = case("qwen3");
    let mut pairs = pairs(&texts(&case.reference));
    // One pair with two negatives, one without.
    pairs.push(vec![vec![5, 6, 7], vec![8, 9], vec![10], vec![11, 12, 13, 14]]);
    pairs.push(vec![vec![20, 21], vec![22]]);
    let (direct, gradients) = case.run(&pairs, 4096, None);
    assert_eq!((direct.targets, direct.weight_sum), (7, 7.0));
    for budget in [1, 16, 40, 100] {
        let (report, in_packs) = case.run(&pairs, budget, None);
        assert!((report.loss_sum - direct.loss_sum).abs() < 1e-5 * direct.loss_sum, "{budget}: {report:?}");
        let difference = relative_difference(&flat(&in_packs), &flat(&gradients));
        assert!(difference < 1e-5, "{budget}: gradients differ by {difference:e}");
        let mut asked = 0;
        let loss = case.batch(&pairs, 20.0, budget).loss(&case.decoder, Some(&case.adapter), &mut || {
            asked += 1;
            Ok(())
        });
        assert!(loss.unwrap() == report && asked > 1, "the loss alone is the same");
    }
}

#[test]
fn gradients_in_many_packs_are_the_differences_of_the_loss_under_dropout() {
    let case = case("llama");
    let pairs = pairs(&texts(&case.reference));
    for (budget, dropout) in
        [(4096, None), (20, None), (20, Some(Dropout { probability: 0.3, seed: 5, step: 2, batch: 0 }))]
    {
        // With a small scale the loss bends less sharply, and differences in f32 are more precise.
        let batch = Contrast { dropout, ..case.batch(&pairs, 3.0, budget) };
        let (_, gradients) = batch.loss_and_gradients(&case.decoder, &case.adapter, &mut || Ok(())).unwrap();
        assert_gradient(&case.adapter, &gradients, |adapter| {
            let report = batch.loss(&case.decoder, Some(adapter), &mut || Ok(())).unwrap();
            report.loss_sum / report.weight_sum
        });
    }
}

#[test]
fn gradients_of_every_form_of_vectors_are_the_differences_of_both_losses() {
    let mut case = case("qwen3");
    let pairs = pairs(&texts(&case.reference));
    let scores: Vec<f32> = (0..pairs.len()).map(|pair| [0.9, -0.2, 0.3][pair % 3]).collect();
    let width = case.config.hidden_size;
    let dense = |output: usize, input: usize, activation| {
        let values: Vec<f32> = (0..output * input).map(|i| (i as f32 * 1.3).cos() * 0.3).collect();
        DenseLayer::new(&Tensor::from_vec(values, (output, input), &Device::Cpu).unwrap(), None, activation).unwrap()
    };
    let forms = [
        (vec![Pooling::Last], Vec::new(), [0, 0]),
        (vec![Pooling::Mean], vec![dense(8, width, DenseActivation::Tanh)], [0, 0]),
        (vec![Pooling::WeightedMean, Pooling::MeanOfRoot], Vec::new(), [2, 1]),
    ];
    for (poolings, layers, unpooled) in forms {
        case.form = VectorForm { poolings, layers, is_normalized: false, ..case.form };
        for (loss, budget) in [(PairLoss::Ranking { scale: 3.0 }, 20), (PairLoss::Similarity { scores: &scores }, 4096)]
        {
            let batch = Contrast { unpooled, loss, ..case.batch(&pairs, 3.0, budget) };
            let (_, gradients) = batch.loss_and_gradients(&case.decoder, &case.adapter, &mut || Ok(())).unwrap();
            assert_gradient(&case.adapter, &gradients, |adapter| {
                let report = batch.loss(&case.decoder, Some(adapter), &mut || Ok(())).unwrap();
                report.loss_sum / report.weight_sum
            });
        }
    }
}

#[test]
fn gradients_of_a_frozen_head_are_the_differences_of_the_loss() {
    let case = case("llama");
    let width = case.config.hidden_size;
    let dense = |output: usize, input: usize, activation| {
        let values: Vec<f32> = (0..output * input).map(|i| (i as f32 * 0.7).sin()).collect();
        let weight = Tensor::from_vec(values, (output, input), &Device::Cpu).unwrap();
        HeadLayer::Dense(DenseLayer::new(&weight, None, activation).unwrap())
    };
    let classifier = Classifier {
        labels: vec!["LABEL_0".into()],
        pooling: Pooling::Last,
        layers: vec![dense(6, width, DenseActivation::Tanh), dense(1, 6, DenseActivation::Identity)],
        score: ScoreForm::Sigmoid,
        hidden_size: width,
    };
    let examples: Vec<_> = pairs(&texts(&case.reference))
        .into_iter()
        .zip([1.0, 0.0, 0.25].into_iter().cycle())
        .map(|(texts, label)| LabelledTexts { second: Some(texts[0].len()), tokens: texts[..2].concat(), label })
        .collect();
    let mut losses = Vec::new();
    for budget in [4096, 20] {
        let batch = ScoredBatch {
            classifier: &classifier,
            examples: &examples,
            budget,
            dropout: None,
            recomputation: Recomputation::None,
        };
        let (report, gradients) = batch.loss_and_gradients(&case.decoder, &case.adapter, &mut || Ok(())).unwrap();
        let (alone, numbers) = batch.loss(&case.decoder, Some(&case.adapter), &mut || Ok(())).unwrap();
        assert!((alone.loss_sum - report.loss_sum).abs() < 1e-6 && numbers.len() == examples.len());
        losses.push((report, flat(&gradients)));
        assert_gradient(&case.adapter, &gradients, |adapter| {
            let report = batch.loss(&case.decoder, Some(adapter), &mut || Ok(())).unwrap().0;
            report.loss_sum / report.weight_sum
        });
    }
    let difference = relative_difference(&losses[0].1, &losses[1].1);
    assert!(difference < 1e-5, "in one pack and in many, gradients differ by {difference:e}");
    assert!((losses[0].0.loss_sum - losses[1].0.loss_sum).abs() < 1e-5, "{losses:?}");
}

#[test]
fn training_has_the_vectors_that_the_server_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for family in TRAINED_FAMILIES {
        let model = whole_model(family);
        let case = case(family);
        let texts = texts(&case.reference);
        let places: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let adapter = Arc::new(case.adapter);
        let engine = NativeEngine::start(model.clone(), &EngineLimits::default(), Arc::default()).unwrap();
        for adapter in [None, Some(adapter)] {
            let request = EmbedRequest::of_texts("org".into(), texts.clone(), adapter.clone());
            let served = runtime.block_on(engine.embed(request)).unwrap();
            for pack in pack_texts(&places, 40) {
                let (decoder, pace) = (&model.decoder, YieldPolicy::default());
                let trained = embed(decoder, &model.vectors, adapter.as_deref(), &pack.batch, None, pace).unwrap();
                for (vector, text) in trained.iter().zip(&pack.units) {
                    let vector: Vec<f32> = vector.iter().map(|value| *value as f32).collect();
                    let difference = relative_difference(&vector, &served[*text]);
                    assert!(difference < 1e-5, "{family}: text {text} differs by {difference:e}");
                }
            }
        }
    }
}

#[test]
fn training_has_the_vectors_of_every_form_that_the_server_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let case = case("qwen3");
    let (texts, width) = (texts(&case.reference), case.config.hidden_size);
    let places: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let values: Vec<f32> = (0..6 * 3 * width).map(|i| (i as f32 * 1.3).cos()).collect();
    let weight = Tensor::from_vec(values, (6, 3 * width), &Device::Cpu).unwrap();
    let layer = DenseLayer::new(&weight, None, DenseActivation::Tanh).unwrap();
    let poolings = vec![Pooling::WeightedMean, Pooling::Max, Pooling::Last];
    let form = VectorForm { poolings, layers: vec![layer], pools_prompt: false, ..case.form };
    let mut model = whole_model("qwen3");
    Arc::get_mut(&mut model).unwrap().vectors = form.clone();
    let engine = NativeEngine::start(model.clone(), &EngineLimits::default(), Arc::default()).unwrap();
    let inputs = texts.iter().map(|text| EmbedInput { tokens: text.clone(), unpooled: 1, ..EmbedInput::default() });
    let request = EmbedRequest { inputs: inputs.collect(), ..EmbedRequest::of_texts("org".into(), Vec::new(), None) };
    let served = runtime.block_on(engine.embed(request)).unwrap();
    for mut pack in pack_texts(&places, 40) {
        pack.batch.unpooled = vec![1; pack.units.len()];
        let trained = embed(&model.decoder, &form, None, &pack.batch, None, YieldPolicy::default()).unwrap();
        for (vector, text) in trained.iter().zip(&pack.units) {
            let vector: Vec<f32> = vector.iter().map(|value| *value as f32).collect();
            let difference = relative_difference(&vector, &served[*text]);
            assert!(difference < 1e-5, "text {text} differs by {difference:e}");
        }
    }
}

#[test]
fn a_caller_may_stop_between_packs() {
    let case = case("llama");
    let pairs = pairs(&texts(&case.reference));
    let batch = case.batch(&pairs, 20.0, 20);
    for last in [0, 1, 9] {
        let mut asked = 0;
        let stopped = batch.loss_and_gradients(&case.decoder, &case.adapter, &mut || {
            asked += 1;
            if asked > last { Err(attune_train::Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(stopped, Err(attune_train::Error::Cancelled)), "after {last}");
    }
}
