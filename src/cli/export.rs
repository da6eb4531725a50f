//! `attune export`: writes a fine-tuned model as a model of its own, for programs that know no adapters.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::line;
use crate::adapters::peft;
use crate::adapters::registry::{config_key, weights_key};
use crate::app::open_store_beside;
use crate::cli::DataDirArgs;
use crate::config::Config;
use crate::model;
use crate::model::checkpoint::Checkpoint;
use crate::model::lora::Adapter;
use crate::model::merge::{self, ChangedType};
use crate::off_thread::off_thread;
use crate::store::keys::normal_organization;
use crate::{Error, Result, adapters};
use candle_core::Device;

/// The flags of `attune export`.
#[derive(Debug, Args)]
pub(super) struct ExportOptions {
    #[command(flatten)]
    place: DataDirArgs,
    /// The fine-tuned model's name, such as `ft:demo:local::1a2b3c4d`.
    model: String,
    /// The form of the model.
    #[arg(long, value_name = "FORM")]
    merged: MergedForm,
    /// Add the adapter to the weights in this folder, or in this GGUF file [default: those of the base model that it was
    /// trained on].
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// Write the changed matrices of a GGUF file in this type.
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    r#type: WrittenType,
    /// The organisation that owns the model.
    #[arg(long, default_value = "local")]
    org: String,
    /// The new folder to write to; for `gguf` the new file.
    output: PathBuf,
}

/// The form of an exported model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MergedForm {
    /// A folder that transformers loads.
    Safetensors,
    /// One file for llama.cpp.
    Gguf,
}

/// The type of matrices in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WrittenType {
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<WrittenType> for ChangedType {
    fn from(written: WrittenType) -> Self {
        match written {
            WrittenType::F16 => Self::F16,
            WrittenType::Bf16 => Self::Bf16,
            WrittenType::Q8_0 => Self::Q8_0,
        }
    }
}

impl ExportOptions {
    /// Returns the flags that say where the database is.
    pub(super) fn place(&self) -> &DataDirArgs {
        &self.place
    }

    /// Writes the model.
    pub(super) async fn run(self, config: Config) -> Result<()> {
        let organization = normal_organization(&self.org)?;
        let (store, _postgres) = open_store_beside(&config).await?;
        let model = store.fine_tuned_model(&organization, &self.model).await?;
        let base = match self.base {
            Some(folder) => folder,
            None => path_of(&config, &model.base)?,
        };
        let (adapter_config, weights) = (config_key(&model.adapter), weights_key(&model.adapter));
        let (adapter_config, weights) = (store.blobs.get(&adapter_config).await?, store.blobs.get(&weights).await?);
        let (form, kind, output) = (self.merged, self.r#type.into(), self.output.clone());
        let work = move || {
            let shape = Checkpoint::open(&base)?.config()?;
            let adapter = peft::read(&adapter_config, &weights, &shape, &Device::Cpu)?;
            write(&base, &adapter, form, kind, &output)
        };
        off_thread("adding an adapter", work).await?;
        line(format_args!("{} is in {}", self.model, self.output.display()))
    }
}

/// Writes the model in `base` with the adapter. What one form has and the other lacks is not made up.
fn write(base: &Path, adapter: &Adapter, form: MergedForm, kind: ChangedType, output: &Path) -> adapters::Result<()> {
    let refuse = |advice: &str| Err(model::Error::Setup(format!("{}: {advice}", base.display())).into());
    match (form, base.is_dir()) {
        (MergedForm::Safetensors, true) => Ok(merge::write_folder(base, adapter, output, merge::FILE_BYTES)?),
        (MergedForm::Gguf, false) => Ok(merge::write_gguf(base, adapter, output, kind)?),
        (MergedForm::Safetensors, false) => refuse(
            "a GGUF file is exported as one, with --merged gguf; for safetensors, name the folder of the original \
             model with --base",
        ),
        (MergedForm::Gguf, true) => refuse(
            "a folder is exported as one, with --merged safetensors, which llama.cpp's convert_hf_to_gguf.py turns into a \
             GGUF file; for GGUF, name a file of the model with --base",
        ),
    }
}

/// Returns the path of the base model `id` in the configuration. A model that is served in fewer bits was trained on
/// other weights than its folder has, which is not decided silently.
fn path_of(config: &Config, id: &str) -> Result<PathBuf> {
    let entry = config.models.iter().find(|entry| entry.id == id).ok_or_else(|| {
        Error::Setup(format!("its base model `{id}` is not in the configuration: name its weights with --base"))
    })?;
    if let Some(format) = &entry.quantize {
        return Err(Error::Setup(format!(
            "its base model `{id}` was trained on in {format}, whose weights cannot be written: to add the adapter to \
             the weights before that, name them with --base {}",
            entry.path.display()
        )));
    }
    Ok(entry.path.clone())
}
