//! A GGUF file of a base in Hugging Face form: names, row orders and norms as llama.cpp's converter has them, and
//! configuration, tokenizer, templates and defaults of answers as keys. The keys are read again before anything is
//! written, and must mean the same.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value as Json;

use super::gguf_file::write_file;
use super::plan::{Item, Kind, Plan, Target, refuse_encoder};
use super::weight_type::WeightType;
use super::{Base, changes, refuse_rest};
use crate::blocks::BlockType;
use crate::chat_template::ChatTemplate;
use crate::checkpoint::Checkpoint;
use crate::gguf::architecture::Architecture;
use crate::gguf::lora::in_file_order;
use crate::gguf::metadata::{Metadata, Value};
use crate::gguf::tensors::{Names, Part};
use crate::gguf::writer::TensorToWrite;
use crate::gguf::{self, Gguf, GgufTensor};
use crate::lora::Adapter;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, python_json};

/// Version of the blocks, which readers ask for where some tensors are in blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// A tensor of the file.
struct Output<'a> {
    kind: WeightType,
    /// Shape in the file.
    shape: Vec<usize>,
    /// The model's tensors that it holds, one behind the other.
    items: Vec<&'a Item>,
    /// Heads whose rows stand in another order.
    heads: Option<usize>,
}

/// Writes the model in the folder of `checkpoint` with `adapter` to the new file `output`; matrices have the type
/// `requested`, or their own.
pub(super) fn write(
    base: &Base,
    checkpoint: &Checkpoint,
    folder: &Path,
    adapter: &Adapter,
    output: &Path,
    requested: Option<WeightType>,
) -> Result<()> {
    let config = checkpoint.config()?;
    refuse_encoder(checkpoint, &config)?;
    let fields = python_json::read(&folder.join("config.json"))?.unwrap_or_default();
    let architecture = Architecture::of_model_type(config.family).ok_or_else(|| {
        let kind = config.family;
        checkpoint.fault(&format!("there is no form in GGUF files for models of the type `{kind}`"))
    })?;
    let mut keys = gguf::config::keys(architecture, &config, &fields);
    let names = Names::of(&Metadata::new(folder.display().to_string(), keys.iter().cloned()))?;
    let mut changes = changes(adapter, &config, |module| names.in_file(module))?;
    let plan = Plan::of(checkpoint, base.quantize.as_deref(), Target::File(&names), &mut changes)?;
    refuse_rest(&changes, checkpoint)?;
    let usual = super::usual_type(checkpoint, plan.config.overflows_f16)?;
    let outputs = outputs(checkpoint, &plan, &names, usual, requested)?;
    let divisors = gguf::config::tensors(architecture, &plan.config);
    check_shape(&plan, &keys, &outputs, &divisors, output)?;
    keys.extend(general(folder, &outputs));
    keys.extend(text_keys(checkpoint, folder, architecture, plan.config.vocab_size)?);

    let mut tensors: Vec<_> = divisors
        .iter()
        .map(|(name, list)| TensorToWrite { name: (*name).to_owned(), shape: vec![list.len()], kind: BlockType::F32 })
        .collect();
    tensors.extend(outputs.iter().map(|(name, output)| TensorToWrite {
        name: name.clone(),
        shape: output.shape.clone(),
        kind: output.kind.block_type(),
    }));
    let metadata = Metadata::new(output.display().to_string(), keys);
    write_file(output, &metadata, &tensors, |tensor| {
        if let Some((_, list)) = divisors.iter().find(|(name, _)| *name == tensor.name) {
            return Ok(list.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>().into());
        }
        let output = outputs.get(&tensor.name).ok_or_else(|| Error::Internal(format!("no `{}`", tensor.name)))?;
        data(&plan, output, &tensor.name)
    })
}

/// Lists the tensors of the file by name.
fn outputs<'a>(
    checkpoint: &Checkpoint,
    plan: &'a Plan,
    names: &Names,
    usual: WeightType,
    requested: Option<WeightType>,
) -> Result<BTreeMap<String, Output<'a>>> {
    let mut outputs: BTreeMap<String, Output<'a>> = BTreeMap::new();
    for item in &plan.items {
        let missing = || checkpoint.fault(&format!("GGUF files have no place for `{}` as a whole", item.name));
        let place = names.places(&item.name).into_iter().next().ok_or_else(missing)?;
        let kind = match item.kind {
            Kind::Matrix => requested.or(item.own).unwrap_or(usual),
            Kind::Router | Kind::Filters | Kind::Norm | Kind::Vector => WeightType::F32,
        };
        match place.part {
            Part::Whole => {
                let output = Output { kind, shape: item.shape.clone(), items: vec![item], heads: place.heads };
                outputs.insert(place.tensor, output);
            }
            // Experts come in their order.
            Part::Expert(_) => {
                let shape = [vec![names.experts()], item.shape.clone()].concat();
                let output =
                    outputs.entry(place.tensor).or_insert(Output { kind, shape, items: Vec::new(), heads: None });
                output.items.push(item);
            }
            Part::Rows(_) | Part::ExpertHalf { .. } => return Err(missing()),
        }
    }
    Ok(outputs)
}

/// Returns the bytes of a tensor.
fn data(plan: &Plan, output: &Output<'_>, name: &str) -> Result<Bytes> {
    let mut bytes = Vec::new();
    for item in &output.items {
        let mut values = plan.merged(item)?;
        if let Some(heads) = output.heads {
            let rows = item.shape.first().copied().unwrap_or(1);
            values = in_file_order(&values, (rows, values.len() / rows.max(1)), heads, name)?;
        }
        bytes.extend(output.kind.encode(&item.name, &values)?);
    }
    Ok(bytes.into())
}

/// Reads the configuration from the keys again. Refuses a model that they make another one of.
fn check_shape(
    plan: &Plan,
    keys: &[(String, Value)],
    outputs: &BTreeMap<String, Output<'_>>,
    divisors: &[(&'static str, Vec<f32>)],
    path: &Path,
) -> Result<()> {
    let plain = |shape: Vec<usize>, bytes: Vec<u8>| GgufTensor { shape, kind: BlockType::F32, bytes: bytes.into() };
    let tensors = outputs.iter().map(|(name, output)| (name.clone(), plain(output.shape.clone(), Vec::new())));
    let divisors = divisors.iter().map(|(name, list)| {
        let bytes = list.iter().flat_map(|number| number.to_le_bytes()).collect();
        ((*name).to_owned(), plain(vec![list.len()], bytes))
    });
    let metadata = Metadata::new(path.display().to_string(), keys.iter().cloned());
    let read = gguf::config::read(&Gguf::planned(path, metadata, tensors.chain(divisors).collect()))?;
    match gguf::config::difference(&plan.config, &read) {
        None => Ok(()),
        Some(field) => Err(Error::Setup(format!(
            "GGUF files of `{}` cannot say this model's {field}: what reads one would compute something else. Export the \
             model with --merged safetensors",
            plan.config.family
        ))),
    }
}

/// Returns the keys about the file itself.
fn general(folder: &Path, outputs: &BTreeMap<String, Output<'_>>) -> Vec<(String, Value)> {
    let layer = outputs.iter().find(|(name, output)| name.starts_with("blk.") && output.items[0].kind == Kind::Matrix);
    let kind = layer.map_or(WeightType::F32, |(_, output)| output.kind);
    let mut keys = vec![
        ("general.type".to_owned(), Value::from("model")),
        ("general.file_type".to_owned(), kind.file_type().into()),
        ("general.quantization_version".to_owned(), QUANTIZATION_VERSION.into()),
    ];
    let name = folder.file_name().and_then(|name| name.to_str());
    keys.extend(name.map(|name| ("general.name".to_owned(), Value::from(name))));
    keys
}

/// Returns the keys of tokenizer, templates and defaults of answers.
fn text_keys(
    checkpoint: &Checkpoint,
    folder: &Path,
    architecture: Architecture,
    rows: usize,
) -> Result<Vec<(String, Value)>> {
    let source = checkpoint.tokenizer()?;
    let ends = checkpoint.end_tokens(&Tokenizer::new(&source)?)?;
    let mut keys = gguf::tokenizer::keys(&source, architecture, rows, &ends)?;
    keys.extend(gguf::template::keys(ChatTemplate::texts(folder)?));
    if let Some(Json::Object(settings)) = python_json::read(&folder.join("generation_config.json"))? {
        keys.extend(gguf::sampling::keys(&settings));
    }
    Ok(keys)
}
