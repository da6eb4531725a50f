//! An entry of the configuration's list of base models. Read by the configuration, loaded by [`BaseModel`](crate::BaseModel).

use std::path::PathBuf;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::device;
use crate::linear::{Dtype, Storage};

/// One base model: the id that clients use and the folder in Hugging Face form.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// The id that clients use.
    pub id: String,
    /// The folder with `config.json`, `*.safetensors` and `tokenizer.json`.
    pub path: PathBuf,
    /// How weight matrices that are not quantized are held in memory, whatever the checkpoint's precision; by default f32 on
    /// the CPU, bf16 on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Quantize the linear layers at load, for example `q8_0`, which on the CPU takes embedding and head in too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
}

impl ModelEntry {
    /// The model in `path`, held as is usual on its device.
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { id: id.into(), path: path.into(), dtype: None, quantize: None }
    }

    /// How the model's weight matrices are held on `device`.
    pub fn storage(&self, device: &Device) -> Storage {
        // Blocks of 8 bit and less leave little to hold otherwise, and their products on a GPU take f32.
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

    /// Reads `ID=PATH`, the form of `--model`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok(Self::new(id, path)),
            _ => Err(format!("`{text}` is not ID=PATH, for example demo=models/demo")),
        }
    }
}
