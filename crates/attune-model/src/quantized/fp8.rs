//! Weights of 8-bit floating-point numbers (`fp8`, `fbgemm_fp8`): one scale for a matrix, for each row, or for each
//! block of 128 x 128. Called by [`Format::values`](super::settings::Format); the decoding also by
//! `compressed_tensors` and `modelopt`.

use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use super::Values;
use super::fields::size;
use super::floats::{E4M3, E5M2};
use super::module::Module;
use super::scales::Grid;

/// Rows and columns of a block of files that do not say.
const BLOCK: [usize; 2] = [128, 128];

/// Settings of `fp8`.
#[derive(Debug)]
pub(super) struct Fp8 {
    /// Rows and columns under one scale.
    block: Option<[usize; 2]>,
}

impl Fp8 {
    /// Tensors beside the weight.
    pub(super) const TENSORS: &'static [&'static str] = &["weight_scale_inv", "weight_scale"];

    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        const NAME: &str = "weight_block_size";
        // What transformers takes where the field is missing; `null` says that there are no blocks.
        let block = config.get(NAME).map_or(Ok(Some(BLOCK)), |value| block(value, NAME))?;
        Ok(Self { block })
    }

    /// Computes the values: despite its name, `weight_scale_inv` multiplies, too.
    pub(super) fn values(&self, module: &Module<'_, '_>) -> Result<Values, String> {
        let names = Self::TENSORS.iter().filter(|suffix| module.optional(suffix).is_some());
        let [suffix] = names.collect::<Vec<_>>()[..] else {
            return Err(module.fault("weight", "needs either `weight_scale_inv` or `weight_scale` beside it"));
        };
        scaled(module, suffix, self.block)
    }
}

/// Reads the rows and columns of a block; `None` if there are no blocks.
pub(super) fn block(value: &Value, name: &str) -> Result<Option<[usize; 2]>, String> {
    match value.as_array().map(Vec::as_slice) {
        None if value.is_null() => Ok(None),
        Some([rows, columns]) => Ok(Some([size(rows, name)?, size(columns, name)?])),
        _ => Err(format!("`{name}` must be a list of two sizes")),
    }
}

/// Computes `weight · scale` of a weight in 8-bit floating-point numbers.
pub(super) fn scaled(module: &Module<'_, '_>, suffix: &str, block: Option<[usize; 2]>) -> Result<Values, String> {
    let [outputs, inputs] = [module.outputs, module.inputs];
    let table = match module.tensor("weight")?.dtype() {
        Dtype::F8_E5M2 => &E5M2,
        _ => &E4M3,
    };
    let bytes = module.bytes("weight", &[Dtype::F8_E4M3, Dtype::F8_E5M2], &[outputs, inputs])?;
    let scales = Grid::read(module, suffix, block)?;
    let mut values = vec![0.0; bytes.len()];
    let rows = values.par_chunks_mut(inputs).zip(bytes.par_chunks(inputs)).enumerate();
    rows.for_each(|(output, (row, bytes))| {
        for (input, (value, byte)) in row.iter_mut().zip(bytes).enumerate() {
            *value = table[usize::from(*byte)] * scales.at(output, input);
        }
    });
    Ok(Values::Dense(values))
}
