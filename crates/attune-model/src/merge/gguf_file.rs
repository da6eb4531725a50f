//! A GGUF file with an adapter added to its weights. The changed matrices are no longer in the file's blocks, which
//! would be rounded a second time: they are written in one of three types with more bits.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use bytes::Bytes;
use half::{bf16, f16};

use super::addition::{Change, to_odd};
use super::{changes, fault};
use crate::blocks::BlockType;
use crate::gguf::metadata::{Metadata, Value};
use crate::gguf::tensors::{Names, Part};
use crate::gguf::writer::{self, TensorToWrite};
use crate::gguf::{Gguf, GgufTensor};
use crate::lora::Adapter;
use crate::{Error, Result};

/// Type of the matrices that an adapter has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangedType {
    /// Half precision.
    F16,
    /// Half the bits of single precision.
    Bf16,
    /// Eight bits in blocks of 32.
    Q8_0,
}

impl ChangedType {
    fn block_type(self) -> BlockType {
        match self {
            Self::F16 => BlockType::F16,
            Self::Bf16 => BlockType::Bf16,
            Self::Q8_0 => BlockType::Q8_0,
        }
    }

    /// Returns the number in `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    fn encode(self, values: &[f64]) -> Vec<u8> {
        match self {
            Self::F16 => values.iter().flat_map(|value| f16::from_f32(to_odd(*value)).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|value| bf16::from_f32(to_odd(*value)).to_le_bytes()).collect(),
            Self::Q8_0 => values.chunks(32).flat_map(q8_0).collect(),
        }
    }
}

/// Returns a block: the scale, which is the largest value's part of 127, and each value in units of it.
fn q8_0(values: &[f64]) -> Vec<u8> {
    let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(to_odd(largest / 127.0));
    let unit = f64::from(scale.to_f32());
    let in_units = |value: &f64| if unit == 0.0 { 0 } else { (value / unit).round().clamp(-127.0, 127.0) as i8 };
    let numbers = values.iter().map(|value| in_units(value).to_le_bytes()[0]);
    scale.to_le_bytes().into_iter().chain(numbers).collect()
}

/// Writes the model in the GGUF file `base`, with `adapter` added, to the new file `output`. The changed matrices have the
/// type `kind`; the file's keys and all other tensors are copied as they are.
pub fn write_gguf(base: &Path, adapter: &Adapter, output: &Path, kind: ChangedType) -> Result<()> {
    if output.exists() {
        return Err(fault(output, "it exists already; name a file that does not"));
    }
    let file = Gguf::open(base)?;
    let names = Names::of(file.metadata())?;
    let mut left = changes(adapter)?;
    let mut changed = BTreeMap::new();
    let mut tensors = Vec::new();
    for (name, tensor) in file.tensors() {
        let change = change_of(&names, name, &mut left)?;
        let block_type = if change.is_some() { kind.block_type() } else { tensor.kind };
        changed.extend(change.map(|change| (name.to_owned(), change)));
        tensors.push(TensorToWrite { name: name.to_owned(), shape: tensor.shape.clone(), kind: block_type });
    }
    if let Some(name) = left.keys().next() {
        return Err(file.fault(&format!("the adapter changes `{name}`, which this file has no tensor of its own for")));
    }
    let metadata = metadata(&file, kind);
    let mut part = output.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let written = write_part(part, &metadata, &tensors, |wanted| {
        let tensor = file.tensor(&wanted.name).ok_or_else(|| Error::Internal(format!("no `{}`", wanted.name)))?;
        match changed.get(&wanted.name) {
            Some(change) => added(tensor, change, &wanted.name, kind),
            None => Ok(tensor.bytes.clone()),
        }
    });
    let written =
        written.and_then(|()| std::fs::rename(part, output).map_err(Error::io(format!("name {}", output.display()))));
    if written.is_err() {
        // The reason matters more than what may be left.
        let _ = std::fs::remove_file(part);
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

/// Takes the change of the file's tensor `name` out of `changes`, its rows in the file's order; `None` if the adapter
/// leaves the tensor as it is.
fn change_of(names: &Names, name: &str, changes: &mut BTreeMap<String, Change>) -> Result<Option<Change>> {
    let originals = names.originals(name);
    let [original] = originals.as_slice() else { return Ok(None) };
    let stem = original.strip_prefix("model.").unwrap_or(original);
    let place = names.places(original).into_iter().find(|place| place.tensor == name && place.part == Part::Whole);
    let Some(place) = place else { return Ok(None) };
    let Some(change) = changes.remove(stem) else { return Ok(None) };
    match place.heads {
        Some(heads) => change.in_file_order(heads, name).map(Some),
        None => Ok(Some(change)),
    }
}

fn added(tensor: &GgufTensor, change: &Change, name: &str, kind: ChangedType) -> Result<Bytes> {
    let values = change.sum(name, &tensor.shape, &tensor.matrix()?.dequantize()?)?;
    Ok(kind.encode(&values).into())
}

/// Returns the file's keys, but for those about its shards, with the type that most weights have now.
fn metadata(file: &Gguf, kind: ChangedType) -> Metadata {
    let kept = file.metadata().iter().filter(|(key, _)| !key.starts_with("split.") && *key != "general.file_type");
    let kept = kept.map(|(key, value)| (key.to_owned(), value.clone()));
    let file_type = ("general.file_type".to_owned(), Value::from(kind.file_type()));
    Metadata::new(file.metadata().origin(), kept.chain(std::iter::once(file_type)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_eight_bits_is_within_half_a_step() {
        let values: Vec<f64> = (0..32).map(|number| f64::from(number * number) / 100.0 - 3.0).collect();
        let block = q8_0(&values);
        let scale = f64::from(f16::from_le_bytes([block[0], block[1]]).to_f32());
        for (value, stored) in values.iter().zip(&block[2..]) {
            let read = scale * f64::from(i8::from_le_bytes([*stored]));
            assert!((read - value).abs() <= scale * 0.51, "{value} became {read}");
        }
        assert_eq!(q8_0(&[0.0; 32]), [0; 34]);
    }
}
