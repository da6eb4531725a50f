//! The modules of a folder of sentence-transformers, which `modules.json` lists, and the small file that each has. Read by
//! [`folder`](super::folder). A module or a field that is not applied is refused by name: without it vectors would differ.

use std::path::{Component, Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::dense::{DenseActivation, DenseLayer};
use super::pooling::Pooling;
use crate::{Error, Result, python_json};

/// The list of the modules, in the folder.
pub(super) const LIST: &str = "modules.json";
/// What modules of a text's vector read and write.
const TEXT_VECTOR: &str = "sentence_embedding";

/// A module with the folder of its files.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) kind: Kind,
    pub(super) folder: PathBuf,
}

/// What a module does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Makes hidden states of a text.
    Transformer,
    /// Makes the mean of one row for each token, without a transformer.
    StaticEmbedding,
    /// Makes one vector of hidden states.
    Pooling,
    /// Changes the vector by a dense layer.
    Dense,
    /// Scales the vector to length 1.
    Normalize,
    /// Does nothing outside training.
    Dropout,
}

impl Kind {
    /// Returns the kind of a class of the library: a class of the same name that comes with a model is another one.
    fn of(class: &str) -> Option<Self> {
        let name = class.strip_prefix("sentence_transformers.")?.rsplit('.').next()?;
        Some(match name {
            "Transformer" => Self::Transformer,
            "StaticEmbedding" => Self::StaticEmbedding,
            "Pooling" => Self::Pooling,
            "Dense" => Self::Dense,
            "Normalize" => Self::Normalize,
            "Dropout" => Self::Dropout,
            _ => return None,
        })
    }
}

/// An item of the list.
#[derive(Deserialize)]
struct Item {
    path: String,
    #[serde(rename = "type")]
    class: String,
    /// Names of what a request may give the module.
    #[serde(default)]
    kwargs: Vec<String>,
}

/// Reads the list of `folder`; `None` if it has none.
pub(super) fn read(folder: &Path) -> Result<Option<Vec<Module>>> {
    let file = folder.join(LIST);
    let Some(items) = parsed::<Vec<Item>>(&file)? else { return Ok(None) };
    let module = |item: Item| {
        let kind = Kind::of(&item.class).ok_or_else(|| {
            let message = "is not supported; supported are Transformer, StaticEmbedding, Pooling, Dense, Dropout and Normalize \
                           of sentence_transformers";
            fault(&file, &format!("the module `{}` {message}", item.class))
        })?;
        if !item.kwargs.is_empty() {
            return Err(fault(&file, &format!("`kwargs` of the module `{}` are not supported", item.class)));
        }
        // An absolute path or one with `..` would read outside the model.
        let path = Path::new(&item.path);
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(fault(&file, &format!("the path `{}` must lie in the folder", item.path)));
        }
        let below = path.components().filter(|part| *part != Component::CurDir);
        Ok(Module { kind, folder: below.fold(folder.to_path_buf(), |folder, part| folder.join(part)) })
    };
    items.into_iter().map(module).collect::<Result<_>>().map(Some)
}

/// The file of a Pooling, in the newer spelling, which has `pooling_mode`, and in the older one, which has a flag for each.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "flags of the file")]
struct PoolingFile {
    #[serde(alias = "word_embedding_dimension")]
    embedding_dimension: usize,
    #[serde(default)]
    pooling_mode: Option<Modes>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default = "yes")]
    include_prompt: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Modes {
    One(String),
    Several(Vec<String>),
}

fn yes() -> bool {
    true
}

impl PoolingFile {
    /// Returns what is pooled, in the order in which it is joined; an error is the name of an unknown pooling.
    fn poolings(&self) -> Result<Vec<Pooling>, String> {
        match &self.pooling_mode {
            Some(Modes::One(name)) => return Ok(vec![pooling(name)?]),
            Some(Modes::Several(names)) => return names.iter().map(|name| pooling(name)).collect(),
            None => {}
        }
        let flags = [
            (self.pooling_mode_cls_token, Pooling::First),
            (self.pooling_mode_max_tokens, Pooling::Max),
            (self.pooling_mode_mean_tokens, Pooling::Mean),
            (self.pooling_mode_mean_sqrt_len_tokens, Pooling::MeanOfRoot),
            (self.pooling_mode_weightedmean_tokens, Pooling::WeightedMean),
            (self.pooling_mode_lasttoken, Pooling::Last),
        ];
        let set: Vec<_> = flags.into_iter().filter_map(|(is_set, pooling)| is_set.then_some(pooling)).collect();
        Ok(if set.is_empty() { vec![Pooling::Mean] } else { set })
    }
}

fn pooling(name: &str) -> Result<Pooling, String> {
    Ok(match name {
        "cls" => Pooling::First,
        "max" => Pooling::Max,
        "mean" => Pooling::Mean,
        "mean_sqrt_len_tokens" => Pooling::MeanOfRoot,
        "weightedmean" => Pooling::WeightedMean,
        "lasttoken" => Pooling::Last,
        _ => return Err(name.to_owned()),
    })
}

/// Reads what the Pooling in `folder` takes of hidden states of `hidden_size` values, and whether it takes those of a
/// prompt, too.
pub(super) fn poolings(folder: &Path, hidden_size: usize) -> Result<(Vec<Pooling>, bool)> {
    let (file, config) = needed::<PoolingFile>(folder)?;
    let width = config.embedding_dimension;
    if width != hidden_size {
        return Err(fault(&file, &format!("it pools {width} values, the model's hidden states have {hidden_size}")));
    }
    let poolings = config.poolings().map_err(|name| fault(&file, &format!("the pooling `{name}` is not known")))?;
    if poolings.is_empty() {
        return Err(fault(&file, "`pooling_mode` names no pooling"));
    }
    Ok((poolings, config.include_prompt))
}

/// The file of a Dense.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DenseFile {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default = "tanh")]
    activation_function: String,
    #[serde(default)]
    module_input_name: Option<String>,
    #[serde(default)]
    module_output_name: Option<String>,
    #[serde(default)]
    use_residual: bool,
}

fn tanh() -> String {
    "torch.nn.modules.activation.Tanh".into()
}

/// Reads the layer of the Dense in `folder`, which takes vectors of `width` values.
pub(super) fn dense(folder: &Path, width: usize) -> Result<DenseLayer> {
    let (file, config) = needed::<DenseFile>(folder)?;
    let name = config.activation_function.as_str();
    let activation = match name.strip_prefix("torch.nn.").and_then(|name| name.rsplit('.').next()) {
        Some("Identity") => DenseActivation::Identity,
        Some("Tanh") => DenseActivation::Tanh,
        Some("ReLU") => DenseActivation::Relu,
        Some("GELU") => DenseActivation::Gelu,
        _ => {
            let message = "is not supported; supported are Identity, Tanh, ReLU and GELU of torch.nn";
            return Err(fault(&file, &format!("activation_function `{name}` {message}")));
        }
    };
    if config.use_residual {
        return Err(fault(&file, "`use_residual` is not supported"));
    }
    check_places(&file, config.module_input_name.as_deref(), config.module_output_name.as_deref())?;
    if config.in_features != width {
        return Err(fault(&file, &format!("it takes {} values, and gets {width}", config.in_features)));
    }
    let weights = folder.join("model.safetensors");
    if !weights.is_file() {
        let advice = if folder.join("pytorch_model.bin").is_file() {
            "pytorch_model.bin is not read; sentence-transformers saves the model in this form: \
             SentenceTransformer(FOLDER).save(OTHER)"
        } else {
            "the download is not complete"
        };
        return Err(fault(&weights, &format!("the file does not exist: {advice}")));
    }
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu)
        .map_err(|error| fault(&weights, &format!("cannot read the weights: {error}")))?;
    let mut tensor = |name: &str, shape: &[usize]| -> Result<Tensor> {
        let tensor = tensors.remove(name).ok_or_else(|| fault(&weights, &format!("the tensor `{name}` is missing")))?;
        if tensor.dims() != shape || !tensor.dtype().is_float() {
            let found = format!("{:?} {:?}", tensor.dtype(), tensor.dims());
            return Err(fault(&weights, &format!("the tensor `{name}` is {found}, expected numbers {shape:?}")));
        }
        Ok(tensor.to_dtype(DType::F32)?)
    };
    let weight = tensor("linear.weight", &[config.out_features, config.in_features])?;
    let bias = config.bias.then(|| tensor("linear.bias", &[config.out_features])).transpose()?;
    match tensors.keys().min() {
        Some(name) => Err(fault(&weights, &format!("the tensor `{name}` is not known"))),
        None => DenseLayer::new(&weight, bias.as_ref(), activation),
    }
}

/// The file of a Normalize.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NormalizeFile {
    #[serde(default)]
    module_input_name: Option<String>,
    #[serde(default)]
    module_output_name: Option<String>,
}

/// Refuses a Normalize that scales something else than a text's vector. Older ones have no file, nor even a folder.
pub(super) fn check_normalize(folder: &Path) -> Result<()> {
    let file = folder.join("config.json");
    let config: NormalizeFile = parsed(&file)?.unwrap_or_default();
    check_places(&file, config.module_input_name.as_deref(), config.module_output_name.as_deref())
}

/// Refuses to read or write something else than the text's vector, such as a vector for each token.
fn check_places(file: &Path, input: Option<&str>, output: Option<&str>) -> Result<()> {
    let other = [("module_input_name", input), ("module_output_name", output)].into_iter();
    match other.filter_map(|(field, name)| Some((field, name?))).find(|(_, name)| *name != TEXT_VECTOR) {
        Some((field, name)) => Err(fault(file, &format!("{field} `{name}` is not supported, only `{TEXT_VECTOR}`"))),
        None => Ok(()),
    }
}

/// Reads the `config.json` that a module must have, and returns it with its path.
fn needed<T: DeserializeOwned>(folder: &Path) -> Result<(PathBuf, T)> {
    let file = folder.join("config.json");
    let config = parsed(&file)?.ok_or_else(|| fault(&file, "the file does not exist: the download is not complete"))?;
    Ok((file, config))
}

/// Reads a JSON file; `None` if it does not exist.
pub(super) fn parsed<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    let value: Option<Value> = python_json::read(file)?;
    value.map(|value| serde_json::from_value(value).map_err(|error| fault(file, &error.to_string()))).transpose()
}

/// Returns an error about a file, which it names.
pub(super) fn fault(file: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", file.display()))
}
