//! Files of organisations, against a real Postgres and a real folder.

use crate::postgres::TestDatabase;
use crate::support::{ORG, add, is_absent, page, spec};
use attune::jobs;
use attune::jobs::queue::{Queue, StopRequest};
use attune::jobs::{JobApi, JobSpec};
use attune::store::Error;
use futures::TryStreamExt as _;

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
async fn files_are_read_by_their_ids_all_at_once() {
    let database = TestDatabase::new().await;
    let (one, other) = (add(&database, "a", "fine-tune", b"x").await, add(&database, "b", "fine-tune", b"y").await);
    let ids = [other.id.clone(), one.id.clone(), "file-none".into()];
    let mut found = database.store.files_of(ORG, &ids).await.unwrap();
    found.sort_by_key(|file| file.filename.clone());
    assert_eq!(found, [one, other]);
    assert!(database.store.files_of("rival", &ids).await.unwrap().is_empty());
    assert!(database.store.files_of(ORG, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_data_folder_is_asked_whether_it_takes_writes() {
    let database = TestDatabase::new().await;
    database.store.check_writable().await.unwrap();
    assert_eq!(std::fs::read_dir(&database.store.scratch).unwrap().count(), 0, "the write leaves nothing");
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
