//! Measures the cost of bringing an adapter to the device: rank 16 on all linear layers of a model of SmolLM2-135M's
//! shape, from the disk and from host memory.
//!
//! Run with `cargo bench --bench adapters`; figures are medians, and vary by a fifth on a shared machine.

use std::time::{Duration, Instant};

use attune::adapters::peft;
use attune::adapters::peft::host::HostAdapter;
use attune::adapters::pieces::Pieces;
use attune::model::ModelConfig;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, MAX_RANK, Site};
use bytes::Bytes;
use candle_core::{DType, Device, Tensor};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

const RANK: usize = 16;
const CONFIG: &str = r#"{"model_type":"llama","hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,
    "num_attention_heads":9,"num_key_value_heads":3,"vocab_size":49152,"max_position_embeddings":8192,
    "rms_norm_eps":1e-5,"rope_theta":100000.0,"tie_word_embeddings":true,"hidden_act":"silu"}"#;

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("config.json"), CONFIG)?;
    let model = ModelConfig::read(folder.path())?;
    let files = peft::write(&adapter(&model)?, "bench")?;
    let place = folder.path().join("adapter_model.safetensors");
    std::fs::write(&place, &files.weights)?;
    println!("rank {RANK} on 7 layers of 30 blocks, {:.1} MB in f32", files.weights.len() as f64 / 1e6);

    let read = || Ok::<_, Failure>(Bytes::from(std::fs::read(&place)?));
    // Nobody goes first between the pieces of the work.
    let check = |weights| HostAdapter::check(&files.config, weights, &model, MAX_RANK, &mut Pieces::new(&mut |_| {}));
    let lay_out = |host: &HostAdapter| host.to_served(DType::BF16, &mut Pieces::new(&mut |_| {}));
    let host = check(read()?)?;
    let from_host = median(|| Ok(lay_out(&host)?))?;
    let from_disk = median(|| Ok(lay_out(&check(read()?)?)?))?;
    println!("from host memory            {:>7.2} ms", 1e3 * from_host.as_secs_f64());
    println!("from the disk, hash checked {:>7.2} ms", 1e3 * from_disk.as_secs_f64());
    Ok(())
}

fn adapter(model: &ModelConfig) -> Result<Adapter, Failure> {
    let mut layers = vec![LoraLayer::default(); model.num_hidden_layers];
    for layer in &mut layers {
        for site in Site::USUAL {
            let (output, input) = site.shape(model);
            let matrix = |shape| Tensor::rand(-1f32, 1f32, shape, &Device::Cpu);
            layer.set(site, LoraPair { a: matrix((RANK, input))?, b: matrix((output, RANK))?, scale: 2.0 });
        }
    }
    Ok(Adapter::new(String::new(), layers))
}

/// Measures the median time of 21 runs.
fn median(mut work: impl FnMut() -> Result<Adapter, Failure>) -> Result<Duration, Failure> {
    let mut times = Vec::new();
    for _ in 0..21 {
        let begin = Instant::now();
        let adapter = work()?;
        times.push(begin.elapsed());
        drop(adapter);
    }
    times.sort();
    Ok(times[times.len() / 2])
}
