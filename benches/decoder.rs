//! Measures the speed of the decoder alone, on random weights of SmolLM2-135M's shape: prefill, decode, and one
//! training step, with the weights in f32, bf16, 8 bit and 4 bit.
//!
//! Run with `cargo bench --bench decoder`, or with the names of some storages, as in `cargo bench --bench decoder -- q8_0
//! q4_k`, which leaves out what is measured of f32 alone. Figures are medians, and vary by a fifth on a shared machine.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use attune::model::ModelConfig;
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::kernels::cpu::panels::Level;
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::Dtype;
use attune::model::linear::Storage;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use attune::model::rope::RopeTable;
use attune::model::weights::Weights;
use attune::train::Recomputation;
use attune::train::backward::{self, Objective, PackedBatch, PassOptions, Target};
use candle_core::{DType, Device, Tensor};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

const CONFIG: &str = r#"{"model_type":"llama","hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,
    "num_attention_heads":9,"num_key_value_heads":3,"vocab_size":49152,"max_position_embeddings":8192,
    "rms_norm_eps":1e-5,"rope_theta":100000.0,"tie_word_embeddings":true,"hidden_act":"silu"}"#;

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let config = random_model(folder.path())?;
    let chosen: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let mut storages = vec![
        ("f32", Storage::default()),
        ("bf16", Storage { dtype: Some(Dtype::Bf16), quantize: None }),
        ("q8_0", Storage { dtype: Some(Dtype::F32), quantize: Some("q8_0".into()) }),
        ("q4_k", Storage { dtype: None, quantize: Some("q4_k".into()) }),
        ("q4_0", Storage { dtype: None, quantize: Some("q4_0".into()) }),
    ];
    storages.retain(|(name, _)| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name));
    let weights = Weights::open(folder.path(), &Device::Cpu)?;
    let mut decoders = Vec::new();
    for (_, storage) in &storages {
        decoders.push(Decoder::load(&config, &weights, storage)?);
    }
    // In turn, so that other load on the machine affects all of them alike.
    let rates = |count: usize, times: usize, work: &dyn Fn(&Decoder) -> Result<(), Failure>| {
        let times = medians(&decoders, times, work)?;
        Ok::<_, Failure>(
            times.iter().map(|time| format!("{:>9.1}", count as f64 / time.as_secs_f64())).collect::<Vec<_>>().concat(),
        )
    };
    let threads = rayon::current_num_threads();
    println!("SmolLM2-135M's shape, {threads} threads, {:?}, tokens/s", Level::best());
    let names = storages.iter().map(|(name, _)| format!("{name:>9}")).collect::<Vec<_>>().concat();
    println!("{:36}{names}", "");

    for rows in [1, 4, 16] {
        let step = decode_step(&config, rows, 128)?;
        println!("{:36}{}", format!("decode, {rows} sequences at 128 tokens"), rates(rows, 25, &step)?);
    }
    println!("{:36}{}", "prefill, 512 tokens", rates(512, 5, &prefill(&config, 512)?)?);

    if chosen.is_empty() {
        adapters_and_contexts(&config, &decoders[0])?;
    }

    let adapter = adapter(&config, 16)?;
    for tokens in [512, 1024] {
        let batch = batch(&config, tokens);
        let step = |decoder: &Decoder| {
            backward::loss_and_gradients(decoder, &adapter, &batch, tokens as f64).map(drop).map_err(Failure::from)
        };
        println!("{:36}{}", format!("training, rank 16, {tokens} packed tokens"), rates(tokens, 3, &step)?);
    }
    if chosen.is_empty() { recomputations(&decoders[0], &adapter, &batch(&config, 512)) } else { Ok(()) }
}

/// Measures the cost of recomputing activations, the kinds in turn.
fn recomputations(decoder: &Decoder, adapter: &Adapter, batch: &PackedBatch) -> Result<(), Failure> {
    let mut times = Recomputation::ALL.map(|_| Vec::new());
    for _ in 0..9 {
        for (way, times) in Recomputation::ALL.into_iter().zip(&mut times) {
            let start = Instant::now();
            backward::objective_and_gradients(
                decoder,
                adapter,
                batch,
                Objective::Targets,
                1.0,
                PassOptions::recomputing(way),
            )?;
            times.push(start.elapsed());
        }
    }
    println!("f32, 512 packed tokens, by what is computed again in the backward pass, tokens/s");
    for (way, times) in Recomputation::ALL.into_iter().zip(&mut times) {
        times.sort();
        println!("{:36}{:>9.1}", way.name(), batch.tokens.len() as f64 / times[times.len() / 2].as_secs_f64());
    }
    Ok(())
}

fn random_model(folder: &Path) -> Result<ModelConfig, Failure> {
    std::fs::write(folder.join("config.json"), CONFIG)?;
    let config = ModelConfig::read(folder)?;
    let query_width = config.num_attention_heads * config.head_dim;
    let key_width = config.num_key_value_heads * config.head_dim;
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let random = |shape: (usize, usize)| Tensor::randn(0.0_f32, 0.02, shape, &Device::Cpu);
    let ones = || Tensor::ones(hidden, candle_core::DType::F32, &Device::Cpu);
    let mut tensors = HashMap::new();
    tensors.insert("model.embed_tokens.weight".to_owned(), random((config.vocab_size, hidden))?);
    tensors.insert("model.norm.weight".to_owned(), ones()?);
    for layer in 0..config.num_hidden_layers {
        for site in Site::USUAL {
            let shape = match site {
                Site::Query => (query_width, hidden),
                Site::Key | Site::Value => (key_width, hidden),
                Site::Output => (hidden, query_width),
                Site::Gate | Site::Up => (intermediate, hidden),
                Site::Down => (hidden, intermediate),
                Site::ConvolutionInput | Site::ConvolutionOutput => continue,
            };
            tensors.insert(format!("model.layers.{layer}.{}.weight", site.path()), random(shape)?);
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.insert(format!("model.layers.{layer}.{norm}.weight"), ones()?);
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    Ok(config)
}

fn adapter(config: &ModelConfig, rank: usize) -> Result<Adapter, Failure> {
    let query_width = config.num_attention_heads * config.head_dim;
    let key_width = config.num_key_value_heads * config.head_dim;
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let mut layers = Vec::new();
    for _ in 0..config.num_hidden_layers {
        let mut layer = LoraLayer::default();
        for site in Site::USUAL {
            let (input, output) = match site {
                Site::Query => (hidden, query_width),
                Site::Key | Site::Value => (hidden, key_width),
                Site::Output => (query_width, hidden),
                Site::Gate | Site::Up => (hidden, intermediate),
                Site::Down => (intermediate, hidden),
                Site::ConvolutionInput | Site::ConvolutionOutput => continue,
            };
            let a = Tensor::randn(0.0_f32, 0.02, (rank, input), &Device::Cpu)?;
            let b = Tensor::randn(0.0_f32, 0.02, (output, rank), &Device::Cpu)?;
            layer.set(site, LoraPair { a, b, scale: 2.0 });
        }
        layers.push(layer);
    }
    Ok(Adapter::new("benchmark".into(), layers))
}

#[allow(clippy::single_range_in_vec_init, reason = "one sequence is meant")]
fn batch(config: &ModelConfig, count: usize) -> PackedBatch {
    let tokens: Vec<u32> = (0..count).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    let targets = (0..count - 1).map(|row| Target { row, token: tokens[row + 1], weight: 1.0 }).collect();
    PackedBatch { tokens, sequences: vec![0..count], targets, ..PackedBatch::default() }
}

type Step = Box<dyn Fn(&Decoder) -> Result<(), Failure>>;

fn decode_step(config: &ModelConfig, rows: usize, context: usize) -> Result<Step, Failure> {
    let blocks_each = context / BLOCK_TOKENS + 1;
    let cache = KvCache::new(config, rows * blocks_each, DType::F32, &Device::Cpu)?;
    let blocks: Vec<Vec<u32>> =
        (0..rows).map(|row| (0..blocks_each).map(|block| (row * blocks_each + block) as u32).collect()).collect();
    let tokens = vec![17; rows];
    Ok(Box::new(move |decoder| {
        let sequences: Vec<_> = (0..rows)
            .map(|row| SequenceRows {
                rows: row..row + 1,
                start: context,
                blocks: &blocks[row],
                adapter: None,
                rope: RopeTable::Short,
            })
            .collect();
        inside_the_pool(|| {
            let hidden = decoder.step(&tokens, &sequences, &cache)?;
            decoder.logits(&hidden)
        })
    }))
}

fn prefill(config: &ModelConfig, count: usize) -> Result<Step, Failure> {
    let blocks: Vec<u32> = (0..count.div_ceil(BLOCK_TOKENS) as u32).collect();
    let cache = KvCache::new(config, blocks.len(), DType::F32, &Device::Cpu)?;
    let tokens: Vec<u32> = (0..count as u32).collect();
    Ok(Box::new(move |decoder| {
        let rows = SequenceRows { rows: 0..count, start: 0, blocks: &blocks, adapter: None, rope: RopeTable::Short };
        inside_the_pool(|| {
            let hidden = decoder.step(&tokens, &[rows], &cache)?;
            decoder.logits(&hidden.narrow(0, count - 1, 1)?)
        })
    }))
}

/// Runs `work` on a thread of the pool, where a fork costs least.
fn inside_the_pool(work: impl FnOnce() -> attune::model::Result<Tensor> + Send) -> Result<(), Failure> {
    rayon::scope(|_| work()).map(drop).map_err(Failure::from)
}

/// Measures the median time of `work` with each decoder, in turn.
fn medians(
    decoders: &[Decoder],
    times: usize,
    work: &dyn Fn(&Decoder) -> Result<(), Failure>,
) -> Result<Vec<Duration>, Failure> {
    let mut measured = vec![Vec::new(); decoders.len()];
    for round in 0..=times {
        for (decoder, measured) in decoders.iter().zip(&mut measured) {
            let start = Instant::now();
            work(decoder)?;
            // The first round warms up.
            if round > 0 {
                measured.push(start.elapsed());
            }
        }
    }
    Ok(measured
        .into_iter()
        .map(|mut measured| {
            measured.sort();
            measured[times / 2]
        })
        .collect())
}

/// Measures the cost of adapters relative to the base alone, each pair in turn, and a long context.
fn adapters_and_contexts(config: &ModelConfig, decoder: &Decoder) -> Result<(), Failure> {
    let adapters = (0..16).map(|_| adapter(config, 16)).collect::<Result<Vec<_>, _>>()?;
    let held = |precision| adapters.iter().map(|one| one.for_serving(precision)).collect::<Result<Vec<_>, _>>();
    let (adapters, short) = (held(candle_core::DType::F32)?, held(candle_core::DType::BF16)?);
    let one: Vec<&Adapter> = vec![&adapters[0]; 16];
    let kinds = [
        ("base only", vec![None; 16]),
        ("16 adapters", adapters.iter().map(Some).collect()),
        ("16 adapters in bf16", short.iter().map(Some).collect()),
        ("one adapter", one.into_iter().map(Some).collect()),
    ];
    let decode = kinds.iter().map(|(name, adapters)| Ok((*name, Input::decode(config, 16, 128, adapters)?)));
    let decode = decode.collect::<Result<Vec<_>, Failure>>()?;
    in_turns("decode, 16 sequences at 128 tokens", decoder, &decode, 25)?;
    let prefill = [("base only", None), ("one adapter", Some(&adapters[0]))];
    let prefill = prefill.iter().map(|(name, adapter)| Ok((*name, Input::prefill(config, 512, *adapter)?)));
    in_turns("prefill, 512 tokens", decoder, &prefill.collect::<Result<Vec<_>, Failure>>()?, 7)?;
    let contexts = [("128 tokens", 128), ("4000 tokens", 4000)];
    let contexts = contexts.iter().map(|(name, context)| Ok((*name, Input::decode(config, 1, *context, &[None])?)));
    in_turns("decode, 1 sequence", decoder, &contexts.collect::<Result<Vec<_>, Failure>>()?, 9)
}

/// Input of one step over a cache of its own.
struct Input<'a> {
    tokens: Vec<u32>,
    starts: Vec<usize>,
    blocks: Vec<Vec<u32>>,
    adapters: Vec<Option<&'a Adapter>>,
    cache: KvCache,
}

impl<'a> Input<'a> {
    fn decode(
        config: &ModelConfig,
        rows: usize,
        context: usize,
        adapters: &[Option<&'a Adapter>],
    ) -> Result<Self, Failure> {
        let each = (context / BLOCK_TOKENS + 1) as u32;
        let blocks = (0..rows as u32).map(|row| (row * each..(row + 1) * each).collect()).collect();
        let cache = KvCache::new(config, rows * each as usize, DType::F32, &Device::Cpu)?;
        Ok(Self { tokens: vec![17; rows], starts: vec![context; rows], blocks, adapters: adapters.to_vec(), cache })
    }

    fn prefill(config: &ModelConfig, count: usize, adapter: Option<&'a Adapter>) -> Result<Self, Failure> {
        let blocks = vec![(0..count.div_ceil(BLOCK_TOKENS) as u32).collect()];
        let cache = KvCache::new(config, count.div_ceil(BLOCK_TOKENS), DType::F32, &Device::Cpu)?;
        Ok(Self { tokens: (0..count as u32).collect(), starts: vec![0], blocks, adapters: vec![adapter], cache })
    }

    fn run(&self, decoder: &Decoder) -> Result<(), Failure> {
        let each = self.tokens.len() / self.starts.len();
        let sequences: Vec<_> = (0..self.starts.len())
            .map(|index| SequenceRows {
                rows: index * each..(index + 1) * each,
                start: self.starts[index],
                blocks: &self.blocks[index],
                adapter: self.adapters[index],
                rope: RopeTable::Short,
            })
            .collect();
        let hidden = decoder.step(&self.tokens, &sequences, &self.cache)?;
        let last = (hidden.dim(0)? - self.starts.len(), self.starts.len());
        decoder.logits(&hidden.narrow(0, last.0, last.1)?)?;
        Ok(())
    }
}

/// Measures median times of `steps`, in turn so that other load affects all of them, and prints their ratios to the
/// first.
fn in_turns(title: &str, decoder: &Decoder, steps: &[(&str, Input<'_>)], times: usize) -> Result<(), Failure> {
    let mut measured = vec![Vec::new(); steps.len()];
    for round in 0..=times {
        for ((_, step), measured) in steps.iter().zip(&mut measured) {
            let start = Instant::now();
            // As the engine does: the whole step inside the pool.
            rayon::scope(|_| step.run(decoder).map_err(|error| error.to_string()))?;
            if round > 0 {
                measured.push(start.elapsed());
            }
        }
    }
    let medians: Vec<f64> = measured
        .iter_mut()
        .map(|times| {
            times.sort();
            times[times.len() / 2].as_secs_f64() * 1e3
        })
        .collect();
    println!("{title}");
    for ((name, _), time) in steps.iter().zip(&medians) {
        println!("  {name:<20} {time:>8.1} ms, {:.2} of {}", time / medians[0], steps[0].0);
    }
    Ok(())
}
