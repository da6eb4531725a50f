//! Packs blocks of a GGUF file and grouped whole numbers into coded panels. No number or factor changes.

use rayon::prelude::*;

use super::super::level::Level;
use super::super::lines::Lines;
use super::super::{Held, LANES, Line, Panels};
use super::numbers::fifth_bit;
use super::{BLOCK, Code, Layout, QUADS};
use crate::blocks::{BlockMatrix, BlockType, FP4, IQ4, Parts, split};
use crate::matrix::GroupedMatrix;

impl Panels {
    /// Packs the blocks of a matrix for this CPU; `None` if they are floats.
    pub(in super::super) fn of_coded(matrix: &BlockMatrix) -> Option<Self> {
        Self::of_coded_for(Level::best(), matrix)
    }

    pub(in super::super) fn of_coded_for(level: Level, matrix: &BlockMatrix) -> Option<Self> {
        let (kind, outputs, inputs) = matrix.shape();
        let code = Code::of(kind)?;
        let (weights, size) = kind.size();
        let table = table(match kind {
            BlockType::Iq4Nl | BlockType::Iq4Xs => IQ4,
            BlockType::Mxfp4 => FP4,
            _ => [0; 16],
        });
        Some(Self::coded(level, code, [outputs, inputs], table, |first, lines, layout| {
            let mut parts = Parts::default();
            for (lane, row) in (first..outputs.min(first + LANES)).enumerate() {
                for (index, block) in matrix.row(row).chunks_exact(size).enumerate() {
                    split(kind, block, &mut parts);
                    for (run, numbers) in parts.numbers[..weights].chunks_exact(BLOCK).enumerate() {
                        put_numbers(lines, layout, index * weights / BLOCK + run, lane, numbers);
                    }
                    put_factors(kind, lines, layout, index * weights / BLOCK, lane, &parts);
                }
            }
        }))
    }

    /// Packs whole numbers with a scale for each group of inputs into panels of 4 bits, if 16 values are all there are,
    /// or of 8; `None` if the groups are no multiples of 16.
    pub(in super::super) fn of_grouped(matrix: &GroupedMatrix) -> Option<Self> {
        Self::of_grouped_for(Level::best(), matrix)
    }

    pub(in super::super) fn of_grouped_for(level: Level, matrix: &GroupedMatrix) -> Option<Self> {
        let GroupedMatrix { outputs, inputs, group, ref quants, ref scales, ref offsets } = *matrix;
        let few = few_values(quants);
        let code = match (few.is_some(), group) {
            (_, 0) => return None,
            (true, _) if group.is_multiple_of(128) => Code::Four128,
            (true, _) if group.is_multiple_of(32) => Code::Four32,
            (true, _) if group.is_multiple_of(16) => Code::Four16,
            (false, _) if group.is_multiple_of(128) => Code::Eight128,
            (false, _) if group.is_multiple_of(32) => Code::Eight32,
            (false, _) if group.is_multiple_of(16) => Code::Eight16,
            _ => return None,
        };
        let values = few.unwrap_or([0; 16]);
        let mut places = [0_u8; 256];
        for (place, value) in values.iter().enumerate().rev() {
            places[usize::from(*value as u8)] = place as u8;
        }
        Some(Self::coded(level, code, [outputs, inputs], table(values), |first, lines, layout| {
            for (lane, row) in (first..outputs.min(first + LANES)).enumerate() {
                for (block, quants) in quants[row * inputs..][..inputs].chunks(BLOCK).enumerate() {
                    let mut numbers = [0; BLOCK];
                    for (number, quant) in numbers.iter_mut().zip(quants) {
                        *number = if few.is_some() { places[usize::from(*quant as u8)] } else { *quant as u8 };
                    }
                    put_numbers(lines, layout, block, lane, &numbers[..quants.len()]);
                    for half in 0..layout.halves {
                        let Some(index) = group_at(block * BLOCK + half * BLOCK / layout.halves, row, matrix) else {
                            continue;
                        };
                        let offset = offsets.as_ref().map_or(0.0, |offsets| offsets[index]);
                        let header = header(lines, layout, block);
                        put(header, half * 64 + lane * 4, &scales[index].to_le_bytes());
                        put(header, (layout.halves + half) * 64 + lane * 4, &offset.to_le_bytes());
                    }
                }
            }
        }))
    }

    /// Makes panels whose lines `pack` fills, given the first of a panel's 16 outputs.
    fn coded(
        level: Level,
        code: Code,
        [outputs, inputs]: [usize; 2],
        table: [u8; 32],
        pack: impl Fn(usize, &mut [Line], &Layout) + Sync,
    ) -> Self {
        let layout = code.layout();
        let padded_inputs = inputs.next_multiple_of(layout.group_inputs());
        let lines_per_panel = padded_inputs / layout.group_inputs() * layout.group_lines();
        let mut lines = Lines::zeros(outputs.div_ceil(LANES) * lines_per_panel);
        if inputs > 0 {
            let panels = lines.par_chunks_exact_mut(lines_per_panel).enumerate();
            panels.for_each(|(panel, lines)| pack(panel * LANES, lines, &layout));
        }
        Self { lines, lines_per_panel, outputs, inputs, padded_inputs, held: Held::Coded(code), level, table }
    }
}

/// Returns the group of a row's input; `None` beyond the last one.
fn group_at(input: usize, row: usize, matrix: &GroupedMatrix) -> Option<usize> {
    (input < matrix.inputs).then(|| row * (matrix.inputs / matrix.group) + input / matrix.group)
}

/// Returns the table of the values that numbers stand for, as kernels read it.
fn table(values: [i8; 16]) -> [u8; 32] {
    std::array::from_fn(|place| if place < 16 { values[place] as u8 } else { values[place - 16] as u8 ^ 0x80 })
}

/// Returns all values that occur, ascending and filled up with zeros; `None` if there are more than 16.
fn few_values(quants: &[i8]) -> Option<[i8; 16]> {
    let seen = quants
        .par_chunks(1 << 16)
        .map(|quants| {
            let mut seen = [false; 256];
            for quant in quants {
                seen[usize::from(*quant as u8)] = true;
            }
            seen
        })
        .reduce(|| [false; 256], |one, other| std::array::from_fn(|place| one[place] || other[place]));
    let found: Vec<i8> = (i8::MIN..=i8::MAX).filter(|value| seen[usize::from(*value as u8)]).collect();
    let mut values = [0; 16];
    values.get_mut(..found.len())?.copy_from_slice(&found);
    Some(values)
}

/// Writes up to 32 numbers of one output of a block.
fn put_numbers(lines: &mut [Line], layout: &Layout, block: usize, lane: usize, numbers: &[u8]) {
    let first = block / layout.blocks * layout.group_lines() + layout.header + block % layout.blocks * layout.numbers;
    let lines = &mut lines[first..first + layout.numbers];
    for (input, number) in numbers.iter().enumerate() {
        let (quad, place) = (input / 4, lane * 4 + input % 4);
        if layout.bits == 8 {
            lines[quad].0[place] = *number;
            continue;
        }
        lines[quad / 2].0[place] |= (number & 15) << (quad % 2 * 4);
        match layout.bits {
            5 => lines[QUADS / 2].0[place] |= (number >> 4) << fifth_bit(quad),
            6 => lines[QUADS / 2 + quad / 4].0[place] |= (number >> 4) << (quad % 4 * 2),
            _ => {}
        }
    }
}

/// Returns the header of the group of a block.
fn header<'a>(lines: &'a mut [Line], layout: &Layout, block: usize) -> &'a mut [u8] {
    let first = block / layout.blocks * layout.group_lines();
    bytemuck::must_cast_slice_mut(&mut lines[first..first + layout.header])
}

fn put(header: &mut [u8], place: usize, bytes: &[u8]) {
    header[place..place + bytes.len()].copy_from_slice(bytes);
}

/// Writes the factors of one output of a source's block, which begins at `block` ([`super::factors`] reads them).
fn put_factors(kind: BlockType, lines: &mut [Line], layout: &Layout, block: usize, lane: usize, parts: &Parts) {
    let header = header(lines, layout, block);
    let (scale, offset) = (parts.scale.to_le_bytes(), parts.offset.to_le_bytes());
    match kind {
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 | BlockType::Iq4Nl => {
            put(header, block % layout.blocks * 32 + lane * 2, &scale);
        }
        BlockType::Q4_1 | BlockType::Q5_1 => {
            put(header, lane * 2, &scale);
            put(header, 32 + lane * 2, &offset);
        }
        BlockType::Mxfp4 => header[block % layout.blocks * 16 + lane] = scale[0],
        BlockType::Q2_K | BlockType::Q4_K | BlockType::Q5_K => {
            put(header, lane * 2, &scale);
            put(header, 32 + lane * 2, &offset);
            for part in 0..8 * layout.halves {
                header[64 + part * 32 + lane] = parts.scales[part];
                header[64 + part * 32 + 16 + lane] = parts.minimums[part];
            }
        }
        BlockType::Q3_K | BlockType::Q6_K | BlockType::Iq4Xs => {
            put(header, lane * 2, &scale);
            for part in 0..8 * layout.halves {
                header[32 + part * 16 + lane] = parts.scales[part];
            }
        }
        BlockType::F32 | BlockType::F16 | BlockType::Bf16 => {}
    }
}
