//! Loads the head of a sequence classifier, as transformers saves `…ForSequenceClassification`. Called when an encoder is
//! loaded.

use std::path::Path;

use candle_core::Tensor;
use serde_json::Value;

use super::{Classifier, HeadLayer, ScoreForm};
use crate::vectors::{DenseActivation, DenseLayer, Pooling};
use crate::weights::Weights;
use crate::{Error, ModelConfig, Result, python_json};

/// Loads the head of the encoder in `folder`; `None` if it has none.
pub(crate) fn load(folder: &Path, config: &ModelConfig, weights: &Weights) -> Result<Option<Classifier>> {
    if config.encoder.is_none() || !config.has_label_head {
        return Ok(None);
    }
    let file = folder.join("config.json");
    let fields = python_json::read(&file)?.unwrap_or_default();
    let fault = |message: &str| Error::Setup(format!("{}: {message}", file.display()));
    let labels = labels(&fields).map_err(|message| fault(&message))?;
    let head = Head { weights, hidden: config.hidden_size, labels: labels.len() };
    let (pooling, layers) = match config.family {
        "bert" | "nomic_bert" => (
            Pooling::First,
            vec![head.inner("model.pooler.dense", true, DenseActivation::Tanh)?, head.last("classifier")?],
        ),
        "roberta" | "xlm-roberta" | "camembert" | "mpnet" => (
            Pooling::First,
            vec![head.inner("classifier.dense", true, DenseActivation::Tanh)?, head.last("classifier.out_proj")?],
        ),
        "modernbert" => (
            modern_pooling(&fields).map_err(|message| fault(&message))?,
            vec![
                head.inner(
                    "head.dense",
                    fields["classifier_bias"] == true,
                    modern_activation(&fields).map_err(|message| fault(&message))?,
                )?,
                head.norm("head.norm", config)?,
                head.last("classifier")?,
            ],
        ),
        other => return Err(fault(&format!("the classification head of `{other}` is not supported"))),
    };
    let beside = python_json::read(&folder.join("config_sentence_transformers.json"))?.unwrap_or_default();
    let score = score_form(&fields, &beside).map_err(|message| fault(&message))?;
    Ok(Some(Classifier { labels, pooling, layers, score, hidden_size: config.hidden_size }))
}

/// Tensors of a head.
struct Head<'a> {
    weights: &'a Weights,
    hidden: usize,
    labels: usize,
}

impl Head<'_> {
    /// Loads a layer as wide as the hidden states.
    fn inner(&self, name: &str, has_bias: bool, activation: DenseActivation) -> Result<HeadLayer> {
        self.dense(name, self.hidden, has_bias, activation)
    }

    /// Loads the layer that makes the labels' numbers.
    fn last(&self, name: &str) -> Result<HeadLayer> {
        self.dense(name, self.labels, true, DenseActivation::Identity)
    }

    fn dense(&self, name: &str, output: usize, has_bias: bool, activation: DenseActivation) -> Result<HeadLayer> {
        let weight = self.weights.get(&format!("{name}.weight"), &[output, self.hidden])?;
        let bias = has_bias.then(|| self.weights.get(&format!("{name}.bias"), &[output])).transpose()?;
        Ok(HeadLayer::Dense(DenseLayer::new(&weight, bias.as_ref(), activation)?))
    }

    fn norm(&self, name: &str, config: &ModelConfig) -> Result<HeadLayer> {
        let values = |end: &str| -> Result<Vec<f64>> {
            let tensor: Tensor = self.weights.get(&format!("{name}.{end}"), &[self.hidden])?;
            Ok(tensor.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
        };
        let has_bias = config.encoder.as_ref().is_some_and(|encoder| encoder.norm_bias);
        let bias = has_bias.then(|| values("bias")).transpose()?;
        Ok(HeadLayer::Norm { weight: values("weight")?, bias, eps: f64::from(config.rms_norm_eps) })
    }
}

/// Returns the names of the labels, in the order of their numbers: two without names if the file does not say.
fn labels(fields: &Value) -> Result<Vec<String>, String> {
    let named = match &fields["id2label"] {
        Value::Null => {
            let count = fields["num_labels"].as_u64().unwrap_or(2);
            return Ok((0..count).map(|index| format!("LABEL_{index}")).collect());
        }
        named => named.as_object().ok_or("`id2label` must be an object")?,
    };
    let label = |index: usize| {
        let name = named.get(&index.to_string()).and_then(Value::as_str);
        name.map(str::to_owned).ok_or_else(|| format!("`id2label` must name the labels 0 to {}", named.len() - 1))
    };
    if named.is_empty() { Err("`id2label` names no label".into()) } else { (0..named.len()).map(label).collect() }
}

fn modern_pooling(fields: &Value) -> Result<Pooling, String> {
    match fields["classifier_pooling"].as_str() {
        None | Some("cls") => Ok(Pooling::First),
        Some("mean") => Ok(Pooling::Mean),
        Some(other) => Err(format!("classifier_pooling `{other}` is not supported; supported are cls and mean")),
    }
}

fn modern_activation(fields: &Value) -> Result<DenseActivation, String> {
    match fields["classifier_activation"].as_str() {
        None | Some("gelu") => Ok(DenseActivation::Gelu),
        Some("relu") => Ok(DenseActivation::Relu),
        Some("tanh") => Ok(DenseActivation::Tanh),
        Some(other) => {
            Err(format!("classifier_activation `{other}` is not supported; supported are gelu, relu and tanh"))
        }
    }
}

/// Returns what turns the number of a single label into a score, as sentence-transformers' cross-encoders do: the logistic
/// function, unless one of the files says otherwise: the model's, as older versions and still older ones wrote it, or the one
/// `beside` it.
fn score_form(fields: &Value, beside: &Value) -> Result<ScoreForm, String> {
    let places = [
        &beside["activation_fn"],
        &fields["sentence_transformers"]["activation_fn"],
        &fields["sbert_ce_default_activation_function"],
    ];
    let named = places.into_iter().find_map(Value::as_str);
    match named.map(|name| name.rsplit('.').next().unwrap_or(name)) {
        None | Some("Sigmoid") => Ok(ScoreForm::Sigmoid),
        Some("Identity") => Ok(ScoreForm::Identity),
        Some(other) => {
            Err(format!("the activation `{other}` of scores is not supported; supported are Sigmoid and Identity"))
        }
    }
}
