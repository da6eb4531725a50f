//! Hears the database's notifications and passes them on inside the process: one connection serves every stream and
//! worker.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::Result;
use crate::store::Store;

/// The database's channel; the triggers of the migrations write to it.
const CHANNEL: &str = "jobs";
/// Hints kept for a slow receiver; one that misses some reads everything again.
const KEPT: usize = 1024;
/// Pauses between attempts to connect again.
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);

/// Listens until the handle is dropped.
pub(super) async fn listen(store: &Store) -> Result<(broadcast::Sender<Uuid>, AbortOnDropHandle<()>)> {
    let (sender, _) = broadcast::channel(KEPT);
    let mut listener = connect(store).await?;
    let (store, changes) = (store.clone(), sender.clone());
    let task = tokio::spawn(async move {
        let mut pause = *RETRY.start();
        loop {
            let error = pass_on(&mut listener, &changes).await;
            tracing::warn!("lost the connection that hears of changed jobs: {error}");
            listener = loop {
                tokio::time::sleep(pause).await;
                match connect(&store).await {
                    Ok(listener) => break listener,
                    Err(error) => tracing::warn!("cannot hear of changed jobs yet: {error}"),
                }
                pause = (pause * 2).min(*RETRY.end());
            };
            pause = *RETRY.start();
            announce_gap(&changes);
        }
    });
    Ok((sender, AbortOnDropHandle::new(task)))
}

/// A connection of its own, so that it does not take one from the requests and is not closed for its age.
async fn connect(store: &Store) -> Result<PgListener> {
    let options = (*store.pool.connect_options()).clone();
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Passes notifications on until the connection is lost.
async fn pass_on(listener: &mut PgListener, changes: &broadcast::Sender<Uuid>) -> sqlx::Error {
    loop {
        match listener.try_recv().await {
            // No receiver is no fault.
            Ok(Some(notification)) => {
                if let Ok(key) = notification.payload().parse() {
                    let _ = changes.send(key);
                } else {
                    tracing::warn!("not a job's key: {:?}", notification.payload());
                }
            }
            // The connection was lost and is back already.
            Ok(None) => announce_gap(changes),
            Err(error) => return error,
        }
    }
}

/// What was sent meanwhile is lost, so any job may have changed.
fn announce_gap(changes: &broadcast::Sender<Uuid>) {
    let _ = changes.send(Uuid::nil());
}
