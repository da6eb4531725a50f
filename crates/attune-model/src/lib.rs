//! Base models: configuration, weights, tokenizer, chat template, and the decoder, which serves and trains with one set
//! of weights. Called by `engine` (steps over a paged cache) and by `train` (packed sequences, explicit backward).

mod address;
pub mod blocks;
pub mod chat;
pub mod chat_template;
pub mod config;
pub mod decoder;
pub mod device;
pub mod entry;
pub mod error;
pub mod folder;
pub mod generation;
pub mod gguf;
#[cfg(feature = "cuda")]
mod gpu;
pub mod kernels;
pub mod kv_cache;
pub mod linear;
pub mod lora;
pub mod matrix;
pub mod python_json;
pub mod rope;
pub mod rope_scaling;
pub mod routes;
pub mod sampling_settings;
pub mod tokenizer;
pub mod tool_syntax;
pub mod vocabulary;
pub mod weights;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::Device;

pub use config::ModelConfig;
pub use error::{Error, Result};

use crate::chat_template::ChatTemplate;
use crate::decoder::Decoder;
use crate::device::DeviceHealth;
use crate::entry::ModelEntry;
use crate::generation::GenerationDefaults;
use crate::kernels::Kernels;
use crate::tokenizer::{Tokenizer, TokenizerSource};
use crate::vocabulary::Vocabulary;

/// Loaded base model: immutable, shared by the engine and the trainer.
#[derive(Debug)]
pub struct BaseModel {
    /// Id that clients use.
    pub id: String,
    /// Folder that the model was loaded from.
    pub path: PathBuf,
    /// Shape of the decoder.
    pub config: ModelConfig,
    /// Weights and forward pass.
    pub decoder: Decoder,
    /// The decoder on training's own stream, made for the first job; `None` if training computes with `decoder`.
    pub second_decoder: OnceLock<Option<Decoder>>,
    /// Health of the decoder's device.
    pub health: DeviceHealth,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// Bytes of each token; `None` if the tokenizer's tokens have no bytes of their own.
    pub vocabulary: Option<Vocabulary>,
    /// Template that renders chats; `None` if the folder has none.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that end an answer, the usual one first; the mark behind an answer in the chat template is one of them.
    pub end_tokens: Vec<u32>,
    /// How it answers where a request does not say.
    pub generation: GenerationDefaults,
    /// Unix seconds of the checkpoint's last change, shown as the model's `created`.
    pub created: i64,
}

impl BaseModel {
    /// Loads the folder of `entry` onto `device`. Slow: call it off the async threads.
    pub fn load(entry: &ModelEntry, device: &Device) -> Result<Self> {
        Self::load_on(entry, &Kernels::of(device)?)
    }

    /// Loads the folder of `entry` onto the device of `kernels`, which its decoder runs on.
    pub fn load_on(entry: &ModelEntry, kernels: &Kernels) -> Result<Self> {
        let device = kernels.device();
        let path = entry.path.as_path();
        folder::check(path)?;
        let config = ModelConfig::read(path)?;
        let generation = GenerationDefaults::read(entry, config.max_position_embeddings)?;
        let weights = weights::Weights::open(path, device)?;
        let decoder = Decoder::load_on(&config, &weights, &entry.storage(device), kernels)?;
        let source = TokenizerSource::read(path)?;
        let tokenizer = Tokenizer::new(&source)?;
        if tokenizer.vocabulary_size() > config.vocab_size {
            return Err(Error::Setup(format!(
                "{}: tokenizer.json has {} tokens, config.json has vocab_size {}",
                path.display(),
                tokenizer.vocabulary_size(),
                config.vocab_size
            )));
        }
        let chat_template = ChatTemplate::read(path)?;
        let mut end_tokens = end_tokens(path, &tokenizer)?;
        let end_mark = |template| chat::end_mark(template, &tokenizer, &end_tokens);
        let end_mark = chat_template.as_ref().and_then(end_mark);
        end_tokens.extend(end_mark);
        let vocabulary = Vocabulary::new(&source, &tokenizer, config.vocab_size, &end_tokens);
        let created = std::fs::metadata(path.join("config.json"))
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |age| age.as_secs() as i64);
        Ok(Self {
            id: entry.id.clone(),
            path: path.to_path_buf(),
            config,
            decoder,
            second_decoder: OnceLock::new(),
            health: DeviceHealth::new(device.clone()),
            tokenizer,
            vocabulary,
            chat_template,
            end_tokens,
            generation,
            created,
        })
    }

    /// Returns the decoder that training computes with: the same weights on another stream of their GPU. On the CPU,
    /// and for quantized blocks, that is [`BaseModel::decoder`] itself.
    pub fn training_decoder(&self) -> &Decoder {
        let second = self.second_decoder.get_or_init(|| {
            let second = self.decoder.on_second_stream();
            if let Err(error) = &second {
                tracing::warn!(%error, "training shares the stream of requests");
            }
            second.ok().flatten()
        });
        second.as_ref().unwrap_or(&self.decoder)
    }
}

/// Reads `eos_token_id` of `generation_config.json`, else of `config.json`; else returns the tokenizer's end token.
fn end_tokens(folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let Some(value) = generation::read_json(&folder.join(name))? else { continue };
        let ids: Vec<u32> = match &value["eos_token_id"] {
            serde_json::Value::Array(ids) => ids.iter().filter_map(|id| Some(id.as_u64()? as u32)).collect(),
            id => id.as_u64().map(|id| id as u32).into_iter().collect(),
        };
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(tokenizer.end_token().into_iter().collect())
}
