//! Experts of gpt-oss: the matrices of a layer's experts in one stack of MXFP4 blocks. Their numbers and scales go as
//! they are into the blocks that GGUF files have for MXFP4, which differ in the order within a block alone. Called by
//! `weights`.

use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::fp4::MXFP4_GROUP;
use crate::blocks::{BlockMatrix, BlockType};

/// Bytes of the numbers of a block of 32.
const BLOCK_BYTES: usize = MXFP4_GROUP / 2;
/// Largest scale, as its exponent plus 127, with which no number of 4 bits is beyond f32.
const LARGEST_SCALE: u8 = 252;

/// Reads `rows` of the matrix of one expert of the stack `name`, which holds `shape`: experts, outputs, inputs.
pub(crate) fn mxfp4_expert<'a>(
    view: impl Fn(&str) -> Option<TensorView<'a>>,
    name: &str,
    expert: usize,
    shape: [usize; 3],
    rows: &[usize],
) -> Result<BlockMatrix, String> {
    let tensor = |end: &str| {
        let name = format!("{name}_{end}");
        view(&name).ok_or_else(|| format!("the tensor `{name}` is missing"))
    };
    let matrix = read(&tensor("blocks")?, &tensor("scales")?, expert, shape, rows);
    matrix.map_err(|message| format!("the experts `{name}`: {message}"))
}

fn read(
    blocks: &TensorView<'_>,
    scales: &TensorView<'_>,
    expert: usize,
    shape: [usize; 3],
    rows: &[usize],
) -> Result<BlockMatrix, String> {
    let [experts, outputs, inputs] = shape;
    if expert >= experts || outputs == 0 || inputs == 0 || !inputs.is_multiple_of(MXFP4_GROUP) {
        return Err(format!("expert {expert} of a stack {shape:?} cannot be in MXFP4"));
    }
    if let Some(row) = rows.iter().find(|row| **row >= outputs) {
        return Err(format!("there is no output {row} of {outputs}"));
    }
    let groups = inputs / MXFP4_GROUP;
    let expected = [experts, outputs, groups, BLOCK_BYTES];
    if blocks.dtype() != Dtype::U8 || blocks.shape() != expected {
        return Err(format!("blocks are {:?} {:?}, expected U8 {expected:?}", blocks.dtype(), blocks.shape()));
    }
    if scales.dtype() != Dtype::U8 || scales.shape() != &expected[..3] {
        return Err(format!("scales are {:?} {:?}, expected U8 {:?}", scales.dtype(), scales.shape(), &expected[..3]));
    }
    let (_, size) = BlockType::Mxfp4.size();
    let mut bytes = vec![0_u8; rows.len() * groups * size];
    let each = bytes.par_chunks_exact_mut(groups * size).zip(rows);
    each.try_for_each(|(target, row)| {
        let first = (expert * outputs + row) * groups;
        let numbers = blocks.data()[first * BLOCK_BYTES..][..groups * BLOCK_BYTES].chunks_exact(BLOCK_BYTES);
        let scales = &scales.data()[first..][..groups];
        for ((target, numbers), scale) in target.chunks_exact_mut(size).zip(numbers).zip(scales) {
            if *scale > LARGEST_SCALE {
                return Err(format!("expert {expert} has the scale {scale}, which makes no finite numbers"));
            }
            target[0] = *scale;
            regroup(numbers, &mut target[1..]);
        }
        Ok(())
    })?;
    BlockMatrix::new(BlockType::Mxfp4, rows.len(), inputs, bytes.into()).map_err(|error| error.to_string())
}

/// Copies the 32 numbers of a block, neighbours in a byte, into bytes that hold two numbers with 16 between them.
fn regroup(numbers: &[u8], target: &mut [u8]) {
    let number = |place: usize| numbers[place / 2] >> (place % 2 * 4) & 15;
    for (place, byte) in target.iter_mut().enumerate() {
        *byte = number(place) | number(place + BLOCK_BYTES) << 4;
    }
}
