//! Checkpoints in safetensors whose weight matrices are quantized already. Each format has a file here, which knows the
//! format's settings in `config.json`, its tensors and their values. Called by `weights`, which reads a matrix through
//! [`Quantized::matrix`], and by `config`, which refuses what no file here reads before anything else starts.
//!
//! Only weights are quantized here: scales of activations and of the key-value cache are left alone, since both are
//! computed in the precision of all other models.

mod awq;
mod bitsandbytes;
mod compressed_tensors;
mod experts;
mod fields;
mod floats;
mod fp4;
mod fp8;
mod gptq;
mod integers;
mod mlx;
mod modelopt;
mod module;
mod names;
mod packed;
mod scales;
mod settings;

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::TensorView;

pub(crate) use self::experts::mxfp4_expert;
use self::module::Module;
pub(crate) use self::module::is_plain;
use self::settings::Settings;
pub(crate) use self::settings::check;
use crate::matrix::{GroupedMatrix, Matrix};
use crate::{Error, Result};

/// Tensors beside a layer's weight that change no weight: biases, which the decoder reads, and scales of activations
/// and of the key-value cache.
const HARMLESS: [&str; 12] = [
    "bias",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "activation_scale",
    "act_scale",
    "output_scale",
    "output_zero_point",
    "q_scale",
    "k_scale",
    "v_scale",
    "kv_scale",
];

/// Numbers of a matrix that no file holds: below it, sizes in bits and bytes cannot overflow.
const LARGEST: usize = 1 << 48;

/// Values of a matrix, as a format's file yields them.
enum Values {
    /// `[outputs, inputs]`
    Dense(Vec<f32>),
    Grouped(GroupedMatrix),
}

/// What a checkpoint says about its quantized matrices, and which tensors it has.
#[derive(Debug)]
pub(crate) struct Quantized {
    /// `None` if the checkpoint says nothing about quantization.
    settings: Option<Settings>,
    /// Names of all tensors, as the files spell them.
    names: BTreeSet<String>,
}

impl Quantized {
    /// Reads the settings of the checkpoint in `folder`, whose tensors have these names.
    pub(crate) fn read(folder: &Path, names: BTreeSet<String>) -> Result<Self> {
        let settings = settings::read(folder)?;
        // AutoAWQ's scales of activations, one for each input of the layer behind an activation function.
        if let Some(name) = names.iter().find(|name| name.ends_with(".act.scales")) {
            return Err(Error::Setup(format!(
                "{}: the tensor `{name}` scales activations, which is not supported; use the original weights",
                folder.display()
            )));
        }
        Ok(Self { settings, names })
    }

    /// Returns the ends of the names of the tensors that belong to `module`.
    fn suffixes<'a>(&'a self, module: &'a str) -> impl Iterator<Item = &'a str> {
        let below = self.names.range::<str, _>((std::ops::Bound::Excluded(module), std::ops::Bound::Unbounded));
        below
            .take_while(move |name| name.starts_with(module))
            .filter_map(move |name| name.strip_prefix(module)?.strip_prefix('.'))
    }

    /// Returns true if the checkpoint has the matrix `name` in quantized form.
    pub(crate) fn has(&self, name: &str) -> bool {
        let Some(module) = name.strip_suffix(".weight") else { return false };
        self.suffixes(module).any(|suffix| !HARMLESS.contains(&suffix) && suffix != "weight")
    }

    /// Reads the matrix `name` `[outputs, inputs]`, both as the files spell it; `None` if it is not quantized.
    pub(crate) fn matrix<'a>(
        &self,
        view: &dyn Fn(&str) -> Option<TensorView<'a>>,
        name: &str,
        shape: [usize; 2],
        device: &Device,
    ) -> Result<Option<Matrix>, String> {
        let Some(name) = name.strip_suffix(".weight") else { return Ok(None) };
        let [outputs, inputs] = shape;
        let module = Module { name, outputs, inputs, view };
        let beside: Vec<&str> =
            self.suffixes(name).filter(|suffix| !HARMLESS.contains(suffix) && *suffix != "weight").collect();
        let weight = view(&format!("{name}.weight"));
        if beside.is_empty() && weight.is_none_or(|weight| is_plain(weight.dtype())) {
            return Ok(None);
        }
        if outputs.checked_mul(inputs).is_none_or(|count| count == 0 || count > LARGEST) {
            return Err(format!("`{name}` cannot have the shape {shape:?}"));
        }
        match self.values(&module, &beside)? {
            Values::Grouped(grouped) => Ok(Some(Matrix::Grouped(grouped))),
            Values::Dense(values) if values.iter().any(|value| !value.is_finite()) => {
                Err(format!("the quantized matrix `{name}` has values that are no finite numbers"))
            }
            Values::Dense(values) => {
                let tensor = Tensor::from_vec(values, (outputs, inputs), device).map_err(|error| error.to_string())?;
                Ok(Some(Matrix::Dense(tensor)))
            }
        }
    }

    /// Computes the values of a module that has the tensors `beside` beside its weight.
    fn values(&self, module: &Module<'_, '_>, beside: &[&str]) -> Result<Values, String> {
        let name = module.name;
        let plain = module.optional("weight").is_some_and(|weight| is_plain(weight.dtype()));
        if self.settings.is_none() && plain {
            let found = beside.first().unwrap_or(&"weight");
            return Err(format!("nothing says how the tensor `{name}.{found}` changes the weight beside it"));
        }
        let Some(Settings { format, plain }) = &self.settings else {
            let found = beside.first().unwrap_or(&"weight");
            return Err(format!(
                "the tensor `{name}.{found}` is that of a quantized matrix, but config.json has no \
                 `quantization_config` that says how to read it"
            ));
        };
        if plain.matches(name) {
            return Err(format!("`{name}` is quantized in the file, but config.json says that it is not"));
        }
        if let Some(unknown) = beside.iter().find(|suffix| !format.tensors().iter().any(|known| known == *suffix)) {
            return Err(format!("the tensor `{name}.{unknown}` is not known in this quantization format"));
        }
        format.values(module)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
