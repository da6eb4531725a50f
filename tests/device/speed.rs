//! Measures the speed of a GPU with random bf16 weights of Llama-3.1-8B's shape; `tools/gpu-check` prints the
//! measurements. In the emulator a tiny shape runs the same code, to show that it runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use attune::datasets::{ExampleStore, TokenizedExample};
use attune::engine::EngineLimits;
use attune::engine::encoder::EncoderEngine;
use attune::engine::native::NativeEngine;
use attune::engine::priority::{Priority, TrainingTurns};
use attune::engine::{Backend, EmbedRequest, Event};
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::device::used_memory;
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::Dtype;
use attune::model::linear::Storage;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use attune::model::rope::RopeTable;
use attune::model::vectors::VectorForm;
use attune::model::weights::Weights;
use attune::model::{BaseModel, ModelConfig};
use attune::system::MemoryWatch;
use attune::train::hyperparameters::Hyperparameters;
use attune::train::{Recomputation, TrainSettings, Trainer};
use candle_core::{DType, Tensor};
use serde_json::json;

use crate::fixtures::{device, greedy, whole_model_on};
use crate::kernels;

const ON_GPU: bool = cfg!(feature = "cuda");
/// Limits of an H200: bytes of memory and bf16 operations per second.
const BYTES_PER_SECOND: f64 = 4.3e12;
const OPERATIONS_PER_SECOND: f64 = 790e12;
const RANK: usize = 16;
/// Sequences that decode at once, the tokens before each, and the tokens of a prompt and of a training batch.
const SEQUENCES: usize = if ON_GPU { 32 } else { 5 };
const CONTEXT: usize = if ON_GPU { 512 } else { 20 };
const LONG: usize = if ON_GPU { 4096 } else { 70 };
/// Requests that run beside training, and tokens of each answer.
const STREAMS: usize = if ON_GPU { 16 } else { 3 };
const ANSWER: usize = if ON_GPU { 256 } else { 4 };

/// Texts that are embedded at once.
const TEXTS: usize = if ON_GPU { 512 } else { 3 };

struct Bench {
    config: ModelConfig,
    decoder: Decoder,
}

/// Widths of hidden states and of the MLP, layers, heads of queries and of keys, and tokens: Llama-3.1-8B's, and those
/// of BGE-base and E5-base.
type Shape = [usize; 6];
const LARGE: Shape = if ON_GPU { [4096, 14336, 32, 32, 8, 128_256] } else { TINY };
const BASE: Shape = if ON_GPU { [768, 3072, 12, 12, 12, 30_522] } else { TINY };
const TINY: Shape = [64, 96, 2, 4, 2, 160];

impl Bench {
    fn new([hidden, intermediate, layers, heads, kv_heads, vocabulary]: Shape) -> Self {
        let config = json!({
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": false,
            "hidden_act": "silu",
        });
        Self::of(&config)
    }

    /// Makes an encoder of the shape, whose heads all have keys of their own.
    fn encoder([hidden, intermediate, layers, heads, _, vocabulary]: Shape) -> Self {
        let config = json!({
            "model_type": "bert", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "vocab_size": vocabulary, "max_position_embeddings": 512, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0, "position_embedding_type": "absolute",
        });
        Self::of(&config)
    }

    fn of(config: &serde_json::Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let config = ModelConfig::read(folder.path()).unwrap();
        let storage = Storage { dtype: Some(Dtype::Bf16), quantize: None };
        let decoder = Decoder::load_on(&config, &Weights::random(&device()), &storage, &kernels()).unwrap();
        Self { config, decoder }
    }

    fn adapter(&self, seed: usize) -> Adapter {
        let matrix = |rows: usize, columns: usize| {
            Tensor::randn(0.0_f32, 0.02, (rows, columns), &device()).unwrap().to_dtype(DType::BF16).unwrap()
        };
        let (config, hidden) = (&self.config, self.config.hidden_size);
        let width = |heads: usize| heads * config.head_dim;
        let layer = |_| {
            let mut layer = LoraLayer::default();
            for site in Site::USUAL {
                let (input, output) = match site {
                    Site::Query => (hidden, width(config.num_attention_heads)),
                    Site::Key | Site::Value => (hidden, width(config.num_key_value_heads)),
                    Site::Output => (width(config.num_attention_heads), hidden),
                    Site::Gate | Site::Up => (hidden, config.intermediate_size),
                    Site::Down => (config.intermediate_size, hidden),
                    Site::ConvolutionInput | Site::ConvolutionOutput => continue,
                };
                layer.set(site, LoraPair { a: matrix(RANK, input), b: matrix(output, RANK), scale: 2.0 });
            }
            layer
        };
        Adapter::new(seed.to_string(), (0..config.num_hidden_layers).map(layer).collect())
    }

    /// Returns the whole model. Its tokenizer only turns tokens into some text.
    fn model(self) -> Arc<BaseModel> {
        let small = Arc::into_inner(whole_model_on("llama", &kernels())).unwrap();
        Arc::new(BaseModel {
            vectors: VectorForm::of_model(&self.config),
            config: self.config,
            decoder: self.decoder,
            end_tokens: Vec::new(),
            second_decoder: OnceLock::new(),
            ..small
        })
    }

    /// Counts the operations of the products for one token: two for each weight except the embedding's.
    fn operations(&self) -> f64 {
        let embedding = self.config.vocab_size * self.config.hidden_size;
        2.0 * (self.decoder.weight_bytes() / 2 - embedding) as f64
    }
}

/// Returns the seconds per run over `times` runs, after two uncounted ones; each run ends by reading something back.
fn seconds(times: usize, mut run: impl FnMut()) -> f64 {
    let (warm, times) = if ON_GPU { (2, times) } else { (0, 1) };
    for _ in 0..warm {
        run();
    }
    let began = Instant::now();
    for _ in 0..times {
        run();
    }
    began.elapsed().as_secs_f64() / times as f64
}

/// Returns the tokens per second of `count` sequences that decode, sequence i with adapter i of `adapters`.
fn decoding(bench: &Bench, count: usize, adapters: &[Adapter]) -> f64 {
    let each = CONTEXT.div_ceil(BLOCK_TOKENS) + 1;
    let cache = KvCache::new(&bench.config, each * count, DType::BF16, &device()).unwrap();
    let blocks: Vec<Vec<u32>> =
        (0..count).map(|one| (0..each).map(|block| (block * count + one) as u32).collect()).collect();
    let sequences: Vec<SequenceRows<'_>> = (0..count)
        .map(|one| SequenceRows {
            rows: one..one + 1,
            start: CONTEXT,
            blocks: &blocks[one],
            adapter: adapters.get(one),
            rope: RopeTable::Short,
        })
        .collect();
    let tokens: Vec<u32> = (0..count as u32).collect();
    let step = || {
        let hidden = bench.decoder.step(&tokens, &sequences, &cache).unwrap();
        let next: Vec<u32> = bench.decoder.logits(&hidden).unwrap().argmax(1).unwrap().to_vec1().unwrap();
        assert_eq!(next.len(), count);
    };
    count as f64 / seconds(50, step)
}

#[test]
fn decoding_alone_together_and_with_an_adapter_each() {
    let bench = Bench::new(LARGE);
    let one = decoding(&bench, 1, &[]);
    let embedding = 2 * bench.config.vocab_size * bench.config.hidden_size;
    let limit = BYTES_PER_SECOND / (bench.decoder.weight_bytes() - embedding) as f64;
    println!("measured: one sequence {one:.0} tokens/s, {:.0} % of what an H200's memory allows", 100.0 * one / limit);
    let many = decoding(&bench, SEQUENCES, &[]);
    println!("measured: {SEQUENCES} sequences {many:.0} tokens/s, {:.1} times one", many / one);
    let adapters: Vec<Adapter> = (0..SEQUENCES).map(|seed| bench.adapter(seed)).collect();
    let adapted = decoding(&bench, SEQUENCES, &adapters);
    println!("measured: with an adapter each {adapted:.0} tokens/s, {:.0} % of that", 100.0 * adapted / many);
}

#[test]
fn a_long_prompt() {
    let bench = Bench::new(LARGE);
    let cache = KvCache::new(&bench.config, LONG.div_ceil(BLOCK_TOKENS), DType::BF16, &device()).unwrap();
    let blocks: Vec<u32> = (0..LONG.div_ceil(BLOCK_TOKENS) as u32).collect();
    let tokens: Vec<u32> = (0..LONG as u32).map(|token| token % 150).collect();
    let rate = |adapter: Option<&Adapter>| {
        let took = seconds(5, || {
            let rows = SequenceRows { rows: 0..LONG, start: 0, blocks: &blocks, adapter, rope: RopeTable::Short };
            let hidden = bench.decoder.step(&tokens, &[rows], &cache).unwrap();
            let last = hidden.narrow(0, LONG - 1, 1).unwrap();
            let next: Vec<u32> = bench.decoder.logits(&last).unwrap().argmax(1).unwrap().to_vec1().unwrap();
            assert_eq!(next.len(), 1);
        });
        LONG as f64 / took
    };
    let base = rate(None);
    let share = 100.0 * base * bench.operations() / OPERATIONS_PER_SECOND;
    println!("measured: {base:.0} tokens/s in a prompt of {LONG}, {share:.0} % of an H200's products");
    let adapted = rate(Some(&bench.adapter(0)));
    println!("measured: with an adapter {adapted:.0} tokens/s, {:.0} % of that", 100.0 * adapted / base);
}

/// Prepares a run with one long sequence per step and all parts of a job's steps.
fn trainer(model: &Arc<BaseModel>, way: Recomputation) -> Trainer {
    let mut weights = vec![1.0; LONG];
    weights[0] = 0.0;
    let example = TokenizedExample { tokens: (0..LONG as u32).map(|token| token % 150).collect(), weights };
    let asked = Hyperparameters { rank: Some(RANK as u32), n_epochs: Some(1000), ..Hyperparameters::default() };
    let settings = TrainSettings { batch_rows: LONG, ..TrainSettings::new(&asked, 1) };
    let examples = ExampleStore::of((0..8).map(|_| example.clone())).unwrap();
    let mut trainer = Trainer::new(model.clone(), settings, examples, None).unwrap();
    trainer.recompute(way);
    trainer
}

fn step(trainer: &mut Trainer, before: &mut dyn FnMut() -> attune_train::Result<()>) {
    let report = trainer.step(before).unwrap().unwrap();
    assert_eq!(report.tokens, LONG);
    assert!(report.loss.is_finite());
}

#[test]
fn training_on_one_long_sequence() {
    let bench = Bench::new(LARGE);
    let operations = bench.operations();
    let model = bench.model();
    for way in [Recomputation::Full, Recomputation::Selective] {
        let mut trainer = trainer(&model, way);
        let memory = MemoryWatch::start(|| used_memory(&device()));
        let took = seconds(3, || step(&mut trainer, &mut || Ok(())));
        // Forward pass and the gradients of the inputs.
        let rate = LONG as f64 / took;
        let share = 100.0 * rate * 2.0 * operations / OPERATIONS_PER_SECOND;
        let peak = memory.peak_bytes().map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 30));
        let way = way.name();
        println!("measured: {way} {rate:.0} tokens/s, {share:.0} % of an H200's products, {peak:.1} GiB at most");
    }
}

/// Returns the new tokens per second of [`STREAMS`] requests at once, and the longest time in milliseconds between two
/// tokens of the first request.
fn streaming(engine: &NativeEngine) -> (f64, f64) {
    let began = Instant::now();
    let events: Vec<_> =
        (0..STREAMS).map(|seed| engine.generate(greedy(&[seed as u32; CONTEXT], ANSWER, None)).unwrap()).collect();
    let (mut drawn, mut gap) = (0, Duration::ZERO);
    for (index, mut events) in events.into_iter().enumerate() {
        let mut last = None;
        while let Some(event) = events.blocking_recv() {
            let Event::Token { .. } = event else { continue };
            drawn += 1;
            // The others' tokens wait in their channels meanwhile.
            if index == 0 {
                let now = Instant::now();
                gap = gap.max(last.replace(now).map_or(Duration::ZERO, |last| now - last));
            }
        }
    }
    (f64::from(drawn) / began.elapsed().as_secs_f64(), gap.as_secs_f64() * 1e3)
}

#[test]
fn training_while_requests_stream() {
    let model = Bench::new(LARGE).model();
    let priority = Arc::<Priority>::default();
    let limits = EngineLimits { kv_cache_mib: Some(if ON_GPU { 4096 } else { 64 }), ..EngineLimits::default() };
    let engine = NativeEngine::start(model.clone(), &limits, priority.clone()).unwrap();
    let (alone, alone_gap) = streaming(&engine);
    let mut trainer = trainer(&model, Recomputation::Selective);
    let trained = LONG as f64 / seconds(3, || step(&mut trainer, &mut || Ok(())));
    println!(
        "measured: alone {alone:.0} tokens/s in {STREAMS} streams, at most {alone_gap:.0} ms between two, {trained:.0} trained on"
    );
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let trained = scope.spawn(|| {
            let mut turns = TrainingTurns::new(priority.clone(), Duration::from_millis(250));
            let (began, mut batches) = (Instant::now(), 0);
            while !over.load(Ordering::SeqCst) || batches == 0 {
                step(&mut trainer, &mut || {
                    turns.next();
                    Ok(())
                });
                batches += 1;
            }
            (batches * LONG) as f64 / began.elapsed().as_secs_f64()
        });
        let (together, gap) = streaming(&engine);
        over.store(true, Ordering::SeqCst);
        let trained = trained.join().unwrap();
        println!(
            "measured: together {together:.0} tokens/s in {STREAMS} streams, at most {gap:.0} ms between two, {trained:.0} trained on"
        );
    });
}

/// Embeds texts of 16 to 240 tokens, 128 on average, with an encoder and with a decoder of the same width and depth.
#[test]
fn embeddings_of_many_texts() {
    let limits =
        EngineLimits { kv_cache_mib: Some(if ON_GPU { 4096 } else { 64 }), ..EngineLimits::default().on_gpu() };
    let encoder = EncoderEngine::start(Bench::encoder(BASE).model(), &limits, &Arc::default()).unwrap();
    say_texts("an encoder", encoder.as_ref());
    say_texts("a decoder", NativeEngine::start(Bench::new(BASE).model(), &limits, Arc::default()).unwrap().as_ref());
}

fn say_texts(what: &str, engine: &impl Backend) {
    let inputs: Vec<Vec<u32>> =
        (0..TEXTS).map(|text| (0..16 + text as u32 * 37 % 225).map(|token| token % 150).collect()).collect();
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    let took = seconds(5, || {
        let request = EmbedRequest::of_texts("org".into(), inputs.clone(), None);
        assert_eq!(futures::executor::block_on(engine.embed(request)).unwrap().len(), TEXTS);
    });
    println!("measured: {what}, {:.0} texts/s of {} tokens on average", TEXTS as f64 / took, tokens / TEXTS);
}
