//! What a checkpoint says about its quantization: `quantization_config` (or MLX's `quantization`) of `config.json`, or
//! the files that older programs wrote beside it. Read when a model's folder is checked, and by
//! [`Quantized::read`](super::Quantized::read).

use std::path::Path;

use serde_json::Value;

use super::Values;
use super::awq::Awq;
use super::compressed_tensors::CompressedTensors;
use super::fields::text;
use super::fp8::Fp8;
use super::gptq::Gptq;
use super::mlx::Mlx;
use super::module::Module;
use super::names::Patterns;
use super::{bitsandbytes, modelopt};
use crate::{Error, Result, python_json};

/// Files of older programs and how their settings differ: what `quant_method` they stand for.
const FILES: [(&str, &str); 3] =
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), ("hf_quant_config.json", "modelopt")];

/// Settings of a quantized checkpoint.
#[derive(Debug)]
pub(super) struct Settings {
    pub format: Format,
    /// Modules that are not quantized.
    pub plain: Patterns,
}

/// A format with its settings.
#[derive(Debug)]
pub(super) enum Format {
    Fp8(Fp8),
    Gptq(Gptq),
    Awq(Awq),
    CompressedTensors(CompressedTensors),
    BitsAndBytes,
    ModelOpt,
    Mlx(Mlx),
    /// Only the experts of gpt-oss are in MXFP4, which are read by themselves.
    Mxfp4,
}

impl Format {
    /// Returns the ends of the names of the tensors that a quantized matrix has beside its weight.
    pub(super) fn tensors(&self) -> &'static [&'static str] {
        match self {
            Self::Fp8(_) => Fp8::TENSORS,
            Self::Gptq(_) => Gptq::TENSORS,
            Self::Awq(_) => Awq::TENSORS,
            Self::CompressedTensors(_) => CompressedTensors::TENSORS,
            Self::BitsAndBytes => bitsandbytes::TENSORS,
            Self::ModelOpt => modelopt::TENSORS,
            Self::Mlx(_) => Mlx::TENSORS,
            Self::Mxfp4 => &[],
        }
    }

    /// Computes the values of a matrix.
    pub(super) fn values(&self, module: &Module<'_, '_>) -> Result<Values, String> {
        match self {
            Self::Fp8(settings) => settings.values(module),
            Self::Gptq(settings) => settings.values(module),
            Self::Awq(settings) => settings.values(module),
            Self::CompressedTensors(settings) => settings.values(module),
            Self::BitsAndBytes => bitsandbytes::values(module),
            Self::ModelOpt => modelopt::values(module),
            Self::Mlx(settings) => settings.values(module),
            Self::Mxfp4 => Err(format!("`{}` is no matrix of experts, and only those are read in MXFP4", module.name)),
        }
    }
}

/// Refuses, by name, a quantization that no format here reads, in the fields of a `config.json`.
pub(crate) fn check<'a>(field: impl Fn(&str) -> Option<&'a Value>) -> Result<(), String> {
    of_fields(field).map(drop)
}

/// Reads the settings of the checkpoint in `folder`; `None` if it says nothing about quantization.
pub(super) fn read(folder: &Path) -> Result<Option<Settings>> {
    let fault = |name: &str, message: String| Error::Setup(format!("{}: {message}", folder.join(name).display()));
    if let Some(config) = python_json::read(&folder.join("config.json"))?
        && let Some(settings) = of_fields(|name| config.get(name)).map_err(|message| fault("config.json", message))?
    {
        return Ok(Some(settings));
    }
    for (name, method) in FILES {
        let Some(mut config) = python_json::read(&folder.join(name))? else { continue };
        if config["quantization"].is_object() {
            config = config["quantization"].take();
        }
        return Settings::parse(&config, method).map(Some).map_err(|message| fault(name, message));
    }
    Ok(None)
}

/// Returns the settings in the fields of a `config.json`, or in those of its text model; `None` if they have none.
fn of_fields<'a>(field: impl Fn(&str) -> Option<&'a Value>) -> Result<Option<Settings>, String> {
    const NAMES: [&str; 3] = ["quantization_config", "compression_config", "quantization"];
    let text_model = field("text_config");
    let own = NAMES.iter().map(|name| (name, field(name)));
    let nested = NAMES.iter().map(|name| (name, text_model.and_then(|config| config.get(name))));
    for (name, value) in own.chain(nested) {
        match value {
            None | Some(Value::Null) => (),
            Some(Value::Object(object)) if object.is_empty() => (),
            Some(value @ Value::Object(_)) => return Settings::parse(value, implied_method(name, value)).map(Some),
            Some(_) => return Err(format!("`{name}` must be an object")),
        }
    }
    Ok(None)
}

/// Returns the method of settings that do not name it.
fn implied_method(name: &str, config: &Value) -> &'static str {
    let has = |key: &str| !config[key].is_null();
    match name {
        "compression_config" => "compressed-tensors",
        _ if has("config_groups") => "compressed-tensors",
        _ if has("zero_point") || has("w_bit") => "awq",
        _ if has("desc_act") || has("sym") => "gptq",
        _ if has("quant_algo") => "modelopt",
        _ if has("load_in_4bit") || has("load_in_8bit") => "bitsandbytes",
        _ if has("bits") && has("group_size") => "mlx",
        _ => "unknown",
    }
}

impl Settings {
    fn parse(config: &Value, implied_method: &str) -> Result<Self, String> {
        let method = text(config, "quant_method")?.unwrap_or(implied_method).to_ascii_lowercase();
        let listed = |names: &[&str]| {
            let found = names.iter().map(|name| &config[*name]).find(|list| !list.is_null());
            found.unwrap_or(&Value::Null).clone()
        };
        let converted = listed(&["modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"]);
        let plain = Patterns::of_transformers(&converted);
        let (format, plain) = match method.as_str() {
            "fp8" | "fbgemm_fp8" => (Format::Fp8(Fp8::parse(config)?), plain?),
            "gptq" => (Format::Gptq(Gptq::parse(config)?), plain?),
            "awq" => (Format::Awq(Awq::parse(config)?), plain?),
            "compressed-tensors" => (
                Format::CompressedTensors(CompressedTensors::parse(config)?),
                Patterns::of_compressed_tensors(&config["ignore"])?,
            ),
            "bitsandbytes" => (Format::BitsAndBytes, plain?),
            "mxfp4" => (Format::Mxfp4, plain?),
            "modelopt" | "modelopt_fp4" => {
                modelopt::check(config)?;
                (Format::ModelOpt, Patterns::of_wildcards(&listed(&["exclude_modules", "ignore"]))?)
            }
            "mlx" => (Format::Mlx(Mlx::parse(config)?), plain?),
            other => return Err(refusal(other)),
        };
        Ok(Self { format, plain })
    }
}

/// Says what to do about a checkpoint whose format is not read.
fn refusal(method: &str) -> String {
    let advice = match method {
        "auto-round" | "autoround" | "intel/auto-round" => "save it with AutoRound's format `auto_gptq` or `auto_awq`",
        "exl2" | "exl3" => "files of ExLlama are read by ExLlama alone; use the original weights",
        "gguf" => "give the GGUF file itself",
        _ => "use the original weights, which `quantize` makes as small in memory",
    };
    format!(
        "checkpoints quantized with `{method}` are not supported: {advice}. Supported are fp8, gptq, awq, \
         compressed-tensors, bitsandbytes, modelopt, mxfp4 and MLX's"
    )
}
