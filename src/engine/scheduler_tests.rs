//! The scheduler's rules, one by one and all together under random load.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::adapters::Adapter;
use crate::engine::door::Door;
use crate::model::kv_cache::BLOCK_TOKENS;

#[derive(Debug, Clone)]
struct Client {
    number: usize,
    gone: Arc<AtomicBool>,
}

impl Client {
    fn new(number: usize) -> Self {
        Self { number, gone: Arc::default() }
    }

    fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

impl Owner for Client {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// A request of `prompt` tokens, each the client's number.
fn request(
    client: &Client,
    lane: Lane,
    prompt: usize,
    max_tokens: usize,
    adapter: Option<&str>,
) -> NewSequence<Client> {
    NewSequence {
        lane,
        prompt: vec![client.number as u32; prompt],
        max_tokens,
        adapter: adapter.map(|id| Arc::new(Adapter { id: id.into(), layers: Vec::new() })),
        ticket: Door::new(1, 1, 1).enter().unwrap(),
        owner: client.clone(),
    }
}

/// Clients of the step's parts with their number of rows.
fn parts(scheduler: &mut Scheduler<Client>, step: &Step) -> Vec<(usize, usize)> {
    let running = scheduler.running();
    step.parts.iter().map(|part| (running[part.sequence].owner.number, part.rows.len())).collect()
}

/// Composes and computes a step: answers get a token, embeddings end.
fn run_step(scheduler: &mut Scheduler<Client>) -> Vec<(usize, usize)> {
    let step = scheduler.compose();
    let shares = parts(scheduler, &step);
    scheduler.advance(&step);
    let mut ended = Vec::new();
    for part in step.parts.iter().filter(|part| part.complete) {
        match part.lane {
            Lane::Answer => scheduler.running()[part.sequence].push(9),
            Lane::Embed => ended.push(part.sequence),
        }
    }
    scheduler.remove(ended);
    shares
}

#[test]
fn prompts_are_cut_to_the_budget_and_answers_come_first() {
    let mut scheduler = Scheduler::new(8, 10, BlockAllocator::new(100));
    scheduler.submit(request(&Client::new(1), Lane::Answer, 4, 5, None));
    scheduler.submit(request(&Client::new(2), Lane::Answer, 17, 5, None));
    scheduler.submit(request(&Client::new(3), Lane::Answer, 3, 5, None));
    assert_eq!(run_step(&mut scheduler), [(1, 4), (2, 6)]);
    assert_eq!(run_step(&mut scheduler), [(1, 1), (2, 9)]);
    assert_eq!(run_step(&mut scheduler), [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(run_step(&mut scheduler), [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn answers_take_turns_where_the_budget_is_smaller_than_their_number() {
    let mut scheduler = Scheduler::new(8, 2, BlockAllocator::new(100));
    for number in 1..=3 {
        scheduler.submit(request(&Client::new(number), Lane::Answer, 1, 50, None));
    }
    let served: Vec<_> = (0..10).flat_map(|_| run_step(&mut scheduler)).collect();
    // The third prompt is admitted to a step only when an answer leaves; the first two are served without a gap.
    assert_eq!(served.iter().filter(|(number, _)| *number == 1).count(), 10);
    scheduler.remove(vec![0]);
    let served: Vec<_> = (0..10).flat_map(|_| run_step(&mut scheduler)).collect();
    for number in 2..=3 {
        assert_eq!(served.iter().filter(|(other, _)| *other == number).count(), 10, "{served:?}");
    }
}

#[test]
fn rows_of_an_adapter_stand_together_and_the_base_stands_first() {
    let mut scheduler = Scheduler::new(8, 100, BlockAllocator::new(100));
    for (number, adapter) in [(1, Some("b")), (2, None), (3, Some("a")), (4, Some("b")), (5, None)] {
        scheduler.submit(request(&Client::new(number), Lane::Answer, number, 2, adapter));
    }
    let step = scheduler.compose();
    assert_eq!(parts(&mut scheduler, &step), [(2, 2), (5, 5), (3, 3), (1, 1), (4, 4)]);
    let ids: Vec<_> = scheduler.rows(&step).iter().map(|rows| rows.adapter.map(|adapter| adapter.id.clone())).collect();
    assert_eq!(ids, [None, None, Some("a".into()), Some("b".into()), Some("b".into())]);
    assert_eq!(step.tokens, [2, 2, 5, 5, 5, 5, 5, 3, 3, 3, 1, 4, 4, 4, 4]);
}

#[test]
fn a_large_request_is_waited_for_not_overtaken() {
    let mut scheduler = Scheduler::new(8, 100, BlockAllocator::new(4));
    scheduler.submit(request(&Client::new(1), Lane::Answer, 3 * BLOCK_TOKENS, 1, None));
    scheduler.submit(request(&Client::new(2), Lane::Answer, BLOCK_TOKENS, 2 * BLOCK_TOKENS, None));
    scheduler.submit(request(&Client::new(3), Lane::Answer, 1, 1, None));
    assert_eq!(run_step(&mut scheduler), [(1, 48)]);
    assert_eq!(scheduler.waiting_count(), 2);
    scheduler.remove(vec![0]);
    assert_eq!(run_step(&mut scheduler), [(2, 16), (3, 1)]);
}

#[test]
fn a_bulk_of_embeddings_does_not_keep_an_answer_waiting() {
    let mut scheduler = Scheduler::new(2, 100, BlockAllocator::new(100));
    for number in 0..50 {
        scheduler.submit(request(&Client::new(number), Lane::Embed, 10, 0, None));
    }
    assert_eq!(run_step(&mut scheduler), [(0, 10), (1, 10)]);
    scheduler.submit(request(&Client::new(99), Lane::Answer, 5, 5, None));
    let next = run_step(&mut scheduler);
    assert!(next.contains(&(99, 5)), "{next:?}");
}

#[test]
fn who_has_gone_leaves_at_the_next_step_with_its_blocks() {
    let mut scheduler = Scheduler::new(1, 100, BlockAllocator::new(100));
    let (runs, waits) = (Client::new(1), Client::new(2));
    scheduler.submit(request(&runs, Lane::Answer, 20, 20, None));
    scheduler.submit(request(&waits, Lane::Answer, 20, 20, None));
    run_step(&mut scheduler);
    assert_eq!((scheduler.allocator().used(), scheduler.waiting_count()), (3, 1));
    runs.leave();
    waits.leave();
    assert!(scheduler.compose().parts.is_empty());
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.allocator().used(), 0);
}

#[test]
fn a_lost_cache_is_computed_again_and_no_token_is_lost() {
    let mut scheduler = Scheduler::new(4, 100, BlockAllocator::new(100));
    scheduler.submit(request(&Client::new(1), Lane::Answer, 5, 9, None));
    run_step(&mut scheduler);
    run_step(&mut scheduler);
    scheduler.forget_cache();
    let step = scheduler.compose();
    assert_eq!(step.tokens, [1, 1, 1, 1, 1, 9, 9]);
    assert!(step.parts[0].complete);
}

/// What the test knows of a request under random load.
struct Known {
    client: Client,
    lane: Lane,
    tokens_left: usize,
    ended: bool,
    waits: usize,
}

#[test]
fn under_random_load_blocks_balance_all_requests_end_and_none_starves() {
    const BLOCKS: usize = 24;
    const BUDGET: usize = 20;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut scheduler = Scheduler::new(6, BUDGET, BlockAllocator::new(BLOCKS));
    let mut known: BTreeMap<usize, Known> = BTreeMap::new();
    let mut admitted: [Vec<usize>; 2] = Default::default();
    let mut seen = HashSet::new();
    for round in 0..6000 {
        if round < 4000 && random.random_bool(0.3) {
            let client = Client::new(known.len());
            let lane = if random.random_bool(0.3) { Lane::Embed } else { Lane::Answer };
            let prompt = random.random_range(1..=8 * BLOCK_TOKENS);
            let max_tokens = if lane == Lane::Embed { 0 } else { random.random_range(1..=40) };
            let adapter = [None, Some("a"), Some("b")][random.random_range(0..3)];
            scheduler.submit(request(&client, lane, prompt, max_tokens, adapter));
            known.insert(client.number, Known { client, lane, tokens_left: max_tokens, ended: false, waits: 0 });
        }
        if random.random_bool(0.05) && !known.is_empty() {
            let one = &known[&random.random_range(0..known.len())];
            one.client.leave();
        }
        let step = scheduler.compose();
        let running: Vec<usize> = scheduler.running().iter().map(|sequence| sequence.owner.number).collect();
        for number in &running {
            if seen.insert(*number) {
                admitted[known[number].lane as usize].push(*number);
            }
        }
        check_step(&mut scheduler, &step, BUDGET);
        let has_rows: HashSet<usize> = step.parts.iter().map(|part| running[part.sequence]).collect();
        for number in &running {
            let one = known.get_mut(number).unwrap();
            one.waits = if has_rows.contains(number) { 0 } else { one.waits + 1 };
            assert!(one.waits < 400, "request {number} runs but got no rows for 400 steps");
        }
        scheduler.advance(&step);
        let mut ended = Vec::new();
        for part in step.parts.iter().filter(|part| part.complete) {
            let one = known.get_mut(&running[part.sequence]).unwrap();
            one.tokens_left = one.tokens_left.saturating_sub(1);
            if one.tokens_left == 0 || random.random_bool(0.02) {
                one.ended = true;
                ended.push(part.sequence);
            } else {
                scheduler.running()[part.sequence].push(5);
            }
        }
        scheduler.remove(ended);
        let allocator = scheduler.allocator();
        assert_eq!(allocator.free() + allocator.used(), BLOCKS);
    }
    assert!(scheduler.is_idle(), "{} wait, {} run", scheduler.waiting_count(), scheduler.running_count());
    assert_eq!(scheduler.allocator().used(), 0);
    assert!(known.values().all(|one| one.ended || one.client.is_gone()));
    assert!(known.len() > 1000 && known.values().filter(|one| one.ended).count() > 500);
    for lane in admitted {
        assert!(lane.is_sorted(), "admitted out of order");
    }
}

fn check_step(scheduler: &mut Scheduler<Client>, step: &Step, budget: usize) {
    assert!(step.tokens.len() <= budget);
    assert_eq!(step.parts.is_empty(), scheduler.running_count() == 0);
    let mut used = HashSet::new();
    let mut next_row = 0;
    let rows = scheduler.rows(step);
    for part in &rows {
        assert_eq!(part.rows.start, next_row, "rows leave a gap");
        assert!(!part.rows.is_empty());
        next_row = part.rows.end;
        assert!(part.blocks.len() * BLOCK_TOKENS >= part.start + part.rows.len(), "too few blocks");
        assert!(part.blocks.iter().all(|block| used.insert(*block)), "a block has two owners");
    }
    assert_eq!(next_row, step.tokens.len());
    assert!(
        rows.is_sorted_by_key(|part| part.adapter.map(|adapter| adapter.id.clone())),
        "an adapter's rows are apart"
    );
}
