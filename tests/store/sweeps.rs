//! The sweep of what no row names: while others store the same again, after a killed removal, and in turns.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::postgres::TestDatabase;
use crate::support::{ORG, is_absent, publish, spec};
use attune::jobs::JobApi;
use attune::jobs::queue::Queue;
use attune::store::models::NewModel;
use attune::store::{Error, Store};
use serde_json::json;

const NOTHING: Duration = Duration::ZERO;

fn blob(database: &TestDatabase, key: &str) -> std::path::PathBuf {
    database.data_dir.path().join("blobs").join(key)
}

fn write(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

async fn load(store: &Store, name: &str, adapter: &str) -> Result<(), Error> {
    let new = NewModel { organization: ORG.into(), name: name.into(), base: "demo".into(), adapter: adapter.into() };
    let blobs = ["adapter_config.json", "adapter_model.safetensors"];
    let blobs = blobs.map(|part| (format!("adapters/{adapter}/{part}"), "{}".into())).to_vec();
    store.add_model(new, blobs, false).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_and_named_while_a_sweep_runs_is_never_swept_away() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let done = Arc::new(AtomicBool::new(false));
    let sweeper = {
        let (store, done) = (store.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut sweeps = 0;
            while !done.load(Ordering::Relaxed) {
                store.sweep_older_than(NOTHING).await.unwrap();
                sweeps += 1;
            }
            sweeps
        })
    };
    let work = (0..4).map(|worker| async move {
        for turn in 0..25 {
            // Two share each content, and each is nobody's again and again.
            let (name, adapter) = (format!("mine-{worker}"), format!("a{}", (worker + turn) % 2));
            match load(store, &name, &adapter).await {
                Ok(()) => {
                    for part in ["adapter_config.json", "adapter_model.safetensors"] {
                        let key = format!("adapters/{adapter}/{part}");
                        assert!(store.blobs.get(&key).await.is_ok(), "{key} was accepted and is gone");
                    }
                    let _ = store.delete_fine_tuned_model(ORG, &name).await;
                }
                // Without a grace, sweeps may take away what is being written time after time: it is refused then.
                Err(error) => assert!(matches!(error, Error::Unavailable(_) | Error::Blob(_)), "{error:?}"),
            }
        }
    });
    futures::future::join_all(work).await;
    done.store(true, Ordering::Relaxed);
    assert!(sweeper.await.unwrap() > 0);
    store.sweep_older_than(NOTHING).await.unwrap();
    assert!(std::fs::read_dir(blob(&database, "removed")).is_ok_and(|mut left| left.next().is_none()));
}

#[tokio::test]
async fn what_a_killed_process_was_removing_goes_back_if_it_has_a_name_and_else_goes() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let queue = Queue::open(store.clone()).await.unwrap();
    publish(&database, &queue, ORG, "ft:a", "aa").await;
    let file = crate::support::add(&database, "train", "fine-tune", b"content").await;
    std::fs::create_dir_all(blob(&database, "removed/t1/adapters")).unwrap();
    std::fs::rename(blob(&database, "adapters/aa"), blob(&database, "removed/t1/adapters/aa")).unwrap();
    std::fs::create_dir_all(blob(&database, "removed/t2/files")).unwrap();
    std::fs::rename(
        blob(&database, &format!("files/{}", file.id)),
        blob(&database, &format!("removed/t2/files/{}", file.id)),
    )
    .unwrap();
    write(&blob(&database, "removed/t3/adapters/bb/adapter_config.json"), "{}");
    assert_eq!(store.sweep().await.unwrap().removed, 1);
    for part in ["adapter_config.json", "adapter_model.safetensors"] {
        assert_eq!(store.blobs.get(&format!("adapters/aa/{part}")).await.unwrap(), "weights");
    }
    assert_eq!(store.blobs.get(&format!("files/{}", file.id)).await.unwrap(), "content");
    assert!(std::fs::read_dir(blob(&database, "removed")).unwrap().next().is_none());
}

#[tokio::test]
async fn files_that_a_killed_process_had_half_written_go_and_the_complete_ones_beside_them_stay() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let queue = Queue::open(store.clone()).await.unwrap();
    publish(&database, &queue, ORG, "ft:a", "aa").await;
    let left = ["adapters/aa/adapter_model.safetensors#1", "adapters/bb/adapter_config.json#12", "files/file-x#1"];
    for key in left {
        write(&blob(&database, key), "half");
    }
    store.sweep().await.unwrap();
    assert!(left.iter().all(|key| blob(&database, key).exists()), "they may still be written");
    store.sweep_older_than(NOTHING).await.unwrap();
    assert!(left.iter().all(|key| !blob(&database, key).exists()));
    assert!(store.blobs.get("adapters/aa/adapter_model.safetensors").await.is_ok());
}

#[tokio::test]
async fn of_an_unfinished_job_only_the_named_state_and_those_of_its_running_attempt_stay() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let queue = Queue::open(store.clone()).await.unwrap();
    queue.enqueue(ORG, JobApi::FineTunes, spec("file-x", None)).await.unwrap();
    let lease = Duration::from_mins(1);
    let job = queue.claim("w", lease).await.unwrap().unwrap();
    let key = |attempt: i32, step: i32| format!("checkpoints/{}/attempt-{attempt}/step-{step}.safetensors", job.id);
    let left = |keys: [String; 4]| keys.map(|key| blob(&database, &key).exists());
    for (attempt, step) in [(1, 10), (1, 20), (2, 30)] {
        write(&blob(&database, &key(attempt, step)), "state");
    }
    write(&blob(&database, &format!("{}#1", key(1, 30))), "half a state");
    let all = || [key(1, 10), key(1, 20), format!("{}#1", key(1, 30)), key(2, 30)];
    queue.heartbeat(&job, lease, Some(json!({"step": 10, "key": key(1, 10)}))).await.unwrap().unwrap();
    store.sweep().await.unwrap();
    assert_eq!(left(all()), [true; 4], "the attempt runs and may name any of them");
    queue.reap_all().await.unwrap();
    queue.claim("w", lease).await.unwrap().unwrap();
    store.sweep().await.unwrap();
    assert_eq!(left(all()), [true, false, false, true], "the first attempt names none any more");
    queue.reap_all().await.unwrap();
    store.sweep().await.unwrap();
    assert_eq!(left(all()), [true, false, false, false], "no attempt runs");
}

#[tokio::test]
async fn one_of_all_processes_sweeps_once_an_hour() {
    let database = TestDatabase::new().await;
    let (store, other) = (&database.store, Store::connect(&database.url, database.data_dir.path()).await.unwrap());
    let turns = tokio::join!(store.sweep_if_due(), other.sweep_if_due());
    assert_eq!([turns.0.unwrap(), turns.1.unwrap()].iter().flatten().count(), 1);
    assert_eq!(other.sweep_if_due().await.unwrap(), None);
    let due: f64 = database.value("select extract(epoch from due_at - now())::float8 from chores").await;
    assert!((3_000.0..=3_600.0).contains(&due), "{due}");
    database.execute("update chores set due_at = now() - interval '1 s'").await;
    assert!(store.sweep_if_due().await.unwrap().is_some());
}

#[tokio::test]
async fn more_than_a_thousand_leftovers_go_in_one_sweep() {
    let database = TestDatabase::new().await;
    for number in 0..1_100 {
        write(&blob(&database, &format!("files/file-{number}")), "x");
    }
    let kept = crate::support::add(&database, "kept", "fine-tune", b"x").await;
    assert_eq!(database.store.sweep_older_than(NOTHING).await.unwrap().removed, 1_100);
    assert!(database.store.blobs.get(&format!("files/{}", kept.id)).await.is_ok());
    assert!(is_absent(&database.store.blobs.get("files/file-7").await));
}
