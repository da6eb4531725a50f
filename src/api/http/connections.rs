//! The open connections of a server: how many there may be, whose they are, and which of them must end. [`serving`]
//! opens one for each that it accepts and tells when its requests begin and end; `access` says whose key a request had.
//!
//! A connection belongs to the key that its last request had, and before the first to its address. All of them together
//! are bounded, and those of one client. Where a place is missing, the connection that has been idle for the longest
//! makes room, one without a key first; without a key even a running request does not keep it. So strangers displace
//! each other, and a client with a key always finds a place, unless all are taken by running requests of keys.
//!
//! [`serving`]: super::serving

mod table;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Version;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use self::table::{Holder, Table};
use crate::config::limits::ConnectionLimits;

/// Time for a connection to make room, before another is chosen.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why a connection must end before its client wishes so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It sent no request in time.
    Idle,
    /// Another needs its place.
    Displaced,
}

/// Why a request finds no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Running requests of keys hold all places.
    All,
    /// The key's own running requests hold all places that it may have.
    OfKey,
}

/// All connections of a server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    table: Arc<Mutex<Table>>,
    /// Told when a connection or a request has ended.
    changed: Arc<Notify>,
}

/// One connection. Dropping it frees its place.
pub(crate) struct Connection {
    connections: Connections,
    id: u64,
}

/// A running request; dropping it ends it.
pub(super) struct RunningRequest {
    connection: Arc<Connection>,
    is_probe: bool,
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { table: Arc::new(Mutex::new(Table::new(limits))), changed: Arc::default() }
    }

    /// Enters a connection that was accepted from `peer`, once there is a place for it. The receiver says when it must
    /// end.
    pub(super) async fn open(&self, peer: IpAddr) -> (Arc<Connection>, oneshot::Receiver<Ending>) {
        let holder = Holder::of_address(peer);
        loop {
            let changed = self.changed.notified();
            if let Some((id, ended)) = self.table.lock().enter(&holder) {
                return (Arc::new(Connection { connections: self.clone(), id }), ended);
            }
            // The chosen one may have begun a request in the same moment: then another is chosen.
            let _ = timeout(LOOK_AGAIN, changed).await;
        }
    }

    /// Ends the connection that can be missed the most, where descriptors have run out.
    pub(super) fn make_room(&self) {
        self.table.lock().make_room();
    }

    /// Ends all connections that have been idle for too long.
    pub(super) fn end_idle(&self) {
        self.table.lock().end_idle(Instant::now());
    }

    /// Returns how often to look for idle connections.
    pub(super) fn look_every(&self) -> Duration {
        (self.table.lock().idle_limit() / 16).clamp(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// Waits until no request runs.
    pub(super) async fn without_requests(&self) {
        loop {
            let changed = self.changed.notified();
            if self.table.lock().has_no_requests() {
                return;
            }
            changed.await;
        }
    }
}

impl Connection {
    /// Notes that a request began, or returns why it finds no place.
    pub(super) fn begin(self: &Arc<Self>, version: Version, is_probe: bool) -> Result<RunningRequest, NoPlace> {
        self.connections.table.lock().begin(self.id, version, is_probe)?;
        Ok(RunningRequest { connection: Arc::clone(self), is_probe })
    }

    /// Notes that the connection's request has this key, or returns why it finds no place.
    pub(crate) fn belongs_to(&self, key: &Arc<str>) -> Result<(), NoPlace> {
        self.connections.table.lock().hand_over(self.id, &Holder::Key(Arc::clone(key)))
    }

    /// Returns true if no request of a key runs, and none has begun or ended in the last `time`.
    pub(super) fn is_idle_for(&self, time: Duration) -> bool {
        self.connections.table.lock().is_idle_for(self.id, time)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.table.lock().leave(self.id);
        self.connections.changed.notify_waiters();
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        let Connection { connections, id } = &*self.connection;
        connections.table.lock().finish(*id, self.is_probe);
        connections.changed.notify_waiters();
    }
}
