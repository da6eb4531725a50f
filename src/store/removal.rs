//! Removes blobs that no row names, so that no process takes away what another one has just named, even one that stood
//! still for hours in the middle of it. Called by the rest of `store`, by the job queue and by the sweep.
//!
//! Whoever names an adapter holds the lock that [`Store::lock_adapters`] takes, and so does whoever takes its files out
//! of their place. A database ends a transaction whose client stands still, and the lock with it; then the removal
//! cannot commit, and looks at the rows again: what is named goes back to its place. Nothing is deleted before that.

use std::time::{Duration, SystemTime};

use sqlx::{Postgres, Transaction};

use crate::store::blobs::removal::{Remains, TakenAway};
use crate::store::{Result, Store};

impl Store {
    /// Begins a transaction during which no other one names or removes an adapter's blobs.
    pub(super) async fn lock_adapters(&self) -> Result<Transaction<'static, Postgres>> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("select pg_advisory_xact_lock(hashtext('adapters'))").execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// Removes a generation's blobs, unless a name points to it or a running job is about to name it.
    pub(crate) async fn remove_unused_adapter(&self, adapter: &str) -> Result<bool> {
        self.remove_adapter(adapter, Duration::ZERO).await
    }

    /// [`Self::remove_unused_adapter`], unless one of its files is younger than `grace`; returns whether it is gone.
    pub(super) async fn remove_adapter(&self, adapter: &str, grace: Duration) -> Result<bool> {
        let place = format!("adapters/{adapter}");
        let mut transaction = self.lock_adapters().await?;
        let kept = is_used(&mut transaction, adapter).await?
            || self.blobs.remains(&place).await?.iter().any(|file| is_younger(file, grace));
        let taken = if kept { None } else { self.blobs.take_away(&place).await? };
        let committed = transaction.commit().await;
        match taken {
            None => committed?,
            // The lock was held until now.
            Some(taken) if committed.is_ok() => self.blobs.discard(&taken).await?,
            Some(taken) => return self.settle(&taken).await,
        }
        Ok(!kept)
    }

    /// Deletes what was taken away, or puts it back if a row names it; returns whether it was deleted.
    pub(super) async fn settle(&self, taken: &TakenAway) -> Result<bool> {
        let (kind, name) = taken.place.split_once('/').unwrap_or_default();
        let named = if kind == "adapters" {
            let mut transaction = self.lock_adapters().await?;
            let used = is_used(&mut transaction, name).await?;
            transaction.commit().await?;
            used
        } else {
            self.has_file_row(name).await?
        };
        if named {
            self.blobs.put_back(taken).await?;
        } else {
            self.blobs.discard(taken).await?;
        }
        Ok(!named)
    }

    /// Removes the content of a file unless a row names it; returns whether it is gone. A row that is written at the
    /// same time is safe: its writer looks for the content after it, and this looks for the row after the content is
    /// away.
    pub(super) async fn remove_file_without_row(&self, id: &str) -> Result<bool> {
        match self.blobs.take_away(&format!("files/{id}")).await? {
            Some(taken) => self.settle(&taken).await,
            None => Ok(false),
        }
    }

    /// Removes all states of a job that will never go on.
    pub(crate) async fn remove_states(&self, job: &str) -> Result<()> {
        self.blobs.remove(&format!("checkpoints/{job}")).await
    }

    async fn has_file_row(&self, id: &str) -> Result<bool> {
        let found = sqlx::query_scalar("select exists (select from files where id = $1)").bind(id);
        Ok(found.fetch_one(&self.pool).await?)
    }
}

/// True if a model's row names the adapter, or an attempt that runs holds it.
async fn is_used(transaction: &mut Transaction<'static, Postgres>, adapter: &str) -> Result<bool> {
    let used = sqlx::query_scalar(
        "select exists (select from fine_tuned_models where adapter = $1)
             or exists (select from adapter_holds h join jobs j on j.key = h.job and j.attempt = h.attempt
                         where h.adapter = $1 and j.status = 'running')",
    );
    Ok(used.bind(adapter).fetch_one(&mut **transaction).await?)
}

/// True if the file was written within `grace`; a clock that was set back makes it young.
pub(super) fn is_younger(file: &Remains, grace: Duration) -> bool {
    SystemTime::now().duration_since(file.modified).unwrap_or_default() < grace
}
