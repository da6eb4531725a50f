//! Quantizes weights at load (`quantize`): by candle's quantizers into the blocks of GGUF files, which products on the
//! CPU take as they are.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::blocks::{BlockMatrix, BlockType};
use crate::kernels::cpu::panels::{Panels, Precision};
use crate::{Error, Result};

/// Rows that are quantized at a time.
const ROWS: usize = 64;

/// Returns the block format of this name.
pub(super) fn block_format(name: &str) -> Result<GgmlDType> {
    match name {
        "q8_0" => Ok(GgmlDType::Q8_0),
        "q6_k" => Ok(GgmlDType::Q6K),
        "q5_k" => Ok(GgmlDType::Q5K),
        "q5_1" => Ok(GgmlDType::Q5_1),
        "q5_0" => Ok(GgmlDType::Q5_0),
        "q4_k" => Ok(GgmlDType::Q4K),
        "q4_1" => Ok(GgmlDType::Q4_1),
        "q4_0" => Ok(GgmlDType::Q4_0),
        _ => Err(Error::Setup(format!("quantize = \"{name}\": use q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0"))),
    }
}

/// Quantizes `weight` `[outputs, inputs]` to blocks of `format`, or of what takes its place for this width.
pub(super) fn panels(weight: &Tensor, format: &str) -> Result<Panels> {
    let (outputs, inputs) = weight.dims2()?;
    let Some((format, kind)) = fitting(block_format(format)?, inputs) else {
        return Panels::of(weight, Precision::Q8);
    };
    let values = weight.flatten_all()?.to_vec1::<f32>()?;
    let pieces: Vec<Vec<u8>> = values
        .par_chunks(ROWS * inputs)
        .map(|rows| {
            let rows = Tensor::from_slice(rows, (rows.len() / inputs, inputs), &Device::Cpu)?;
            Ok(QTensor::quantize(&rows, format)?.data()?.into_owned())
        })
        .collect::<Result<_>>()?;
    Panels::of_blocks(&BlockMatrix::new(kind, outputs, inputs, pieces.concat().into())?)
}

/// Returns the format for rows of `inputs` weights: `format`, or that which llama.cpp takes where a row is no whole
/// number of its blocks; `None` if no row of blocks is so wide, and padded ones of 8 bits take their place.
fn fitting(format: GgmlDType, inputs: usize) -> Option<(GgmlDType, BlockType)> {
    let format = match format {
        _ if !inputs.is_multiple_of(32) || inputs == 0 => return None,
        _ if inputs.is_multiple_of(format.block_size()) => format,
        GgmlDType::Q4K => GgmlDType::Q5_0,
        GgmlDType::Q5K => GgmlDType::Q5_1,
        _ => GgmlDType::Q8_0,
    };
    let kind = match format {
        GgmlDType::Q4_0 => BlockType::Q4_0,
        GgmlDType::Q4_1 => BlockType::Q4_1,
        GgmlDType::Q5_0 => BlockType::Q5_0,
        GgmlDType::Q5_1 => BlockType::Q5_1,
        GgmlDType::Q4K => BlockType::Q4_K,
        GgmlDType::Q5K => BlockType::Q5_K,
        GgmlDType::Q6K => BlockType::Q6_K,
        _ => BlockType::Q8_0,
    };
    Some((format, kind))
}
