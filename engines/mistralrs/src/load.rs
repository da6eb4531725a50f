//! Loads a model's folder with mistralrs. Called by `main` once.

use anyhow::{Context as _, Result, anyhow, bail};
use attune_engine::child::protocol::Load;
use mistralrs::{
    MemoryGpuConfig, Model, ModelBuilder, ModelDType, PagedAttentionMetaBuilder, TokenSource, paged_attn_supported,
    parse_isq_value,
};

use crate::lora;

/// Loads what `load` says. The library's thread-local list of adapters is this thread's own, and the program loads once, so
/// nothing is left over of an earlier load.
pub(crate) fn load(runtime: &tokio::runtime::Runtime, load: &Load) -> Result<Model> {
    // Nothing is asked of a hub: all files are in the folder.
    let mut builder = ModelBuilder::new(load.path.display())
        .with_token_source(TokenSource::None)
        .with_max_num_seqs(load.max_sequences)
        // On a CPU the library never removes what it keeps of prompts.
        .with_prefix_cache_n(None)
        .with_dtype(dtype(load.dtype.as_deref())?);
    if load.on_cpu {
        builder = builder.with_force_cpu();
    } else if paged_attn_supported() {
        let memory = load.cache_mib.map_or(MemoryGpuConfig::Utilization(0.8), MemoryGpuConfig::MbAmount);
        builder = builder.with_paged_attn(PagedAttentionMetaBuilder::default().with_gpu_memory(memory).build()?);
    }
    if let Some(format) = &load.quantize {
        let name = format.replace("_k", "k");
        let format = parse_isq_value(&name, None).map_err(|reason| anyhow!("quantize = \"{format}\": {reason}"))?;
        builder = builder.with_isq(format);
    }
    if let Some(adapter) = &load.adapter {
        if !load.on_cpu {
            bail!("an adapter is added on the CPU only: set device = \"cpu\", or export the merged model with PEFT");
        }
        lora::apply(adapter, &load.path).with_context(|| format!("the adapter {}", adapter.display()))?;
    }
    // The library loads in the calling thread, in which the adapter is.
    runtime.block_on(builder.build()).with_context(|| load.path.display().to_string())
}

fn dtype(name: Option<&str>) -> Result<ModelDType> {
    Ok(match name {
        None => ModelDType::Auto,
        Some("f32") => ModelDType::F32,
        Some("bf16") => ModelDType::BF16,
        Some("f16") => ModelDType::F16,
        Some(other) => bail!("dtype = \"{other}\" is not known"),
    })
}
