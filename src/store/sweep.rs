//! Removes blobs that no row names: a process was killed between writing a blob and its row, or between deleting the
//! row and the blob, or lost its lease while it wrote. `app` starts [`Store::keep_swept`], which works through all of
//! them once an hour, while requests and jobs go on: whatever it finds is looked at again once it is out of its place
//! ([`crate::store::removal`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng as _;

use crate::store::blobs::removal::Remains;
use crate::store::removal::is_younger;
use crate::store::{Error, Result, Store};

/// Younger files and adapters may belong to a row that another process is about to write.
const GRACE: Duration = Duration::from_hours(1);
/// Time between two sweeps by any of the processes that share the database.
const PERIOD: Duration = Duration::from_hours(1);
/// Time between looks whether a sweep is due, drawn for each, so that processes do not ask at the same moment.
const LOOKS: std::ops::Range<u64> = 60..300;
/// Names that one query asks for.
const BATCH: usize = 500;

/// The work of one sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs seen.
    pub listed: usize,
    /// Files, adapters, states and short-lived files removed.
    pub removed: usize,
}

impl Store {
    /// Sweeps whenever it is this process's turn, for ever.
    pub async fn keep_swept(self) {
        // What a killed process took out of its place may have a name: it goes back before anybody misses it.
        if let Err(error) = self.settle_taken_away().await {
            tracing::warn!(%error, "cannot look through what was taken away");
        }
        loop {
            match self.sweep_if_due().await {
                Ok(None) => {}
                Ok(Some(swept)) => tracing::debug!(?swept, "swept the blobs"),
                Err(error) => tracing::warn!(%error, "cannot sweep the blobs"),
            }
            let pause = rand::rng().random_range(LOOKS);
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }

    /// Sweeps if no process has done so for an hour; `None` if one has.
    pub async fn sweep_if_due(&self) -> Result<Option<Swept>> {
        let turn: Option<bool> = sqlx::query_scalar(
            "insert into chores (name, due_at) values ('sweep', now() + make_interval(secs => $1))
             on conflict (name) do update set due_at = excluded.due_at where chores.due_at <= now()
             returning true",
        )
        .bind(PERIOD.as_secs_f64())
        .fetch_optional(&self.pool)
        .await?;
        if turn.is_some() { self.sweep().await.map(Some) } else { Ok(None) }
    }

    /// Removes files and adapters that no row names and that are older than an hour, states that no job goes on from,
    /// parts of uploads that have ended, and short-lived files older than an hour. Safe beside other processes, requests and jobs.
    pub async fn sweep(&self) -> Result<Swept> {
        self.sweep_older_than(GRACE).await
    }

    /// [`Store::sweep`] with another grace period, for tests and for an operator in need of space.
    pub async fn sweep_older_than(&self, grace: Duration) -> Result<Swept> {
        let mut swept = Swept { removed: self.settle_taken_away().await?, ..Swept::default() };
        self.sweep_files(grace, &mut swept).await?;
        self.sweep_adapters(grace, &mut swept).await?;
        self.sweep_states(&mut swept).await?;
        self.sweep_uploads(grace, &mut swept).await?;
        swept.removed += self.sweep_scratch(grace).await?;
        Ok(swept)
    }

    /// Deletes what was taken away by a process that was killed before it had looked at the rows again, or puts it
    /// back; returns how much was deleted.
    async fn settle_taken_away(&self) -> Result<usize> {
        let mut removed = 0;
        for taken in self.blobs.taken_away().await? {
            removed += usize::from(self.settle(&taken).await?);
        }
        Ok(removed)
    }

    async fn sweep_files(&self, grace: Duration, swept: &mut Swept) -> Result<()> {
        let found = self.blobs.remains("files").await?;
        swept.listed += found.len();
        self.remove_unfinished(&found, grace, swept).await?;
        let complete = found.iter().filter(|file| !file.is_unfinished() && !is_younger(file, grace));
        let names: Vec<String> = complete.filter_map(name_of).collect();
        for batch in names.chunks(BATCH) {
            let query =
                "select found from unnest($1::text[]) found where not exists (select from files where id = found)";
            let unnamed: Vec<String> = sqlx::query_scalar(query).bind(batch).fetch_all(&self.pool).await?;
            for name in unnamed {
                swept.removed += usize::from(self.remove_file_without_row(&name).await?);
            }
        }
        Ok(())
    }

    async fn sweep_adapters(&self, grace: Duration, swept: &mut Swept) -> Result<()> {
        let found = self.blobs.remains("adapters").await?;
        swept.listed += found.len();
        let (young, old): (Vec<_>, Vec<_>) = found.iter().partition(|file| is_younger(file, grace));
        let names = |files: Vec<&Remains>| files.into_iter().filter_map(name_of).collect::<BTreeSet<String>>();
        let names: Vec<String> = names(old).difference(&names(young)).cloned().collect();
        for batch in names.chunks(BATCH) {
            let query = "select found from unnest($1::text[]) found
                          where not exists (select from fine_tuned_models where adapter = found)";
            let unnamed: Vec<String> = sqlx::query_scalar(query).bind(batch).fetch_all(&self.pool).await?;
            for name in unnamed {
                swept.removed += usize::from(self.remove_adapter(&name, grace).await?);
            }
        }
        // What stays has a name; beside its files may lie some that a killed process began.
        let left = self.blobs.remains("adapters").await?;
        self.remove_unfinished(&left, grace, swept).await
    }

    /// Removes states whatever their age. One that is of no use stays so: a row can only come to name a state of the
    /// attempt that runs, and attempts only grow.
    async fn sweep_states(&self, swept: &mut Swept) -> Result<()> {
        let found = self.blobs.remains("checkpoints").await?;
        swept.listed += found.len();
        for batch in found.chunks(BATCH) {
            let blobs: Vec<&str> = batch.iter().map(|state| state.key.as_str()).collect();
            let jobs: Vec<Option<String>> = batch.iter().map(name_of).collect();
            let attempts: Vec<Option<i32>> = batch.iter().map(|state| attempt_of(&state.key)).collect();
            let useless: Vec<String> = sqlx::query_scalar(
                "select blob from unnest($1::text[], $2::text[], $3::int[]) as found (blob, job_id, attempt_number)
                  where not exists (
                      select from jobs
                       where id = job_id and (status in ('queued', 'running', 'paused') or resumable_until > now())
                         and (checkpoint->>'key' = blob or attempt_number is null
                              or (status = 'running' and attempt_number >= attempt)))",
            )
            .bind(blobs)
            .bind(jobs)
            .bind(attempts)
            .fetch_all(&self.pool)
            .await?;
            for blob in useless {
                self.blobs.remove(&blob).await?;
                swept.removed += 1;
            }
        }
        Ok(())
    }

    /// Removes the parts of uploads that have ended, and uploads that have expired long ago. Parts of an upload that has
    /// just expired may be about to become a file.
    async fn sweep_uploads(&self, grace: Duration, swept: &mut Swept) -> Result<()> {
        let found = self.blobs.remains("uploads").await?;
        swept.listed += found.len();
        self.remove_unfinished(&found, grace, swept).await?;
        let old = found.iter().filter(|part| !part.is_unfinished() && !is_younger(part, grace));
        let names: BTreeSet<String> = old.filter_map(name_of).collect();
        let names: Vec<String> = names.into_iter().collect();
        for batch in names.chunks(BATCH) {
            let ended: Vec<String> = sqlx::query_scalar(
                "select found from unnest($1::text[]) found
                  where not exists (select from uploads where id = found and status = 'pending'
                                                          and expires_at > now() - make_interval(secs => $2))",
            )
            .bind(batch)
            .bind(grace.as_secs_f64())
            .fetch_all(&self.pool)
            .await?;
            for upload in ended {
                self.blobs.remove(&format!("uploads/{upload}")).await?;
                swept.removed += 1;
            }
        }
        sqlx::query("delete from uploads where expires_at < now() - interval '30 days'").execute(&self.pool).await?;
        Ok(())
    }

    /// Removes files that no process has written to for the time of `grace` and none has completed.
    async fn remove_unfinished(&self, found: &[Remains], grace: Duration, swept: &mut Swept) -> Result<()> {
        for file in found.iter().filter(|file| file.is_unfinished() && !is_younger(file, grace)) {
            self.blobs.remove(&file.key).await?;
            swept.removed += 1;
        }
        Ok(())
    }

    /// Removes files that a killed process left in the folder for short-lived ones; returns how many.
    async fn sweep_scratch(&self, grace: Duration) -> Result<usize> {
        let folder = Arc::clone(&self.scratch);
        let context = || Error::io(format!("sweep {}", self.scratch.display()));
        let mut entries = tokio::fs::read_dir(&folder).await.map_err(context())?;
        let mut removed = 0;
        while let Some(entry) = entries.next_entry().await.map_err(context())? {
            // What is gone meanwhile needs no sweeping.
            let Ok(metadata) = entry.metadata().await else { continue };
            let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
            let old = metadata.is_file() && age.is_some_and(|age| age >= grace);
            if old && tokio::fs::remove_file(entry.path()).await.is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Returns the second segment of the key: a file, an adapter, or a job.
fn name_of(file: &Remains) -> Option<String> {
    file.key.split('/').nth(1).map(str::to_owned)
}

/// Returns the number of the attempt that a state is of; `None` if its key does not tell.
fn attempt_of(key: &str) -> Option<i32> {
    key.split('/').nth(2)?.strip_prefix("attempt-")?.parse().ok()
}
