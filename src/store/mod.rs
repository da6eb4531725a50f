//! All SQL but the job queue's: uploaded files, also in parts, fine-tuned models and their aliases, stored
//! completions and responses, API keys, usage, evals, webhooks, sessions of the page; the private Postgres; blobs on
//! disk. Called by `api` and `jobs`.

pub mod aliases;
pub mod background_responses;
pub mod blobs;
pub mod completion_recorder;
pub mod conversations;
mod database_url;
pub(crate) mod disk_trouble;
mod error;
pub mod evals;
pub mod files;
pub mod key_directory;
pub mod keys;
pub mod models;
pub mod names;
pub(crate) mod notifications;
mod outage;
pub mod page_sessions;
pub mod permissions;
pub mod postgres;
pub mod recent_use;
mod removal;
pub mod response_changes;
pub mod responses;
mod schema;
pub mod stored_completions;
mod sweep;
pub mod uploads;
pub mod usage;
pub mod usage_recorder;
pub mod webhooks;
pub mod work_changes;
mod write_probe;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rand::distr::Alphanumeric;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Row as _};

pub use error::{Error, Result, StorageFault};
pub use sweep::Swept;

use self::write_probe::WriteProbe;

/// Connections of a process that says no other number. A private Postgres allows 50.
const POOL_CONNECTIONS: u32 = 16;
/// A request waits this long for a connection, then is told to come back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long readiness may take to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// Items in one answer of a list, whatever the caller asks for.
pub(crate) const MAX_PAGE: i64 = 10_000;

/// The database pool and the blobs: the handle that everything else asks for stored things. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) pool: PgPool,
    /// Contents of files, adapters and checkpoints.
    pub blobs: blobs::Blobs,
    /// The folder for temporary files.
    pub scratch: Arc<Path>,
    probe: WriteProbe,
}

impl Store {
    /// Connects, applies pending migrations, and opens the blob folder below `data_dir`.
    pub async fn connect(database_url: &str, data_dir: &Path) -> Result<Self> {
        Self::connect_with(database_url, data_dir, POOL_CONNECTIONS).await
    }

    /// [`Store::connect`] with a pool of `connections`.
    pub async fn connect_with(database_url: &str, data_dir: &Path, connections: u32) -> Result<Self> {
        let options = database_url::connect_options(database_url)?.application_name("attune");
        schema::bring_up_to_date(&options).await?;
        let options = options.options([("idle_in_transaction_session_timeout", "30s"), ("statement_timeout", "60s")]);
        let blobs = blobs::Blobs::in_folder(&data_dir.join("blobs"))?;
        let scratch = data_dir.join("tmp");
        std::fs::create_dir_all(&scratch).map_err(Error::io(format!("create {}", scratch.display())))?;
        let probe = WriteProbe::of([scratch.clone(), data_dir.join("blobs")]);
        if let Err(error) = probe.check().await {
            tracing::error!("{error}: uploads and fine-tune jobs fail until it can be written");
        }
        Ok(Self { pool: pool(options, connections), blobs, scratch: scratch.into(), probe })
    }

    /// The connections, for tests that look past the operations; everything else goes through them.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// True while the database answers.
    pub async fn is_ready(&self) -> bool {
        let answer = sqlx::query_scalar::<_, i32>("select 1").fetch_one(&self.pool);
        matches!(tokio::time::timeout(READY_TIMEOUT, answer).await, Ok(Ok(1)))
    }

    /// Writes a little to the data folder, once in some seconds however often it is asked; an error says what failed.
    pub async fn check_writable(&self) -> Result<()> {
        self.probe.check().await
    }

    /// Runs `work` to its end even if the caller goes away: for steps that belong together but that one statement
    /// cannot join, such as a row and its blob. axum drops a handler when its client hangs up.
    async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        tokio::spawn(work).await.map_err(|error| Error::Internal(format!("storage task: {error}")))?
    }
}

/// Makes a pool that hands out clean connections only.
fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // sqlx 0.9 can return a connection with a transaction open, when the future that was beginning it is dropped.
        // Outside a transaction the two times below are one (in the simple protocol; the other begins the transaction
        // before the statement); asking is silent where a needless ROLLBACK would warn.
        .after_release(|connection, _| {
            Box::pin(async move {
                let clean = sqlx::raw_sql("select transaction_timestamp() = statement_timestamp()");
                if !clean.fetch_one(&mut *connection).await?.try_get::<bool, _>(0)? {
                    sqlx::query("rollback").execute(&mut *connection).await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// Makes a public id: `prefix` and 24 random letters and digits.
pub(crate) fn new_id(prefix: &str) -> String {
    with_random_letters(prefix, 24)
}

/// Makes a text of `prefix` and `count` letters and digits that nobody can guess: the generator is a cryptographic one.
pub(crate) fn with_random_letters(prefix: &str, count: usize) -> String {
    let letters = rand::rng().sample_iter(Alphanumeric).take(count).map(char::from);
    prefix.chars().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::new_id;

    #[test]
    fn ids_are_a_prefix_and_24_letters_or_digits() {
        let id = new_id("file-");
        assert_eq!(id.len(), "file-".len() + 24);
        assert!(id["file-".len()..].bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        assert_ne!(id, new_id("file-"));
    }
}
