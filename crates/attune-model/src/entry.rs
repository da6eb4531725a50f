//! One entry of the configuration's list of base models. Read by the configuration, loaded by
//! [`BaseModel`](crate::BaseModel).

use std::path::PathBuf;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::device;
use crate::linear::{Dtype, Storage};
use crate::sampling_settings::SamplingSettings;

/// One base model: the id that clients use, and its folder in Hugging Face form or GGUF file.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// The id that clients use.
    pub id: String,
    /// The folder with `config.json`, `*.safetensors` and `tokenizer.json`, or the GGUF file.
    pub path: PathBuf,
    /// Type of the weight matrices in memory that are not quantized, whatever the checkpoint's precision; by default
    /// f32 on the CPU, bf16 on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Block format to quantize the linear layers to at load, for example `q8_0`, which on the CPU includes embedding
    /// and head.
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
        Self { id, path, dtype: None, quantize: None, sampling, max_answer_tokens: None, generation_config: true }
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
        // Beside quantized blocks little is left to hold in another type, and their products on a GPU take f32.
        let usual = match device {
            _ if device.is_cpu() || self.quantize.is_some() => Dtype::F32,
            _ if device::has_bf16(device) => Dtype::Bf16,
            _ => Dtype::F16,
        };
        Storage { dtype: self.dtype.unwrap_or(usual), quantize: self.quantize.clone() }
    }
}

impl std::str::FromStr for ModelEntry {
    type Err = String;

    /// Parses `ID=PATH`, the form of `--model`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok(Self::new(id, path)),
            _ => Err(format!("`{text}` is not ID=PATH, for example demo=models/demo")),
        }
    }
}
