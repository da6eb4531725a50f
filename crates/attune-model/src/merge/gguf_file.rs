//! A GGUF file with an adapter added to its weights. The changed matrices are no longer in the file's blocks, which
//! would be rounded a second time: they are written in a type with more bits.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use bytes::Bytes;

use super::addition::Change;
use super::values::as_trained;
use super::weight_type::WeightType;
use super::{Base, part_of};
use crate::gguf::metadata::{Metadata, Value};
use crate::gguf::tensors::{Names, Part};
use crate::gguf::writer::{self, TensorToWrite};
use crate::gguf::{Gguf, GgufTensor};
use crate::matrix::Matrix;
use crate::{Error, Result};

/// Writes the model in the GGUF file `file`, whose tensors have the `names`, with `changes`, to the new file `output`; the file's keys and all other
/// tensors are copied as they are, unless training saw all matrices in other blocks.
pub(super) fn write(
    base: &Base,
    file: &Gguf,
    names: &Names,
    mut changes: BTreeMap<String, Change>,
    output: &Path,
    requested: Option<WeightType>,
) -> Result<()> {
    let quantize = base.quantize.as_deref();
    let mut changed = BTreeMap::new();
    let mut tensors = Vec::new();
    for (name, tensor) in file.tensors() {
        let parts = changes_of(names, name, &mut changes)?;
        let is_written = parts.is_some() || (quantize.is_some() && is_quantized_at_load(name, tensor));
        if is_written {
            let own = WeightType::of_blocks(tensor.kind).filter(|_| quantize.is_none());
            let kind = requested.or(own).unwrap_or(WeightType::F16);
            changed.insert(name.to_owned(), (parts.unwrap_or_default(), kind));
        }
        let kind = changed.get(name).map_or(tensor.kind, |(_, kind)| kind.block_type());
        tensors.push(TensorToWrite { name: name.to_owned(), shape: tensor.shape.clone(), kind });
    }
    if let Some(name) = changes.keys().next() {
        return Err(file.fault(&format!("the adapter changes `{name}`, which this file has no tensor of its own for")));
    }
    let main = changed.values().next().map(|(_, kind)| *kind);
    write_file(output, &metadata(file, main), &tensors, |wanted| {
        let tensor = file.tensor(&wanted.name).ok_or_else(|| Error::Internal(format!("no `{}`", wanted.name)))?;
        match changed.get(&wanted.name) {
            Some((parts, kind)) => merged(tensor, parts, &wanted.name, *kind, quantize),
            None => Ok(tensor.bytes.clone()),
        }
    })
}

/// Returns true for matrices that `quantize` changes: all but those that choose experts.
fn is_quantized_at_load(name: &str, tensor: &GgufTensor) -> bool {
    tensor.shape.len() > 1 && name.ends_with(".weight") && !name.ends_with(".ffn_gate_inp.weight")
}

/// Writes a new file of `metadata` and `tensors`, whose data `data` returns; nothing is left of a write that fails.
pub(super) fn write_file(
    output: &Path,
    metadata: &Metadata,
    tensors: &[TensorToWrite],
    data: impl FnMut(&TensorToWrite) -> Result<Bytes>,
) -> Result<()> {
    let part = part_of(output);
    let written = write_part(&part, metadata, tensors, data)
        .and_then(|()| std::fs::rename(&part, output).map_err(Error::io(format!("name {}", output.display()))));
    if written.is_err() {
        // The reason matters more than what may be left.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn write_part(
    part: &Path,
    metadata: &Metadata,
    tensors: &[TensorToWrite],
    data: impl FnMut(&TensorToWrite) -> Result<Bytes>,
) -> Result<()> {
    let context = || Error::io(format!("write {}", part.display()));
    let mut output = BufWriter::new(File::create_new(part).map_err(context())?);
    writer::write(&mut output, metadata, tensors, data)?;
    output.flush().map_err(context())?;
    output.get_ref().sync_all().map_err(context())
}

/// Takes what is added to the parts of the file's tensor `name`, which follow each other, out of `changes`, rows in the file's
/// order: to all of it, or to each expert of a stack. Returns none if the adapter leaves the tensor as it is.
fn changes_of(
    names: &Names,
    name: &str,
    changes: &mut BTreeMap<String, Change>,
) -> Result<Option<Vec<Option<Change>>>> {
    let mut parts = Vec::new();
    for original in names.originals(name) {
        let stem = original.strip_prefix("model.").unwrap_or(&original);
        let place = names.places(&original).into_iter().find(|place| {
            place.tensor == name && (place.part == Part::Whole || place.part == Part::Expert(parts.len()))
        });
        let change = place.and_then(|place| Some((changes.remove(stem)?, place.heads)));
        parts.push(match change {
            Some((change, Some(heads))) => Some(change.in_file_order(heads, name)?),
            Some((change, None)) => Some(change),
            None => None,
        });
    }
    Ok(parts.iter().any(Option::is_some).then_some(parts))
}

/// Returns the bytes of `tensor` with what is added to its parts.
fn merged(
    tensor: &GgufTensor,
    parts: &[Option<Change>],
    name: &str,
    kind: WeightType,
    quantize: Option<&str>,
) -> Result<Bytes> {
    let values = as_trained(&Matrix::Blocks(tensor.matrix()?), quantize)?;
    let shape = tensor.shape.get(tensor.shape.len().saturating_sub(2)..).unwrap_or_default();
    let mut sums = Vec::with_capacity(values.len());
    for (part, values) in values.chunks(shape.iter().product::<usize>().max(1)).enumerate() {
        match parts.get(part) {
            Some(Some(change)) => sums.extend(change.sum(name, shape, values)?),
            _ => sums.extend(values.iter().copied().map(f64::from)),
        }
    }
    kind.encode(name, &sums).map(Into::into)
}

/// Returns the file's keys, but for those about its shards, with the type of the changed matrices, which are most.
fn metadata(file: &Gguf, kind: Option<WeightType>) -> Metadata {
    let kept = file.metadata().iter().filter(|(key, _)| !key.starts_with("split."));
    let kept = kept.map(|(key, value)| (key.to_owned(), value.clone()));
    let file_type = kind.map(|kind| ("general.file_type".to_owned(), Value::from(kind.file_type())));
    Metadata::new(file.metadata().origin(), kept.chain(file_type))
}
