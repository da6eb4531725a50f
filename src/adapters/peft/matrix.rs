//! One matrix in the file of an adapter: where it lies, of which type it is, and its values; and the update of a layer,
//! which two of them are.

use std::ops::Range;

use safetensors::tensor::{Dtype, TensorInfo};

use crate::adapters::Result;
use crate::adapters::peft::refuse;
use crate::adapters::pieces::parts;
use crate::model::lora::Site;
use crate::model::lora::layout::PairShape;

/// Values that are looked at before one that is not finite ends it: many at a time, without a branch for each.
const TOGETHER: usize = 1024;

/// The update of one site: with others that share its layer it has A, and of B its rows.
pub(super) struct Update {
    pub block: usize,
    /// The expert whose layer it is; `None` for layers of all rows.
    pub expert: Option<usize>,
    pub site: Site,
    pub scale: f32,
    pub a: Matrix,
    pub b: Matrix,
}

impl Update {
    pub(super) fn shape(&self) -> PairShape {
        let ((rank, input), (output, _)) = (self.a.shape, self.b.shape);
        PairShape { rank, input, output, scale: self.scale }
    }
}

/// One matrix in the file.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    /// Where it lies.
    pub bytes: Range<usize>,
    /// Type of its values, F32, F16 or BF16 once it is checked.
    pub dtype: Dtype,
    /// Rows and columns.
    pub shape: (usize, usize),
}

/// Runs `$run` with the stored values of `$matrix`, and a function from one of them to its number.
macro_rules! with_values {
    ($matrix:expr, $file:expr, |$stored:ident, $value:ident| $run:expr) => {{
        let data = &$file[$matrix.bytes.clone()];
        match $matrix.dtype {
            ::safetensors::tensor::Dtype::F16 => {
                let ($stored, _) = data.as_chunks();
                let $value = |stored: &[u8; 2]| $crate::adapters::peft::matrix::f16_value(*stored);
                $run
            }
            ::safetensors::tensor::Dtype::BF16 => {
                let ($stored, _) = data.as_chunks();
                let $value = |stored: &[u8; 2]| $crate::adapters::peft::matrix::bf16_value(*stored);
                $run
            }
            _ => {
                let ($stored, _) = data.as_chunks();
                let $value = |stored: &[u8; 4]| f32::from_le_bytes(*stored);
                $run
            }
        }
    }};
}
pub(super) use with_values;

impl Matrix {
    /// Reads the header's entry of `name` in a file whose data begins at `data`.
    pub(super) fn of(name: &str, info: &TensorInfo, data: usize) -> Result<Self> {
        let [rows, columns] = info.shape[..] else {
            return Err(refuse(format_args!("`{name}` has the shape {:?}, not two dimensions", info.shape)));
        };
        let (start, end) = info.data_offsets;
        Ok(Self { bytes: data + start..data + end, dtype: info.dtype, shape: (rows, columns) })
    }

    /// Returns the matrix if its type can be read and `shape` is its own; else the error names it `name`.
    pub(super) fn checked(&self, name: &str, shape: (usize, usize)) -> Result<Self> {
        if !matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(refuse(format_args!("`{name}` is {:?}; use F32, F16 or BF16", self.dtype)));
        }
        if self.shape != shape {
            return Err(refuse(format_args!(
                "`{name}` has the shape {:?}; rank and model require {shape:?}",
                self.shape
            )));
        }
        Ok(self.clone())
    }

    /// Returns the part of the matrix that is some of its rows, once its type is checked.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        let row = self.shape.1 * self.dtype.bitsize() / 8;
        let start = self.bytes.start;
        Self {
            bytes: start + rows.start * row..start + rows.end * row,
            dtype: self.dtype,
            shape: (rows.len(), self.shape.1),
        }
    }

    /// Returns where its pieces are in the file.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let start = self.bytes.start;
        parts(self.bytes.len(), 1).map(move |part| start + part.start..start + part.end)
    }

    /// Appends the values of `piece`, a part of its bytes, to `values`.
    pub(super) fn read(&self, piece: &[u8], values: &mut Vec<f32>) {
        match self.dtype {
            Dtype::F16 => values.extend(piece.as_chunks().0.iter().map(|bytes| f16_value(*bytes))),
            Dtype::BF16 => values.extend(piece.as_chunks().0.iter().map(|bytes| bf16_value(*bytes))),
            _ => values.extend(piece.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
        }
    }

    /// True if no value of `piece` is infinite or not a number: those have every bit of the exponent set.
    pub(super) fn are_finite(&self, piece: &[u8]) -> bool {
        let short = |exponent: u16| {
            let finite = |so_far: bool, bytes: &[u8; 2]| so_far & (u16::from_le_bytes(*bytes) & exponent != exponent);
            piece.as_chunks().0.chunks(TOGETHER).all(|values| values.iter().fold(true, finite))
        };
        match self.dtype {
            Dtype::F16 => short(0x7c00),
            Dtype::BF16 => short(0x7f80),
            _ => {
                let finite = |so_far: bool, bytes: &[u8; 4]| so_far & f32::from_le_bytes(*bytes).is_finite();
                piece.as_chunks().0.chunks(TOGETHER).all(|values| values.iter().fold(true, finite))
            }
        }
    }
}

pub(super) fn f16_value(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

pub(super) fn bf16_value(bytes: [u8; 2]) -> f32 {
    half::bf16::from_le_bytes(bytes).to_f32()
}
