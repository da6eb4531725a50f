//! Receives the database's notifications of changed jobs and passes them on inside the process: one connection serves
//! every stream and worker.

use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::jobs::Result;
use crate::store::Store;
use crate::store::notifications::{self, Heard};

/// The database's channel; the triggers of the migrations write to it.
const CHANNEL: &str = "jobs";
/// Notifications kept for a slow receiver; one that misses some reads everything again.
const KEPT: usize = 1024;

/// Listens until the handle is dropped; sends the keys of changed jobs, the nil key after a gap.
pub(super) async fn listen(store: &Store) -> Result<(broadcast::Sender<Uuid>, AbortOnDropHandle<()>)> {
    let (sender, _) = broadcast::channel(KEPT);
    let changes = sender.clone();
    let task = notifications::listen(store, CHANNEL, move |heard| {
        let key = match heard {
            // Notifications of the time without a connection are lost, so any job may have changed.
            Heard::Gap => Uuid::nil(),
            Heard::Payload(payload) => match payload.parse() {
                Ok(key) => key,
                Err(_) => return tracing::warn!("not a job's key: {payload:?}"),
            },
        };
        // Sending fails only if nobody listens; that is fine.
        let _ = changes.send(key);
    });
    Ok((sender, task.await?))
}
