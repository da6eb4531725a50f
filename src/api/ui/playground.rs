//! The playground: one prompt to several models at a time, side by side. This file holds the section and its routes;
//! [`form`] reads what was typed, [`request`] is what the API gets, and the same as code, [`answers`] what it answers,
//! [`parts`] shows all of it. [`texts`] compares texts by their vectors. [`models`] knows names and prices.
//!
//! Without JavaScript the form is answered with a page when all models have. With it, `playground.js` gets the columns
//! empty and asks [`stream`] for each model.

mod answers;
mod form;
pub(super) mod models;
mod parts;
mod request;
mod texts;

use std::time::Instant;

use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use futures::future::join_all;
use maud::{Markup, html};

use self::answers::Outcome;
use self::form::{Ask, FieldFault};
use self::models::Use;
use self::parts::Column;
use self::request::{ApiRequest, server_address};
use crate::api::http::error::{Problem, Result};
use crate::api::http::query::QueryPairs;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::section::Section;
use crate::api::ui::visitor::Visitor;

pub(super) const SECTION: Section = Section { path: "/ui/playground", label: "Playground", admin: false, routes };

/// The page that shows answers side by side, and the one that compares texts.
pub(super) const ANSWERS: &str = SECTION.path;
pub(super) const TEXTS: &str = texts::PATH;

/// Largest form in bytes: a long prompt, in the spelling of forms.
const FORM_BYTES: usize = 1 << 20;
/// The type of what the API gets.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A form as it was sent.
type Sent = Result<Form<Vec<(String, String)>>, FormRejection>;

fn routes() -> Router<Pages> {
    Router::new()
        .route("/ui/playground", get(show).post(answer))
        .route("/ui/playground/go-on", post(go_on))
        .route("/ui/playground/stream", post(stream))
        .route("/ui/playground/texts", get(texts::show).post(texts::compare))
        .layer(DefaultBodyLimit::max(FORM_BYTES))
}

/// Returns the path of one of the two pages with these models chosen.
pub(super) fn path_with(page: &str, models: &[&str]) -> String {
    let names =
        models.iter().map(|name| percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC));
    let pairs: Vec<String> = names.map(|name| format!("model={name}")).collect();
    format!("{page}?{}", pairs.join("&"))
}

/// Returns the pairs of a form.
fn pairs(sent: Sent) -> Result<Vec<(String, String)>, Problem> {
    sent.map(|Form(pairs)| pairs).map_err(|fault| {
        let mut problem = Problem::bad_request(fault.body_text());
        problem.status = fault.status();
        problem
    })
}

/// Asks the API.
async fn call(pages: &Pages, visitor: &Visitor, request: &ApiRequest) -> Result<Response, Problem> {
    pages.inside.call(&visitor.caller, Method::POST, request.path, Some(&JSON), request.json()).await
}

/// Shows the form, with the models that the query names, `?model=…&model=…`, or the first one of the server.
async fn show(State(pages): State<Pages>, visitor: Visitor, QueryPairs(query): QueryPairs) -> Result<Markup, Fault> {
    let named = Ask::read(&query).models;
    whole(&pages, &visitor, Ask { models: named, ..Ask::default() }, None, None).await
}

/// Answers a form: with the whole page, or, for the script, with the columns that it fills.
async fn answer(
    State(pages): State<Pages>,
    visitor: Visitor,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    sent: Sent,
) -> Result<Response, Fault> {
    let pairs = pairs(sent)?;
    let is_for_script = pairs.iter().any(|(name, value)| name == "part" && value == "columns");
    let ask = Ask::read(&pairs);
    let requests = match ask.requests() {
        Ok(requests) => requests,
        Err(fault) if is_for_script => {
            return Ok((StatusCode::BAD_REQUEST, parts::fault_of(Some(&fault))).into_response());
        }
        Err(fault) => {
            let page = whole(&pages, &visitor, ask, Some(&fault), None).await?;
            return Ok((StatusCode::BAD_REQUEST, page).into_response());
        }
    };
    let columns = join_all(requests.into_iter().map(|request| column(&pages, &visitor, request, is_for_script))).await;
    let shown = shown(&pages, &columns, &headers, &uri);
    if is_for_script {
        return Ok(shown.into_response());
    }
    Ok(whole(&pages, &visitor, ask, None, Some(shown)).await?.into_response())
}

/// Asks a model, unless the script will.
async fn column(pages: &Pages, visitor: &Visitor, request: ApiRequest, is_for_script: bool) -> Column {
    let price = models::price(&pages.api, &visitor.caller, request.model()).await;
    let outcome = if is_for_script {
        None
    } else {
        let begun = Instant::now();
        Some(Outcome::read(call(pages, visitor, &request).await, begun).await)
    };
    Column { request, price, outcome }
}

fn shown(pages: &Pages, columns: &[Column], headers: &HeaderMap, uri: &Uri) -> Markup {
    parts::columns(columns, &server_address(headers, uri), &pages.api.config.currency)
}

/// Shows the form again, with an answer taken into it.
async fn go_on(State(pages): State<Pages>, visitor: Visitor, sent: Sent) -> Result<Markup, Fault> {
    let pairs = pairs(sent)?;
    let mut ask = Ask::read(&pairs);
    if let Some((_, answer)) = pairs.iter().find(|(name, _)| name == "keep") {
        ask.keep(&answer.replace("\r\n", "\n"));
    }
    whole(&pages, &visitor, ask, None, None).await
}

/// Streams the answer of the one model that the form names, as the API does, an error object included. It ends when
/// the browser hangs up.
async fn stream(State(pages): State<Pages>, visitor: Visitor, sent: Sent) -> Response {
    match ask_one(&pages, &visitor, sent).await {
        Ok(response) => response,
        Err(problem) => Fault::from(problem).into_json(),
    }
}

async fn ask_one(pages: &Pages, visitor: &Visitor, sent: Sent) -> Result<Response, Problem> {
    let requests = Ask::read(&pairs(sent)?).requests();
    let requests = requests.map_err(|FieldFault { field, message }| Problem::invalid(field, message))?;
    let [request] = <[ApiRequest; 1]>::try_from(requests)
        .map_err(|_| Problem::invalid("model", "One model is asked in a stream."))?;
    call(pages, visitor, &request.streamed()).await
}

/// Returns the page.
async fn whole(
    pages: &Pages,
    visitor: &Visitor,
    mut ask: Ask,
    fault: Option<&FieldFault>,
    answers: Option<Markup>,
) -> Result<Markup, Fault> {
    let offered = models::offered(&pages.api, &visitor.caller, Use::Answers).await?;
    if ask.models.is_empty() && fault.is_none() {
        ask.models.extend(offered.first().cloned());
    }
    let body = html! {
        h1 { "Playground" }
        (parts::pages(SECTION.path))
        @if offered.is_empty() { p { "No model of this server writes answers." } }
        (parts::form(&ask, &offered, fault))
        p.hidden id="told" role="status" aria-live="polite" {}
        div id="answers" { @if let Some(answers) = answers { (answers) } }
    };
    let frame = visitor.frame("Playground", SECTION.path);
    Ok(page(&Frame { scripts: &["playground.js"], ..frame }, body))
}
