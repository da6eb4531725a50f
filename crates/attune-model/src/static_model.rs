//! Static models of vectors: one row for each token, whose mean is the vector of a text. They are read in the forms of
//! model2vec and of sentence-transformers (the module `StaticEmbedding`). They have no blocks: the rows are the embedding of
//! a decoder that computes nothing. Read by [`Checkpoint`](crate::checkpoint::Checkpoint).

use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::tokenizer::{Tokenizer, TokenizerSource};
use crate::vectors::VectorForm;
use crate::vectors::folder::{self, StaticForm};
use crate::weights::Weights;
use crate::{Error, ModelConfig, Result, python_json};

/// The `model_type` of model2vec's folders.
const MODEL2VEC: &str = "model2vec";
/// Tokens of a text that model2vec reads where its files do not say.
const MODEL2VEC_TOKENS: usize = 512;
/// Tokens of a text where there is no limit.
const UNLIMITED: usize = 1_000_000;

/// A folder with a static model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticModel {
    /// The folder that was given.
    root: PathBuf,
    /// The folder with rows and tokenizer.
    files: PathBuf,
    kind: Kind,
}

/// The program that the model was made for, which decides what its vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model2vec,
    SentenceTransformers,
}

/// Names of the tensors in a file of rows.
#[derive(Debug, Clone, Copy)]
struct Names {
    rows: &'static str,
    /// The row of each token.
    mapping: Option<&'static str>,
    /// A factor for each token.
    weights: Option<&'static str>,
}

impl StaticModel {
    /// Returns the static model in the folder `path`; `None` if what stands there is another model.
    pub(crate) fn find(path: &Path) -> Result<Option<Self>> {
        let root = path.to_path_buf();
        if is_model2vec(&path.join("config.json")) {
            return Ok(Some(Self { files: root.clone(), root, kind: Kind::Model2vec }));
        }
        let files = folder::of_static_model(path)?;
        Ok(files.map(|files| Self { root, files, kind: Kind::SentenceTransformers }))
    }

    /// Returns the folder with rows and tokenizer.
    pub(crate) fn files(&self) -> &Path {
        &self.files
    }

    /// Refuses what cannot be read.
    pub(crate) fn check(&self) -> Result<()> {
        let config = self.config()?;
        self.vectors(&config)?;
        let tokenizer = self.files.join("tokenizer.json");
        if tokenizer.is_file() { Ok(()) } else { Err(fault(&tokenizer, "the file does not exist")) }
    }

    /// Returns the shape of a decoder without blocks.
    pub(crate) fn config(&self) -> Result<ModelConfig> {
        let (tokens, width) = self.with_rows(|rows| Ok((rows.tokens()?, rows.width)))?;
        let fields = json!({
            "model_type": "llama", "hidden_size": width, "vocab_size": tokens, "max_position_embeddings": self.max_tokens()?,
            "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2, "tie_word_embeddings": true,
        });
        let config = ModelConfig::parse(&fields.to_string()).map_err(|message| fault(&self.files, &message))?;
        Ok(ModelConfig {
            family: "static",
            num_hidden_layers: 0,
            modules: &[],
            sliding_windows: Vec::new(),
            rotary: Vec::new(),
            ..config
        })
    }

    /// Reads the rows of all tokens, on `device`, as the tensors of a decoder.
    pub(crate) fn weights(&self, device: &Device) -> Result<Weights> {
        #[allow(clippy::redundant_closure_for_method_calls, reason = "the method is for one lifetime only")]
        let rows = self.with_rows(|rows| rows.of_tokens())?;
        let width = rows.dim(1)?;
        // Nothing is normed: no hidden state goes through a block.
        let norm = Tensor::ones(width, candle_core::DType::F32, device)?;
        let rows = rows.to_device(device)?;
        let tensors = [("model.embed_tokens.weight", rows), ("model.norm.weight", norm)];
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        Ok(Weights::of_tensors(tensors, &self.files, device))
    }

    /// Reads what the tokenizer is made of.
    pub(crate) fn tokenizer_source(&self) -> Result<TokenizerSource> {
        TokenizerSource::read(&self.files)
    }

    /// Makes the tokenizer leave out what has no part in vectors: the tokens around a text, and with model2vec those that
    /// stand for what the vocabulary does not have.
    pub(crate) fn tokenizer(&self, tokenizer: Tokenizer, source: &TokenizerSource) -> Tokenizer {
        match self.kind {
            Kind::Model2vec => {
                let unknown = unknown_token(source, &tokenizer);
                tokenizer.alone().cutting_like_model2vec(unknown)
            }
            Kind::SentenceTransformers => tokenizer.alone(),
        }
    }

    /// Returns how vectors are made of the rows.
    pub(crate) fn vectors(&self, config: &ModelConfig) -> Result<VectorForm> {
        let form = VectorForm { is_normalized: false, ..VectorForm::of_model(config) };
        match self.kind {
            Kind::Model2vec => {
                let file = self.root.join("config.json");
                let settings = python_json::read(&file)?.unwrap_or_default();
                let pooling = &settings["pooling"];
                if !pooling.is_null() && pooling != "mean" {
                    return Err(fault(&file, &format!("the pooling {pooling} is not supported, only the mean")));
                }
                Ok(VectorForm { is_normalized: settings["normalize"] == true, ..form })
            }
            Kind::SentenceTransformers => {
                let StaticForm { layers, is_normalized, prompts, default_prompt } =
                    folder::static_form(&self.root, form.hidden_size)?;
                Ok(VectorForm { layers, is_normalized, prompts, default_prompt, ..form })
            }
        }
    }

    /// Returns what the system knows about the file of the rows.
    pub(crate) fn metadata(&self) -> std::io::Result<std::fs::Metadata> {
        std::fs::metadata(self.weights_file())
    }

    /// Returns an error about the model, which it names.
    pub(crate) fn fault(&self, message: &str) -> Error {
        fault(&self.root, message)
    }

    fn weights_file(&self) -> PathBuf {
        self.files.join("model.safetensors")
    }

    /// Returns the most tokens of a text.
    fn max_tokens(&self) -> Result<usize> {
        let number = |value: &Value| value.as_u64().filter(|number| *number > 0).map(|number| number as usize);
        match self.kind {
            Kind::Model2vec => {
                let settings = python_json::read(&self.root.join("config.json"))?.unwrap_or_default();
                Ok(match settings.get("max_length") {
                    None => MODEL2VEC_TOKENS,
                    Some(limit) => number(limit).unwrap_or(UNLIMITED),
                })
            }
            // There the tokenizer is used as it was saved.
            Kind::SentenceTransformers => {
                let tokenizer = python_json::read(&self.files.join("tokenizer.json"))?.unwrap_or_default();
                Ok(number(&tokenizer["truncation"]["max_length"]).unwrap_or(UNLIMITED))
            }
        }
    }

    /// Maps the file of the rows and calls `work` with it.
    fn with_rows<T>(&self, work: impl FnOnce(&Rows<'_>) -> Result<T>) -> Result<T> {
        let file = self.weights_file();
        if !file.is_file() {
            return Err(fault(&file, "the file does not exist; other forms of weights are not read"));
        }
        // SAFETY: the file is mapped read-only, as where other models are loaded.
        let tensors = unsafe { MmapedSafetensors::new(&file) }
            .map_err(|error| fault(&file, &format!("cannot read the weights: {error}")))?;
        let rows = Rows::find(&tensors).map_err(|message| fault(&file, &message))?;
        work(&Rows { file: &file, ..rows })
    }
}

/// Returns true if `config` is the configuration of a model of model2vec.
pub fn is_model2vec(config: &Path) -> bool {
    python_json::read(config).is_ok_and(|fields| fields.is_some_and(|fields| fields["model_type"] == MODEL2VEC))
}

/// Returns the token that stands for what the vocabulary does not have; `None` if there is none.
fn unknown_token(source: &TokenizerSource, tokenizer: &Tokenizer) -> Option<u32> {
    let model = serde_json::from_slice::<Value>(&source.json).ok()?["model"].take();
    let id = model["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    id.or_else(|| tokenizer.token(model["unk_token"].as_str()?))
}

/// The tensors of a file of rows.
struct Rows<'a> {
    file: &'a Path,
    table: TensorView<'a>,
    width: usize,
    mapping: Option<TensorView<'a>>,
    weights: Option<TensorView<'a>>,
}

impl<'a> Rows<'a> {
    /// Finds the tensors under one of the names that they have.
    fn find(tensors: &'a MmapedSafetensors) -> Result<Self, String> {
        let names: Vec<String> = tensors.tensors().into_iter().map(|(name, _)| name).collect();
        let has = |name: &str| names.iter().any(|known| known == name);
        let forms = [
            Names { rows: "embedding.weight", mapping: None, weights: None },
            Names { rows: "embeddings", mapping: Some("mapping"), weights: Some("weights") },
        ];
        let form = forms.into_iter().find(|form| has(form.rows));
        let form = form.ok_or("there is neither a tensor `embedding.weight` nor `embeddings`")?;
        let known = [Some(form.rows), form.mapping, form.weights];
        if let Some(other) = names.iter().find(|name| !known.contains(&Some(name.as_str()))) {
            return Err(format!("the tensor `{other}` is not known"));
        }
        let get = |name: &str| tensors.get(name).map_err(|error| error.to_string());
        let optional = |name: Option<&str>| name.filter(|name| has(name)).map(get).transpose();
        let rows = get(form.rows)?;
        let &[_, width] = rows.shape() else {
            return Err(format!("the tensor `{}` has shape {:?}, expected rows", form.rows, rows.shape()));
        };
        Ok(Self {
            file: Path::new(""),
            table: rows,
            width,
            mapping: optional(form.mapping)?,
            weights: optional(form.weights)?,
        })
    }

    /// Returns the number of tokens.
    fn tokens(&self) -> Result<usize> {
        let tokens = self.mapping.as_ref().unwrap_or(&self.table).shape()[0];
        match &self.weights {
            Some(weights) if weights.shape() != [tokens] => {
                let message =
                    format!("the tensor `weights` has shape {:?}, but there are {tokens} tokens", weights.shape());
                Err(fault(self.file, &message))
            }
            _ => Ok(tokens),
        }
    }

    /// Returns the row of each token, times the token's weight, `[tokens, width]`.
    fn of_tokens(&self) -> Result<Tensor> {
        let bad = |message: String| fault(self.file, &message);
        let (tokens, stored) = (self.tokens()?, self.table.shape()[0]);
        let values = floats(&self.table).map_err(bad)?;
        let mapping = self.mapping.as_ref().map(integers).transpose().map_err(bad)?;
        let weights = self.weights.as_ref().map(floats).transpose().map_err(bad)?;
        let mut rows = Vec::with_capacity(tokens * self.width);
        for token in 0..tokens {
            let row = mapping.as_ref().map_or(token, |mapping| mapping[token]);
            if row >= stored {
                return Err(bad(format!("the tensor `mapping` names the row {row}, but there are {stored} rows")));
            }
            let weight = weights.as_ref().map_or(1.0, |weights| weights[token]);
            let row = &values[row * self.width..(row + 1) * self.width];
            rows.extend(row.iter().map(|value| (value * weight) as f32));
        }
        Ok(Tensor::from_vec(rows, (tokens, self.width), &Device::Cpu)?)
    }
}

/// Reads numbers; whole ones of 8 bits stand for themselves.
fn floats(view: &TensorView<'_>) -> Result<Vec<f64>, String> {
    let bytes = view.data();
    Ok(match view.dtype() {
        Dtype::F64 => bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f64()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f64()).collect(),
        Dtype::I8 => bytes.iter().map(|byte| f64::from(byte.cast_signed())).collect(),
        other => return Err(format!("the rows or weights are {other:?}, which is not read")),
    })
}

/// Reads numbers of rows; a negative one becomes a row that is not there.
fn integers(view: &TensorView<'_>) -> Result<Vec<usize>, String> {
    let bytes = view.data();
    Ok(match view.dtype() {
        Dtype::I64 | Dtype::U64 => {
            bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize).collect()
        }
        Dtype::I32 | Dtype::U32 => {
            bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize).collect()
        }
        Dtype::I16 | Dtype::U16 => {
            bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes) as usize).collect()
        }
        other => return Err(format!("the tensor `mapping` is {other:?}, expected whole numbers")),
    })
}

fn fault(path: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", path.display()))
}

#[cfg(test)]
#[path = "static_model_tests.rs"]
mod tests;
