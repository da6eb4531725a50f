//! The folder of blobs, and the sweep of those that no row names.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use crate::postgres::TestDatabase;
use crate::support::{ORG, add, is_absent, publish, spec};
use attune::jobs::JobApi;
use attune::jobs::queue::Queue;
use attune::store::Error;

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
    // `/dev/shm` is another file system, so the file is copied; without it the file is renamed, with the same result.
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
    assert_eq!(store.sweep().await.unwrap().removed, 1, "young blobs may belong to rows that are being written");
    assert!(is_absent(&store.blobs.get(&orphans[3]).await), "a finished job needs no state, however young");
    assert_eq!(store.sweep_older_than(Duration::ZERO).await.unwrap().removed, 2);
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
