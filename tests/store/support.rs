//! Files, jobs and models that the tests of this room begin with.

use std::time::Duration;

use crate::postgres::TestDatabase;
use attune::jobs::queue::{Outcome, Queue, TrainedModel};
use attune::jobs::{Job, JobApi, JobSpec};
use attune::store::Error;
use attune::store::files::{File, NewFile, Page};
use attune::train::hyperparameters::Hyperparameters;

pub(crate) const ORG: &str = "acme";

pub(crate) async fn add(database: &TestDatabase, name: &str, purpose: &str, content: &[u8]) -> File {
    let path = database.data_dir.path().join("upload");
    std::fs::write(&path, content).unwrap();
    let new = NewFile { organization: ORG.into(), filename: name.into(), purpose: purpose.into() };
    let file = database.store.add_file(new, path.clone()).await.unwrap();
    assert!(!path.exists(), "the upload moves into the store");
    file
}

pub(crate) fn page(after: Option<&str>, limit: i64, ascending: bool) -> Page {
    Page { after: after.map(Into::into), limit, ascending }
}

pub(crate) fn spec(training_file: &str, validation_file: Option<&str>) -> JobSpec {
    JobSpec {
        model: "demo".into(),
        alias: None,
        training_file: training_file.into(),
        validation_file: validation_file.map(Into::into),
        suffix: None,
        seed: 1,
        hyperparameters: Hyperparameters::default(),
        metadata: None,
        classification: None,
        eval: None,
        distillation: None,
        method: attune::train::hyperparameters::Method::Supervised,
    }
}

pub(crate) fn is_absent<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::BlobNotFound(_)))
}

/// Runs a job up to a published model and stores its adapter.
pub(crate) async fn publish(
    database: &TestDatabase,
    queue: &Queue,
    organization: &str,
    name: &str,
    adapter: &str,
) -> Job {
    queue.enqueue(organization, JobApi::FineTunes, spec("file-x", None)).await.unwrap();
    let job = queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap();
    for part in ["adapter_model.safetensors", "adapter_config.json"] {
        database.store.blobs.put(&format!("adapters/{adapter}/{part}"), "weights".into()).await.unwrap();
    }
    let outcome = Outcome::Succeeded(TrainedModel {
        model: name.into(),
        base: "demo".into(),
        adapter: adapter.into(),
        trained_tokens: 1,
        result_files: Vec::new(),
    });
    queue.finish(&job, outcome).await.unwrap().unwrap()
}
