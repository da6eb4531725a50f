//! `POST /embeddings`: one unit vector for each input.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::foreign_fields::{KnownBody, Route, RouteBody};
use crate::api::generation::foreign_tokens;
use crate::api::generation::input::{Input, Item};
use crate::api::generation::room::{Room, too_many_tokens};
use crate::api::generation::target::{Target, count_tokens};
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::values;
use crate::engine;
use crate::engine::EmbedRequest;

/// Largest number of tokens of all inputs of one request together.
const MAX_TOKENS: usize = 300_000;

/// A request for embeddings.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    /// A base model or a fine-tuned one.
    pub model: String,
    /// One or many inputs, as text or as token ids; under an alias `text-embedding-…` the ids are those of
    /// `cl100k_base`.
    pub input: Input,
    /// The form of the vectors.
    pub encoding_format: Option<EncodingFormat>,
    /// Only the model's own width is accepted.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub dimensions: Option<usize>,
}

/// The form of the vectors.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    /// JSON numbers.
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats.
    Base64,
}

/// The vectors, in the order of the inputs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingList {
    /// Always `list`.
    pub object: &'static str,
    /// One entry for each input.
    pub data: Vec<Embedding>,
    /// The model as asked for.
    pub model: String,
    /// Tokens used.
    pub usage: EmbeddingUsage,
}

/// The vector of one input.
#[expect(clippy::struct_field_names, reason = "the contract's names")]
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    /// Always `embedding`.
    pub object: &'static str,
    /// The number of the input.
    pub index: usize,
    /// The vector, of length 1.
    pub embedding: Vector,
}

/// A vector as numbers or as base64.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian 32-bit floats.
    Base64(String),
}

/// Tokens of the inputs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

/// Turn texts into vectors
#[utoipa::path(
    post, path = "/embeddings", operation_id = "createEmbedding", tag = "Embeddings",
    request_body = EmbeddingRequest,
    responses(
        (status = 200, body = EmbeddingList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    KnownBody(request): KnownBody<EmbeddingRequest>,
) -> Result<Json<EmbeddingList>, Problem> {
    let target = Target::resolve(&state, &caller, share, &request.model).await?;
    check_dimensions(request.dimensions, target.model().config.hidden_size)?;
    let items = request.input.into_items("input", state.config.limits.max_inputs)?;
    let items = foreign_tokens::own_items(&state.catalog, &target.share, &request.model, items).await?;
    check_not_empty(&items)?;
    let room = Room { all: MAX_TOKENS, ..target.room() };
    let inputs = target.encode_items("input", items, room).await?;
    let tokens = check_lengths(&inputs, target.context())?;
    let mut charge = target.account.charge(tokens)?;
    charge.owe();
    let organization = target.account.organization().clone();
    let embed = EmbedRequest::of_texts(organization, inputs, target.adapter.clone());
    let vectors = match target.base.backend.embed(embed).await {
        Ok(vectors) => vectors,
        Err(error) => {
            charge.waive();
            return Err(error.into());
        }
    };
    count_tokens(&target.model().id, "embedding", tokens);
    let format = request.encoding_format.unwrap_or_default();
    let data = vectors.into_iter().enumerate().map(|(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: format.write(vector),
    });
    Ok(Json(EmbeddingList {
        object: "list",
        data: data.collect(),
        model: request.model,
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
    }))
}

impl RouteBody for EmbeddingRequest {
    const ROUTE: Route = Route::Embeddings;
}

impl EncodingFormat {
    fn write(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Float(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

fn check_dimensions(dimensions: Option<usize>, native: usize) -> Result<()> {
    match dimensions {
        Some(asked) if asked != native => {
            let message = format!("'dimensions' must be {native} for this model, or left out; {asked} was asked for.");
            Err(Problem::invalid_code("dimensions", "invalid_value", message))
        }
        _ => Ok(()),
    }
}

fn check_not_empty(items: &[Item]) -> Result<()> {
    let empty = items.iter().position(|item| matches!(item, Item::Text(text) if text.is_empty()));
    match empty {
        Some(index) => {
            let message = format!("'input' must not hold an empty text; the text number {index} (from 0) is empty.");
            Err(Problem::invalid_code("input", "invalid_value", message))
        }
        None => Ok(()),
    }
}

/// Returns the number of tokens of all inputs. Inputs that do not fit are refused by the field's name, before anything
/// is charged, rather than cut off silently. The engine checks each length again, for its own sake.
fn check_lengths(inputs: &[Vec<u32>], limit: usize) -> Result<usize> {
    if inputs.iter().any(Vec::is_empty) {
        return Err(Problem::invalid("input", "'input' holds a text without any token."));
    }
    if let Some(long) = inputs.iter().find(|input| input.len() > limit) {
        return Err(engine::Error::ContextLength { limit, prompt: long.len(), completion: 0 }.into());
    }
    let tokens = inputs.iter().map(Vec::len).sum();
    if tokens > MAX_TOKENS {
        return Err(too_many_tokens("input", tokens, MAX_TOKENS));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    #[test]
    fn base64_is_little_endian_float32() {
        let vector = vec![0.5, -1.0, 2.0];
        assert_eq!(EncodingFormat::Base64.write(vector.clone()), Vector::Base64("AAAAPwAAgL8AAABA".into()));
        let numbers = serde_json::to_string(&EncodingFormat::Float.write(vector)).expect("JSON");
        assert_eq!(numbers, "[0.5,-1.0,2.0]");
    }

    #[test]
    fn the_models_own_width_is_the_only_one() {
        assert!(check_dimensions(None, 64).is_ok() && check_dimensions(Some(64), 64).is_ok());
        assert!(check_dimensions(Some(32), 64).is_err());
    }

    #[test]
    fn empty_and_long_inputs_are_refused() {
        assert!(check_not_empty(&[Item::Text("a".into()), Item::Text(String::new())]).is_err());
        assert_eq!(check_lengths(&[vec![1, 2], vec![3]], 2).expect("fits"), 3);
        let too_long = check_lengths(&[vec![1, 2, 3]], 2).expect_err("three tokens where two fit");
        assert!(too_long.is_context_length() && too_long.error.message.contains("(3 in the prompt"), "{too_long:?}");
        assert!(check_lengths(&vec![vec![1; 300]; 1001], 512).is_err());
    }

    #[test]
    fn an_unknown_encoding_is_refused_by_name() {
        let problem = parse::<EmbeddingRequest>(br#"{"model":"m","input":"a","encoding_format":"int8"}"#)
            .expect_err("no such encoding");
        assert_eq!(problem.error.param.as_deref(), Some("encoding_format"));
    }
}
