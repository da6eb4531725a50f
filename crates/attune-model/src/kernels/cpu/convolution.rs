//! Gated short convolutions: y = C ⊙ z, where z is the bias plus the sum, over the taps, of the tap's weights ⊙ u of the row
//! so many rows before, and u = B ⊙ x.
//!
//! A row's sum runs over its taps from the farthest row to its own, whether the earlier rows are in the same call or come
//! from the cache: it has the same bits however a sequence was cut into steps.

use std::ops::Range;

use candle_core::Tensor;

use super::rows::for_rows;
use super::{Values, tensor, with_values_mut};
use crate::Result;
use crate::kernels::{Filters, SequenceRows};
use crate::kv_cache::BLOCK_TOKENS;

/// Filters with their sizes.
struct Taps<'a> {
    /// `[taps, channels]`
    weight: Vec<f32>,
    bias: Option<Values<'a>>,
    count: usize,
    channels: usize,
}

impl<'a> Taps<'a> {
    fn of(filters: &'a Filters) -> Result<Self> {
        let (channels, taps) = filters.weight.dims2()?;
        let values = Values::of(&filters.weight)?;
        let mut weight = vec![0.0; taps * channels];
        for (channel, values) in values.chunks_exact(taps).enumerate() {
            for (tap, value) in values.iter().enumerate() {
                weight[tap * channels + channel] = *value;
            }
        }
        let bias = filters.bias.as_ref().map(Values::of).transpose()?;
        Ok(Self { weight, bias, count: taps, channels })
    }

    /// Returns the weights of the tap for rows `back` before the current one.
    fn at(&self, back: usize) -> &[f32] {
        let tap = self.count - 1 - back;
        &self.weight[tap * self.channels..(tap + 1) * self.channels]
    }

    /// Computes z of a row. `add` adds the product of the weights of a tap and the row that many rows before.
    fn sum(&self, z: &mut [f32], earlier: usize, mut add: impl FnMut(&mut [f32], usize, &[f32])) {
        match &self.bias {
            Some(bias) => z.copy_from_slice(bias),
            None => z.fill(0.0),
        }
        for back in (0..=earlier.min(self.count - 1)).rev() {
            add(z, back, self.at(back));
        }
    }
}

/// B, C and x of all rows, side by side.
struct Projected<'a> {
    values: Values<'a>,
    channels: usize,
}

impl<'a> Projected<'a> {
    fn of(projected: &'a Tensor, channels: usize) -> Result<Self> {
        Ok(Self { values: Values::of(projected)?, channels })
    }

    /// Returns B, C and x of a row, `[channels]` each.
    fn row(&self, row: usize) -> [&[f32]; 3] {
        let width = self.channels;
        let of = |part: usize| &self.values[(3 * row + part) * width..(3 * row + part + 1) * width];
        [of(0), of(1), of(2)]
    }

    /// Adds `weight` ⊙ u of a row to `z`.
    fn add_input(&self, z: &mut [f32], row: usize, weight: &[f32]) {
        let [b, _, x] = self.row(row);
        for (((z, weight), b), x) in z.iter_mut().zip(weight).zip(b).zip(x) {
            *z += weight * (b * x);
        }
    }
}

/// Returns for each row how many rows of its sequence stand before it.
fn offsets(sequences: impl Iterator<Item = Range<usize>>) -> Vec<usize> {
    sequences.flat_map(|rows| 0..rows.len()).collect()
}

/// See [`crate::kernels::Kernels::packed_convolution`].
pub fn forward(projected: &Tensor, filters: &Filters, sequences: &[Range<usize>]) -> Result<Tensor> {
    let taps = Taps::of(filters)?;
    let (rows, _) = projected.dims2()?;
    let values = Projected::of(projected, taps.channels)?;
    let offsets = offsets(sequences.iter().cloned());
    let mut y = vec![0.0; rows * taps.channels];
    for_rows(&mut y, taps.channels, |row, y| {
        taps.sum(y, offsets[row], |z, back, weight| values.add_input(z, row - back, weight));
        gate(y, values.row(row)[1]);
    });
    tensor(y, (rows, taps.channels))
}

/// Computes the gradient of [`forward`]: dC = dy ⊙ z; dz = dy ⊙ C; du of a row is the sum, over the rows that saw it, of dz
/// times the weights that they saw it by; dB = du ⊙ x, dx = du ⊙ B.
pub fn backward(projected: &Tensor, filters: &Filters, dy: &Tensor, sequences: &[Range<usize>]) -> Result<Tensor> {
    let taps = Taps::of(filters)?;
    let (rows, _) = projected.dims2()?;
    let channels = taps.channels;
    let values = Projected::of(projected, channels)?;
    let dys = Values::of(dy)?;
    let offsets = offsets(sequences.iter().cloned());
    let behind = sequences.iter().flat_map(|rows| (0..rows.len()).rev());
    let behind: Vec<usize> = behind.collect();
    let mut gradient = vec![0.0; rows * 3 * channels];
    for_rows(&mut gradient, 3 * channels, |row, gradient| {
        let (db, rest) = gradient.split_at_mut(channels);
        let (dc, dx) = rest.split_at_mut(channels);
        taps.sum(dc, offsets[row], |z, back, weight| values.add_input(z, row - back, weight));
        gate(dc, &dys[row * channels..(row + 1) * channels]);
        // du, in the place of dx
        for ahead in 0..=behind[row].min(taps.count - 1) {
            let (dy, [_, c, _]) = (&dys[(row + ahead) * channels..][..channels], values.row(row + ahead));
            for (((du, weight), dy), c) in dx.iter_mut().zip(taps.at(ahead)).zip(dy).zip(c) {
                *du += weight * (dy * c);
            }
        }
        let [b, _, x] = values.row(row);
        for (((db, du), b), x) in db.iter_mut().zip(dx).zip(b).zip(x) {
            *db = *du * x;
            *du *= b;
        }
    });
    tensor(gradient, (rows, 3 * channels))
}

/// See [`crate::kernels::Kernels::cached_convolution`].
pub fn cached(
    projected: &Tensor,
    filters: &Filters,
    inputs: &Tensor,
    sequences: &[SequenceRows<'_>],
) -> Result<Tensor> {
    let taps = Taps::of(filters)?;
    let (rows, _) = projected.dims2()?;
    let channels = taps.channels;
    let values = Projected::of(projected, channels)?;
    let of_row: Vec<&SequenceRows<'_>> =
        sequences.iter().flat_map(|sequence| sequence.rows.clone().map(move |_| sequence)).collect();
    let mut y = vec![0.0; rows * channels];
    {
        let inputs = Values::of(inputs)?;
        for_rows(&mut y, channels, |row, y| {
            let sequence = of_row[row];
            let offset = row - sequence.rows.start;
            taps.sum(y, sequence.start + offset, |z, back, weight| {
                if back <= offset {
                    return values.add_input(z, row - back, weight);
                }
                let slot = slot(sequence, sequence.start + offset - back, taps.count) * channels;
                for ((z, weight), u) in z.iter_mut().zip(weight).zip(&inputs[slot..slot + channels]) {
                    *z += weight * u;
                }
            });
            gate(y, values.row(row)[1]);
        });
    }
    if taps.count > 1 {
        write(inputs, &values, &taps, sequences)?;
    }
    tensor(y, (rows, channels))
}

/// Writes u of the new rows into the cache, those of a sequence in order: later rows take the slots of earlier ones.
fn write(cache: &Tensor, values: &Projected<'_>, taps: &Taps<'_>, sequences: &[SequenceRows<'_>]) -> Result<()> {
    with_values_mut(std::slice::from_ref(cache), &|cache| {
        for sequence in sequences {
            for (row, position) in sequence.rows.clone().zip(sequence.start..) {
                let slot = slot(sequence, position, taps.count) * taps.channels;
                let [b, _, x] = values.row(row);
                // SAFETY: no other slice of the cache is in use.
                let slot = unsafe { cache[0].slice(slot..slot + taps.channels) };
                for ((u, b), x) in slot.iter_mut().zip(b).zip(x) {
                    *u = b * x;
                }
            }
        }
        Ok(())
    })
}

/// Returns the cache's slot of the input at `position`: one of those of its block, which the last rows of the block take in
/// turn.
fn slot(sequence: &SequenceRows<'_>, position: usize, taps: usize) -> usize {
    let kept = taps - 1;
    sequence.blocks[position / BLOCK_TOKENS] as usize * kept + position % BLOCK_TOKENS % kept
}

/// Multiplies `z` by the gate `c`.
fn gate(z: &mut [f32], c: &[f32]) {
    for (z, c) in z.iter_mut().zip(c) {
        *z *= c;
    }
}
