//! NVIDIA's `ModelOpt`: FP8 and NVFP4, layer by layer as the tensors are. Called by
//! [`Format::values`](super::settings::Format).

use safetensors::Dtype;
use serde_json::Value;

use super::Values;
use super::fields::text;
use super::module::Module;
use super::{fp4, fp8};

/// Algorithms whose files are read.
const ALGORITHMS: [&str; 5] = ["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "MIXED_PRECISION"];
/// Rows and columns of a block of `FP8_PB_WO`.
const BLOCK: [usize; 2] = [128, 128];

/// Tensors beside the weight.
pub(super) const TENSORS: &[&str] = &["weight_scale", "weight_scale_2"];

/// Refuses algorithms whose files are not read. Which one a layer has, its tensors say.
pub(super) fn check(config: &Value) -> Result<(), String> {
    let own = config["quantized_layers"].as_object().into_iter().flatten().map(|(_, layer)| layer);
    for settings in std::iter::once(config).chain(own) {
        match text(settings, "quant_algo")? {
            Some(algorithm) if ALGORITHMS.contains(&algorithm) => (),
            Some(other) => {
                let known = ALGORITHMS.join(", ");
                return Err(format!("ModelOpt's quant_algo `{other}` is not supported; supported are {known}"));
            }
            None => return Err("`quant_algo` of ModelOpt's settings is missing".into()),
        }
    }
    Ok(())
}

/// Computes the values.
pub(super) fn values(module: &Module<'_, '_>) -> Result<Values, String> {
    if module.tensor("weight")?.dtype() == Dtype::U8 {
        let whole = module.number("weight_scale_2")?;
        return fp4::nvfp4(module, "weight", |scale| scale * whole);
    }
    if module.optional("weight_scale_2").is_some() {
        return Err(module.fault("weight_scale_2", "does not belong to a weight in FP8"));
    }
    fp8::scaled(module, "weight_scale", Some(BLOCK))
}
