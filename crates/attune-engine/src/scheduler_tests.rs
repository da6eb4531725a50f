//! Tests of the scheduler's rules, one by one; `fairness` those between organisations, `load` all of them under load.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::admission::{Admission, Ticket};
use attune_model::kv_cache::BLOCK_TOKENS;
use attune_model::lora::Adapter;
use attune_model::rope::RopeTable;

#[path = "scheduler_background_tests.rs"]
mod background;
#[path = "scheduler_fairness_tests.rs"]
mod fairness;
#[path = "scheduler_load_tests.rs"]
mod load;

#[derive(Debug, Clone)]
struct Client {
    number: usize,
    lane: Lane,
    gone: Arc<AtomicBool>,
    reused: Arc<AtomicUsize>,
    restarts: Arc<AtomicUsize>,
}

impl Client {
    fn new(number: usize) -> Self {
        Self { number, lane: Lane::Answer, gone: Arc::default(), reused: Arc::default(), restarts: Arc::default() }
    }

    fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

impl Owner for Client {
    fn lane(&self) -> Lane {
        self.lane
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn needs_all_rows(&self) -> bool {
        false
    }

    fn reused(&mut self, tokens: usize) {
        self.reused.fetch_add(tokens, Ordering::Relaxed);
    }

    fn restarted(&mut self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }
}

fn ticket() -> Arc<Ticket> {
    Admission::new(1, 1, 1).enter(&"org".into()).unwrap()
}

/// Creates a request of `prompt` tokens, each the client's number.
fn request(
    client: &Client,
    lane: Lane,
    prompt: usize,
    max_tokens: usize,
    adapter: Option<&str>,
) -> NewSequence<Client> {
    NewSequence {
        organization: "org".into(),
        prompt: vec![client.number as u32; prompt].into(),
        max_tokens,
        adapter: adapter.map(|id| Arc::new(Adapter::new(id.into(), Vec::new()))),
        rope: RopeTable::Short,
        submitted: Instant::now(),
        ticket: ticket(),
        background: false,
        owner: Client { lane, ..client.clone() },
    }
}

fn answer(number: usize, prompt: usize, max_tokens: usize) -> NewSequence<Client> {
    request(&Client::new(number), Lane::Answer, prompt, max_tokens, None)
}

fn scheduler(max_sequences: usize, max_step_tokens: usize, blocks: usize) -> Scheduler<Client> {
    let limits = EngineLimits {
        max_sequences: Some(max_sequences),
        max_step_tokens: Some(max_step_tokens),
        ..EngineLimits::default()
    };
    Scheduler::new(&limits, BlockAllocator::new(blocks))
}

fn compose(scheduler: &mut Scheduler<Client>) -> Step {
    assert!(scheduler.sweep(Instant::now()).is_empty());
    scheduler.compose(Instant::now())
}

/// Returns the clients of the step's parts with their number of rows.
fn parts(scheduler: &mut Scheduler<Client>, step: &Step) -> Vec<(usize, usize)> {
    let running = scheduler.running();
    step.parts.iter().map(|part| (running[part.sequence].owner.number, part.rows.len())).collect()
}

/// Composes and computes a step: answers get a token, embeddings end.
fn run_step(scheduler: &mut Scheduler<Client>) -> Vec<(usize, usize)> {
    let step = compose(scheduler);
    let shares = parts(scheduler, &step);
    scheduler.advance(&step);
    let mut ended = Vec::new();
    for part in step.parts.iter().filter(|part| part.complete) {
        match scheduler.running()[part.sequence].owner.lane {
            Lane::Answer => scheduler.running()[part.sequence].push(9),
            Lane::Embed => ended.push(part.sequence),
        }
    }
    scheduler.remove(ended);
    shares
}

/// Ends the sequence of the client with this number.
fn end(scheduler: &mut Scheduler<Client>, number: usize) {
    let index = scheduler.running().iter().position(|sequence| sequence.owner.number == number).unwrap();
    scheduler.remove(vec![index]);
}

#[test]
fn answers_come_first_then_a_quarter_for_the_oldest_prompt_then_the_shortest() {
    let mut scheduler = scheduler(8, 12, 100);
    scheduler.submit(answer(1, 40, 5));
    assert_eq!(run_step(&mut scheduler), [(1, 12)]);
    scheduler.submit(answer(2, 20, 5));
    scheduler.submit(answer(3, 4, 5));
    assert_eq!(run_step(&mut scheduler), [(1, 3), (2, 5), (3, 4)]);
    assert_eq!(run_step(&mut scheduler), [(1, 3), (2, 8), (3, 1)]);
    assert_eq!(run_step(&mut scheduler), [(1, 4), (2, 7), (3, 1)]);
    assert_eq!(run_step(&mut scheduler), [(1, 10), (2, 1), (3, 1)]);
}

#[test]
fn short_prompts_without_end_do_not_stop_a_long_one() {
    let mut scheduler = scheduler(4, 8, 100);
    scheduler.submit(answer(0, 100, 1));
    for number in 1..200 {
        scheduler.submit(request(&Client::new(number), Lane::Embed, 8, 0, None));
        let shares = run_step(&mut scheduler);
        assert!(shares.iter().any(|(one, rows)| *one == 0 && *rows >= 2), "{shares:?}");
        if scheduler.running().iter().all(|sequence| sequence.owner.number != 0 || sequence.is_answering()) {
            return assert!(number < 60);
        }
    }
    panic!("the long prompt is never computed");
}

#[test]
fn answers_flow_without_a_gap_and_the_next_prompt_waits_for_one_to_end() {
    let mut scheduler = scheduler(8, 2, 100);
    for number in 1..=3 {
        scheduler.submit(answer(number, 1, 50));
    }
    let served: Vec<_> = (0..10).flat_map(|_| run_step(&mut scheduler)).collect();
    for number in 1..=2 {
        assert_eq!(served.iter().filter(|(other, _)| *other == number).count(), 10, "{served:?}");
    }
    end(&mut scheduler, 1);
    let served: Vec<_> = (0..10).flat_map(|_| run_step(&mut scheduler)).collect();
    for number in 2..=3 {
        assert_eq!(served.iter().filter(|(other, _)| *other == number).count(), 10, "{served:?}");
    }
}

#[test]
fn rows_of_an_adapter_stand_together_and_the_base_stands_first() {
    let mut scheduler = scheduler(8, 100, 100);
    for (number, adapter) in [(1, Some("b")), (2, None), (3, Some("a")), (4, Some("b")), (5, None)] {
        scheduler.submit(request(&Client::new(number), Lane::Answer, number, 2, adapter));
    }
    let step = compose(&mut scheduler);
    let shares = parts(&mut scheduler, &step);
    assert_eq!(shares.iter().map(|(number, _)| *number).collect::<HashSet<_>>().len(), 5);
    let ids: Vec<_> = scheduler.rows(&step).iter().map(|rows| rows.adapter.map(|adapter| adapter.id.clone())).collect();
    assert_eq!(ids, [None, None, Some("a".into()), Some("b".into()), Some("b".into())]);
    let rows: Vec<u32> = shares.iter().flat_map(|(number, rows)| vec![*number as u32; *rows]).collect();
    assert_eq!(step.tokens, rows);
}

#[test]
fn halves_of_a_step_have_its_rows() {
    let mut scheduler = scheduler(8, 100, 100);
    for number in 1..=5 {
        scheduler.submit(answer(number, number, 2));
    }
    let step = compose(&mut scheduler);
    let (first, second) = step.halves();
    assert_eq!((first.parts.len(), second.parts.len()), (2, 3));
    assert_eq!([first.tokens.clone(), second.tokens.clone()].concat(), step.tokens);
    for half in [first, second] {
        for part in &half.parts {
            let whole = step.parts.iter().find(|other| other.sequence == part.sequence).unwrap();
            assert_eq!(half.tokens[part.rows.clone()], step.tokens[whole.rows.clone()]);
            assert_eq!(part.complete, whole.complete);
        }
    }
}

#[test]
fn a_request_is_admitted_for_what_it_has_and_not_for_all_that_it_may_draw() {
    let mut scheduler = scheduler(8, 100, 6);
    for number in 1..=3 {
        scheduler.submit(answer(number, BLOCK_TOKENS, 5 * BLOCK_TOKENS));
    }
    assert_eq!(run_step(&mut scheduler).len(), 3, "three of one block, and one to spare for each that runs");
    assert_eq!(scheduler.allocator().used(), 3);
    run_step(&mut scheduler);
    assert_eq!(scheduler.allocator().used(), 6);
}

#[test]
fn a_large_request_is_waited_for_not_overtaken() {
    let mut scheduler = scheduler(8, 100, 4);
    scheduler.submit(answer(1, 3 * BLOCK_TOKENS, 1));
    scheduler.submit(answer(2, 2 * BLOCK_TOKENS, 1));
    scheduler.submit(answer(3, 1, 1));
    assert_eq!(run_step(&mut scheduler), [(1, 48)]);
    assert_eq!(scheduler.waiting_count(), 2);
    end(&mut scheduler, 1);
    assert_eq!(run_step(&mut scheduler), [(2, 32), (3, 1)]);
}

#[test]
fn when_blocks_run_out_the_youngest_waits_and_the_oldest_goes_on() {
    let mut scheduler = scheduler(8, 200, 6);
    let clients = [Client::new(1), Client::new(2)];
    for client in &clients {
        scheduler.submit(request(client, Lane::Answer, 2 * BLOCK_TOKENS, 64, None));
    }
    for _ in 0..17 {
        assert_eq!(run_step(&mut scheduler).len(), 2);
    }
    // Both have three blocks; the first takes a fourth.
    let shares = run_step(&mut scheduler);
    assert_eq!(shares, [(1, 1)]);
    assert_eq!((scheduler.take_happenings().preemptions, scheduler.waiting_count()), (1, 1));
    assert_eq!([0, 1].map(|index: usize| clients[index].restarts.load(Ordering::Relaxed)), [0, 1]);
    // A later request does not overtake it.
    scheduler.submit(answer(3, 1, 1));
    assert_eq!(run_step(&mut scheduler), [(1, 1)]);
    end(&mut scheduler, 1);
    // Its own blocks are still known, except the one that was taken and the last row.
    let shares = run_step(&mut scheduler);
    assert_eq!((shares[0].0, shares.len()), (2, 2));
    assert!(shares[0].1 <= 2 * BLOCK_TOKENS, "{shares:?}");
    assert_eq!(clients[1].reused.load(Ordering::Relaxed), 0, "what it finds of its own is no prompt saved");
}

#[test]
fn a_prompt_that_was_computed_is_not_computed_again() {
    let mut scheduler = scheduler(8, 100, 20);
    scheduler.submit(answer(7, 40, 5));
    assert_eq!(run_step(&mut scheduler), [(7, 40)]);
    let client = Client { number: 7, ..Client::new(7) };
    scheduler.submit(request(&client, Lane::Answer, 40, 5, None));
    assert_eq!(run_step(&mut scheduler), [(7, 1), (7, 8)], "two blocks of the running one");
    assert_eq!(client.reused.load(Ordering::Relaxed), 32);
    scheduler.remove(vec![0, 1]);
    // The last token is always computed.
    for (length, rows) in [(32, 16), (33, 1), (48, 16), (16, 16)] {
        scheduler.submit(answer(7, length, 1));
        assert_eq!(run_step(&mut scheduler), [(7, rows)], "{length}");
        scheduler.remove(vec![0]);
    }
    assert_eq!(scheduler.take_happenings().reused_tokens, 32 + 16 + 32 + 32);
    // Another adapter, another organisation, another lane, or no cache: nothing is found.
    scheduler.submit(request(&Client::new(7), Lane::Answer, 40, 1, Some("a")));
    assert_eq!(run_step(&mut scheduler), [(7, 40)]);
    scheduler.submit(NewSequence { organization: "other".into(), ..answer(7, 40, 1) });
    assert_eq!(run_step(&mut scheduler), [(7, 40), (7, 1)], "the base stands before the adapter");
    scheduler.remove(vec![0, 1]);
    scheduler.submit(request(&Client::new(7), Lane::Embed, 40, 0, None));
    assert_eq!(run_step(&mut scheduler), [(7, 40)]);
    scheduler.limits.prefix_cache = false;
    scheduler.submit(answer(7, 40, 1));
    assert_eq!(run_step(&mut scheduler), [(7, 40)]);
}

#[test]
fn of_two_prompts_that_begin_alike_one_is_computed() {
    let mut scheduler = scheduler(8, 40, 50);
    for _ in 0..4 {
        scheduler.submit(answer(7, 70, 5));
    }
    assert_eq!(run_step(&mut scheduler), [(7, 40)]);
    assert_eq!(run_step(&mut scheduler), [(7, 30)]);
    assert_eq!(run_step(&mut scheduler), [(7, 1), (7, 6), (7, 6), (7, 6)]);
    assert_eq!(scheduler.take_happenings().reused_tokens, 3 * 64);
    assert_eq!(scheduler.allocator().used(), 4 + 4);
}

#[test]
fn who_has_gone_leaves_at_the_next_step_with_its_blocks() {
    let mut scheduler = scheduler(3, 100, 5);
    let clients: Vec<_> = (0..5).map(Client::new).collect();
    for client in &clients {
        scheduler.submit(request(client, Lane::Answer, 24, 50, None));
    }
    for _ in 0..10 {
        run_step(&mut scheduler);
    }
    assert_eq!((scheduler.running_count(), scheduler.preempted.len(), scheduler.waiting_count()), (1, 1, 4));
    clients.iter().for_each(Client::leave);
    assert!(compose(&mut scheduler).parts.is_empty());
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.allocator().used(), 0);
    assert!(scheduler.waiting.iter().all(|lane| lane.heads().next().is_none()));
}

#[test]
fn who_waits_or_runs_too_long_is_named_once() {
    let limits = EngineLimits {
        max_sequences: Some(1),
        max_queue_seconds: 10,
        max_request_seconds: 100,
        ..EngineLimits::default()
    };
    let mut scheduler = Scheduler::new(&limits, BlockAllocator::new(100));
    let shared = ticket();
    let began = Instant::now();
    let bulk =
        |number| NewSequence { ticket: shared.clone(), ..request(&Client::new(number), Lane::Embed, 5, 0, None) };
    scheduler.submit(bulk(1));
    let after = |seconds| began + Duration::from_secs(seconds);
    scheduler.compose(after(9));
    scheduler.submit(bulk(2));
    scheduler.submit(answer(3, 5, 5));
    assert!(scheduler.sweep(after(9)).is_empty());
    let overdue: Vec<_> = scheduler.sweep(after(12)).into_iter().map(|(one, what)| (one.number, what)).collect();
    assert_eq!(overdue, [(3, Overdue::Waiting)], "an input of a request that has begun goes on waiting");
    assert!(scheduler.sweep(after(99)).is_empty());
    let mut overdue: Vec<_> = scheduler.sweep(after(102)).into_iter().map(|(one, what)| (one.number, what)).collect();
    overdue.sort_by_key(|(number, _)| *number);
    assert_eq!(overdue, [(1, Overdue::Running), (2, Overdue::Running)]);
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.allocator().used(), 0);
}

#[test]
fn a_lost_cache_costs_nobody_a_token_and_suspects_are_computed_alone() {
    let mut scheduler = scheduler(8, 100, 40);
    for number in 1..=3 {
        scheduler.submit(answer(number, 20, 50));
    }
    for _ in 0..5 {
        run_step(&mut scheduler);
    }
    let step = compose(&mut scheduler);
    let (broken, _) = step.halves();
    let suspect = parts(&mut scheduler, &broken)[0].0;
    scheduler.suspect(&broken);
    scheduler.lose_cache();
    let allocator = scheduler.allocator();
    assert_eq!((allocator.free(), allocator.kept(), scheduler.running_count()), (40, 0, 0));
    assert_eq!(run_step(&mut scheduler), [(suspect, 25)], "its prompt and the five tokens drawn");
    let all = run_step(&mut scheduler);
    assert_eq!(all, [(1, 1), (2, 25), (3, 25)]);
}
