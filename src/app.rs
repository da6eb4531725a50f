//! Builds everything once and runs it: database, models, engines, queue, worker, HTTP. Called by `main` and by tests.

pub(crate) mod by_name;
mod second_engine;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::adapters::registry::AdapterRegistry;
use crate::api;
use crate::api::{ApiState, Grammars, PythonGraders, Resources};
use crate::config::Config;
use crate::descriptors;
use crate::engine::Backend;
use crate::engine::catalog::{Catalog, CatalogEntry};
use crate::engine::encoder::EncoderEngine;
use crate::engine::native::NativeEngine;
use crate::engine::priority::Priority;
use crate::engine::static_engine::StaticEngine;
use crate::jobs::batches::Batches;
use crate::jobs::cost::Pricing;
use crate::jobs::queue::Queue;
use crate::jobs::retention;
use crate::jobs::worker::Worker;
use crate::jobs::worker::estimate::Estimator;
use crate::jobs::worker::pulse::Pulse;
use crate::model::checkpoint::Checkpoint;
use crate::model::entry::ModelEntry;
use crate::model::{BaseModel, device};
use crate::off_thread::off_thread;
use crate::sandbox::Sandbox;
use crate::store::Store;
use crate::store::completion_recorder::CompletionRecorder;
use crate::store::key_directory::KeyDirectory;
use crate::store::names::{is_job_name, is_job_name_of};
use crate::store::postgres::PrivatePostgres;
use crate::store::response_changes::ResponseChanges;
use crate::store::usage_recorder::UsageRecorder;
use crate::store::work_changes::WorkChanges;
use crate::teachers::Teachers;
use crate::{Error, Result, system};

/// Times after a signal, all within the 10 seconds that Docker waits before it kills. Answers that are not complete by
/// then end with an error.
const ANSWERS_GRACE: Duration = Duration::from_secs(4);
/// Connections that are still open by then are cut.
const CONNECTIONS_GRACE: Duration = Duration::from_millis(4500);
/// A running job that is not released by then is left to the end of its lease.
const JOB_GRACE: Duration = Duration::from_secs(6);
/// The last use of requests that is not written by then is lost.
const USAGE_GRACE: Duration = Duration::from_millis(6500);

/// The whole server, built and not yet running.
pub struct App {
    state: ApiState,
    worker: Worker,
    /// Stops when the app drops, after everything that uses it.
    _postgres: Option<PrivatePostgres>,
}

impl App {
    /// Starts the database if it is private, loads the models and starts an engine for each.
    pub async fn build(mut config: Config) -> Result<Self> {
        api::record_metrics()?;
        // Nothing else is started while models are downloaded.
        by_name::resolve(&mut config.models, &by_name::Log::default()).await?;
        // A path that is no model's is told at once, not after a database has been set up.
        for entry in &config.models {
            let checkpoint = Checkpoint::of_entry(entry)?;
            checkpoint.generation(entry, usize::MAX)?;
            second_engine::check(entry, &checkpoint, &config)?;
        }
        system::give_back_freed_memory();
        std::fs::create_dir_all(&config.data_dir)
            .map_err(Error::io(format!("make the data folder {}", config.data_dir.display())))?;
        check_writable(&config.data_dir)?;
        let sandbox = Sandbox::open(&config).await?;
        let (store, postgres) = open_store(&config).await?;
        config.check_closed(store.has_keys().await?)?;
        check_aliases(&config, &store).await?;
        let keys = KeyDirectory::open(store.clone(), config.limits.keys_outage()).await?;
        let usage = UsageRecorder::new(store.clone());
        let completions = CompletionRecorder::new(store.clone());
        let queue = Queue::open(store.clone()).await?;
        let batches = Batches::new(store.clone());
        let response_changes = ResponseChanges::default();
        let work = WorkChanges::open(&store, &response_changes).await?;
        if postgres.is_some() {
            // Nobody else uses this database: jobs that its rows call running belonged to a process that was killed.
            let lost = queue.reap_all().await?;
            if lost > 0 {
                tracing::warn!(lost, "took back the jobs of a server that was killed");
            }
            batches.release_all().await?;
            store.release_eval_runs().await?;
        }
        tokio::spawn(store.clone().keep_swept());
        tokio::spawn(retention::run(store.clone(), config.retention));
        let priority = Arc::new(Priority::default());
        let catalog = load_models(&config, &priority).await?;
        let registry = AdapterRegistry::with_limits(
            store.clone(),
            catalog.clone(),
            (&config.limits).into(),
            Arc::clone(&priority),
        );
        let worker = Worker {
            queue: queue.clone(),
            store: store.clone(),
            catalog: catalog.clone(),
            registry: registry.clone(),
            priority,
            pricing: Pricing::of(&config),
            memory: config.training.memory(&config.limits),
            describe_fault: api::describe_fault,
            pulse: Pulse::default(),
        };
        let estimator = Estimator::new(worker.clone());
        let pulse = worker.pulse.clone();
        let shutdown = CancellationToken::new();
        let grammars = Grammars::new(&config.limits);
        let teachers = Teachers::of(&config)?;
        let python_graders = PythonGraders::new(sandbox, config.graders.at_once);
        let resources = Resources::new(&config.limits);
        let state = ApiState {
            config: Arc::new(config),
            catalog,
            registry,
            store,
            queue,
            batches,
            response_changes,
            work,
            estimator,
            keys,
            grammars,
            resources,
            pulse,
            usage,
            completions,
            teachers,
            python_graders,
            shutdown,
        };
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
        let usage = self.state.usage.clone().run(recorded.clone());
        let completions = self.state.completions.clone().run(recorded.clone());
        let mut recorder = Some(tokio::spawn(async {
            tokio::join!(usage, completions);
        }));
        let mut worker = config.worker.then(|| tokio::spawn(self.worker.clone().run(shutdown.clone())));
        let mut server = Some(self.serve(listener, api::router(self.state.clone()), shutdown.clone()));
        let mut background = Some(tokio::spawn(api::work_in_background(self.state.clone())));
        tokio::spawn(end_answers(self.state.catalog.clone(), shutdown.clone()));
        let job_end = tokio::spawn(after(shutdown.clone(), JOB_GRACE));
        let background_end = tokio::spawn(after(shutdown.clone(), JOB_GRACE));
        let usage_end = tokio::spawn(after(shutdown.clone(), USAGE_GRACE));

        tell_address(address);

        let catalog = &self.state.catalog;
        let fault = tokio::select! {
            () = shutdown.cancelled() => None,
            fault = lost_part(catalog, &mut server, &mut recorder, &mut worker, &mut background) => Some(fault),
        };
        // After a signal the worker may end before the last request.
        let fault = fault.filter(|_| !shutdown.is_cancelled());
        // Whatever was lost, the job must still be checkpointed and released.
        shutdown.cancel();
        finish_server(server).await;
        finish_background(background, background_end).await;
        // Only now, so that the last batch holds all usage.
        recorded.cancel();
        tokio::join!(finish(worker, job_end), finish_usage(recorder, usage_end));
        fault.map_or(Ok(()), Err)
    }

    /// Starts to serve HTTP until `shutdown`, and what runs then some seconds longer.
    fn serve(&self, listener: TcpListener, routes: axum::Router, shutdown: CancellationToken) -> JoinHandle<()> {
        let config = &self.state.config;
        let limits = config.limits.connections(descriptors::limit(), config.database_connections);
        tokio::spawn(api::serve(listener, routes, limits, shutdown, CONNECTIONS_GRACE))
    }

    /// Runs jobs only, until `shutdown`. At `listener` it answers those who watch it.
    pub async fn work(mut self, listener: Option<TcpListener>, shutdown: CancellationToken) -> Result<()> {
        self.state.shutdown = shutdown.clone();
        let mut watched = listener.map(|listener| self.watch(listener, shutdown.clone())).transpose()?;
        let mut worker = Some(tokio::spawn(self.worker.clone().run(shutdown.clone())));
        let job_end = tokio::spawn(after(shutdown.clone(), JOB_GRACE));
        let lost = tokio::select! {
            () = shutdown.cancelled() => None,
            () = self.state.catalog.lost_device() => Some(lost_device()),
            end = ended(&mut watched) => Some(ended_early("the worker's listener", end)),
            end = ended(&mut worker) => Some(ended_early("the worker", end)),
        };
        let lost = lost.filter(|_| !shutdown.is_cancelled());
        shutdown.cancel();
        finish(worker, job_end).await;
        lost.map_or(Ok(()), Err)
    }

    /// Answers those who watch the worker, and returns the task that does.
    fn watch(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<JoinHandle<()>> {
        let address = listener.local_addr().map_err(Error::io("read the address of the worker"))?;
        let server = self.serve(listener, api::worker_router(self.state.clone()), shutdown);
        tell_address(address);
        Ok(server)
    }
}

/// Prints the address, once requests are answered there. Whoever waits for this line may have gone, or be in no hurry
/// to read it.
fn tell_address(address: SocketAddr) {
    tokio::task::spawn_blocking(move || writeln!(std::io::stdout(), "listening on http://{address}"));
}

/// Returns the error that ends the process; its supervisor starts it again, and jobs go on.
fn lost_device() -> Error {
    Error::Setup("the GPU does not answer any more; start the server again, jobs go on where they were".into())
}

/// Waits until the server has lost one of its parts. It must not live on without it: its supervisor starts it again.
async fn lost_part(
    catalog: &Catalog,
    server: &mut Option<JoinHandle<()>>,
    recorder: &mut Option<JoinHandle<()>>,
    worker: &mut Option<JoinHandle<()>>,
    background: &mut Option<JoinHandle<()>>,
) -> Error {
    tokio::select! {
        () = catalog.lost_device() => lost_device(),
        end = ended(server) => ended_early("the server of HTTP", end),
        end = ended(recorder) => ended_early("the recorder of usage", end),
        end = ended(worker) => ended_early("the worker", end),
        end = ended(background) => ended_early("the work in the background", end),
    }
}

/// Waits for the end of a task that should not end, and forgets the task; for ever if there is none.
async fn ended(task: &mut Option<JoinHandle<()>>) -> std::result::Result<(), JoinError> {
    let end = match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    };
    *task = None;
    end
}

/// Returns the error of a task that ended before the server.
fn ended_early(part: &str, ended: std::result::Result<(), JoinError>) -> Error {
    let reason = ended.err().map_or_else(|| "it ended by itself".to_owned(), |error| error.to_string());
    Error::Internal(format!("{part} stopped: {reason}"))
}

/// Refuses an alias that has the name of a model which a job made here: the model could not be reached any more. An
/// adapter that was brought in under a name of the client's choice is hidden instead. Names the aliases of organisations
/// that a base model or an alias of the configuration has taken the name from.
async fn check_aliases(config: &Config, store: &Store) -> Result<()> {
    for (organization, name) in store.job_named_aliases().await? {
        let bases = config.models.iter().map(|model| &model.id).chain(config.aliases.keys());
        if let Some(base) =
            bases.filter(|_| !config.aliases.contains_key(&name)).find(|base| is_job_name_of(&name, base))
        {
            tracing::warn!(
                alias = name,
                organization,
                base,
                "an alias of an organisation stands for nothing while its name has the form of models that jobs on this base \
                 make; the same alias in the configuration would"
            );
        }
    }
    let names: Vec<&str> = config.aliases.keys().map(String::as_str).filter(|alias| is_job_name(alias)).collect();
    if names.is_empty() {
        return Ok(());
    }
    match store.taken_model_names(&names).await?.first() {
        Some(name) => Err(Error::Setup(format!(
            "aliases: `{name}`: a fine-tuned model of this server has this name; remove the alias, or delete the model \
             first"
        ))),
        None => Ok(()),
    }
}

/// Refuses a data folder that this user may not write, such as a folder of root that is mounted into a container.
fn check_writable(data_dir: &Path) -> Result<()> {
    use nix::unistd::{AccessFlags, Gid, Uid, eaccess};
    eaccess(data_dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| {
        let (folder, user, group) = (data_dir.display(), Uid::effective(), Gid::effective());
        Error::Setup(format!(
            "the data folder {folder} cannot be written by user {user} (group {group}): {}. Give it to that user (chown -R \
             {user} {folder}), or choose another with data_dir; in a container a named volume is theirs already",
            error.desc()
        ))
    })
}

/// Connects to the configured Postgres, or to a private one that it starts, and applies migrations.
pub async fn open_store(config: &Config) -> Result<(Store, Option<PrivatePostgres>)> {
    let data_dir = &config.data_dir;
    std::fs::create_dir_all(data_dir).map_err(Error::io(format!("make the data folder {}", data_dir.display())))?;
    check_writable(data_dir)?;
    let postgres = match &config.database_url {
        Some(_) => None,
        None => Some(PrivatePostgres::start(data_dir).await?),
    };
    let url = match (&config.database_url, &postgres) {
        (Some(url), _) => url.as_str(),
        (None, Some(postgres)) => postgres.url(),
        (None, None) => return Err(Error::Internal("no database".into())),
    };
    Ok((Store::connect_with(url, data_dir, config.database_connections).await?, postgres))
}

/// Opens the store for a command that may run beside a server on the same data folder; it shares that server's private
/// Postgres if one runs.
pub async fn open_store_beside(config: &Config) -> Result<(Store, Option<PrivatePostgres>)> {
    let data_dir = &config.data_dir;
    let (url, postgres) = match &config.database_url {
        Some(url) => (url.as_str().to_owned(), None),
        None => PrivatePostgres::attach_or_start(data_dir).await?,
    };
    Ok((Store::connect_with(&url, data_dir, config.database_connections).await?, postgres))
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
    }
    // Only now, with all weights loaded, is it known what they leave of the memory of the GPU, the machine or the
    // container.
    if let (None, Some(mut memory)) = (limits.kv_cache_mib, device::free_memory(&device)) {
        // Weights that another process is going to load.
        let elsewhere = models.iter().zip(&config.models).filter(|(model, _)| model.runs_elsewhere);
        let needed = elsewhere.map(|(model, entry)| second_engine::needed_bytes(entry, &model.path, &device));
        memory.free = memory.free.saturating_sub(needed.sum());
        let share = device::cache_share(memory, models.len()).max(1);
        let room = if device.is_cpu() { share.min(limits.cache_mib()) } else { share };
        tracing::info!(mib = room, "memory for the keys and values of each model");
        limits.kv_cache_mib = Some(room);
    }
    let mut entries = Vec::with_capacity(models.len());
    for (model, entry) in models.into_iter().zip(&config.models) {
        let backend: Arc<dyn Backend> = if model.runs_elsewhere {
            second_engine::start(config, entry, &model, &device, &limits, priority).await?
        } else if model.is_static() {
            Arc::new(StaticEngine::new(model.clone()))
        } else if model.config.is_encoder {
            EncoderEngine::start(model.clone(), &limits, priority)?
        } else {
            NativeEngine::start(model.clone(), &limits, priority.clone())?
        };
        entries.push(CatalogEntry { model, backend });
    }
    Ok(Catalog::new(entries).with_aliases(config.aliases.clone()))
}

async fn load_model(entry: ModelEntry, device: candle_core::Device) -> Result<Arc<BaseModel>> {
    tracing::info!(model = entry.id, path = %entry.path.display(), "loading");
    let began = std::time::Instant::now();
    let load = move || {
        let model = BaseModel::load(&entry, &device)?;
        system::give_back_freed_memory();
        Ok::<_, Error>(model)
    };
    let model = off_thread("load a model", load).await?;
    tracing::info!(model = model.id, seconds = began.elapsed().as_secs_f64(), "loaded");
    log_defaults(&model);
    Ok(Arc::new(model))
}

/// Tells how the model answers where a request does not say, and what its authors want that is not done.
fn log_defaults(model: &BaseModel) {
    let defaults = &model.generation;
    tracing::info!(
        model = model.id,
        temperature = %defaults.temperature,
        top_p = %defaults.top_p,
        top_k = defaults.top_k,
        min_p = %defaults.min_p,
        presence_penalty = %defaults.presence_penalty,
        frequency_penalty = %defaults.frequency_penalty,
        repetition_penalty = %defaults.repetition_penalty,
        max_tokens = defaults.max_tokens,
        from_generation_config = defaults.from_file.join(", "),
        "answers where a request does not say"
    );
    if !defaults.not_applied.is_empty() {
        let settings = defaults.not_applied.join(", ");
        tracing::warn!(model = model.id, settings, "generation_config.json has settings that are not applied");
    }
}

/// Completes `grace` after `shutdown`.
async fn after(shutdown: CancellationToken, grace: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(grace).await;
}

/// Ends the answers that are not complete [`ANSWERS_GRACE`] after `shutdown`: their clients get an error, and their use
/// is recorded, which a cut connection would not give them.
async fn end_answers(catalog: Catalog, shutdown: CancellationToken) {
    after(shutdown, ANSWERS_GRACE).await;
    for entry in catalog.entries() {
        entry.backend.stop();
    }
}

/// Waits for the worker to checkpoint and release its job, until `end` completes.
async fn finish(worker: Option<JoinHandle<()>>, end: JoinHandle<()>) {
    let Some(worker) = worker else { return };
    tokio::select! {
        ended = worker => {
            if let Err(error) = ended {
                tracing::error!("the worker failed: {error}");
            }
        }
        _ = end => {
            tracing::warn!("the running job was not released within {} s; its lease will run out", JOB_GRACE.as_secs());
        }
    }
}

/// Waits for the end of the requests that run.
async fn finish_server(server: Option<JoinHandle<()>>) {
    if let Some(server) = server
        && let Err(error) = server.await
    {
        tracing::error!("the server of HTTP failed: {error}");
    }
}

/// Waits until the work in the background has let go of what it had begun, until `end` completes.
async fn finish_background(background: Option<JoinHandle<()>>, end: JoinHandle<()>) {
    let Some(background) = background else { return };
    tokio::select! {
        ended = background => {
            if let Err(error) = ended {
                tracing::error!("the work in the background failed: {error}");
            }
        }
        _ = end => tracing::warn!("the work in the background did not stop in time; what it had begun is taken up again"),
    }
}

/// Waits for the last batch of usage, until `end` completes.
async fn finish_usage(recorder: Option<JoinHandle<()>>, end: JoinHandle<()>) {
    let Some(recorder) = recorder else { return };
    tokio::select! {
        // It tells what it cannot write.
        _ = recorder => {}
        _ = end => tracing::error!("the usage of the last seconds could not be written, and is lost"),
    }
}
