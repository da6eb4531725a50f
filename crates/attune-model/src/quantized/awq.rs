//! AWQ in the order of its `gemm` kernels: whole numbers of 4 bits, eight outputs in a word, with a scale and a zero
//! point for each group of inputs and each output (Lin et al., 2023; the files of `AutoAWQ`). Called by
//! [`Format::values`](super::settings::Format).

use serde_json::Value;

use super::Values;
use super::fields::{size, text};
use super::integers::{Groups, Scaled};
use super::module::{Module, Words};

/// Outputs in a word.
const PER_WORD: usize = 8;
/// Place in its word of each output, counted from the lowest bits.
const PLACES: [usize; PER_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Settings of `awq`.
#[derive(Debug)]
pub(super) struct Awq {
    /// Inputs that share a scale; `None` for all.
    group: Option<usize>,
}

impl Awq {
    /// Tensors beside the weight.
    pub(super) const TENSORS: &'static [&'static str] = &["qweight", "qzeros", "scales"];

    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        for name in ["version", "format", "checkpoint_format"] {
            if let Some(version) = text(config, name)?.filter(|version| !version.eq_ignore_ascii_case("gemm")) {
                return Err(format!("AWQ in the order `{version}` is not supported; supported is `gemm`"));
            }
        }
        if let Some(backend) = text(config, "backend")?.filter(|backend| backend.eq_ignore_ascii_case("llm-awq")) {
            return Err(format!("AWQ files of `{backend}` are not supported; supported are those of AutoAWQ"));
        }
        let either = |name: &str, other: &str| {
            let value = &config[name];
            if value.is_null() { config[other].clone() } else { value.clone() }
        };
        let bits = either("bits", "w_bit");
        if bits.as_u64() != Some(4) {
            return Err(format!("AWQ with `bits` {bits} is not supported; supported is 4"));
        }
        let group = either("group_size", "q_group_size");
        let group = if group.as_i64() == Some(-1) { None } else { Some(size(&group, "group_size")?) };
        Ok(Self { group })
    }

    /// Computes the values, `scale · (quant − zero)`.
    pub(super) fn values(&self, module: &Module<'_, '_>) -> Result<Values, String> {
        let [outputs, inputs] = [module.outputs, module.inputs];
        let group = self.group.unwrap_or(inputs);
        if !outputs.is_multiple_of(PER_WORD) || !inputs.is_multiple_of(group) {
            let message = format!("cannot hold a {outputs} x {inputs} matrix in groups of {group}");
            return Err(module.fault("qweight", &message));
        }
        let (count, row_words) = (inputs / group, outputs / PER_WORD);
        let words = module.words("qweight", &[inputs, row_words])?;
        let zeros = module.words("qzeros", &[count, row_words])?;
        let by_group = module.floats("scales", &[count, outputs])?;
        let scales = (0..outputs).flat_map(|output| (0..count).map(move |group| (group, output)));
        let scales = scales.map(|(group, output)| by_group[group * outputs + output]).collect();
        let scaled = Scaled { outputs, inputs, groups: Groups::Even(group), scales, offsets: None };
        let at = |words: &Words<'_>, row: usize, output: usize| {
            let word = words.at(row * row_words + output / PER_WORD);
            (word >> (4 * PLACES[output % PER_WORD]) & 15) as i16
        };
        Ok(scaled.values(|output, numbers| {
            let zeros: Vec<i16> = (0..count).map(|group| at(&zeros, group, output)).collect();
            for (input, number) in numbers.iter_mut().enumerate() {
                *number = at(&words, input, output) - zeros[input / group];
            }
        }))
    }
}
