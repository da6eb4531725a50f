//! GPTQ: whole numbers of 2, 3, 4 or 8 bits, packed along the inputs, with a scale and a zero point for each group of
//! inputs and each output (Frantar et al., 2023; the files of `AutoGPTQ` and `GPTQModel`). Called by
//! [`Format::values`](super::settings::Format).
//!
//! The value is `scale · (quant − zero)`. Files of the first version hold `zero − 1`, in which the largest number stands
//! for a zero point of 0.

use serde_json::Value;

use super::Values;
use super::fields::{flag, size, text};
use super::integers::{Groups, Scaled};
use super::module::{Module, Words};
use super::names::expression;
use super::packed::Packing;

/// Settings of `gptq`.
#[derive(Debug)]
pub(super) struct Gptq {
    bits: usize,
    /// Inputs that share a scale; more than there are for all.
    group: usize,
    /// True if zero points are the middle of the range.
    symmetric: bool,
    /// True if files hold `zero`, not `zero − 1`.
    second_version: bool,
    /// Modules with settings of their own, the first that matches wins: (expression, settings), `None` for modules that
    /// are not quantized.
    exceptions: Vec<(regex::Regex, Option<Exception>)>,
}

/// Settings of some modules that differ.
#[derive(Debug, Clone, Copy)]
struct Exception {
    bits: Option<usize>,
    group: Option<usize>,
    symmetric: Option<bool>,
}

/// Zero points as the file holds them.
#[derive(Clone, Copy)]
struct Zeros<'a> {
    words: Words<'a>,
    packing: Packing,
    outputs: usize,
    /// Added to each, within the range of its bits.
    added: u8,
}

impl Zeros<'_> {
    fn stored(&self, group: usize, output: usize) -> u8 {
        let count = self.packing.words(self.outputs);
        self.packing.at(self.words.row(group * count, count), output)
    }

    fn at(&self, group: usize, output: usize) -> i16 {
        let largest = u8::MAX >> (8 - self.packing.bits);
        i16::from(self.stored(group, output).wrapping_add(self.added) & largest)
    }
}

impl Gptq {
    /// Tensors beside the weight.
    pub(super) const TENSORS: &'static [&'static str] = &["qweight", "qzeros", "scales", "g_idx"];

    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let format = text(config, "checkpoint_format")?.or(text(config, "format")?);
        let second_version = match format {
            None | Some("gptq") => false,
            Some("gptq_v2") => true,
            Some(other) => {
                return Err(format!("checkpoint_format `{other}` of GPTQ is not supported: save it as `gptq`"));
            }
        };
        if flag(config, "is_marlin_format", false)? {
            return Err("GPTQ in the form of Marlin is not supported: save it as `gptq`".into());
        }
        if !config["rotation"].is_null() {
            return Err("GPTQ with `rotation`, which turns activations, is not supported".into());
        }
        let exceptions = match &config["dynamic"] {
            Value::Null => Vec::new(),
            Value::Object(rules) => rules.iter().map(exception).collect::<Result<_, _>>()?,
            _ => return Err("`dynamic` of `quantization_config` must be an object".into()),
        };
        Ok(Self {
            bits: bits(&config["bits"])?,
            group: group(&config["group_size"])?,
            symmetric: flag(config, "sym", true)?,
            second_version,
            exceptions,
        })
    }

    /// Computes the values.
    pub(super) fn values(&self, module: &Module<'_, '_>) -> Result<Values, String> {
        let [outputs, inputs] = [module.outputs, module.inputs];
        let (bits, group, symmetric) = self.of(module.name)?;
        let packing = Packing::dense(bits);
        if !(inputs * bits).is_multiple_of(32) || !(outputs * bits).is_multiple_of(32) {
            return Err(module.fault("qweight", &format!("cannot hold a {outputs} x {inputs} matrix of {bits} bits")));
        }
        let words = module.words("qweight", &[packing.words(inputs), outputs])?;
        let group = group.min(inputs);
        let count = inputs.div_ceil(group);
        let zeros = module.words("qzeros", &[count, packing.words(outputs)])?;
        let by_group = module.floats("scales", &[count, outputs])?;
        let groups = groups(module, group, count)?;
        let zeros = Zeros { words: zeros, packing, outputs, added: 0 };
        let added = u8::from(!self.is_second_version(module.name, bits, symmetric, &zeros, count));
        let zeros = Zeros { added, ..zeros };
        let scales = (0..outputs).flat_map(|output| (0..count).map(move |group| (group, output)));
        let scales = scales.map(|(group, output)| by_group[group * outputs + output]).collect();
        let scaled = Scaled { outputs, inputs, groups, scales, offsets: None };
        let groups = scaled.groups.listed(inputs);
        Ok(scaled.values(|output, numbers| {
            let column: Vec<u8> =
                (0..packing.words(inputs)).flat_map(|word| words.bytes(word * outputs + output)).collect();
            let zeros: Vec<i16> = (0..count).map(|group| zeros.at(group, output)).collect();
            for (input, number) in numbers.iter_mut().enumerate() {
                *number = i16::from(packing.at(&column, input)) - zeros[groups[input]];
            }
        }))
    }

    /// Returns the bits, the group and the symmetry of a module.
    fn of(&self, name: &str) -> Result<(usize, usize, bool), String> {
        match self.exceptions.iter().find(|(expression, _)| expression.is_match(name)) {
            None => Ok((self.bits, self.group, self.symmetric)),
            Some((_, Some(own))) => Ok((
                own.bits.unwrap_or(self.bits),
                own.group.unwrap_or(self.group),
                own.symmetric.unwrap_or(self.symmetric),
            )),
            Some((_, None)) => {
                Err(format!("`{name}` is quantized in the file, but `dynamic` in config.json says that it is not"))
            }
        }
    }

    /// Returns true if the file holds zero points as they are. The label is sometimes wrong; in a symmetric matrix,
    /// whose zero points all are the middle of the range, the numbers themselves tell.
    fn is_second_version(&self, name: &str, bits: usize, symmetric: bool, zeros: &Zeros<'_>, groups: usize) -> bool {
        let middle = 1_u8 << (bits - 1);
        let first = zeros.stored(0, 0);
        let alike = || {
            let mut places = (0..groups).flat_map(|group| (0..zeros.outputs).map(move |output| (group, output)));
            places.all(|(group, output)| zeros.stored(group, output) == first)
        };
        if !symmetric || !(first == middle || first == middle - 1) || !alike() {
            return self.second_version;
        }
        let second_version = first == middle;
        if second_version != self.second_version {
            tracing::warn!(module = name, second_version, "config.json names another version of GPTQ than the file's");
        }
        second_version
    }
}

/// Returns which group each input belongs to: neighbours, unless the file was made in the order of activations.
fn groups(module: &Module<'_, '_>, group: usize, count: usize) -> Result<Groups, String> {
    if module.optional("g_idx").is_none() {
        return Ok(Groups::neighbours(module.inputs, group));
    }
    let words = module.words("g_idx", &[module.inputs])?;
    let listed: Vec<usize> = (0..module.inputs).map(|input| words.at(input) as usize).collect();
    if listed.iter().any(|group| *group >= count) {
        return Err(module.fault("g_idx", &format!("names groups that are not below {count}")));
    }
    if listed.iter().enumerate().all(|(input, own)| *own == input / group) {
        return Ok(Groups::neighbours(module.inputs, group));
    }
    Ok(Groups::Listed(listed))
}

fn bits(value: &Value) -> Result<usize, String> {
    match value.as_u64() {
        Some(bits @ (2 | 3 | 4 | 8)) => Ok(bits as usize),
        _ => Err(format!("GPTQ with `bits` {value} is not supported; supported are 2, 3, 4 and 8")),
    }
}

fn group(value: &Value) -> Result<usize, String> {
    if value.as_i64() == Some(-1) { Ok(usize::MAX) } else { size(value, "group_size") }
}

/// Reads a rule of `GPTQModel`'s `dynamic`: `-:EXPRESSION` for modules that are not quantized, else an expression with
/// settings.
fn exception((pattern, settings): (&String, &Value)) -> Result<(regex::Regex, Option<Exception>), String> {
    if let Some(pattern) = pattern.strip_prefix("-:") {
        return Ok((expression(pattern)?, None));
    }
    let own = Exception {
        bits: settings.get("bits").map(bits).transpose()?,
        group: settings.get("group_size").map(group).transpose()?,
        symmetric: settings.get("sym").map(|_| flag(settings, "sym", true)).transpose()?,
    };
    Ok((expression(pattern.strip_prefix("+:").unwrap_or(pattern))?, Some(own)))
}
