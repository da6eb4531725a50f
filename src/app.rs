//! Builds everything once and runs it: database, models, engines, queue, worker, HTTP. Called by `main` and by tests.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::adapters::registry::AdapterRegistry;
use crate::api::{self, ApiState};
use crate::config::{Config, ModelEntry};
use crate::engine::catalog::{Catalog, CatalogEntry};
use crate::engine::native::NativeEngine;
use crate::engine::priority::Priority;
use crate::jobs::queue::Queue;
use crate::jobs::worker::Worker;
use crate::model::{BaseModel, device};
use crate::store::Store;
use crate::store::key_directory::KeyDirectory;
use crate::store::postgres::PrivatePostgres;
use crate::store::usage_recorder::UsageRecorder;
use crate::{Error, Result};

/// How long requests and the running job may take to end after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// The whole server, built and not yet running.
pub struct App {
    state: ApiState,
    worker: Worker,
    /// Stops when the app drops, after everything that uses it.
    _postgres: Option<PrivatePostgres>,
}

impl App {
    /// Starts the database where it is private, loads the models and starts an engine for each.
    pub async fn build(config: Config) -> Result<Self> {
        api::record_metrics()?;
        let (store, postgres) = open_store(&config).await?;
        config.check_closed(store.has_keys().await?)?;
        let keys = KeyDirectory::open(store.clone()).await?;
        let usage = UsageRecorder::new(store.clone());
        let queue = Queue::open(store.clone()).await?;
        tokio::spawn(sweep(store.clone()));
        let priority = Arc::new(Priority::default());
        let catalog = load_models(&config, &priority).await?;
        let registry = AdapterRegistry::new(store.clone(), catalog.clone());
        let worker = Worker {
            queue: queue.clone(),
            store: store.clone(),
            catalog: catalog.clone(),
            registry: registry.clone(),
            priority,
        };
        let shutdown = CancellationToken::new();
        let state = ApiState { config: Arc::new(config), catalog, registry, store, queue, keys, usage, shutdown };
        Ok(Self { state, worker, _postgres: postgres })
    }

    /// Serves HTTP on `listener`, and runs jobs where the configuration says so, until `shutdown`.
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
        let server = axum::serve(listener, api::router(self.state.clone()))
            .with_graceful_shutdown(shutdown.clone().cancelled_owned())
            .into_future();

        println!("listening on http://{address}");

        let served = bounded("requests", &shutdown, server).await;
        // The listener may have failed on its own; the job must still be put down.
        shutdown.cancel();
        finish(worker).await;
        // After the requests, so that the last batch holds all that they used.
        recorded.cancel();
        if tokio::time::timeout(GRACE, recorder).await.is_err() {
            tracing::error!("the usage of the last second could not be written within {} s", GRACE.as_secs());
        }
        match served {
            Some(result) => result.map_err(Error::io("serve HTTP")),
            None => Ok(()),
        }
    }

    /// Runs jobs only, until `shutdown`.
    pub async fn work(self, shutdown: CancellationToken) {
        let worker = tokio::spawn(self.worker.clone().run(shutdown.clone()));
        shutdown.cancelled().await;
        finish(Some(worker)).await;
    }
}

/// Removes blobs that no row names: what a process left behind that was killed between writing the two.
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

/// The store for a command that may run beside a server on the same data folder: it talks to that server's private Postgres
/// where one runs.
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
    let mut entries = Vec::with_capacity(config.models.len());
    for entry in &config.models {
        let model = load_model(entry.clone(), device.clone()).await?;
        let backend = NativeEngine::start(model.clone(), &config.limits, priority.clone())?;
        entries.push(CatalogEntry { model, backend });
    }
    Ok(Catalog::new(entries))
}

async fn load_model(entry: ModelEntry, device: candle_core::Device) -> Result<Arc<BaseModel>> {
    tracing::info!(model = entry.id, path = %entry.path.display(), "loading");
    let began = std::time::Instant::now();
    let loaded = tokio::task::spawn_blocking(move || BaseModel::load(&entry, &device)).await;
    let model = loaded.map_err(|error| Error::Internal(format!("load a model: {error}")))??;
    tracing::info!(model = model.id, seconds = began.elapsed().as_secs_f64(), "loaded");
    Ok(Arc::new(model))
}

/// Waits for `work`; after `shutdown` no longer than [`GRACE`].
async fn bounded<T>(what: &str, shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        done = work => Some(done),
        () = too_long => {
            tracing::warn!("{what} did not end within {} s and were cut off", GRACE.as_secs());
            None
        }
    }
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
