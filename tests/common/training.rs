//! A queue and workers for tests, with the demo model and a real Postgres. Use beside `common/postgres.rs`, as
//! `#[path = "common/training.rs"] mod training;`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use attune::adapters::registry::AdapterRegistry;
use attune::engine::catalog::{Catalog, CatalogEntry};
use attune::engine::priority::Priority;
use attune::engine::{Backend, EmbedRequest, Event, GenerateRequest};
use attune::engine::{Error, Result};
use attune::jobs::cost::Pricing;
use attune::jobs::queue::{Queue, StopRequest};
use attune::jobs::worker::Worker;
use attune::jobs::worker::pulse::Pulse;
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::model::BaseModel;
use attune::model::entry::ModelEntry;
use attune::store::Store;
use attune::store::files::NewFile;
use attune::train::hyperparameters::Hyperparameters;
use attune::train::memory_bounds::MemoryBounds;
use candle_core::Device;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::postgres::TestDatabase;

pub(crate) const ORG: &str = "acme";
/// Time limit of all waits, far above the time that any of them takes.
const LIMIT: Duration = Duration::from_mins(4);

/// Backend for jobs, which need no engine.
pub(crate) struct NoEngine;

impl Backend for NoEngine {
    fn generate(&self, _: GenerateRequest) -> Result<UnboundedReceiver<Event>> {
        Err(Error::Internal("no engine".into()))
    }

    fn embed(&self, _: EmbedRequest) -> Pin<Box<dyn Future<Output = Result<Vec<Vec<f32>>>> + Send + '_>> {
        Box::pin(async { Err(Error::Internal("no engine".into())) })
    }

    fn stop(&self) {}
}

pub(crate) fn catalog() -> Catalog {
    static MODEL: OnceLock<Arc<BaseModel>> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        Arc::new(BaseModel::load(&ModelEntry::new("demo", path), &Device::Cpu).unwrap())
    });
    Catalog::new(vec![CatalogEntry { model: Arc::clone(model), backend: Arc::new(NoEngine) }])
}

/// A database with a queue; workers are started by the tests.
pub(crate) struct Fixture {
    pub database: TestDatabase,
    pub queue: Queue,
    pub registry: AdapterRegistry,
    /// Memory bounds given to its workers.
    pub memory: MemoryBounds,
}

/// A worker that runs until stopped.
pub(crate) struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap();
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::new().await;
        let queue = Queue::open(database.store.clone()).await.unwrap();
        let registry = AdapterRegistry::new(database.store.clone(), catalog());
        Self { database, queue, registry, memory: MemoryBounds::default() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.database.store
    }

    /// Creates a worker that does not run.
    pub(crate) fn parts(&self) -> Worker {
        self.parts_with(catalog())
    }

    fn parts_with(&self, catalog: Catalog) -> Worker {
        Worker {
            queue: self.queue.clone(),
            store: self.store().clone(),
            catalog,
            registry: self.registry.clone(),
            priority: Arc::new(Priority::default()),
            memory: self.memory,
            describe_fault: attune::api::describe_fault,
            pulse: Pulse::default(),
            pricing: Pricing { currency: "EUR".into(), per_hour: Some(3.6), ..Pricing::default() },
        }
    }

    pub(crate) fn worker(&self) -> Running {
        self.worker_with(catalog())
    }

    /// Runs a worker with models of the test's own.
    pub(crate) fn worker_with(&self, catalog: Catalog) -> Running {
        self.run(self.parts_with(catalog))
    }

    /// Runs a worker of the test's own.
    #[allow(clippy::unused_self, reason = "a worker belongs to a fixture")]
    pub(crate) fn run(&self, worker: Worker) -> Running {
        let shutdown = CancellationToken::new();
        Running { shutdown: shutdown.clone(), task: tokio::spawn(worker.run(shutdown)) }
    }

    pub(crate) async fn upload(&self, content: &str) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let (_, path) = file.keep().unwrap();
        let new = NewFile { organization: ORG.into(), filename: "train.jsonl".into(), purpose: "fine-tune".into() };
        self.store().add_file(new, path).await.unwrap().id
    }

    pub(crate) async fn enqueue(&self, api: JobApi, spec: JobSpec) -> Job {
        self.queue.enqueue(ORG, api, spec).await.unwrap()
    }

    /// Runs a worker up to the middle of a job: its first checkpoint is written.
    pub(crate) async fn begin_training(&self, examples: usize, epochs: u32) -> (Running, Job) {
        let file = self.upload(&tickets(examples)).await;
        let settings = Hyperparameters { n_epochs: Some(epochs), ..spec(file.clone()).hyperparameters };
        let job = self.enqueue(JobApi::FineTunes, JobSpec { hyperparameters: settings, ..spec(file) }).await;
        let worker = self.worker();
        (worker, self.wait(&job, |job| job.checkpoint.is_some()).await)
    }

    /// Pauses the job after its first checkpoint and lets it go on, unless it ends before.
    pub(crate) async fn interrupt(&self, job: &Job) {
        let running = self.wait(job, |job| job.checkpoint.is_some()).await;
        if self.queue.stop(&running, StopRequest::Pause).await.is_ok() {
            let stopped = self.wait(job, |job| job.status == JobStatus::Paused || job.status.is_final()).await;
            if stopped.status == JobStatus::Paused {
                self.queue.resume(&stopped).await.unwrap();
            }
        }
    }

    /// Waits until the job satisfies `wanted`.
    pub(crate) async fn wait(&self, job: &Job, wanted: impl Fn(&Job) -> bool) -> Job {
        let mut changes = self.queue.changes();
        let waiting = async {
            loop {
                let row = self.queue.job(&job.organization, job.api, &job.id).await.unwrap();
                if wanted(&row) {
                    return row;
                }
                // Heartbeats name checkpoints without a notification.
                let _ = tokio::time::timeout(Duration::from_millis(200), changes.recv()).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.expect("the job did not come to the wanted state")
    }

    pub(crate) async fn wait_for(&self, job: &Job, status: JobStatus) -> Job {
        let row = self.wait(job, |row| row.status == status || row.status.is_final()).await;
        assert_eq!(row.status, status, "{:?}", row.error);
        row
    }

    pub(crate) async fn messages(&self, job: &Job) -> Vec<String> {
        self.queue
            .events_after(job, 0, 1000)
            .await
            .unwrap()
            .iter()
            .map(|event| attune::api::event_text(job, event))
            .collect()
    }

    /// Returns the generation that a finished job published.
    pub(crate) async fn generation(&self, job: &Job) -> String {
        let name = job.fine_tuned_model.as_deref().expect("a model");
        self.store().fine_tuned_model(ORG, name).await.unwrap().adapter
    }

    /// Counts the files in a folder of the blobs.
    pub(crate) fn blobs(&self, folder: &str) -> usize {
        fn count(path: &Path) -> usize {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
        }
        count(&self.database.data_dir.path().join("blobs").join(folder))
    }
}

/// Returns lines with tickets from the demo's training file.
pub(crate) fn tickets(count: usize) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/tickets/train.jsonl");
    std::fs::read_to_string(path).unwrap().split_inclusive('\n').take(count).collect()
}

pub(crate) fn spec(training_file: String) -> JobSpec {
    JobSpec {
        model: "demo".into(),
        alias: None,
        training_file,
        validation_file: None,
        suffix: None,
        seed: 11,
        hyperparameters: Hyperparameters {
            n_epochs: Some(3),
            batch_size: Some(4),
            rank: Some(4),
            ..Hyperparameters::default()
        },
        metadata: None,
        classification: None,
        eval: None,
        distillation: None,
        method: attune::train::hyperparameters::Method::Supervised,
    }
}
