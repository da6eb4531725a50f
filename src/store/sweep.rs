//! Removes blobs that no row names: a process was killed between writing a blob and its row, or between deleting the
//! row and the blob. Called by `app` at start.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::TryStreamExt as _;

use crate::store::Store;
use crate::store::{Error, Result};

/// Younger blobs may belong to a row that another process is about to write.
const GRACE: Duration = Duration::from_hours(1);
/// Objects removed in one call, so that it ends soon; the next call goes on.
const MAX_REMOVED: usize = 1_000;

/// The work of one sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs seen.
    pub listed: usize,
    /// Files, adapters, checkpoints and short-lived files removed.
    pub removed: usize,
}

impl Store {
    /// Removes files, adapters and checkpoints that no row names, and short-lived files, that are older than an hour.
    /// Bounded in work; safe beside other processes and beside requests.
    pub async fn sweep(&self) -> Result<Swept> {
        self.sweep_older_than(GRACE).await
    }

    /// [`Store::sweep`] with another grace period, for tests and for an operator in need of space.
    pub async fn sweep_older_than(&self, grace: Duration) -> Result<Swept> {
        // Each selects the candidates that no row names. `found` is no column of any table, so it means the candidate.
        let unnamed = [
            (
                "files",
                "select found from unnest($1::text[]) found where not exists (select from files where id = found)",
            ),
            // Checkpoints that serve as models are rows of the same table.
            (
                "adapters",
                "select found from unnest($1::text[]) found
                  where not exists (select from fine_tuned_models where adapter = found)",
            ),
            // A finished job never resumes. Folders are named by the job's public id; a key would be as good a name.
            (
                "checkpoints",
                "select found from unnest($1::text[]) found where not exists (
                     select from jobs where found in (id, key::text) and status in ('queued', 'running', 'paused'))",
            ),
        ];
        let mut swept = Swept::default();
        for (kind, query) in unnamed {
            let candidates = self.old_blobs(kind, grace, &mut swept).await?;
            let names: Vec<&String> = candidates.iter().collect();
            let unnamed: Vec<String> = sqlx::query_scalar(query).bind(names).fetch_all(&self.pool).await?;
            for name in unnamed {
                if swept.removed == MAX_REMOVED {
                    return Ok(swept);
                }
                self.blobs.delete_prefix(&format!("{kind}/{name}")).await?;
                swept.removed += 1;
            }
        }
        swept.removed += self.sweep_scratch(grace).await?;
        Ok(swept)
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

    /// The second segments of the keys under `kind` of which no blob is younger than `grace`.
    async fn old_blobs(&self, kind: &str, grace: Duration, swept: &mut Swept) -> Result<BTreeSet<String>> {
        let (mut old, mut young) = (BTreeSet::new(), BTreeSet::new());
        let mut entries = self.blobs.list(kind)?;
        while let Some(entry) = entries.try_next().await? {
            swept.listed += 1;
            let Some(name) = entry.key.split('/').nth(1) else { continue };
            let age = SystemTime::now().duration_since(entry.modified).unwrap_or_default();
            if age >= grace { &mut old } else { &mut young }.insert(name.to_owned());
        }
        Ok(&old - &young)
    }
}
