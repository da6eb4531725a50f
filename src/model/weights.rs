//! Tensors of a checkpoint folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists. The files
//! are mapped, and each tensor is converted to f32 on its device as it is asked for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// The tensors of a checkpoint folder.
pub struct Weights {
    files: MmapedSafetensors,
    folder: PathBuf,
    device: Device,
}

impl Weights {
    /// Maps the folder's safetensors files.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let paths = shard_paths(folder)?;
        // SAFETY: the files are mapped read-only; as for every server of such files, changing them while they are mapped
        // is the operator's fault, and can at worst change weights, since the header is checked once here.
        let files = unsafe { MmapedSafetensors::multi(&paths) }
            .map_err(|error| Error::Setup(format!("{}: cannot read the weights: {error}", folder.display())))?;
        Ok(Self { files, folder: folder.to_path_buf(), device: device.clone() })
    }

    /// The tensor `name` as f32; its shape must be `shape`.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let view = self.files.get(name).map_err(|_| self.fault(&format!("the tensor `{name}` is missing")))?;
        if view.shape() != shape {
            return Err(self.fault(&format!("the tensor `{name}` has shape {:?}, expected {shape:?}", view.shape())));
        }
        let tensor = self.files.load(name, &self.device)?;
        Ok(tensor.to_dtype(DType::F32)?.contiguous()?)
    }

    /// The tensor `name` where the checkpoint has it.
    pub fn get_optional(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        if self.files.get(name).is_err() { Ok(None) } else { self.get(name, shape).map(Some) }
    }

    /// The device that tensors are loaded onto.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn fault(&self, message: &str) -> Error {
        Error::Setup(format!("{}: {message}", self.folder.display()))
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Weights").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>> {
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
