//! Copies the folder into the local server.

use super::folder::Folder;
use super::ledger::Ledger;
use super::local::Local;
use crate::Result;

/// Copies what the ledger does not have yet.
pub(super) async fn carry(_folder: &Folder, _ledger: &mut Ledger, _local: &Local) -> Result<()> {
    Ok(())
}
