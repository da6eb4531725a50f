//! Speed of the decoder alone, on random weights of SmolLM2-135M's shape: prefill, decode, and one training step.
//!
//! `cargo bench --bench decoder`; figures are medians, and vary by a fifth on a shared machine.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use attune::adapters::{Adapter, LoraLayer, LoraPair, Site};
use attune::model::ModelConfig;
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::weights::Weights;
use attune::train::backward::{self, PackedBatch, Target};
use candle_core::{Device, Tensor};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

const CONFIG: &str = r#"{"model_type":"llama","hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,
    "num_attention_heads":9,"num_key_value_heads":3,"vocab_size":49152,"max_position_embeddings":8192,
    "rms_norm_eps":1e-5,"rope_theta":100000.0,"tie_word_embeddings":true,"hidden_act":"silu"}"#;

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let (config, decoder) = random_model(folder.path())?;
    println!("SmolLM2-135M's shape, f32, {} threads", rayon::current_num_threads());

    for (rows, context) in [(1, 128), (4, 128), (16, 128)] {
        let time = decode_step(&config, &decoder, rows, context)?;
        println!(
            "decode, {rows:>2} sequences at {context} tokens   {:>7.1} tokens/s",
            rows as f64 / time.as_secs_f64()
        );
    }
    let time = prefill(&config, &decoder, 512)?;
    println!("prefill, 512 tokens                 {:>7.1} tokens/s", 512.0 / time.as_secs_f64());

    let adapter = adapter(&config, 16)?;
    for tokens in [512, 1024] {
        let batch = batch(&config, tokens);
        let time =
            median(3, || Ok(backward::loss_and_gradients(&decoder, &adapter, &batch, tokens as f64).map(drop)?))?;
        println!("training, rank 16, {tokens:>4} packed tokens {:>7.1} tokens/s", tokens as f64 / time.as_secs_f64());
    }
    Ok(())
}

fn random_model(folder: &Path) -> Result<(ModelConfig, Decoder), Failure> {
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
        for site in Site::ALL {
            let shape = match site {
                Site::Query => (query_width, hidden),
                Site::Key | Site::Value => (key_width, hidden),
                Site::Output => (hidden, query_width),
                Site::Gate | Site::Up => (intermediate, hidden),
                Site::Down => (hidden, intermediate),
            };
            tensors.insert(format!("model.layers.{layer}.{}.weight", site.path()), random(shape)?);
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.insert(format!("model.layers.{layer}.{norm}.weight"), ones()?);
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    drop(tensors);
    let decoder = Decoder::load(&config, &Weights::open(folder, &Device::Cpu)?, None)?;
    Ok((config, decoder))
}

fn adapter(config: &ModelConfig, rank: usize) -> Result<Adapter, Failure> {
    let query_width = config.num_attention_heads * config.head_dim;
    let key_width = config.num_key_value_heads * config.head_dim;
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let mut layers = Vec::new();
    for _ in 0..config.num_hidden_layers {
        let mut layer = LoraLayer::default();
        for site in Site::ALL {
            let (input, output) = match site {
                Site::Query => (hidden, query_width),
                Site::Key | Site::Value => (hidden, key_width),
                Site::Output => (query_width, hidden),
                Site::Gate | Site::Up => (hidden, intermediate),
                Site::Down => (intermediate, hidden),
            };
            let a = Tensor::randn(0.0_f32, 0.02, (rank, input), &Device::Cpu)?;
            let b = Tensor::randn(0.0_f32, 0.02, (output, rank), &Device::Cpu)?;
            layer.set(site, LoraPair { a, b, scale: 2.0 });
        }
        layers.push(layer);
    }
    Ok(Adapter { id: "benchmark".into(), layers })
}

#[allow(clippy::single_range_in_vec_init, reason = "one sequence is meant")]
fn batch(config: &ModelConfig, count: usize) -> PackedBatch {
    let tokens: Vec<u32> = (0..count).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    let targets = (0..count - 1).map(|row| Target { row, token: tokens[row + 1], weight: 1.0 }).collect();
    PackedBatch { tokens, sequences: vec![0..count], targets }
}

fn decode_step(config: &ModelConfig, decoder: &Decoder, rows: usize, context: usize) -> Result<Duration, Failure> {
    let blocks_each = context / BLOCK_TOKENS + 1;
    let cache = KvCache::new(config, rows * blocks_each, &Device::Cpu)?;
    let blocks: Vec<Vec<u32>> =
        (0..rows).map(|row| (0..blocks_each).map(|block| (row * blocks_each + block) as u32).collect()).collect();
    let tokens = vec![17; rows];
    let sequences: Vec<_> = (0..rows)
        .map(|row| SequenceRows { rows: row..row + 1, start: context, blocks: &blocks[row], adapter: None })
        .collect();
    median(9, || {
        let hidden = decoder.step(&tokens, &sequences, &cache)?;
        decoder.logits(&hidden)?;
        Ok(())
    })
}

fn prefill(config: &ModelConfig, decoder: &Decoder, count: usize) -> Result<Duration, Failure> {
    let blocks: Vec<u32> = (0..count.div_ceil(BLOCK_TOKENS) as u32).collect();
    let cache = KvCache::new(config, blocks.len(), &Device::Cpu)?;
    let tokens: Vec<u32> = (0..count as u32).collect();
    median(3, || {
        let rows = SequenceRows { rows: 0..count, start: 0, blocks: &blocks, adapter: None };
        let hidden = decoder.step(&tokens, &[rows], &cache)?;
        decoder.logits(&hidden.narrow(0, count - 1, 1)?)?;
        Ok(())
    })
}

fn median(times: usize, mut work: impl FnMut() -> Result<(), Failure>) -> Result<Duration, Failure> {
    work()?; // warm up
    let mut measured = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        work()?;
        measured.push(start.elapsed());
    }
    measured.sort();
    Ok(measured[times / 2])
}
