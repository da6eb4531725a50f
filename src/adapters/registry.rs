//! From a model's name to its adapter: what is in memory, loaded from the store on first use. Names point to immutable
//! generations and are re-pointed atomically; a lease is an `Arc` that outlives the name.
//!
//! The API leases before it queues a request; a finished job publishes. The row in the store is the one truth about names
//! and is read for every lease, so that models made, re-pointed or deleted by another process are noticed at once; only the
//! weights are kept here, by generation, so that names of one generation share them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::adapters::peft::{self, PeftFiles};
use crate::adapters::{Adapter, AdapterLease};
use crate::engine::catalog::Catalog;
use crate::store::Store;
use crate::store::models::{FineTunedModel, NewModel};
use crate::{Error, Result};

/// Bytes of adapters that are kept without a lease on them.
const MAX_RESIDENT_BYTES: usize = 1 << 30;
/// How long bringing an adapter in waits for others that are under way.
const TURN_WAIT: Duration = Duration::from_secs(30);
/// Times that a name may be re-pointed while it is being leased.
const LEASE_ATTEMPTS: usize = 3;

/// Key of the blob with a generation's configuration.
pub fn config_key(generation: &str) -> String {
    format!("adapters/{generation}/adapter_config.json")
}

/// Key of the blob with a generation's weights.
pub fn weights_key(generation: &str) -> String {
    format!("adapters/{generation}/adapter_model.safetensors")
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct AdapterRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    catalog: Catalog,
    resident: Mutex<Resident>,
    /// Loads under way, by generation: whoever asks for the same one waits for it.
    loads: Mutex<HashMap<String, Arc<OnceCell<AdapterLease>>>>,
    /// One adapter is brought in at a time: its files lie in memory meanwhile.
    turn: Arc<Semaphore>,
}

impl AdapterRegistry {
    /// An empty registry over the stored models; adapters go to the device of their base in `catalog`.
    pub fn new(store: Store, catalog: Catalog) -> Self {
        let resident = Mutex::new(Resident::new(MAX_RESIDENT_BYTES));
        let turn = Arc::new(Semaphore::new(1));
        Self { inner: Arc::new(Inner { store, catalog, resident, loads: Mutex::default(), turn }) }
    }

    /// The base model's id and the current generation of `name`, a model of the organisation or one that it has permission
    /// for, loaded from the store where it is not in memory; [`crate::Error::ModelNotFound`] otherwise.
    pub async fn lease(&self, organization: &str, name: &str) -> Result<(String, AdapterLease)> {
        let mut row = self.row(organization, name).await?;
        for _ in 0..LEASE_ATTEMPTS {
            match self.generation(&row).await {
                Ok(adapter) => return Ok((row.base, adapter)),
                // The name may have been deleted or re-pointed between the row and the files.
                Err(Error::Blob(object_store::Error::NotFound { .. })) => {
                    let now = self.row(organization, name).await?;
                    if now.adapter == row.adapter {
                        break;
                    }
                    row = now;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Internal(format!("the files of adapter {} are missing", row.adapter)))
    }

    /// What the name points to now.
    async fn row(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        let row = self.inner.store.usable_model(organization, name).await;
        if matches!(row, Err(Error::ModelNotFound(_))) {
            self.forget(organization, name);
        }
        row
    }

    /// The generation, from memory or from the store.
    async fn generation(&self, row: &FineTunedModel) -> Result<AdapterLease> {
        if let Some(adapter) = self.resident().get(&row.adapter) {
            return Ok(adapter);
        }
        let cell = Arc::clone(lock(&self.inner.loads).entry(row.adapter.clone()).or_default());
        let loaded = cell.get_or_try_init(|| self.load(row)).await.cloned();
        self.end_load(&row.adapter, &cell);
        loaded
    }

    /// Waits for the right to [`AdapterRegistry::install`]; [`Error::Overloaded`] where others take too long.
    pub async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        match tokio::time::timeout(TURN_WAIT, Arc::clone(&self.inner.turn).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(Error::Internal("no adapters are brought in any more".into())),
            Err(_) => {
                Err(Error::Overloaded { what: "other adapters are being loaded", retry_after: Duration::from_secs(5) })
            }
        }
    }

    /// Brings an adapter from elsewhere in under `name`: checks that it fits `base`, stores it and keeps it in memory. What
    /// was under the name before is replaced if `replace`, else the name is refused; leases on it live on.
    pub async fn install(
        &self,
        organization: &str,
        name: &str,
        base: &str,
        files: PeftFiles,
        replace: bool,
    ) -> Result<()> {
        let model = Arc::clone(&self.inner.catalog.get(base)?.model);
        let read = move || {
            let adapter = peft::read(&files.config, &files.weights, &model.config, model.decoder.device())?;
            Ok::<_, Error>((files, adapter))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (files, adapter) = read.map_err(|error| Error::Internal(format!("reading an adapter: {error}")))??;
        let blobs = vec![
            (config_key(&adapter.id), Bytes::from(files.config)),
            (weights_key(&adapter.id), Bytes::from(files.weights)),
        ];
        let new = NewModel {
            organization: organization.into(),
            name: name.into(),
            base: base.into(),
            adapter: adapter.id.clone(),
        };
        self.inner.store.add_model(new, blobs, replace).await?;
        self.publish(organization, name, base, Arc::new(adapter));
        Ok(())
    }

    /// Keeps a generation that is in memory already, so that the first lease of `name` needs no file: what a finishing job
    /// in this process calls before it commits. The name itself becomes visible with its row.
    pub fn publish(&self, organization: &str, name: &str, base: &str, adapter: Arc<Adapter>) {
        tracing::info!(organization, name, base, adapter = adapter.id, "adapter in memory");
        let mut resident = self.resident();
        resident.point((organization.into(), name.into()), &adapter.id);
        resident.insert(adapter);
    }

    /// Forgets `name`; leases live on.
    pub fn forget(&self, organization: &str, name: &str) {
        self.resident().forget(&(organization.into(), name.into()));
    }

    /// Takes a finished load away, unless another one has begun since.
    fn end_load(&self, generation: &str, cell: &Arc<OnceCell<AdapterLease>>) {
        let mut loads = lock(&self.inner.loads);
        if loads.get(generation).is_some_and(|current| Arc::ptr_eq(current, cell)) {
            loads.remove(generation);
        }
    }

    fn resident(&self) -> MutexGuard<'_, Resident> {
        lock(&self.inner.resident)
    }

    /// Reads a generation from the store, off the async threads.
    async fn load(&self, row: &FineTunedModel) -> Result<AdapterLease> {
        // Another load may have ended between the look into memory and this one.
        if let Some(adapter) = self.resident().get(&row.adapter) {
            return Ok(adapter);
        }
        let model = Arc::clone(&self.inner.catalog.get(&row.base)?.model);
        let blobs = &self.inner.store.blobs;
        let (config_key, weights_key) = (config_key(&row.adapter), weights_key(&row.adapter));
        let (config, weights) = tokio::try_join!(blobs.get(&config_key), blobs.get(&weights_key))?;
        let generation = row.adapter.clone();
        let adapter = tokio::task::spawn_blocking(move || {
            let files = PeftFiles { config: config.into(), weights: weights.into() };
            if files.id() != generation {
                return Err(Error::Internal(format!("the files of adapter {generation} do not match its hash")));
            }
            peft::read(&files.config, &files.weights, &model.config, model.decoder.device())
        })
        .await
        .map_err(|error| Error::Internal(format!("loading an adapter: {error}")))??;
        let adapter = Arc::new(adapter);
        let mut resident = self.resident();
        resident.point((row.organization.clone(), row.name.clone()), &row.adapter);
        resident.insert(Arc::clone(&adapter));
        Ok(adapter)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Generations in memory, least recently used ones let go first.
struct Resident {
    limit: usize,
    bytes: usize,
    clock: u64,
    generations: HashMap<String, Generation>,
    /// Names under which this process has met a generation, so that forgetting the last one frees it at once.
    names: HashMap<(String, String), String>,
}

/// One generation; `kept` is gone once it was let go, `leased` finds it as long as somebody still uses it.
struct Generation {
    kept: Option<Arc<Adapter>>,
    leased: Weak<Adapter>,
    used: u64,
}

impl Resident {
    fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, clock: 0, generations: HashMap::new(), names: HashMap::new() }
    }

    /// The generation, if it is in memory, now the most recently used one.
    fn get(&mut self, id: &str) -> Option<AdapterLease> {
        let adapter = self.generations.get(id)?.leased.upgrade()?;
        self.insert(Arc::clone(&adapter));
        Some(adapter)
    }

    /// Keeps `adapter`, letting go of others where the limit is passed; the newest always stays.
    fn insert(&mut self, adapter: Arc<Adapter>) {
        self.clock += 1;
        let newest = adapter.id.clone();
        self.bytes += adapter.bytes();
        let generation = Generation { leased: Arc::downgrade(&adapter), used: self.clock, kept: Some(adapter) };
        if let Some(Generation { kept: Some(before), .. }) = self.generations.insert(newest.clone(), generation) {
            self.bytes -= before.bytes();
        }
        while self.bytes > self.limit {
            let others = self.generations.iter().filter(|(id, other)| other.kept.is_some() && **id != newest);
            let Some(oldest) = others.min_by_key(|(_, other)| other.used).map(|(id, _)| id.clone()) else { break };
            self.release(&oldest);
        }
        self.generations.retain(|_, generation| generation.kept.is_some() || generation.leased.strong_count() > 0);
    }

    /// Stops keeping a generation.
    fn release(&mut self, id: &str) {
        if let Some(adapter) = self.generations.get_mut(id).and_then(|generation| generation.kept.take()) {
            self.bytes -= adapter.bytes();
        }
    }

    /// Notes that `name` means the generation `id` now; what it meant before goes where nothing else means it.
    fn point(&mut self, name: (String, String), id: &str) {
        if self.names.get(&name).is_none_or(|before| before != id) {
            self.forget(&name);
            self.names.insert(name, id.into());
        }
    }

    fn forget(&mut self, name: &(String, String)) {
        if let Some(id) = self.names.remove(name)
            && !self.names.values().any(|other| *other == id)
        {
            self.release(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::adapters::{LoraLayer, LoraPair, Site};

    /// An adapter of 4 · (8 + 8) = 64 bytes.
    fn adapter(id: &str) -> Arc<Adapter> {
        let matrix = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let mut layer = LoraLayer::default();
        layer.set(Site::Query, LoraPair { a: matrix((1, 8)), b: matrix((8, 1)), scale: 1.0 });
        Arc::new(Adapter { id: id.into(), layers: vec![layer] })
    }

    #[test]
    fn the_least_recently_used_generation_is_let_go_first() {
        let mut resident = Resident::new(128);
        resident.insert(adapter("a"));
        resident.insert(adapter("b"));
        assert!(resident.get("a").is_some());
        resident.insert(adapter("c"));
        assert!(resident.get("a").is_some() && resident.get("b").is_none() && resident.get("c").is_some());
        assert_eq!(resident.bytes, 128);
    }

    #[test]
    fn a_leased_generation_is_found_again_instead_of_loaded_twice() {
        let mut resident = Resident::new(64);
        let leased = adapter("a");
        resident.insert(Arc::clone(&leased));
        resident.insert(adapter("b"));
        assert!(Arc::ptr_eq(&resident.get("a").unwrap(), &leased));
        assert_eq!(resident.bytes, 64);
    }

    #[test]
    fn a_name_that_is_re_pointed_lets_its_old_generation_go() {
        let mut resident = Resident::new(1024);
        let name = || ("org".to_string(), "one".to_string());
        for id in ["a", "b", "b"] {
            resident.point(name(), id);
            resident.insert(adapter(id));
        }
        assert_eq!(resident.bytes, 64);
        assert!(resident.get("a").is_none() && resident.get("b").is_some());
    }

    #[test]
    fn forgetting_the_last_name_frees_the_generation_and_leaves_leases_alone() {
        let mut resident = Resident::new(1024);
        let name = |name: &str| ("org".to_string(), name.to_string());
        let leased = adapter("a");
        resident.insert(Arc::clone(&leased));
        resident.names.insert(name("one"), "a".into());
        resident.names.insert(name("two"), "a".into());
        resident.forget(&name("one"));
        assert_eq!(resident.bytes, 64);
        resident.forget(&name("two"));
        assert_eq!(resident.bytes, 0);
        assert_eq!(Arc::strong_count(&leased), 1);
    }
}
