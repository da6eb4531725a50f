//! Adds a low-rank change to a weight matrix: in f64, and rounded once to the type of the weights.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::gguf::lora::in_file_order;
use crate::lora::LoraPair;
use crate::{Error, Result};

/// What is added to one matrix: `scale · B A`.
pub(super) struct Change {
    /// A, `[rank, in]`.
    a: Vec<f64>,
    /// B, `[out, rank]`, times the scale.
    b: Vec<f64>,
    rank: usize,
    input: usize,
    output: usize,
}

impl Change {
    /// Takes the matrices of `pair`.
    pub(super) fn of(pair: &LoraPair) -> Result<Self> {
        let ((rank, input), (output, _)) = (pair.a.dims2()?, pair.b.dims2()?);
        let scale = f64::from(pair.scale);
        let values = |matrix: &candle_core::Tensor| -> Result<Vec<f64>> {
            let values = matrix.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().map(f64::from).collect())
        };
        let b = values(&pair.b)?.into_iter().map(|value| value * scale).collect();
        Ok(Self { a: values(&pair.a)?, b, rank, input, output })
    }

    /// Returns the bytes of the matrix `name` with the change, in the same type.
    pub(super) fn added_to(&self, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<Vec<u8>> {
        self.check_shape(name, shape)?;
        match dtype {
            Dtype::F32 => Ok(self.add(data, f32::from_le_bytes, |value| (value as f32).to_le_bytes())),
            Dtype::F16 => Ok(self.add(
                data,
                |bytes| f16::from_le_bytes(bytes).to_f32(),
                |value| f16::from_f32(to_odd(value)).to_le_bytes(),
            )),
            Dtype::BF16 => Ok(self.add(
                data,
                |bytes| bf16::from_le_bytes(bytes).to_f32(),
                |value| bf16::from_f32(to_odd(value)).to_le_bytes(),
            )),
            other => Err(Error::Setup(format!(
                "the tensor `{name}` is {other:?}; an adapter is added to weights in F32, F16 or BF16"
            ))),
        }
    }

    fn add<const SIZE: usize>(
        &self,
        data: &[u8],
        read: impl Fn([u8; SIZE]) -> f32 + Sync,
        write: impl Fn(f64) -> [u8; SIZE] + Sync,
    ) -> Vec<u8> {
        let mut output = vec![0; data.len()];
        let row_bytes = (self.input * SIZE).max(1);
        let rows = output.par_chunks_mut(row_bytes).zip(data.par_chunks(row_bytes)).enumerate();
        rows.for_each(|(row, (output, data))| {
            let (stored, _) = data.as_chunks::<SIZE>();
            let (added, _) = output.as_chunks_mut::<SIZE>();
            for ((added, stored), change) in added.iter_mut().zip(stored).zip(self.row(row)) {
                *added = write(f64::from(read(*stored)) + change);
            }
        });
        output
    }

    /// Returns the matrix `name` of `values` with the change.
    pub(super) fn sum(&self, name: &str, shape: &[usize], values: &[f32]) -> Result<Vec<f64>> {
        self.check_shape(name, shape)?;
        let mut output = vec![0.0; values.len()];
        let rows = output.par_chunks_mut(self.input.max(1)).zip(values.par_chunks(self.input.max(1))).enumerate();
        rows.for_each(|(row, (output, values))| {
            for ((output, value), change) in output.iter_mut().zip(values).zip(self.row(row)) {
                *output = f64::from(*value) + change;
            }
        });
        Ok(output)
    }

    /// Returns the change with its rows where files have them that rotate neighbours, for a layer of these heads.
    pub(super) fn in_file_order(mut self, heads: usize, name: &str) -> Result<Self> {
        self.b = in_file_order(&self.b, (self.output, self.rank), heads, name)?;
        Ok(self)
    }

    /// Returns what is added to one row.
    fn row(&self, row: usize) -> Vec<f64> {
        let mut sums = vec![0.0; self.input];
        let factors = &self.b[row * self.rank..(row + 1) * self.rank];
        for (factor, line) in factors.iter().zip(self.a.chunks_exact(self.input.max(1))) {
            sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += factor * value);
        }
        sums
    }

    fn check_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let own = [self.output, self.input];
        if shape == own {
            return Ok(());
        }
        Err(Error::Setup(format!("the tensor `{name}` has the shape {shape:?}; the adapter's is {own:?}")))
    }
}

/// Rounds to f32 so that rounding the result to a type with fewer digits is as if `value` were rounded to it at once:
/// what is cut off makes the last bit odd.
#[allow(clippy::float_cmp, reason = "asks whether nothing was cut off")]
pub(super) fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || !nearest.is_finite() || !value.is_finite() {
        return nearest;
    }
    // The nearest one may lie beyond the value; the one before it is next to zero.
    let beyond = f64::from(nearest).abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(beyond)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "every bit is told")]
    fn a_value_is_rounded_once() {
        // Halfway between two values of bf16, and a little more than an f32 can tell.
        let value = 1.0 + 1.0 / 256.0 + 1e-12;
        assert_eq!(bf16::from_f32(value as f32).to_f32(), 1.0, "rounded twice");
        assert_eq!(bf16::from_f32(to_odd(value)).to_f32(), 1.0 + 1.0 / 128.0);
        assert_eq!(bf16::from_f32(to_odd(-value)).to_f32(), -1.0 - 1.0 / 128.0);
        assert_eq!(bf16::from_f32(to_odd(1.0 + 1.0 / 256.0)).to_f32(), 1.0);
        assert_eq!(to_odd(0.5), 0.5);
        assert_eq!(f16::from_f32(to_odd(1e6)), f16::INFINITY);
    }
}
