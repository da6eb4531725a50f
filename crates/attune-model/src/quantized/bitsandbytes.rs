//! bitsandbytes: 4-bit numbers that stand for the values of a table (`nf4`, `fp4`; Dettmers et al., "QLoRA", 2023),
//! with a scale for each block, which may be quantized itself; and `int8` with a scale for each row ("LLM.int8",
//! 2022). Called by [`Format::values`](super::settings::Format).

use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use super::Values;
use super::fields::size;
use super::integers::{Groups, Scaled};
use super::module::Module;

/// Largest whole number of a row.
const INT8_RANGE: f32 = 127.0;
/// Tensors that hold the rest of a 4-bit matrix's settings.
const STATES: [&str; 2] = ["weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"];

/// Tensors beside the weight.
pub(super) const TENSORS: &[&str] = &[
    "SCB",
    "weight_format",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    STATES[0],
    STATES[1],
];

/// Computes the values. All settings that matter stand beside each matrix.
pub(super) fn values(module: &Module<'_, '_>) -> Result<Values, String> {
    match STATES.iter().find(|state| module.optional(state).is_some()) {
        Some(state) => four_bits(module, state),
        None => int8(module),
    }
}

/// Computes `quant · row's scale / 127`.
fn int8(module: &Module<'_, '_>) -> Result<Values, String> {
    let [outputs, inputs] = [module.outputs, module.inputs];
    // 0 stands for rows one after the other; the others are orders of old GPU kernels.
    if let Some(format) = module.optional("weight_format")
        && format.data() != [0]
    {
        return Err(module.fault("weight_format", "names an order that is not supported: save the model anew"));
    }
    let bytes = module.bytes("weight", &[Dtype::I8], &[outputs, inputs])?;
    let scales = module.floats("SCB", &[outputs])?.into_iter().map(|scale| scale / INT8_RANGE).collect();
    let scaled = Scaled { outputs, inputs, groups: Groups::Even(inputs), scales, offsets: None };
    Ok(scaled.values(|output, numbers| {
        for (number, byte) in numbers.iter_mut().zip(&bytes[output * inputs..]) {
            *number = i16::from(byte.cast_signed());
        }
    }))
}

/// Computes `table[number] · block's scale`, blocks running on from row to row.
fn four_bits(module: &Module<'_, '_>, state: &str) -> Result<Values, String> {
    let [outputs, inputs] = [module.outputs, module.inputs];
    let settings: Value = serde_json::from_slice(module.tensor(state)?.data())
        .map_err(|error| module.fault(state, &format!("is not JSON: {error}")))?;
    let shape: Option<Vec<u64>> =
        settings["shape"].as_array().and_then(|sizes| sizes.iter().map(Value::as_u64).collect());
    if shape != Some(vec![outputs as u64, inputs as u64]) {
        let message = format!("gives the shape {}, expected {:?}", settings["shape"], [outputs, inputs]);
        return Err(module.fault(state, &message));
    }
    let count = outputs * inputs;
    // The bytes may be declared to be numbers of another type, so that training in shards can split them.
    let bytes = module.tensor("weight")?.data();
    if bytes.len() != count.div_ceil(2) {
        let message = format!("has {} bytes, expected {}", bytes.len(), count.div_ceil(2));
        return Err(module.fault("weight", &message));
    }
    let block = size(&settings["blocksize"], "blocksize")?;
    let table = module.floats("weight.quant_map", &[16])?;
    let scales = block_scales(module, &settings, count.div_ceil(block))?;
    let number = |index: usize| {
        let byte = bytes[index / 2];
        usize::from(if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
    };
    Ok(Values::Dense((0..count).into_par_iter().map(|index| table[number(index)] * scales[index / block]).collect()))
}

/// Returns the scale of each of `count` blocks.
fn block_scales(module: &Module<'_, '_>, settings: &Value, count: usize) -> Result<Vec<f32>, String> {
    const NAME: &str = "weight.absmax";
    if module.tensor(NAME)?.dtype() != Dtype::U8 {
        return module.floats(NAME, &[count]);
    }
    if settings["nested_dtype"].as_str().is_some_and(|dtype| dtype != "float32") {
        return Err(module.fault(NAME, &format!("has scales in {}, expected float32", settings["nested_dtype"])));
    }
    let block = size(&settings["nested_blocksize"], "nested_blocksize")?;
    let offset = settings["nested_offset"].as_f64().ok_or("`nested_offset` must be a number")? as f32;
    let bytes = module.bytes(NAME, &[Dtype::U8], &[count])?;
    let table = module.floats("weight.nested_quant_map", &[256])?;
    let scales = module.floats("weight.nested_absmax", &[count.div_ceil(block)])?;
    let scale = |(index, byte): (usize, &u8)| table[usize::from(*byte)] * scales[index / block] + offset;
    Ok(bytes.iter().enumerate().map(scale).collect())
}
