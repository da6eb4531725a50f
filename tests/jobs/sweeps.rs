//! The sweep beside jobs that finish.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::training::{Fixture, ORG, catalog, spec, tickets};
use attune::adapters::registry::AdapterRegistry;
use attune::jobs::{JobApi, JobSpec, JobStatus};
use attune::train::hyperparameters::Hyperparameters;

const JOBS: u64 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_without_grace_takes_nothing_from_fifty_jobs_that_finish_beside_it() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let mut jobs = Vec::new();
    for number in 0..JOBS {
        let hyperparameters = Hyperparameters { n_epochs: Some(1), ..spec(String::new()).hyperparameters };
        // Jobs of one seed make the same adapter, so that the files of one are those of others.
        let spec = JobSpec { seed: number % 5, hyperparameters, ..spec(file.clone()) };
        let api = if number % 2 == 0 { JobApi::FineTunes } else { JobApi::FineTuningJobs };
        jobs.push(fixture.enqueue(api, spec).await);
    }
    let done = Arc::new(AtomicBool::new(false));
    let sweeper = {
        let (store, done) = (fixture.store().clone(), Arc::clone(&done));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                store.sweep_older_than(Duration::ZERO).await.unwrap();
            }
        })
    };
    let workers = [fixture.worker(), fixture.worker()];
    let mut kept = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        let ended = fixture.wait_for(job, JobStatus::Succeeded).await;
        let model = ended.fine_tuned_model.clone().unwrap();
        if number % 3 == 0 {
            fixture.store().delete_fine_tuned_model(ORG, &model).await.unwrap();
        } else {
            kept.push((model, ended.result_files[0].clone()));
        }
    }
    for worker in workers {
        worker.stop().await;
    }
    done.store(true, Ordering::Relaxed);
    sweeper.await.unwrap();
    let elsewhere = AdapterRegistry::new(fixture.store().clone(), catalog());
    for (model, result) in kept {
        let leased = elsewhere.lease(ORG, &model).await;
        assert!(leased.is_ok(), "{model}: {:?}", leased.err());
        assert!(fixture.store().blobs.get(&format!("files/{result}")).await.is_ok(), "the result file of {model}");
    }
    assert_eq!((fixture.blobs("checkpoints"), fixture.blobs("removed")), (0, 0));
    assert_eq!(fixture.blobs("files") as u64, JOBS + 1);
}
