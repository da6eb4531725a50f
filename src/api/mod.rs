//! HTTP and nothing else. [`routes`] is the one list of routes; it yields the `OpenAPI` document too. A file per resource
//! holds its bodies and handlers; `error` is the one table from failure to status.
//!
//! `app` builds the [`ApiState`] and runs the [`router`]; handlers call `engine`, `jobs` and `store`.

mod auth;
mod chat;
mod completions;
mod docs;
mod embeddings;
mod error;
mod event_stream;
mod extract;
mod files;
mod fine_tunes;
mod fine_tuning_jobs;
mod generate;
mod health;
mod job_rules;
mod list;
mod models;
mod sse;
mod target;
mod transport;
mod upload;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::adapters::registry::AdapterRegistry;
use crate::api::auth::Keys;
use crate::config::Config;
use crate::engine::catalog::Catalog;
use crate::jobs::queue::Queue;
use crate::store::Store;
use crate::{Error, Result};

pub use health::record_metrics;

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// Limits, keys and the owner of what is made.
    pub config: Arc<Config>,
    /// The base models.
    pub catalog: Catalog,
    /// From names to adapters.
    pub registry: AdapterRegistry,
    /// Files and models.
    pub store: Store,
    /// Fine-tune jobs.
    pub queue: Queue,
    /// Cancelled when the server stops: long streams end.
    pub shutdown: CancellationToken,
}

/// All routes, each under `/v1` and at the root.
fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(completions::create))
        .routes(routes!(chat::create))
        .routes(routes!(embeddings::create))
        // Models.
        .routes(routes!(models::list))
        .merge(documented(routes!(models::retrieve, models::delete)))
        .merge(documented(routes!(models::download)))
        .route("/models/{*model}", get(models::get).delete(models::delete))
        // Files; an upload has a limit of its own.
        .routes(routes!(files::create, files::list).layer(DefaultBodyLimit::disable()))
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(files::content))
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
        .routes(routes!(fine_tuning_jobs::retrieve))
        .routes(routes!(fine_tuning_jobs::cancel))
        .routes(routes!(fine_tuning_jobs::pause))
        .routes(routes!(fine_tuning_jobs::resume))
        .routes(routes!(fine_tuning_jobs::events))
        .routes(routes!(fine_tuning_jobs::checkpoints))
}

/// Routes at the root only, open without a key.
fn open_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(health::health)).routes(routes!(health::ready)).routes(routes!(health::metrics))
}

/// Only the description of routes whose path is wider than it reads: a model's name may hold slashes.
fn documented(routes: UtoipaMethodRouter<ApiState>) -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(OpenApiRouter::new().routes(routes).into_openapi())
}

fn all_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(docs::frame()).nest("/v1", routes()).merge(open_routes())
}

/// The `OpenAPI` document.
pub fn document() -> OpenApi {
    all_routes().into_openapi()
}

/// The `OpenAPI` document as it is committed.
pub fn document_text() -> Result<String> {
    let text = document().to_pretty_json();
    Ok(text.map_err(|error| Error::Internal(format!("write the OpenAPI document: {error}")))? + "\n")
}

/// The server's routes with everything around them.
pub fn router(state: ApiState) -> Router {
    let keys = Keys::new(&state.config);
    let open = keys.is_open();
    let (at_root, _) = routes().split_for_parts();
    let guarded = Router::new()
        .nest("/v1", at_root.clone())
        .merge(at_root)
        .layer(DefaultBodyLimit::max(state.config.limits.max_body_bytes))
        .layer(from_fn_with_state(keys, auth::authenticate));
    let (unguarded, _) = open_routes().split_for_parts();
    let routes = guarded.merge(unguarded).with_state(state).merge(docs::routes(document()));
    transport::dress(routes, open)
}
