//! How similar texts are to models that make vectors: a table of the cosines of a few texts, for each model.

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::future::join_all;
use maud::{Markup, html};
use serde_json::{Map, Value};

use super::answers::{Usage, body};
use super::form::{FieldFault, MOST_MODELS};
use super::models::{self, Use};
use super::request::{ApiRequest, EMBEDDINGS, server_address};
use super::{SECTION, Sent, call, pairs, parts};
use crate::api::http::error::Result;
use crate::api::http::query::QueryPairs;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::visitor::Visitor;
use crate::config::Price;
use crate::format;

pub(super) const PATH: &str = "/ui/playground/texts";

/// Texts at a time: a larger table nobody reads.
const MOST_TEXTS: usize = 12;

/// What the form holds.
#[derive(Debug, Default)]
struct Comparison {
    models: Vec<String>,
    /// A text in each line.
    texts: String,
}

/// The similarities of all pairs of texts, and the tokens that they took.
struct Similarities {
    rows: Vec<Vec<f64>>,
    usage: Usage,
}

impl Comparison {
    fn read(pairs: &[(String, String)]) -> Self {
        let mut comparison = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "model" if !value.trim().is_empty() => comparison.models.push(value.trim().to_owned()),
                "texts" => comparison.texts = value.replace("\r\n", "\n"),
                _ => {}
            }
        }
        comparison
    }

    fn lines(&self) -> Vec<&str> {
        self.texts.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    }

    fn requests(&self) -> Result<Vec<ApiRequest>, FieldFault> {
        let wrong = |field, message: String| Err(FieldFault { field, message });
        let texts = self.lines();
        match (self.models.len(), texts.len()) {
            (0, _) => wrong("model", "Name a model at least.".into()),
            (models, _) if models > MOST_MODELS => {
                wrong("model", format!("{MOST_MODELS} models can be asked at a time, not {models}."))
            }
            (_, 2..=MOST_TEXTS) => {
                let fields = Map::from_iter([("input".to_owned(), texts.into())]);
                Ok(self.models.iter().map(|model| ApiRequest::new(EMBEDDINGS, model, &fields)).collect())
            }
            (_, texts) => wrong("texts", format!("Write 2 to {MOST_TEXTS} texts, each in its own line, not {texts}.")),
        }
    }
}

/// Shows the form, with the models that the query names.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    QueryPairs(query): QueryPairs,
) -> Result<Markup, Fault> {
    let models = Comparison::read(&query).models;
    whole(&pages, &visitor, Comparison { models, ..Comparison::default() }, None, None).await
}

/// Shows the similarities.
pub(super) async fn compare(
    State(pages): State<Pages>,
    visitor: Visitor,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    sent: Sent,
) -> Result<Response, Fault> {
    let comparison = Comparison::read(&pairs(sent)?);
    let requests = match comparison.requests() {
        Ok(requests) => requests,
        Err(fault) => {
            let page = whole(&pages, &visitor, comparison, Some(&fault), None).await?;
            return Ok((StatusCode::BAD_REQUEST, page).into_response());
        }
    };
    let columns =
        join_all(requests.iter().map(|request| column(&pages, &visitor, request, &comparison, (&headers, &uri))));
    let columns = columns.await;
    let tables = html! { div.tables { @for column in &columns { (column) } } };
    Ok(whole(&pages, &visitor, comparison, None, Some(tables)).await?.into_response())
}

async fn column(
    pages: &Pages,
    visitor: &Visitor,
    request: &ApiRequest,
    comparison: &Comparison,
    (headers, uri): (&HeaderMap, &Uri),
) -> Markup {
    let price = models::price(&pages.api, &visitor.caller, request.model()).await;
    let answer = body(call(pages, visitor, request).await).await;
    let similarities =
        answer.and_then(|answer| Similarities::read(&answer).ok_or("The answer holds no vectors.".into()));
    html! {
        section.card {
            h2 { bdi { (request.model()) } }
            @match &similarities {
                Err(message) => p.fault role="alert" { bdi { (message) } },
                Ok(similarities) => (table(similarities, &comparison.lines(), price.as_ref(), &pages.api.config.currency)),
            }
            (parts::code(request, &server_address(headers, uri)))
        }
    }
}

impl Similarities {
    /// Compares the vectors of an answer; `None` if it has none.
    fn read(answer: &Value) -> Option<Self> {
        let vector =
            |item: &Value| item["embedding"].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        let vectors = answer["data"].as_array()?.iter().map(vector).collect::<Option<Vec<_>>>()?;
        let rows = vectors.iter().map(|one| vectors.iter().map(|other| cosine(one, other)).collect()).collect();
        Some(Self { rows, usage: Usage::read(&answer["usage"]) })
    }
}

/// Returns the cosine of two vectors; 0 if one of them is nothing but zeros.
fn cosine(one: &[f64], other: &[f64]) -> f64 {
    let product = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
    let lengths = (product(one, one) * product(other, other)).sqrt();
    if lengths > 0.0 { product(one, other) / lengths } else { 0.0 }
}

fn table(similarities: &Similarities, texts: &[&str], price: Option<&Price>, currency: &str) -> Markup {
    let usage = &similarities.usage;
    html! {
        div.scroll tabindex="0" role="group" aria-label="Table of similarities" {
            table.similarities {
                caption { "Cosine of the vectors: 1 means the same, 0 that they have nothing in common." }
                thead { tr { td {} @for number in 1..=texts.len() { th.number scope="col" { (number) } } } }
                tbody {
                    @for (index, (text, row)) in texts.iter().zip(&similarities.rows).enumerate() {
                        tr {
                            th scope="row" { (index + 1) ". " bdi { (text) } }
                            @for value in row { td class={ "number " (nearness(*value)) } { (format!("{value:.3}")) } }
                        }
                    }
                }
            }
        }
        p.hint {
            (format::count(usage.prompt as f64)) " tokens"
            @if let Some(price) = price { ", " (format::money(usage.cost(price), currency)) }
        }
    }
}

/// Returns the class of a cell, by which its ground is coloured.
fn nearness(cosine: f64) -> &'static str {
    match cosine {
        0.8.. => "near-4",
        0.6.. => "near-3",
        0.4.. => "near-2",
        0.2.. => "near-1",
        _ => "",
    }
}

async fn whole(
    pages: &Pages,
    visitor: &Visitor,
    mut comparison: Comparison,
    fault: Option<&FieldFault>,
    tables: Option<Markup>,
) -> Result<Markup, Fault> {
    let offered = models::offered(&pages.api, &visitor.caller, Use::Vectors).await?;
    if comparison.models.is_empty() && fault.is_none() {
        comparison.models.extend(offered.first().cloned());
    }
    let body = html! {
        h1 { "Similarity of texts" }
        (parts::pages(PATH))
        @if offered.is_empty() { p { "No model of this server makes vectors." } }
        form.card method="post" action=(PATH) {
            (parts::fault_of(fault))
            (parts::model_inputs(&comparison.models, &offered, fault))
            label for="texts" { "Texts" }
            p.hint { "2 to " (MOST_TEXTS) ", each in its own line." }
            (parts::lines("texts", "texts", 6, &comparison.texts, fault))
            p { button type="submit" { "Compare" } }
        }
        @if let Some(tables) = tables { (tables) }
    };
    let frame = visitor.frame("Similarity of texts", SECTION.path);
    Ok(page(&Frame { scripts: &["playground.js"], ..frame }, body))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(models: usize, texts: &str) -> Comparison {
        Comparison { models: vec!["m".into(); models], texts: texts.into() }
    }

    #[test]
    fn lines_are_texts_and_too_many_or_few_are_refused() {
        let requests = read(1, "\na \n\n<script>\n").requests().expect("a request");
        assert_eq!(Value::Object(requests[0].body.clone()), json!({"model": "m", "input": ["a", "<script>"]}));
        for (models, texts, field) in [
            (0, "a\nb".to_owned(), "model"),
            (5, "a\nb".into(), "model"),
            (1, "a".into(), "texts"),
            (1, "a\n".repeat(13), "texts"),
        ] {
            assert_eq!(read(models, &texts).requests().expect_err(field).field, field);
        }
    }

    #[test]
    fn similarities_are_cosines() {
        let answer = json!({
            "data": [{"embedding": [1, 0]}, {"embedding": [2, 0]}, {"embedding": [0, 3]}, {"embedding": [0, 0]}],
            "usage": {"prompt_tokens": 7},
        });
        let similarities = Similarities::read(&answer).expect("vectors");
        assert_eq!(similarities.rows[0], [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(similarities.usage.prompt, 7);
        assert!(Similarities::read(&json!({"data": [{"embedding": "AAA="}]})).is_none());
    }

    #[test]
    fn texts_stay_texts() {
        let similarities = Similarities { rows: vec![vec![1.0]], usage: Usage::default() };
        let markup = table(&similarities, &["<script>alert(1)</script>"], None, "USD").into_string();
        assert!(markup.contains("&lt;script&gt;") && !markup.contains("<script"), "{markup}");
    }
}
