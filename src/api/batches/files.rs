//! Makes the output and the error file of a batch that has ended, from the results of its lines.

use std::collections::HashSet;

use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::{AsyncWriteExt as _, BufWriter};

use super::{input, line};
use crate::api::ApiState;
use crate::api::http::error::{Problem, Result};
use crate::jobs::batches::{Batch, End, LineFault, MadeFile};
use crate::store;
use crate::store::files::new_file_id;

const WRITE: &str = "write the results of a batch";

/// A file that is being written.
struct Results {
    file: BufWriter<File>,
    path: TempPath,
    bytes: i64,
}

impl Results {
    fn new(state: &ApiState) -> Result<Self> {
        let (file, path) = state.store.new_content().map_err(Problem::io(WRITE))?.into_parts();
        Ok(Self { file: BufWriter::new(File::from_std(file)), path, bytes: 0 })
    }

    async fn add(&mut self, line: &str) -> Result<()> {
        self.file.write_all(line.as_bytes()).await.map_err(Problem::io(WRITE))?;
        self.file.write_all(b"\n").await.map_err(Problem::io(WRITE))?;
        self.bytes += line.len() as i64 + 1;
        Ok(())
    }

    /// Stores the content; `None` if nothing was written.
    async fn store(mut self, state: &ApiState) -> Result<Option<MadeFile>> {
        if self.bytes == 0 {
            return Ok(None);
        }
        self.file.flush().await.map_err(Problem::io(WRITE))?;
        let made = MadeFile { id: new_file_id(), bytes: self.bytes };
        state.store.put_file(&made.id, self.path.to_path_buf()).await?;
        Ok(Some(made))
    }
}

/// Makes the files of `batch` and ends it; returns whether it has ended so. If not, another end came first, or the lease
/// was lost, and the files are none. `faults` say why it failed.
pub(super) async fn finish(state: &ApiState, batch: &Batch, end: End, faults: &[LineFault]) -> Result<bool> {
    let (mut output, mut errors) = (Results::new(state)?, Results::new(state)?);
    let mut done = HashSet::new();
    let mut last = 0;
    loop {
        let results = state.batches.results(batch, last).await?;
        if results.is_empty() {
            break;
        }
        for (number, succeeded, content) in results {
            if succeeded { &mut output } else { &mut errors }.add(&content).await?;
            done.insert(number);
            last = number;
        }
    }
    add_unanswered(state, batch, end, &done, &mut errors).await?;
    let output = output.store(state).await?;
    let errors = errors.store(state).await?;
    let ended = state.batches.finish(batch, end, [output.as_ref(), errors.as_ref()], faults).await?;
    if !ended {
        for file in [output, errors].into_iter().flatten() {
            state.store.remove_content(&file.id).await?;
        }
    }
    Ok(ended)
}

/// Writes the lines that have no result into the error file.
async fn add_unanswered(
    state: &ApiState,
    batch: &Batch,
    end: End,
    done: &HashSet<i32>,
    errors: &mut Results,
) -> Result<()> {
    // Of a batch that was cancelled before its lines were checked nobody knows whether they are any.
    if batch.total <= done.len() as i64 {
        return Ok(());
    }
    let (code, message) = match end {
        // Its lines are lost.
        End::Failed => return Ok(()),
        End::Completed => return Err(Problem::defect(format!("{} has lines without a result", batch.id))),
        End::Expired => ("batch_expired", "This request could not be executed before the completion window expired."),
        End::Cancelled => {
            ("batch_cancelled", "This request was not executed, since the batch was cancelled before it.")
        }
    };
    let opened = match state.store.file(&batch.organization, &batch.input_file).await {
        Ok(file) => state.store.open_file(&file).await,
        Err(error) => Err(error),
    };
    let mut lines = match opened {
        Ok(file) => input::read(file),
        // Nobody knows what they were any more.
        Err(store::Error::NotFound { .. } | store::Error::BlobNotFound(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    while let Some(read) = lines.recv().await {
        let read = read?;
        if !done.contains(&read.number) {
            errors.add(&line::not_executed(&read, code, message)).await?;
        }
    }
    Ok(())
}
