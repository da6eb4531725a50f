//! A folder for transformers of a base that has another form: a GGUF file, or quantized matrices. What was quantized
//! is written as the numbers that it stands for; all else keeps its type.

use std::collections::BTreeMap;
use std::path::Path;

use super::addition::Change;
use super::folder_files;
use super::plan::{Item, Kind, Plan, Target};
use super::safetensors_files::{self, Tensor};
use super::weight_type::WeightType;
use super::{Base, refuse_rest};
use crate::Result;
use crate::checkpoint::Checkpoint;

/// Writes the model with `changes` into the new folder `part`; matrices that were quantized have the type `requested`.
pub(super) fn write(
    base: &Base,
    checkpoint: &Checkpoint,
    mut changes: BTreeMap<String, Change>,
    part: &Path,
    requested: Option<WeightType>,
    file_bytes: usize,
) -> Result<()> {
    let plan = Plan::of(checkpoint, base.quantize.as_deref(), Target::Folder, &mut changes)?;
    refuse_rest(&changes, checkpoint)?;
    let usual = super::usual_type(checkpoint, plan.config.overflows_f16)?;
    let kind = requested.unwrap_or(usual);
    // The type is checked before anything is written.
    kind.dtype()?;
    let types: BTreeMap<&str, WeightType> =
        plan.items.iter().map(|item| (item.name.as_str(), type_of(item, kind, requested))).collect();
    let items: BTreeMap<&str, &Item> = plan.items.iter().map(|item| (item.name.as_str(), item)).collect();
    let mut tensors = Vec::new();
    for item in &plan.items {
        let dtype = types[item.name.as_str()].dtype()?;
        let bytes = item.shape.iter().product::<usize>() * dtype.bitsize() / 8;
        tensors.push(Tensor { name: item.name.clone(), dtype, shape: item.shape.clone(), bytes, change: None });
    }
    safetensors_files::write(part, tensors, file_bytes, |tensor| {
        let item = items[tensor.name.as_str()];
        let mut values = plan.merged(item)?;
        if item.kind == Kind::Norm && plan.config.norms_plus_one {
            // Transformers adds 1 itself.
            for value in &mut values {
                *value -= 1.0;
            }
        }
        types[tensor.name.as_str()].encode(&item.name, &values).map(Into::into)
    })?;
    plan.check_all_read()?;
    folder_files::write(checkpoint, part, main_type(&plan, &types), plan.tied)
}

/// Returns the type that `item` is written in.
fn type_of(item: &Item, kind: WeightType, requested: Option<WeightType>) -> WeightType {
    match (item.own, item.is_changed()) {
        (Some(_), true) if requested.is_some() => kind,
        (Some(own), _) => own,
        (None, _) => kind,
    }
}

/// Returns the type of the layers, which `config.json` names for all.
fn main_type(plan: &Plan, types: &BTreeMap<&str, WeightType>) -> WeightType {
    let layer = plan.items.iter().find(|item| item.kind == Kind::Matrix && item.name.contains(".layers."));
    layer.map_or(WeightType::F32, |item| types[item.name.as_str()])
}
