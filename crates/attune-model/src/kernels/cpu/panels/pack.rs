//! Packs weights into panels when a model is loaded, and unpacks them: rows for the embedding, tiles for the backward
//! pass.

use half::bf16;
use rayon::prelude::*;

use super::bytes::{BLOCK, BLOCK_LINES, QUAD, largest, rounded};
use super::coded::WideBlock;
use super::level::Level;
use super::lines::Lines;
use super::{Held, LANES, Line, Panels, Precision};

impl Panels {
    /// Packs `values`, row-major `[outputs, inputs]`, for this CPU.
    pub fn pack(values: &[f32], outputs: usize, inputs: usize, precision: Precision) -> Self {
        Self::pack_for(Level::best(), values, outputs, inputs, precision)
    }

    /// Packs `values` for an instruction set that the CPU must have.
    pub fn pack_for(level: Level, values: &[f32], outputs: usize, inputs: usize, precision: Precision) -> Self {
        assert_eq!(values.len(), outputs * inputs, "the weight has its shape");
        assert!(Level::available().contains(&level), "the CPU has the instruction set");
        let padded_inputs = if precision.is_bytes() { inputs.next_multiple_of(BLOCK) } else { inputs };
        let lines_per_panel = match precision {
            Precision::F32 => inputs,
            Precision::Bf16 => inputs.div_ceil(2),
            Precision::Q8 | Precision::Q8WithBytes => padded_inputs / BLOCK * BLOCK_LINES,
        };
        let mut lines = Lines::zeros(outputs.div_ceil(LANES) * lines_per_panel);
        if inputs > 0 {
            lines.par_chunks_exact_mut(lines_per_panel).enumerate().for_each(|(panel, lines)| {
                let first = panel * LANES;
                let last = (first + LANES).min(outputs);
                let rows = &values[first * inputs..last * inputs];
                match precision {
                    Precision::F32 => pack_f32(rows, inputs, lines),
                    Precision::Bf16 => pack_bf16(rows, inputs, level, lines),
                    Precision::Q8 | Precision::Q8WithBytes => pack_bytes(rows, inputs, level, lines),
                }
            });
        }
        Self {
            lines,
            lines_per_panel,
            outputs,
            inputs,
            padded_inputs,
            held: Held::Rounded(precision),
            level,
            table: [0; 32],
        }
    }

    /// Unpacks the weight's row `index` into `row`, `[inputs]`.
    pub fn unpack_row(&self, index: usize, row: &mut [f32]) {
        assert!(index < self.outputs && row.len() == self.inputs, "the row exists");
        let lines = self.panel_lines(index / LANES);
        let lane = index % LANES;
        match self.held {
            Held::Rounded(Precision::F32) => {
                for (value, panel) in row.iter_mut().zip(floats(lines)) {
                    *value = panel[lane];
                }
            }
            Held::Rounded(Precision::Bf16) => {
                let place = bf16_place(self.level, lane);
                for (value, panel) in row.iter_mut().zip(words(lines)) {
                    *value = widened(panel[place]);
                }
            }
            Held::Rounded(Precision::Q8 | Precision::Q8WithBytes) => {
                for (depth, value) in row.iter_mut().enumerate() {
                    *value = byte_weight(lines, depth, lane, self.level);
                }
            }
            Held::Coded(code) => {
                for (block, values) in row.chunks_mut(BLOCK).enumerate() {
                    let wide = WideBlock::read(self, code, index / LANES, block);
                    for (depth, value) in values.iter_mut().enumerate() {
                        *value = wide.value(depth, lane);
                    }
                }
            }
        }
    }

    /// Unpacks the 16 weights of a panel at each depth from `first_depth` on, in the order of the outputs, into `tile`.
    pub(super) fn unpack_tile(&self, panel: usize, first_depth: usize, tile: &mut [[f32; LANES]]) {
        let lines = self.panel_lines(panel);
        match self.held {
            Held::Rounded(Precision::F32) => tile.copy_from_slice(&floats(lines)[first_depth..][..tile.len()]),
            Held::Rounded(Precision::Bf16) => {
                for (values, words) in tile.iter_mut().zip(&words(lines)[first_depth..]) {
                    *values = if self.level.interleaves_bf16() {
                        std::array::from_fn(|lane| widened(words[bf16_place(Level::Avx2, lane)]))
                    } else {
                        words.map(widened)
                    };
                }
            }
            Held::Rounded(Precision::Q8 | Precision::Q8WithBytes) => {
                for (offset, values) in tile.iter_mut().enumerate() {
                    let depth = first_depth + offset;
                    *values = std::array::from_fn(|lane| byte_weight(lines, depth, lane, self.level));
                }
            }
            Held::Coded(code) => {
                let mut place = first_depth;
                let mut tile = tile;
                while !tile.is_empty() {
                    let wide = WideBlock::read(self, code, panel, place / BLOCK);
                    let (here, rest) = tile.split_at_mut(tile.len().min(BLOCK - place % BLOCK));
                    wide.values(place % BLOCK, here);
                    place += here.len();
                    tile = rest;
                }
            }
        }
    }

    pub(super) fn panel_lines(&self, panel: usize) -> &[Line] {
        &self.lines[panel * self.lines_per_panel..][..self.lines_per_panel]
    }
}

/// Returns the place of `lane` in a bf16 row of 16.
const fn bf16_place(level: Level, lane: usize) -> usize {
    if level.interleaves_bf16() { lane % 8 * 2 + lane / 8 } else { lane }
}

fn widened(word: u16) -> f32 {
    f32::from_bits(u32::from(word) << 16)
}

/// Views the lines as rows of 16 f32.
fn floats(lines: &[Line]) -> &[[f32; LANES]] {
    bytemuck::must_cast_slice(lines)
}

/// Views the lines as rows of 16 f32.
pub(super) fn floats_mut(lines: &mut [Line]) -> &mut [[f32; LANES]] {
    bytemuck::must_cast_slice_mut(lines)
}

/// Views the lines as rows of 16 words, two to a line.
fn words(lines: &[Line]) -> &[[u16; LANES]] {
    bytemuck::must_cast_slice(lines)
}

/// Views the lines as rows of 16 words, two to a line.
fn words_mut(lines: &mut [Line]) -> &mut [[u16; LANES]] {
    bytemuck::must_cast_slice_mut(lines)
}

/// Packs up to 16 rows of the weight into the lines of one panel, in f32.
fn pack_f32(rows: &[f32], inputs: usize, lines: &mut [Line]) {
    for (lane, row) in rows.chunks_exact(inputs).enumerate() {
        for (value, panel) in row.iter().zip(floats_mut(lines)) {
            panel[lane] = *value;
        }
    }
}

fn pack_bf16(rows: &[f32], inputs: usize, level: Level, lines: &mut [Line]) {
    for (lane, row) in rows.chunks_exact(inputs).enumerate() {
        let place = bf16_place(level, lane);
        for (value, panel) in row.iter().zip(words_mut(lines)) {
            panel[place] = bf16::from_f32(*value).to_bits();
        }
    }
}

/// Largest magnitude of a weight in 8 bits.
const LIMIT: f32 = 127.0;

/// Quantizes `row` in blocks: the largest magnitude of each becomes [`LIMIT`].
fn quantize_row(row: &[f32], values: &mut [i8], scales: &mut [f32]) {
    for ((row, values), scale) in row.chunks(BLOCK).zip(values.chunks_exact_mut(BLOCK)).zip(scales) {
        let largest = largest(row);
        *scale = largest / LIMIT;
        // A block of (almost) zeros becomes zeros.
        let inverse = if largest < 1e-30 { 0.0 } else { LIMIT / largest };
        for (value, weight) in values.iter_mut().zip(row) {
            *value = rounded(weight * inverse) as i8;
        }
    }
}

/// Returns the mask that turns a signed byte into the stored one, and back: adding 128 flips the highest bit.
const fn byte_flip(level: Level) -> u8 {
    if level.offsets_bytes() { 0x80 } else { 0 }
}

fn byte_weight(lines: &[Line], depth: usize, lane: usize, level: Level) -> f32 {
    let block = &lines[depth / BLOCK * BLOCK_LINES..][..BLOCK_LINES];
    let scale = floats(&block[BLOCK_LINES - 1..])[0][lane];
    let byte = block[depth % BLOCK / QUAD].0[lane * QUAD + depth % QUAD];
    f32::from((byte ^ byte_flip(level)) as i8) * scale
}

fn pack_bytes(rows: &[f32], inputs: usize, level: Level, lines: &mut [Line]) {
    let blocks = lines.len() / BLOCK_LINES;
    let (mut values, mut scales) = (vec![0_i8; blocks * BLOCK], vec![0.0; blocks]);
    for (lane, row) in rows.chunks_exact(inputs).enumerate() {
        quantize_row(row, &mut values, &mut scales);
        for ((block, values), scale) in lines.chunks_exact_mut(BLOCK_LINES).zip(values.chunks_exact(BLOCK)).zip(&scales)
        {
            for (line, quad) in block.iter_mut().zip(values.chunks_exact(QUAD)) {
                for (byte, value) in line.0[lane * QUAD..].iter_mut().zip(quad) {
                    *byte = *value as u8 ^ byte_flip(level);
                }
            }
            floats_mut(&mut block[BLOCK_LINES - 1..])[0][lane] = *scale;
        }
    }
}
