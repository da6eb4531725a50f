//! A folder of a base in a folder whose changed tensors are plain numbers: those get the adapter added, all else is
//! copied byte for byte.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use candle_core::safetensors::MmapedSafetensors;

use super::addition::Change;
use super::safetensors_files::{self, Tensor};
use super::{COPIED, copy, copy_templates, fault};
use crate::weights::{self, StoredType, Weights};
use crate::{Result, quantized};

/// Returns true if the changes all belong to tensors of the folder `base` that are plain numbers, each to one of its own.
pub(super) fn are_plain(base: &Path, changes: &BTreeMap<String, Change>) -> Result<bool> {
    let weights = Weights::open(base, &Device::Cpu)?;
    let mut plain = true;
    for change in changes.keys() {
        plain &= match weights.stored_type(&format!("model.{change}")) {
            Some(StoredType::Safetensors(dtype)) => quantized::is_plain(dtype),
            _ => false,
        };
    }
    Ok(plain)
}

/// Writes the folder `base` with `changes` into the new folder `part`.
pub(super) fn write(base: &Path, changes: BTreeMap<String, Change>, part: &Path, file_bytes: usize) -> Result<()> {
    let weights = Weights::open(base, &Device::Cpu)?;
    let named = changes.into_iter().map(|(name, change)| (weights.name_in_files(&format!("model.{name}")), change));
    let mut changes: BTreeMap<String, Change> = named.collect();
    let paths = weights::files(base)?;
    // SAFETY: the files are mapped read-only, as where a model is loaded.
    let files = unsafe { MmapedSafetensors::multi(&paths) }
        .map_err(|error| fault(base, &format!("cannot read the weights: {error}")))?;
    let tensors = files.tensors().into_iter().map(|(name, view)| Tensor {
        change: changes.remove(&name),
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().len(),
        name,
    });
    let tensors: Vec<Tensor> = tensors.collect();
    safetensors_files::write(part, tensors, file_bytes, |tensor| {
        let view = files.get(&tensor.name)?;
        match &tensor.change {
            Some(change) => change.added_to(&tensor.name, view.dtype(), view.shape(), view.data()).map(Into::into),
            None => Ok(view.data().into()),
        }
    })?;
    copy(base, part, &["config.json"])?;
    copy(base, part, &COPIED)?;
    copy_templates(base, part)
}
