//! Writes GGUF files, version 3: keys, the table of tensors, and the tensors' data one after the other, each as it is
//! asked for. Called by exports, and by tests that need a file.

use std::io::Write;

use bytes::Bytes;

use super::header::{ALIGNMENT, DEFAULT_ALIGNMENT, MAGIC};
use super::metadata::{Metadata, Value};
use super::types::{LIST, NumberType, TEXT, block_type_number};
use crate::blocks::BlockType;
use crate::{Error, Result};

/// Version that is written.
const VERSION: u32 = 3;

/// A tensor that is to be written.
#[derive(Debug, Clone)]
pub struct TensorToWrite {
    /// Name in the file.
    pub name: String,
    /// Dimensions, the slowest first: `[outputs, inputs]` for a matrix.
    pub shape: Vec<usize>,
    /// Type of its blocks.
    pub kind: BlockType,
}

impl TensorToWrite {
    /// Returns the bytes of its data.
    fn length(&self) -> Result<usize> {
        let (weights, size) = self.kind.size();
        let elements = self.shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        let whole = self.shape.last().is_some_and(|columns| columns.is_multiple_of(weights));
        let length = elements.filter(|_| whole).and_then(|elements| (elements / weights).checked_mul(size));
        length.ok_or_else(|| {
            Error::Setup(format!(
                "the tensor `{}` {:?} is no whole number of {} blocks",
                self.name, self.shape, self.kind
            ))
        })
    }
}

/// Writes a file of `metadata` and `tensors`, whose data `data` returns in their order.
pub fn write(
    output: &mut impl Write,
    metadata: &Metadata,
    tensors: &[TensorToWrite],
    mut data: impl FnMut(&TensorToWrite) -> Result<Bytes>,
) -> Result<()> {
    let alignment = metadata.size(ALIGNMENT)?.unwrap_or(DEFAULT_ALIGNMENT).max(1);
    let header = header(metadata, tensors, alignment)?;
    let mut put = |bytes: &[u8]| output.write_all(bytes).map_err(Error::io("write the GGUF file"));
    let padding = |length: usize| vec![0; length.next_multiple_of(alignment) - length];
    put(&header)?;
    put(&padding(header.len()))?;
    for tensor in tensors {
        let bytes = data(tensor)?;
        if bytes.len() != tensor.length()? {
            return Err(Error::Internal(format!("{} bytes for the tensor `{}`", bytes.len(), tensor.name)));
        }
        put(&bytes)?;
        put(&padding(bytes.len()))?;
    }
    Ok(())
}

fn header(metadata: &Metadata, tensors: &[TensorToWrite], alignment: usize) -> Result<Vec<u8>> {
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.iter().count() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_text(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        header.extend(tensor.shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
        header.extend(block_type_number(tensor.kind).to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset = (offset + tensor.length()?).next_multiple_of(alignment);
    }
    Ok(header)
}

fn put_text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn put_value(header: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Number(number) => {
            let kind = NumberType::of(*number);
            header.extend(kind.number().to_le_bytes());
            header.extend(number.bytes());
        }
        Value::Text(text) => {
            header.extend(TEXT.to_le_bytes());
            put_text(header, text);
        }
        Value::Numbers(numbers) => {
            header.extend(LIST.to_le_bytes());
            header.extend(numbers.kind.number().to_le_bytes());
            header.extend((numbers.len() as u64).to_le_bytes());
            header.extend(&*numbers.bytes);
        }
        Value::Texts(texts) => {
            header.extend(LIST.to_le_bytes());
            header.extend(TEXT.to_le_bytes());
            header.extend((texts.len() as u64).to_le_bytes());
            for text in texts {
                put_text(header, text);
            }
        }
    }
}
