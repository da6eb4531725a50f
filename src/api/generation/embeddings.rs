//! `POST /embeddings`: a vector for each input.
//!
//! This file holds the handler and the bodies. [`prompts`] chooses the text that stands before the inputs, [`inputs`] makes
//! tokens of both, [`vectors`] says how the vectors are written.

pub(super) mod inputs;
pub(super) mod prompts;
mod vectors;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::prompts::Prompt;
use self::vectors::{EncodingFormat, Shape, Vector};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::foreign_fields::{KnownBody, Route, RouteBody};
use crate::api::generation::foreign_tokens;
use crate::api::generation::input::Input;
use crate::api::generation::length::{Length, Truncate};
use crate::api::generation::rows::{self, EmbeddingUsage};
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::values;

/// A request for embeddings.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    /// A base model or a fine-tuned one, without a classification head.
    pub model: String,
    /// One or many inputs, as text or as token ids; under an alias `text-embedding-…` the ids are those of
    /// `cl100k_base`.
    pub input: Input,
    /// The form of the vectors.
    pub encoding_format: Option<EncodingFormat>,
    /// Values of a vector: the first ones of the model's own vector, scaled to length 1 if that is. Models that name
    /// the widths that they were trained for have only these.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub dimensions: Option<usize>,
    /// Extension: the name of one of the model's prompts, which stands before each text. Left out, the model's default
    /// prompt does, if it has one.
    pub prompt_name: Option<String>,
    /// Extension: what the texts are, which chooses the prompt: `query` or `search_query`; `document`, `passage`,
    /// `search_document` or `corpus`; `classification`, `clustering`. Models without prompts take it without change.
    pub input_type: Option<String>,
    /// Extension: cut inputs that are too long at their end, rather than to refuse them.
    pub truncate: Option<Truncate>,
    /// Extension: cut inputs that have more tokens than this; -1 stands for the most that the model reads.
    #[schema(minimum = -1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub truncate_prompt_tokens: Option<i64>,
    /// Extension: scale the vectors to length 1, or not. As the model does it if left out.
    pub normalize: Option<bool>,
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
    /// The vector.
    pub embedding: Vector,
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
    target.check_makes_vectors()?;
    let form = &target.model().vectors;
    let shape = Shape::of(form, request.dimensions, request.normalize)?;
    let prompt = Prompt::of(form, request.prompt_name.as_deref(), request.input_type.as_deref())?;
    let length = Length::of(target.text_limit(), request.truncate.as_ref(), request.truncate_prompt_tokens)?;
    let items = request.input.into_items("input", state.config.limits.max_inputs)?;
    let items = foreign_tokens::own_items(target.is_alias, &target.share, &request.model, items).await?;
    let inputs = inputs::read(&target, "input", items, prompt, length).await?;
    let (vectors, usage) = rows::compute(&target, "input", inputs, shape.output).await?;
    let format = request.encoding_format.unwrap_or_default();
    let data = vectors.into_iter().enumerate().map(|(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: format.write(shape.apply(vector)),
    });
    Ok(Json(EmbeddingList { object: "list", data: data.collect(), model: request.model, usage }))
}

impl RouteBody for EmbeddingRequest {
    const ROUTE: Route = Route::Embeddings;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    fn read(field: &str) -> Result<EmbeddingRequest> {
        parse(format!(r#"{{"model":"m","input":"a",{field}}}"#).as_bytes())
    }

    #[test]
    fn a_field_of_the_wrong_form_is_refused_by_name() {
        for (field, param) in [
            (r#""encoding_format":"int8""#, "encoding_format"),
            (r#""dimensions":-1"#, "dimensions"),
            (r#""truncate":3"#, "truncate"),
            (r#""truncate_prompt_tokens":"9""#, "truncate_prompt_tokens"),
            (r#""normalize":1"#, "normalize"),
            (r#""input_type":["query"]"#, "input_type"),
        ] {
            let problem = read(field).expect_err(field);
            assert_eq!(problem.error.param.as_deref(), Some(param), "{field}: {problem}");
        }
    }

    #[test]
    fn extensions_may_be_null() {
        let field = r#""prompt_name":null,"input_type":null,"truncate":null,"normalize":null,"dimensions":null"#;
        let request = read(field).expect("null is as if left out");
        assert!(request.prompt_name.is_none() && request.truncate.is_none() && request.normalize.is_none());
    }
}
