//! The engine over real weights: neither the cache nor other requests in the batch change a token or its log
//! probability, and broken weights fail only their own request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use crate::fixtures::{FAMILIES, Reference, TRAINED_FAMILIES, device, greedy, whole_model};
use attune::engine::EngineLimits;
use attune::engine::logprobs::TokenLogprobs;
use attune::engine::native::NativeEngine;
use attune::engine::step_model::{BaseStepModel, StepModel, StepOutput, WantedRows};
use attune::engine::{Backend as _, Event, GenerateRequest, Sampling};
use attune::engine::{Error, Result};
use attune::model::decoder::SequenceRows;
use attune::model::lora::{Adapter, AdapterLease, LoraPair, Site};
use attune::model::tokenizer::Tokenizer;
use attune::model::vectors::VectorForm;
use tokio::sync::mpsc::UnboundedReceiver;

/// Reads the tokens, and the number of the prompt's tokens found in the cache.
fn read(mut events: UnboundedReceiver<Event>) -> Result<(Vec<u32>, usize)> {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().unwrap() {
            Event::Prompt { .. } => panic!("nobody asked for the prompt"),
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished { cached_tokens, .. } => return Ok((tokens, cached_tokens)),
            Event::Failed(error) => return Err(error),
        }
    }
}

/// Returns a prompt of `length` tokens of the fixture's own.
fn prompt(family: &str, length: usize) -> Vec<u32> {
    Reference::read(family, "reference.safetensors").ids("input_ids").into_iter().cycle().take(length).collect()
}

fn adapter(family: &str) -> AdapterLease {
    let config = crate::fixtures::load(family, &device()).0;
    Arc::new(Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device()))
}

#[test]
fn a_prompt_found_in_the_cache_gives_the_same_tokens() {
    for family in FAMILIES {
        let model = whole_model(family);
        let prompt = prompt(family, 50);
        let adapter = TRAINED_FAMILIES.contains(&family).then(|| adapter(family));
        for adapter in [None, adapter.as_ref()] {
            let engine = NativeEngine::start(model.clone(), &EngineLimits::default(), Arc::default()).unwrap();
            let ask = || read(engine.generate(greedy(&prompt, 14, adapter)).unwrap()).unwrap();
            let (missed, found) = (ask(), ask());
            assert_eq!((missed.1, found.1), (0, 48), "{family}");
            assert_eq!(missed.0, found.0, "{family}");
        }
    }
}

/// Client's view of an answer: tokens, their log probabilities, and those of the prompt.
type Scored = (Vec<u32>, Vec<TokenLogprobs>, Vec<TokenLogprobs>);

/// Reads the answer, and the number of the prompt's tokens found in the cache.
fn read_scored(mut events: UnboundedReceiver<Event>) -> (Scored, usize) {
    let (mut ids, mut drawn, mut prompt) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match events.blocking_recv().unwrap() {
            Event::Prompt { tokens } => prompt = tokens,
            Event::Token { id, logprobs, .. } => {
                ids.push(id);
                drawn.extend(logprobs);
            }
            Event::Finished { cached_tokens, .. } => return ((ids, drawn, prompt), cached_tokens),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// Returns requests that draw at random, each with a seed, of the base and two adapters, whose prompts begin alike.
fn sampled_requests(family: &str) -> Vec<GenerateRequest> {
    let config = crate::fixtures::load(family, &device()).0;
    let reference = Reference::read(family, "peft/curve.safetensors");
    let trained: AdapterLease = Arc::new(reference.adapter("final.", &config, 2.0, &device()));
    let adapters = [None, Some(adapter(family)), Some(trained)];
    (0..12)
        .map(|index| GenerateRequest {
            sampling: Sampling {
                temperature: [1.0, 0.7, 1.5][index % 3],
                top_p: [1.0, 0.9][index % 2],
                top_k: [0, 30][index / 2 % 2],
                min_p: [0.0, 0.02][index / 3 % 2],
                repetition_penalty: [1.0, 1.2][index / 4 % 2],
                presence_penalty: 0.1,
                seed: Some(100 + index as u64),
                ..Sampling::default()
            },
            logprobs: Some(index % 4),
            prompt_logprobs: (index % 5 == 0).then_some(2),
            ..greedy(&prompt(family, 33 + index / 3), 12, adapters[index % 3].as_ref())
        })
        .collect()
}

#[test]
fn sampled_answers_are_the_same_alone_together_and_from_the_cache_with_their_log_probabilities() {
    for family in TRAINED_FAMILIES {
        let model = whole_model(family);
        let requests = sampled_requests(family);
        let one_by_one = EngineLimits { prefix_cache: false, max_sequences: Some(1), ..EngineLimits::default() };
        let alone = NativeEngine::start(model.clone(), &one_by_one, Arc::default()).unwrap();
        let ask = |one: &GenerateRequest| read_scored(alone.generate(one.clone()).unwrap());
        let expected: Vec<_> = requests.iter().map(|one| ask(one).0).collect();
        for max_step_tokens in [7, 512] {
            let limits = EngineLimits { max_step_tokens: Some(max_step_tokens), ..EngineLimits::default() };
            let engine = NativeEngine::start(model.clone(), &limits, Arc::default()).unwrap();
            for round in 0..3 {
                let events = engine.generate_all(requests.clone()).unwrap();
                for (index, (events, expected)) in events.into_iter().zip(&expected).enumerate() {
                    let (answer, cached) = read_scored(events);
                    assert_same(&answer, expected, &format!("{family}, request {index}, round {round}"));
                    let finds = requests[index].prompt_logprobs.is_none();
                    assert!(round == 0 || (cached == 32) == finds, "{cached} tokens were found");
                }
            }
        }
    }
}

/// Compares to the last bit on the CPU; on a GPU sums depend on the batch's shape.
#[track_caller]
fn assert_same(one: &Scored, other: &Scored, what: &str) {
    if !cfg!(feature = "cuda") {
        return assert_eq!(one, other, "{what}");
    }
    assert_eq!(one.0, other.0, "{what}");
    for (one, other) in one.1.iter().chain(&one.2).zip(other.1.iter().chain(&other.2)) {
        assert!(one.id == other.id && (one.logprob - other.logprob).abs() < 1e-4, "{what}: {one:?}, {other:?}");
    }
}

/// A model whose cache has room for little more than one request.
struct SmallCache(BaseStepModel);

impl StepModel for SmallCache {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.0.tokenizer()
    }

    fn vectors(&self) -> &VectorForm {
        self.0.vectors()
    }

    fn vocabulary_size(&self) -> usize {
        self.0.vocabulary_size()
    }

    fn context(&self) -> usize {
        self.0.context()
    }

    fn blocks(&self) -> usize {
        6
    }

    fn step(&mut self, tokens: &[u32], sequences: &[SequenceRows<'_>], wanted: &WantedRows) -> Result<StepOutput> {
        self.0.step(tokens, sequences, wanted)
    }

    fn is_intact(&self) -> bool {
        self.0.is_intact()
    }

    fn reset(&mut self) -> Result<()> {
        self.0.reset()
    }
}

#[test]
fn a_cache_too_small_for_all_changes_no_token() {
    let model = whole_model("llama");
    let adapter = adapter("llama");
    let requests: Vec<_> = (0..8)
        .map(|index| greedy(&prompt("llama", 20 + 3 * index), 25, (index % 2 == 0).then_some(&adapter)))
        .collect();
    let alone = NativeEngine::start(model.clone(), &EngineLimits::default(), Arc::default()).unwrap();
    let expected: Vec<_> = requests.iter().map(|one| read(alone.generate(one.clone()).unwrap()).unwrap().0).collect();
    let model = SmallCache(BaseStepModel::new(model, &EngineLimits::default()).unwrap());
    let engine = NativeEngine::start_with(model, &EngineLimits::default(), Arc::default()).unwrap();
    let events: Vec<_> = requests.iter().map(|one| engine.generate(one.clone()).unwrap()).collect();
    let answers: Vec<_> = events.into_iter().map(|events| read(events).unwrap().0).collect();
    assert_eq!(answers, expected);
}

#[test]
fn an_adapter_of_broken_numbers_fails_alone() {
    let model = whole_model("llama");
    let healthy = adapter("llama");
    let mut layers = healthy.layers.clone();
    for layer in &mut layers {
        let pair = layer.get(Site::Query).unwrap();
        let broken = (pair.b.zeros_like().unwrap() * f64::NAN).unwrap();
        let pair = LoraPair { a: pair.a.clone(), b: broken, scale: pair.scale };
        layer.set(Site::Query, pair);
    }
    let broken = Arc::new(Adapter::new("broken".into(), layers));
    let engine = NativeEngine::start(model, &EngineLimits::default(), Arc::default()).unwrap();
    let prompt = prompt("llama", 30);
    let run = |adapter: Option<&AdapterLease>| engine.generate(greedy(&prompt, 20, adapter)).unwrap();
    let expected = [read(run(None)).unwrap().0, read(run(Some(&healthy))).unwrap().0];
    for _ in 0..3 {
        let (base, bad, good) = (run(None), run(Some(&broken)), run(Some(&healthy)));
        assert!(matches!(read(bad), Err(Error::Internal(_))));
        assert_eq!([read(base).unwrap().0, read(good).unwrap().0], expected);
    }
}
