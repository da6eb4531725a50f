//! Lists of jobs: filters by metadata, and pages that end with the list.

use crate::postgres::TestDatabase;
use attune::jobs::queue::Queue;
use attune::jobs::{JobApi, JobSpec, MetadataFilter};
use attune::store::files::Page;
use attune::train::hyperparameters::Hyperparameters;
use serde_json::{Value, json};

use super::{Fixture, ORG, page};

fn object(value: &Value) -> serde_json::Map<String, Value> {
    value.as_object().unwrap().clone()
}

async fn enqueue(queue: &Queue, organization: &str, metadata: &Value) -> String {
    let spec = JobSpec {
        model: "demo".into(),
        alias: None,
        training_file: "file-x".into(),
        validation_file: None,
        suffix: None,
        seed: 1,
        hyperparameters: Hyperparameters::default(),
        metadata: (!metadata.is_null()).then(|| object(metadata)),
        classification: None,
        eval: None,
        distillation: None,
        method: attune::train::hyperparameters::Method::Supervised,
    };
    queue.enqueue(organization, JobApi::FineTuningJobs, spec).await.unwrap().id
}

/// Reads all jobs that pass the filter, oldest first, in pages of `limit`; also returns the number of pages.
async fn read(queue: &Queue, filter: &MetadataFilter, limit: i64) -> (Vec<String>, usize) {
    let (mut ids, mut pages) = (Vec::<String>::new(), 0);
    loop {
        let page = Page { after: ids.last().cloned(), limit, ascending: false };
        let (jobs, more) = queue.jobs(ORG, JobApi::FineTuningJobs, filter.clone(), page).await.unwrap();
        ids.extend(jobs.into_iter().map(|job| job.id));
        pages += 1;
        if !more {
            ids.reverse();
            return (ids, pages);
        }
    }
}

#[tokio::test]
async fn jobs_are_found_by_their_metadata_in_pages_that_end_where_the_list_does() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    let notes = [
        json!({"team": "a b", "stage": "test"}),
        json!(null),
        json!({"team": "a b"}),
        json!({"team": "c", "quote": "it's \"so\""}),
        json!({}),
        json!({"team": "a b", "stage": "live"}),
        json!({"stage": "a b"}),
    ];
    let mut ids = Vec::new();
    for metadata in &notes {
        ids.push(enqueue(&queue, ORG, metadata).await);
    }
    enqueue(&queue, "rival", &json!({"team": "a b"})).await;
    let all = |pairs: Value| MetadataFilter::All(object(&pairs));
    let cases = [
        (MetadataFilter::Any, vec![0, 1, 2, 3, 4, 5, 6]),
        (MetadataFilter::None, vec![1, 4]),
        (all(json!({"team": "a b"})), vec![0, 2, 5]),
        (all(json!({"team": "a b", "stage": "live"})), vec![5]),
        (all(json!({"quote": "it's \"so\""})), vec![3]),
        (all(json!({"team": "A B"})), vec![]),
        (all(json!({"nobody": ""})), vec![]),
    ];
    for (filter, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|index| ids[index].clone()).collect();
        for limit in 1..=8 {
            let (found, pages) = read(&queue, &filter, limit).await;
            assert_eq!(found, expected, "{filter:?} in pages of {limit}");
            assert_eq!(pages, expected.len().div_ceil(limit as usize).max(1), "{filter:?} in pages of {limit}");
        }
    }
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages_that_meet() {
    let queue = Fixture::new().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, queue.enqueued().await.id);
    }
    let (first, more) = queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, page(None, 3)).await.unwrap();
    assert!(more);
    let (second, more) =
        queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, page(Some(&first[2].id), 3)).await.unwrap();
    assert!(!more);
    assert_eq!(first.into_iter().chain(second).map(|job| job.id).collect::<Vec<_>>(), ids);
    let ascending = Page { ascending: true, ..page(Some(&ids[4]), 1) };
    let (next, more) = queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, ascending).await.unwrap();
    assert_eq!((next[0].id.as_str(), more), (ids[3].as_str(), true));
    let unknown =
        queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, page(Some("ftjob-none"), 3)).await.unwrap();
    assert!(unknown.0.is_empty() && !unknown.1, "a reader of pages comes to an end");
}
