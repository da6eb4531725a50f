//! Looks at the files of a job that may be created: what was understood of them, or the lines at fault. `api` asks for
//! its page of a new fine-tune, before any settings are chosen.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cancellable_reader::cancellable;
use super::estimate::{Estimator, LONGEST, LONGEST_WAIT, Stopper};
use super::inputs::Inputs;
use super::lease::Control;
use crate::datasets::faults::Faults;
use crate::datasets::{self, DatasetReport, Digests, Examined, NotedLines, Purpose, ShownExample};
use crate::jobs::{Error, JobApi, JobSpec, Result};
use crate::train::hyperparameters::Method;

/// Rendered examples that are shown of the training file.
const SHOWN: usize = 3;

/// What was found in the files of a job.
#[derive(Debug)]
pub struct Examination {
    /// In the training file.
    pub training: Finding,
    /// In the validation file, if there is one.
    pub validation: Option<Finding>,
    /// Lines of the validation file that are examples of the training file, too.
    pub shared: NotedLines,
}

/// What was found in a file.
#[derive(Debug)]
pub enum Finding {
    /// Examples.
    Understood(Box<Understood>),
    /// Lines with faults.
    Faulty(Faults),
    /// It cannot be trained on as a whole, with the reason.
    Refused(String),
}

/// What was understood of a file.
#[derive(Debug)]
pub struct Understood {
    /// Its counts.
    pub report: DatasetReport,
    /// Its first examples, as they are learned.
    pub examples: Vec<ShownExample>,
}

impl Estimator {
    /// Reads the files of the organisation's job as training would. It stops if the caller goes away, and on `shutdown`.
    pub async fn examine(
        &self,
        organization: &str,
        spec: &JobSpec,
        shutdown: &CancellationToken,
    ) -> Result<Examination> {
        let busy = Error::Overloaded {
            what: "other files are being checked",
            retry_after: std::time::Duration::from_secs(10),
        };
        let turn = tokio::time::timeout(LONGEST_WAIT, Arc::clone(&self.looks).acquire_owned()).await;
        let turn = turn.map_err(|_| busy)?.map_err(|error| Error::Internal(format!("looks at files: {error}")))?;
        let control = Arc::new(Control::default());
        let _stopper = Stopper(Arc::clone(&control));
        let (progress, _) = mpsc::channel(1);
        let (_, inputs) = self.worker.gather(organization, JobApi::FineTuningJobs, spec, &control, progress).await?;
        let looking = tokio::task::spawn_blocking(move || {
            // As for estimates, the turn lasts as long as the thread.
            let _turn = turn;
            examine(&inputs)
        });
        tokio::select! {
            found = looking => found.map_err(|error| Error::Internal(format!("the examining thread: {error}")))?,
            () = tokio::time::sleep(LONGEST) => {
                let message = format!("The file could not be read within {} minutes.", LONGEST.as_secs() / 60);
                let refused = Finding::Refused(message);
                Ok(Examination { training: refused, validation: None, shared: NotedLines::default() })
            }
            () = shutdown.cancelled() => Err(Error::Unavailable("The server is shutting down.")),
        }
    }
}

fn examine(inputs: &Inputs) -> Result<Examination> {
    let (training, digests) = look(inputs, &inputs.training_file, Purpose::Training, SHOWN)?;
    let Some(file) = &inputs.validation_file else {
        return Ok(Examination { training, validation: None, shared: NotedLines::default() });
    };
    let (validation, held_out) = look(inputs, file, Purpose::Validation, 0)?;
    let shared = held_out.shared_with(&digests);
    Ok(Examination { training, validation: Some(validation), shared })
}

/// Reads one of the files; returns its digests, too, which are empty unless it was understood.
fn look(inputs: &Inputs, file: &File, purpose: Purpose, shown: usize) -> Result<(Finding, Digests)> {
    let (model, of_preferences) = (&*inputs.model, inputs.method == Method::Dpo);
    let reader = cancellable(file, &inputs.surroundings.control)?;
    match datasets::examine(reader, purpose, of_preferences, model, &inputs.render_settings()?) {
        Ok(Examined::Fine(dataset)) => {
            let examples = datasets::first_examples(&dataset.examples, shown, of_preferences, model)?;
            Ok((Finding::Understood(Box::new(Understood { report: dataset.report, examples })), dataset.digests))
        }
        Ok(Examined::Faulty(faults)) => Ok((Finding::Faulty(faults), Digests::default())),
        Err(attune_train::Error::File { message, .. }) => Ok((Finding::Refused(message), Digests::default())),
        Err(error) => Err(error.into()),
    }
}
