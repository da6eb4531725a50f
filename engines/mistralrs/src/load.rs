//! Loads a model's folder with mistralrs. Called by `main` once.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use attune_engine::child::protocol::Load;
use mistralrs::core::MistralRsBuilder;
use mistralrs::llguidance::toktrie::TokEnv;
use mistralrs::model_builder_trait::build_auto_pipeline;
use mistralrs::{
    MemoryGpuConfig, Model, ModelBuilder, ModelDType, PagedAttentionMetaBuilder, TokenSource, paged_attn_supported,
    parse_isq_value,
};

use crate::lora;
use crate::rewrite::Rewritten;
use crate::trial;

/// A loaded model.
pub(crate) struct Loaded {
    pub(crate) model: Model,
    /// Tokens that a sequence may have.
    pub(crate) context: usize,
    /// The tokens' texts; `None` if the library has no use for them.
    tokens: Option<TokEnv>,
}

impl Loaded {
    /// Returns true if the library takes the token as one behind which an answer ends: it refuses those that other tokens
    /// begin with.
    pub(crate) fn can_end(&self, token: u32) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| {
            let trie = tokens.tok_trie();
            (token as usize) < trie.vocab_size() && !trie.has_extensions(trie.token(token))
        })
    }
}

/// Loads what `load` says. The library's thread-local list of adapters is this thread's own, and the program loads once, so
/// nothing is left over of an earlier load.
pub(crate) fn load(runtime: &tokio::runtime::Runtime, load: &Load) -> Result<Loaded> {
    let rewritten = Rewritten::of(load).with_context(|| load.path.display().to_string())?;
    let folder = rewritten.as_ref().map_or(load.path.as_path(), Rewritten::folder);
    // Nothing is asked of a hub: all files are in the folder.
    let mut builder = ModelBuilder::new(folder.display())
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
    let template = no_template();
    if let Some(template) = &template {
        builder = builder.with_jinja_explicit(template.display().to_string());
    }
    // The library loads in the calling thread, in which the adapter is.
    let loaded = runtime.block_on(build(builder)).with_context(|| load.path.display().to_string());
    drop(rewritten);
    if let Some(template) = template {
        let _ = std::fs::remove_file(template);
    }
    loaded
}

/// Writes an empty chat template, which the library takes instead of the model's: Attune renders chats itself, and by some
/// templates the library would parse answers, for gpt-oss with an encoding that it fetches from a server.
fn no_template() -> Option<PathBuf> {
    let path = std::env::temp_dir().join(format!("attune-mistralrs-{}.jinja", std::process::id()));
    // Where nothing can be written, answers are the same, and only the time to parse them is lost.
    std::fs::write(&path, "").ok().map(|()| path)
}

/// Loads the model, and begins its engine, which ends an answer where Attune says and nowhere else: the library itself takes
/// some tokens as ends by their names alone.
async fn build(builder: ModelBuilder) -> Result<Loaded> {
    let (pipeline, scheduler, settings) = build_auto_pipeline(builder).await?;
    let metadata = pipeline.lock().await.get_metadata();
    let room = metadata.cache_config.as_ref().map_or(usize::MAX, |cache| cache.block_size * cache.num_gpu_blocks);
    let (context, tokens) = (metadata.max_seq_len.min(room), metadata.tok_env());
    let settings = settings.engine_config;
    let engine = MistralRsBuilder::new(pipeline, scheduler, settings.throughput_logging_enabled, None)
        .with_no_kv_cache(settings.no_kv_cache)
        .with_no_prefix_cache(settings.no_prefix_cache)
        .with_prefix_cache_n(settings.prefix_cache_n)
        .with_disable_eos_stop(true);
    let model = Model::new(engine.build().await);
    trial::answer(&model, context).await?;
    Ok(Loaded { model, context, tokens })
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
