//! What a model is: configuration, weights, tokenizer, chat template, and the decoder whose one set of weights both serves
//! and trains. Called by `engine` (steps over a paged cache) and by `train` (packed sequences, explicit backward).

mod address;
pub mod chat_template;
pub mod config;
pub mod decoder;
pub mod device;
pub mod entry;
pub mod error;
#[cfg(feature = "cuda")]
mod gpu;
pub mod kernels;
pub mod kv_cache;
pub mod linear;
pub mod lora;
pub mod rope;
pub mod rope_scaling;
pub mod routes;
pub mod tokenizer;
pub mod tool_syntax;
pub mod vocabulary;
pub mod weights;

use std::path::{Path, PathBuf};

use candle_core::Device;

pub use config::ModelConfig;
pub use error::{Error, Result};

use crate::chat_template::ChatTemplate;
use crate::decoder::Decoder;
use crate::device::DeviceHealth;
use crate::entry::ModelEntry;
use crate::kernels::Kernels;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::Vocabulary;

/// A loaded base model: immutable, shared by the engine and the trainer.
#[derive(Debug)]
pub struct BaseModel {
    /// The id that clients use.
    pub id: String,
    /// The folder it was loaded from.
    pub path: PathBuf,
    /// The shape of the decoder.
    pub config: ModelConfig,
    /// The weights and the forward pass.
    pub decoder: Decoder,
    /// Whether the decoder's device still computes.
    pub health: DeviceHealth,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// The bytes of each token; absent where the tokenizer's tokens have none.
    pub vocabulary: Option<Vocabulary>,
    /// Renders chats; absent where the folder has no template.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
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
        let config = ModelConfig::read(path)?;
        let weights = weights::Weights::open(path, device)?;
        let decoder = Decoder::load_on(&config, &weights, &entry.storage(device), kernels)?;
        let tokenizer = Tokenizer::read(path)?;
        if tokenizer.vocabulary_size() > config.vocab_size {
            return Err(Error::Setup(format!(
                "{}: tokenizer.json has {} tokens, config.json has vocab_size {}",
                path.display(),
                tokenizer.vocabulary_size(),
                config.vocab_size
            )));
        }
        let chat_template = ChatTemplate::read(path)?;
        let end_tokens = end_tokens(path, &tokenizer)?;
        let vocabulary = Vocabulary::read(path, &tokenizer, config.vocab_size, &end_tokens)?;
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
            health: DeviceHealth::new(device.clone()),
            tokenizer,
            vocabulary,
            chat_template,
            end_tokens,
            created,
        })
    }
}

/// `eos_token_id` of `generation_config.json`, else of `config.json`, else the tokenizer's end token.
fn end_tokens(folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let file = folder.join(name);
        if !file.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&file).map_err(Error::io(format!("read {}", file.display())))?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| Error::Setup(format!("{}: not JSON: {error}", file.display())))?;
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
