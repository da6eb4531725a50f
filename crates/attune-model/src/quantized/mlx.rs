//! MLX: whole numbers of 2 to 8 bits, packed along the inputs, with a scale and an offset for each group of inputs of a
//! row. Called by [`Format::values`](super::settings::Format).

use std::collections::HashMap;

use serde_json::Value;

use super::Values;
use super::fields::{size, text};
use super::integers::{Groups, Scaled};
use super::module::Module;
use super::packed::Packing;

/// Settings of MLX's `quantization`.
#[derive(Debug)]
pub(super) struct Mlx {
    usual: Layout,
    /// Modules with a layout of their own; `None` for those that are not quantized.
    own: HashMap<String, Option<Layout>>,
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    bits: usize,
    /// Inputs that share scale and offset.
    group: usize,
}

impl Mlx {
    /// Tensors beside the weight.
    pub(super) const TENSORS: &'static [&'static str] = &["scales", "biases"];

    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let usual = Layout::parse(config, None)?;
        let mut own = HashMap::new();
        for (name, value) in config.as_object().into_iter().flatten() {
            match value {
                Value::Object(_) => own.insert(name.clone(), Some(Layout::parse(value, Some(usual))?)),
                Value::Bool(false) => own.insert(name.clone(), None),
                _ => continue,
            };
        }
        Ok(Self { usual, own })
    }

    /// Computes the values, `scale · quant + offset`.
    pub(super) fn values(&self, module: &Module<'_, '_>) -> Result<Values, String> {
        let Layout { bits, group } = match self.own.get(module.name) {
            None => self.usual,
            Some(Some(own)) => *own,
            Some(None) => {
                return Err(format!("`{}` is quantized in the file, but config.json says that it is not", module.name));
            }
        };
        let [outputs, inputs] = [module.outputs, module.inputs];
        if !inputs.is_multiple_of(group) || !(inputs * bits).is_multiple_of(32) {
            let message = format!("cannot hold rows of {inputs} numbers of {bits} bits in groups of {group}");
            return Err(module.fault("weight", &message));
        }
        let packing = Packing::dense(bits);
        let count = packing.words(inputs);
        let words = module.words("weight", &[outputs, count])?;
        let scales = module.floats("scales", &[outputs, inputs / group])?;
        let offsets = Some(module.floats("biases", &[outputs, inputs / group])?);
        let scaled = Scaled { outputs, inputs, groups: Groups::Even(group), scales, offsets };
        Ok(scaled.values(|output, numbers| {
            let row = words.row(output * count, count);
            for (input, number) in numbers.iter_mut().enumerate() {
                *number = i16::from(packing.at(row, input));
            }
        }))
    }
}

impl Layout {
    fn parse(value: &Value, usual: Option<Self>) -> Result<Self, String> {
        if let Some(mode) = text(value, "mode")?.filter(|mode| *mode != "affine") {
            return Err(format!("MLX's quantization mode `{mode}` is not supported; supported is `affine`"));
        }
        let or_usual = |name: &str, usual: Option<usize>| match (&value[name], usual) {
            (Value::Null, Some(usual)) => Ok(usual),
            (value, _) => size(value, name),
        };
        let bits = or_usual("bits", usual.map(|usual| usual.bits))?;
        if !matches!(bits, 2..=6 | 8) {
            return Err(format!("MLX with `bits` {bits} is not supported; supported are 2, 3, 4, 5, 6 and 8"));
        }
        Ok(Self { bits, group: or_usual("group_size", usual.map(|usual| usual.group))? })
    }
}
