//! An arithmetic model, the engine over it, and requests to it, shared by the tests of [`super`].

use super::*;
use attune::engine::stops::StopTexts;

pub(super) const VOCABULARY: usize = 257;
pub(super) const CONTEXT: usize = 256;
pub(super) const HIDDEN: usize = 8;
/// Blocks of the cache unless a test wants another number: enough for all.
pub(super) const BLOCKS: usize = 64;
/// A step with this token panics and leaves the cache unusable.
pub(super) const POISON: u32 = 0;
/// A step with this token panics.
pub(super) const PANIC: u32 = 1;
/// The row of this token has broken logits.
pub(super) const BROKEN: u32 = 2;
/// First byte without a meaning in these tests; random prompts and stops use no lower one.
pub(super) const FIRST_PLAIN: u32 = 3;

/// Gate that holds steps back while it is shut.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) shut: Mutex<bool>,
    /// Wakes the steps that wait at the gate.
    pub(super) changed: Condvar,
    pub(super) arrived: Mutex<bool>,
    pub(super) came: Condvar,
}

impl Gate {
    pub(super) fn set(&self, shut: bool) {
        *self.arrived.lock().unwrap() = false;
        *self.shut.lock().unwrap() = shut;
        self.changed.notify_all();
    }

    pub(super) fn pass(&self) {
        *self.arrived.lock().unwrap() = true;
        self.came.notify_all();
        drop(self.changed.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }

    pub(super) fn wait_for_a_step(&self) {
        drop(self.came.wait_while(self.arrived.lock().unwrap(), |arrived| !*arrived).unwrap());
    }
}

/// Faults that tests switch on.
#[derive(Default)]
pub(super) struct Faults {
    /// Number of steps that fail without a panic, whatever they contain.
    pub(super) failing_steps: AtomicUsize,
    /// Number of calls outside of a step that panic.
    pub(super) panics: AtomicUsize,
    /// Most rows of a step for which the device has memory; 0 for any number.
    pub(super) most_rows: AtomicUsize,
    /// Whether the device is lost, so that every step fails.
    pub(super) lost: AtomicBool,
    /// Whether the model draws tokens itself.
    pub(super) draws: AtomicBool,
}

/// Takes one of the `left` faults; returns false if there is none.
pub(super) fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

pub(super) struct Fake {
    pub(super) tokenizer: Tokenizer,
    pub(super) vectors: VectorForm,
    pub(super) cache: Vec<u32>,
    pub(super) poisoned: bool,
    pub(super) gate: Arc<Gate>,
    pub(super) faults: Arc<Faults>,
    /// Number of rows computed so far.
    pub(super) rows: Arc<AtomicUsize>,
}

pub(super) fn mix(state: u64, value: u64) -> u64 {
    let mixed = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (mixed >> 32)
}

/// Returns `width` values in -4..4.
pub(super) fn values(state: u64, width: usize) -> impl Iterator<Item = f32> {
    (0..width as u64).map(move |index| (mix(state, index + 1) >> 40) as f32 / (1 << 21) as f32 - 4.0)
}

/// Draws a token as a model that draws itself.
pub(super) fn draw_from(logits: &[f32], draw: Draw) -> u32 {
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

    fn vectors(&self) -> &VectorForm {
        &self.vectors
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
            // The message of a GPU's driver.
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
                // Tokens with a meaning in these tests are never drawn.
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

pub(super) fn limits(max_sequences: usize, max_step_tokens: usize, max_waiting: usize) -> EngineLimits {
    EngineLimits {
        max_sequences: Some(max_sequences),
        max_step_tokens: Some(max_step_tokens),
        max_waiting,
        ..EngineLimits::default()
    }
}

/// An engine with access to everything that a test watches or disturbs.
pub(super) struct Rig {
    pub(super) engine: Arc<NativeEngine>,
    pub(super) gate: Arc<Gate>,
    pub(super) faults: Arc<Faults>,
    pub(super) rows: Arc<AtomicUsize>,
}

pub(super) fn rig_with(limits: &EngineLimits, blocks: usize, gate: &Arc<Gate>, priority: Arc<Priority>) -> Rig {
    let (faults, rows) = (Arc::<Faults>::default(), Arc::<AtomicUsize>::default());
    let vectors = VectorForm {
        poolings: vec![Pooling::Mean],
        pools_prompt: true,
        layers: Vec::new(),
        is_normalized: true,
        prompts: BTreeMap::new(),
        default_prompt: None,
        is_lower_cased: false,
        max_tokens: CONTEXT,
        shorter_widths: Vec::new(),
        hidden_size: HIDDEN,
    };
    let model = Fake {
        vectors,
        tokenizer: byte_level(&[]),
        cache: vec![u32::MAX; blocks * BLOCK_TOKENS],
        poisoned: false,
        gate: gate.clone(),
        faults: faults.clone(),
        rows: rows.clone(),
    };
    Rig { engine: NativeEngine::start_with(model, limits, priority).unwrap(), gate: gate.clone(), faults, rows }
}

pub(super) fn rig(limits: &EngineLimits, blocks: usize) -> Rig {
    rig_with(limits, blocks, &Arc::default(), Arc::default())
}

pub(super) fn engine_with(limits: &EngineLimits, gate: &Arc<Gate>, priority: Arc<Priority>) -> Arc<NativeEngine> {
    rig_with(limits, BLOCKS, gate, priority).engine
}

pub(super) fn engine(limits: &EngineLimits) -> Arc<NativeEngine> {
    engine_with(limits, &Arc::default(), Arc::default())
}

pub(super) fn adapter(id: &str) -> AdapterLease {
    Arc::new(Adapter::new(id.into(), Vec::new()))
}

pub(super) fn request(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        organization: "org".into(),
        prompt: prompt.into(),
        adapter: None,
        sampling: Sampling { seed: Some(1), ..Sampling::default() },
        max_tokens,
        stop: StopTexts::default(),
        stop_tokens: Vec::new(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        background: false,
    }
}

pub(super) fn embed_request(inputs: Vec<Vec<u32>>) -> EmbedRequest {
    EmbedRequest::of_texts("org".into(), inputs, None)
}

pub(super) fn random_request(random: &mut ChaCha8Rng) -> GenerateRequest {
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
        logit_bias: [(65, 2.0)].into(),
    };
    request.stop = StopTexts::new(&["AA".into(), "A".repeat(3)]);
    request.stop_tokens = vec![256];
    request
}

/// Tokens, text, reason of the end, and number of tokens.
pub(super) type Answer = (Vec<u32>, String, FinishReason, usize);

pub(super) fn read(events: UnboundedReceiver<Event>) -> Result<Answer> {
    read_cached(events).map(|(answer, _)| answer)
}

/// Reads an answer, and the number of the prompt's tokens found in the cache.
pub(super) fn read_cached(mut events: UnboundedReceiver<Event>) -> Result<(Answer, usize)> {
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

pub(super) fn wait_until_all_blocks_are_free(engine: &NativeEngine) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while engine.blocks().used() > 0 {
        assert!(Instant::now() < deadline, "{} blocks are never freed", engine.blocks().used());
        std::thread::yield_now();
    }
    assert_eq!(engine.blocks().free() + engine.blocks().kept(), engine.blocks().total());
}
