//! Weights of 4-bit floating-point numbers (E2M1), two in a byte, the first in its low half: MXFP4 with a power of two
//! for each 32 inputs, NVFP4 with an 8-bit scale for each 16 and one for the matrix. Called by `compressed_tensors` and
//! `modelopt`; `experts` reads the stacks of gpt-oss.
//!
//! Doubled, the numbers are whole: with half the scale they have the same values.

use safetensors::Dtype;

use super::Values;
use super::floats::DOUBLED_E2M1;
use super::integers::{Groups, Scaled};
use super::module::Module;

/// Inputs that share a scale in NVFP4.
const NVFP4_GROUP: usize = 16;
/// Inputs that share a scale in MXFP4.
pub(super) const MXFP4_GROUP: usize = 32;

/// Computes the values of `bytes` `[outputs, inputs / 2]` with `scales` `[outputs, inputs / group]`.
fn scaled(bytes: &[u8], scales: Vec<f32>, [outputs, inputs]: [usize; 2], group: usize) -> Values {
    let scales = scales.into_iter().map(|scale| scale * 0.5).collect();
    let scaled = Scaled { outputs, inputs, groups: Groups::Even(group), scales, offsets: None };
    scaled.values(|output, numbers| {
        let row = &bytes[output * inputs / 2..(output + 1) * inputs / 2];
        for (pair, byte) in numbers.chunks_exact_mut(2).zip(row) {
            pair[0] = i16::from(DOUBLED_E2M1[usize::from(byte & 15)]);
            pair[1] = i16::from(DOUBLED_E2M1[usize::from(byte >> 4)]);
        }
    })
}

/// Reads a matrix of NVFP4 whose numbers end with `suffix`; `scale` makes the scale of a group of the file's.
pub(super) fn nvfp4(module: &Module<'_, '_>, suffix: &str, scale: impl Fn(f32) -> f32) -> Result<Values, String> {
    let scales = scales(module, suffix, &[Dtype::F8_E4M3], NVFP4_GROUP)?;
    let scales: Vec<f32> = scales.into_iter().map(scale).collect();
    if scales.iter().any(|scale| !scale.is_finite()) {
        return Err(module.fault("weight_scale", "has scales that are not finite"));
    }
    matrix(module, suffix, scales, NVFP4_GROUP)
}

/// Reads a matrix of MXFP4 whose numbers end with `suffix`.
pub(super) fn mxfp4(module: &Module<'_, '_>, suffix: &str) -> Result<Values, String> {
    let scales = scales(module, suffix, &[Dtype::U8, Dtype::F8_E8M0], MXFP4_GROUP)?;
    matrix(module, suffix, scales, MXFP4_GROUP)
}

fn scales(module: &Module<'_, '_>, suffix: &str, dtypes: &[Dtype], group: usize) -> Result<Vec<f32>, String> {
    if !module.inputs.is_multiple_of(group) {
        return Err(module.fault(suffix, &format!("cannot hold rows of {} inputs in groups of {group}", module.inputs)));
    }
    let shape = [module.outputs, module.inputs / group];
    module.bytes("weight_scale", dtypes, &shape)?;
    module.floats("weight_scale", &shape)
}

fn matrix(module: &Module<'_, '_>, suffix: &str, scales: Vec<f32>, group: usize) -> Result<Values, String> {
    let bytes = module.bytes(suffix, &[Dtype::U8], &[module.outputs, module.inputs / 2])?;
    Ok(scaled(bytes, scales, [module.outputs, module.inputs], group))
}
