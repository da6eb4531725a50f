//! compressed-tensors, the format of llm-compressor: groups of modules with a scheme each, whose weights are packed
//! whole numbers, whole numbers of 8 bits, FP8, NVFP4 or MXFP4. Called by
//! [`Format::values`](super::settings::Format).

use safetensors::Dtype;
use serde_json::Value;

use super::Values;
use super::fields::{flag, size, text};
use super::integers::{Groups, Scaled};
use super::module::Module;
use super::names::Target;
use super::packed::Packing;
use super::scales::Grid;
use super::{fp4, fp8};

/// Forms of a weight that are read.
const FORMATS: [&str; 8] = [
    "dense",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
];

/// Settings of `compressed-tensors`.
#[derive(Debug)]
pub(super) struct CompressedTensors {
    /// Modules and their schemes, `None` for groups without weights.
    groups: Vec<(Vec<Target>, Option<Scheme>)>,
}

/// How the weights of some modules are quantized.
#[derive(Debug, Clone, Copy)]
struct Scheme {
    bits: usize,
    symmetric: bool,
    /// Rows and columns under one scale; `None` if that is a row or the matrix.
    block: Option<[usize; 2]>,
}

impl CompressedTensors {
    /// Tensors beside the weight.
    pub(super) const TENSORS: &'static [&'static str] =
        &["weight_packed", "weight_scale", "weight_global_scale", "weight_zero_point", "weight_shape", "weight_g_idx"];

    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        check_format(config)?;
        let sparsity = &config["sparsity_config"];
        if let Some(format) = text(sparsity, "format")?.filter(|format| *format != "dense") {
            return Err(format!("compressed-tensors with sparse weights (`{format}`) is not supported"));
        }
        let transforms = &config["transform_config"]["config_groups"];
        if transforms.as_object().is_some_and(|groups| !groups.is_empty()) {
            return Err("compressed-tensors with `transform_config` is not supported: it turns activations".into());
        }
        let groups = config["config_groups"].as_object().into_iter().flat_map(serde_json::Map::values);
        let groups = groups.map(|group| -> Result<_, String> {
            check_format(group)?;
            let targets = group["targets"].as_array().ok_or("`targets` of a config group must be a list")?;
            let targets = targets.iter().map(|target| Target::parse(target.as_str().unwrap_or_default()));
            Ok((targets.collect::<Result<Vec<_>, _>>()?, Scheme::parse(&group["weights"])?))
        });
        Ok(Self { groups: groups.collect::<Result<_, String>>()? })
    }

    /// Computes the values.
    pub(super) fn values(&self, module: &Module<'_, '_>) -> Result<Values, String> {
        let scheme = self.scheme(module.name)?;
        if let Some(packed) = module.optional("weight_packed") {
            return match (packed.dtype(), module.tensor("weight_scale")?.dtype()) {
                (Dtype::I32 | Dtype::U32, _) => scheme.packed(module),
                (_, Dtype::F8_E4M3) => {
                    module.all_zero("weight_zero_point")?;
                    let whole = module.number("weight_global_scale")?;
                    fp4::nvfp4(module, "weight_packed", |scale| scale / whole)
                }
                _ => {
                    module.all_zero("weight_zero_point")?;
                    fp4::mxfp4(module, "weight_packed")
                }
            };
        }
        if module.tensor("weight")?.dtype() == Dtype::I8 {
            return scheme.bytes(module);
        }
        module.all_zero("weight_zero_point")?;
        fp8::scaled(module, "weight_scale", scheme.block)
    }

    /// Returns the scheme of a module: that of its name, else of an expression, else of its class.
    fn scheme(&self, name: &str) -> Result<Scheme, String> {
        let ranked = self
            .groups
            .iter()
            .flat_map(|(targets, scheme)| targets.iter().filter_map(move |target| Some((target.rank(name)?, scheme))));
        match ranked.min_by(|(one, _), (other, _)| one.cmp(other)) {
            Some((_, Some(scheme))) => Ok(*scheme),
            _ => Err(format!("`{name}` is quantized in the file, but belongs to no config group of config.json")),
        }
    }
}

fn check_format(settings: &Value) -> Result<(), String> {
    match text(settings, "format")? {
        Some(format) if !FORMATS.contains(&format) => {
            let known = FORMATS.join(", ");
            Err(format!("compressed-tensors' format `{format}` is not supported; supported are {known}"))
        }
        _ => Ok(()),
    }
}

impl Scheme {
    fn parse(weights: &Value) -> Result<Option<Self>, String> {
        if weights.is_null() {
            return Ok(None);
        }
        let bits = size(&weights["num_bits"], "num_bits")?;
        if !(2..=8).contains(&bits) {
            return Err(format!("compressed-tensors with `num_bits` {bits} is not supported"));
        }
        let group = &weights["group_size"];
        let group = if group.is_null() || group.as_i64() == Some(-1) { None } else { Some(size(group, "group_size")?) };
        let block = fp8::block(&weights["block_structure"], "block_structure")?;
        Ok(Some(Self {
            bits,
            symmetric: flag(weights, "symmetric", true)?,
            block: block.or(group.map(|group| [1, group])),
        }))
    }

    /// Reads numbers that are packed into words of 32 bits, all of them raised by half their range.
    fn packed(self, module: &Module<'_, '_>) -> Result<Values, String> {
        let [outputs, inputs] = [module.outputs, module.inputs];
        let shape = module.bytes("weight_shape", &[Dtype::I64, Dtype::I32], &[2])?;
        let sizes: Vec<usize> = shape
            .chunks_exact(shape.len() / 2)
            .map(|bytes| bytes.iter().rev().fold(0, |size, byte| size << 8 | usize::from(*byte)))
            .collect();
        if sizes != [outputs, inputs] {
            return Err(module.fault("weight_shape", &format!("is {sizes:?}, expected {:?}", [outputs, inputs])));
        }
        let packing = self.packing(module, "weight_packed", 1, inputs)?;
        let count = packing.words(inputs);
        let words = module.words("weight_packed", &[outputs, count])?;
        let (group, scales) = Grid::read(module, "weight_scale", self.block)?.of_rows(outputs);
        let columns = scales.len() / outputs;
        let groups = groups(module, group, columns)?;
        let zero_points = self.packed_zero_points(module, columns)?;
        let listed = groups.listed(inputs);
        let scaled = Scaled { outputs, inputs, groups, scales, offsets: None };
        Ok(scaled.values(|output, numbers| {
            let row = words.row(output * count, count);
            let zero_points = &zero_points[output * columns..];
            for (input, number) in numbers.iter_mut().enumerate() {
                *number = i16::from(packing.at(row, input)) - zero_points[listed[input]];
            }
        }))
    }

    /// Returns the number that stands for zero, of each row and group.
    fn packed_zero_points(self, module: &Module<'_, '_>, columns: usize) -> Result<Vec<i16>, String> {
        let outputs = module.outputs;
        if self.symmetric {
            if module.optional("weight_zero_point").is_some() {
                return Err(module.fault("weight_zero_point", "is there, though config.json says `symmetric`"));
            }
            return Ok(vec![1 << (self.bits - 1); outputs * columns]);
        }
        let packing = self.packing(module, "weight_zero_point", 0, outputs)?;
        let count = packing.words(outputs);
        let words = module.words("weight_zero_point", &[count, columns])?;
        let mut zero_points = vec![0; outputs * columns];
        for column in 0..columns {
            let bytes: Vec<u8> = (0..count).flat_map(|word| words.bytes(word * columns + column)).collect();
            for output in 0..outputs {
                zero_points[output * columns + column] = i16::from(packing.at(&bytes, output));
            }
        }
        Ok(zero_points)
    }

    /// Returns how `count` numbers are packed along a dimension: since 2026 without gaps, before that no number crossed
    /// a word. The size tells, where it makes a difference.
    fn packing(self, module: &Module<'_, '_>, suffix: &str, dimension: usize, count: usize) -> Result<Packing, String> {
        let [dense, padded] = [false, true].map(|padded| Packing { bits: self.bits, padded });
        let found = module.tensor(suffix)?.shape().get(dimension).copied();
        let differ = !32_usize.is_multiple_of(self.bits);
        match found {
            Some(words) if differ && words == dense.words(count) && words == padded.words(count) => {
                Err(module.fault(suffix, &format!("holds {count} numbers of {} bits in an unknown order", self.bits)))
            }
            Some(words) if words == padded.words(count) => Ok(padded),
            _ => Ok(dense),
        }
    }

    /// Reads whole numbers of a byte each.
    fn bytes(self, module: &Module<'_, '_>) -> Result<Values, String> {
        let [outputs, inputs] = [module.outputs, module.inputs];
        let bytes = module.bytes("weight", &[Dtype::I8], &[outputs, inputs])?;
        let (group, scales) = Grid::read(module, "weight_scale", self.block)?.of_rows(outputs);
        let columns = scales.len() / outputs;
        let groups = groups(module, group, columns)?;
        let zero_points = self.zero_points(module)?;
        let listed = groups.listed(inputs);
        let scaled = Scaled { outputs, inputs, groups, scales, offsets: None };
        Ok(scaled.values(|output, numbers| {
            let row = &bytes[output * inputs..][..inputs];
            for (input, (number, byte)) in numbers.iter_mut().zip(row).enumerate() {
                let zero_point = zero_points.as_ref().map_or(0, |points| points[output * columns + listed[input]]);
                *number = i16::from(byte.cast_signed()) - zero_point;
            }
        }))
    }

    /// Returns the zero points of whole numbers of a byte, `[outputs, groups]`; `None` if they are zero.
    fn zero_points(self, module: &Module<'_, '_>) -> Result<Option<Vec<i16>>, String> {
        const NAME: &str = "weight_zero_point";
        if self.symmetric {
            return module.all_zero(NAME).map(|()| None);
        }
        let scales = module.tensor("weight_scale")?;
        let bytes = module.bytes(NAME, &[Dtype::I8], scales.shape())?;
        // They lie over the matrix as the scales do.
        let points = bytes.iter().map(|byte| f32::from(byte.cast_signed())).collect();
        let grid = Grid { scales: points, ..Grid::read(module, "weight_scale", self.block)? };
        let (_, points) = grid.of_rows(module.outputs);
        Ok(Some(points.into_iter().map(|point| point as i16).collect()))
    }
}

/// Returns which group each input belongs to: neighbours, unless the file was made in the order of activations.
fn groups(module: &Module<'_, '_>, group: usize, columns: usize) -> Result<Groups, String> {
    if module.optional("weight_g_idx").is_none() {
        return Ok(Groups::neighbours(module.inputs, group));
    }
    let words = module.words("weight_g_idx", &[module.inputs])?;
    let listed: Vec<usize> = (0..module.inputs).map(|input| words.at(input) as usize).collect();
    // A list that was made and not filled in: −1 everywhere.
    if listed.iter().all(|group| *group == u32::MAX as usize) {
        return Ok(Groups::neighbours(module.inputs, group));
    }
    if listed.iter().any(|group| *group >= columns) {
        return Err(module.fault("weight_g_idx", &format!("names groups that are not below {columns}")));
    }
    Ok(Groups::Listed(listed))
}
