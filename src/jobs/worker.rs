//! Claims jobs and runs them: file to tokens, tokens to adapter, adapter to model. Runs inside `serve`, or alone.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::adapters::registry::AdapterRegistry;
use crate::engine::catalog::Catalog;
use crate::engine::priority::Priority;
use crate::jobs::queue::Queue;
use crate::store::Store;

/// One worker; it trains one job at a time.
#[derive(Clone)]
pub struct Worker {
    /// Where jobs come from.
    pub queue: Queue,
    /// Files and adapters.
    pub store: Store,
    /// The base models.
    pub catalog: Catalog,
    /// Where finished adapters become models.
    pub registry: AdapterRegistry,
    /// Lets requests go first.
    pub priority: Arc<Priority>,
}

impl Worker {
    /// Runs until `shutdown`; then the running job is checkpointed and released.
    pub async fn run(self, shutdown: CancellationToken) {
        let _ = shutdown;
        todo!()
    }
}
