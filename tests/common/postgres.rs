//! A real Postgres for tests: one private cluster per test process, one empty database per test.
//!
//! Use as `#[path = "common/postgres.rs"] mod postgres;`. The clusters lie in the system's folder for temporary files
//! and are used again by the next run; the system stops them with the test process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::atomic::{AtomicU32, Ordering};

use attune::store::Store;
use attune::store::postgres::PrivatePostgres;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

/// Most processes that run tests at the same time.
const SLOTS: u32 = 64;

static CLUSTER: OnceCell<PrivatePostgres> = OnceCell::const_new();
/// The cluster has 50 connections, however many cores run tests.
static TURNS: Semaphore = Semaphore::const_new(4);
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// An empty database and a store on it.
pub(crate) struct TestDatabase {
    pub store: Store,
    pub url: String,
    pub data_dir: tempfile::TempDir,
    _turn: SemaphorePermit<'static>,
}

impl TestDatabase {
    pub(crate) async fn new() -> Self {
        Self::with_connections(8).await
    }

    /// Creates a database with a pool of that size.
    pub(crate) async fn with_connections(connections: u32) -> Self {
        let turn = TURNS.acquire().await.unwrap();
        let cluster = CLUSTER.get_or_init(start_cluster).await;
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        execute(cluster.url(), &format!("create database {name}")).await;
        let url = cluster.url().replacen("/attune?", &format!("/{name}?"), 1);
        let data_dir = tempfile::tempdir().unwrap();
        let store = Store::connect_with(&url, data_dir.path(), connections).await.unwrap();
        Self { store, url, data_dir, _turn: turn }
    }

    /// Runs `sql` on a connection of its own, for changes that a test makes behind the store's back.
    pub(crate) async fn execute(&self, sql: &str) -> u64 {
        execute(&self.url, sql).await
    }

    /// Returns the one value that `sql` selects.
    pub(crate) async fn value<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap()
    }
}

async fn execute(url: &str, sql: &str) -> u64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    done.rows_affected()
}

/// Starts the first cluster that no other test process uses, without the databases of earlier runs.
async fn start_cluster() -> PrivatePostgres {
    // The system's folder for temporary files, since the unprivileged user of a root's cluster reaches that.
    let folder = std::env::temp_dir().join(format!("attune-tests-{}", nix::unistd::getuid()));
    for slot in 0..SLOTS {
        let folder = folder.join(format!("postgres-{slot}"));
        let cluster = match PrivatePostgres::start(&folder).await {
            Ok(cluster) => cluster,
            Err(error) if error.to_string().contains("another attune uses") => continue,
            Err(error) => panic!("{error}\n(a damaged test cluster can be removed: {})", folder.display()),
        };
        let mut connection = PgConnection::connect(cluster.url()).await.unwrap();
        let old: Vec<String> = sqlx::query_scalar("select datname from pg_database where datname like 'test\\_%'")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for name in old {
            execute(cluster.url(), &format!("drop database {name} with (force)")).await;
        }
        return cluster;
    }
    panic!("{SLOTS} test processes run already");
}
