//! Measures training of a model of a billion parameters on this machine: its memory compared with the estimate, and its
//! speed, with the weights in f32 and bf16 and with each kind of recomputation.
//!
//! Run with `cargo bench --bench large_model [-- SHAPE [FOLDER [DTYPE]]]`: SHAPE is `1b` (Llama-3.2-1B, the default) or
//! `135m` (SmolLM2-135M), with random weights. The checkpoint, 2.5 GB for `1b`, is written below FOLDER, the system's
//! temporary folder by default, and deleted afterwards. DTYPE, one of `f32`, `bf16`, `q8_0` and `q4_0`, replaces f32
//! and bf16. Each row of the table is a process of its own. 24 GB of memory are enough.

use std::ffi::OsString;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use attune::model::linear::Dtype;

use attune::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use attune::format;
use attune::model::entry::ModelEntry;
use attune::model::{BaseModel, ModelConfig};
use attune::system::{self, MemoryWatch};
use attune::train::estimate::TrainingMemory;
use attune::train::hyperparameters::Hyperparameters;
use attune::train::{Recomputation, TrainSettings, Trainer};
use candle_core::Device;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

const LARGE: &str = r#"{"model_type":"llama","hidden_size":2048,"intermediate_size":8192,"num_hidden_layers":16,
    "num_attention_heads":32,"num_key_value_heads":8,"head_dim":64,"vocab_size":128256,"max_position_embeddings":131072,
    "rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":true,"hidden_act":"silu","eos_token_id":1,
    "rope_scaling":{"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
    "original_max_position_embeddings":8192}}"#;
const SMALL: &str = r#"{"model_type":"llama","hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,
    "num_attention_heads":9,"num_key_value_heads":3,"vocab_size":49152,"max_position_embeddings":8192,"eos_token_id":1,
    "rms_norm_eps":1e-5,"rope_theta":100000.0,"tie_word_embeddings":true,"hidden_act":"silu"}"#;

/// Steps of a row; the first wakes the machine up and is not timed.
const STEPS: usize = 3;
/// Examples of a step, which are one batch, and the tokens of each.
const EXAMPLES: usize = 4;
const TOKENS: usize = 129;

fn main() -> Result<(), Failure> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).filter(|argument| argument != "--bench").collect();
    if let [run, folder, dtype, way] = arguments.as_slice()
        && run == "--run"
    {
        return row(Path::new(folder), dtype.to_str().unwrap_or_default(), way.to_str().unwrap_or_default());
    }
    let shape = arguments.first().and_then(|shape| shape.to_str()).unwrap_or("1b");
    let config = match shape {
        "1b" => LARGE,
        "135m" => SMALL,
        other => return Err(format!("shape {other}: use 1b or 135m").into()),
    };
    let parent = arguments.get(1).map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::Builder::new().prefix("attune-large-model-").tempdir_in(parent)?;
    write_model(folder.path(), config)?;
    println!("{shape}, {EXAMPLES} examples of {TOKENS} tokens a step, rank 16");
    println!("{:6}{:>12}{:>12}{:>12}{:>12}{:>12}", "", "recomputed", "tokens/s", "weights", "peak", "estimate");
    let only = arguments.get(2).and_then(|dtype| dtype.to_str());
    let dtypes = only.map_or_else(|| vec!["f32", "bf16"], |only| vec![only]);
    for dtype in dtypes {
        for way in Recomputation::ALL {
            let program = std::env::current_exe()?;
            let row = Command::new(program).arg("--run").arg(folder.path()).args([dtype, way.name()]).status()?;
            if !row.success() {
                return Err(format!("{dtype}, {}: {row}", way.name()).into());
            }
        }
    }
    Ok(())
}

/// Measures one row of the table.
fn row(folder: &Path, dtype: &str, way: &str) -> Result<(), Failure> {
    // As the server does.
    // SAFETY: no other thread is running yet.
    unsafe { system::keep_freed_memory() };
    let way = Recomputation::ALL.into_iter().find(|known| known.name() == way).ok_or("an unknown way")?;
    let mut entry = ModelEntry::new("model", folder);
    match dtype {
        "f32" => {}
        "bf16" => entry.dtype = Some(Dtype::Bf16),
        format => entry.quantize = Some(format.to_owned()),
    }
    let model = Arc::new(BaseModel::load(&entry, &Device::Cpu)?);
    let example = |number: usize| TokenizedExample {
        tokens: (0..TOKENS).map(|i| ((number * 7919 + i * 104_729) % 1000) as u32).collect(),
        weights: (0..TOKENS).map(|i| if i >= TOKENS / 2 { 1.0 } else { 0.0 }).collect(),
    };
    let count = EXAMPLES * STEPS;
    let asked = Hyperparameters { batch_size: Some(EXAMPLES as u32), ..Hyperparameters::default() };
    let settings = TrainSettings::new(&asked, 1);
    let report =
        DatasetReport { examples: count, tokens: count * TOKENS, longest: TOKENS - 1, ..DatasetReport::default() };
    // Measured from here on: loading briefly takes more memory than the weights.
    let (process, memory) = (system::resident_bytes(), MemoryWatch::start(system::resident_bytes));
    let examples = ExampleStore::of((0..count).map(example))?;
    let mut trainer = Trainer::new(Arc::clone(&model), settings.clone(), examples, None)?;
    trainer.recompute(way);
    let estimate = TrainingMemory::new(&model, trainer.parameter_count(), &settings, &report, process, way);
    trainer.step(&mut || Ok(()))?;
    let began = Instant::now();
    let mut tokens = 0;
    while let Some(step) = trainer.step(&mut || Ok(()))? {
        tokens += step.tokens;
    }
    let rate = format::count(tokens as f64 / began.elapsed().as_secs_f64());
    let peak = memory.peak_bytes().ok_or("the system does not tell what is resident")?;
    let [weights, peak, estimate] = [estimate.weights, peak, estimate.peak].map(format::bytes);
    println!("{dtype:6}{:>12}{rate:>12}{weights:>12}{peak:>12}{estimate:>12}", way.name());
    Ok(())
}

/// Writes a checkpoint of random bf16 weights with a standard deviation of 0.02, and a tokenizer of a thousand words.
fn write_model(folder: &Path, config: &str) -> Result<(), Failure> {
    std::fs::write(folder.join("config.json"), config)?;
    let vocabulary: serde_json::Map<_, _> = (0..1000).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    std::fs::write(folder.join("tokenizer_config.json"), "{}")?;

    let tensors = tensors(&ModelConfig::read(folder)?);
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in &tensors {
        let bytes = 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (_, shape) in &tensors {
        for _ in 0..shape.iter().product::<usize>() {
            let value = if shape.len() == 1 { 1.0 } else { uniform(&mut state) * 0.0346 };
            file.write_all(&((value.to_bits() >> 16) as u16).to_le_bytes())?;
        }
    }
    file.flush()?;
    Ok(())
}

/// Draws from -1 to 1 (xorshift64).
fn uniform(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
}

/// Returns the names and shapes of a checkpoint's tensors.
fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..config.num_hidden_layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("mlp.gate_proj", vec![intermediate, hidden]),
            ("mlp.up_proj", vec![intermediate, hidden]),
            ("mlp.down_proj", vec![hidden, intermediate]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors
}
