//! One entry of the configuration's list of base models. Read by the configuration, loaded by
//! [`BaseModel`](crate::BaseModel).

use std::path::PathBuf;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::device;
use crate::linear::{Dtype, Storage};
use crate::sampling_settings::SamplingSettings;
use crate::second_engine::EngineChoice;

/// One base model: the id that clients use, and its folder in Hugging Face form or GGUF file.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// The id that clients use.
    pub id: String,
    /// The folder with `config.json`, `*.safetensors` and `tokenizer.json`, the GGUF file, or a name on a hub after
    /// `hf:`, which the start replaces by the path in the cache.
    pub path: PathBuf,
    /// The engine that runs it.
    #[serde(default, skip_serializing_if = "EngineChoice::is_auto")]
    pub engine: EngineChoice,
    /// Folder of a PEFT adapter that the second engine adds to the weights at load; Attune's own engine loads adapters
    /// while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Type of the weight matrices in memory that are not quantized at load, whatever the checkpoint's precision; by
    /// default bf16 on a GPU, and on the CPU f32, or a quantized checkpoint's own numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Block format to quantize to at load, for example `q8_0` or `q4_k`: on the CPU every weight matrix, on a GPU the
    /// linear layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
    /// How tokens are drawn where a request does not say.
    #[serde(default, skip_serializing_if = "SamplingSettings::is_empty")]
    pub sampling: SamplingSettings,
    /// Tokens of the longest answer: what a request gets that names no limit, and the most that it may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_answer_tokens: Option<usize>,
    /// Take what is not said here from the defaults in the folder's `generation_config.json`.
    #[serde(default = "yes")]
    pub generation_config: bool,
}

fn yes() -> bool {
    true
}

impl ModelEntry {
    /// Makes an entry for the model in `path`, held in its device's usual type, that says nothing about answers.
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let (id, path, sampling) = (id.into(), path.into(), SamplingSettings::default());
        let engine = EngineChoice::Auto;
        Self {
            id,
            path,
            engine,
            adapter: None,
            dtype: None,
            quantize: None,
            sampling,
            max_answer_tokens: None,
            generation_config: true,
        }
    }

    /// Refuses settings of answers that cannot be meant; the message names setting, value and range.
    pub fn check_answers(&self) -> Result<(), String> {
        if self.max_answer_tokens == Some(0) {
            return Err("max_answer_tokens is 0, and must be a whole number of at least 1".into());
        }
        self.sampling.check()
    }

    /// Returns how the model's weight matrices are held on `device`.
    pub fn storage(&self, device: &Device) -> Storage {
        let usual = match device {
            _ if device.is_cpu() => None,
            // Beside quantized blocks little is left to hold in another type, and their products on a GPU take f32.
            _ if self.quantize.is_some() => Some(Dtype::F32),
            _ if device::has_bf16(device) => Some(Dtype::Bf16),
            _ => Some(Dtype::F16),
        };
        Storage { dtype: self.dtype.or(usual), quantize: self.quantize.clone() }
    }
}

impl std::str::FromStr for ModelEntry {
    type Err = String;

    /// Parses `ID=PATH` or `ID=hf:OWNER/NAME`, the forms of `--model`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok(Self::new(id, path)),
            _ => Err(format!("`{text}` is not ID=PATH or ID=hf:OWNER/NAME, for example demo=models/demo")),
        }
    }
}
