//! Tensors of a checkpoint: `model.safetensors`, or the shards that `model.safetensors.index.json` lists, or a GGUF file.
//! The files are mapped, and each tensor is converted to f32 on its device as it is asked for; matrices of a GGUF file stay
//! in its blocks. Called by `decoder`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::blocks::BlockType;
use crate::gguf::Gguf;
use crate::gguf::source::Source as GgufSource;
use crate::matrix::Matrix;
use crate::quantized::{self, Quantized};
use crate::{Error, Result};

/// Type in which a checkpoint's files have the numbers of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredType {
    /// That of a safetensors file.
    Safetensors(Dtype),
    /// That of a GGUF file.
    Blocks(BlockType),
}

/// Tensors of a checkpoint, read one by one.
pub struct Weights {
    source: Source,
    device: Device,
}

#[allow(clippy::large_enum_variant, reason = "there is one for each model")]
enum Source {
    Folder {
        files: MmapedSafetensors,
        folder: PathBuf,
        /// What stands before the names of the decoder's tensors, instead of `model.`.
        prefix: &'static str,
        quantized: Quantized,
    },
    /// Tensors of a GGUF file, in their own blocks.
    Gguf(Box<GgufSource>),
    /// Tensors that were made of the files of `folder`, by their usual names.
    Tensors { tensors: BTreeMap<String, Tensor>, folder: PathBuf },
    /// Normally distributed numbers with this standard deviation; norms are 1.
    Random { deviation: f32 },
}

impl Weights {
    /// Maps the folder's safetensors files.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let paths = files(folder)?;
        // SAFETY: the files are mapped read-only; as for every server of such files, changing them while they are
        // mapped is the operator's fault, and can at worst change weights, since the header is checked once here.
        let files = unsafe { MmapedSafetensors::multi(&paths) }
            .map_err(|error| Error::Setup(format!("{}: cannot read the weights: {error}", folder.display())))?;
        if files.get("tok_embeddings.weight").is_ok() {
            return Err(setup(
                folder,
                "the tensors have Mistral's or Meta's own names (`tok_embeddings.weight`), which are not read: get the \
                 checkpoint in transformers' form",
            ));
        }
        let has = |prefix: &str, name: &str| files.get(&format!("{prefix}{name}")).is_ok();
        let is_there = |prefix: &&str| EMBEDDINGS.into_iter().any(|name| has(prefix, name));
        let prefix = PREFIXES.into_iter().find(is_there).unwrap_or(PREFIXES[0]);
        let names = files.tensors().into_iter().map(|(name, _)| name).collect();
        let quantized = Quantized::read(folder, names)?;
        let folder = folder.to_path_buf();
        Ok(Self { source: Source::Folder { files, folder, prefix, quantized }, device: device.clone() })
    }

    /// Reads the tensors of a GGUF file.
    pub fn of_gguf(file: Arc<Gguf>, device: &Device) -> Result<Self> {
        Ok(Self { source: Source::Gguf(Box::new(GgufSource::new(file)?)), device: device.clone() })
    }

    /// Takes `tensors` in f32, which were made of the files of `folder` and are on `device`.
    pub(crate) fn of_tensors(tensors: BTreeMap<String, Tensor>, folder: &Path, device: &Device) -> Self {
        Self { source: Source::Tensors { tensors, folder: folder.to_path_buf() }, device: device.clone() }
    }

    /// Makes any tensor that is asked for of random numbers: for measurements, whose speed does not depend on the
    /// values.
    pub fn random(device: &Device) -> Self {
        Self { source: Source::Random { deviation: 0.02 }, device: device.clone() }
    }

    /// Loads the tensor `name` as f32; refuses one whose shape is not `shape`.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match *shape {
            [outputs, inputs] => self.matrix(name, [outputs, inputs])?.dense(&self.device),
            _ => self.plain(name, shape),
        }
    }

    /// Loads the tensor `name`, which is not quantized, as f32.
    fn plain(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (files, folder, name) = match &self.source {
            Source::Folder { files, folder, prefix, .. } => (files, folder, stored_name(files, name, prefix)),
            Source::Gguf(source) => return gguf_tensor(source, name, shape, &self.device),
            Source::Tensors { tensors, .. } => {
                let tensor = tensors.get(name).filter(|tensor| tensor.dims() == shape).cloned();
                return tensor.ok_or_else(|| self.fault(&format!("the tensor `{name}` {shape:?} is missing")));
            }
            Source::Random { .. } if shape.len() == 1 => return Ok(Tensor::ones(shape, DType::F32, &self.device)?),
            Source::Random { deviation } => return Ok(Tensor::randn(0.0_f32, *deviation, shape, &self.device)?),
        };
        let fault = |message: &str| setup(folder, message);
        let view = files.get(&name).map_err(|_| fault(&format!("the tensor `{name}` is missing")))?;
        if view.shape() != shape {
            return Err(fault(&format!("the tensor `{name}` has shape {:?}, expected {shape:?}", view.shape())));
        }
        if !quantized::is_plain(view.dtype()) {
            return Err(fault(&format!(
                "the tensor `{name}` is {:?}, expected numbers in f32, f16 or bf16",
                view.dtype()
            )));
        }
        let tensor = files.load(&name, &self.device)?;
        Ok(tensor.to_dtype(DType::F32)?.contiguous()?)
    }

    /// Loads the norm `name`, `[width]`. If the checkpoint's norms hold their weights minus 1, as `plus_one` says, 1 is
    /// added here, so that all norms are the same afterwards.
    pub fn norm(&self, name: &str, width: usize, plus_one: bool) -> Result<Tensor> {
        let weight = self.get(name, &[width])?;
        match &self.source {
            Source::Folder { .. } if plus_one => Ok((weight + 1.0)?),
            _ => Ok(weight),
        }
    }

    /// Loads the weight matrix `name` `[outputs, inputs]` in the form that the checkpoint has it in.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        match &self.source {
            Source::Gguf(source) => return source.matrix(name, shape).map(Matrix::Blocks),
            Source::Folder { files, prefix, quantized, .. } => {
                let name = stored_name(files, name, prefix);
                let read = quantized.matrix(&|name| files.get(name).ok(), &name, shape, &self.device);
                if let Some(matrix) = read.map_err(|message| self.fault(&message))? {
                    return Ok(matrix);
                }
            }
            Source::Tensors { .. } | Source::Random { .. } => {}
        }
        self.plain(name, &shape).map(Matrix::Dense)
    }

    /// Loads the tensor `name`; `None` if the checkpoint has none.
    pub fn get_optional(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        match &self.source {
            Source::Folder { .. } | Source::Gguf(_) | Source::Tensors { .. } if self.has(name) => {
                self.get(name, shape).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Returns an error about the checkpoint, which it names.
    pub(super) fn fault(&self, message: &str) -> Error {
        match &self.source {
            Source::Folder { folder, .. } | Source::Tensors { folder, .. } => setup(folder, message),
            Source::Gguf(source) => source.fault(message),
            Source::Random { .. } => Error::Setup(message.into()),
        }
    }

    /// Returns true if the checkpoint has the tensor `name`; random weights have none before they are asked for.
    pub fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Folder { files, prefix, quantized, .. } => {
                let name = stored_name(files, name, prefix);
                files.get(&name).is_ok() || quantized.has(&name)
            }
            Source::Gguf(source) => source.has(name),
            Source::Tensors { tensors, .. } => tensors.contains_key(name),
            Source::Random { .. } => false,
        }
    }

    /// Refuses a GGUF file with a tensor that nothing has asked for. Folders may have some: transformers leaves them out,
    /// too.
    pub fn check_all_read(&self) -> Result<()> {
        if let Source::Gguf(source) = &self.source { source.check_all_read() } else { Ok(()) }
    }

    /// Returns the tensor `name` as the files of a folder hold it; `None` if they do not have it.
    pub(crate) fn view(&self, name: &str) -> Option<TensorView<'_>> {
        match &self.source {
            Source::Folder { files, prefix, .. } => files.get(&stored_name(files, name, prefix)).ok(),
            Source::Gguf(_) | Source::Tensors { .. } | Source::Random { .. } => None,
        }
    }

    /// Returns the type of the tensor `name` in the files; `None` if it is not there, or in several tensors.
    pub(crate) fn stored_type(&self, name: &str) -> Option<StoredType> {
        match &self.source {
            Source::Folder { files, prefix, quantized, .. } => {
                let name = stored_name(files, name, prefix);
                let view = files.get(&name).ok().filter(|_| !quantized.has(&name))?;
                Some(StoredType::Safetensors(view.dtype()))
            }
            Source::Gguf(source) => source.stored_type(name).map(StoredType::Blocks),
            Source::Tensors { .. } | Source::Random { .. } => None,
        }
    }

    /// Returns the name that the files have for the tensor `name`.
    pub(crate) fn name_in_files(&self, name: &str) -> String {
        match &self.source {
            Source::Folder { files, prefix, .. } => stored_name(files, name, prefix),
            Source::Gguf(_) | Source::Tensors { .. } | Source::Random { .. } => name.to_owned(),
        }
    }

    /// Returns true if the stack `name` of experts, such as `model.layers.0.mlp.experts.gate_up_proj`, is in MXFP4.
    pub fn has_mxfp4_experts(&self, name: &str) -> bool {
        self.view(&format!("{name}_blocks")).is_some()
    }

    /// Loads `rows` of the matrix `[outputs, inputs]` of one expert of the MXFP4 stack `name`, which holds `shape`:
    /// experts, outputs, inputs.
    pub fn mxfp4_expert(&self, name: &str, expert: usize, shape: [usize; 3], rows: &[usize]) -> Result<Matrix> {
        let matrix = quantized::mxfp4_expert(|name| self.view(name), name, expert, shape, rows);
        matrix.map(Matrix::Blocks).map_err(|message| self.fault(&message))
    }

    /// Returns the device that tensors are loaded onto.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Weights").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Loads the tensor `name` of a GGUF file as f32.
fn gguf_tensor(source: &GgufSource, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
    let values = match *shape {
        [width] => source.vector(name, width)?,
        [ref outer @ .., columns] => source.matrix(name, [outer.iter().product(), columns])?.dequantize()?,
        [] => return Err(Error::Internal(format!("the tensor `{name}` is asked for without a shape"))),
    };
    Ok(Tensor::from_vec(values, shape, device)?)
}

fn setup(folder: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", folder.display()))
}

/// What stands before the names of a decoder's tensors: usually; inside a model that sees images too, as transformers
/// writes it now and as it did before; inside an encoder with a head; and in a checkpoint of hidden states alone, such as an
/// embedding model's.
const PREFIXES: [&str; 8] =
    ["model.", "model.language_model.", "language_model.model.", "bert.", "nomic_bert.", "roberta.", "mpnet.", ""];

/// Names of the embedding of tokens behind these.
const EMBEDDINGS: [&str; 3] =
    ["embed_tokens.weight", "embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight"];

/// Returns the name that the checkpoint has for the tensor `name`.
fn stored_name(files: &MmapedSafetensors, name: &str, prefix: &str) -> String {
    match (name.strip_prefix("model."), prefix) {
        (Some(inside), _) => {
            let name = format!("{prefix}{inside}");
            if files.get(&name).is_ok() { name } else { as_in_tensorflow(files, name) }
        }
        // The head stands beside the decoder.
        (None, "language_model.model.") if files.get(name).is_err() => format!("language_model.{name}"),
        (None, _) => name.to_owned(),
    }
}

/// Returns the name that checkpoints made from TensorFlow's have for a layer norm's tensor `name`; `name` itself if this is
/// none.
fn as_in_tensorflow(files: &MmapedSafetensors, name: String) -> String {
    for (usual, old) in [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")] {
        let old = name.strip_suffix(usual).map(|layer| format!("{layer}{old}"));
        if let Some(old) = old.filter(|old| files.get(old).is_ok()) {
            return old;
        }
    }
    name
}

/// Returns the paths of the folder's safetensors files.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index)
        .map_err(|_| Error::Setup(format!("{}: neither model.safetensors nor its index is there", folder.display())))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Error::Setup(format!("{}: {error}", index.display())))?;
    let names: BTreeSet<&str> =
        value["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str()).collect();
    // A shard is a file of this folder: a name with a path in it would read elsewhere.
    if names.is_empty() || names.iter().any(|name| name.contains(['/', '\\'])) {
        return Err(Error::Setup(format!("{}: `weight_map` must name files of the same folder", index.display())));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
