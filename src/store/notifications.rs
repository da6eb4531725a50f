//! Listens to the notifications of the database's triggers. The job queue, the keys, and all work in the background
//! listen, each on a connection of its own that serves the whole process.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio_util::task::AbortOnDropHandle;

use crate::store::Result;
use crate::store::Store;

/// Pauses between attempts to connect again.
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);

/// What a listener is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Heard<'a> {
    /// A notification, with its payload.
    Payload(&'a str),
    /// The connection was lost and is back: notifications of the time between are lost too, so anything may have
    /// changed.
    Gap,
}

/// A channel, with what is called for every notification on it.
pub(crate) type Ear = (&'static str, Box<dyn Fn(Heard<'_>) + Send + Sync>);

/// Calls `hear` for every notification on `channel` until the handle is dropped.
pub(crate) async fn listen(
    store: &Store,
    channel: &'static str,
    hear: impl Fn(Heard<'_>) + Send + Sync + 'static,
) -> Result<AbortOnDropHandle<()>> {
    let ear: Ear = (channel, Box::new(hear));
    listen_to(store, vec![ear]).await
}

/// As [`listen`], to several channels on one connection.
pub(crate) async fn listen_to(store: &Store, ears: Vec<Ear>) -> Result<AbortOnDropHandle<()>> {
    let mut listener = connect(store, &ears).await?;
    let store = store.clone();
    let task = tokio::spawn(async move {
        let channels = ears.iter().map(|(channel, _)| *channel).collect::<Vec<_>>().join(", ");
        let mut pause = *RETRY.start();
        loop {
            // A panic must not end the listening, or this process would never hear of a change again.
            let ended = AssertUnwindSafe(pass_on(&mut listener, &ears)).catch_unwind().await;
            let reason = ended.map_or_else(|_| "a change panicked".to_owned(), |error| error.to_string());
            tracing::warn!(channels, "lost the connection that hears of changes: {reason}");
            listener = loop {
                tokio::time::sleep(pause).await;
                match connect(&store, &ears).await {
                    Ok(listener) => break listener,
                    Err(error) => tracing::warn!(channels, "cannot hear of changes yet: {error}"),
                }
                pause = (pause * 2).min(*RETRY.end());
            };
            pause = *RETRY.start();
            for (_, hear) in &ears {
                hear(Heard::Gap);
            }
        }
    });
    Ok(AbortOnDropHandle::new(task))
}

/// A connection of its own, so that it does not take one from the requests and is not closed for its age.
async fn connect(store: &Store, ears: &[Ear]) -> Result<PgListener> {
    let options = (*store.pool.connect_options()).clone();
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen_all(ears.iter().map(|(channel, _)| *channel)).await?;
    Ok(listener)
}

/// Passes notifications on until the connection is lost.
async fn pass_on(listener: &mut PgListener, ears: &[Ear]) -> sqlx::Error {
    loop {
        match listener.try_recv().await {
            Ok(Some(notification)) => {
                let of_channel = ears.iter().filter(|(channel, _)| *channel == notification.channel());
                of_channel.for_each(|(_, hear)| hear(Heard::Payload(notification.payload())));
            }
            // The connection was lost and is back already.
            Ok(None) => ears.iter().for_each(|(_, hear)| hear(Heard::Gap)),
            Err(error) => return error,
        }
    }
}
