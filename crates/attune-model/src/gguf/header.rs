//! Reads what stands before the tensors' data: version, keys, and a table of the tensors.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::cursor::Cursor;
use super::metadata::{Numbers, Value};
use super::types::{LIST, NumberType, TEXT};
use crate::blocks::BlockType;

/// First bytes of every file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Key of the alignment.
pub(super) const ALIGNMENT: &str = "general.alignment";
/// Alignment of files that do not say.
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
/// Bytes from which on a tensor's name is refused, as llama.cpp does.
const NAME_LIMIT: usize = 64;
/// Most dimensions of a tensor.
const DIMENSIONS: usize = 4;
/// Bytes that a key, its type and its value take at least.
const SMALLEST_KEY: usize = 8 + 4 + 1;
/// Bytes that a tensor's row in the table takes at least.
const SMALLEST_TENSOR: usize = 8 + 4 + 8 + 4 + 8;

/// What stands before the data.
pub(super) struct Header {
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorRow>,
}

/// A row of the table of tensors.
pub(super) struct TensorRow {
    pub(super) name: String,
    /// Slowest dimension first, as in other formats.
    pub(super) shape: Vec<usize>,
    pub(super) kind: BlockType,
    /// Bytes from the file's begin.
    pub(super) start: usize,
    pub(super) length: usize,
}

impl Header {
    /// Reads the header of a file's `bytes`; refuses what llama.cpp refuses, and what the file has no bytes for.
    pub(super) fn read(bytes: &Bytes) -> Result<Self, String> {
        let mut cursor = Cursor::new(bytes);
        check_version(&mut cursor)?;
        let tensor_count = cursor.count(SMALLEST_TENSOR, "the number of tensors")?;
        let key_count = cursor.count(SMALLEST_KEY, "the number of keys")?;
        let mut values = BTreeMap::new();
        for _ in 0..key_count {
            let key = cursor.text("a key")?;
            let value = read_value(&mut cursor, &key)?;
            if values.contains_key(&key) {
                return Err(format!("the key `{key}` is there twice"));
            }
            values.insert(key, value);
        }
        let rows = (0..tensor_count).map(|_| read_row(&mut cursor)).collect::<Result<Vec<_>, _>>()?;
        let alignment = alignment(&values)?;
        let start = cursor.position().checked_next_multiple_of(alignment).ok_or("the alignment is too large")?;
        let tensors = place(rows, start, alignment, bytes.len())?;
        Ok(Self { values, tensors })
    }
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), String> {
    if cursor.take(MAGIC.len()).ok().as_deref() != Some(MAGIC) {
        return Err("this is no GGUF file: it does not begin with `GGUF`".into());
    }
    match cursor.u32()? {
        2 | 3 => Ok(()),
        1 => Err("version 1 of GGUF is no longer read: convert the original model again".into()),
        other if other != 0 && other.trailing_zeros() >= 16 => {
            Err("the file is big-endian; convert the model again for a little-endian machine".into())
        }
        other => Err(format!("version {other} of GGUF is not known; known are 2 and 3")),
    }
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, String> {
    let unknown = |number: u32| format!("the key `{key}` has the type {number}, which does not exist");
    match cursor.u32()? {
        TEXT => Ok(Value::Text(cursor.text(&format!("the value of `{key}`"))?)),
        LIST => {
            let number = cursor.u32()?;
            let what = format!("the length of `{key}`");
            match (number, NumberType::from_number(number)) {
                (TEXT, _) => {
                    let count = cursor.count(8, &what)?;
                    let texts = (0..count).map(|_| cursor.text(&format!("a value of `{key}`")));
                    Ok(Value::Texts(texts.collect::<Result<_, _>>()?))
                }
                (LIST, _) => Err(format!("the key `{key}` is a list of lists, which GGUF does not have")),
                (_, Some(kind)) => {
                    let count = cursor.count(kind.size(), &what)?;
                    Ok(Value::Numbers(Numbers { kind, bytes: cursor.numbers(kind, count)? }))
                }
                (number, None) => Err(unknown(number)),
            }
        }
        number => {
            let kind = NumberType::from_number(number).ok_or_else(|| unknown(number))?;
            Ok(Value::Number(kind.read(&cursor.take(kind.size())?)))
        }
    }
}

fn alignment(values: &BTreeMap<String, Value>) -> Result<usize, String> {
    let alignment = match values.get(ALIGNMENT) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::Number(number)) => number.as_size(),
        Some(_) => None,
    };
    alignment
        .filter(|alignment| alignment.is_power_of_two())
        .ok_or_else(|| format!("the key `{ALIGNMENT}` must be a power of two"))
}

/// A row of the table, with the offset that the file says.
struct StatedRow {
    name: String,
    shape: Vec<usize>,
    kind: BlockType,
    length: usize,
    offset: u64,
}

fn read_row(cursor: &mut Cursor<'_>) -> Result<StatedRow, String> {
    let name = cursor.text("a tensor's name")?;
    if name.len() >= NAME_LIMIT {
        return Err(format!("the tensor's name `{name:.64}` has {} bytes; at most 63 are allowed", name.len()));
    }
    let fault = |message: &str| format!("the tensor `{name}` {message}");
    let dimensions = cursor.u32()? as usize;
    if !(1..=DIMENSIONS).contains(&dimensions) {
        return Err(fault(&format!("has {dimensions} dimensions; 1 to {DIMENSIONS} are allowed")));
    }
    let mut shape = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        let size = cursor.u64()?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0);
        shape.push(size.ok_or_else(|| fault("has a dimension of no size"))?);
    }
    let kind = BlockType::from_ggml(cursor.u32()?).map_err(|error| format!("the tensor `{name}`: {error}"))?;
    let (weights, bytes) = kind.size();
    if !shape[0].is_multiple_of(weights) {
        return Err(fault(&format!("is {} wide, which is no whole number of {kind} blocks", shape[0])));
    }
    let elements = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    let length = elements.and_then(|elements| (elements / weights).checked_mul(bytes));
    let length = length.ok_or_else(|| fault("is larger than any file"))?;
    shape.reverse();
    Ok(StatedRow { shape, kind, length, offset: cursor.u64()?, name })
}

/// Checks that the tensors follow one another in the data from byte `start` on, without holes, within the file's `size`.
fn place(rows: Vec<StatedRow>, start: usize, alignment: usize, size: usize) -> Result<Vec<TensorRow>, String> {
    let mut names = BTreeSet::new();
    let mut offset = 0_usize;
    let mut tensors = Vec::with_capacity(rows.len());
    for row in rows {
        let fault = |message: String| format!("the tensor `{}` {message}", row.name);
        if row.offset != offset as u64 {
            return Err(fault(format!("begins at offset {} of the data, where {offset} is expected", row.offset)));
        }
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(row.length)).filter(|end| *end <= size);
        let (Some(begin), Some(_)) = (begin, end) else {
            return Err(fault(format!("ends beyond the file's {size} bytes: the download is not complete")));
        };
        if !names.insert(row.name.clone()) {
            return Err(fault("is there twice".into()));
        }
        offset = (offset + row.length).checked_next_multiple_of(alignment).ok_or("the file is too large")?;
        tensors.push(TensorRow { name: row.name, shape: row.shape, kind: row.kind, start: begin, length: row.length });
    }
    Ok(tensors)
}
