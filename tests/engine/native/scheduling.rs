//! Guarantees of a schedule: the answer is that of the request alone, even if blocks run out, prompts begin alike or
//! weights are swapped; limits on time hold, and so does the separation of organisations and generations.

use super::*;

fn without_prefix_cache(max_sequences: usize, max_step_tokens: usize, max_waiting: usize) -> EngineLimits {
    EngineLimits { prefix_cache: false, ..limits(max_sequences, max_step_tokens, max_waiting) }
}

/// Returns requests of a few organisations and generations whose prompts begin in a few ways.
pub(super) fn alike_requests(random: &mut ChaCha8Rng, count: usize) -> Vec<GenerateRequest> {
    let beginnings: Vec<Vec<u32>> =
        [20, 40, 64].map(|length| (0..length).map(|_| random.random_range(FIRST_PLAIN..256)).collect()).to_vec();
    let make = |_| {
        let mut request = random_request(random);
        let beginning = &beginnings[random.random_range(0..3)];
        let kept = random.random_range(0..=beginning.len());
        request.prompt = beginning[..kept].iter().chain(request.prompt.iter()).copied().take(100).collect();
        request.organization = ["x", "y"][random.random_range(0..2)].into();
        request
    };
    (0..count).map(make).collect()
}

#[test]
fn a_cache_of_a_few_blocks_gives_every_request_what_it_gets_alone() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let requests = alike_requests(&mut random, 80);
    let alone = engine(&without_prefix_cache(1, 512, 1000));
    let expected: Vec<_> = requests.iter().map(|one| read(alone.generate(one.clone()).unwrap()).unwrap()).collect();
    let inputs: Vec<Vec<u32>> = requests.iter().map(|one| one.prompt.to_vec()).collect();
    let vectors = block_on(alone.embed(embed_request(inputs.clone()))).unwrap();
    let needed: usize = inputs.iter().map(Vec::len).sum::<usize>() * 2
        + expected.iter().map(|(.., completion_tokens)| completion_tokens - 1).sum::<usize>();
    for (blocks, prefix_cache, max_step_tokens) in [(9, false, 64), (9, true, 64), (12, true, 16), (12, false, 300)] {
        let limits = EngineLimits { prefix_cache, ..limits(16, max_step_tokens, 1000) };
        let rig = rig(&limits, blocks);
        let events: Vec<_> = requests.iter().map(|one| rig.engine.generate(one.clone()).unwrap()).collect();
        let embedded = block_on(rig.engine.embed(embed_request(inputs.clone()))).unwrap();
        let answers: Vec<_> = events.into_iter().map(|events| read(events).unwrap()).collect();
        assert_eq!(answers, expected);
        assert_eq!(embedded, vectors);
        wait_until_all_blocks_are_free(&rig.engine);
        let computed = rig.rows.load(Ordering::SeqCst);
        assert!(prefix_cache || computed > needed, "nobody had to give up blocks: {computed} rows of {needed}");
    }
}

#[test]
fn a_request_that_fills_the_whole_cache_runs_beside_others() {
    let engine = rig(&limits(4, 64, 100), 8).engine;
    let full = read(engine.generate(request(&[5; 100], 100)).unwrap()).unwrap();
    assert_eq!(full.3, 8 * BLOCK_TOKENS - 100 + 1, "the answer ends where the cache does");
    let events: Vec<_> = (0..6).map(|_| engine.generate(request(&[5; 100], 100)).unwrap()).collect();
    for events in events {
        assert_eq!(read(events).unwrap(), full);
    }
    wait_until_all_blocks_are_free(&engine);
}

#[test]
fn what_was_computed_before_is_found_and_changes_nothing() {
    let rig = rig(&limits(4, 512, 100), BLOCKS);
    let prompt: Vec<u32> = (0..100).map(|index| FIRST_PLAIN + index).collect();
    let ask = |request: &GenerateRequest| {
        let before = rig.rows.load(Ordering::SeqCst);
        let (answer, cached) = read_cached(rig.engine.generate(request.clone()).unwrap()).unwrap();
        (answer, cached, rig.rows.load(Ordering::SeqCst) - before)
    };
    let base = request(&prompt, 20);
    let (first, cached, rows) = ask(&base);
    assert_eq!((cached, rows), (0, 100 + 19));
    assert_eq!(ask(&base), (first.clone(), 96, 4 + 19));

    // The next turn of a conversation finds the answer too.
    let next = request(&[&prompt[..], &first.0, &[9; 10]].concat(), 5);
    assert_eq!(ask(&next).1, 112);

    // Another organisation or generation finds nothing of it.
    let other = GenerateRequest { organization: "other".into(), ..base.clone() };
    assert_eq!(ask(&other), (first.clone(), 0, 119));
    assert_eq!(ask(&other).1, 96);
    for generation in ["old", "new"] {
        let adapted = GenerateRequest { adapter: Some(adapter(generation)), ..base.clone() };
        let (answer, cached, _) = ask(&adapted);
        assert_eq!(cached, 0, "{generation}");
        assert_eq!(ask(&adapted), (answer.clone(), 96, 4 + answer.3 - 1));
    }

    // A request for the prompt's log probabilities computes the prompt itself, and leaves it in the cache for others.
    let fresh: Vec<u32> = prompt.iter().rev().copied().collect();
    let scored = GenerateRequest { prompt_logprobs: Some(0), ..request(&fresh, 3) };
    assert_eq!((ask(&scored).1, ask(&scored).1), (0, 0));
    assert_eq!(ask(&request(&fresh, 3)).1, 96);

    let switched_off = engine(&without_prefix_cache(4, 512, 100));
    for _ in 0..2 {
        let (answer, cached) = read_cached(switched_off.generate(base.clone()).unwrap()).unwrap();
        assert_eq!((answer, cached), (first.clone(), 0));
    }
    wait_until_all_blocks_are_free(&switched_off);
    assert_eq!(switched_off.blocks().kept(), 0);
}

#[test]
fn answers_to_one_prompt_compute_it_once() {
    let rig = rig(&limits(8, 64, 100), BLOCKS);
    rig.gate.set(true);
    let prompt: Vec<u32> = (0..200).map(|index| FIRST_PLAIN + index).collect();
    let events: Vec<_> = (0..8).map(|_| rig.engine.generate(request(&prompt, 1)).unwrap()).collect();
    rig.gate.set(false);
    for events in events {
        read(events).unwrap();
    }
    // The last block of the prompt is not full, so each request computes its own.
    assert!(rig.rows.load(Ordering::SeqCst) <= 200 + 7 * 8 + 64, "{} rows", rig.rows.load(Ordering::SeqCst));
}

#[test]
fn swapping_weights_during_an_answer_changes_it_for_those_who_come_later_only() {
    let prompt: Vec<u32> = (0..50).map(|index| FIRST_PLAIN + index).collect();
    let on = |generation: &str| GenerateRequest { adapter: Some(adapter(generation)), ..request(&prompt, 60) };
    let alone = engine(&limits(1, 512, 10));
    let [old, new] = ["old", "new"].map(|generation| read(alone.generate(on(generation)).unwrap()).unwrap());
    assert_ne!(old, new);

    let engine = engine(&limits(4, 64, 100));
    let mut running = engine.generate(on("old")).unwrap();
    let begun: Vec<u32> = (0..5)
        .map(|_| match running.blocking_recv() {
            Some(Event::Token { id, .. }) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    let (answer, cached) = read_cached(engine.generate(on("new")).unwrap()).unwrap();
    assert_eq!((answer, cached), (new, 0));
    let (rest, ..) = read(running).unwrap();
    assert_eq!([begun, rest].concat(), old.0);
}

#[test]
fn a_request_that_has_begun_may_wait_for_its_other_answers() {
    let limits = EngineLimits { max_queue_seconds: 1, ..limits(1, 64, 100) };
    let rig = rig(&limits, BLOCKS);
    let requests: Vec<_> = (0..3).map(|index| request(&[5 + index], 30)).collect();
    let alone: Vec<_> = requests.iter().map(|one| read(rig.engine.generate(one.clone()).unwrap()).unwrap()).collect();
    rig.gate.set(true);
    let answers = rig.engine.generate_all(requests).unwrap();
    rig.gate.wait_for_a_step();
    let (waiting, submitted) = (rig.engine.generate(request(&[9], 5)).unwrap(), Instant::now());
    while submitted.elapsed() <= Duration::from_millis(1010) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    rig.gate.set(false);
    assert!(matches!(read(waiting), Err(Error::Overloaded { .. })));
    let answers: Vec<_> = answers.into_iter().map(|events| read(events).unwrap()).collect();
    assert_eq!(answers, alone);
    wait_until_all_blocks_are_free(&rig.engine);
}

#[test]
fn a_request_of_many_answers_is_queued_whole_or_refused_whole() {
    let gate = Arc::new(Gate::default());
    gate.set(true);
    let engine = engine_with(&limits(1, 64, 3), &gate, Arc::default());
    let first = engine.generate(request(&[5], 2)).unwrap();
    gate.wait_for_a_step();
    let two = || vec![request(&[5], 2), request(&[6], 2)];
    let waiting = engine.generate_all(two()).unwrap();
    assert!(matches!(engine.generate_all(two()), Err(Error::Overloaded { .. })));
    let last = engine.generate(request(&[5], 2)).expect("the refused one has left its places");
    // A request that cannot run makes the whole group fail.
    assert!(engine.generate_all(vec![request(&[5], 2), request(&[], 2)]).is_err());
    gate.set(false);
    for events in waiting.into_iter().chain([first, last]) {
        assert_eq!(read(events).unwrap().3, 2);
    }
    wait_until_all_blocks_are_free(&engine);
}

#[test]
fn who_waits_or_answers_too_long_is_told_so() {
    let limits = EngineLimits { max_queue_seconds: 1, max_request_seconds: 2, ..limits(1, 64, 100) };
    let rig = rig(&limits, BLOCKS);
    rig.gate.set(true);
    let submitted = Instant::now();
    let running = rig.engine.generate(request(&[5], 50)).unwrap();
    rig.gate.wait_for_a_step();
    let waiting = rig.engine.generate(request(&[5], 50)).unwrap();
    while submitted.elapsed() <= Duration::from_millis(2010) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let late = rig.engine.generate(request(&[5], 2)).unwrap();
    rig.gate.set(false);
    let error = read(running).unwrap_err();
    assert!(matches!(error, Error::TimedOut { limit } if limit == Duration::from_secs(2)), "{error}");
    // It waited as long as the other, but its own limit comes first or at the same step.
    let error = read(waiting).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. } | Error::Overloaded { .. }), "{error}");
    assert_eq!(read(late).unwrap().3, 2);
    wait_until_all_blocks_are_free(&rig.engine);
}
