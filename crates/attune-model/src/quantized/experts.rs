//! Experts of gpt-oss: the matrices of a layer's experts in one stack of MXFP4 blocks. Called by `weights`.

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::Values;
use super::floats::e8m0;
use super::fp4::{self, MXFP4_GROUP};
use crate::matrix::Matrix;

/// Bytes of a block of 32 numbers.
const BLOCK_BYTES: usize = MXFP4_GROUP / 2;

/// Reads the matrix of one expert of the stack `name`, which holds `shape`: experts, outputs, inputs.
pub(crate) fn mxfp4_expert<'a>(
    view: impl Fn(&str) -> Option<TensorView<'a>>,
    name: &str,
    expert: usize,
    shape: [usize; 3],
) -> Result<Matrix, String> {
    let tensor = |end: &str| {
        let name = format!("{name}_{end}");
        view(&name).ok_or_else(|| format!("the tensor `{name}` is missing"))
    };
    let matrix = decode(&tensor("blocks")?, &tensor("scales")?, expert, shape);
    matrix.map_err(|message| format!("the experts `{name}`: {message}"))
}

fn decode(
    blocks: &TensorView<'_>,
    scales: &TensorView<'_>,
    expert: usize,
    shape: [usize; 3],
) -> Result<Matrix, String> {
    let [experts, outputs, inputs] = shape;
    if expert >= experts || outputs == 0 || inputs == 0 || !inputs.is_multiple_of(MXFP4_GROUP) {
        return Err(format!("expert {expert} of a stack {shape:?} cannot be in MXFP4"));
    }
    let groups = inputs / MXFP4_GROUP;
    let expected = [experts, outputs, groups, BLOCK_BYTES];
    if blocks.dtype() != Dtype::U8 || blocks.shape() != expected {
        return Err(format!("blocks are {:?} {:?}, expected U8 {expected:?}", blocks.dtype(), blocks.shape()));
    }
    if scales.dtype() != Dtype::U8 || scales.shape() != &expected[..3] {
        return Err(format!("scales are {:?} {:?}, expected U8 {:?}", scales.dtype(), scales.shape(), &expected[..3]));
    }
    let count = outputs * groups;
    let own: Vec<f32> = scales.data()[expert * count..][..count].iter().map(|byte| e8m0(*byte)).collect();
    if own.iter().any(|scale| !scale.is_finite()) {
        return Err(format!("expert {expert} has scales that are no numbers"));
    }
    let bytes = &blocks.data()[expert * count * BLOCK_BYTES..][..count * BLOCK_BYTES];
    match fp4::scaled(bytes, own, [outputs, inputs], MXFP4_GROUP) {
        Values::Grouped(grouped) => Ok(Matrix::Grouped(grouped)),
        Values::Dense(_) => Err("numbers of 4 bits do not fit 8".into()),
    }
}
