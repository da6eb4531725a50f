//! Models with two tables of rotary frequencies behind the engine: the table is chosen at admission, and keys in the
//! cache are found by requests of the same table alone.

use crate::fixtures::{Reference, greedy, whole_model};
use attune::engine::native::NativeEngine;
use attune::engine::{Backend as _, EngineLimits, Event};

const FAMILY: &str = "phi3_longrope";
/// The context that the fixture was first trained on.
const ORIGINAL: usize = 20;

/// Returns the answer's tokens, and the number of the prompt's tokens found in the cache.
fn ask(engine: &NativeEngine, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, usize) {
    let mut events = engine.generate(greedy(prompt, max_tokens, None)).unwrap();
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().unwrap() {
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished { cached_tokens, .. } => return (tokens, cached_tokens),
            other => panic!("{other:?}"),
        }
    }
}

fn engine(prefix_cache: bool) -> std::sync::Arc<NativeEngine> {
    let limits = EngineLimits { prefix_cache, ..EngineLimits::default() };
    NativeEngine::start(whole_model(FAMILY), &limits, std::sync::Arc::default()).unwrap()
}

#[test]
fn an_answer_that_may_pass_the_original_context_is_that_of_the_long_table_throughout() {
    let reference = Reference::read(FAMILY, "reference.safetensors");
    let prompt = &reference.ids("input_ids")[..12];
    let expected = reference.ids("greedy");
    assert!(prompt.len() < ORIGINAL && prompt.len() + expected.len() > ORIGINAL);
    assert_eq!(ask(&engine(true), prompt, expected.len()).0, expected);
}

#[test]
fn cached_keys_of_one_table_are_never_used_with_the_other() {
    let prompt = &Reference::read(FAMILY, "reference.safetensors").ids("input_ids")[..18];
    let (cached, uncached) = (engine(true), engine(false));
    // The last token drawn is never fed back: the first two of these answers stay within the original context.
    let answers = [2, ORIGINAL - prompt.len() + 1, ORIGINAL - prompt.len() + 2, 24];
    for (max_tokens, found) in answers.into_iter().zip([0, 16, 0, 16]) {
        let (tokens, reused) = ask(&cached, prompt, max_tokens);
        assert_eq!(reused, found, "{max_tokens} tokens");
        assert_eq!(tokens, ask(&uncached, prompt, max_tokens).0, "{max_tokens} tokens");
    }
    // Back below: the blocks of the first request are still there.
    assert_eq!(ask(&cached, prompt, 2).1, 16);
}
