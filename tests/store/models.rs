//! Fine-tuned and loaded models, and the adapters that they share.

use std::time::Duration;

use crate::postgres::TestDatabase;
use crate::support::{ORG, is_absent, publish, spec};
use attune::jobs::JobApi;
use attune::jobs::queue::Queue;
use attune::store::Error;
use attune::store::Store;
use attune::store::models::NewModel;

#[tokio::test]
async fn models_are_listed_oldest_first_and_belong_to_their_organisation() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    for name in ["ft:b", "ft:a"] {
        publish(&database, &queue, ORG, name, "aa").await;
    }
    let store = &database.store;
    let names: Vec<String> =
        store.usable_models(ORG, &[], None, 100).await.unwrap().0.into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["ft:b", "ft:a"]);
    assert!(store.usable_models("rival", &[], None, 100).await.unwrap().0.is_empty());
    for error in [
        store.fine_tuned_model("rival", "ft:a").await.unwrap_err(),
        store.delete_fine_tuned_model("rival", "ft:a").await.unwrap_err(),
        store.fine_tuned_model(ORG, "ft:none").await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::ModelNotFound(_)), "{error:?}");
    }
}

#[tokio::test]
async fn an_adapter_is_removed_with_the_last_model_that_uses_it() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    publish(&database, &queue, ORG, "ft:a", "aa").await;
    publish(&database, &queue, "rival", "ft:a", "aa").await;
    publish(&database, &queue, ORG, "ft:c", "ab").await;
    let store = &database.store;
    assert_eq!(store.delete_fine_tuned_model(ORG, "ft:a").await.unwrap().adapter, "aa");
    assert!(matches!(store.delete_fine_tuned_model(ORG, "ft:a").await, Err(Error::ModelNotFound(_))));
    assert!(store.blobs.get("adapters/aa/adapter_config.json").await.is_ok(), "the other model needs it");
    store.delete_fine_tuned_model("rival", "ft:a").await.unwrap();
    assert!(is_absent(&store.blobs.get("adapters/aa/adapter_config.json").await));
    assert!(is_absent(&store.blobs.get("adapters/aa/adapter_model.safetensors").await));
    assert!(store.blobs.get("adapters/ab/adapter_config.json").await.is_ok());
}

#[tokio::test]
async fn an_adapter_that_a_running_job_is_publishing_stays_until_its_attempt_has_ended() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    publish(&database, &queue, ORG, "ft:a", "aa").await;
    queue.enqueue(ORG, JobApi::FineTunes, spec("file-x", None)).await.unwrap();
    let job = queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap();
    assert!(queue.hold_adapter(&job, "aa").await.unwrap());
    database.store.delete_fine_tuned_model(ORG, "ft:a").await.unwrap();
    database.store.sweep_older_than(Duration::ZERO).await.unwrap();
    assert!(database.store.blobs.get("adapters/aa/adapter_config.json").await.is_ok());
    // The job is taken back: nobody will name what its attempt held.
    assert_eq!(queue.reap_all().await.unwrap(), 1);
    assert!(!queue.hold_adapter(&job, "aa").await.unwrap(), "an attempt that lost its lease holds nothing");
    database.store.sweep_older_than(Duration::ZERO).await.unwrap();
    assert!(is_absent(&database.store.blobs.get("adapters/aa/adapter_config.json").await));
}

/// Names an adapter from elsewhere; one blob stands for both of its files.
async fn load(store: &Store, name: &str, adapter: &str, replace: bool) -> Result<String, Error> {
    let new = NewModel { organization: ORG.into(), name: name.into(), base: "demo".into(), adapter: adapter.into() };
    let blobs = vec![(format!("adapters/{adapter}/adapter_config.json"), "{}".into())];
    Ok(store.add_model(new, blobs, replace).await?.adapter)
}

#[tokio::test]
async fn an_adapter_from_elsewhere_keeps_its_name_until_it_is_replaced_and_takes_its_files_along() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    publish(&database, &queue, ORG, "ft:a", "aa").await;
    let store = &database.store;
    assert_eq!(load(store, "mine", "ab", false).await.unwrap(), "ab");
    assert!(matches!(load(store, "mine", "ac", false).await, Err(Error::NameTaken(_))));
    assert_eq!(store.fine_tuned_model(ORG, "mine").await.unwrap().adapter, "ab");
    assert_eq!(load(store, "mine", "ac", true).await.unwrap(), "ac");
    assert!(is_absent(&store.blobs.get("adapters/ab/adapter_config.json").await));
    assert!(store.blobs.get("adapters/ac/adapter_config.json").await.is_ok());
    for replace in [false, true] {
        assert!(matches!(load(store, "ft:a", "ac", replace).await, Err(Error::NameOfJob(_))));
    }
    assert_eq!(store.fine_tuned_model(ORG, "ft:a").await.unwrap().adapter, "aa");
}

#[tokio::test]
async fn a_name_never_points_to_files_that_a_deletion_took_at_the_same_time() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let work = (0..4).map(|worker| async move {
        for _ in 0..15 {
            let name = format!("mine-{worker}");
            match load(store, &name, "ab", false).await {
                Ok(_) => assert!(store.blobs.get("adapters/ab/adapter_config.json").await.is_ok(), "no files"),
                Err(error) => assert!(matches!(error, Error::Unavailable(_)), "{error:?}"),
            }
            let _ = store.delete_fine_tuned_model(ORG, &name).await;
        }
    });
    futures::future::join_all(work).await;
    assert!(is_absent(&store.blobs.get("adapters/ab/adapter_config.json").await));
}
