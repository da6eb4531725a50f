//! Products of panels with tensors. Called by `model::linear`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::rows::{for_rows, for_rows_in_place};
use super::super::{Values, tensor, vector, with_values_mut};
use super::{Panels, Precision, Product, Start, add_product, products};
use crate::blocks::BlockMatrix;
use crate::matrix::GroupedMatrix;
use crate::{Error, Result};

impl Panels {
    /// Packs a weight `[out, in]`. Weights to be held in f32 are held in bf16 if that keeps every bit, as it does for a
    /// checkpoint in bf16: products are the same, and half the memory is read for them.
    pub fn of(weight: &Tensor, precision: Precision) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let values = Values::of(weight)?;
        if precision == Precision::F32 {
            return Ok(Self::exact(&values, outputs, inputs));
        }
        Ok(Self::pack(&values, outputs, inputs, precision))
    }

    /// Packs floats in bf16 if that keeps every bit, else in f32.
    fn exact(values: &[f32], outputs: usize, inputs: usize) -> Self {
        let lossless = values.par_chunks(1 << 16).all(is_bf16);
        Self::pack(values, outputs, inputs, if lossless { Precision::Bf16 } else { Precision::F32 })
    }

    /// Packs the blocks of a GGUF file with their very values.
    pub fn of_blocks(blocks: &BlockMatrix) -> Result<Self> {
        if let Some(panels) = Self::of_coded(blocks) {
            return Ok(panels);
        }
        let (_, outputs, inputs) = blocks.shape();
        Ok(Self::exact(&blocks.dequantize()?, outputs, inputs))
    }

    /// Packs grouped whole numbers with their very values.
    pub fn of_groups(matrix: &GroupedMatrix) -> Result<Self> {
        matrix.check()?;
        let panels = Self::of_grouped(matrix);
        Ok(panels.unwrap_or_else(|| Self::exact(&matrix.dequantize(), matrix.outputs, matrix.inputs)))
    }

    /// Computes `dy · W`, `[rows, in]`, from `dy` `[rows, out]`.
    pub fn input_gradient(&self, dy: &Tensor) -> Result<Tensor> {
        let rows = rows_of(dy, self.outputs())?;
        tensor(self.gradient(&Values::of(dy)?, rows), (rows, self.inputs()))
    }

    /// Adds `dy · W` to `dx`, `[rows, in]`, in the memory of `dx`, which nothing else holds.
    pub fn add_input_gradient(&self, dx: Tensor, dy: &Tensor) -> Result<Tensor> {
        let rows = rows_of(dy, self.outputs())?;
        let dy = Values::of(dy)?;
        with_values_mut(std::slice::from_ref(&dx), &|outputs| {
            // SAFETY: the only slice of the only output.
            self.add_gradient(unsafe { outputs[0].slice(0..rows * self.inputs()) }, &dy, rows);
            Ok(())
        })?;
        Ok(dx)
    }

    /// Returns the weight's rows `indices`, `[rows, in]`.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        if let Some(index) = indices.iter().find(|index| **index as usize >= self.outputs()) {
            return Err(Error::Internal(format!("row {index} of a weight with {} rows", self.outputs())));
        }
        let mut rows = vec![0.0; indices.len() * self.inputs()];
        if !rows.is_empty() {
            let unpack = |(row, index): (&mut [f32], &u32)| self.unpack_row(*index as usize, row);
            if indices.len() < 32 {
                rows.chunks_exact_mut(self.inputs()).zip(indices).for_each(unpack);
            } else {
                rows.par_chunks_exact_mut(self.inputs()).zip(indices).with_min_len(16).for_each(unpack);
            }
        }
        tensor(rows, (indices.len(), self.inputs()))
    }
}

/// Returns true if bf16 holds each of the values exactly.
fn is_bf16(values: &[f32]) -> bool {
    values.iter().fold(0, |bits, value| bits | value.to_bits()).trailing_zeros() >= 16
}

/// Computes `x · Wᵀ + bias`, `[rows, out]`, for each weight and bias `[out]`; `x` is `[rows, in]`. All share
/// one fork.
pub fn project(x: &Tensor, layers: &[(&Panels, Option<&Tensor>)]) -> Result<Vec<Tensor>> {
    let Some((first, _)) = layers.first() else { return Ok(Vec::new()) };
    let rows = rows_of(x, first.inputs())?;
    let biases: Vec<Option<Values<'_>>> =
        layers.iter().map(|(_, bias)| bias.map(Values::of).transpose()).collect::<Result<_>>()?;
    let jobs: Vec<Product<'_>> = layers
        .iter()
        .zip(&biases)
        .map(|((panels, _), bias)| Product {
            panels,
            start: bias.as_ref().map_or(Start::Zero, |bias| Start::Bias(bias)),
        })
        .collect();
    let x = Values::of(x)?;
    let outputs = products(&x, rows, &jobs);
    outputs.into_iter().zip(layers).map(|(y, (panels, _))| tensor(y, (rows, panels.outputs()))).collect()
}

/// Computes `residual + bias + x · Wᵀ`, `[rows, out]`, from `x` `[rows, in]`.
pub fn project_onto(residual: &Tensor, x: &Tensor, panels: &Panels, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, width) = (rows_of(residual, panels.outputs())?, panels.outputs());
    let (values, bias) = (Values::of(residual)?, bias.map(Values::of).transpose()?);
    let mut y = vec![0.0; rows * width];
    for_rows(&mut y, width, |row, y| {
        y.copy_from_slice(&values[row * width..(row + 1) * width]);
        if let Some(bias) = &bias {
            vector::add_each(y, bias);
        }
    });
    if rows_of(x, panels.inputs())? != rows {
        return Err(Error::Internal("a product and what it is added to have the same rows".into()));
    }
    add_product(&mut y, &Values::of(x)?, rows, panels);
    tensor(y, (rows, width))
}

/// Computes [`project_onto`] in the memory of `residual`, which nothing else holds.
pub fn project_into(residual: Tensor, x: &Tensor, panels: &Panels, bias: Option<&Tensor>) -> Result<Tensor> {
    let rows = rows_of(x, panels.inputs())?;
    if rows_of(&residual, panels.outputs())? != rows {
        return Err(Error::Internal("a product and what it is added to have the same rows".into()));
    }
    if let Some(bias) = bias {
        let bias = Values::of(bias)?;
        for_rows_in_place(&residual, panels.outputs(), |row| vector::add_each(row, &bias))?;
    }
    let x = Values::of(x)?;
    with_values_mut(std::slice::from_ref(&residual), &|outputs| {
        // SAFETY: the only slice of the only output.
        let y = unsafe { outputs[0].slice(0..rows * panels.outputs()) };
        add_product(y, &x, rows, panels);
        Ok(())
    })?;
    Ok(residual)
}

fn rows_of(x: &Tensor, width: usize) -> Result<usize> {
    let (rows, columns) = x.dims2()?;
    if columns == width {
        Ok(rows)
    } else {
        Err(Error::Internal(format!("a product of width {width} was given rows of {columns}")))
    }
}
