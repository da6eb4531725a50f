//! HTTP and nothing else. [`routes`](fn@routes) is the one list of routes, and the `OpenAPI` document is made from it.
//! A room per subject has a file per resource with its handlers and bodies; larger resources have a folder of the same
//! name. From the bottom up, each room knows only those before it:
//! - [`http`]: bodies, errors, lists, event streams, and what surrounds all routes;
//! - [`access`]: keys, limits, and the tokens that a request is charged;
//! - [`operations`]: health, usage, files; [`models`]: models, adapters, permissions;
//! - [`generation`]: completions, chat, responses, embeddings, scores, tokens;
//! - [`graders`]: scores of answers; [`evals`]: many answers at a time;
//! - [`distillation`]: a teacher's answers for jobs, collected in the background;
//! - [`fine_tuning`]: jobs and their events, in both forms;
//! - `webhooks`: tells endpoints of what happened;
//! - [`batches`]: files of requests for `generation`, answered in the background;
//! - `background`: work that no connection waits for;
//! - [`ui`]: the page for people, which has a list of routes of its own.
//!
//! `app` builds the [`ApiState`] and runs the [`router`]; handlers call `engine`, `adapters`, `jobs` and `store`.

mod access;
mod background;
mod batches;
mod distillation;
mod evals;
mod fine_tuning;
mod generation;
mod graders;
mod http;
mod models;
mod operations;
mod ui;
mod webhooks;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use self::access::auth;
use self::access::auth::Gate;
use self::access::inside::Inside;
use self::access::shares::share_out;
use self::fine_tuning::{fine_tunes, fine_tuning_jobs};
use self::generation::ranking::{classify, rerank, score};
use self::generation::stored_completions::{self, training_file};
use self::generation::{chat, completions, conversations, embeddings, engines, responses, tokenize};
use self::http::{docs, transport, unread};
use self::models::{adapter_download, aliases, checkpoint_permissions, lora_adapters, model_list, model_resource};
use self::operations::{files, health, uploads, usage};
use crate::adapters::registry::AdapterRegistry;
use crate::config::Config;
use crate::engine::catalog::Catalog;
use crate::jobs::batches::Batches;
use crate::jobs::queue::Queue;
use crate::jobs::worker::estimate::Estimator;
use crate::jobs::worker::pulse::Pulse;
use crate::store::Store;
use crate::store::completion_recorder::CompletionRecorder;
use crate::store::key_directory::KeyDirectory;
use crate::store::response_changes::ResponseChanges;
use crate::store::usage_recorder::UsageRecorder;
use crate::store::work_changes::WorkChanges;
use crate::teachers::Teachers;
use crate::{Error, Result};

pub use self::fine_tuning::event_text::event_text;
pub use self::fine_tuning::fine_tuning_jobs::estimate::show as show_estimate;
pub use self::fine_tuning::fine_tuning_jobs::read_spec;
pub use self::fine_tuning::job_faults::describe_fault;
pub use self::generation::grammars::Grammars;
pub use self::graders::python::PythonGraders;
pub(crate) use self::http::serving::serve;
pub use self::http::share::Resources;
pub use self::operations::health::record_metrics;

/// Lists the routes that need a key, each served under `/v1` and at the root.
fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(completions::create))
        .routes(routes!(chat::create, stored_completions::list))
        .routes(routes!(stored_completions::retrieve, stored_completions::update, stored_completions::delete))
        .routes(routes!(stored_completions::messages))
        // Responses.
        .routes(routes!(responses::create))
        .routes(routes!(responses::count_tokens))
        .routes(routes!(responses::compaction::compact))
        .routes(routes!(responses::stored::retrieve, responses::stored::delete))
        .routes(routes!(responses::stored::cancel))
        .routes(routes!(responses::stored::input_items))
        // Conversations, which responses go on from.
        .routes(routes!(conversations::create))
        .routes(routes!(conversations::retrieve, conversations::update, conversations::delete))
        .routes(routes!(conversations::items::add, conversations::items::list))
        .routes(routes!(conversations::items::retrieve, conversations::items::delete))
        .routes(routes!(embeddings::create))
        // Scores and labels.
        .routes(routes!(rerank::create))
        .routes(routes!(score::create))
        .routes(routes!(classify::create))
        // Models.
        .routes(routes!(model_list::list))
        .merge(documented(routes!(model_resource::retrieve, model_resource::delete)))
        .merge(documented(routes!(adapter_download::download)))
        .route("/models/{*model}", get(adapter_download::get).delete(model_resource::delete))
        .routes(routes!(aliases::list))
        .merge(documented(routes!(aliases::retrieve, aliases::set, aliases::delete)))
        .route("/aliases/{*alias}", get(aliases::retrieve).put(aliases::set).delete(aliases::delete))
        .routes(routes!(lora_adapters::list))
        .routes(routes!(lora_adapters::load))
        .routes(routes!(lora_adapters::unload))
        .routes(routes!(engines::list))
        .merge(documented(routes!(engines::retrieve)))
        .merge(documented(routes!(engines::request)))
        .route("/engines/{*engine}", get(engines::retrieve).post(engines::request))
        // Tokens.
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        // Files; an upload has a limit of its own.
        .routes(routes!(files::create, files::list).layer(DefaultBodyLimit::disable()))
        .routes(routes!(training_file::create))
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(files::content))
        // Files in parts, each of which has a limit of its own.
        .routes(routes!(uploads::create))
        .routes(routes!(uploads::add_part).layer(DefaultBodyLimit::disable()))
        .routes(routes!(uploads::complete))
        .routes(routes!(uploads::cancel))
        // Batches.
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::retrieve))
        .routes(routes!(batches::cancel))
        // Fine-tunes, the older resource.
        .routes(routes!(fine_tunes::create, fine_tunes::list))
        .routes(routes!(fine_tunes::retrieve, fine_tunes::delete))
        .routes(routes!(fine_tunes::cancel))
        .routes(routes!(fine_tunes::events))
        // The same under its old spelling.
        .route("/fine-tunes", post(fine_tunes::create).get(fine_tunes::list))
        .route("/fine-tunes/{fine_tune_id}", get(fine_tunes::retrieve).delete(fine_tunes::delete))
        .route("/fine-tunes/{fine_tune_id}/cancel", post(fine_tunes::cancel))
        .route("/fine-tunes/{fine_tune_id}/events", get(fine_tunes::events))
        // Fine-tuning jobs.
        .routes(routes!(fine_tuning_jobs::create, fine_tuning_jobs::list))
        .routes(routes!(fine_tuning_jobs::estimate::create))
        .routes(routes!(fine_tuning_jobs::retrieve))
        .routes(routes!(fine_tuning_jobs::cancel))
        .routes(routes!(fine_tuning_jobs::pause))
        .routes(routes!(fine_tuning_jobs::resume))
        .routes(routes!(fine_tuning_jobs::events))
        .routes(routes!(fine_tuning_jobs::checkpoints))
        // Graders.
        .routes(routes!(graders::run))
        .routes(routes!(graders::validate))
        // Evals.
        .routes(routes!(evals::create, evals::list))
        .routes(routes!(evals::retrieve, evals::update, evals::delete))
        .routes(routes!(evals::comparison::read))
        .routes(routes!(evals::runs::create, evals::runs::list))
        .routes(routes!(evals::runs::retrieve, evals::runs::cancel, evals::runs::delete))
        .route("/evals/{eval_id}/runs/{run_id}/cancel", post(evals::runs::cancel))
        .routes(routes!(evals::output_items::list))
        .routes(routes!(evals::output_items::retrieve))
        // What was used.
        .routes(routes!(usage::read))
        // Permissions; the one route takes names with slashes.
        .merge(documented(routes!(checkpoint_permissions::list, checkpoint_permissions::create)))
        .merge(documented(routes!(checkpoint_permissions::delete)))
        .route(
            "/fine_tuning/checkpoints/{*path}",
            get(checkpoint_permissions::get).post(checkpoint_permissions::post).delete(checkpoint_permissions::remove),
        )
}

/// Lists the routes of other versions than the first, served under their own prefix only.
fn later_routes() -> Router<ApiState> {
    Router::new().route("/v2/rerank", post(rerank::create_in_second_version))
}

/// Lists the routes that are open without a key, at the root only.
fn open_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(health::health)).routes(routes!(health::ready)).routes(routes!(health::metrics))
}

/// Adds routes to the `OpenAPI` document only. Model names may contain slashes, so the served routes are wildcards.
fn documented(routes: UtoipaMethodRouter<ApiState>) -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(OpenApiRouter::new().routes(routes).into_openapi())
}

/// Returns all routes with the frame of the `OpenAPI` document.
fn all_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(docs::frame()).nest("/v1", routes()).merge(open_routes())
}

/// Returns the `OpenAPI` document.
pub fn document() -> OpenApi {
    all_routes().into_openapi()
}

/// Returns the `OpenAPI` document as the text of `openapi/openapi.json`.
pub fn document_text() -> Result<String> {
    let text = document().to_pretty_json();
    Ok(text.map_err(|error| Error::Internal(format!("write the OpenAPI document: {error}")))? + "\n")
}

/// The state that all handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// The server's configuration: limits, keys, prices.
    pub config: Arc<Config>,
    /// The base models and their engines.
    pub catalog: Catalog,
    /// The adapters, found by name.
    pub registry: AdapterRegistry,
    /// Files, models and usage in the database, and blobs on disk.
    pub store: Store,
    /// The queue of fine-tune jobs.
    pub queue: Queue,
    /// The batches of requests.
    pub batches: Batches,
    /// Tells of responses in the background.
    pub response_changes: ResponseChanges,
    /// Tells of other work in the background.
    pub work: WorkChanges,
    /// Estimates the time and memory of a fine-tune job.
    pub estimator: Estimator,
    /// The API keys in the database.
    pub keys: KeyDirectory,
    /// Tells when the worker of this process last gave a sign of life.
    pub pulse: Pulse,
    /// Records the tokens that requests use.
    pub usage: UsageRecorder,
    /// Writes the answers that clients asked to store.
    pub completions: CompletionRecorder,
    /// Models of other servers.
    pub teachers: Teachers,
    /// Runs the code of graders.
    pub python_graders: PythonGraders,
    /// The grammars of requests.
    pub grammars: Grammars,
    /// The memory and the threads that requests share.
    pub resources: Resources,
    /// Cancelled when the server stops, which ends long streams.
    pub shutdown: CancellationToken,
}

/// Returns the server's routes with the layers around them: keys, limits, body size, logging, CORS; and the page.
pub fn router(state: ApiState) -> Router {
    let gate = Gate::new(&state.config, state.keys.clone(), state.usage.clone());
    let layer = from_fn_with_state(gate.clone(), auth::authenticate);
    let unread = from_fn_with_state(state.config.limits.unread(), unread::watch);
    let inside = inside(state.clone());
    let guard = |guarded| shared(guarded, &state).layer(layer).layer(Extension(inside.clone()));
    let mut routes = assemble(guard).with_state(state.clone());
    if state.config.ui {
        routes = routes.merge(ui::routes(state, gate.clone(), inside));
    }
    // Outside of the layers that hold places and limits for an answer, so that these are let go with it.
    let routes = routes.layer(unread);
    transport::dress(routes.merge(docs::routes(&document())), move || gate.was_open())
}

/// Returns the API's own routes for callers that are known already, under the same limits.
fn inside(state: ApiState) -> Inside {
    let routes = assemble(|guarded| shared(guarded, &state).layer(from_fn(auth::admit)));
    Inside::new(routes.with_state(state))
}

/// Puts the limit of a body's size and the shares of memory and threads around `guarded`.
fn shared(guarded: Router<ApiState>, state: &ApiState) -> Router<ApiState> {
    let max_body = DefaultBodyLimit::max(state.config.limits.max_body_bytes);
    guarded.layer(max_body).layer(from_fn_with_state(state.resources.clone(), share_out))
}

/// Does the work that no connection waits for, until the server stops; then it lets go of what it has begun.
pub async fn work_in_background(state: ApiState) {
    let inside = inside(state.clone());
    background::run(state, inside).await;
}

/// Returns the routes of a worker, for programs that watch it; they need no key.
pub fn worker_router(state: ApiState) -> Router {
    let routes = Router::new()
        .route("/health", get(health::worker_health))
        .route("/ready", get(health::worker_ready))
        .route("/metrics", get(health::metrics));
    transport::dress(routes.with_state(state), || true)
}

/// Returns all routes, both under `/v1` and at the root; `guard` puts the layers around those that need a key.
fn assemble(guard: impl FnOnce(Router<ApiState>) -> Router<ApiState>) -> Router<ApiState> {
    let (routes, _) = routes().split_for_parts();
    let guarded = guard(Router::new().nest("/v1", routes.clone()).merge(routes).merge(later_routes()));
    let (unguarded, _) = open_routes().split_for_parts();
    guarded.merge(unguarded)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn docs(path: &str) -> (u16, String) {
        let routes = transport::dress(docs::routes(&document()), || true);
        let response =
            routes.oneshot(Request::get(path).body(Body::empty()).expect("a request")).await.expect("an answer");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[test]
    fn no_two_routes_have_the_same_path() {
        // The router panics on a conflict.
        drop(assemble(|routes| routes).merge(docs::routes(&document()).with_state(())));
    }

    #[tokio::test]
    async fn the_document_and_the_page_that_shows_it_are_served() {
        let (status, document) = docs("/openapi.json").await;
        assert!(status == 200 && document.contains("createFineTuningJob"), "{status}");
        let (status, page) = docs("/docs/").await;
        assert!(status == 200 && page.contains("swagger-ui"), "{status}");
        let (status, script) = docs("/docs/swagger-initializer.js").await;
        assert!(status == 200 && script.contains("/openapi.json"), "{script}");
    }
}
