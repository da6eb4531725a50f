//! Files, fine-tuned models, blobs and the pool, against a real Postgres and a real folder.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic")]

use std::io::Read as _;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use crate::postgres::TestDatabase;
use attune::jobs;
use attune::jobs::queue::{Outcome, Queue, StopRequest};
use attune::jobs::{Job, JobApi, JobSpec};
use attune::store::Error;
use attune::store::Store;
use attune::store::files::{File, NewFile, Page};
use attune::store::models::NewModel;
use attune::train::hyperparameters::Hyperparameters;
use futures::TryStreamExt as _;
use sqlx::Row as _;

const ORG: &str = "acme";

async fn add(database: &TestDatabase, name: &str, purpose: &str, content: &[u8]) -> File {
    let path = database.data_dir.path().join("upload");
    std::fs::write(&path, content).unwrap();
    let new = NewFile { organization: ORG.into(), filename: name.into(), purpose: purpose.into() };
    let file = database.store.add_file(new, path.clone()).await.unwrap();
    assert!(!path.exists(), "the upload moves into the store");
    file
}

fn page(after: Option<&str>, limit: i64, ascending: bool) -> Page {
    Page { after: after.map(Into::into), limit, ascending }
}

fn spec(training_file: &str, validation_file: Option<&str>) -> JobSpec {
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
        method: attune::train::hyperparameters::Method::Supervised,
    }
}

fn is_absent<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::BlobNotFound(_)))
}

// --- Files -------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_file_is_stored_with_its_content_and_both_go_when_it_is_deleted() {
    let database = TestDatabase::new().await;
    let content = vec![7_u8; 3 << 20];
    let file = add(&database, "träin.jsonl", "fine-tune", &content).await;
    assert!(file.id.starts_with("file-") && file.id.len() == "file-".len() + 24, "{}", file.id);
    assert_eq!((file.filename.as_str(), file.bytes), ("träin.jsonl", 3 << 20));
    assert!(file.created_at > 1_700_000_000);
    let store = &database.store;
    assert_eq!(store.file(ORG, &file.id).await.unwrap(), file);
    let key = format!("files/{}", file.id);
    assert_eq!(store.blobs.get(&key).await.unwrap(), content);
    let chunks: Vec<bytes::Bytes> = store.blobs.stream(&key).await.unwrap().try_collect().await.unwrap();
    assert!(chunks.len() > 1, "a download comes in pieces");
    assert_eq!(chunks.concat(), content);

    store.delete_file(ORG, &file.id).await.unwrap();
    assert!(matches!(store.file(ORG, &file.id).await, Err(Error::NotFound { kind: "File", .. })));
    assert!(is_absent(&store.blobs.get(&key).await));
    assert!(matches!(store.delete_file(ORG, &file.id).await, Err(Error::NotFound { kind: "File", .. })));
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let database = TestDatabase::new().await;
    let file = add(&database, "empty", "fine-tune", b"").await;
    assert_eq!(file.bytes, 0);
    assert_eq!(database.store.blobs.get(&format!("files/{}", file.id)).await.unwrap(), "");
}

#[tokio::test]
async fn another_organisation_neither_sees_nor_deletes_a_file() {
    let database = TestDatabase::new().await;
    let file = add(&database, "a", "fine-tune", b"secret").await;
    let store = &database.store;
    assert!(matches!(store.file("rival", &file.id).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.delete_file("rival", &file.id).await, Err(Error::NotFound { .. })));
    assert!(store.files("rival", None, page(None, 10, false)).await.unwrap().0.is_empty());
    for cursor in [&file.id, "file-none"] {
        let (files, more) = store.files("rival", None, page(Some(cursor), 10, false)).await.unwrap();
        assert!(files.is_empty() && !more, "a cursor must not tell that the file exists");
    }
    assert_eq!(store.blobs.get(&format!("files/{}", file.id)).await.unwrap(), "secret");
}

#[tokio::test]
async fn files_are_listed_in_pages_that_meet_by_purpose_and_in_both_directions() {
    let database = TestDatabase::new().await;
    let mut ids = Vec::new();
    for index in 0..6 {
        let purpose = if index % 2 == 0 { "fine-tune" } else { "fine-tune-results" };
        ids.push(add(&database, &format!("f{index}"), purpose, b"x").await.id);
    }
    for ascending in [true, false] {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = page(after.as_deref(), 4, ascending);
            let (files, more) = database.store.files(ORG, None, page).await.unwrap();
            listed.extend(files.into_iter().map(|file| file.id));
            after = listed.last().cloned();
            if !more {
                break;
            }
        }
        if !ascending {
            listed.reverse();
        }
        assert_eq!(listed, ids);
    }
    let (results, more) = database.store.files(ORG, Some("fine-tune-results"), page(None, 3, true)).await.unwrap();
    assert_eq!(results.iter().map(|file| &file.id).collect::<Vec<_>>(), [&ids[1], &ids[3], &ids[5]]);
    assert!(!more);
    let (nothing, more) = database.store.files(ORG, None, page(Some("file-none"), 3, true)).await.unwrap();
    assert!(
        nothing.is_empty() && !more,
        "nothing follows a file that is not there, so a reader of pages comes to an end"
    );
}

#[tokio::test]
async fn a_file_that_an_unfinished_job_needs_is_kept() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    let train = add(&database, "train", "fine-tune", b"x").await;
    let valid = add(&database, "valid", "fine-tune", b"x").await;
    let job = queue.enqueue(ORG, JobApi::FineTunes, spec(&train.id, Some(&valid.id))).await.unwrap();
    for file in [&train, &valid] {
        let error = database.store.delete_file(ORG, &file.id).await.unwrap_err();
        assert!(matches!(error, Error::FileInUse { .. }), "clients retry a 409: {error:?}");
        assert!(error.to_string().contains(&job.id), "{error}");
        assert!(database.store.blobs.get(&format!("files/{}", file.id)).await.is_ok());
    }
    queue.stop(&job, StopRequest::Cancel).await.unwrap();
    database.store.delete_file(ORG, &train.id).await.unwrap();
    database.store.delete_file(ORG, &valid.id).await.unwrap();
}

#[tokio::test]
async fn text_that_postgres_cannot_hold_is_the_callers_fault() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    let error = database.store.file(ORG, "file-\0").await.unwrap_err();
    assert!(matches!(error, Error::NulInText), "{error:?}");
    let with_nul = JobSpec { suffix: Some("a\0b".into()), ..spec("file-x", None) };
    let error = queue.enqueue(ORG, JobApi::FineTunes, with_nul).await.unwrap_err();
    assert!(matches!(error, jobs::Error::Store(Error::NulInText)), "{error:?}");
}

// --- Models ------------------------------------------------------------------------------------------------------------

/// Runs a job to a published model and stores its adapter.
async fn publish(database: &TestDatabase, queue: &Queue, organization: &str, name: &str, adapter: &str) -> Job {
    queue.enqueue(organization, JobApi::FineTunes, spec("file-x", None)).await.unwrap();
    let job = queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap();
    for part in ["adapter_model.safetensors", "adapter_config.json"] {
        database.store.blobs.put(&format!("adapters/{adapter}/{part}"), "weights".into()).await.unwrap();
    }
    let outcome = Outcome::Succeeded {
        model: name.into(),
        base: "demo".into(),
        adapter: adapter.into(),
        trained_tokens: 1,
        result_files: Vec::new(),
    };
    queue.finish(&job, outcome).await.unwrap().unwrap()
}

#[tokio::test]
async fn models_are_listed_oldest_first_and_belong_to_their_organisation() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    for name in ["ft:b", "ft:a"] {
        publish(&database, &queue, ORG, name, "aa").await;
    }
    let store = &database.store;
    let names: Vec<String> = store.usable_models(ORG).await.unwrap().into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["ft:b", "ft:a"]);
    assert!(store.usable_models("rival").await.unwrap().is_empty());
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
async fn an_adapter_that_a_running_job_may_be_publishing_is_left_to_the_sweep() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    publish(&database, &queue, ORG, "ft:a", "aa").await;
    queue.enqueue(ORG, JobApi::FineTunes, spec("file-x", None)).await.unwrap();
    queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap();
    database.store.delete_fine_tuned_model(ORG, "ft:a").await.unwrap();
    assert!(database.store.blobs.get("adapters/aa/adapter_config.json").await.is_ok());
    database.store.sweep_older_than(Duration::ZERO).await.unwrap();
    assert!(is_absent(&database.store.blobs.get("adapters/aa/adapter_config.json").await));
}

/// Names an adapter from elsewhere; its one blob stands for both.
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

// --- Blobs -------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_open_file_can_be_read_to_its_end_after_it_was_deleted() {
    let database = TestDatabase::new().await;
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let file = add(&database, "train", "fine-tune", &content).await;
    let mut open = database.store.open_file(&file).await.unwrap();
    database.store.delete_file(ORG, &file.id).await.unwrap();
    assert!(matches!(database.store.open_file(&file).await, Err(Error::BlobNotFound(_))));
    let mut read = Vec::new();
    open.read_to_end(&mut read).unwrap();
    assert!(read == content);
}

#[tokio::test]
async fn a_file_of_another_disk_is_copied_and_a_missing_one_leaves_nothing() {
    let database = TestDatabase::new().await;
    let blobs = &database.store.blobs;
    let missing = database.data_dir.path().join("none");
    assert!(blobs.adopt("files/none", missing).await.is_err());
    assert!(is_absent(&blobs.get("files/none").await));
    // Memory is another disk where it is mounted; anywhere else the file is renamed, which must look the same.
    let folder =
        Some(Path::new("/dev/shm")).filter(|folder| folder.is_dir()).map_or_else(std::env::temp_dir, Into::into);
    let elsewhere = tempfile::NamedTempFile::new_in(folder).unwrap().into_temp_path();
    std::fs::write(&elsewhere, "content").unwrap();
    blobs.adopt("files/elsewhere", elsewhere.to_path_buf()).await.unwrap();
    assert!(!elsewhere.exists());
    assert_eq!(blobs.get("files/elsewhere").await.unwrap(), "content");
}

#[tokio::test]
async fn a_prefix_removes_whole_segments_only() {
    let database = TestDatabase::new().await;
    let blobs = &database.store.blobs;
    for key in ["checkpoints/a/1/state", "checkpoints/a/2/state", "checkpoints/ab/state"] {
        blobs.put(key, "x".into()).await.unwrap();
    }
    blobs.delete_prefix("checkpoints/a/1").await.unwrap();
    assert!(is_absent(&blobs.get("checkpoints/a/1/state").await));
    blobs.delete_prefix("checkpoints/a/").await.unwrap();
    assert!(is_absent(&blobs.get("checkpoints/a/2/state").await));
    assert!(blobs.get("checkpoints/ab/state").await.is_ok());
    blobs.delete_prefix("checkpoints/none").await.unwrap();
    assert!(blobs.delete_prefix("checkpoints").await.is_err(), "a whole kind is never removed at once");
    assert!(blobs.put("checkpoints/../../escape", "x".into()).await.is_err());
}

#[tokio::test]
async fn a_blob_is_replaced_whole() {
    let database = TestDatabase::new().await;
    let blobs = &database.store.blobs;
    blobs.put("adapters/a/config", vec![1_u8; 1 << 20].into()).await.unwrap();
    blobs.put("adapters/a/config", "short".into()).await.unwrap();
    assert_eq!(blobs.get("adapters/a/config").await.unwrap(), "short");
}

#[tokio::test]
async fn the_sweep_removes_what_no_row_names_and_nothing_else() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let queue = Queue::open(store.clone()).await.unwrap();
    let file = add(&database, "kept", "fine-tune", b"x").await;
    let finished = publish(&database, &queue, ORG, "ft:a", "aa").await;
    let waiting = queue.enqueue(ORG, JobApi::FineTunes, spec(&file.id, None)).await.unwrap();
    let kept = [
        format!("files/{}", file.id),
        "adapters/aa/adapter_config.json".into(),
        format!("checkpoints/{}/state", waiting.id),
        format!("checkpoints/{}/state", waiting.key),
    ];
    let orphans = [
        "files/file-orphan".into(),
        "adapters/bb/adapter_config.json".into(),
        "adapters/bb/adapter_model.safetensors".into(),
        format!("checkpoints/{}/state", finished.id),
    ];
    for key in kept[2..].iter().chain(&orphans) {
        store.blobs.put(key, "x".into()).await.unwrap();
    }
    assert_eq!(store.sweep().await.unwrap().removed, 0, "young blobs may belong to rows that are being written");
    assert_eq!(store.sweep_older_than(Duration::ZERO).await.unwrap().removed, 3);
    for key in &kept {
        assert!(store.blobs.get(key).await.is_ok(), "{key} was removed");
    }
    for key in &orphans {
        assert!(is_absent(&store.blobs.get(key).await), "{key} stays");
    }
}

#[tokio::test]
async fn the_sweep_removes_short_lived_files_that_a_killed_process_left() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    assert_eq!(*store.scratch, database.data_dir.path().join("tmp"));
    let (left, folder) = (store.scratch.join("upload"), store.scratch.join("a-folder"));
    std::fs::write(&left, "half an upload").unwrap();
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(store.sweep().await.unwrap().removed, 0, "another process may still write it");
    assert_eq!(store.sweep_older_than(Duration::ZERO).await.unwrap().removed, 1);
    assert!(!left.exists() && folder.exists());
}

// --- The pool ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_transaction_whose_beginning_was_dropped_leaves_no_connection_inside_it() {
    let database = TestDatabase::with_connections(1).await;
    let pool = database.store.pool();
    for round in 0..200 {
        // Drops the future after another number of wake-ups in each round, so also while BEGIN is under way.
        let (mut begin, mut polls) = (Box::pin(pool.begin()), 0);
        std::future::poll_fn(|context| {
            polls += 1;
            if polls <= round % 6 { begin.as_mut().poll(context).map(drop) } else { Poll::Ready(()) }
        })
        .await;
        drop(begin);
        let open =
            sqlx::raw_sql("select transaction_timestamp() <> statement_timestamp()").fetch_one(pool).await.unwrap();
        assert!(!open.get::<bool, _>(0), "round {round}: the connection is inside a transaction");
    }
    let file = add(&database, "written", "fine-tune", b"x").await;
    let seen = Store::connect(&database.url, database.data_dir.path()).await.unwrap();
    assert_eq!(seen.file(ORG, &file.id).await.unwrap(), file, "the write was not committed");
}

#[tokio::test]
async fn an_exhausted_pool_says_so_instead_of_waiting_for_ever() {
    let database = TestDatabase::with_connections(1).await;
    let _held = database.store.pool().acquire().await.unwrap();
    let error = database.store.file(ORG, "file-x").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(!database.store.is_ready().await);
}

#[tokio::test]
async fn the_store_is_ready_while_the_database_answers() {
    let database = TestDatabase::new().await;
    assert!(database.store.is_ready().await);
}

#[tokio::test]
async fn several_processes_may_bring_the_schema_up_to_date_at_once() {
    let database = TestDatabase::new().await;
    database.execute("drop schema public cascade; create schema public").await;
    let start = || Store::connect(&database.url, database.data_dir.path());
    let (first, second, third) = tokio::join!(start(), start(), start());
    for store in [first.unwrap(), second.unwrap(), third.unwrap()] {
        assert!(store.usable_models(ORG).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Store::connect("postgres://x@localhost/x?host=/nowhere", folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
    let error = Store::connect("not a url", folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("database_url"), "{error}");
}
