//! The scheduler under load. A flood from one side keeps no other waiting. Under random load requests come, end and
//! leave, blocks run out, the cache is lost; each step's rows are checked against the content of a simulated cache.

use std::collections::{BTreeMap, HashMap};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;

#[test]
fn an_organization_that_floods_the_queue_keeps_no_other_waiting() {
    let mut scheduler = scheduler(4, 100, 200);
    for number in 0..500 {
        scheduler.submit(NewSequence { organization: "flood".into(), ..answer(number, 10, 20) });
    }
    run_step(&mut scheduler);
    scheduler.submit(NewSequence { organization: "single".into(), ..answer(999, 10, 20) });
    end(&mut scheduler, 0);
    let next = run_step(&mut scheduler);
    assert!(next.contains(&(999, 10)), "{next:?}");
}

#[test]
fn an_adapter_that_floods_the_queue_keeps_no_other_waiting() {
    let mut scheduler = scheduler(4, 100, 200);
    for number in 0..500 {
        scheduler.submit(request(&Client::new(number), Lane::Answer, 10, 20, Some("hot")));
    }
    run_step(&mut scheduler);
    scheduler.submit(request(&Client::new(998), Lane::Answer, 10, 20, Some("cold")));
    scheduler.submit(answer(999, 10, 20));
    end(&mut scheduler, 0);
    end(&mut scheduler, 1);
    let next = run_step(&mut scheduler);
    assert!(next.contains(&(998, 10)) && next.contains(&(999, 10)), "{next:?}");
}

#[test]
fn a_bulk_of_embeddings_does_not_keep_an_answer_waiting() {
    let mut scheduler = scheduler(2, 100, 100);
    for number in 0..50 {
        scheduler.submit(request(&Client::new(number), Lane::Embed, 10, 0, None));
    }
    assert_eq!(run_step(&mut scheduler), [(0, 10), (1, 10)]);
    scheduler.submit(answer(99, 5, 5));
    let next = run_step(&mut scheduler);
    assert!(next.contains(&(99, 5)), "{next:?}");
}

#[test]
fn prompts_that_waited_for_their_adapters_enter_a_few_adapters_at_a_time_beside_answers() {
    let mut scheduler = scheduler(32, 200, 200);
    let cold = |number: usize, rows: usize, adapter: usize| {
        request(&Client::new(number), Lane::Answer, rows, 50, Some(&format!("cold-{adapter}")))
    };
    // Nobody answers yet: all at once.
    for number in 0..5 {
        scheduler.submit(cold(number, 4, number));
    }
    assert_eq!(run_step(&mut scheduler).len(), 5);
    // Beside answers: the oldest, then the one that needs least, and whoever's adapter is in the step anyway.
    for (number, rows, adapter) in [(10, 9, 10), (11, 8, 11), (12, 4, 12), (13, 5, 13)] {
        scheduler.submit(cold(number, rows, adapter));
    }
    scheduler.submit(cold(14, 6, 0));
    scheduler.submit(answer(15, 30, 50));
    let prompts = |step: Vec<(usize, usize)>| {
        let mut prompts: Vec<_> = step.into_iter().filter(|(_, rows)| *rows > 1).map(|(number, _)| number).collect();
        prompts.sort_unstable();
        prompts
    };
    assert_eq!(prompts(run_step(&mut scheduler)), [10, 12, 14, 15]);
    assert_eq!(prompts(run_step(&mut scheduler)), [11, 13]);
    // Another organisation waits for none of them.
    for number in 20..25 {
        scheduler.submit(cold(number, 4, number));
    }
    scheduler.submit(NewSequence { organization: "other".into(), ..cold(30, 6, 30) });
    assert_eq!(prompts(run_step(&mut scheduler)), [20, 21, 30]);
}

/// State of a request under random load, as the test knows it.
struct Known {
    client: Client,
    lane: Lane,
    /// Tokens of the prompt and drawn tokens.
    tokens: Vec<u32>,
    left: usize,
    ended: bool,
}

#[test]
fn under_random_load_blocks_balance_all_requests_end_and_none_starves() {
    const BLOCKS: usize = 12;
    const BUDGET: usize = 20;
    const SEQUENCES: usize = 4;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut scheduler = scheduler(SEQUENCES, BUDGET, BLOCKS);
    let mut known: BTreeMap<usize, Known> = BTreeMap::new();
    // Token last written into each slot of the cache.
    let mut cache: HashMap<usize, u32> = HashMap::new();
    let (mut preemptions, mut reused) = (0, 0);
    for round in 0..16_000 {
        if round < 8000 && random.random_bool(0.14) {
            let client = Client::new(known.len());
            let lane = if random.random_bool(0.3) { Lane::Embed } else { Lane::Answer };
            let max_tokens = if lane == Lane::Embed { 0 } else { random.random_range(1..=60) };
            let adapter = [None, Some("a"), Some("b")][random.random_range(0..3)];
            let mut new = request(&client, lane, random.random_range(1..=6 * BLOCK_TOKENS), max_tokens, adapter);
            new.organization = ["x", "y"][random.random_range(0..2)].into();
            // Many prompts begin alike.
            new.prompt = vec![random.random_range(0..3); new.prompt.len()].into();
            known.insert(
                client.number,
                Known { client, lane, tokens: new.prompt.to_vec(), left: max_tokens, ended: false },
            );
            scheduler.submit(new);
        }
        if random.random_bool(0.02) && !known.is_empty() {
            known[&random.random_range(0..known.len())].client.leave();
        }
        if random.random_bool(0.002) {
            cache.clear();
            scheduler.lose_cache();
        }
        let step = compose(&mut scheduler);
        check_step(&mut scheduler, &step, BUDGET);
        let running: Vec<usize> = scheduler.running().iter().map(|sequence| sequence.owner.number).collect();
        assert!(running.len() <= SEQUENCES);
        for (part, rows) in step.parts.iter().zip(scheduler.rows(&step)) {
            let tokens = &known[&running[part.sequence]].tokens;
            let slot = |at: usize| rows.blocks[at / BLOCK_TOKENS] as usize * BLOCK_TOKENS + at % BLOCK_TOKENS;
            for at in 0..rows.start {
                assert_eq!(cache[&slot(at)], tokens[at], "the cache holds another's token");
            }
            for (at, row) in (rows.start..).zip(part.rows.clone()) {
                assert_eq!(step.tokens[row], tokens[at]);
                cache.insert(slot(at), tokens[at]);
            }
        }
        scheduler.advance(&step);
        let mut ended = Vec::new();
        for part in step.parts.iter().filter(|part| part.complete) {
            let one = known.get_mut(&running[part.sequence]).unwrap();
            one.left = one.left.saturating_sub(1);
            if one.left == 0 || random.random_bool(0.005) {
                one.ended = true;
                ended.push(part.sequence);
            } else {
                let token = random.random_range(0..3);
                one.tokens.push(token);
                scheduler.running()[part.sequence].push(token);
            }
        }
        scheduler.remove(ended);
        let happenings = scheduler.take_happenings();
        (preemptions, reused) = (preemptions + happenings.preemptions, reused + happenings.reused_tokens);
        let allocator = scheduler.allocator();
        assert_eq!(allocator.free() + allocator.used() + allocator.kept(), BLOCKS);
    }
    assert!(scheduler.is_idle(), "{} wait, {} run", scheduler.waiting_count(), scheduler.running_count());
    assert_eq!(scheduler.allocator().used(), 0);
    assert!(known.values().all(|one| one.ended || one.client.is_gone()));
    assert!(known.len() > 1000 && known.values().filter(|one| one.ended).count() > 500);
    assert!(known.values().any(|one| one.lane == Lane::Embed && one.ended));
    assert!(preemptions > 50 && reused > 500, "{preemptions} preemptions, {reused} tokens reused");
}

fn check_step(scheduler: &mut Scheduler<Client>, step: &Step, budget: usize) {
    assert!(step.tokens.len() <= budget);
    assert_eq!(step.parts.is_empty(), scheduler.running_count() == 0);
    let mut written = HashSet::new();
    let mut next_row = 0;
    let rows = scheduler.rows(step);
    for part in &rows {
        assert_eq!(part.rows.start, next_row, "rows leave a gap");
        assert!(!part.rows.is_empty());
        next_row = part.rows.end;
        let end = part.start + part.rows.len();
        assert!(part.blocks.len() * BLOCK_TOKENS >= end, "too few blocks");
        let mut blocks = part.blocks[part.start / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)].iter();
        assert!(blocks.all(|block| written.insert(*block)), "two write into one block");
    }
    assert_eq!(next_row, step.tokens.len());
    assert!(
        rows.is_sorted_by_key(|part| part.adapter.map(|adapter| adapter.id.clone())),
        "an adapter's rows are apart"
    );
}
