//! A LoRA adapter as a GGUF file, which llama.cpp loads beside a file of its base: `--lora`. Called by the download of
//! adapters.

use std::collections::VecDeque;
use std::path::Path;

use bytes::Bytes;
use candle_core::{DType, Tensor};

use super::Gguf;
use super::architecture::Architecture;
use super::metadata::{Metadata, Value};
use super::source::file_rows;
use super::tensors::{Names, Part};
use super::writer::{self, TensorToWrite};
use crate::blocks::BlockType;
use crate::lora::{Adapter, LoraPair};
use crate::{Error, ModelConfig, Result};

/// Returns the names that files of the model in `path`, of shape `config`, have for its tensors. Refuses a model of a
/// kind that files are not read of.
pub fn names(path: &Path, config: &ModelConfig) -> Result<Names> {
    if path.is_file() {
        return Names::of(Gguf::open(path)?.metadata());
    }
    let file = path.join("config.json");
    let gone = || Error::Setup(format!("{}: the file is not there any more", file.display()));
    let fields = crate::tokenizer::read_json(&file)?.ok_or_else(gone)?;
    let kind = fields["model_type"].as_str().unwrap_or_default();
    let architecture = match (Architecture::of_model_type(kind), config.is_encoder) {
        (Some(Architecture::Gemma3), true) => Architecture::GemmaEmbedding,
        (Some(architecture), false) => architecture,
        _ => {
            let message = format!("There is no form for adapters of models of the type `{kind}` in GGUF files.");
            return Err(Error::Setup(message));
        }
    };
    let name = architecture.name();
    let values = [
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
    ];
    let sizes = values.map(|(key, size)| (format!("{name}.{key}"), Value::from(size as u64)));
    let keys = std::iter::once(("general.architecture".to_owned(), name.into())).chain(sizes);
    Names::of(&Metadata::new(path.display().to_string(), keys))
}

/// Returns the file of `adapter` for a base whose files have these names. All of its matrices are in f32, and share one
/// alpha, as the format wants it: what differs from the first's is multiplied into B.
pub fn write(adapter: &Adapter, names: &Names) -> Result<Vec<u8>> {
    let pairs = adapter.wholes(|module| names.in_file(module))?;
    // 0 would mean that the change is not scaled at all.
    let alphas: Vec<f64> = pairs.iter().map(|(_, pair)| alpha(pair)).collect::<Result<_>>()?;
    let shared = alphas.iter().copied().find(|alpha| *alpha != 0.0).unwrap_or(1.0) as f32;
    let (mut tensors, mut data) = (Vec::new(), VecDeque::new());
    for ((layer, pair), alpha) in pairs.into_iter().zip(alphas) {
        let (name, heads) = place(names, &layer)?;
        let factor = alpha / f64::from(shared);
        let b = scaled(&pair.b, factor)?;
        let b = match heads {
            Some(heads) => in_file_order(&b, pair.b.dims2()?, heads, &layer)?,
            None => b,
        };
        for (half, matrix, values) in [("lora_a", &pair.a, scaled(&pair.a, 1.0)?), ("lora_b", &pair.b, b)] {
            let (name, shape) = (format!("{name}.{half}"), matrix.dims().to_vec());
            tensors.push(TensorToWrite { name, shape, kind: BlockType::F32 });
            data.push_back(Bytes::from(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()));
        }
    }
    let metadata = Metadata::new(
        "the adapter",
        [
            ("general.type".to_owned(), Value::from("adapter")),
            ("general.architecture".to_owned(), names.architecture().name().into()),
            ("adapter.type".to_owned(), "lora".into()),
            ("adapter.lora.alpha".to_owned(), shared.into()),
        ],
    );
    let mut file = Vec::new();
    let missing = || Error::Internal("more tensors than data".into());
    writer::write(&mut file, &metadata, &tensors, |_| data.pop_front().ok_or_else(missing))?;
    Ok(file)
}

/// Returns the file's name of a layer's weights, and the heads whose rows have another order there.
fn place(names: &Names, layer: &str) -> Result<(String, Option<usize>)> {
    let place = names.places(&format!("{layer}.weight")).into_iter().next();
    let place = place.filter(|place| place.part == Part::Whole).ok_or_else(|| {
        let message = "is a part of a larger matrix in GGUF files of this model, or is not in them";
        Error::Setup(format!("The adapter has no form in a GGUF file: it changes `{layer}`, which {message}."))
    })?;
    Ok((place.tensor, place.heads))
}

/// Returns the alpha that gives the pair's scale at its rank: a whole number if one does, since the scale is rounded.
fn alpha(pair: &LoraPair) -> Result<f64> {
    let rank = pair.a.dim(0)? as f64;
    let exact = f64::from(pair.scale) * rank;
    let whole = exact.round();
    Ok(if ((whole / rank) as f32).to_bits() == pair.scale.to_bits() { whole } else { exact })
}

fn scaled(matrix: &Tensor, factor: f64) -> Result<Vec<f32>> {
    let values = matrix.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(|value| (f64::from(value) * factor) as f32).collect())
}

/// Puts the rows of B, one for each output of a layer, where files have them that rotate neighbours.
pub(crate) fn in_file_order<T: Copy + Default>(
    b: &[T],
    shape: (usize, usize),
    heads: usize,
    layer: &str,
) -> Result<Vec<T>> {
    let (rows, rank) = shape;
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(Error::Setup(format!("the {rows} outputs of `{layer}` do not make {heads} heads")));
    }
    let mut ordered = vec![T::default(); b.len()];
    for (row, place) in file_rows(rows, heads).enumerate() {
        ordered[place * rank..(place + 1) * rank].copy_from_slice(&b[row * rank..(row + 1) * rank]);
    }
    Ok(ordered)
}
