//! Organisations on one engine: who fills the queue shuts no other out, and answers whose places were taken for others
//! are those of each request alone.

use super::scheduling::alike_requests;
use super::*;

/// All that a client receives, as text.
fn everything(mut events: UnboundedReceiver<Event>) -> String {
    let (mut prompt, mut rest) = (String::new(), Vec::new());
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Prompt { tokens } => prompt = format!("{tokens:?}"),
            Event::Token { id, text, logprobs } => rest.push(format!("{id} {text} {logprobs:?}")),
            Event::Finished { text, reason, completion_tokens, .. } => {
                rest.push(format!("{text} {reason:?} {completion_tokens}"));
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    prompt + &rest.join("\n")
}

#[test]
fn answers_whose_places_others_take_are_those_of_each_alone() {
    let mut random = ChaCha8Rng::seed_from_u64(21);
    let mut requests = alike_requests(&mut random, 90);
    for (index, request) in requests.iter_mut().enumerate() {
        request.prompt_logprobs = (index % 4 == 0).then_some(2);
        request.logprobs = (index % 3 == 0).then_some(1);
        // The first half is of one organisation.
        request.organization = format!("{}", if index < 45 { 0 } else { index % 7 }).into();
    }
    let leases: Vec<AdapterLease> = requests.iter().filter_map(|one| one.adapter.clone()).collect();
    let holders: Vec<usize> = leases.iter().map(Arc::strong_count).collect();
    let alone = engine(&EngineLimits { prefix_cache: false, ..limits(1, 512, 1000) });
    let expected: Vec<_> = requests.iter().map(|one| everything(alone.generate(one.clone()).unwrap())).collect();
    let needed = |rig: &Rig| {
        for one in &requests {
            everything(rig.engine.generate(one.clone()).unwrap());
        }
        rig.rows.swap(0, Ordering::SeqCst)
    };
    for (places, step_tokens, blocks, prefix_cache) in [(4, 64, BLOCKS, false), (2, 48, 12, true), (16, 16, 9, true)] {
        let rig = rig(&EngineLimits { prefix_cache, ..limits(places, step_tokens, 1000) }, blocks);
        let one_by_one = needed(&rig);
        rig.gate.set(true);
        let first = rig.engine.generate_all(requests[..45].to_vec()).unwrap();
        rig.gate.wait_for_a_step();
        let others = requests[45..].iter().map(|one| rig.engine.generate(one.clone()).unwrap()).collect::<Vec<_>>();
        rig.gate.set(false);
        let answers: Vec<_> = first.into_iter().chain(others).map(everything).collect();
        assert_eq!(answers, expected);
        wait_until_all_blocks_are_free(&rig.engine);
        let computed = rig.rows.load(Ordering::SeqCst);
        assert!(prefix_cache || computed > one_by_one, "nobody gave a place up: {computed} rows of {one_by_one}");
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while leases.iter().map(Arc::strong_count).ne(holders.iter().copied()) {
        assert!(Instant::now() < deadline, "a lease is never given back");
        std::thread::yield_now();
    }
}

#[test]
fn an_organization_that_fills_the_queue_shuts_no_other_out() {
    let rig = rig(&limits(2, 64, 64), BLOCKS);
    rig.gate.set(true);
    let of = |organization: &str| GenerateRequest { organization: organization.into(), ..request(&[5; 20], 30) };
    let mut all = vec![rig.engine.generate(of("first")).unwrap()];
    rig.gate.wait_for_a_step();
    all.extend(rig.engine.generate_all(vec![of("bulk"); 64]).unwrap());
    assert!(matches!(rig.engine.generate(of("bulk")), Err(Error::Overloaded { .. })));
    for number in 0..10 {
        all.push(rig.engine.generate(of(&number.to_string())).unwrap());
        let inputs =
            EmbedRequest { organization: format!("vectors {number}").into(), ..embed_request(vec![vec![5; 9]; 3]) };
        drop(rig.engine.embed(inputs));
    }
    rig.gate.set(false);
    let answers: Vec<_> = all.into_iter().map(everything).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    wait_until_all_blocks_are_free(&rig.engine);
}
