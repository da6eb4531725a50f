//! Batches: files of requests that are answered in the background. `api` creates, reads and cancels them, and its
//! `batches::run` works on them.
//!
//! As with jobs, the row is the queue entry and the API's resource. A process claims a batch with a lease and an attempt
//! number, the fence: every later write names it and changes nothing once another attempt has begun. The result of each
//! line is a row of its own until the batch has ended; so whoever goes on after a crash knows which lines have one.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::Row as _;
use sqlx::types::Json;
use tokio::sync::Notify;

use crate::jobs::{Result, sql};
use crate::store::files::{Page, cut_page};
use crate::store::{self, Store, new_id};

/// Unfinished batches of an organisation: their results stand in the database.
pub const MAX_UNFINISHED: i64 = 100;
/// Results that are read at a time: one may have many vectors.
const RESULTS: i64 = 8;

/// A batch as its row has it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Batch {
    /// Key of the row.
    pub key: i64,
    /// `batch_…`
    pub id: String,
    /// The owner.
    pub organization: String,
    /// Id of the key that pays.
    pub api_key: String,
    /// Requests per minute that the key had when the batch was created.
    pub requests_per_minute: i64,
    /// Tokens per minute, the same.
    pub tokens_per_minute: i64,
    /// Route that every line asks.
    pub endpoint: String,
    /// `file-…`
    pub input_file: String,
    /// The client's own notes.
    pub metadata: Option<Json<Map<String, Value>>>,
    /// Where it stands.
    pub status: String,
    /// Model that every line asks; `None` until they are checked.
    pub model: Option<String>,
    /// Why the input file is no batch.
    pub errors: Option<Json<Vec<LineFault>>>,
    /// Lines; 0 until they are checked.
    pub total: i64,
    /// Lines that were answered.
    pub completed: i64,
    /// Lines that failed.
    pub failed: i64,
    /// Tokens of prompts.
    pub input_tokens: i64,
    /// Those of them that came from the cache.
    pub cached_tokens: i64,
    /// Tokens drawn.
    pub output_tokens: i64,
    /// `file-…`
    pub output_file: Option<String>,
    /// `file-…`
    pub error_file: Option<String>,
    /// The fence.
    pub attempt: i32,
    /// Unix seconds, as all times here.
    pub created_at: i64,
    /// End of the completion window.
    pub expires_at: i64,
    /// Its lines were checked.
    pub in_progress_at: Option<i64>,
    /// All lines have a result.
    pub finalizing_at: Option<i64>,
    /// Its files were there.
    pub completed_at: Option<i64>,
    /// Its input file was found to be none.
    pub failed_at: Option<i64>,
    /// Its window had passed.
    pub expired_at: Option<i64>,
    /// A client asked to cancel it.
    pub cancelling_at: Option<i64>,
    /// It was cancelled.
    pub cancelled_at: Option<i64>,
}

/// What is wrong with a line of an input file, or with the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineFault {
    /// Stable word, such as `duplicate_custom_id`.
    pub code: String,
    /// Text that says what to change.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Number of the line, from 1.
    pub line: Option<i64>,
}

/// A batch to be created.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// The owner.
    pub organization: String,
    /// Id of the key that pays.
    pub api_key: String,
    /// Requests per minute of the key.
    pub requests_per_minute: i64,
    /// Tokens per minute of the key.
    pub tokens_per_minute: i64,
    /// Route that every line asks.
    pub endpoint: String,
    /// `file-…`
    pub input_file: String,
    /// Seconds that the output and the error file stay; `None` until they are deleted.
    pub output_lifetime: Option<i64>,
    /// The client's own notes.
    pub metadata: Option<Map<String, Value>>,
}

/// What became of a batch that was to be created.
#[derive(Debug)]
pub enum Created {
    /// It waits for its turn.
    Batch(Box<Batch>),
    /// The organisation has no such file for batches.
    NoFile,
    /// The organisation has this many unfinished batches, and may have no more.
    TooMany(i64),
}

/// The result of one line.
#[derive(Debug, Clone)]
pub struct LineResult {
    /// Number of the line, from 1.
    pub line: i32,
    /// Whether it goes to the output file, or to the error file.
    pub succeeded: bool,
    /// Line of that file.
    pub content: String,
    /// Tokens of prompts.
    pub input_tokens: i64,
    /// Those of them that came from the cache.
    pub cached_tokens: i64,
    /// Tokens drawn.
    pub output_tokens: i64,
}

/// Where a batch stands, as its holder is told.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Standing {
    /// Its status.
    pub status: String,
    /// Whether its window has passed.
    pub expired: bool,
}

/// How a batch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every line has a result.
    Completed,
    /// Its window has passed.
    Expired,
    /// A client cancelled it.
    Cancelled,
    /// Its input file was lost after its lines were checked.
    Failed,
}

impl End {
    /// Returns the status.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// A file that a batch made: its id and its size.
#[derive(Debug, Clone)]
pub struct MadeFile {
    /// `file-…`
    pub id: String,
    /// Size of the content.
    pub bytes: i64,
}

/// The batches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Batches {
    store: Store,
    changed: Arc<Notify>,
}

impl Batches {
    /// The batches in the database of `store`.
    pub fn new(store: Store) -> Self {
        Self { store, changed: Arc::default() }
    }

    /// Waits until a client of this process created or cancelled a batch. A hint: other processes have clients, too.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Creates a batch.
    pub async fn create(&self, new: NewBatch) -> Result<Created> {
        let id = new_id("batch_");
        let row = sqlx::query(sql::BATCH_CREATE)
            .bind(&id)
            .bind(&new.organization)
            .bind(&new.api_key)
            .bind(new.requests_per_minute)
            .bind(new.tokens_per_minute)
            .bind(&new.endpoint)
            .bind(&new.input_file)
            .bind(new.metadata.map(Json))
            .bind(MAX_UNFINISHED)
            .bind(new.output_lifetime)
            .fetch_one(&self.store.pool)
            .await?;
        if row.try_get("created")? {
            let batch = self.batch(&new.organization, &id).await?;
            self.changed.notify_waiters();
            return Ok(Created::Batch(Box::new(batch)));
        }
        if row.try_get("held")? { Ok(Created::TooMany(row.try_get("unfinished")?)) } else { Ok(Created::NoFile) }
    }

    /// Returns the organisation's batch, or [`store::Error::NotFound`].
    pub async fn batch(&self, organization: &str, id: &str) -> Result<Batch> {
        let row = sqlx::query_as(sql::BATCH_FIND).bind(organization).bind(id).fetch_optional(&self.store.pool).await?;
        Ok(row.ok_or_else(|| store::Error::NotFound { kind: "Batch", id: id.into() })?)
    }

    /// Returns a page of the organisation's batches, newest first, and whether there are more.
    pub async fn list(&self, organization: &str, page: Page) -> Result<(Vec<Batch>, bool)> {
        let limit = page.bounded_limit();
        let rows = sqlx::query_as(sql::BATCH_LIST)
            .bind(organization)
            .bind(page.after)
            .bind(limit + 1)
            .fetch_all(&self.store.pool)
            .await?;
        Ok(cut_page(rows, limit))
    }

    /// Asks that a batch ends, if its files are not being made yet; returns where it stands then.
    pub async fn cancel(&self, organization: &str, id: &str) -> Result<Batch> {
        let asked = sqlx::query(sql::BATCH_CANCEL).bind(organization).bind(id).execute(&self.store.pool).await?;
        if asked.rows_affected() > 0 {
            self.changed.notify_waiters();
        }
        self.batch(organization, id).await
    }

    /// Claims the next batch for the process `owner`.
    pub async fn claim(&self, owner: &str, lease: Duration) -> Result<Option<Batch>> {
        let claim = sqlx::query_as(sql::BATCH_CLAIM).bind(owner).bind(lease.as_secs_f64());
        Ok(claim.fetch_optional(&self.store.pool).await?)
    }

    /// Renews the lease; `None` if it was lost.
    pub async fn heartbeat(&self, batch: &Batch, lease: Duration) -> Result<Option<Standing>> {
        let beat = sqlx::query_as(sql::BATCH_HEARTBEAT).bind(batch.key).bind(batch.attempt).bind(lease.as_secs_f64());
        Ok(beat.fetch_optional(&self.store.pool).await?)
    }

    /// Lets go of a batch, for others to claim after `pause`.
    pub async fn release(&self, batch: &Batch, pause: Duration) -> Result<()> {
        let release = sqlx::query(sql::BATCH_RELEASE).bind(batch.key).bind(batch.attempt).bind(pause.as_secs_f64());
        release.execute(&self.store.pool).await?;
        Ok(())
    }

    /// Takes all batches back from their holders: for the start of a process that has the database to itself.
    pub async fn release_all(&self) -> Result<u64> {
        Ok(sqlx::query(sql::BATCH_RELEASE_ALL).execute(&self.store.pool).await?.rows_affected())
    }

    /// Notes that the lines are right; false if the batch is no longer to be checked, or the lease was lost.
    pub async fn start(&self, batch: &Batch, total: i64, model: Option<&str>) -> Result<bool> {
        let start = sqlx::query(sql::BATCH_START).bind(batch.key).bind(batch.attempt).bind(total).bind(model);
        Ok(start.execute(&self.store.pool).await?.rows_affected() > 0)
    }

    /// Ends a batch whose lines are wrong; false as for [`Self::start`].
    pub async fn fail(&self, batch: &Batch, faults: &[LineFault], model: Option<&str>) -> Result<bool> {
        let fail = sqlx::query(sql::BATCH_FAIL).bind(batch.key).bind(batch.attempt).bind(Json(faults)).bind(model);
        Ok(fail.execute(&self.store.pool).await?.rows_affected() > 0)
    }

    /// Returns the lines that have a result.
    pub async fn done(&self, batch: &Batch) -> Result<Vec<i32>> {
        Ok(sqlx::query_scalar(sql::BATCH_DONE).bind(batch.key).fetch_all(&self.store.pool).await?)
    }

    /// Adds the results of lines, of each the first one; `None` if the lease was lost.
    pub async fn record(&self, batch: &Batch, results: &[LineResult]) -> Result<Option<Standing>> {
        let numbers = |value: fn(&LineResult) -> i64| results.iter().map(value).collect::<Vec<i64>>();
        Ok(sqlx::query_as(sql::BATCH_RECORD)
            .bind(batch.key)
            .bind(batch.attempt)
            .bind(results.iter().map(|result| result.line).collect::<Vec<i32>>())
            .bind(results.iter().map(|result| result.succeeded).collect::<Vec<bool>>())
            .bind(results.iter().map(|result| result.content.as_str()).collect::<Vec<&str>>())
            .bind(numbers(|result| result.input_tokens))
            .bind(numbers(|result| result.cached_tokens))
            .bind(numbers(|result| result.output_tokens))
            .fetch_optional(&self.store.pool)
            .await?)
    }

    /// Reads some of the results after the line `after`: their lines, whether they succeeded, and their contents.
    pub async fn results(&self, batch: &Batch, after: i32) -> Result<Vec<(i32, bool, String)>> {
        let results = sqlx::query_as(sql::BATCH_RESULTS).bind(batch.key).bind(after).bind(RESULTS);
        Ok(results.fetch_all(&self.store.pool).await?)
    }

    /// Notes that all lines have a result; false if the batch is being cancelled, or the lease was lost.
    pub async fn finalize(&self, batch: &Batch) -> Result<bool> {
        let finalize = sqlx::query(sql::BATCH_FINALIZE).bind(batch.key).bind(batch.attempt);
        Ok(finalize.execute(&self.store.pool).await?.rows_affected() > 0)
    }

    /// Ends a batch with its output and error file, whose contents are stored; false, and the files are none, if the
    /// lease was lost or another end came first. `faults` say why it failed, and only then.
    pub async fn finish(
        &self,
        batch: &Batch,
        end: End,
        files: [Option<&MadeFile>; 2],
        faults: &[LineFault],
    ) -> Result<bool> {
        let [output, error] = files;
        let finished = sqlx::query(sql::BATCH_FINISH)
            .bind(batch.key)
            .bind(batch.attempt)
            .bind(end.word())
            .bind(output.map(|file| file.id.as_str()))
            .bind(error.map(|file| file.id.as_str()))
            .bind(output.map(|file| file.bytes))
            .bind(error.map(|file| file.bytes))
            .bind((end == End::Failed).then_some(Json(faults)))
            .fetch_optional(&self.store.pool)
            .await?;
        Ok(finished.is_some())
    }
}
