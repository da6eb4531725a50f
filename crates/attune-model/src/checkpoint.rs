//! A model's files in one of the forms that they come in: a folder in Hugging Face form, or GGUF files. Opened by
//! whoever has a model's path; all that is read of a model goes through here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde_json::Value;

use crate::chat_template::ChatTemplate;
use crate::entry::ModelEntry;
use crate::folder::{self, Form};
use crate::generation::GenerationDefaults;
use crate::gguf::{self, Gguf};
use crate::second_engine::{EngineChoice, SecondEngineModel};
use crate::static_model::StaticModel;
use crate::tokenizer::{Tokenizer, TokenizerSource};
use crate::vectors::{self, VectorForm};
use crate::weights::Weights;
use crate::{Error, ModelConfig, Result, python_json};

/// The files of one model, looked at from the outside: they can be loaded.
#[derive(Debug, Clone)]
pub enum Checkpoint {
    /// A folder with `config.json`, `*.safetensors` and `tokenizer.json`; below it or around it may lie what makes vectors.
    Folder(PathBuf),
    /// A GGUF file, or the shards of one.
    Gguf(Arc<Gguf>),
    /// A table of vectors of tokens.
    Static(StaticModel),
    /// A folder whose model another engine runs.
    SecondEngine(SecondEngineModel),
}

impl Checkpoint {
    /// Opens the model of `entry` for the engine that it names.
    pub fn of_entry(entry: &ModelEntry) -> Result<Self> {
        match entry.engine {
            EngineChoice::Auto => Self::open(&entry.path),
            EngineChoice::Attune => match Self::open(&entry.path)? {
                Self::SecondEngine(_) => {
                    let family = Self::open(&entry.path)?.config()?.family;
                    Err(Error::Setup(format!(
                        "{}: engine = \"attune\" does not have model_type `{family}`; the other engine has it: leave `engine` \
                         out, or set \"mistralrs\"",
                        entry.path.display()
                    )))
                }
                own => Ok(own),
            },
            EngineChoice::Mistralrs => {
                let model = SecondEngineModel::chosen(&entry.path)?;
                model.check()?;
                Ok(Self::SecondEngine(model))
            }
        }
    }

    /// Opens the model at `path`; refuses a path that no model can be loaded from, with what to do about it. Reads small
    /// files and headers only.
    pub fn open(path: &Path) -> Result<Self> {
        match folder::find(path)? {
            Form::Folder(folder) => {
                let config = folder::check(&folder)?;
                let checkpoint = Self::Folder(folder);
                checkpoint.vectors(path, &config)?;
                Ok(checkpoint)
            }
            Form::Static(model) => {
                model.check()?;
                Ok(Self::Static(model))
            }
            Form::SecondEngine(model) => {
                model.check()?;
                Ok(Self::SecondEngine(model))
            }
            Form::Gguf(path) => {
                let file = Gguf::open(&path)?;
                gguf::vectors::read(&file, &gguf::config::read(&file)?)?;
                Ok(Self::Gguf(Arc::new(file)))
            }
        }
    }

    /// Returns the folder with the model's own files, which may lie below the one that was opened; `None` for GGUF files.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Gguf(_) => None,
            Self::Static(model) => Some(model.files()),
            Self::SecondEngine(model) => Some(model.folder()),
        }
    }

    /// Returns true if the model at `path`, the one that was opened, says how it makes vectors: that is what it is for.
    pub fn is_for_vectors(&self, path: &Path) -> bool {
        match self {
            Self::Folder(_) => vectors::folder::has_modules(path),
            Self::Gguf(file) => gguf::vectors::has_pooling(file),
            Self::Static(_) => true,
            Self::SecondEngine(_) => false,
        }
    }

    /// Reads the shape of the decoder.
    pub fn config(&self) -> Result<ModelConfig> {
        match self {
            Self::Folder(folder) => ModelConfig::read(folder),
            Self::Gguf(file) => gguf::config::read(file),
            Self::Static(model) => model.config(),
            Self::SecondEngine(model) => model.config(),
        }
    }

    /// Maps the tensors, which are loaded onto `device` as they are asked for.
    pub fn weights(&self, device: &Device) -> Result<Weights> {
        match self {
            Self::Folder(folder) => Weights::open(folder, device),
            Self::Gguf(file) => Weights::of_gguf(file.clone(), device),
            Self::Static(model) => model.weights(device),
            Self::SecondEngine(model) => model.weights(device),
        }
    }

    /// Reads what the tokenizer is made of.
    pub fn tokenizer(&self) -> Result<TokenizerSource> {
        match self {
            Self::Folder(folder) => TokenizerSource::read(folder),
            Self::Gguf(file) => gguf::tokenizer::source(file.metadata()),
            Self::Static(model) => model.tokenizer_source(),
            Self::SecondEngine(model) => TokenizerSource::read(model.folder()),
        }
    }

    /// Compiles the chat templates; `None` if there are none.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match self {
            Self::Folder(folder) => ChatTemplate::read(folder),
            Self::Gguf(file) => gguf::template::read(file.metadata()),
            Self::Static(_) => Ok(None),
            Self::SecondEngine(model) => ChatTemplate::read(model.folder()),
        }
    }

    /// Reads what requests get for the fields that they leave out, of the model of `entry` with `context` positions.
    pub fn generation(&self, entry: &ModelEntry, context: usize) -> Result<GenerationDefaults> {
        match self {
            Self::Folder(_) | Self::Static(_) | Self::SecondEngine(_) => GenerationDefaults::read(entry, context),
            Self::Gguf(file) => GenerationDefaults::read_gguf(entry, context, file.metadata()),
        }
    }

    /// Reads how the model at `path`, the one that was opened, with the shape `config`, makes vectors.
    pub fn vectors(&self, path: &Path, config: &ModelConfig) -> Result<VectorForm> {
        match self {
            Self::Folder(_) if config.encoder.is_some() && config.has_label_head => {
                vectors::folder::of_classifier(path, config)
            }
            Self::Folder(_) => vectors::folder::read(path, config),
            Self::Gguf(file) => gguf::vectors::read(file, config),
            Self::Static(model) => model.vectors(config),
            Self::SecondEngine(model) => vectors::folder::read(model.folder(), config),
        }
    }

    /// Returns the tokens that end an answer, the usual one first.
    pub fn end_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        match self {
            Self::Folder(folder) => end_tokens(folder, tokenizer),
            Self::Gguf(file) => gguf::tokenizer::end_tokens(file.metadata()),
            Self::Static(_) => Ok(Vec::new()),
            Self::SecondEngine(model) => end_tokens(model.folder(), tokenizer),
        }
    }

    /// Returns the Unix second of the last change; 0 if the system does not tell.
    pub fn created(&self) -> i64 {
        let modified = match self {
            Self::Folder(folder) => std::fs::metadata(folder.join("config.json")),
            Self::Gguf(file) => std::fs::metadata(file.path()),
            Self::Static(model) => model.metadata(),
            Self::SecondEngine(model) => std::fs::metadata(model.folder().join("config.json")),
        };
        let modified = modified.and_then(|metadata| metadata.modified()).ok();
        let age = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        age.map_or(0, |age| age.as_secs() as i64)
    }

    /// Returns an error about the files, which it names.
    pub fn fault(&self, message: &str) -> Error {
        match self {
            Self::Folder(folder) => Error::Setup(format!("{}: {message}", folder.display())),
            Self::Gguf(file) => file.fault(message),
            Self::Static(model) => model.fault(message),
            Self::SecondEngine(model) => Error::Setup(format!("{}: {message}", model.folder().display())),
        }
    }
}

/// Reads `eos_token_id` of `generation_config.json`, else of `config.json`; else returns the tokenizer's end token.
fn end_tokens(folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let Some(value) = python_json::read(&folder.join(name))? else { continue };
        let ids: Vec<u32> = match &value["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(|id| Some(id.as_u64()? as u32)).collect(),
            id => id.as_u64().map(|id| id as u32).into_iter().collect(),
        };
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(tokenizer.end_token().into_iter().collect())
}
