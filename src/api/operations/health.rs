//! Health, readiness and metrics, for programs that watch the server. Open without a key.

use std::sync::OnceLock;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::operations::figures::{self, Figures};
use crate::engine::child::standing::Phase;
use crate::store::StorageFault;
use crate::{Error, Result, descriptors};

/// Time after which a database or a disk that does not answer counts as gone.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// Upper bounds in seconds, from a status request to a long completion.
const DURATION_BUCKETS: [f64; 12] = [0.002, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// Upper bounds in seconds, from a step of a small model to the wait in a long queue.
const LATENCY_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
const ROW_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 2048.0];
/// Metrics whose histograms have the bounds [`LATENCY_BUCKETS`].
const LATENCIES: [&str; 3] =
    ["attune_queue_seconds", "attune_time_to_first_token_seconds", "attune_time_between_tokens_seconds"];
/// Time between sorting measurements into buckets: they pile up in memory until then, even if nobody asks for
/// `/metrics`.
const UPKEEP: Duration = Duration::from_secs(5);

/// Handle of the metrics recorder: a process can install one only.
static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`, `ready` or `not ready`.
    pub status: &'static str,
    /// Why the server is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Models of the second engine that do not serve now, because their process is started again; absent if all do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loading: Vec<String>,
}

impl Health {
    fn of(status: &'static str) -> Self {
        Self { status, reason: None, loading: Vec::new() }
    }
}

/// Whether the process is alive
#[utoipa::path(
    get, path = "/health", operation_id = "health", tag = "Operations", security(()),
    responses((status = 200, body = Health)),
)]
pub(crate) async fn health() -> Json<Health> {
    Json(Health::of("ok"))
}

/// Whether requests can be served
///
/// The models are loaded before the server listens, and the loss of one of the second engine's processes, which is started
/// again, concerns its model alone. So this asks the database, whether the data folder takes a small
/// write (once in ten seconds), and whether the GPU was lost.
#[utoipa::path(
    get, path = "/ready", operation_id = "ready", tag = "Operations", security(()),
    responses((status = 200, body = Health), (status = 503, body = Health)),
)]
pub(crate) async fn ready(State(state): State<ApiState>) -> Response {
    let loading = loading(&state);
    match fault(&state).await {
        None => Json(Health { loading, ..Health::of("ready") }).into_response(),
        reason => {
            let health = Health { reason, loading, ..Health::of("not ready") };
            (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
        }
    }
}

/// Returns the models whose process is not ready; the others go on.
fn loading(state: &ApiState) -> Vec<String> {
    let entries = state.catalog.entries().iter();
    let away = entries.filter(|entry| entry.backend.standing().is_some_and(|standing| standing.phase != Phase::Ready));
    away.map(|entry| entry.model.id.clone()).collect()
}

/// Returns why requests cannot be served; `None` if they can.
async fn fault(state: &ApiState) -> Option<&'static str> {
    if state.shutdown.is_cancelled() {
        return Some("The server is stopping.");
    }
    if state.catalog.entries().iter().any(|entry| entry.model.health.is_lost()) {
        return Some("The GPU was lost.");
    }
    let (database, disk) = tokio::join!(
        tokio::time::timeout(READY_TIMEOUT, state.store.is_ready()),
        tokio::time::timeout(READY_TIMEOUT, state.store.check_writable()),
    );
    if !database.unwrap_or(false) {
        return Some("The database does not answer.");
    }
    match disk {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::warn!(%error, "not ready");
            Some(match error.storage_fault() {
                Some(StorageFault::Full) => "The disk of the data folder is full.",
                Some(StorageFault::ReadOnly) => "The data folder can only be read.",
                None => "The data folder cannot be written.",
            })
        }
        Err(_) => Some("The data folder does not answer."),
    }
}

/// Answers whether the worker's loop turns: a busy worker looks every few seconds whether it must stop, one that hangs
/// does not.
pub(crate) async fn worker_health(State(state): State<ApiState>) -> Response {
    if is_stuck(&state) {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(Health::of("stuck"))).into_response();
    }
    health().await.into_response()
}

/// Answers whether the worker can take jobs: as [`ready`], and its loop turns.
pub(crate) async fn worker_ready(state: State<ApiState>) -> Response {
    if is_stuck(&state) { worker_health(state).await } else { ready(state).await }
}

fn is_stuck(state: &ApiState) -> bool {
    state.pulse.silence() > state.config.training.stuck_after()
}

/// Numbers for Prometheus
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "Operations", security(()),
    responses((status = 200, description = "Prometheus text format.", content_type = "text/plain", body = String)),
)]
pub(crate) async fn metrics(State(state): State<ApiState>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], render(&state))
}

/// Returns the metrics as values.
pub(crate) fn figures(state: &ApiState) -> Figures {
    Figures::read(&render(state))
}

/// Returns the metrics as text, those included that are only true at the moment.
fn render(state: &ApiState) -> String {
    state.registry.status().record();
    record_descriptors();
    for entry in state.catalog.entries() {
        if let Some(standing) = entry.backend.standing() {
            standing.record(&entry.model.id);
        }
    }
    if state.config.worker {
        state.pulse.record();
    }
    let text = METRICS.get().map(|metrics| {
        metrics.run_upkeep();
        metrics.render()
    });
    text.unwrap_or_default()
}

/// Records the file descriptors under the names that Prometheus' own libraries give them.
fn record_descriptors() {
    if let (Some(open), Some(most)) = (descriptors::open(), descriptors::limit()) {
        metrics::gauge!("process_open_fds").set(open as f64);
        metrics::gauge!("process_max_fds").set(most as f64);
    }
}

/// Starts to record metrics; a second call changes nothing.
pub fn record_metrics() -> Result<()> {
    if METRICS.get().is_some() {
        return Ok(());
    }
    let fault = |error| Error::Internal(format!("metrics: {error}"));
    let durations = Matcher::Full("attune_http_request_duration_seconds".into());
    let rows = Matcher::Full("attune_step_rows".into());
    let mut builder = PrometheusBuilder::new()
        .set_buckets_for_metric(durations, &DURATION_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(rows, &ROW_BUCKETS))
        .map_err(fault)?;
    for name in LATENCIES {
        let matcher = Matcher::Full(name.into());
        builder = builder.set_buckets_for_metric(matcher, &LATENCY_BUCKETS).map_err(fault)?;
    }
    let recorder = builder.build_recorder();
    let handle = METRICS.get_or_init(|| recorder.handle());
    // Another recorder means another server in this process, or a test's own: its numbers are as good.
    if metrics::set_global_recorder(recorder).is_err() {
        handle.run_upkeep();
    }
    let upkeep = move || {
        loop {
            std::thread::sleep(UPKEEP);
            handle.run_upkeep();
            figures::sample(|| handle.render());
        }
    };
    std::thread::Builder::new().name("metrics".into()).spawn(upkeep).map_err(Error::io("start the metrics' thread"))?;
    Ok(())
}
