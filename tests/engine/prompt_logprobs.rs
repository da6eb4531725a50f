//! The engine's log probabilities of a prompt equal those of transformers, for every family, however the prompt is cut
//! into steps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use crate::fixtures::{FAMILIES, Reference, greedy, max_difference, whole_model};
use attune::engine::EngineLimits;
use attune::engine::logprobs::TokenLogprobs;
use attune::engine::native::NativeEngine;
use attune::engine::{Backend as _, Event, GenerateRequest};

/// Largest absolute difference of a log probability.
const TOLERANCE: f32 = 1e-4;
const TOP: usize = 5;

/// Returns the prompt's log probabilities, and those of `max_tokens` greedy tokens.
fn score(engine: &NativeEngine, prompt: &[u32], max_tokens: usize) -> (Vec<TokenLogprobs>, Vec<TokenLogprobs>) {
    let request =
        GenerateRequest { logprobs: Some(TOP), prompt_logprobs: Some(TOP), ..greedy(prompt, max_tokens, None) };
    let mut events = engine.generate(request).unwrap();
    let (mut scored, mut drawn) = (Vec::new(), Vec::new());
    loop {
        match events.blocking_recv().unwrap() {
            Event::Prompt { tokens } => scored = tokens,
            Event::Token { logprobs, .. } => drawn.extend(logprobs),
            Event::Finished { .. } => return (scored, drawn),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_prompts_log_probabilities_equal_transformers_for_every_family() {
    for family in FAMILIES {
        let model = whole_model(family);
        let reference = Reference::read(family, "reference.safetensors");
        let (tokens, logprobs) = (reference.ids("input_ids"), reference.floats("logprobs"));
        let top_logprobs = reference.floats("top_logprobs");
        let top_ids: Vec<u32> = reference
            .tensor("top_ids")
            .flatten_all()
            .unwrap()
            .to_vec1::<i64>()
            .unwrap()
            .iter()
            .map(|id| *id as u32)
            .collect();
        for max_step_tokens in [512, 7] {
            let limits = EngineLimits { max_step_tokens: Some(max_step_tokens), ..EngineLimits::default() };
            let engine = NativeEngine::start(Arc::clone(&model), &limits, Arc::default()).unwrap();
            let (scored, drawn) = score(&engine, &tokens, 0);
            assert!(drawn.is_empty());
            assert_eq!(scored.iter().map(|one| one.id).collect::<Vec<_>>(), tokens[1..]);
            let own: Vec<f32> = scored.iter().map(|one| one.logprob).collect();
            let difference = max_difference(&own, &logprobs);
            assert!(difference <= TOLERANCE, "{family}: log probabilities differ by {difference:e}");
            let top: Vec<(u32, f32)> = scored.into_iter().flat_map(|one| one.top).collect();
            let values: Vec<f32> = top.iter().map(|(_, logprob)| *logprob).collect();
            let difference = max_difference(&values, &top_logprobs);
            assert!(difference <= TOLERANCE, "{family}: the highest log probabilities differ by {difference:e}");
            // If two tokens are further apart than the tolerance, their order is certain.
            for (place, (id, logprob)) in top.iter().enumerate() {
                let row = &top_logprobs[place / TOP * TOP..][..TOP];
                let twins = row.iter().filter(|other| (*other - logprob).abs() <= 2.0 * TOLERANCE).count();
                assert!(*id == top_ids[place] || twins > 1, "{family}: token {id} instead of {}", top_ids[place]);
            }
        }
    }
}

#[test]
fn a_drawn_tokens_log_probability_is_that_of_the_same_token_in_a_prompt() {
    let model = whole_model("llama");
    let engine = NativeEngine::start(model, &EngineLimits::default(), Arc::default()).unwrap();
    let reference = Reference::read("llama", "reference.safetensors");
    let prompt = &reference.ids("input_ids")[..12];
    let (_, drawn) = score(&engine, prompt, 24);
    assert_eq!(drawn.iter().map(|one| one.id).collect::<Vec<_>>(), reference.ids("greedy"));
    for one in &drawn {
        assert_eq!(one.top[0], (one.id, one.logprob), "the greedy token is the most probable one, to the bit");
    }
    let whole: Vec<u32> = prompt.iter().copied().chain(reference.ids("greedy")).collect();
    let (scored, _) = score(&engine, &whole, 0);
    let logprobs = |tokens: &[TokenLogprobs]| tokens.iter().map(|one| one.logprob).collect::<Vec<_>>();
    let difference = max_difference(&logprobs(&scored[11..]), &logprobs(&drawn));
    assert!(difference <= TOLERANCE, "log probabilities differ by {difference:e}");
}
