//! From a model's name to its adapter: what is in memory, loaded from the store on first use. Names point to immutable
//! generations and are re-pointed atomically; a lease is an `Arc` that outlives the name.

use std::sync::Arc;

use crate::Result;
use crate::adapters::{Adapter, AdapterLease};
use crate::engine::catalog::Catalog;
use crate::store::Store;

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct AdapterRegistry {}

impl AdapterRegistry {
    /// An empty registry over the stored models; adapters go to the device of their base in `catalog`.
    pub fn new(store: Store, catalog: Catalog) -> Self {
        let _ = (store, catalog);
        todo!()
    }

    /// The base model's id and the current generation of the organisation's model `name`, loaded from the store where it
    /// is not in memory; [`crate::Error::ModelNotFound`] otherwise.
    pub async fn lease(&self, organization: &str, name: &str) -> Result<(String, AdapterLease)> {
        let _ = (organization, name);
        todo!()
    }

    /// Points `name` to a generation that is in memory already: what a finished job in this process calls.
    pub fn publish(&self, organization: &str, name: &str, base: &str, adapter: Arc<Adapter>) {
        let _ = (organization, name, base, adapter);
        todo!()
    }

    /// Forgets `name`; leases live on.
    pub fn forget(&self, organization: &str, name: &str) {
        let _ = (organization, name);
        todo!()
    }
}
