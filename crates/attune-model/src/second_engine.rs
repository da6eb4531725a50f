//! Models that another engine runs, in a process of its own: folders whose family Attune's decoder does not have. Of these
//! Attune reads what it does itself (tokenizer, chat template, defaults), and no weights: their decoder computes nothing.
//! Read by [`Checkpoint`](crate::checkpoint::Checkpoint); `attune-engine` starts the process.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::weights::Weights;
use crate::{Error, ModelConfig, Result, python_json};

/// A family that the crate mistralrs 0.8.1 serves as a model of text.
struct Family {
    /// The `model_type` of `config.json`.
    name: &'static str,
    /// The class in `architectures` that it loads.
    class: &'static str,
    standing: Standing,
}

/// What is known of the answers of a family in mistralrs 0.8.1. What was compared was compared with transformers, on small
/// random models and on the CPU.
#[derive(PartialEq)]
enum Standing {
    /// The same as transformers', to 1e-4.
    Compared,
    /// Attune's decoder has the family; the answers of those that were compared are the same.
    Shared,
    /// Nobody has compared them.
    Unknown,
    /// It fails on a CPU.
    FailsOnCpu,
    /// They are others than transformers'.
    Wrong,
}

/// All families.
const FAMILIES: &[Family] = &[
    family("starcoder2", "Starcoder2ForCausalLM", Standing::Compared),
    family("glm4", "Glm4ForCausalLM", Standing::Compared),
    family("llama", "LlamaForCausalLM", Standing::Shared),
    family("mistral", "MistralForCausalLM", Standing::Shared),
    family("mixtral", "MixtralForCausalLM", Standing::Shared),
    family("qwen2", "Qwen2ForCausalLM", Standing::Shared),
    family("qwen3", "Qwen3ForCausalLM", Standing::Shared),
    family("qwen3_moe", "Qwen3MoeForCausalLM", Standing::Shared),
    family("smollm3", "SmolLM3ForCausalLM", Standing::Shared),
    family("gemma", "GemmaForCausalLM", Standing::Shared),
    family("gemma2", "Gemma2ForCausalLM", Standing::Shared),
    family("phi3", "Phi3ForCausalLM", Standing::Shared),
    family("gpt_oss", "GptOssForCausalLM", Standing::Shared),
    family("qwen3_next", "Qwen3NextForCausalLM", Standing::Unknown),
    family("granitemoehybrid", "GraniteMoeHybridForCausalLM", Standing::Unknown),
    family("qwen3_5", "Qwen3_5ForConditionalGeneration", Standing::Unknown),
    family("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", Standing::Unknown),
    family("qwen2_vl", "Qwen2VLForConditionalGeneration", Standing::Unknown),
    family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", Standing::Unknown),
    family("qwen3_vl", "Qwen3VLForConditionalGeneration", Standing::Unknown),
    family("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", Standing::Unknown),
    family("gemma3n", "Gemma3nForConditionalGeneration", Standing::Unknown),
    family("gemma4", "Gemma4ForConditionalGeneration", Standing::Unknown),
    family("llama4", "Llama4ForConditionalGeneration", Standing::Unknown),
    family("mllama", "MllamaForConditionalGeneration", Standing::Unknown),
    family("phi", "PhiForCausalLM", Standing::FailsOnCpu),
    family("deepseek_v2", "DeepseekV2ForCausalLM", Standing::FailsOnCpu),
    family("deepseek_v3", "DeepseekV3ForCausalLM", Standing::FailsOnCpu),
    family("glm4_moe", "Glm4MoeForCausalLM", Standing::FailsOnCpu),
    family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", Standing::FailsOnCpu),
    family("phimoe", "PhiMoEForCausalLM", Standing::Wrong),
];

const fn family(name: &'static str, class: &'static str, standing: Standing) -> Family {
    Family { name, class, standing }
}

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
    /// True if the engine fails with it on a CPU.
    pub needs_gpu: bool,
}

impl SecondEngineModel {
    /// Returns true if the second engine takes the family of this `config.json` by itself.
    pub fn has_family(config: &Path) -> bool {
        let fields = python_json::read(config).ok().flatten();
        fields.is_some_and(|fields| by_itself(&fields).is_some())
    }

    /// Returns the model in `folder` if only the second engine has its family, and its answers were compared; `None` for
    /// all others.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>> {
        let Some(fields) = python_json::read(&folder.join("config.json"))? else { return Ok(None) };
        by_itself(&fields).map(|family| Self::of(folder, &fields, family)).transpose()
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
        let family = FAMILIES.iter().find(|family| family.name == model_type).ok_or_else(|| {
            fault(
                folder,
                &format!("model_type `{model_type}` is not one that engine = \"mistralrs\" serves as a model of text"),
            )
        })?;
        Self::of(folder, &fields, family)
    }

    fn of(folder: &Path, fields: &Value, family: &'static Family) -> Result<Self> {
        check_class(folder, fields, family.class)?;
        if family.standing == Standing::Wrong {
            let name = family.name;
            let message = format!("mistralrs 0.8.1 gives other answers than transformers for model_type `{name}`");
            return Err(fault(folder, &message));
        }
        // It always takes the embedding as the head.
        if family.name == "starcoder2" && fields["tie_word_embeddings"] == false {
            let message = "`tie_word_embeddings` is false, and mistralrs 0.8.1 does not read the head of this family";
            return Err(fault(folder, message));
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            family: family.name,
            is_unproven: matches!(family.standing, Standing::Unknown | Standing::FailsOnCpu),
            needs_gpu: family.standing == Standing::FailsOnCpu,
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
        // Beyond a window the library computes other answers than transformers.
        let context = match window(&fields) {
            Some(window) => window.min(number("max_position_embeddings")?),
            None => number("max_position_embeddings")?,
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

/// Returns the family that the second engine takes by itself.
fn by_itself(fields: &Value) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| fields["model_type"] == family.name && family.standing == Standing::Compared)
}

/// Returns the tokens that attention looks back in some blocks; `None` if it looks back to the first one in all.
fn window(fields: &Value) -> Option<usize> {
    let of = |fields: &Value| {
        let applies = fields["use_sliding_window"] != false;
        fields["sliding_window"].as_u64().filter(|window| applies && *window > 0)
    };
    of(fields).or_else(|| of(&fields["text_config"])).and_then(|window| usize::try_from(window).ok())
}

/// Refuses a class of the family that is no model of text, such as one with a head for labels.
fn check_class(folder: &Path, fields: &Value, class: &str) -> Result<()> {
    let found = fields["architectures"].as_array().and_then(|names| names.first()).and_then(Value::as_str);
    if found == Some(class) {
        return Ok(());
    }
    let message = format!(
        "`architectures` of config.json is {}, but the second engine loads {class}",
        found.map_or_else(|| "missing".to_owned(), |name| format!("`{name}`")),
    );
    Err(fault(folder, &message))
}

fn fault(path: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", path.display()))
}

#[cfg(test)]
#[path = "second_engine_tests.rs"]
mod tests;
