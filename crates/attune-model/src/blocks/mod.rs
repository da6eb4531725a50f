//! Block formats of GGUF files: what a block holds, and its values. Read by `gguf` and by the panels of products.
//!
//! | file | what it does |
//! |---|---|
//! | `names` | the types by number and name, and which are not read |
//! | `split` | splits a block into whole numbers and factors, from which values and panels are made |

mod names;
mod split;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::{Error, Result};

pub(crate) use split::{FP4, IQ4, Parts, split};

/// Type of a tensor of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs, reason = "the format's own names")]
pub enum BlockType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

impl BlockType {
    /// Returns the number of weights of a block and its bytes.
    pub fn size(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
            Self::Iq4Xs => (256, 136),
            Self::Mxfp4 => (32, 17),
        }
    }
}

/// A matrix `[rows, columns]` in blocks along its rows.
#[derive(Debug, Clone)]
pub struct BlockMatrix {
    kind: BlockType,
    rows: usize,
    columns: usize,
    /// Rows one after the other, without gaps; mostly a part of a mapped file.
    bytes: Bytes,
}

impl BlockMatrix {
    /// Makes a matrix of `bytes`; refuses a width that is no whole number of blocks, or another number of bytes.
    pub fn new(kind: BlockType, rows: usize, columns: usize, bytes: Bytes) -> Result<Self> {
        let (weights, size) = kind.size();
        let wanted = rows.checked_mul(columns / weights).and_then(|blocks| blocks.checked_mul(size));
        if !columns.is_multiple_of(weights) || wanted != Some(bytes.len()) {
            return Err(Error::Setup(format!("{} bytes are no {rows} x {columns} matrix of {kind}", bytes.len())));
        }
        Ok(Self { kind, rows, columns, bytes })
    }

    /// Returns the type, the rows and the columns.
    pub fn shape(&self) -> (BlockType, usize, usize) {
        (self.kind, self.rows, self.columns)
    }

    /// Returns the bytes, row by row.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the bytes of one row.
    pub(crate) fn row(&self, index: usize) -> &[u8] {
        let length = self.row_bytes();
        &self.bytes[index * length..][..length]
    }

    /// Returns the matrix of some of the rows, which shares the bytes.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::Internal(format!("rows {rows:?} of a matrix with {}", self.rows)));
        }
        let row = self.row_bytes();
        Self::new(self.kind, rows.len(), self.columns, self.bytes.slice(rows.start * row..rows.end * row))
    }

    fn row_bytes(&self) -> usize {
        let (weights, size) = self.kind.size();
        self.columns / weights * size
    }

    /// Computes the values in f32, `[rows, columns]`.
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        self.dequantize_rows(0..self.rows)
    }

    /// Computes the values of some rows in f32, `[rows, columns]`.
    pub fn dequantize_rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::Internal(format!("rows {rows:?} of a matrix with {}", self.rows)));
        }
        let mut values = vec![0.0; rows.len() * self.columns];
        if !values.is_empty() {
            values
                .par_chunks_exact_mut(self.columns)
                .zip(rows)
                .for_each(|(values, row)| dequantize(self.kind, self.row(row), values));
        }
        Ok(values)
    }
}

/// Computes the `values` of whole blocks.
fn dequantize(kind: BlockType, bytes: &[u8], values: &mut [f32]) {
    let (weights, size) = kind.size();
    let blocks = values.chunks_exact_mut(weights).zip(bytes.chunks_exact(size));
    match kind {
        BlockType::F32 => blocks.for_each(|(value, b)| value[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        BlockType::F16 => blocks.for_each(|(value, b)| value[0] = f16::from_le_bytes([b[0], b[1]]).to_f32()),
        BlockType::Bf16 => blocks.for_each(|(value, b)| value[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        _ => {
            let mut parts = Parts::default();
            for (values, block) in blocks {
                split(kind, block, &mut parts);
                parts.values(kind, values);
            }
        }
    }
}
