//! Reads from a folder of sentence-transformers how a model makes vectors: from its [`modules`](super::modules), from the
//! limit of a text, and from the prompts. Called by [`Checkpoint`](crate::checkpoint::Checkpoint). The vectors are those of
//! sentence-transformers 6; what would change them and is not applied is refused by name.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::modules::{self, Kind, Module, fault, parsed};
use super::{DenseLayer, VectorForm};
use crate::{Error, ModelConfig, Result, python_json};

/// Names that the settings of the transformer have had; the first file with a setting counts.
pub(super) const TRANSFORMER: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// Settings of the whole.
pub(super) const WHOLE: &str = "config_sentence_transformers.json";
/// Arguments of transformers that change how a model is computed or stored, and not what it is.
const HARMLESS: [&str; 12] = [
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "model_max_length",
    "padding_side",
    "torch_dtype",
    "unpad_inputs",
    "use_cache",
    "use_fast",
    "use_safetensors",
];

/// Returns the folder with the files of the model itself: that of the first module, or `folder` if there are no modules.
pub(crate) fn of_model(folder: &Path) -> Result<PathBuf> {
    let first = modules::read(folder)?.and_then(|modules| modules.into_iter().next());
    Ok(first.map_or_else(|| folder.to_path_buf(), |module| module.folder))
}

/// Returns the folder of a static model's files, if the first of the modules in `folder` is one.
pub(crate) fn of_static_model(folder: &Path) -> Result<Option<PathBuf>> {
    let first = modules::read(folder)?.and_then(|modules| modules.into_iter().next());
    Ok(first.filter(|module| module.kind == Kind::StaticEmbedding).map(|module| module.folder))
}

/// Returns true if `folder` has a list of modules.
pub(crate) fn has_modules(folder: &Path) -> bool {
    folder.join(modules::LIST).is_file()
}

/// Reads how the model of `folder`, which has the shape `config`, makes vectors. Dense layers are loaded.
pub(crate) fn read(folder: &Path, config: &ModelConfig) -> Result<VectorForm> {
    let Some(modules) = modules::read(folder)? else { return Ok(VectorForm::of_model(config)) };
    let [
        Module { kind: Kind::Transformer, folder: transformer },
        Module { kind: Kind::Pooling, folder: pooling },
        behind @ ..,
    ] = modules.as_slice()
    else {
        return Err(unknown_order(folder));
    };
    let settings = transformer_settings(transformer, Task::VECTORS)?;
    let (poolings, pools_prompt) = modules::poolings(pooling, config.hidden_size)?;
    let (layers, is_normalized) = layers(folder, behind, config.hidden_size * poolings.len())?;
    let whole = whole_settings(folder)?;
    let mut form = VectorForm {
        poolings,
        pools_prompt,
        layers,
        is_normalized,
        prompts: whole.prompts(),
        default_prompt: whole.default_prompt_name,
        is_lower_cased: settings.do_lower_case,
        max_tokens: max_tokens(transformer, &settings, config.max_position_embeddings)?,
        shorter_widths: Vec::new(),
        hidden_size: config.hidden_size,
    };
    form.shorter_widths = shorter_widths(transformer, form.width())?;
    Ok(form)
}

/// Reads how the classifier of `folder`, which has the shape `config`, reads texts: its limit. Where it is asked for vectors,
/// they are the mean, of length 1.
pub(crate) fn of_classifier(folder: &Path, config: &ModelConfig) -> Result<VectorForm> {
    let transformer = of_model(folder)?;
    let settings = transformer_settings(&transformer, Task::LABELS)?;
    let max_tokens = max_tokens(&transformer, &settings, config.max_position_embeddings)?;
    Ok(VectorForm { max_tokens, is_lower_cased: settings.do_lower_case, ..VectorForm::of_model(config) })
}

/// What stands behind the mean of a static model's rows.
pub(crate) struct StaticForm {
    pub(crate) layers: Vec<DenseLayer>,
    pub(crate) is_normalized: bool,
    pub(crate) prompts: BTreeMap<String, String>,
    pub(crate) default_prompt: Option<String>,
}

/// Reads how the static model of `folder`, which has rows of `width` values, makes vectors of their mean.
pub(crate) fn static_form(folder: &Path, width: usize) -> Result<StaticForm> {
    let modules = modules::read(folder)?.unwrap_or_default();
    let [Module { kind: Kind::StaticEmbedding, .. }, behind @ ..] = modules.as_slice() else {
        return Err(unknown_order(folder));
    };
    let (layers, is_normalized) = layers(folder, behind, width)?;
    let whole = whole_settings(folder)?;
    Ok(StaticForm { layers, is_normalized, prompts: whole.prompts(), default_prompt: whole.default_prompt_name })
}

/// Reads the modules behind the one that makes a vector of `width` values: the dense layers, and whether the result is scaled
/// to length 1.
fn layers(folder: &Path, behind: &[Module], width: usize) -> Result<(Vec<DenseLayer>, bool)> {
    let (mut layers, mut is_normalized) = (Vec::new(), false);
    for module in behind {
        match module.kind {
            Kind::Dense if !is_normalized => {
                let width = layers.last().map_or(width, DenseLayer::output);
                layers.push(modules::dense(&module.folder, width)?);
            }
            Kind::Normalize => {
                modules::check_normalize(&module.folder)?;
                is_normalized = true;
            }
            Kind::Dropout => {}
            Kind::Dense | Kind::Transformer | Kind::StaticEmbedding | Kind::Pooling => {
                return Err(unknown_order(folder));
            }
        }
    }
    Ok((layers, is_normalized))
}

fn unknown_order(folder: &Path) -> Error {
    let message = "the order of the modules is not supported; supported are a Transformer and a Pooling, or a StaticEmbedding, \
                   and behind them Dense, Dropout and a last Normalize";
    fault(&folder.join(modules::LIST), message)
}

/// The settings of the transformer.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransformerSettings {
    #[serde(default)]
    max_seq_length: Option<NonZeroUsize>,
    #[serde(default)]
    do_lower_case: bool,
    #[serde(default)]
    transformer_task: Option<String>,
    #[serde(default)]
    modality_config: Option<Value>,
    #[serde(default)]
    module_output_name: Option<String>,
    #[serde(default)]
    processing_kwargs: Map<String, Value>,
    /// Padding or none: the vectors are the same.
    #[serde(default, rename = "unpad_inputs")]
    _unpad_inputs: Option<bool>,
    #[serde(default)]
    query_length: Option<usize>,
    #[serde(default)]
    document_length: Option<usize>,
    #[serde(default)]
    query_expansion: Option<Value>,
    #[serde(default)]
    tokenizer_name_or_path: Option<String>,
    #[serde(default, alias = "model_args")]
    model_kwargs: Map<String, Value>,
    #[serde(default, alias = "tokenizer_args")]
    processor_kwargs: Map<String, Value>,
    #[serde(default, alias = "config_args")]
    config_kwargs: Map<String, Value>,
}

/// What a model's first module is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    name: &'static str,
    /// The part of transformers' result, and its name among the modules.
    output: [&'static str; 2],
}

impl Task {
    /// Hidden states, of which vectors are made.
    const VECTORS: Self = Self { name: "feature-extraction", output: ["last_hidden_state", "token_embeddings"] };
    /// The numbers of labels.
    const LABELS: Self = Self { name: "sequence-classification", output: ["logits", "scores"] };
}

impl TransformerSettings {
    /// Returns the name of the first setting that is not applied in a model for `task`.
    fn unsupported(&self, task: Task) -> Option<String> {
        let text = json!({"method": "forward", "method_output_name": task.output[0]});
        let other = |value: Option<&str>, usual: &str| value.is_some_and(|value| value != usual);
        let named = [
            ("transformer_task", other(self.transformer_task.as_deref(), task.name)),
            ("modality_config", self.modality_config.as_ref().is_some_and(|modalities| modalities["text"] != text)),
            ("module_output_name", other(self.module_output_name.as_deref(), task.output[1])),
            ("processing_kwargs", !self.processing_kwargs.is_empty()),
            ("query_length", self.query_length.is_some()),
            ("document_length", self.document_length.is_some()),
            ("query_expansion", self.query_expansion.is_some()),
            ("tokenizer_name_or_path", self.tokenizer_name_or_path.is_some()),
        ];
        let arguments = [&self.model_kwargs, &self.processor_kwargs, &self.config_kwargs];
        let argument = arguments.into_iter().flat_map(Map::keys).find(|name| !HARMLESS.contains(&name.as_str()));
        named.into_iter().find_map(|(name, is_set)| is_set.then(|| name.to_owned())).or_else(|| argument.cloned())
    }
}

/// Reads the settings of the transformer in `folder`, which is for `task`.
fn transformer_settings(folder: &Path, task: Task) -> Result<TransformerSettings> {
    let adapter = folder.join("adapter_config.json");
    if adapter.is_file() {
        let message =
            "sentence-transformers would add this adapter to the weights: merge it, or serve the model without it";
        return Err(fault(&adapter, message));
    }
    for name in TRANSFORMER {
        let file = folder.join(name);
        if python_json::read(&file)?.is_none_or(|value| value == json!({})) {
            continue;
        }
        let settings: TransformerSettings = parsed(&file)?.unwrap_or_default();
        return match settings.unsupported(task) {
            Some(name) => Err(fault(&file, &format!("the value of `{name}` is not supported"))),
            None => Ok(settings),
        };
    }
    Ok(TransformerSettings::default())
}

/// Returns the most tokens of a text: what the settings say, else the tokenizer; never more than the model's `positions`. The
/// truncation in `tokenizer.json` is one that the tokenizer was once saved with, and does not count.
fn max_tokens(folder: &Path, settings: &TransformerSettings, positions: usize) -> Result<usize> {
    let argument = settings.processor_kwargs.get("model_max_length").cloned();
    let said = match (argument, settings.max_seq_length) {
        (Some(argument), _) => argument,
        (None, Some(limit)) => return Ok(limit.get().min(positions)),
        (None, None) => {
            let file = folder.join("tokenizer_config.json");
            python_json::read(&file)?.map_or(Value::Null, |config| config["model_max_length"].clone())
        }
    };
    // A tokenizer without a limit says 1e30.
    let limit = said.as_f64().filter(|limit| *limit >= 1.0);
    Ok(limit.map_or(positions, |limit| (limit as usize).min(positions)))
}

/// The settings of the whole.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WholeSettings {
    #[serde(default, rename = "__version__")]
    _version: Value,
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    #[serde(default)]
    default_prompt_name: Option<String>,
    /// How the library compares vectors, which it does after they are made.
    #[serde(default, rename = "similarity_fn_name")]
    _similarity: Value,
    #[serde(default)]
    truncate_dim: Option<usize>,
    #[serde(default, rename = "requirements")]
    _requirements: Value,
}

impl WholeSettings {
    fn prompts(&self) -> BTreeMap<String, String> {
        self.prompts.iter().map(|(name, text)| (name.clone(), text.clone().unwrap_or_default())).collect()
    }
}

fn whole_settings(folder: &Path) -> Result<WholeSettings> {
    let file = folder.join(WHOLE);
    let settings: WholeSettings = parsed(&file)?.unwrap_or_default();
    if let Some(kind) = settings.model_type.as_ref().filter(|kind| *kind != "SentenceTransformer") {
        return Err(fault(&file, &format!("the model_type `{kind}` is not supported, only `SentenceTransformer`")));
    }
    if settings.truncate_dim.is_some() {
        let message = "`truncate_dim` is not supported: take it out, and let requests ask for `dimensions`, which scales the \
                       shorter vectors to length 1";
        return Err(fault(&file, message));
    }
    if let Some(name) = settings.default_prompt_name.as_ref().filter(|name| !settings.prompts.contains_key(*name)) {
        return Err(fault(&file, &format!("default_prompt_name `{name}` is not one of `prompts`")));
    }
    Ok(settings)
}

/// Reads which shorter vectors than `width` the model was trained for.
fn shorter_widths(folder: &Path, width: usize) -> Result<Vec<usize>> {
    let file = folder.join("config.json");
    let listed = python_json::read(&file)?.map_or(Value::Null, |mut config| config["matryoshka_dimensions"].take());
    if listed.is_null() {
        return Ok(Vec::new());
    }
    let mut widths: Vec<usize> = serde_json::from_value(listed)
        .map_err(|error| fault(&file, &format!("`matryoshka_dimensions` must list whole numbers: {error}")))?;
    if widths.iter().any(|shorter| !(1..=width).contains(shorter)) {
        return Err(fault(&file, &format!("`matryoshka_dimensions` must lie between 1 and {width}")));
    }
    widths.retain(|shorter| *shorter < width);
    widths.sort_unstable();
    Ok(widths)
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
