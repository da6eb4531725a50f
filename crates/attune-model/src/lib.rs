//! Base models: configuration, weights, tokenizer, chat template, and the decoder, which serves and trains with one set
//! of weights. Called by `engine` (steps over a paged cache) and by `train` (packed sequences, explicit backward).

mod address;
pub mod blocks;
pub mod chat;
pub mod chat_template;
pub mod checkpoint;
pub mod classifier;
pub mod config;
pub mod decoder;
pub mod device;
pub mod entry;
pub mod error;
mod folder;
mod forms;
pub mod generation;
pub mod gguf;
#[cfg(feature = "cuda")]
mod gpu;
pub mod kernels;
pub mod kv_cache;
pub mod linear;
pub mod lora;
pub mod matrix;
pub mod merge;
pub mod python_json;
mod quantized;
pub mod rope;
pub mod rope_scaling;
pub mod routes;
pub mod sampling_settings;
pub mod second_engine;
mod sites;
pub mod static_model;
pub mod tokenizer;
pub mod tool_syntax;
pub mod vectors;
pub mod vocabulary;
pub mod weights;

use std::path::PathBuf;
use std::sync::OnceLock;

use attune_support::system::{FreeAtOnce, HugePages};
use candle_core::Device;

pub use config::ModelConfig;
pub use error::{Error, Result};

use crate::chat_template::ChatTemplate;
use crate::checkpoint::Checkpoint;
use crate::classifier::Classifier;
use crate::decoder::Decoder;
use crate::device::DeviceHealth;
use crate::entry::ModelEntry;
use crate::generation::GenerationDefaults;
use crate::kernels::Kernels;
use crate::tokenizer::Tokenizer;
use crate::vectors::VectorForm;
use crate::vocabulary::Vocabulary;

/// Loaded base model: immutable, shared by the engine and the trainer.
#[derive(Debug)]
pub struct BaseModel {
    /// Id that clients use.
    pub id: String,
    /// Folder or file that the model was loaded from.
    pub path: PathBuf,
    /// Shape of the decoder.
    pub config: ModelConfig,
    /// Weights and forward pass.
    pub decoder: Decoder,
    /// The decoder on training's own stream, made for the first job; `None` if training computes with `decoder`.
    pub second_decoder: OnceLock<Option<Decoder>>,
    /// How vectors are made of its hidden states.
    pub vectors: VectorForm,
    /// Head that classifies texts; `None` if it has none.
    pub classifier: Option<Classifier>,
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
    /// True if another engine runs it, in a process of its own: the decoder computes nothing then.
    pub runs_elsewhere: bool,
    /// Tokens that stand for a picture, a film or sound, where another engine runs a model that reads texts alone here.
    pub media_tokens: Vec<u32>,
}

impl BaseModel {
    /// Loads the model of `entry` onto `device`. Slow: call it off the async threads.
    pub fn load(entry: &ModelEntry, device: &Device) -> Result<Self> {
        Self::load_on(entry, &Kernels::of(device)?)
    }

    /// Loads the model of `entry` onto the device of `kernels`, which its decoder runs on.
    pub fn load_on(entry: &ModelEntry, kernels: &Kernels) -> Result<Self> {
        let device = kernels.device();
        let _free_at_once = FreeAtOnce::new();
        let checkpoint = Checkpoint::of_entry(entry)?;
        let config = checkpoint.config()?;
        let generation = checkpoint.generation(entry, config.max_position_embeddings)?;
        let weights = checkpoint.weights(device)?;
        let huge_pages = HugePages::ask();
        let decoder = Decoder::load_on(&config, &weights, &entry.storage(device), kernels)?;
        drop(huge_pages);
        let classifier = match &checkpoint {
            Checkpoint::Folder(folder) => classifier::loading::load(folder, &config, &weights)?,
            Checkpoint::Gguf(_) | Checkpoint::Static(_) | Checkpoint::SecondEngine(_) => None,
        };
        weights.check_all_read()?;
        let vectors = checkpoint.vectors(&entry.path, &config)?;
        let source = checkpoint.tokenizer()?;
        let tokenizer = Tokenizer::new(&source)?;
        let tokenizer = match &checkpoint {
            Checkpoint::Static(model) => model.tokenizer(tokenizer, &source),
            _ if vectors.is_lower_cased => tokenizer.lower_cased(),
            _ => tokenizer,
        };
        let (tokenizer, left_out) = tokenizer.within(config.vocab_size).map_err(|fault| checkpoint.fault(&fault))?;
        if !left_out.is_empty() {
            tracing::info!(model = entry.id, tokens = ?left_out, "the embedding has no rows for these tokens: left out");
        }
        let chat_template = checkpoint.chat_template()?;
        let mut end_tokens = checkpoint.end_tokens(&tokenizer)?;
        let end_mark = |template| chat::end_mark(template, &tokenizer, &end_tokens);
        let end_mark = chat_template.as_ref().and_then(end_mark);
        end_tokens.extend(end_mark);
        let vocabulary = match &checkpoint {
            // It writes no text whose bytes could matter.
            Checkpoint::Static(_) => None,
            _ => Vocabulary::new(&source.origin, &tokenizer, config.vocab_size, &end_tokens),
        };
        Ok(Self {
            id: entry.id.clone(),
            path: entry.path.clone(),
            config,
            decoder,
            second_decoder: OnceLock::new(),
            vectors,
            classifier,
            health: DeviceHealth::new(device.clone()),
            tokenizer,
            vocabulary,
            chat_template,
            end_tokens,
            generation,
            created: checkpoint.created(),
            runs_elsewhere: matches!(checkpoint, Checkpoint::SecondEngine(_)),
            media_tokens: match &checkpoint {
                Checkpoint::SecondEngine(model) => model.media_tokens()?,
                _ => Vec::new(),
            },
        })
    }

    /// Returns true if the model is a table of vectors of tokens, without blocks.
    pub fn is_static(&self) -> bool {
        self.decoder.blocks.is_empty() && !self.runs_elsewhere
    }

    /// Returns true if fine-tuning can change it: Attune's own decoder runs it, and it has layers.
    pub fn trains(&self) -> bool {
        !self.decoder.blocks.is_empty()
    }

    /// Returns how many tokens of a text with this `prompt` before it are read, but not pooled.
    pub fn unpooled_tokens(&self, prompt: &str) -> Result<usize> {
        if self.vectors.pools_prompt || prompt.is_empty() { Ok(0) } else { self.tokenizer.prompt_tokens(prompt) }
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
