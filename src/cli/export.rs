//! `attune export`: writes a fine-tuned model for other programs: as a model of its own for those that know no adapters,
//! or its adapter.

use std::fs::File;
use std::io::Write as _;
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
use crate::model::device::DeviceChoice;
use crate::model::gguf::lora;
use crate::model::merge::{self, Base, WeightType};
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
    /// Write the model in this form: the adapter added to its base's weights.
    #[arg(long, value_name = "FORM", required_unless_present = "adapter", conflicts_with = "adapter")]
    merged: Option<MergedForm>,
    /// Write the adapter alone in this form.
    #[arg(long, value_name = "FORM", conflicts_with = "type")]
    adapter: Option<AdapterForm>,
    /// Add the adapter to the weights in this folder, or in this GGUF file [default: those of the base model, as the
    /// adapter was trained on them].
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// Write matrices in this type: of a GGUF base the changed ones, of a quantized one those that were quantized, of a
    /// folder that becomes a GGUF file all [default: their own, or f16 in the place of blocks].
    #[arg(long, value_name = "TYPE")]
    r#type: Option<WrittenType>,
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

/// The form of an exported adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AdapterForm {
    /// A folder that PEFT loads.
    Peft,
    /// One file that llama.cpp loads beside a file of the base.
    Gguf,
}

/// The type of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WrittenType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<WrittenType> for WeightType {
    fn from(written: WrittenType) -> Self {
        match written {
            WrittenType::F32 => Self::F32,
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
        let (adapter_config, weights) = (config_key(&model.adapter), weights_key(&model.adapter));
        let (adapter_config, weights) = (store.blobs.get(&adapter_config).await?, store.blobs.get(&weights).await?);
        let output = self.output.clone();
        if self.adapter == Some(AdapterForm::Peft) {
            off_thread("writing an adapter", move || write_peft(&adapter_config, &weights, &output)).await?;
        } else {
            let base = match self.base {
                Some(path) => Base::new(path),
                None => base_of(&config, &model.base)?,
            };
            // A format of blocks that trained elsewhere matters to sums with the weights alone.
            let merged =
                self.merged.map(|form| check_device(&config, &model.base, &base).map(|()| form)).transpose()?;
            let kind = self.r#type.map(Into::into);
            let work = move || {
                let shape = Checkpoint::open(&base.path)?.config()?;
                let adapter = peft::read(&adapter_config, &weights, &shape, &Device::Cpu)?;
                match merged {
                    Some(MergedForm::Safetensors) => {
                        merge::write_folder(&base, &adapter, &output, kind, merge::FILE_BYTES)?;
                    }
                    Some(MergedForm::Gguf) => merge::write_gguf(&base, &adapter, &output, kind)?,
                    None => write_new(&output, &lora::write(&adapter, &lora::names(&base.path, &shape)?)?)?,
                }
                Ok::<_, adapters::Error>(())
            };
            off_thread("adding an adapter", work).await?;
        }
        line(format_args!("{} is in {}", self.model, self.output.display()))
    }
}

/// Writes the two files of an adapter into the new folder `output`.
fn write_peft(config: &[u8], weights: &[u8], output: &Path) -> adapters::Result<()> {
    std::fs::create_dir(output).map_err(|error| unwritten(output, &error))?;
    write_new(&output.join("adapter_config.json"), config)?;
    write_new(&output.join("adapter_model.safetensors"), weights)
}

/// Writes a file that is not there yet.
fn write_new(output: &Path, bytes: &[u8]) -> adapters::Result<()> {
    let written = File::create_new(output).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| unwritten(output, &error))
}

fn unwritten(output: &Path, error: &std::io::Error) -> adapters::Error {
    model::Error::Setup(format!("{}: it cannot be written: {error}", output.display())).into()
}

/// Returns the base model `id` of the configuration.
fn base_of(config: &Config, id: &str) -> Result<Base> {
    let entry = config.models.iter().find(|entry| entry.id == id).ok_or_else(|| {
        Error::Setup(format!("its base model `{id}` is not in the configuration: name its weights with --base"))
    })?;
    Ok(Base { path: entry.path.clone(), quantize: entry.quantize.clone() })
}

/// Refuses a base that a GPU quantizes at load. Which matrices that changes differs between devices, and the one that
/// trained is not recorded.
fn check_device(config: &Config, id: &str, base: &Base) -> Result<()> {
    let on_cpu = match config.device {
        DeviceChoice::Cpu => true,
        DeviceChoice::Auto => !cfg!(feature = "cuda"),
        DeviceChoice::Cuda(_) => false,
    };
    match &base.quantize {
        Some(format) if !on_cpu => Err(Error::Setup(format!(
            "its base model `{id}` is quantized at load to {format}, on a GPU in other blocks than on the CPU: set \
             device = \"cpu\" if it was trained there, or name the weights before that with --base {}",
            base.path.display()
        ))),
        _ => Ok(()),
    }
}
