//! `POST /score`: a number for each pair of texts, in vLLM's form. Models with a classification head read both texts
//! together; others make a vector of each, whose cosine similarity is the score.

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
use crate::api::generation::generate::body::{new_id, now};
use crate::api::generation::input::Texts;
use crate::api::generation::length::Length;
use crate::api::generation::rows::EmbeddingUsage;
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::values;

const FIRST: &str = "text_1";
const SECOND: &str = "text_2";

/// Pairs of texts: each of the first with the one at its place in the second, or one with all.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ScoreRequest {
    /// A model with a classification head of one label, or one that makes vectors.
    pub model: String,
    /// One text, or as many as the second; also read as `queries`.
    #[serde(alias = "queries")]
    pub text_1: Texts,
    /// One or many texts; also read as `documents`.
    #[serde(alias = "documents")]
    pub text_2: Texts,
    /// Cut texts that have more tokens than this, both of a pair together where the model reads them so; -1 stands for
    /// the most that the model reads.
    #[schema(minimum = -1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub truncate_prompt_tokens: Option<i64>,
}

/// The scores, in the order of the second texts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScoreList {
    /// An id of the answer.
    pub id: String,
    /// Always `list`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// One entry for each pair.
    pub data: Vec<Score>,
    /// Tokens used.
    pub usage: EmbeddingUsage,
}

/// The score of one pair.
#[expect(clippy::struct_field_names, reason = "vLLM's names")]
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Score {
    /// The number of the pair.
    pub index: usize,
    /// Always `score`.
    pub object: &'static str,
    /// How well the texts go together: the higher the better.
    pub score: f32,
}

/// Score pairs of texts
///
/// In vLLM's form; an extension of this server.
#[utoipa::path(
    post, path = "/score", operation_id = "score", tag = "Ranking", request_body = ScoreRequest,
    responses(
        (status = 200, body = ScoreList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    KnownBody(request): KnownBody<ScoreRequest>,
) -> Result<Json<ScoreList>, Problem> {
    let target = Target::resolve(&state, &caller, share, &request.model).await?;
    let limit = state.config.limits.max_inputs;
    let first = request.text_1.into_texts(FIRST, limit)?;
    let second = request.text_2.into_texts(SECOND, limit)?;
    check_counts(first.len(), second.len())?;
    let advice = "set 'truncate_prompt_tokens' to -1";
    let length = Length::of_pairs(target.text_limit(), false, request.truncate_prompt_tokens, advice)?;
    let (scores, usage) = if let Some(form) = score_form(&target)? {
        let scorer = Scorer { first: FIRST, second: SECOND, length, second_limit: usize::MAX };
        scorer.scores(&target, form, pairs(first, second)).await?
    } else {
        let prompt = Prompt::of(&target.model().vectors, None, None)?;
        let first = Side { param: FIRST, texts: first, prompt: prompt.clone(), length };
        likeness::of(&target, first, Side { param: SECOND, texts: second, prompt, length }).await?
    };
    let data = scores.into_iter().enumerate().map(|(index, score)| Score { index, object: "score", score });
    Ok(Json(ScoreList {
        id: new_id("score"),
        object: "list",
        created: now(),
        model: request.model,
        data: data.collect(),
        usage,
    }))
}

/// Refuses texts that make no pairs.
fn check_counts(first: usize, second: usize) -> Result<()> {
    if first == 1 || first == second {
        return Ok(());
    }
    let message = format!(
        "'{FIRST}' has {first} texts and '{SECOND}' {second}: send one text in '{FIRST}' for all of '{SECOND}', or as \
         many as there are in '{SECOND}'."
    );
    Err(Problem::invalid_code(FIRST, "invalid_value", message))
}

fn pairs(first: Vec<String>, second: Vec<String>) -> Vec<Pair> {
    let mut first: Vec<Arc<str>> = first.into_iter().map(Arc::from).collect();
    if let [one] = first.as_slice() {
        first = vec![Arc::clone(one); second.len()];
    }
    first.into_iter().zip(second).map(|(first, second)| Pair { first, second }).collect()
}

impl RouteBody for ScoreRequest {
    const ROUTE: Route = Route::Score;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    #[test]
    fn both_names_of_the_fields_are_read() {
        for fields in [r#""text_1":"a","text_2":["b","c"]"#, r#""queries":"a","documents":["b","c"]"#] {
            let request: ScoreRequest = parse(format!(r#"{{"model":"m",{fields}}}"#).as_bytes()).expect(fields);
            assert_eq!(request.text_1, Texts::One("a".into()));
            assert_eq!(request.text_2, Texts::Many(vec!["b".into(), "c".into()]));
        }
        for (fields, param) in [
            (r#""text_1":"a""#, "text_2"),
            (r#""text_1":"a","text_2":[1]"#, "text_2"),
            (r#""text_1":"a","queries":"a","text_2":"b""#, "text_1"),
        ] {
            let problem = parse::<ScoreRequest>(format!(r#"{{"model":"m",{fields}}}"#).as_bytes()).expect_err(fields);
            assert_eq!(problem.error.param.as_deref(), Some(param), "{fields}: {problem}");
        }
    }

    #[test]
    fn texts_are_paired_one_with_all_or_each_with_its_own() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let paired = |first: &[&str], second: &[&str]| -> Vec<String> {
            check_counts(first.len(), second.len()).expect("they make pairs");
            pairs(texts(first), texts(second)).iter().map(|pair| format!("{}{}", pair.first, pair.second)).collect()
        };
        assert_eq!(paired(&["a"], &["x", "y"]), ["ax", "ay"]);
        assert_eq!(paired(&["a", "b"], &["x", "y"]), ["ax", "by"]);
        for (first, second) in [(2, 1), (2, 3)] {
            assert_eq!(check_counts(first, second).expect_err("no pairs").error.param.as_deref(), Some(FIRST));
        }
    }
}
