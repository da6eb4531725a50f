//! `/engines`: models under the first name of that resource, and requests that name the model in the path. Old clients
//! call it; each request is passed on to its successor without `/engines`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::handler::Handler as _;
use axum::http::{Method, header};
use axum::response::Response;
use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::chat;
use crate::api::generation::completions;
use crate::api::generation::embeddings;
use crate::api::generation::ranking::{classify, rerank, score};
use crate::api::http::error::{ErrorBody, Problem};
use crate::api::http::extract::{self, Path};
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::query::Query;
use crate::api::models::model_list;
use crate::api::models::model_resource::{self, Model, blame_model};

/// What may be asked of an engine, the longer ends of paths first.
const REQUESTS: [(&str, Handle); 6] = [
    ("chat/completions", |request, state| chat::create.call(request, state)),
    ("completions", |request, state| completions::create.call(request, state)),
    ("embeddings", |request, state| embeddings::create.call(request, state)),
    ("rerank", |request, state| rerank::create.call(request, state)),
    ("score", |request, state| score::create.call(request, state)),
    ("classify", |request, state| classify::create.call(request, state)),
];

/// A handler of another route.
type Handle = fn(Request, ApiState) -> BoxFuture<'static, Response>;

/// A model under its first name.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Engine {
    /// The model's name.
    pub id: String,
    /// Always `engine`.
    pub object: &'static str,
    /// `attune` for base models, else the organisation that trained it.
    pub owner: String,
    /// Always true.
    pub ready: bool,
}

impl From<Model> for Engine {
    fn from(model: Model) -> Self {
        Self { id: model.id, object: "engine", owner: model.owned_by, ready: true }
    }
}

/// List engines
#[utoipa::path(
    get, path = "/engines", operation_id = "listEngines", tag = "Engines", params(Cursor),
    responses((status = 200, body = BoundedPageOf<Engine>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(cursor): Query<Cursor>,
) -> Result<Json<BoundedPageOf<Engine>>, Problem> {
    Ok(Json(model_list::page(&state, &caller, cursor).await?.map(Engine::from)))
}

/// Read an engine
#[utoipa::path(
    get, path = "/engines/{engine}", operation_id = "retrieveEngine", tag = "Engines",
    params(("engine" = String, Path, description = "The model's name; slashes may be raw or encoded.")),
    responses((status = 200, body = Engine), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Engine>, Problem> {
    let model = model_resource::find(&state, &caller, &name).await.map_err(blame_model)?;
    Ok(Json(model.into()))
}

/// Send a request to an engine
///
/// `{request}` is `completions`, `chat/completions`, `embeddings`, `rerank`, `score` or `classify`. The body is that of the
/// route of this name, without `model`.
#[utoipa::path(
    post, path = "/engines/{engine}/{request}", operation_id = "requestEngine", tag = "Engines",
    params(
        ("engine" = String, Path, description = "The model's name; slashes may be raw or encoded."),
        (
            "request" = String, Path,
            description = "`completions`, `chat/completions`, `embeddings`, `rerank`, `score` or `classify`.",
        ),
    ),
    request_body = Object,
    responses((status = 200, description = "As without the engine."), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn request(
    State(state): State<ApiState>,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let Some((engine, handle)) = split(&path) else {
        // A connection whose request is not read to its end is closed, and its client may have sent the next one
        // already.
        extract::read(request, &state, &[], |_| Ok(())).await?;
        return Err(Problem::unknown_url(Method::POST.as_str(), &format!("/engines/{path}")));
    };
    let request = naming(engine, request, &state).await?;
    Ok(handle(request, state).await)
}

/// Splits a path into engine and request. A name may hold slashes, so the end of the path tells the request.
fn split(path: &str) -> Option<(&str, Handle)> {
    let engine = |end: &str| path.strip_suffix(end)?.strip_suffix('/');
    REQUESTS.iter().find_map(|(end, handle)| Some((engine(end)?, *handle)))
}

/// Returns the same request with the engine as the `model` of its body.
async fn naming(engine: &str, request: Request, state: &ApiState) -> Result<Request, Problem> {
    let (mut parts, body) = request.into_parts();
    let engine = engine.to_owned();
    let named = move |bytes: &[u8]| Ok(with_model(&engine, bytes).unwrap_or_else(|| bytes.to_vec()));
    let bytes = extract::read(Request::from_parts(parts.clone(), body), state, &[], named).await?;
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Returns `body` with `model` set to `engine`; `None` if it isn't a JSON object, which the handler reports.
fn with_model(engine: &str, body: &[u8]) -> Option<Vec<u8>> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    fields.insert("model".into(), engine.into());
    serde_json::to_vec(&fields).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_path_tells_the_request() {
        let engine = |path| split(path).map(|(engine, _)| engine);
        assert_eq!(engine("a/b/completions"), Some("a/b"));
        assert_eq!(engine("a/b/chat/completions"), Some("a/b"));
        assert_eq!(engine("a/rerank"), Some("a"));
        assert_eq!([engine("a/search"), engine("score"), engine("a-score")], [None, None, None]);
    }

    #[test]
    fn the_engine_is_the_model_whatever_the_body_names() {
        for body in [r#"{"prompt":"a"}"#, r#"{"model":"b","prompt":"a"}"#, r#"{"model":null,"prompt":"a"}"#] {
            let named: Value =
                serde_json::from_slice(&with_model("x/y", body.as_bytes()).expect("an object")).expect("JSON");
            assert_eq!((&named["model"], &named["prompt"]), (&"x/y".into(), &"a".into()));
        }
        for body in ["", "[]", "{", "3"] {
            assert!(with_model("x", body.as_bytes()).is_none(), "{body}");
        }
    }
}
