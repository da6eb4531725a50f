//! Shows what the folder holds.

use super::folder::Folder;
use super::ledger::Carried;
use crate::Result;

/// Prints what is there; `whole` with every job and file.
pub(super) fn show(_folder: &Folder, _whole: bool) -> Result<()> {
    Ok(())
}

/// Prints what could not be carried over.
pub(super) fn problems(_carried: &Carried) {}
