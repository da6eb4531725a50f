//! A weight matrix as its checkpoint stores it, before it is packed for products. Read by `weights`, taken by
//! [`Linear`](crate::linear::Linear).

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::blocks::BlockMatrix;
use crate::{Error, Result};

/// A weight matrix `[outputs, inputs]` of a checkpoint.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// Numbers in f32.
    Dense(Tensor),
    /// Blocks of a GGUF file, with the very values of the file.
    Blocks(BlockMatrix),
    /// Whole numbers with scales, of a quantized safetensors checkpoint.
    Grouped(GroupedMatrix),
}

impl Matrix {
    /// Returns the matrix of some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        match self {
            Self::Dense(weight) if rows.len() == weight.dim(0)? => Ok(self.clone()),
            Self::Dense(weight) => Ok(Self::Dense(weight.narrow(0, rows.start, rows.len())?.contiguous()?)),
            Self::Blocks(blocks) => Ok(Self::Blocks(blocks.rows(rows)?)),
            Self::Grouped(grouped) => Ok(Self::Grouped(grouped.rows(&rows))),
        }
    }

    /// Returns the values in f32 on `device`, `[outputs, inputs]`.
    pub fn dense(&self, device: &Device) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight.to_device(device)?),
            Self::Blocks(blocks) => {
                let (_, rows, columns) = blocks.shape();
                Ok(Tensor::from_vec(blocks.dequantize()?, (rows, columns), device)?)
            }
            Self::Grouped(grouped) => {
                grouped.check()?;
                Ok(Tensor::from_vec(grouped.dequantize(), (grouped.outputs, grouped.inputs), device)?)
            }
        }
    }
}

/// Whole numbers with a scale, and sometimes an offset, for each group of inputs of a row: the value at a place is
/// `scale · quant + offset`.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedMatrix {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Inputs that share a scale; divides `inputs`.
    pub group: usize,
    /// `[outputs, inputs]`
    pub quants: Vec<i8>,
    /// `[outputs, inputs / group]`
    pub scales: Vec<f32>,
    /// `[outputs, inputs / group]`; `None` if all are zero.
    pub offsets: Option<Vec<f32>>,
}

impl GroupedMatrix {
    /// Refuses a matrix whose parts do not have its sizes.
    pub(crate) fn check(&self) -> Result<()> {
        let groups = self.inputs.checked_div(self.group).filter(|_| self.inputs.is_multiple_of(self.group));
        let sized = |count: usize, columns: usize| self.outputs.checked_mul(columns) == Some(count);
        let offsets = |groups: usize| self.offsets.as_ref().is_none_or(|offsets| sized(offsets.len(), groups));
        match groups {
            Some(groups)
                if sized(self.quants.len(), self.inputs) && sized(self.scales.len(), groups) && offsets(groups) =>
            {
                Ok(())
            }
            _ => Err(Error::Internal(format!(
                "{} numbers and {} scales of {} are no {} x {} matrix",
                self.quants.len(),
                self.scales.len(),
                self.group,
                self.outputs,
                self.inputs
            ))),
        }
    }

    /// Returns the matrix of some of the rows.
    fn rows(&self, rows: &Range<usize>) -> Self {
        let groups = self.inputs / self.group.max(1);
        let of_groups = |values: &[f32]| values[rows.start * groups..rows.end * groups].to_vec();
        Self {
            outputs: rows.len(),
            quants: self.quants[rows.start * self.inputs..rows.end * self.inputs].to_vec(),
            scales: of_groups(&self.scales),
            offsets: self.offsets.as_deref().map(of_groups),
            ..*self
        }
    }

    /// Computes the values, `[outputs, inputs]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let groups = self.quants.chunks_exact(self.group).zip(&self.scales).enumerate();
        let values = groups.flat_map(|(index, (quants, scale))| {
            let offset = self.offsets.as_ref().map_or(0.0, |offsets| offsets[index]);
            quants.iter().map(move |quant| f32::from(*quant) * scale + offset)
        });
        values.collect()
    }
}
