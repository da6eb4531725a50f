//! Graders as clients write them: read from JSON and checked, so that a grader that is taken can be run. A field that a
//! grader does not have is refused by name.

mod fields;
mod model;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use self::fields::Fields;
use crate::graders::expression::{Expression, is_name};
use crate::graders::metrics::Metric;
use crate::graders::template::Template;

pub use self::model::{EFFORTS, Message, ModelGrader, Sampling};

/// Most graders that one may combine.
const MAX_PARTS: usize = 32;
/// Longest source of a grader of the type `python`, in bytes.
const MAX_SOURCE: usize = 256 << 10;
const MAX_TAG: usize = 64;

/// What is wrong with a grader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The field, from the grader's own object: `graders.a.operation`.
    pub param: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// A grader.
#[derive(Debug, Clone, PartialEq)]
pub struct Grader {
    /// As its owner calls it.
    pub name: String,
    /// The least score with which an item passes. 1 for graders that say yes or no, and for code without it.
    pub pass_threshold: Option<f64>,
    /// What it does.
    pub kind: Kind,
}

/// What a grader does.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Compares two texts, yes or no.
    StringCheck { input: Template, reference: Template, operation: Operation },
    /// Compares two texts, more or less.
    TextSimilarity {
        input: Template,
        reference: Template,
        metric: Metric,
        /// The embedding model of [`Metric::Cosine`], if named.
        model: Option<String>,
    },
    /// Asks a model for a number.
    ScoreModel {
        model: ModelGrader,
        /// The least and the highest score.
        range: (f64, f64),
    },
    /// Asks a model for one of some labels.
    LabelModel { model: ModelGrader, labels: Vec<String>, passing: Vec<String> },
    /// Runs code, which has a function `grade(sample, item)`.
    Python { source: String },
    /// Combines others.
    Multi { graders: Vec<(String, Grader)>, formula: Expression },
}

/// How a string check compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The same text.
    Equal,
    /// Another text.
    NotEqual,
    /// The input contains the reference.
    Like,
    /// The same, whatever the case.
    LikeAnyCase,
}

/// What a grader is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A reward: any score will do.
    Reward,
    /// A criterion: an item passes or not, so that a grader with other scores than 0 and 1 needs a threshold.
    Criterion,
}

impl Operation {
    /// Returns true if `input` passes.
    pub fn holds(self, input: &str, reference: &str) -> bool {
        match self {
            Self::Equal => input == reference,
            Self::NotEqual => input != reference,
            Self::Like => input.contains(reference),
            Self::LikeAnyCase => input.to_lowercase().contains(&reference.to_lowercase()),
        }
    }
}

impl Grader {
    /// Reads a grader.
    pub fn parse(value: &Value, purpose: Purpose) -> Result<Self, Fault> {
        read(&Fields::of(value, "")?, purpose, false)
    }

    /// Returns the type as clients write it.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::StringCheck { .. } => "string_check",
            Kind::TextSimilarity { .. } => "text_similarity",
            Kind::ScoreModel { .. } => "score_model",
            Kind::LabelModel { .. } => "label_model",
            Kind::Python { .. } => "python",
            Kind::Multi { .. } => "multi",
        }
    }

    /// Returns true if an item with this score passes.
    pub fn passes(&self, score: f64) -> bool {
        score >= self.pass_threshold.unwrap_or(1.0)
    }

    /// Returns the models that it asks by name, each with the field that names it.
    pub fn models(&self) -> Vec<(String, &str)> {
        match &self.kind {
            Kind::ScoreModel { model, .. } | Kind::LabelModel { model, .. } => {
                vec![("model".into(), model.model.as_str())]
            }
            Kind::TextSimilarity { model: Some(model), .. } => vec![("model".into(), model.as_str())],
            Kind::Multi { graders, .. } => {
                let models = graders.iter().flat_map(|(name, grader)| {
                    grader.models().into_iter().map(move |(param, model)| (format!("graders.{name}.{param}"), model))
                });
                models.collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns the code that it runs, each with the field that has it.
    pub fn sources(&self) -> Vec<(String, &str)> {
        match &self.kind {
            Kind::Python { source } => vec![("source".into(), source)],
            Kind::Multi { graders, .. } => {
                let sources = graders.iter().flat_map(|(name, grader)| {
                    grader.sources().into_iter().map(move |(param, source)| (format!("graders.{name}.{param}"), source))
                });
                sources.collect()
            }
            _ => Vec::new(),
        }
    }

    /// True if the model in this field, one of [`Self::models`], is to make embeddings.
    pub fn embeds_with(&self, field: &str) -> bool {
        match &self.kind {
            Kind::TextSimilarity { .. } => true,
            Kind::Multi { graders, .. } => {
                let is_of = |name: &str| field.strip_prefix("graders.").and_then(|rest| rest.strip_prefix(name));
                graders.iter().any(|(name, grader)| is_of(name) == Some(".model") && grader.embeds_with("model"))
            }
            _ => false,
        }
    }

    /// True if it compares embeddings.
    pub fn needs_embeddings(&self) -> bool {
        match &self.kind {
            Kind::TextSimilarity { metric, .. } => *metric == Metric::Cosine,
            Kind::Multi { graders, .. } => graders.iter().any(|(_, grader)| grader.needs_embeddings()),
            _ => false,
        }
    }
}

fn read(fields: &Fields<'_>, purpose: Purpose, is_part: bool) -> Result<Grader, Fault> {
    let kind = fields.text("type")?;
    let own: &[&str] = match kind {
        "string_check" => &["input", "reference", "operation"],
        "text_similarity" => &["input", "reference", "evaluation_metric", "model"],
        "score_model" => &["model", "input", "range", "sampling_params"],
        "label_model" => &["model", "input", "labels", "passing_labels", "sampling_params"],
        "multi" if is_part => return Err(fields.refusal("type", "A 'multi' grader cannot be a part of another one.")),
        "multi" => &["graders", "calculate_output"],
        "python" => &["source", "image_tag"],
        other => {
            let message = format!(
                "'{other}' is not a type of graders: use string_check, text_similarity, score_model, label_model, python or \
                 multi."
            );
            return Err(fields.refusal("type", &message));
        }
    };
    fields.check_known(kind, own)?;
    let name = fields.text("name")?.to_owned();
    let read_kind = match kind {
        "string_check" => string_check(fields)?,
        "text_similarity" => text_similarity(fields)?,
        "score_model" => score_model(fields)?,
        "label_model" => label_model(fields)?,
        "python" => python(fields)?,
        _ => multi(fields)?,
    };
    let pass_threshold = fields.number("pass_threshold")?;
    let says_yes_or_no = matches!(read_kind, Kind::StringCheck { .. } | Kind::LabelModel { .. });
    if says_yes_or_no && pass_threshold.is_some() {
        return Err(
            fields.refusal("pass_threshold", &format!("A {kind} grader passes or not: it has no 'pass_threshold'."))
        );
    }
    let needs_threshold = !says_yes_or_no && !matches!(read_kind, Kind::Python { .. });
    if purpose == Purpose::Criterion && !is_part && needs_threshold && pass_threshold.is_none() {
        let message = format!("A {kind} grader needs a 'pass_threshold': the least score with which an item passes.");
        return Err(fields.refusal("pass_threshold", &message));
    }
    Ok(Grader { name, pass_threshold, kind: read_kind })
}

fn string_check(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let operation = match fields.text("operation")? {
        "eq" => Operation::Equal,
        "ne" | "neq" => Operation::NotEqual,
        "like" => Operation::Like,
        "ilike" => Operation::LikeAnyCase,
        other => {
            return Err(
                fields.refusal("operation", &format!("'{other}' is not an operation: use eq, ne, like or ilike."))
            );
        }
    };
    Ok(Kind::StringCheck { input: fields.template("input")?, reference: fields.template("reference")?, operation })
}

fn text_similarity(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let name = fields.text("evaluation_metric")?;
    let metric: Metric = serde_json::from_value(name.into()).map_err(|_| {
        let message = format!(
            "'{name}' is not a metric: use fuzzy_match, bleu, gleu, meteor, cosine, rouge_1 to rouge_5 or rouge_l."
        );
        fields.refusal("evaluation_metric", &message)
    })?;
    let model = fields.optional_text("model")?.map(str::to_owned);
    if model.is_some() && metric != Metric::Cosine {
        return Err(
            fields.refusal("model", "Only the metric 'cosine' has a 'model': the one that makes the embeddings.")
        );
    }
    Ok(Kind::TextSimilarity {
        input: fields.template("input")?,
        reference: fields.template("reference")?,
        metric,
        model,
    })
}

fn score_model(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let wrong = || fields.refusal("range", "'range' must be two numbers, the lower one first.");
    let range = match fields.get("range") {
        None => (0.0, 1.0),
        Some(value) => {
            let numbers: Option<Vec<f64>> =
                value.as_array().and_then(|numbers| numbers.iter().map(Value::as_f64).collect());
            match numbers.as_deref() {
                Some(&[low, high]) if low < high => (low, high),
                _ => return Err(wrong()),
            }
        }
    };
    Ok(Kind::ScoreModel { model: ModelGrader::read(fields)?, range })
}

fn label_model(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let (labels, passing) = (fields.texts("labels")?, fields.texts("passing_labels")?);
    if let Some(stranger) = passing.iter().find(|label| !labels.contains(label)) {
        let message = format!("'{stranger}' is not one of the 'labels'.");
        return Err(fields.refusal("passing_labels", &message));
    }
    Ok(Kind::LabelModel { model: ModelGrader::read(fields)?, labels, passing })
}

fn python(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let source = fields.text("source")?;
    if source.len() > MAX_SOURCE {
        return Err(fields.refusal("source", &format!("A source has {MAX_SOURCE} bytes at the most.")));
    }
    if source.contains('\0') {
        return Err(fields.refusal("source", "A source has no characters of the code 0."));
    }
    // Names a set of libraries over there. It is given back as it came; here the operator's interpreter has its own.
    if fields.optional_text("image_tag")?.is_some_and(|tag| tag.contains('\0') || tag.len() > MAX_TAG) {
        return Err(fields.refusal("image_tag", &format!("'image_tag' has {MAX_TAG} bytes at the most.")));
    }
    Ok(Kind::Python { source: source.to_owned() })
}

/// Returns the field of the first grader of the type `python` in what may be a grader; `None` without one.
pub fn python_field(value: &Value) -> Option<String> {
    let is_python = |grader: &Value| grader.get("type").is_some_and(|kind| kind == "python");
    if is_python(value) {
        return Some("type".into());
    }
    let name = match value.get("graders")? {
        Value::Array(parts) => {
            let part = parts.iter().find(|part| is_python(part))?;
            part.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        Value::Object(parts) if parts.get("type").is_some_and(Value::is_string) => {
            let part = value.get("graders").filter(|part| is_python(part))?;
            part.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        Value::Object(parts) => parts.iter().find(|(_, part)| is_python(part))?.0.clone(),
        _ => return None,
    };
    Some(format!("graders.{name}.type"))
}

/// Reads a grader of graders, which come as a map from names, as a list, or as one.
fn multi(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let graders = fields.required("graders")?;
    let named = |grader: &Value| grader.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let parts: Vec<(String, &Value)> = match graders {
        Value::Array(graders) => graders.iter().map(|grader| (named(grader), grader)).collect(),
        Value::Object(grader) if grader.get("type").is_some_and(Value::is_string) => vec![(named(graders), graders)],
        Value::Object(graders) => graders.iter().map(|(name, grader)| (name.clone(), grader)).collect(),
        _ => return Err(fields.refusal("graders", "'graders' must be an object of graders by their names.")),
    };
    if parts.is_empty() || parts.len() > MAX_PARTS {
        return Err(fields.refusal("graders", &format!("A 'multi' grader has 1 to {MAX_PARTS} graders.")));
    }
    let mut read_parts: Vec<(String, Grader)> = Vec::new();
    for (name, grader) in parts {
        if !is_name(&name) {
            let message = format!("'{name}' cannot stand in a formula: use letters, digits and '_' alone.");
            return Err(fields.refusal("graders", &message));
        }
        if read_parts.iter().any(|(other, _)| *other == name) {
            return Err(fields.refusal("graders", &format!("Two graders have the name '{name}'.")));
        }
        let part = read(&Fields::of(grader, &fields.path(&format!("graders.{name}")))?, Purpose::Reward, true)?;
        read_parts.push((name, part));
    }
    let written = fields.text("calculate_output")?;
    let formula = Expression::parse(written).map_err(|fault| fields.refusal("calculate_output", &fault.to_string()))?;
    if let Some(stranger) = formula.names().into_iter().find(|name| read_parts.iter().all(|(other, _)| other != name)) {
        let known: Vec<String> = read_parts.iter().map(|(name, _)| format!("'{name}'")).collect();
        let message = format!("The formula uses '{stranger}', which is no grader: there is {}.", known.join(", "));
        return Err(fields.refusal("calculate_output", &message));
    }
    Ok(Kind::Multi { graders: read_parts, formula })
}

/// Returns a grader in the form that it is given back in: operations by their first name.
pub fn normalized(grader: &Value) -> Value {
    let mut grader = grader.clone();
    let rename = |object: &mut Map<String, Value>| {
        if object.get("operation").is_some_and(|operation| operation == "neq") {
            object.insert("operation".into(), "ne".into());
        }
    };
    if let Some(object) = grader.as_object_mut() {
        rename(object);
        match object.get_mut("graders") {
            Some(Value::Array(parts)) => parts.iter_mut().filter_map(Value::as_object_mut).for_each(rename),
            Some(Value::Object(parts)) => {
                rename(parts);
                parts.values_mut().filter_map(Value::as_object_mut).for_each(rename);
            }
            _ => {}
        }
    }
    grader
}
