//! The engine over real weights: what it finds in its cache changes no token, and broken weights break their own request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/fixtures.rs"]
mod fixtures;

use std::sync::Arc;

use attune::adapters::{Adapter, AdapterLease, LoraPair, Site};
use attune::config::Limits;
use attune::engine::native::NativeEngine;
use attune::engine::step_model::{BaseStepModel, StepModel, StepOutput, WantedRows};
use attune::engine::{Backend as _, Event};
use attune::model::decoder::SequenceRows;
use attune::model::tokenizer::Tokenizer;
use attune::{Error, Result};
use fixtures::{FAMILIES, Reference, TRAINED_FAMILIES, device, greedy, whole_model};
use tokio::sync::mpsc::UnboundedReceiver;

/// The tokens, and how many of the prompt were found in the cache.
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

/// A prompt of `length` tokens of the fixture's own.
fn prompt(family: &str, length: usize) -> Vec<u32> {
    Reference::read(family, "reference.safetensors").ids("input_ids").into_iter().cycle().take(length).collect()
}

fn adapter(family: &str) -> AdapterLease {
    let config = fixtures::load(family, &device()).0;
    Arc::new(Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device()))
}

#[test]
fn a_prompt_found_in_the_cache_gives_the_same_tokens() {
    for family in FAMILIES {
        let model = whole_model(family);
        let prompt = prompt(family, 50);
        let adapter = TRAINED_FAMILIES.contains(&family).then(|| adapter(family));
        for adapter in [None, adapter.as_ref()] {
            let engine = NativeEngine::start(model.clone(), &Limits::default(), Arc::default()).unwrap();
            let ask = || read(engine.generate(greedy(&prompt, 14, adapter)).unwrap()).unwrap();
            let (missed, found) = (ask(), ask());
            assert_eq!((missed.1, found.1), (0, 48), "{family}");
            assert_eq!(missed.0, found.0, "{family}");
        }
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
    let alone = NativeEngine::start(model.clone(), &Limits::default(), Arc::default()).unwrap();
    let expected: Vec<_> = requests.iter().map(|one| read(alone.generate(one.clone()).unwrap()).unwrap().0).collect();
    let model = SmallCache(BaseStepModel::new(model, &Limits::default()).unwrap());
    let engine = NativeEngine::start_with(model, &Limits::default(), Arc::default()).unwrap();
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
    let broken = Arc::new(Adapter { id: "broken".into(), layers });
    let engine = NativeEngine::start(model, &Limits::default(), Arc::default()).unwrap();
    let prompt = prompt("llama", 30);
    let run = |adapter: Option<&AdapterLease>| engine.generate(greedy(&prompt, 20, adapter)).unwrap();
    let expected = [read(run(None)).unwrap().0, read(run(Some(&healthy))).unwrap().0];
    for _ in 0..3 {
        let (base, bad, good) = (run(None), run(Some(&broken)), run(Some(&healthy)));
        assert!(matches!(read(bad), Err(Error::Internal(_))));
        assert_eq!([read(base).unwrap().0, read(good).unwrap().0], expected);
    }
}
