//! Failures in a step or beside it reach the request at fault and no other.

use super::*;

/// Returns healthy requests of several generations with the answer that each gets alone.
fn healthy() -> Vec<(GenerateRequest, Answer)> {
    let alone = engine(&limits(1, 512, 100));
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let requests = (0..10).map(|_| random_request(&mut random));
    requests.map(|one| (one.clone(), read(alone.generate(one).unwrap()).unwrap())).collect()
}

/// Puts all requests into one step: another request holds the engine until all have arrived.
fn together(rig: &Rig, requests: Vec<GenerateRequest>) -> Vec<UnboundedReceiver<Event>> {
    rig.gate.set(true);
    let first = rig.engine.generate(request(&[7], 1)).unwrap();
    rig.gate.wait_for_a_step();
    let events = requests.into_iter().map(|one| rig.engine.generate(one).unwrap()).collect();
    rig.gate.set(false);
    read(first).unwrap();
    events
}

#[test]
fn only_those_that_cannot_be_computed_fail() {
    for culprit in [PANIC, POISON] {
        let rig = rig(&limits(16, 2000, 100), BLOCKS * 2);
        let healthy = healthy();
        let mut requests: Vec<_> = healthy.iter().map(|(request, _)| request.clone()).collect();
        let mut bad = request(&[9, culprit, 9], 5);
        bad.adapter = Some(adapter("a"));
        requests.insert(3, bad.clone());
        requests.insert(8, request(&[&[9; 40][..], &[culprit]].concat(), 5));
        let mut events = together(&rig, requests);
        for place in [8, 3] {
            assert!(matches!(read(events.remove(place)), Err(Error::Internal(_))));
        }
        for (events, (_, expected)) in events.into_iter().zip(&healthy) {
            assert_eq!(&read(events).unwrap(), expected);
        }
        // The engine goes on as before.
        for (request, expected) in &healthy {
            assert_eq!(&read(rig.engine.generate(request.clone()).unwrap()).unwrap(), expected);
        }
        wait_until_all_blocks_are_free(&rig.engine);
    }
}

#[test]
fn a_failure_that_passes_costs_a_batch_nothing() {
    let rig = rig(&limits(16, 2000, 100), BLOCKS);
    let healthy = healthy();
    rig.gate.set(true);
    let events: Vec<_> = healthy.iter().map(|(request, _)| rig.engine.generate(request.clone()).unwrap()).collect();
    rig.faults.failing_steps.store(1, Ordering::SeqCst);
    rig.gate.set(false);
    let outcomes: Vec<_> = events.into_iter().map(read).collect();
    // If the first one had been alone in the failing step, it would be the culprit.
    assert!(outcomes[1..].iter().zip(&healthy[1..]).all(|(outcome, (_, alone))| outcome.as_ref().unwrap() == alone));
    wait_until_all_blocks_are_free(&rig.engine);
}

#[test]
fn a_lost_cache_is_not_found_again() {
    let rig = rig(&limits(4, 512, 100), BLOCKS);
    let prompt: Vec<u32> = (0..64).map(|index| FIRST_PLAIN + index).collect();
    let (answer, _) = read_cached(rig.engine.generate(request(&prompt, 5)).unwrap()).unwrap();
    assert_eq!(read_cached(rig.engine.generate(request(&prompt, 5)).unwrap()).unwrap(), (answer.clone(), 48));
    assert!(read(rig.engine.generate(request(&[POISON], 5)).unwrap()).is_err());
    assert_eq!(read_cached(rig.engine.generate(request(&prompt, 5)).unwrap()).unwrap(), (answer, 0));
}

#[test]
fn a_panic_of_the_loop_fails_what_is_in_flight_and_the_engine_serves_on() {
    let rig = rig(&limits(2, 64, 100), BLOCKS);
    let expected = read(rig.engine.generate(request(&[5; 40], 10)).unwrap()).unwrap();
    let inputs = || embed_request(vec![vec![5; 10]; 4]);
    let vectors = block_on(rig.engine.embed(inputs())).unwrap();
    for _ in 0..3 {
        rig.gate.set(true);
        let running = rig.engine.generate(request(&[5; 40], 10)).unwrap();
        rig.gate.wait_for_a_step();
        let waiting: Vec<_> = (0..5).map(|_| rig.engine.generate(request(&[6; 40], 10)).unwrap()).collect();
        let embedding = rig.engine.embed(inputs());
        rig.faults.panics.store(1, Ordering::SeqCst);
        rig.gate.set(false);
        let outcomes: Vec<_> = waiting.into_iter().chain([running]).map(read).collect();
        let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect::<Vec<_>>();
        assert!(!failed.is_empty() && failed.iter().all(|error| matches!(error, Error::Unavailable(_))), "{failed:?}");
        let embedded = block_on(embedding);
        assert!(embedded.as_ref().is_ok_and(|one| *one == vectors) || matches!(embedded, Err(Error::Unavailable(_))));
        assert_eq!(read(rig.engine.generate(request(&[5; 40], 10)).unwrap()).unwrap(), expected);
        assert_eq!(block_on(rig.engine.embed(inputs())).unwrap(), vectors);
        wait_until_all_blocks_are_free(&rig.engine);
    }
}

#[test]
fn every_way_to_end_gives_the_lease_back() {
    let limits = EngineLimits { max_queue_seconds: 1, max_request_seconds: 2, ..limits(2, 64, 8) };
    let rig = rig(&limits, BLOCKS);
    let lease = adapter("leased");
    let on =
        |prompt: &[u32], max_tokens| GenerateRequest { adapter: Some(lease.clone()), ..request(prompt, max_tokens) };
    let embed = |inputs| EmbedRequest { adapter: Some(lease.clone()), ..embed_request(inputs) };
    let balanced = |after: &str| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Arc::strong_count(&lease) > 1 {
            assert!(Instant::now() < deadline, "{} leases stay after {after}", Arc::strong_count(&lease) - 1);
            std::thread::yield_now();
        }
    };
    let engine = &rig.engine;
    read(engine.generate(on(&[5], 3)).unwrap()).unwrap();
    balanced("an answer");
    for events in engine.generate_all(vec![on(&[5], 3), on(&[5], 9), on(&[5], 0)]).unwrap() {
        read(events).unwrap();
    }
    balanced("many answers");
    block_on(engine.embed(embed(vec![vec![5; 20]; 3]))).unwrap();
    balanced("vectors");
    assert!(engine.generate(on(&[5; 300], 3)).is_err() && block_on(engine.embed(embed(vec![vec![]]))).is_err());
    balanced("a refusal");
    assert!(read(engine.generate(on(&[PANIC], 3)).unwrap()).is_err());
    balanced("a panic");
    assert!(read(engine.generate(on(&[5, BROKEN], 3)).unwrap()).is_err());
    balanced("broken logits");
    assert!(read(engine.generate(on(&[POISON], 3)).unwrap()).is_err());
    balanced("a lost cache");

    rig.gate.set(true);
    let running = engine.generate_all(vec![on(&[5], 50), on(&[6], 50)]).unwrap();
    rig.gate.wait_for_a_step();
    let waiting = engine.generate(on(&[7], 50)).unwrap();
    let gone = (engine.generate_all(vec![on(&[8], 50), on(&[9], 50)]).unwrap(), engine.embed(embed(vec![vec![5]; 2])));
    drop(gone);
    assert!(engine.generate_all((0..9).map(|_| on(&[5], 1)).collect()).is_err(), "the queue has room for 8");
    let submitted = Instant::now();
    while submitted.elapsed() <= Duration::from_millis(2010) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    rig.gate.set(false);
    for events in running {
        assert!(matches!(read(events), Err(Error::TimedOut { .. })));
    }
    assert!(read(waiting).is_err());
    balanced("requests that took too long, left, or found the queue full");

    rig.gate.set(true);
    let running = engine.generate(on(&[5], 50)).unwrap();
    rig.gate.wait_for_a_step();
    rig.faults.panics.store(1, Ordering::SeqCst);
    rig.gate.set(false);
    drop(read(running));
    balanced("a panic of the loop");

    rig.gate.set(true);
    let running = (engine.generate(on(&[5], 200)).unwrap(), engine.generate(on(&[6], 200)).unwrap());
    rig.gate.wait_for_a_step();
    let Rig { engine, gate, .. } = rig;
    let dropping = std::thread::spawn(move || drop(engine));
    gate.set(false);
    dropping.join().unwrap();
    drop(running);
    balanced("the end of the engine");
}

#[test]
fn whoever_leaves_while_waiting_for_blocks_again_is_gone() {
    let rig = rig(&limits(4, 64, 100), 9);
    rig.gate.set(true);
    let events: Vec<_> = (0..4).map(|_| rig.engine.generate(request(&[5; 20], 100)).unwrap()).collect();
    rig.gate.set(false);
    let mut events = events.into_iter();
    // All but one leave once the first has an answer that leaves the others no block.
    let mut first = events.next().unwrap();
    (0..80).for_each(|_| drop(first.blocking_recv().unwrap()));
    drop(events);
    let rest = read(first).unwrap();
    assert_eq!(rest.3, 100);
    wait_until_all_blocks_are_free(&rig.engine);
}
