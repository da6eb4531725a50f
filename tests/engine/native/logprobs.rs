//! Log probabilities of drawn tokens and of prompts, over the arithmetic model: however the prompt is cut into steps
//! and shared with other requests, each value is the log-softmax of the model's logits after the tokens before.

use attune::engine::logprobs::TokenLogprobs;
use attune::engine::stops::StopTexts;

use super::*;

/// Returns the model's log probabilities after `tokens`, by the definition.
fn expected(tokens: &[u32], id: u32, count: usize) -> TokenLogprobs {
    let state = tokens.iter().fold(0, |state, token| mix(state, u64::from(*token)));
    let logits: Vec<f32> =
        values(state, VOCABULARY).enumerate().map(|(id, value)| if id <= 2 { -50.0 } else { value }).collect();
    let normalizer = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    let logprob = |id: u32| (f64::from(logits[id as usize]) - normalizer) as f32;
    let mut ids: Vec<u32> = (0..VOCABULARY as u32).collect();
    ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    let top = ids[..count].iter().map(|id| (*id, logprob(*id))).collect();
    TokenLogprobs { id, logprob: logprob(id), top }
}

fn assert_close(one: &TokenLogprobs, expected: &TokenLogprobs) {
    assert_eq!(one.id, expected.id);
    assert!((one.logprob - expected.logprob).abs() < 1e-5, "{one:?} instead of {expected:?}");
    let ids = |one: &TokenLogprobs| one.top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(one), ids(expected));
    assert!(one.top.iter().zip(&expected.top).all(|(one, expected)| (one.1 - expected.1).abs() < 1e-5));
}

/// Log probabilities of the prompt and of the drawn tokens, reason of the end, and number of drawn tokens.
type Scored = (Option<Vec<TokenLogprobs>>, Vec<TokenLogprobs>, FinishReason, usize);

fn read_scored(mut events: UnboundedReceiver<Event>) -> Scored {
    let (mut prompt, mut drawn) = (None, Vec::new());
    loop {
        match events.blocking_recv().expect("the channel closed without an end") {
            Event::Prompt { tokens } => {
                assert!(drawn.is_empty() && prompt.is_none(), "the prompt comes once, before the first token");
                prompt = Some(tokens);
            }
            Event::Token { id, logprobs, .. } => {
                drawn.extend(logprobs);
                assert!(drawn.last().is_none_or(|last| last.id == id));
            }
            Event::Finished { reason, completion_tokens, .. } => return (prompt, drawn, reason, completion_tokens),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

#[test]
fn prompts_and_answers_have_the_models_log_probabilities_however_steps_are_cut() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut requests: Vec<_> = (0..40).map(|_| random_request(&mut random)).collect();
    for (index, request) in requests.iter_mut().enumerate() {
        request.adapter = None;
        request.stop = StopTexts::default();
        // Biased towards improbable tokens: the log probabilities must not show the bias.
        request.sampling.logit_bias = [(65, 50.0), (66, 49.0)].into();
        request.logprobs = [Some(0), Some(5), None][index % 3];
        request.prompt_logprobs = [None, Some(0), Some(20), Some(1)][index % 4];
    }
    for (max_sequences, max_step_tokens) in [(1, 512), (8, 16), (64, 300), (3, 2)] {
        let engine = engine(&limits(max_sequences, max_step_tokens, 1000));
        let events: Vec<_> = requests.iter().map(|one| engine.generate(one.clone()).unwrap()).collect();
        for (request, events) in requests.iter().zip(events) {
            let (prompt, drawn, _, completion_tokens) = read_scored(events);
            assert_eq!(prompt.is_some(), request.prompt_logprobs.is_some());
            if let (Some(prompt), Some(count)) = (&prompt, request.prompt_logprobs) {
                assert_eq!(prompt.len(), request.prompt.len() - 1);
                for (index, one) in prompt.iter().enumerate() {
                    let (before, after) = request.prompt.split_at(index + 1);
                    assert_close(one, &expected(before, after[0], count));
                }
            }
            let Some(count) = request.logprobs else {
                assert!(drawn.is_empty());
                continue;
            };
            assert_eq!(drawn.len(), completion_tokens);
            let mut tokens = request.prompt.to_vec();
            for one in &drawn {
                assert_close(one, &expected(&tokens, one.id, count));
                tokens.push(one.id);
            }
        }
        wait_until_all_blocks_are_free(&engine);
    }
}

#[test]
fn asking_for_log_probabilities_changes_no_token() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let engine = engine(&limits(8, 32, 1000));
    for _ in 0..20 {
        let mut request = random_request(&mut random);
        let plain = read(engine.generate(request.clone()).unwrap()).unwrap();
        (request.logprobs, request.prompt_logprobs) = (Some(3), Some(3));
        let (mut tokens, text, reason, count) = read(engine.generate(request.clone()).unwrap()).unwrap();
        // An end token is sent only if log probabilities are requested.
        tokens.retain(|token| !request.stop_tokens.contains(token));
        assert_eq!((tokens, text, reason, count), plain);
    }
}

#[test]
fn a_token_that_ends_the_answer_has_its_log_probability() {
    let engine = engine(&limits(4, 64, 100));
    let (tokens, ..) = read(engine.generate(request(&[40], 12)).unwrap()).unwrap();
    let mut ends = request(&[40], 12);
    ends.stop_tokens = vec![tokens[5]];
    ends.logprobs = Some(1);
    let (_, drawn, reason, completion_tokens) = read_scored(engine.generate(ends).unwrap());
    assert_eq!((reason, completion_tokens), (FinishReason::Stop, drawn.len()));
    assert_eq!(drawn.last().unwrap().id, tokens[5]);
}

#[test]
fn a_prompt_alone_is_scored_without_drawing() {
    let prompt: Vec<u32> = (0..70).map(|index| FIRST_PLAIN + index).collect();
    for max_step_tokens in [7, 512] {
        let engine = engine(&limits(4, max_step_tokens, 100));
        for length in [1, 2, 70] {
            let mut alone = request(&prompt[..length], 0);
            (alone.logprobs, alone.prompt_logprobs) = (Some(2), Some(2));
            let (scored, drawn, reason, completion_tokens) = read_scored(engine.generate(alone).unwrap());
            let scored = scored.unwrap();
            assert_eq!((scored.len(), drawn.len(), completion_tokens), (length - 1, 0, 0));
            assert_eq!(reason, FinishReason::Length);
            for (index, one) in scored.iter().enumerate() {
                assert_close(one, &expected(&prompt[..=index], prompt[index + 1], 2));
            }
        }
        // The whole context can be scored.
        let mut full = request(&[5; CONTEXT], 0);
        full.prompt_logprobs = Some(0);
        assert_eq!(read_scored(engine.generate(full).unwrap()).0.unwrap().len(), CONTEXT - 1);
        wait_until_all_blocks_are_free(&engine);
    }
}

#[test]
fn broken_logits_in_the_middle_of_a_prompt_fail_its_request_alone() {
    let gate = Arc::new(Gate::default());
    let engine = engine_with(&limits(4, 64, 100), &gate, Arc::default());
    gate.set(true);
    let mut bad = request(&[8, BROKEN, 9], 5);
    bad.prompt_logprobs = Some(0);
    let bad = engine.generate(bad).unwrap();
    // A request that does not read the row's logits is not disturbed.
    let good = engine.generate(request(&[8, BROKEN, 9], 5)).unwrap();
    gate.set(false);
    assert!(matches!(read(bad), Err(Error::Internal(_))));
    assert_eq!(read(good).unwrap().3, 5);
    wait_until_all_blocks_are_free(&engine);
}

#[test]
fn a_client_that_leaves_while_its_prompt_is_scored_frees_its_blocks() {
    let gate = Arc::new(Gate::default());
    let engine = engine_with(&limits(4, 8, 100), &gate, Arc::default());
    gate.set(true);
    let mut long = request(&[5; 100], 5);
    long.prompt_logprobs = Some(1);
    let events = engine.generate(long).unwrap();
    gate.wait_for_a_step();
    drop(events);
    gate.set(false);
    wait_until_all_blocks_are_free(&engine);
    assert_eq!(read(engine.generate(request(&[5], 3)).unwrap()).unwrap().3, 3);
}
