//! Tensors as they are written anew, byte by byte: no number but a router's bias is computed.

use std::io::Write;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device};
use serde_json::{Value, json};

/// Side of the squares in which a matrix is turned, so that what is read and what is written stay in the cache.
const SQUARE: usize = 32;

/// A tensor of the model's files.
pub(super) struct Found<'a> {
    pub(super) shape: Vec<usize>,
    /// The type's name in a safetensors file.
    dtype: Value,
    data: &'a [u8],
}

impl<'a> Found<'a> {
    /// Finds the tensor of this name.
    pub(super) fn of(source: &'a MmapedSafetensors, name: &str) -> Result<Self> {
        let view = source.get(name)?;
        Ok(Self { shape: view.shape().to_vec(), dtype: serde_json::to_value(view.dtype())?, data: view.data() })
    }

    /// Returns the bytes of a number.
    fn width(&self) -> usize {
        self.data.len() / self.shape.iter().product::<usize>().max(1)
    }
}

/// A tensor to write.
pub(super) struct Tensor {
    pub(super) name: String,
    /// The type's name in a safetensors file.
    pub(super) dtype: Value,
    pub(super) shape: Vec<usize>,
    /// Bytes of a number.
    width: usize,
    part: Part,
    /// Tensors that it is made of: the matrices of each expert, or the one of its name.
    of: Vec<Vec<String>>,
}

/// How it is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Part {
    /// As it is.
    Same,
    /// In each of equal blocks, zeros are put behind what it has; `by` is the ratio that it grows by, in dimension `place`.
    Padded { place: usize, blocks: usize, by: (usize, usize) },
    /// In the rows of each head, the two halves of the first `rotated` ones are put beside each other.
    Interleaved { width: usize, rotated: usize },
    /// A constant is added so that no number is below 0.
    Raised,
    /// Matrices are turned and put beside each other, one expert after the other.
    Packed,
}

impl Tensor {
    /// Makes a tensor from the one of its name.
    pub(super) fn changed(name: &str, found: &Found<'_>, part: Part) -> Result<Self> {
        let misfit = || format!("{name} does not have the shape that config.json says");
        let (mut shape, mut dtype, mut width) = (found.shape.clone(), found.dtype.clone(), found.width());
        match part {
            Part::Padded { place, blocks, by } => {
                let numbers: usize = shape.iter().product();
                ensure!(shape.len() == 2 && numbers.is_multiple_of(blocks.max(1) * by.1), misfit());
                shape[place] = shape[place] / by.1 * by.0;
            }
            Part::Interleaved { width, rotated } => {
                let rows = shape.first().copied().unwrap_or_default();
                ensure!(rows.is_multiple_of(width) && rotated <= width, misfit());
            }
            Part::Raised => (dtype, width) = (json!("F32"), 4),
            Part::Same | Part::Packed => {}
        }
        Ok(Self { name: name.to_owned(), dtype, shape, width, part, of: vec![vec![name.to_owned()]] })
    }

    /// Makes a tensor (experts, columns, rows) of the matrices (rows, columns) of each expert.
    pub(super) fn packed(name: String, of: Vec<Vec<String>>, source: &MmapedSafetensors) -> Result<Self> {
        let first = of.first().and_then(|names| names.first()).context("there is no expert")?;
        let first = Found::of(source, first)?;
        let [rows, columns] = *first.shape.as_slice() else { bail!("{name}: an expert's tensor is no matrix") };
        let shape = vec![of.len(), columns, rows * of.first().map_or(0, Vec::len)];
        let width = first.width();
        Ok(Self { name, dtype: first.dtype, shape, width, part: Part::Packed, of })
    }

    /// Returns the bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.width
    }

    /// Writes it.
    pub(super) fn write(&self, source: &MmapedSafetensors, out: &mut impl Write) -> Result<()> {
        for names in &self.of {
            let found = names.iter().map(|name| Found::of(source, name)).collect::<Result<Vec<_>>>()?;
            let parts: Vec<&[u8]> = found.iter().map(|found| found.data).collect();
            let (Some(bytes), Some(name)) = (parts.first(), names.first()) else { continue };
            match self.part {
                Part::Same => out.write_all(bytes)?,
                Part::Padded { blocks, by, .. } => padded(bytes, blocks, by, out)?,
                Part::Interleaved { width, rotated } => {
                    interleaved(bytes, bytes.len() / self.shape[0], width, rotated, out)?;
                }
                Part::Raised => out.write_all(&raised(source, name)?)?,
                Part::Packed => {
                    let is_alike = found.iter().all(|one| one.shape == found[0].shape && one.dtype == self.dtype);
                    ensure!(is_alike && found[0].shape[1] == self.shape[1], "{}: experts differ in shape", self.name);
                    out.write_all(&turned(&parts, self.shape[1], self.width)?)?;
                }
            }
        }
        Ok(())
    }
}

fn padded(bytes: &[u8], blocks: usize, by: (usize, usize), out: &mut impl Write) -> Result<()> {
    let size = bytes.len() / blocks.max(1);
    let zeros = vec![0; size / by.1 * by.0 - size];
    for block in bytes.chunks_exact(size) {
        out.write_all(block)?;
        out.write_all(&zeros)?;
    }
    Ok(())
}

fn interleaved(bytes: &[u8], row: usize, width: usize, rotated: usize, out: &mut impl Write) -> Result<()> {
    for head in bytes.chunks_exact(row * width) {
        let at = |number: usize| &head[number * row..][..row];
        for number in 0..rotated / 2 {
            out.write_all(at(number))?;
            out.write_all(at(number + rotated / 2))?;
        }
        out.write_all(&head[rotated / 2 * 2 * row..])?;
    }
    Ok(())
}

/// Returns the numbers as 32-bit floats, all raised so that none is below 0.
fn raised(source: &MmapedSafetensors, name: &str) -> Result<Vec<u8>> {
    let numbers = source.load(name, &Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let least = numbers.iter().copied().fold(0.0, f32::min);
    Ok(numbers.iter().flat_map(|number| (number - least).to_le_bytes()).collect())
}

/// Returns the matrices with `columns` columns, turned and beside each other.
fn turned(parts: &[&[u8]], columns: usize, width: usize) -> Result<Vec<u8>> {
    match width {
        1 => Ok(turned_of::<1>(parts, columns)),
        2 => Ok(turned_of::<2>(parts, columns)),
        4 => Ok(turned_of::<4>(parts, columns)),
        _ => bail!("numbers of {width} bytes are not expected"),
    }
}

fn turned_of<const N: usize>(parts: &[&[u8]], columns: usize) -> Vec<u8> {
    let rows: Vec<usize> = parts.iter().map(|part| part.len() / N / columns.max(1)).collect();
    let line = rows.iter().sum::<usize>();
    let mut out = vec![0; line * columns * N];
    let mut before = 0;
    for (part, rows) in parts.iter().zip(rows) {
        for top in (0..rows).step_by(SQUARE) {
            for left in (0..columns).step_by(SQUARE) {
                for row in top..rows.min(top + SQUARE) {
                    for column in left..columns.min(left + SQUARE) {
                        let (from, to) = ((row * columns + column) * N, (column * line + before + row) * N);
                        out[to..to + N].copy_from_slice(&part[from..from + N]);
                    }
                }
            }
        }
        before += rows;
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn matrices_are_turned_beside_each_other() {
        let (one, two) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        assert_eq!(turned(&[&one, &two], 3, 1).unwrap(), [1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12]);
        assert_eq!(turned(&[&[1, 0, 2, 0, 3, 0, 4, 0]], 2, 2).unwrap(), [1, 0, 3, 0, 2, 0, 4, 0]);
        let large: Vec<u8> = (0..35 * 40).map(|number| (number % 251) as u8).collect();
        let back = turned(&[&turned(&[&large], 40, 1).unwrap()], 35, 1).unwrap();
        assert_eq!(back, large);
        assert!(turned(&[&one], 3, 8).is_err());
    }

    #[test]
    fn zeros_are_put_behind_each_block() {
        let mut out = Vec::new();
        padded(&[1, 2, 3, 4], 2, (3, 2), &mut out).unwrap();
        assert_eq!(out, [1, 2, 0, 3, 4, 0]);
    }

    #[test]
    fn halves_are_put_beside_each_other_and_the_rest_stays() {
        let mut out = Vec::new();
        interleaved(&[1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16], 1, 6, 4, &mut out).unwrap();
        assert_eq!(out, [1, 3, 2, 4, 5, 6, 11, 13, 12, 14, 15, 16]);
    }
}
