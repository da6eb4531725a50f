//! Matrices of whole numbers with scales: the form that most formats share once their numbers are unpacked. Used by the
//! formats.

use rayon::prelude::*;

use super::Values;
use crate::matrix::GroupedMatrix;

/// Which inputs share a scale.
pub(super) enum Groups {
    /// So many neighbours.
    Even(usize),
    /// The group of each input.
    Listed(Vec<usize>),
}

impl Groups {
    /// Returns groups of `size` neighbours, the last of them perhaps smaller.
    pub(super) fn neighbours(inputs: usize, size: usize) -> Self {
        let size = size.min(inputs);
        if inputs.is_multiple_of(size) {
            Self::Even(size)
        } else {
            Self::Listed((0..inputs).map(|input| input / size).collect())
        }
    }

    /// Returns the group of each input.
    pub(super) fn listed(&self, inputs: usize) -> Vec<usize> {
        match self {
            Self::Even(size) => (0..inputs).map(|input| input / size).collect(),
            Self::Listed(groups) => groups.clone(),
        }
    }
}

/// Scales of a matrix of whole numbers.
pub(super) struct Scaled {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Inputs that share a scale.
    pub groups: Groups,
    /// `[outputs, groups]`
    pub scales: Vec<f32>,
    /// `[outputs, groups]`; `None` if all are zero.
    pub offsets: Option<Vec<f32>>,
}

impl Scaled {
    /// Makes the matrix of the whole numbers that `fill` writes for a row. They stay whole numbers if they fit 8 bits
    /// and neighbours share their scales.
    pub(super) fn values(self, fill: impl Fn(usize, &mut [i16]) + Sync) -> Values {
        if let Groups::Even(group) = self.groups
            && let Some(quants) = self.quants(&fill)
        {
            let Self { outputs, inputs, scales, offsets, .. } = self;
            return Values::Grouped(GroupedMatrix { outputs, inputs, group, quants, scales, offsets });
        }
        let (groups, count) = (self.groups.listed(self.inputs), self.scales.len() / self.outputs.max(1));
        let mut values = vec![0.0; self.outputs * self.inputs];
        values.par_chunks_mut(self.inputs.max(1)).enumerate().for_each_init(
            || vec![0; self.inputs],
            |numbers, (output, row)| {
                fill(output, numbers);
                for (input, (value, number)) in row.iter_mut().zip(numbers).enumerate() {
                    let place = output * count + groups[input];
                    let offset = self.offsets.as_ref().map_or(0.0, |offsets| offsets[place]);
                    *value = f32::from(*number) * self.scales[place] + offset;
                }
            },
        );
        Values::Dense(values)
    }

    /// Returns the whole numbers; `None` if one of them does not fit 8 bits.
    fn quants(&self, fill: &(impl Fn(usize, &mut [i16]) + Sync)) -> Option<Vec<i8>> {
        let mut quants = vec![0_i8; self.outputs * self.inputs];
        let rows = quants.par_chunks_mut(self.inputs.max(1)).enumerate();
        let fitting = rows.try_for_each_init(
            || vec![0; self.inputs],
            |numbers, (output, row)| {
                fill(output, numbers);
                row.iter_mut().zip(numbers).try_for_each(|(quant, number)| {
                    *quant = i8::try_from(*number).ok()?;
                    Some(())
                })
            },
        );
        fitting.map(|()| quants)
    }
}
