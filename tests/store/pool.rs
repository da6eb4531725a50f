//! Connections to the database.

use std::task::Poll;

use crate::postgres::TestDatabase;
use crate::support::{ORG, add};
use attune::store::Error;
use attune::store::Store;
use sqlx::Row as _;

#[tokio::test]
async fn a_transaction_whose_beginning_was_dropped_leaves_no_connection_inside_it() {
    let database = TestDatabase::with_connections(1).await;
    let pool = database.store.pool();
    for round in 0..200 {
        // Each round drops the future after another number of wake-ups, so also while BEGIN is under way.
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
        assert!(store.usable_models(ORG, &[], None, 100).await.unwrap().0.is_empty());
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

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused_with_its_migrations_and_what_to_do() {
    let database = TestDatabase::new().await;
    let migrations = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                      values (9998, 'more columns', true, '', 0), (12345, 'other ideas', true, '', 0)";
    database.execute(migrations).await;
    let error = Store::connect(&database.url, database.data_dir.path()).await.unwrap_err().to_string();
    for part in ["newer than this program", "9998 (more columns), 12345 (other ideas)", "backup"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_parameter_of_the_database_that_is_not_known_is_refused_and_not_shown() {
    let database = TestDatabase::new().await;
    let error =
        Store::connect(&format!("{}&unknown=topsecret", database.url), database.data_dir.path()).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("database_url") && said.contains("sslmode") && !said.contains("topsecret"), "{said}");
}
