//! `POST /classify`: the label of each text, and how probable each label is. In vLLM's form.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pairs::no_numbers;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::embeddings::inputs;
use crate::api::generation::embeddings::prompts::Prompt;
use crate::api::generation::foreign_fields::{KnownBody, Route, RouteBody};
use crate::api::generation::generate::body::{new_id, now};
use crate::api::generation::input::Input;
use crate::api::generation::length::{Length, Truncate};
use crate::api::generation::rows::{self, EmbeddingUsage};
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::values;
use crate::engine::EmbedOutput;
use crate::model::classifier::ScoreForm;

/// Texts to find the labels of.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ClassifyRequest {
    /// A model with a classification head, or a model fine-tuned on one.
    pub model: String,
    /// One or many texts, as text or as token ids.
    pub input: Input,
    /// Cut texts that are too long at their end, rather than to refuse them.
    pub truncate: Option<Truncate>,
    /// Cut texts that have more tokens than this; -1 stands for the most that the model reads.
    #[schema(minimum = -1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub truncate_prompt_tokens: Option<i64>,
}

/// The labels, in the order of the texts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClassificationList {
    /// An id of the answer.
    pub id: String,
    /// Always `list`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// One entry for each text.
    pub data: Vec<Classification>,
    /// Tokens used.
    pub usage: EmbeddingUsage,
}

/// The label of one text.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct Classification {
    /// The number of the text.
    pub index: usize,
    /// The most probable label.
    pub label: String,
    /// How probable each label is, in the model's order.
    pub probs: Vec<f32>,
    /// How many labels there are.
    pub num_classes: usize,
}

/// Find the labels of texts
///
/// In vLLM's form; an extension of this server.
#[utoipa::path(
    post, path = "/classify", operation_id = "classify", tag = "Ranking", request_body = ClassifyRequest,
    responses(
        (status = 200, body = ClassificationList), (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    KnownBody(request): KnownBody<ClassifyRequest>,
) -> Result<Json<ClassificationList>, Problem> {
    let target = Target::resolve(&state, &caller, share, &request.model).await?;
    let model = target.model();
    let classifier = target.check_classifies()?;
    let length = Length::of(target.text_limit(), request.truncate.as_ref(), request.truncate_prompt_tokens)?;
    let items = request.input.into_items("input", state.config.limits.max_inputs)?;
    let inputs = inputs::read(&target, "input", items, Prompt::default(), length).await?;
    let (rows, usage) = rows::compute(&target, "input", inputs, EmbedOutput::Labels).await?;
    let data = rows
        .iter()
        .enumerate()
        .map(|(index, logits)| classification(index, logits, &classifier.labels).ok_or_else(|| no_numbers(model)));
    Ok(Json(ClassificationList {
        id: new_id("classify"),
        object: "list",
        created: now(),
        data: data.collect::<Result<_>>()?,
        model: request.model,
        usage,
    }))
}

/// Returns the entry of the text number `index`; `None` if there is not a number for each label.
fn classification(index: usize, logits: &[f32], labels: &[String]) -> Option<Classification> {
    if logits.len() != labels.len() {
        return None;
    }
    let probs = probabilities(logits);
    // The first of several that are equal.
    let best = (0..probs.len()).rev().max_by(|left, right| probs[*left].total_cmp(&probs[*right]))?;
    Some(Classification { index, label: labels[best].clone(), num_classes: probs.len(), probs })
}

/// Returns how probable each label is: of several one is right; one alone is right or not.
fn probabilities(logits: &[f32]) -> Vec<f32> {
    if let [logit] = logits {
        return vec![ScoreForm::Sigmoid.of(*logit)];
    }
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|logit| f64::from(logit - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| (weight / sum) as f32).collect()
}

impl RouteBody for ClassifyRequest {
    const ROUTE: Route = Route::Classify;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn one_of_several_labels_is_right() {
        let found = classification(3, &[1.0, 2.0, -1000.0], &labels(&["a", "b", "c"])).expect("a label");
        assert_eq!((found.index, found.label.as_str(), found.num_classes), (3, "b", 3));
        // 1 / (1 + e) and e / (1 + e).
        for (probability, expected) in found.probs.iter().zip([0.268_941_42, 0.731_058_6, 0.0]) {
            assert!((probability - expected).abs() < 1e-6, "{:?}", found.probs);
        }
        let huge = classification(0, &[3e38, -3e38], &labels(&["a", "b"])).expect("a label");
        assert_eq!(huge.probs, [1.0, 0.0]);
    }

    #[test]
    fn of_equal_labels_the_first_is_named() {
        assert_eq!(classification(0, &[0.5, 0.5], &labels(&["a", "b"])).expect("a label").label, "a");
    }

    #[test]
    fn one_label_alone_is_right_or_not() {
        let found = classification(0, &[0.0], &labels(&["relevant"])).expect("a label");
        assert_eq!((found.label.as_str(), found.probs.as_slice()), ("relevant", [0.5].as_slice()));
    }

    #[test]
    fn a_row_of_another_model_has_no_label() {
        assert!(classification(0, &[0.5], &labels(&["a", "b"])).is_none());
        assert!(classification(0, &[], &[]).is_none());
    }
}
