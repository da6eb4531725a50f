//! The layout of an adapter's matrices in memory while a CPU serves them.

use std::ops::Range;

use candle_core::{DType, Device, Tensor, WithDType};
use half::bf16;

use super::LoraPair;
use crate::{Error, Result};

/// Outputs that are computed together, as in the panels of the base's weights.
pub const LANES: usize = 16;

/// Lays the pairs out as a serving step on the CPU reads them best; see [`Stretch`].
pub(crate) fn lay_out(pairs: &[&LoraPair], precision: DType) -> Result<Vec<LoraPair>> {
    let mut shapes = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let ((rank, input), (output, _)) = (pair.a.dims2()?, pair.b.dims2()?);
        shapes.push(PairShape { rank, input, output, scale: pair.scale });
    }
    let mut stretch = Stretch::new(precision, shapes.iter().map(PairShape::elements).sum())?;
    for (pair, shape) in pairs.iter().zip(&shapes) {
        let values = |matrix: &Tensor| matrix.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (a, b) = (values(&pair.a)?, values(&pair.b)?);
        stretch.add_a(shape, 0..shape.input, &a, |value| *value);
        stretch.add_b(shape, 0..shape.panels(), &b, |value| *value);
    }
    stretch.pairs(&shapes)
}

/// Returns the number of outputs that a laid-out B has of `output`.
pub fn padded_output(output: usize) -> usize {
    output.next_multiple_of(LANES)
}

/// The shape of one pair, and its scale.
#[derive(Debug, Clone, Copy)]
pub struct PairShape {
    /// Rows of A.
    pub rank: usize,
    /// Columns of A.
    pub input: usize,
    /// Rows of B.
    pub output: usize,
    /// See [`LoraPair::scale`].
    pub scale: f32,
}

impl PairShape {
    /// Returns the number of groups of [`LANES`] outputs, the last of them filled up with zeros.
    pub fn panels(&self) -> usize {
        self.output.div_ceil(LANES)
    }

    /// Returns the number of values of the pair once it is laid out.
    pub fn elements(&self) -> usize {
        self.rank * (self.input + padded_output(self.output))
    }
}

/// Matrices on their way into the layout that a serving step on the CPU reads best: in one stretch of memory, in the
/// order in which they are read, each A transposed and each B `[⌈out / 16⌉, rank, 16]`. Measured a third faster than
/// matrices on their own, which compete for the same places of the caches.
///
/// It is written from its begin to its end, in pieces of any size, so that whoever writes can let others go first.
#[derive(Debug)]
pub struct Stretch(Values);

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Stretch {
    /// Sets memory for `elements` values in `precision`, f32 or bf16, aside.
    pub fn new(precision: DType, elements: usize) -> Result<Self> {
        match precision {
            DType::F32 => Ok(Self(Values::F32(Vec::with_capacity(elements + LANES)))),
            DType::BF16 => Ok(Self(Values::Bf16(Vec::with_capacity(elements + LANES)))),
            other => Err(Error::Internal(format!("no adapter is served in {other:?} on the CPU"))),
        }
    }

    /// Adds `columns` of the A that is next, whose values `[rank, in]` are made from `data` one by one.
    pub fn add_a<D>(&mut self, shape: &PairShape, columns: Range<usize>, data: &[D], value: impl Fn(&D) -> f32) {
        match &mut self.0 {
            Values::F32(values) => add_a(values, shape, columns, data, value),
            Values::Bf16(values) => add_a(values, shape, columns, data, |stored| bf16::from_f32(value(stored))),
        }
    }

    /// Adds `panels` of the B that is next, whose values `[out, rank]` are made from `data` one by one.
    pub fn add_b<D>(&mut self, shape: &PairShape, panels: Range<usize>, data: &[D], value: impl Fn(&D) -> f32) {
        match &mut self.0 {
            Values::F32(values) => add_b(values, shape, panels, data, value),
            Values::Bf16(values) => add_b(values, shape, panels, data, |stored| bf16::from_f32(value(stored))),
        }
    }

    /// Returns the pairs, which share the stretch, once A and B of each of `shapes` were added in this order.
    pub fn pairs(self, shapes: &[PairShape]) -> Result<Vec<LoraPair>> {
        let wanted: usize = shapes.iter().map(PairShape::elements).sum();
        match self.0 {
            Values::F32(values) => pairs(values, wanted, shapes),
            Values::Bf16(values) => pairs(values, wanted, shapes),
        }
    }
}

fn add_a<D, T: Copy + Default>(
    to: &mut Vec<T>,
    shape: &PairShape,
    columns: Range<usize>,
    data: &[D],
    value: impl Fn(&D) -> T,
) {
    let PairShape { rank, input, .. } = *shape;
    let mut block = vec![T::default(); LANES * rank];
    for first in columns.clone().step_by(LANES) {
        let width = LANES.min(columns.end - first);
        for row in 0..rank {
            let line = &data[row * input + first..][..width];
            put(&mut block, rank, row, line, &value);
        }
        to.extend_from_slice(&block[..width * rank]);
    }
}

fn add_b<D, T: Copy + Default>(
    to: &mut Vec<T>,
    shape: &PairShape,
    panels: Range<usize>,
    data: &[D],
    value: impl Fn(&D) -> T,
) {
    let PairShape { rank, output, .. } = *shape;
    let mut block = vec![T::default(); LANES * rank];
    for first in panels.map(|panel| panel * LANES) {
        let lanes = LANES.min(output - first);
        if lanes < LANES {
            block.fill(T::default());
        }
        for lane in 0..lanes {
            let line = &data[(first + lane) * rank..][..rank];
            put(&mut block, LANES, lane, line, &value);
        }
        to.extend_from_slice(&block);
    }
}

/// Writes `line` as column `column` of `block`, whose rows have `width` values. A block stays in the core's first
/// cache, so that each value goes through memory once.
fn put<D, T>(block: &mut [T], width: usize, column: usize, line: &[D], value: impl Fn(&D) -> T) {
    for (row, stored) in block.chunks_exact_mut(width.max(1)).zip(line) {
        row[column] = value(stored);
    }
}

fn pairs<T: WithDType + Default>(mut values: Vec<T>, wanted: usize, shapes: &[PairShape]) -> Result<Vec<LoraPair>> {
    if values.len() != wanted {
        return Err(Error::Internal(format!("{} of {wanted} values of an adapter are laid out", values.len())));
    }
    // Padding: sixteen values are read at a time, of the last column too.
    values.resize(wanted + LANES, T::default());
    let all = Tensor::from_vec(values, wanted + LANES, &Device::Cpu)?;
    let mut place = 0;
    let mut take = |count: usize| {
        place += count;
        all.narrow(0, place - count, count)
    };
    let mut laid_out = Vec::with_capacity(shapes.len());
    for &PairShape { rank, input, output, scale } in shapes {
        let padded = padded_output(output);
        let a = take(input * rank)?.reshape((input, rank))?.t()?;
        let b = take(padded * rank)?.reshape((padded / LANES, rank, LANES))?;
        laid_out.push(LoraPair { a, b, scale });
    }
    Ok(laid_out)
}
