//! The engine under load, disconnects, overload and broken steps, over an arithmetic model: its logits are a hash of
//! all tokens that its cache holds for the sequence, read back through the block table, so that a wrong block, a lost
//! row or a neighbour's influence changes the answer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arithmetic;
mod fairness;
mod logprobs;
mod random_load;
mod robustness;
mod scheduling;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::engine_support::byte_level;
use attune::engine::EngineLimits;
use attune::engine::native::NativeEngine;
use attune::engine::priority::Priority;
use attune::engine::step_model::{RowMatrix, StepModel, StepOutput, WantedRows};
use attune::engine::{Backend, EmbedRequest, Event, FinishReason, GenerateRequest, Sampling};
use attune::engine::{Error, Result};
use attune::model::decoder::SequenceRows;
use attune::model::kernels::{Draw, NO_TOKEN};
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::lora::{Adapter, AdapterLease};
use attune::model::tokenizer::Tokenizer;
use attune::model::vectors::{Pooling, VectorForm};
use futures::executor::block_on;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::UnboundedReceiver;

use arithmetic::*;

#[test]
fn a_mixed_batch_gives_each_request_what_it_gets_alone() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let requests: Vec<_> = (0..60).map(|_| random_request(&mut random)).collect();
    let alone = engine(&limits(1, 512, 1000));
    let expected: Vec<_> = requests.iter().map(|one| read(alone.generate(one.clone()).unwrap()).unwrap()).collect();
    for (max_sequences, max_step_tokens) in [(8, 16), (64, 300), (3, 2)] {
        let together = engine(&limits(max_sequences, max_step_tokens, 1000));
        let events: Vec<_> = requests.iter().map(|one| together.generate(one.clone()).unwrap()).collect();
        let inputs: Vec<Vec<u32>> = requests.iter().map(|one| one.prompt.to_vec()).collect();
        let vectors = block_on(together.embed(embed_request(inputs))).unwrap();
        assert_eq!(vectors.len(), requests.len());
        let answers: Vec<_> = events.into_iter().map(|events| read(events).unwrap()).collect();
        assert_eq!(answers, expected);
        wait_until_all_blocks_are_free(&together);
    }
    assert!(expected.iter().all(|(_, text, ..)| !text.contains("AA")));
    assert!(expected.iter().any(|(.., reason, _)| *reason == FinishReason::Stop), "no request met a stop");
    assert!(expected.iter().any(|(.., reason, _)| *reason == FinishReason::Length));
}

#[test]
fn embeddings_are_unit_means_and_equal_alone_and_together() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let inputs: Vec<Vec<u32>> = (0..80)
        .map(|_| (0..random.random_range(1..100)).map(|_| random.random_range(FIRST_PLAIN..256)).collect())
        .collect();
    let small_steps = engine(&limits(5, 7, 1));
    let together = block_on(small_steps.embed(embed_request(inputs.clone()))).unwrap();
    let alone = engine(&limits(1, 512, 1));
    for (input, vector) in inputs.iter().zip(&together) {
        let one = block_on(alone.embed(embed_request(vec![input.clone()]))).unwrap();
        assert_eq!(&one[0], vector);
        let mut mean = [0.0_f64; HIDDEN];
        let mut state = 0;
        for token in input {
            state = mix(state, u64::from(*token));
            mean.iter_mut().zip(values(state, HIDDEN)).for_each(|(sum, value)| *sum += f64::from(value));
        }
        let norm = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!(vector.iter().zip(mean).all(|(value, sum)| (f64::from(*value) - sum / norm).abs() < 1e-6));
    }
    let other = EmbedRequest { adapter: Some(adapter("a")), ..embed_request(inputs[..1].to_vec()) };
    assert_ne!(block_on(alone.embed(other)).unwrap()[0], together[0]);
    assert!(block_on(alone.embed(embed_request(Vec::new()))).unwrap().is_empty());
    wait_until_all_blocks_are_free(&small_steps);
}

#[test]
fn a_thousand_lost_clients_leave_no_block_and_disturb_nobody() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let steady = random_request(&mut random);
    let engine = engine(&limits(8, 32, 2000));
    let expected = read(engine.generate(steady.clone()).unwrap()).unwrap();
    let mut open = Vec::new();
    for round in 0..1000 {
        let mut events = engine.generate(random_request(&mut random)).unwrap();
        if random.random_bool(0.3) {
            let inputs = vec![vec![FIRST_PLAIN; random.random_range(1..60)]; 3];
            drop(engine.embed(embed_request(inputs)));
        }
        match random.random_range(0..3) {
            // The client leaves before, between or after some tokens.
            0 => drop(events),
            1 => drop((0..random.random_range(0..5)).map_while(|_| events.blocking_recv()).count()),
            _ => open.push(events),
        }
        if open.len() > 10 {
            open.swap_remove(random.random_range(0..open.len()));
        }
        if round % 100 == 0 {
            assert_eq!(read(engine.generate(steady.clone()).unwrap()).unwrap(), expected);
        }
    }
    drop(open);
    wait_until_all_blocks_are_free(&engine);
}

#[test]
fn a_full_queue_answers_overloaded_and_takes_requests_again_later() {
    let gate = Arc::new(Gate::default());
    gate.set(true);
    let engine = engine_with(&limits(1, 64, 3), &gate, Arc::default());
    let first = engine.generate(request(&[5], 2)).unwrap();
    gate.wait_for_a_step();
    let waiting: Vec<_> = (0..3).map(|_| engine.generate(request(&[5], 2)).unwrap()).collect();
    let refused = engine.generate(request(&[5], 2)).unwrap_err();
    assert!(matches!(refused, Error::Overloaded { retry_after, .. } if retry_after >= Duration::from_secs(1)));
    let inputs = vec![vec![5]];
    assert!(matches!(block_on(engine.embed(embed_request(inputs))), Err(Error::Overloaded { .. })));
    gate.set(false);
    for events in waiting.into_iter().chain([first]) {
        read(events).unwrap();
    }
    read(engine.generate(request(&[5], 2)).unwrap()).unwrap();
}

#[test]
fn a_panicking_step_fails_its_requests_and_no_others() {
    let long: Vec<u32> = (0..60).map(|index| FIRST_PLAIN + index).collect();
    let plain = engine(&limits(4, 16, 100));
    let expected = read(plain.generate(request(&long, 20)).unwrap()).unwrap();
    let vector = block_on(plain.embed(embed_request(vec![long.clone()]))).unwrap();

    let gate = Arc::new(Gate::default());
    gate.set(true);
    let engine = engine_with(&limits(4, 16, 100), &gate, Arc::default());
    let held = engine.generate(request(&[7], 1)).unwrap();
    gate.wait_for_a_step();
    // All rows of the next step belong to the first request, which panics; the others have only been admitted.
    let bad = engine.generate(request(&[&[9; 15][..], &[PANIC]].concat(), 5)).unwrap();
    let embedding = engine.embed(embed_request(vec![long.clone()]));
    let good = engine.generate(request(&long, 20)).unwrap();
    gate.set(false);
    read(held).unwrap();
    assert!(matches!(read(bad), Err(Error::Internal(_))));
    assert_eq!(block_on(embedding).unwrap(), vector);
    assert_eq!(read(good).unwrap(), expected);
    // The engine goes on.
    assert_eq!(read(engine.generate(request(&long, 20)).unwrap()).unwrap(), expected);
    wait_until_all_blocks_are_free(&engine);
}

#[test]
fn a_request_for_which_the_device_has_no_memory_fails_alone() {
    let rig = rig(&limits(4, 64, 100), BLOCKS);
    let expected = read(rig.engine.generate(request(&[8, 9], 20)).unwrap()).unwrap();
    rig.faults.most_rows.store(10, Ordering::SeqCst);
    rig.gate.set(true);
    let small = rig.engine.generate(request(&[8, 9], 20)).unwrap();
    rig.gate.wait_for_a_step();
    let large = rig.engine.generate(request(&[9; 30], 20)).unwrap();
    rig.gate.set(false);
    assert!(matches!(read(large), Err(Error::Model(attune::model::Error::OutOfMemory))));
    assert_eq!(read(small).unwrap(), expected);
    assert_eq!(read(rig.engine.generate(request(&[8, 9], 20)).unwrap()).unwrap(), expected);
    wait_until_all_blocks_are_free(&rig.engine);
}

#[test]
fn a_lost_device_ends_the_engine_and_everything_in_it() {
    let rig = rig(&limits(4, 64, 100), BLOCKS);
    read(rig.engine.generate(request(&[8, 9], 3)).unwrap()).unwrap();
    rig.gate.set(true);
    let running = rig.engine.generate(request(&[8, 9], 20)).unwrap();
    rig.gate.wait_for_a_step();
    let waiting = rig.engine.generate(request(&[9, 9], 20)).unwrap();
    rig.faults.lost.store(true, Ordering::SeqCst);
    rig.gate.set(false);
    for events in [running, waiting] {
        assert!(matches!(read(events), Err(Error::Unavailable(_))));
    }
    // The engine's thread is about to end.
    while rig.engine.generate(request(&[8], 1)).is_ok() {
        std::thread::yield_now();
    }
    assert!(matches!(rig.engine.generate(request(&[8], 1)), Err(Error::Unavailable(_))));
}

#[test]
fn a_model_that_draws_itself_gives_the_same_answers() {
    let [plain, drawing] = [rig(&limits(4, 16, 100), BLOCKS), rig(&limits(4, 16, 100), BLOCKS)];
    drawing.faults.draws.store(true, Ordering::SeqCst);
    let samplings = [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling { seed: Some(1), ..Sampling::default() },
        Sampling { seed: Some(2), temperature: 0.3, ..Sampling::default() },
        // These draws need the logits.
        Sampling { seed: Some(3), top_p: 0.5, ..Sampling::default() },
        Sampling { seed: Some(4), frequency_penalty: 1.0, ..Sampling::default() },
        Sampling { seed: Some(5), logit_bias: [(9, 3.0)].into(), ..Sampling::default() },
    ];
    let requests = || {
        let sampled =
            samplings.iter().map(|sampling| GenerateRequest { sampling: sampling.clone(), ..request(&[8, 9, 7], 20) });
        sampled.chain([GenerateRequest { logprobs: Some(1), ..request(&[7, 9], 20) }])
    };
    let answers = |rig: &Rig| {
        let waiting: Vec<_> = requests().map(|request| rig.engine.generate(request).unwrap()).collect();
        waiting.into_iter().map(|events| read(events).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(answers(&drawing), answers(&plain));
    // A step that fails is repeated by halves, with the same draws: first the step of the lone request, then the first
    // step of all the others.
    let expected = answers(&plain);
    drawing.gate.set(true);
    let alone = drawing.engine.generate(request(&[7], 1)).unwrap();
    drawing.gate.wait_for_a_step();
    let waiting: Vec<_> = requests().map(|request| drawing.engine.generate(request).unwrap()).collect();
    drawing.faults.failing_steps.store(2, Ordering::SeqCst);
    drawing.gate.set(false);
    assert!(read(alone).is_err());
    assert_eq!(waiting.into_iter().map(|events| read(events).unwrap()).collect::<Vec<_>>(), expected);
    assert!(matches!(read(drawing.engine.generate(request(&[8, BROKEN], 20)).unwrap()), Err(Error::Internal(_))));
}

#[test]
fn broken_logits_fail_one_request_of_the_batch() {
    let gate = Arc::new(Gate::default());
    let engine = engine_with(&limits(4, 64, 100), &gate, Arc::default());
    let expected = read(engine.generate(request(&[8, 9], 20)).unwrap()).unwrap();
    gate.set(true);
    let good = engine.generate(request(&[8, 9], 20)).unwrap();
    let bad = engine.generate(request(&[8, BROKEN], 20)).unwrap();
    gate.set(false);
    assert!(matches!(read(bad), Err(Error::Internal(_))));
    assert_eq!(read(good).unwrap(), expected);
}

#[test]
fn requests_that_cannot_run_are_refused_at_once() {
    let engine = engine(&limits(4, 64, 100));
    let refused = |prompt: &[u32], max_tokens| engine.generate(request(prompt, max_tokens)).unwrap_err();
    let limit = refused(&[5; 200], 57);
    assert!(matches!(limit, Error::ContextLength { limit: CONTEXT, prompt: 200, completion: 57 }));
    assert!(matches!(refused(&[], 5), Error::EmptyPrompt));
    assert!(matches!(refused(&[5, 257], 5), Error::UnknownToken { id: 257, .. }));
    let embed = |inputs| block_on(engine.embed(embed_request(inputs))).unwrap_err();
    assert!(matches!(embed(vec![vec![5], vec![]]), Error::EmptyPrompt));
    assert!(matches!(embed(vec![vec![5; 257]]), Error::ContextLength { .. }));
    // The context can be filled to its end, and a request for 0 tokens is possible.
    assert_eq!(read(engine.generate(request(&[5; 200], 56)).unwrap()).unwrap().3, 56);
    let nothing = read(engine.generate(request(&[5], 0)).unwrap()).unwrap();
    assert_eq!(nothing, (vec![], String::new(), FinishReason::Length, 0));
}

#[test]
fn an_end_token_counts_but_does_not_show() {
    let engine = engine(&limits(4, 64, 100));
    let (tokens, ..) = read(engine.generate(request(&[40], 12)).unwrap()).unwrap();
    let mut ends = request(&[40], 12);
    let stop = tokens[5];
    ends.stop_tokens = vec![stop];
    let first = tokens.iter().position(|token| *token == stop).unwrap();
    let (shown, _, reason, completion_tokens) = read(engine.generate(ends).unwrap()).unwrap();
    assert_eq!(shown, tokens[..first]);
    assert_eq!((reason, completion_tokens), (FinishReason::Stop, first + 1));
}

#[test]
fn the_trainer_waits_while_requests_run_and_dropping_the_engine_ends_them() {
    let (gate, priority) = (Arc::new(Gate::default()), Arc::new(Priority::default()));
    gate.set(true);
    let engine = engine_with(&limits(4, 64, 100), &gate, priority.clone());
    let events = engine.generate(request(&[5], 100)).unwrap();
    gate.wait_for_a_step();
    let before = Instant::now();
    priority.yield_to_requests(Duration::from_millis(20));
    assert!(before.elapsed() >= Duration::from_millis(20), "requests run, yet the trainer did not wait");
    let dropping = std::thread::spawn(move || drop(engine));
    gate.set(false);
    dropping.join().unwrap();
    match read(events) {
        Ok((.., completion_tokens)) => assert_eq!(completion_tokens, 100),
        Err(error) => assert!(matches!(error, Error::Unavailable(_)), "{error}"),
    }
    // The thread has ended, so it no longer holds the trainer back.
    priority.yield_to_requests(Duration::MAX);
}
