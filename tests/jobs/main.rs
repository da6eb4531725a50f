//! Fine-tune jobs: the queue and the worker, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/faults.rs"]
mod faults;
#[path = "../common/fixtures.rs"]
mod fixtures;
#[path = "../common/postgres.rs"]
mod postgres;
#[path = "../common/training.rs"]
mod training;

mod adapter_tiers;
mod batches;
mod checkpoints;
mod classification;
mod estimates;
mod evals;
mod evaluation;
mod fences;
mod pairs;
mod preferences;
mod queue;
mod recomputation;
mod retention;
mod right_answers;
mod runs;
mod settings;
mod statements;
mod storage;
mod sweeps;

/// Stores a small file with that name and purpose.
async fn add_file(store: &attune::store::Store, new: attune::store::files::NewFile) -> attune::store::files::File {
    let content = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&content, "{}").unwrap();
    store.add_file(new, content.into_temp_path().to_path_buf()).await.unwrap()
}
