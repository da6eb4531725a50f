//! `POST /rerank`: documents, sorted by how well they answer a question. In the forms of Cohere's API, first and second
//! version, and of Jina's.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::likeness::{self, Side};
use super::pairs::{Pair, Scorer, score_form};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::embeddings::prompts::Prompt;
use crate::api::generation::foreign_fields::{KnownBody, Route, RouteBody};
use crate::api::generation::generate::body::new_id;
use crate::api::generation::input::check_count;
use crate::api::generation::length::Length;
use crate::api::generation::rows::EmbeddingUsage;
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::values;
use crate::model::vectors::VectorForm;

/// Documents of a search unit, as Cohere counts them.
const UNIT: usize = 100;

/// A question, and documents that may answer it.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RerankRequest {
    /// A model with a classification head of one label, or one that makes vectors, whose likeness is the score.
    pub model: String,
    /// The question.
    pub query: String,
    /// The documents.
    pub documents: Vec<Document>,
    /// Answer with this many of the best; 0 and null mean all.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "values::optional")]
    pub top_n: Option<usize>,
    /// Send the documents' texts back.
    #[schema(default = false)]
    pub return_documents: Option<bool>,
    /// Read so many tokens of each document at the most.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub max_tokens_per_doc: Option<usize>,
    /// Cut question and document, whichever is longer, where they do not fit the model together; `false` refuses them. A
    /// model that makes vectors reads each alone.
    #[schema(default = true)]
    pub truncation: Option<bool>,
    /// As in vLLM: read so many tokens of question and document together, or of each where the model makes vectors; -1
    /// stands for the most that it reads.
    #[schema(minimum = -1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub truncate_prompt_tokens: Option<i64>,
}

/// A document, as text or as an object with a `text`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an object with a string 'text'")]
pub(crate) enum Document {
    /// The text.
    Text(String),
    /// The text in an object; its other fields are not read.
    Object(DocumentText),
}

/// The text of a document.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub(crate) struct DocumentText {
    /// The text.
    pub text: String,
}

/// The documents by falling score.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Reranking {
    /// An id of the answer.
    pub id: String,
    /// The model as asked for.
    pub model: String,
    /// The best documents, the best one first.
    pub results: Vec<RankedDocument>,
    /// What Cohere's API tells of a request.
    pub meta: RerankMeta,
    /// Tokens used.
    pub usage: EmbeddingUsage,
}

/// A document's score.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct RankedDocument {
    /// The number of the document in the request.
    pub index: usize,
    /// How well it answers the question: the higher the better.
    pub relevance_score: f32,
    /// The document, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
}

/// What Cohere's API tells of a request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RerankMeta {
    /// The form of the answer.
    pub api_version: ApiVersion,
    /// Units that Cohere would count.
    pub billed_units: BilledUnits,
}

/// The form of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ApiVersion {
    /// `1`, or `2` at `/v2/rerank`.
    pub version: &'static str,
}

/// Units that Cohere would count.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BilledUnits {
    /// A question with up to 100 documents.
    pub search_units: usize,
}

/// Sort documents by how well they answer a question
///
/// In the form of Cohere's and Jina's APIs; an extension of this server. It is also served as `/v2/rerank`.
#[utoipa::path(
    post, path = "/rerank", operation_id = "rerank", tag = "Ranking", request_body = RerankRequest,
    responses(
        (status = 200, body = Reranking), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    KnownBody(request): KnownBody<RerankRequest>,
) -> Result<Json<Reranking>, Problem> {
    rerank(&state, &caller, share, request, "1").await
}

/// The same at the path of the second version of Cohere's API.
pub(crate) async fn create_in_second_version(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    KnownBody(request): KnownBody<RerankRequest>,
) -> Result<Json<Reranking>, Problem> {
    rerank(&state, &caller, share, request, "2").await
}

async fn rerank(
    state: &ApiState,
    caller: &Caller,
    share: Share,
    request: RerankRequest,
    version: &'static str,
) -> Result<Json<Reranking>, Problem> {
    let target = Target::resolve(state, caller, share, &request.model).await?;
    let form = score_form(&target)?;
    request.check(state.config.limits.max_inputs)?;
    let scorer = request.scorer(&target)?;
    let texts: Vec<String> = request.documents.into_iter().map(Document::into_text).collect();
    let units = texts.len().div_ceil(UNIT);
    let returned = if request.return_documents == Some(true) { texts.clone() } else { Vec::new() };
    let (scores, usage) = if let Some(form) = form {
        let query: Arc<str> = request.query.into();
        let pairs = texts.into_iter().map(|second| Pair { first: Arc::clone(&query), second });
        scorer.scores(&target, form, pairs.collect()).await?
    } else {
        let [query, documents] = scorer.sides(&target.model().vectors, request.query, texts);
        likeness::of(&target, query, documents).await?
    };
    Ok(Json(Reranking {
        id: new_id("rerank"),
        model: request.model,
        results: rank(&scores, request.top_n, returned),
        meta: RerankMeta { api_version: ApiVersion { version }, billed_units: BilledUnits { search_units: units } },
        usage,
    }))
}

/// Returns the best `top_n` by falling `scores`, equal ones in the order of the request, with their texts if there are.
fn rank(scores: &[f32], top_n: Option<usize>, mut texts: Vec<String>) -> Vec<RankedDocument> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|left, right| scores[*right].total_cmp(&scores[*left]));
    if let Some(most) = top_n.filter(|most| *most > 0) {
        order.truncate(most);
    }
    let ranked = order.into_iter().map(|index| RankedDocument {
        index,
        relevance_score: scores[index],
        document: texts.get_mut(index).map(|text| DocumentText { text: std::mem::take(text) }),
    });
    ranked.collect()
}

impl RouteBody for RerankRequest {
    const ROUTE: Route = Route::Rerank;
}

impl RerankRequest {
    fn check(&self, most: usize) -> Result<()> {
        if self.query.is_empty() {
            return Err(Problem::invalid_code("query", "invalid_value", "'query' must not be empty."));
        }
        if self.max_tokens_per_doc == Some(0) {
            let message = "Invalid 'max_tokens_per_doc': 0 would leave nothing of the documents; send at least 1.";
            return Err(Problem::invalid_code("max_tokens_per_doc", "invalid_value", message));
        }
        check_count("documents", self.documents.len(), most)
    }

    fn scorer(&self, target: &Target) -> Result<Scorer> {
        let is_cut = self.truncation.unwrap_or(true);
        if self.truncation == Some(false) && self.truncate_prompt_tokens.is_some() {
            let message = "'truncate_prompt_tokens' cuts texts, which 'truncation' forbids: leave one of them out.";
            return Err(Problem::invalid_code("truncate_prompt_tokens", "invalid_value", message));
        }
        let advice = "set 'truncation' to true";
        let length = Length::of_pairs(target.text_limit(), is_cut, self.truncate_prompt_tokens, advice)?;
        let second_limit = self.max_tokens_per_doc.unwrap_or(usize::MAX);
        Ok(Scorer { first: "query", second: "documents", length, second_limit })
    }
}

impl Scorer {
    /// Returns the question and the documents for a model that makes vectors in this `form`: with its prompts for both.
    fn sides(self, form: &VectorForm, query: String, documents: Vec<String>) -> [Side; 2] {
        let of_query = Prompt::for_role(form, "query");
        let of_documents = Prompt::for_role(form, "document");
        let shorter = self.second_limit < self.length.limit;
        let length = Length {
            limit: self.length.limit.min(self.second_limit),
            is_cut: self.length.is_cut || shorter,
            ..self.length
        };
        [
            Side { param: self.first, texts: vec![query], prompt: of_query, length: self.length },
            Side { param: self.second, texts: documents, prompt: of_documents, length },
        ]
    }
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object(DocumentText { text }) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    fn read(fields: &str) -> Result<RerankRequest> {
        parse(format!(r#"{{"model":"m",{fields}}}"#).as_bytes())
    }

    #[test]
    fn documents_are_texts_or_objects_with_one() {
        let body = r#""query":"q","documents":["a",{"text":"b","title":"t"}],"top_n":null,"return_documents":null"#;
        let texts: Vec<String> = read(body).expect("fine").documents.into_iter().map(Document::into_text).collect();
        assert_eq!(texts, ["a", "b"]);
        for documents in [r#"["a",3]"#, r#"["a",{"title":"t"}]"#, r#"["a",{"text":null}]"#] {
            let problem = read(&format!(r#""query":"q","documents":{documents}"#)).expect_err(documents);
            assert_eq!(problem.error.param.as_deref(), Some("documents[1]"), "{documents}");
            assert!(problem.error.message.contains("a string 'text'"), "{problem}");
        }
        assert_eq!(read(r#""documents":[]"#).expect_err("no question").error.param.as_deref(), Some("query"));
    }

    #[test]
    fn what_cannot_be_ranked_is_refused_by_name() {
        for (fields, param) in [
            (r#""query":"","documents":["a"]"#, "query"),
            (r#""query":"q","documents":[]"#, "documents"),
            (r#""query":"q","documents":["a","b","c"]"#, "documents"),
            (r#""query":"q","documents":["a"],"max_tokens_per_doc":0"#, "max_tokens_per_doc"),
        ] {
            let problem = read(fields).expect("well formed").check(2).expect_err(fields);
            assert_eq!(problem.error.param.as_deref(), Some(param), "{fields}");
        }
        assert!(
            read(r#""query":"q","documents":["a",""]"#).expect("well formed").check(2).is_ok(),
            "an empty document"
        );
    }

    #[test]
    fn documents_are_sorted_by_score_and_then_by_number() {
        let scores = [0.5, -2.0, 0.75, 0.5, f32::MIN_POSITIVE];
        let order = |top_n| rank(&scores, top_n, Vec::new()).iter().map(|result| result.index).collect::<Vec<_>>();
        assert_eq!(order(None), [2, 0, 3, 4, 1]);
        assert_eq!(order(Some(2)), [2, 0]);
        assert_eq!(order(Some(0)), order(Some(9)), "0 and more than there are mean all");
    }

    #[test]
    fn texts_come_back_where_they_were_asked_for() {
        let result = |texts| serde_json::to_value(rank(&[0.25, 0.5], Some(1), texts)).expect("JSON");
        assert_eq!(result(Vec::new()), serde_json::json!([{"index": 1, "relevance_score": 0.5}]));
        let with_texts = result(vec!["a".into(), "b".into()]);
        assert_eq!(with_texts, serde_json::json!([{"index": 1, "relevance_score": 0.5, "document": {"text": "b"}}]));
    }
}
