//! Splits a block into its parts: whole numbers, and factors for each 16 or 32 of them. A value is
//! `scale · number + offset`, each step rounded to f32 as in llama.cpp; most types need no rounding and no offset.
//! Values of a block and panels of products are both made of the parts.

use half::f16;

use super::BlockType;

/// Weights of the largest block.
const MOST: usize = 256;

/// Weights that share a factor, at least.
pub(crate) const GROUP: usize = 16;

/// Values that the 4-bit numbers of `IQ4_NL` and `IQ4_XS` stand for.
pub(crate) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Values that the 4-bit numbers of `MXFP4` stand for, doubled to be whole.
pub(crate) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Parts of a block of weights that are not floats.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// Number stored for each weight, without sign; [`value`] says what it stands for.
    pub(crate) numbers: [u8; MOST],
    /// Scale of the block in f16; in `MXFP4` its exponent.
    pub(crate) scale: u16,
    /// Offset of the block, or the scale of `minimums`, in f16.
    pub(crate) offset: u16,
    /// Whole-number scale of each 16 or 32 weights; signed ones in two's complement.
    pub(crate) scales: [u8; MOST / GROUP],
    /// Whole-number minimum of each 16 or 32 weights.
    pub(crate) minimums: [u8; MOST / GROUP],
}

impl Default for Parts {
    fn default() -> Self {
        Self { numbers: [0; MOST], scale: 0, offset: 0, scales: [0; MOST / GROUP], minimums: [0; MOST / GROUP] }
    }
}

impl Parts {
    /// Computes the values of the block.
    pub(crate) fn values(&self, kind: BlockType, values: &mut [f32]) {
        for (group, (values, numbers)) in
            values.chunks_exact_mut(GROUP).zip(self.numbers.chunks_exact(GROUP)).enumerate()
        {
            let (scale, offset) = self.factors(kind, group);
            for (to, number) in values.iter_mut().zip(numbers) {
                *to = f32::from(value(kind, *number)) * scale;
            }
            if let Some(offset) = offset {
                for value in values.iter_mut() {
                    *value += offset;
                }
            }
        }
    }

    /// Returns scale and offset of the `group`-th 16 weights.
    fn factors(&self, kind: BlockType, group: usize) -> (f32, Option<f32>) {
        let [scale, offset] = [self.scale, self.offset].map(|bits| f16::from_bits(bits).to_f32());
        let signed = |index: usize| scale * f32::from(self.scales[index] as i8);
        let unsigned =
            |index: usize| (scale * f32::from(self.scales[index]), Some(-(offset * f32::from(self.minimums[index]))));
        match kind {
            BlockType::Q4_1 | BlockType::Q5_1 => (scale, Some(offset)),
            BlockType::Q2_K => unsigned(group),
            BlockType::Q4_K | BlockType::Q5_K => unsigned(group / 2),
            BlockType::Q3_K | BlockType::Q6_K => (signed(group), None),
            BlockType::Iq4Xs => (signed(group / 2), None),
            BlockType::Mxfp4 => (half_exponent(self.scale as u8), None),
            _ => (scale, None),
        }
    }
}

/// Returns `2^(exponent − 128)`: half of an E8M0 scale, as the values of [`FP4`] are doubled.
fn half_exponent(exponent: u8) -> f32 {
    let exponent = u32::from(exponent);
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 })
}

/// Returns the whole number that the stored `number` of a weight stands for.
pub(crate) fn value(kind: BlockType, number: u8) -> i8 {
    match kind {
        BlockType::Q4_0 => number as i8 - 8,
        BlockType::Q5_0 => number as i8 - 16,
        BlockType::Q3_K => number as i8 - 4,
        BlockType::Q6_K => number as i8 - 32,
        BlockType::Iq4Nl | BlockType::Iq4Xs => IQ4[usize::from(number & 15)],
        BlockType::Mxfp4 => FP4[usize::from(number & 15)],
        _ => number as i8,
    }
}

/// Splits one block of a type of whole numbers.
pub(crate) fn split(kind: BlockType, block: &[u8], parts: &mut Parts) {
    let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    match kind {
        BlockType::Q4_0 | BlockType::Iq4Nl => {
            parts.scale = half(0);
            nibbles(&block[2..18], &mut parts.numbers);
        }
        BlockType::Q4_1 => {
            (parts.scale, parts.offset) = (half(0), half(2));
            nibbles(&block[4..20], &mut parts.numbers);
        }
        BlockType::Q5_0 => {
            parts.scale = half(0);
            nibbles(&block[6..22], &mut parts.numbers);
            fifth_bits(&block[2..6], &mut parts.numbers);
        }
        BlockType::Q5_1 => {
            (parts.scale, parts.offset) = (half(0), half(2));
            nibbles(&block[8..24], &mut parts.numbers);
            fifth_bits(&block[4..8], &mut parts.numbers);
        }
        BlockType::Q8_0 => {
            parts.scale = half(0);
            parts.numbers[..32].copy_from_slice(&block[2..34]);
        }
        BlockType::Mxfp4 => {
            parts.scale = u16::from(block[0]);
            nibbles(&block[1..17], &mut parts.numbers);
        }
        BlockType::Q2_K => two_bits(block, parts),
        BlockType::Q3_K => three_bits(block, parts),
        BlockType::Q4_K | BlockType::Q5_K => {
            (parts.scale, parts.offset) = (half(0), half(2));
            scales_and_minimums(&block[4..16], parts);
            four_or_five_bits(kind, &block[16..], parts);
        }
        BlockType::Q6_K => six_bits(block, parts),
        BlockType::Iq4Xs => iq4_xs(block, parts),
        BlockType::F32 | BlockType::F16 | BlockType::Bf16 => {}
    }
}

/// Reads 32 numbers of 4 bits: the lower halves of the bytes, then the upper ones.
fn nibbles(bytes: &[u8], numbers: &mut [u8]) {
    for (place, byte) in bytes.iter().enumerate() {
        numbers[place] = byte & 15;
        numbers[place + 16] = byte >> 4;
    }
}

/// Adds the fifth bits of 32 numbers.
fn fifth_bits(bytes: &[u8], numbers: &mut [u8]) {
    for (place, number) in numbers[..32].iter_mut().enumerate() {
        *number |= (bytes[place / 8] >> (place % 8) & 1) << 4;
    }
}

/// `Q2_K`: 16 bytes with a 4-bit scale and minimum each, 64 bytes of numbers, scale and offset.
fn two_bits(block: &[u8], parts: &mut Parts) {
    for (group, byte) in block[..16].iter().enumerate() {
        (parts.scales[group], parts.minimums[group]) = (byte & 15, byte >> 4);
    }
    pairs(&block[16..80], &mut parts.numbers);
    parts.scale = u16::from_le_bytes([block[80], block[81]]);
    parts.offset = u16::from_le_bytes([block[82], block[83]]);
}

/// Reads 256 numbers of 2 bits: each run of 32 bytes holds four runs of 32 numbers.
fn pairs(bytes: &[u8], numbers: &mut [u8]) {
    for (place, number) in numbers.iter_mut().enumerate() {
        let (half, shift, byte) = (place / 128, place / 32 % 4 * 2, place % 32);
        *number = bytes[half * 32 + byte] >> shift & 3;
    }
}

/// `Q3_K`: 32 bytes of third bits, 64 bytes of lower bits, 12 bytes of 6-bit scales, the scale.
fn three_bits(block: &[u8], parts: &mut Parts) {
    pairs(&block[32..96], &mut parts.numbers);
    for (place, number) in parts.numbers.iter_mut().enumerate() {
        *number |= (block[place % 32] >> (place / 32) & 1) << 2;
    }
    let packed = &block[96..108];
    for (group, scale) in parts.scales.iter_mut().enumerate() {
        let low = packed[group % 8] >> (group / 8 * 4) & 15;
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        *scale = (low | high << 4).wrapping_sub(32);
    }
    parts.scale = u16::from_le_bytes([block[108], block[109]]);
}

/// Reads eight scales and eight minimums of 6 bits each from 12 bytes.
fn scales_and_minimums(packed: &[u8], parts: &mut Parts) {
    let (scales, rest) = packed.split_at(4);
    let (minimums, both) = rest.split_at(4);
    for (group, ((scale, minimum), both)) in scales.iter().zip(minimums).zip(both).enumerate() {
        parts.scales[group] = scale & 63;
        parts.minimums[group] = minimum & 63;
        parts.scales[group + 4] = both & 15 | scale >> 6 << 4;
        parts.minimums[group + 4] = both >> 4 | minimum >> 6 << 4;
    }
}

/// `Q4_K` and `Q5_K` behind their scales: 32 bytes of fifth bits if there are any, then 128 bytes in which each run of
/// 32 holds 32 lower halves and the 32 upper ones.
fn four_or_five_bits(kind: BlockType, bytes: &[u8], parts: &mut Parts) {
    let (fifth, low) = if kind == BlockType::Q5_K { bytes.split_at(32) } else { (&[][..], bytes) };
    for (place, number) in parts.numbers.iter_mut().enumerate() {
        let (run, byte) = (place / 32, place % 32);
        *number = low[run / 2 * 32 + byte] >> (run % 2 * 4) & 15;
        if let Some(bits) = fifth.get(byte) {
            *number |= (bits >> run & 1) << 4;
        }
    }
}

/// `Q6_K`: 128 bytes of lower halves, 64 bytes of upper pairs, 16 scales, the scale.
fn six_bits(block: &[u8], parts: &mut Parts) {
    pairs(&block[128..192], &mut parts.numbers);
    for (place, number) in parts.numbers.iter_mut().enumerate() {
        let (half, shift, byte) = (place / 128, place / 64 % 2 * 4, place % 64);
        *number = *number << 4 | block[half * 64 + byte] >> shift & 15;
    }
    parts.scales.copy_from_slice(&block[192..208]);
    parts.scale = u16::from_le_bytes([block[208], block[209]]);
}

/// `IQ4_XS`: the scale, 8 scales of 6 bits in 6 bytes, 128 bytes with the numbers of 32 weights in each run of 16.
fn iq4_xs(block: &[u8], parts: &mut Parts) {
    parts.scale = u16::from_le_bytes([block[0], block[1]]);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for group in 0..8 {
        let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        parts.scales[group] = (low | ((high >> (2 * group)) as u8 & 3) << 4).wrapping_sub(32);
    }
    for (bytes, numbers) in block[8..136].chunks_exact(16).zip(parts.numbers.chunks_exact_mut(32)) {
        nibbles(bytes, numbers);
    }
}
