//! The engine under load, disconnects, overload and broken steps, over a model that is arithmetic: its logits are a
//! hash of all tokens that its cache holds for the sequence, read back through the block table, so that a wrong block,
//! a lost row or a neighbour's influence changes the answer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod logprobs;
mod random_load;
mod robustness;
mod scheduling;

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
use futures::executor::block_on;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::UnboundedReceiver;

const VOCABULARY: usize = 257;
const CONTEXT: usize = 256;
const HIDDEN: usize = 8;
/// Blocks of the cache where a test wants no other number: enough for all.
const BLOCKS: usize = 64;
/// A step with this token panics and leaves the cache unusable.
const POISON: u32 = 0;
/// A step with this token panics.
const PANIC: u32 = 1;
/// The row of this token has broken logits.
const BROKEN: u32 = 2;
/// Bytes that no random prompt and no stop uses.
const FIRST_PLAIN: u32 = 3;

/// Holds steps back while it is shut.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    /// Steps that stand before it.
    changed: Condvar,
    arrived: Mutex<bool>,
    came: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.arrived.lock().unwrap() = false;
        *self.shut.lock().unwrap() = shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        *self.arrived.lock().unwrap() = true;
        self.came.notify_all();
        drop(self.changed.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }

    fn wait_for_a_step(&self) {
        drop(self.came.wait_while(self.arrived.lock().unwrap(), |arrived| !*arrived).unwrap());
    }
}

/// What goes wrong on demand.
#[derive(Default)]
struct Faults {
    /// Steps that fail without a panic, whatever is in them.
    failing_steps: AtomicUsize,
    /// Calls outside of a step that panic.
    panics: AtomicUsize,
    /// The device has no memory for steps of more rows than this; 0 for any number.
    most_rows: AtomicUsize,
    /// The device is lost: every step fails.
    lost: AtomicBool,
    /// The model draws tokens itself.
    draws: AtomicBool,
}

/// True where one was left to take.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

struct Fake {
    tokenizer: Tokenizer,
    cache: Vec<u32>,
    poisoned: bool,
    gate: Arc<Gate>,
    faults: Arc<Faults>,
    /// Rows computed so far.
    rows: Arc<AtomicUsize>,
}

fn mix(state: u64, value: u64) -> u64 {
    let mixed = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (mixed >> 32)
}

/// `width` values in -4..4.
fn values(state: u64, width: usize) -> impl Iterator<Item = f32> {
    (0..width as u64).map(move |index| (mix(state, index + 1) >> 40) as f32 / (1 << 21) as f32 - 4.0)
}

/// What a model that draws itself does.
fn draw_from(logits: &[f32], draw: Draw) -> u32 {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return NO_TOKEN;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if draw.temperature == 0.0 {
        return logits.iter().position(|logit| *logit >= largest).unwrap() as u32;
    }
    let candidates = crate::draws::candidates(logits, &draw);
    let mut rest = draw.point * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let drawn = candidates.iter().find(|(_, weight)| {
        rest -= weight;
        rest < 0.0
    });
    drawn.unwrap().0 as u32
}

impl StepModel for Fake {
    fn id(&self) -> &'static str {
        "fake"
    }

    fn tokenizer(&self) -> &Tokenizer {
        assert!(!take_one(&self.faults.panics), "a panic in the engine's loop that a test asked for");
        &self.tokenizer
    }

    fn vocabulary_size(&self) -> usize {
        VOCABULARY
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn blocks(&self) -> usize {
        self.cache.len() / BLOCK_TOKENS
    }

    fn step(&mut self, tokens: &[u32], sequences: &[SequenceRows<'_>], wanted: &WantedRows) -> Result<StepOutput> {
        self.gate.pass();
        assert!(!self.poisoned, "a step on a broken cache");
        if tokens.contains(&POISON) {
            self.poisoned = true;
            self.cache.fill(u32::MAX);
        }
        assert!(!tokens.contains(&PANIC) && !tokens.contains(&POISON), "a panic that a test asked for");
        if take_one(&self.faults.failing_steps) || !self.has_device() {
            return Err(Error::Internal("a failure that a test asked for".into()));
        }
        if (1..tokens.len()).contains(&self.faults.most_rows.load(Ordering::SeqCst)) {
            // As the driver of a GPU tells it.
            Err(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into()))?;
        }
        self.rows.fetch_add(tokens.len(), Ordering::SeqCst);
        let mut states = vec![0; tokens.len()];
        for sequence in sequences {
            let adapter = sequence.adapter.map_or(0, |adapter| adapter.id.bytes().map(u64::from).sum());
            let slot = |position: usize| {
                sequence.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
            };
            let mut state = (0..sequence.start).fold(adapter, |state, at| mix(state, u64::from(self.cache[slot(at)])));
            for (offset, row) in sequence.rows.clone().enumerate() {
                self.cache[slot(sequence.start + offset)] = tokens[row];
                state = mix(state, u64::from(tokens[row]));
                states[row] = state;
            }
        }
        let logits_of = |row: u32| {
            let broken = tokens[row as usize] == BROKEN;
            values(states[row as usize], VOCABULARY).enumerate().map(move |(id, value)| match id {
                _ if broken => f32::NAN,
                // Tokens with a meaning in these tests are drawn by nobody.
                0..=2 => -50.0,
                _ => value,
            })
        };
        let logits = wanted.logits.iter().flat_map(|row| logits_of(*row));
        let drawn = wanted.draws.iter().map(|(row, draw)| draw_from(&logits_of(*row).collect::<Vec<_>>(), *draw));
        let hidden = wanted.hidden.iter().flat_map(|row| values(states[*row as usize], HIDDEN));
        Ok(StepOutput {
            logits: RowMatrix { values: logits.collect(), width: VOCABULARY },
            tokens: drawn.collect(),
            hidden: RowMatrix { values: hidden.collect(), width: HIDDEN },
        })
    }

    fn is_intact(&self) -> bool {
        !self.poisoned
    }

    fn draws(&self) -> bool {
        self.faults.draws.load(Ordering::SeqCst)
    }

    fn has_device(&self) -> bool {
        !self.faults.lost.load(Ordering::SeqCst)
    }

    fn reset(&mut self) -> Result<()> {
        self.cache.fill(u32::MAX);
        self.poisoned = false;
        Ok(())
    }
}

fn limits(max_sequences: usize, max_step_tokens: usize, max_waiting: usize) -> EngineLimits {
    EngineLimits {
        max_sequences: Some(max_sequences),
        max_step_tokens: Some(max_step_tokens),
        max_waiting,
        ..EngineLimits::default()
    }
}

/// An engine with what a test needs to see and to disturb of it.
struct Rig {
    engine: Arc<NativeEngine>,
    gate: Arc<Gate>,
    faults: Arc<Faults>,
    rows: Arc<AtomicUsize>,
}

fn rig_with(limits: &EngineLimits, blocks: usize, gate: &Arc<Gate>, priority: Arc<Priority>) -> Rig {
    let (faults, rows) = (Arc::<Faults>::default(), Arc::<AtomicUsize>::default());
    let model = Fake {
        tokenizer: byte_level(&[]),
        cache: vec![u32::MAX; blocks * BLOCK_TOKENS],
        poisoned: false,
        gate: gate.clone(),
        faults: faults.clone(),
        rows: rows.clone(),
    };
    Rig { engine: NativeEngine::start_with(model, limits, priority).unwrap(), gate: gate.clone(), faults, rows }
}

fn rig(limits: &EngineLimits, blocks: usize) -> Rig {
    rig_with(limits, blocks, &Arc::default(), Arc::default())
}

fn engine_with(limits: &EngineLimits, gate: &Arc<Gate>, priority: Arc<Priority>) -> Arc<NativeEngine> {
    rig_with(limits, BLOCKS, gate, priority).engine
}

fn engine(limits: &EngineLimits) -> Arc<NativeEngine> {
    engine_with(limits, &Arc::default(), Arc::default())
}

fn adapter(id: &str) -> AdapterLease {
    Arc::new(Adapter::new(id.into(), Vec::new()))
}

fn request(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        organization: "org".into(),
        prompt: prompt.into(),
        adapter: None,
        sampling: Sampling { seed: Some(1), ..Sampling::default() },
        max_tokens,
        stop: Vec::new(),
        stop_tokens: Vec::new(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
    }
}

fn embed_request(inputs: Vec<Vec<u32>>) -> EmbedRequest {
    EmbedRequest { organization: "org".into(), inputs, adapter: None }
}

fn random_request(random: &mut ChaCha8Rng) -> GenerateRequest {
    let prompt: Vec<u32> = (0..random.random_range(1..70)).map(|_| random.random_range(FIRST_PLAIN..256)).collect();
    let mut request = request(&prompt, random.random_range(1..30));
    request.adapter = [None, Some("a"), Some("b")][random.random_range(0..3)].map(adapter);
    request.sampling = Sampling {
        temperature: [0.0, 0.7, 1.0][random.random_range(0..3)],
        top_k: [0, 20][random.random_range(0..2)],
        top_p: [1.0, 0.8][random.random_range(0..2)],
        min_p: [0.0, 0.05][random.random_range(0..2)],
        repetition_penalty: [1.0, 1.2][random.random_range(0..2)],
        seed: Some(random.random()),
        presence_penalty: [0.0, 0.5][random.random_range(0..2)],
        frequency_penalty: 0.1,
        logit_bias: vec![(65, 2.0)],
    };
    request.stop = vec!["AA".into(), "A".repeat(3)];
    request.stop_tokens = vec![256];
    request
}

/// Tokens, text, and why it ended.
type Answer = (Vec<u32>, String, FinishReason, usize);

fn read(events: UnboundedReceiver<Event>) -> Result<Answer> {
    read_cached(events).map(|(answer, _)| answer)
}

/// The same, with the tokens of the prompt that were found in the cache.
fn read_cached(mut events: UnboundedReceiver<Event>) -> Result<(Answer, usize)> {
    let (mut tokens, mut shown) = (Vec::new(), String::new());
    loop {
        match events.blocking_recv().expect("the channel closed without an end") {
            Event::Prompt { .. } => {}
            Event::Token { id, text, .. } => {
                tokens.push(id);
                shown += &text;
            }
            Event::Finished { text, reason, completion_tokens, cached_tokens } => {
                assert!(events.blocking_recv().is_none(), "an event after the end");
                return Ok(((tokens, shown + &text, reason, completion_tokens), cached_tokens));
            }
            Event::Failed(error) => return Err(error),
        }
    }
}

fn wait_until_all_blocks_are_free(engine: &NativeEngine) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while engine.blocks().used() > 0 {
        assert!(Instant::now() < deadline, "{} blocks are never freed", engine.blocks().used());
        std::thread::yield_now();
    }
    assert_eq!(engine.blocks().free() + engine.blocks().kept(), engine.blocks().total());
}

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
            // Gone before, between or after some tokens.
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
    // The next step's rows are all of the first, which panics; the others have only been admitted.
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
    // Its thread is about to end.
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
        // These need the logits.
        Sampling { seed: Some(3), top_p: 0.5, ..Sampling::default() },
        Sampling { seed: Some(4), frequency_penalty: 1.0, ..Sampling::default() },
        Sampling { seed: Some(5), logit_bias: vec![(9, 3.0)], ..Sampling::default() },
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
    // A step that fails is repeated by halves, with the same draws: the one of a request alone, then the first of all
    // others.
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
    // The context can be filled to its end, and nothing can be asked for.
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
    // The thread has ended, so nobody holds the trainer back.
    priority.yield_to_requests(Duration::MAX);
}
