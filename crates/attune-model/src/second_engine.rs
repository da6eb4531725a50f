//! Models that another engine runs, in a process of its own: folders whose family Attune's decoder does not have. Of these
//! Attune reads what it does itself (tokenizer, chat template, defaults), and no weights: their decoder computes nothing.
//! Read by [`Checkpoint`](crate::checkpoint::Checkpoint); `attune-engine` starts the process.

mod families;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::families::{Family, Standing};
use crate::weights::Weights;
use crate::{Error, ModelConfig, Result, python_json};

/// Tokens by which the library's cache of a model with Mamba's layers grows.
const HYBRID_GROWTH: usize = 512;
/// Width of the rows that stand for the embedding, which the other process has.
const WIDTH: usize = 2;

/// The engine that runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// Attune's own engine for every family that it has, the other for the rest.
    #[default]
    Auto,
    /// Attune's own engine, which trains as well.
    Attune,
    /// The crate mistralrs, in a process of its own.
    Mistralrs,
}

impl EngineChoice {
    /// Returns true if nothing else was chosen.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    pub(crate) fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// A folder in Hugging Face form whose model runs in another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondEngineModel {
    folder: PathBuf,
    family: &'static str,
    /// True if nobody has compared the family's answers with another program's.
    pub is_unproven: bool,
    /// How the engine fails with it on a CPU; `None` if it does not.
    pub fails_on_cpu: Option<&'static str>,
}

impl SecondEngineModel {
    /// Returns true if the second engine takes the family of this `config.json` by itself.
    pub fn has_family(config: &Path) -> bool {
        let fields = python_json::read(config).ok().flatten();
        fields.is_some_and(|fields| Family::by_itself(&fields).is_some())
    }

    /// Returns the model in `folder` if only the second engine has its family, and its answers were compared; `None` for
    /// all others.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>> {
        let Some(fields) = python_json::read(&folder.join("config.json"))? else { return Ok(None) };
        Family::by_itself(&fields).map(|family| Self::of(folder, &fields, family)).transpose()
    }

    /// Returns the model in `folder`, for which the second engine was chosen; refuses what it does not have.
    pub(crate) fn chosen(folder: &Path) -> Result<Self> {
        let config = folder.join("config.json");
        let fields = python_json::read(&config)?.ok_or_else(|| {
            fault(
                folder,
                "engine = \"mistralrs\" takes a model's folder with config.json, *.safetensors and tokenizer.json",
            )
        })?;
        let model_type = fields["model_type"].as_str().unwrap_or_default();
        let family = Family::named(model_type).ok_or_else(|| {
            fault(
                folder,
                &format!("model_type `{model_type}` is not one that engine = \"mistralrs\" serves as a model of text"),
            )
        })?;
        Self::of(folder, &fields, family)
    }

    fn of(folder: &Path, fields: &Value, family: &'static Family) -> Result<Self> {
        family.check(folder, fields)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            family: family.name,
            is_unproven: matches!(family.standing, Standing::Unknown | Standing::FailsOnCpu(_)),
            fails_on_cpu: match family.standing {
                Standing::FailsOnCpu(how) => Some(how),
                _ => None,
            },
        })
    }

    /// Returns the folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Refuses a folder without a tokenizer or weights.
    pub(crate) fn check(&self) -> Result<()> {
        self.config()?;
        if !self.folder.join("tokenizer.json").is_file() {
            return Err(fault(&self.folder, "the folder has no tokenizer.json; the model's page has it"));
        }
        let weights = ["model.safetensors", "model.safetensors.index.json"];
        if !weights.iter().any(|name| self.folder.join(name).is_file()) {
            return Err(fault(&self.folder, "neither model.safetensors nor its index is there"));
        }
        Ok(())
    }

    /// Returns the shape of a decoder without blocks, with the model's own vocabulary and context.
    pub(crate) fn config(&self) -> Result<ModelConfig> {
        let file = self.folder.join("config.json");
        let fields = python_json::read(&file)?.ok_or_else(|| fault(&file, "the file does not exist"))?;
        let number = |name: &str| {
            // The text model of a multi-modal one has fields of its own.
            let found = [&fields[name], &fields["text_config"][name]].into_iter().find_map(Value::as_u64);
            let found = found.and_then(|value| usize::try_from(value).ok()).filter(|value| *value > 0);
            found.ok_or_else(|| fault(&file, &format!("`{name}` is missing, or no whole number above 0")))
        };
        let longest = number("max_position_embeddings")?;
        let context = match window(&fields) {
            // Beyond a window the library computes other answers than transformers.
            Some(window) => window.min(longest),
            // It fails where its cache, which grows by as much at a time, would be longer than the context.
            None if self.family == "granitemoehybrid" => {
                let context = longest.checked_sub(HYBRID_GROWTH).filter(|context| *context > 0);
                context.ok_or_else(|| {
                    let message = format!("`max_position_embeddings` is {longest}, and must be above {HYBRID_GROWTH}");
                    fault(&file, &message)
                })?
            }
            None => longest,
        };
        let shape = json!({
            "model_type": "llama", "hidden_size": WIDTH, "vocab_size": number("vocab_size")?,
            "max_position_embeddings": context,
            "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2, "tie_word_embeddings": true,
        });
        let config = ModelConfig::parse(&shape.to_string()).map_err(|message| fault(&file, &message))?;
        Ok(ModelConfig {
            family: self.family,
            num_hidden_layers: 0,
            modules: &[],
            sliding_windows: Vec::new(),
            rotary: Vec::new(),
            ..config
        })
    }

    /// Returns the tokens that stand for pictures, films and sound: what the library makes of one without its picture was not
    /// compared, or is other than transformers' answer.
    pub(crate) fn media_tokens(&self) -> Result<Vec<u32>> {
        const FIELDS: [&str; 4] = ["image_token_id", "image_token_index", "video_token_id", "audio_token_id"];
        let fields = python_json::read(&self.folder.join("config.json"))?.unwrap_or_default();
        let said = FIELDS.iter().filter_map(|field| fields[*field].as_u64());
        Ok(said.filter_map(|id| u32::try_from(id).ok()).collect())
    }

    /// Returns the tensors of a decoder that computes nothing.
    pub(crate) fn weights(&self, device: &Device) -> Result<Weights> {
        let config = self.config()?;
        let rows = Tensor::zeros((config.vocab_size, WIDTH), DType::F32, device)?;
        let norm = Tensor::ones(WIDTH, DType::F32, device)?;
        let tensors = [("model.embed_tokens.weight", rows), ("model.norm.weight", norm)];
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        Ok(Weights::of_tensors(tensors, &self.folder, device))
    }
}

/// Returns the tokens that attention looks back in some blocks; `None` if it looks back to the first one in all.
fn window(fields: &Value) -> Option<usize> {
    let of = |fields: &Value| {
        let applies = fields["use_sliding_window"] != false;
        fields["sliding_window"].as_u64().filter(|window| applies && *window > 0)
    };
    of(fields).or_else(|| of(&fields["text_config"])).and_then(|window| usize::try_from(window).ok())
}

fn fault(path: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", path.display()))
}

#[cfg(test)]
#[path = "second_engine_tests.rs"]
mod tests;
