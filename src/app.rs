//! Builds everything once and runs it: database, models, engines, queue, worker, HTTP. Called by `main` and by tests.

use std::sync::Arc;
use std::time::Duration;

use axum_server::accept::NoDelayAcceptor;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::adapters::registry::AdapterRegistry;
use crate::api;
use crate::api::ApiState;
use crate::config::Config;
use crate::engine::catalog::{Catalog, CatalogEntry};
use crate::engine::native::NativeEngine;
use crate::engine::priority::Priority;
use crate::jobs::cost::Pricing;
use crate::jobs::queue::Queue;
use crate::jobs::worker::Worker;
use crate::jobs::worker::estimate::Estimator;
use crate::model::entry::ModelEntry;
use crate::model::{BaseModel, device, folder};
use crate::off_thread::off_thread;
use crate::store::Store;
use crate::store::key_directory::KeyDirectory;
use crate::store::postgres::PrivatePostgres;
use crate::store::usage_recorder::UsageRecorder;
use crate::{Error, Result};

/// How long requests and the running job may take to end after a signal.
const GRACE: Duration = Duration::from_secs(10);
/// How long a new connection may take to send its first request. Nothing but a scan or an attack needs longer.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the head of a later request may take, the quiet time between two requests included: longer than the pools
/// of common clients and proxies keep a connection, so that it is the client who closes it.
const HEAD_TIMEOUT: Duration = Duration::from_mins(3);

/// The whole server, built and not yet running.
pub struct App {
    state: ApiState,
    worker: Worker,
    /// Stops when the app drops, after everything that uses it.
    _postgres: Option<PrivatePostgres>,
}

impl App {
    /// Starts the database if it is private, loads the models and starts an engine for each.
    pub async fn build(config: Config) -> Result<Self> {
        api::record_metrics()?;
        // A path that is no model's is told at once, not after a database has been set up.
        for entry in &config.models {
            folder::check(&entry.path)?;
        }
        let (store, postgres) = open_store(&config).await?;
        config.check_closed(store.has_keys().await?)?;
        let keys = KeyDirectory::open(store.clone()).await?;
        let usage = UsageRecorder::new(store.clone());
        let queue = Queue::open(store.clone()).await?;
        if postgres.is_some() {
            // Nobody else uses this database: jobs that its rows call running belonged to a process that was killed.
            let lost = queue.reap_all().await?;
            if lost > 0 {
                tracing::warn!(lost, "took back the jobs of a server that was killed");
            }
        }
        tokio::spawn(sweep(store.clone()));
        let priority = Arc::new(Priority::default());
        let catalog = load_models(&config, &priority).await?;
        let registry = AdapterRegistry::with_limits(store.clone(), catalog.clone(), (&config.limits).into());
        let worker = Worker {
            queue: queue.clone(),
            store: store.clone(),
            catalog: catalog.clone(),
            registry: registry.clone(),
            priority,
            pricing: Pricing::of(&config),
            memory: config.training.memory(),
            describe_fault: api::describe_fault,
        };
        let estimator = Estimator::new(worker.clone());
        let shutdown = CancellationToken::new();
        let state =
            ApiState { config: Arc::new(config), catalog, registry, store, queue, estimator, keys, usage, shutdown };
        Ok(Self { state, worker, _postgres: postgres })
    }

    /// Returns the models that it serves.
    pub fn catalog(&self) -> &Catalog {
        &self.state.catalog
    }

    /// Serves HTTP on `listener`, and runs jobs if the configuration says so, until `shutdown`.
    pub async fn run(mut self, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
        self.state.shutdown = shutdown.clone();
        let address = listener.local_addr().map_err(Error::io("read the address of the server"))?;
        let config = &self.state.config;
        if config.api_keys.is_empty() && !self.state.keys.was_closed() {
            tracing::warn!(
                "there are no API keys: everyone on this machine can use this server (`attune keys create` or api_keys \
                 closes it)"
            );
        }
        let recorded = CancellationToken::new();
        let recorder = tokio::spawn(self.state.usage.clone().run(recorded.clone()));
        let worker = config.worker.then(|| tokio::spawn(self.worker.clone().run(shutdown.clone())));
        let server = serve_http(listener, api::router(self.state.clone()), shutdown.clone())?;

        println!("listening on http://{address}");

        let catalog = self.state.catalog.clone();
        let (mut server, mut lost) = (std::pin::pin!(server), false);
        let served = tokio::select! {
            served = &mut server => served,
            () = catalog.lost_device() => {
                lost = true;
                shutdown.cancel();
                server.await
            }
        };
        // The listener may have failed on its own; the job must still be checkpointed and released.
        shutdown.cancel();
        finish(worker).await;
        // Stopped after the requests, so that the last batch holds all usage.
        recorded.cancel();
        if tokio::time::timeout(GRACE, recorder).await.is_err() {
            tracing::error!("the usage of the last second could not be written within {} s", GRACE.as_secs());
        }
        if lost { Err(lost_device()) } else { served }
    }

    /// Runs jobs only, until `shutdown`.
    pub async fn work(self, shutdown: CancellationToken) -> Result<()> {
        let worker = tokio::spawn(self.worker.clone().run(shutdown.clone()));
        let lost = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            () = self.state.catalog.lost_device() => Err(lost_device()),
        };
        shutdown.cancel();
        finish(Some(worker)).await;
        lost
    }
}

/// Returns the error that ends the process; its supervisor starts it again, and jobs go on.
fn lost_device() -> Error {
    Error::Setup("the GPU does not answer any more; start the server again, jobs go on where they were".into())
}

/// Removes blobs that no row names: a process that was killed between writing blob and row left them.
async fn sweep(store: Store) {
    match store.sweep().await {
        Ok(swept) => tracing::debug!(?swept, "swept the blobs"),
        Err(error) => tracing::warn!(%error, "cannot sweep the blobs"),
    }
}

/// Connects to the configured Postgres, or to a private one that it starts, and applies migrations.
pub async fn open_store(config: &Config) -> Result<(Store, Option<PrivatePostgres>)> {
    let data_dir = &config.data_dir;
    std::fs::create_dir_all(data_dir).map_err(Error::io(format!("make the data folder {}", data_dir.display())))?;
    let postgres = match &config.database_url {
        Some(_) => None,
        None => Some(PrivatePostgres::start(data_dir).await?),
    };
    let url = match (&config.database_url, &postgres) {
        (Some(url), _) => url.as_str(),
        (None, Some(postgres)) => postgres.url(),
        (None, None) => return Err(Error::Internal("no database".into())),
    };
    Ok((Store::connect(url, data_dir).await?, postgres))
}

/// Opens the store for a command that may run beside a server on the same data folder; it shares that server's private
/// Postgres if one runs.
pub async fn open_store_beside(config: &Config) -> Result<(Store, Option<PrivatePostgres>)> {
    let data_dir = &config.data_dir;
    let (url, postgres) = match &config.database_url {
        Some(url) => (url.clone(), None),
        None => PrivatePostgres::attach_or_start(data_dir).await?,
    };
    Ok((Store::connect(&url, data_dir).await?, postgres))
}

async fn load_models(config: &Config, priority: &Arc<Priority>) -> Result<Catalog> {
    let device = device::select(config.device)?;
    let mut models = Vec::with_capacity(config.models.len());
    for entry in &config.models {
        models.push(load_model(entry.clone(), device.clone()).await?);
    }
    let mut limits = config.limits.engine();
    if !device.is_cpu() {
        limits = limits.on_gpu();
        // Only now, with all weights loaded, is it known what they leave of the GPU's memory.
        if let (None, Some(memory)) = (limits.kv_cache_mib, device::free_memory(&device)) {
            limits.kv_cache_mib = Some(device::cache_share(memory, models.len()).max(1));
        }
    }
    let mut entries = Vec::with_capacity(models.len());
    for model in models {
        let backend = NativeEngine::start(model.clone(), &limits, priority.clone())?;
        entries.push(CatalogEntry { model, backend });
    }
    Ok(Catalog::new(entries).with_aliases(config.aliases.clone()))
}

async fn load_model(entry: ModelEntry, device: candle_core::Device) -> Result<Arc<BaseModel>> {
    tracing::info!(model = entry.id, path = %entry.path.display(), "loading");
    let began = std::time::Instant::now();
    let model = off_thread("load a model", move || Ok::<_, Error>(BaseModel::load(&entry, &device)?)).await?;
    tracing::info!(model = model.id, seconds = began.elapsed().as_secs_f64(), "loaded");
    Ok(Arc::new(model))
}

/// Answers requests until `shutdown`, then [`GRACE`] longer for those in flight. Slow and silent connections are
/// closed.
fn serve_http(
    listener: TcpListener,
    routes: axum::Router,
    shutdown: CancellationToken,
) -> Result<impl Future<Output = Result<()>>> {
    let setup = |error| Error::io("set up the listener")(error);
    let listener = listener.into_std().map_err(setup)?;
    let handle = axum_server::Handle::new();
    let mut server = axum_server::from_tcp(listener)
        .map_err(setup)?
        .handle(handle.clone())
        // The events of a stream are small: none may wait for the acknowledgement of the one before.
        .acceptor(NoDelayAcceptor::new())
        .first_request_timeout(FIRST_REQUEST_TIMEOUT);
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    tokio::spawn(async move {
        shutdown.cancelled().await;
        handle.graceful_shutdown(Some(GRACE));
    });
    Ok(async move { server.serve(routes.into_make_service()).await.map_err(Error::io("serve HTTP")) })
}

/// Waits for the worker to checkpoint and release its job.
async fn finish(worker: Option<JoinHandle<()>>) {
    let Some(worker) = worker else { return };
    match tokio::time::timeout(GRACE, worker).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("the worker failed: {error}"),
        Err(_) => {
            tracing::warn!("the running job was not released within {} s; its lease will run out", GRACE.as_secs());
        }
    }
}
