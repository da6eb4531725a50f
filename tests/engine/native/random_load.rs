//! Everything at once, from a fixed seed: whatever happens to other requests, an undisturbed request gets its answer,
//! and nothing is left behind.

use super::scheduling::alike_requests;
use super::*;

const MAX_WAITING: usize = 64;
const FEW_BLOCKS: usize = 12;

struct Open {
    /// Number in the list of requests; `None` if the request is to fail.
    number: Option<usize>,
    events: UnboundedReceiver<Event>,
}

impl Open {
    fn finish(self) -> (Option<usize>, Result<Answer>) {
        (self.number, read(self.events))
    }
}

#[test]
fn a_thousand_random_operations_leave_nothing_behind_and_disturb_nobody() {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut requests = alike_requests(&mut random, 40);
    for request in requests.iter_mut().step_by(5) {
        request.prompt_logprobs = Some(2);
    }
    let leases: Vec<AdapterLease> = requests.iter().filter_map(|one| one.adapter.clone()).collect();
    let holders: Vec<usize> = leases.iter().map(Arc::strong_count).collect();
    let alone = engine(&EngineLimits { prefix_cache: false, ..limits(1, 512, 1000) });
    let expected: Vec<_> = requests.iter().map(|one| read(alone.generate(one.clone()).unwrap()).unwrap()).collect();
    let inputs = vec![vec![30; 50], vec![31; 20]];
    let vectors = block_on(alone.embed(embed_request(inputs.clone()))).unwrap();

    let rig = rig(&limits(6, 48, MAX_WAITING), FEW_BLOCKS);
    let engine = &rig.engine;
    let (mut open, mut embeddings) = (Vec::new(), Vec::new());
    let (mut answered, mut refused, mut failed, mut injected) = (0, 0, 0, 0);
    let mut check = |one: Open| match one.finish() {
        (Some(number), Ok(answer)) => {
            assert_eq!(answer, expected[number], "request {number}");
            answered += 1;
        }
        (Some(_), Err(Error::Internal(message))) => {
            assert!(message.contains("a failure that a test asked for"), "{message}");
            failed += 1;
        }
        (None, Err(Error::Internal(_))) => {}
        (number, outcome) => panic!("request {number:?}: {outcome:?}"),
    };
    for _ in 0..1000 {
        match random.random_range(0..100) {
            operation @ 0..50 => {
                let number = (operation < 44).then(|| random.random_range(0..requests.len()));
                let request = match number {
                    Some(number) => requests[number].clone(),
                    None if operation == 44 => request(&[&[9; 20][..], &[POISON]].concat(), 5),
                    None => request(&[&[9; 20][..], &[PANIC]].concat(), 5),
                };
                match engine.generate(request) {
                    Ok(events) => open.push(Open { number, events }),
                    Err(Error::Overloaded { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            // The request may be waiting, in its prompt, or answering.
            50..62 if !open.is_empty() => drop(open.swap_remove(random.random_range(0..open.len()))),
            62..70 => embeddings.push(engine.embed(embed_request(inputs.clone()))),
            70..73 if !embeddings.is_empty() => {
                drop(embeddings.swap_remove(random.random_range(0..embeddings.len())));
            }
            73..76 => {
                injected += 1;
                rig.faults.failing_steps.fetch_add(1, Ordering::SeqCst);
            }
            76..88 if !open.is_empty() => check(open.swap_remove(random.random_range(0..open.len()))),
            _ => {}
        }
    }
    let embedded: Vec<_> = embeddings.into_iter().map(block_on).collect();
    for one in open {
        check(one);
    }
    for outcome in embedded {
        match outcome {
            Ok(embedded) => assert_eq!(embedded, vectors),
            Err(Error::Overloaded { .. }) => {}
            Err(Error::Internal(message)) if message.contains("asked for") => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(answered > 100, "{answered} answers, {refused} refused");
    assert!(failed <= injected, "{failed} failed of {injected} failures");

    wait_until_all_blocks_are_free(engine);
    // Every place in the queue was given back: as many requests fit at once as ever.
    rig.faults.failing_steps.store(0, Ordering::SeqCst);
    let full: Vec<_> = (0..MAX_WAITING).map(|_| engine.generate(request(&[5], 2)).unwrap()).collect();
    for events in full {
        read(events).unwrap();
    }
    // All blocks that the cache keeps can be taken.
    let whole = vec![77; FEW_BLOCKS * BLOCK_TOKENS];
    assert_eq!(read(engine.generate(request(&whole, 1)).unwrap()).unwrap().3, 1);
    let deadline = Instant::now() + Duration::from_secs(30);
    while leases.iter().map(Arc::strong_count).ne(holders.iter().copied()) {
        assert!(Instant::now() < deadline, "a lease is never given back");
        std::thread::yield_now();
    }
}
