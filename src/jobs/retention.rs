//! Removes what has ended and is older than the configuration keeps it: events of jobs, jobs, batches, sums of usage, stored
//! completions, responses, conversations, events of webhooks; and files whose own time has come. `app` runs it in every
//! server and worker; the database lets one of them work at a time.
//!
//! It works in small batches, each a statement of its own, so that nothing waits for it and a process that ends in the
//! middle leaves nothing half done. Never removed are unfinished jobs, jobs of which a model is left, models, and files
//! that clients uploaded without an end.

use std::time::Duration;

use crate::config::Retention;
use crate::jobs::{Result, sql};
use crate::store::Store;

/// Time between two looks for what is old.
const INTERVAL: Duration = Duration::from_hours(1);
/// Pause between batches, for everybody else.
const PAUSE: Duration = Duration::from_millis(50);
/// Jobs whose events one batch removes, and events.
const EVENT_JOBS: i64 = 100;
const EVENTS: i64 = 5_000;
/// Jobs in a batch: each may take many events with it.
const JOBS: i64 = 10;
/// Sums of usage in a batch.
const SUMS: i64 = 5_000;
/// Batches of requests that are removed in one statement.
const BATCHES: i64 = 1_000;
/// Responses in a batch: each may take many events with it.
const RESPONSES: i64 = 100;

/// What a look removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Events, without those of removed jobs.
    pub events: u64,
    /// Jobs.
    pub jobs: u64,
    /// Result files of these jobs.
    pub files: u64,
    /// Batches.
    pub batches: u64,
    /// Sums of usage.
    pub sums: u64,
    /// Stored completions.
    pub completions: u64,
    /// Files that have expired.
    pub expired_files: u64,
    /// Events of webhooks.
    pub webhook_events: u64,
    /// Responses.
    pub responses: u64,
    /// Conversations.
    pub conversations: u64,
}

/// Looks for what is too old at the start and every hour. What fails is tried again then.
pub async fn run(store: Store, retention: Retention) {
    loop {
        match prune(&store, retention).await {
            Ok(pruned) if pruned == Pruned::default() => {}
            Ok(pruned) => tracing::info!(
                events = pruned.events,
                jobs = pruned.jobs,
                files = pruned.files,
                batches = pruned.batches,
                sums = pruned.sums,
                completions = pruned.completions,
                expired_files = pruned.expired_files,
                webhook_events = pruned.webhook_events,
                responses = pruned.responses,
                conversations = pruned.conversations,
                "removed what is older than the settings of retention keep it"
            ),
            Err(error) => tracing::warn!("cannot remove what is too old: {error}"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Removes everything that is too old now.
pub async fn prune(store: &Store, retention: Retention) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    if let Some(days) = days(retention.job_event_days) {
        pruned.events = prune_events(store, days).await?;
    }
    if let Some(days) = days(retention.ended_job_days) {
        prune_jobs(store, days, &mut pruned).await?;
        pruned.batches = prune_all(store, sql::PRUNE_BATCHES, days, BATCHES).await?;
    }
    if let Some(days) = days(retention.usage_days) {
        pruned.sums = prune_all(store, sql::PRUNE_USAGE, days, SUMS).await?;
    }
    if let Some(days) = days(retention.response_days) {
        pruned.responses = prune_all(store, sql::PRUNE_RESPONSES, days, RESPONSES).await?;
        pruned.conversations = until_none(|| store.prune_conversations(days)).await?;
    }
    if let Some(days) = days(retention.stored_completion_days) {
        pruned.completions = until_none(|| store.prune_stored_completions(days)).await?;
    }
    pruned.expired_files = until_none(|| store.remove_expired_files()).await?;
    pruned.webhook_events = until_none(|| store.prune_webhook_events()).await?;
    Ok(pruned)
}

/// Returns the days as the database counts them; `None` for ever.
fn days(setting: u32) -> Option<i32> {
    i32::try_from(setting).ok().filter(|days| *days > 0)
}

async fn prune_events(store: &Store, days: i32) -> Result<u64> {
    let mut removed = 0;
    loop {
        let batch = sqlx::query_as(sql::PRUNE_EVENTS).bind(days).bind(EVENT_JOBS).bind(EVENTS);
        let (events, jobs): (i64, i64) = batch.fetch_one(&store.pool).await?;
        removed += events as u64;
        if (events, jobs) == (0, 0) {
            return Ok(removed);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn prune_jobs(store: &Store, days: i32, pruned: &mut Pruned) -> Result<()> {
    loop {
        let batch = sqlx::query_as(sql::PRUNE_JOBS).bind(days).bind(JOBS);
        let (jobs, files): (i64, Vec<String>) = batch.fetch_one(&store.pool).await?;
        if jobs == 0 {
            return Ok(());
        }
        pruned.jobs += jobs as u64;
        pruned.files += files.len() as u64;
        for file in files {
            // Rows first: contents without a row are found by the sweep.
            store.remove_content_of_deleted(&file).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes batch after batch until one is empty; returns how much it was.
async fn until_none<F: Future<Output = crate::store::Result<u64>>>(batch: impl Fn() -> F) -> Result<u64> {
    let mut removed = 0;
    loop {
        match batch().await? {
            0 => return Ok(removed),
            some => removed += some,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes rows by `statement`, `batch` at a time, until none is left that is older than `days`.
async fn prune_all(store: &Store, statement: &'static str, days: i32, batch: i64) -> Result<u64> {
    let mut removed = 0;
    loop {
        let pruned = sqlx::query(statement).bind(days).bind(batch);
        match pruned.execute(&store.pool).await?.rows_affected() {
            0 => return Ok(removed),
            rows => removed += rows,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
