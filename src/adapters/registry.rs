//! Leads from a model's name to its adapter, which the first use brings from the store into memory. Names point to
//! immutable generations and are re-pointed atomically; a lease is an `Arc` that outlives the name.
//!
//! The API leases before it queues a request; a finished job publishes. The row in the store is the one truth about
//! names and is read for every lease, so that models made, re-pointed or deleted by another process are noticed at
//! once, and so that nobody reaches another organisation's adapter because it happens to be in memory. Memory itself is
//! the business of [`Tiers`], by generation, so that names of one generation share it.
//!
//! Loads run in tasks of their own, several at a time: a client that leaves ends none, and a slow one holds up nobody
//! who wants another generation. Where the engines compute on the CPU, the work of all loads together goes on in small
//! pieces beside their steps ([`SideWork`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use candle_core::Device;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use crate::adapters::limits::RegistryLimits;
use crate::adapters::peft::PeftFiles;
use crate::adapters::peft::host::HostAdapter;
use crate::adapters::pieces::Pieces;
use crate::adapters::status::{LoadCounts, Source, Status};
use crate::adapters::tiers::{Key, NoRoom, Reservation, Tiers};
use crate::adapters::verified::Verified;
use crate::adapters::{Error, Result};
use crate::config::Limits;
use crate::engine;
use crate::engine::catalog::Catalog;
use crate::engine::priority::{Priority, SideTurns, SideWork};
use crate::model::BaseModel;
use crate::model::lora::{Adapter, AdapterLease};
use crate::off_thread::{in_background, off_thread};
use crate::store::models::{FineTunedModel, NewModel};
use crate::store::{self, Store};

/// Files that are being read and checked may take this much host memory together, beside the host tier.
const LOADING_MIB: u32 = 256;
/// The work in errors that nothing else explains.
const LOADING: &str = "loading an adapter";
/// The share that a load of a small file takes, so that few run at a time.
const LOAD_MIB: u32 = 16;
/// An `Arc` tells nobody that it drops, so whoever waits for room looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
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
    limits: RegistryLimits,
    tiers: Tiers,
    /// Loads under way: whoever asks for the same generation waits for the same load.
    loads: Mutex<HashMap<Key, Load>>,
    /// MiB of files that may be in memory for being read and checked.
    loading: Arc<Semaphore>,
    counts: LoadCounts,
    /// Files that need not be hashed again.
    verified: Verified,
    /// The work of loads, where it takes cores from the engines; `None` where those compute on a GPU.
    side: Option<Arc<SideWork>>,
}

/// A load under way; all who wait get its result.
type Load = Shared<BoxFuture<'static, Result<AdapterLease>>>;

impl AdapterRegistry {
    /// An empty registry over the stored models with the default limits; adapters go to the device of their base in
    /// `catalog`.
    pub fn new(store: Store, catalog: Catalog) -> Self {
        Self::with_limits(store, catalog, RegistryLimits::from(&Limits::default()), Arc::default())
    }

    /// [`AdapterRegistry::new`] with other limits, whose loads let the requests of `priority` go first.
    pub fn with_limits(store: Store, catalog: Catalog, limits: RegistryLimits, priority: Arc<Priority>) -> Self {
        let on_cpu = catalog.entries().iter().any(|entry| entry.model.decoder.device().is_cpu());
        let side = on_cpu.then(|| Arc::new(SideWork::new(priority)));
        let tiers = Tiers::new(limits.budgets);
        let (loads, counts) = (Mutex::default(), LoadCounts::default());
        let loading = Arc::new(Semaphore::new(LOADING_MIB as usize));
        let verified = Verified::default();
        Self { inner: Arc::new(Inner { store, catalog, limits, tiers, loads, loading, counts, verified, side }) }
    }

    /// Leases the current generation of `name`, a model of the organisation or one that it has permission for, and
    /// brings it to the device if it is not there; also returns the base model's id. Fails with
    /// [`store::Error::ModelNotFound`] if there is no such name, and with [`Error::Overloaded`] while requests lease
    /// all that fits the device.
    pub async fn lease(&self, organization: &str, name: &str) -> Result<(String, AdapterLease)> {
        let mut row = self.row(organization, name).await?;
        for _ in 0..LEASE_ATTEMPTS {
            let key = key(&row.base, &row.adapter);
            if let Some(lease) = self.inner.tiers.on_device(&key) {
                self.inner.tiers.point((row.organization, row.name), &key);
                return Ok((row.base, lease));
            }
            let loaded = self.bring(&key).await;
            if let Err(error) = loaded.as_ref()
                && !is_missing(error)
            {
                return Err(error.clone());
            }
            // That took its time: the name may have been deleted or re-pointed meanwhile.
            let now = self.row(organization, name).await?;
            match loaded {
                Ok(lease) if now.adapter == row.adapter => {
                    self.inner.tiers.point((row.organization, row.name), &key);
                    return Ok((row.base, lease));
                }
                Err(_) if now.adapter == row.adapter => break,
                _ => row = now,
            }
        }
        Err(Error::Internal(format!("the files of adapter {} are missing", row.adapter)))
    }

    /// Loads the stored adapter behind `name` (f32, host memory, not laid out for serving) to continue training it;
    /// also returns the base model's id.
    pub async fn original(&self, organization: &str, name: &str) -> Result<(String, Arc<Adapter>)> {
        let row = self.row(organization, name).await?;
        let key = key(&row.base, &row.adapter);
        self.inner.catalog.get(&key.base)?;
        let (host, _, _share) = self.on_host(&key).await?;
        let adapter = self.in_pieces(move |pieces| host.to_adapter(&Device::Cpu, pieces)).await?;
        Ok((row.base, Arc::new(adapter)))
    }

    /// Reads the row that the name has now.
    async fn row(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        let row = self.inner.store.usable_model(organization, name).await;
        if matches!(row, Err(store::Error::ModelNotFound(_))) {
            self.forget(organization, name);
        }
        Ok(row?)
    }

    /// Waits for the load of the generation that is under way, or begins one.
    async fn bring(&self, key: &Key) -> Result<AdapterLease> {
        let load = {
            let mut loads = self.inner.loads.lock();
            let begin = || {
                let ending = EndOfLoad { registry: self.clone(), key: key.clone() };
                let task = tokio::spawn(async move {
                    let loaded = ending.registry.load(&ending.key).await;
                    loaded.inspect_err(|error| {
                        ending.registry.inner.counts.failed();
                        tracing::warn!(adapter = ending.key.generation, "cannot load an adapter: {error}");
                    })
                });
                let joined = task.map(|ended| match ended {
                    Ok(loaded) => loaded,
                    Err(error) => Err(Error::Internal(format!("{LOADING}: {error}"))),
                });
                joined.boxed().shared()
            };
            loads.entry(key.clone()).or_insert_with(begin).clone()
        };
        load.await
    }

    /// Returns the base model; refuses one that the second engine runs, which has no adapters beside it.
    fn base(&self, id: &str) -> Result<Arc<BaseModel>> {
        let model = Arc::clone(&self.inner.catalog.get(id)?.model);
        if model.runs_elsewhere {
            let (model, what) = (id.to_owned(), "adapters beside the model");
            return Err(engine::Error::NotOnThisEngine { model, what }.into());
        }
        Ok(model)
    }

    /// Brings a generation from host memory or from the store to the device.
    async fn load(&self, key: &Key) -> Result<AdapterLease> {
        // Another load may have ended between the look into memory and this one.
        if let Some(lease) = self.inner.tiers.on_device(key) {
            return Ok(lease);
        }
        let begin = Instant::now();
        let (host, source, _share) = self.on_host(key).await?;
        let precision = self.base(&key.base)?.decoder.adapter_precision();
        let room = self.room(host.device_bytes(precision)).await?;
        let lease = self.to_device(key, host, room).await?;
        self.inner.counts.loaded(source, begin.elapsed());
        Ok(lease)
    }

    /// Returns a generation's checked files from host memory, else from the store with the share that [`Self::fetch`]
    /// keeps.
    async fn on_host(&self, key: &Key) -> Result<(Arc<HostAdapter>, Source, Option<OwnedSemaphorePermit>)> {
        if let Some(host) = self.inner.tiers.in_host(key) {
            return Ok((host, Source::Host, None));
        }
        let (host, share) = self.fetch(key).await?;
        Ok((host, Source::Disk, share))
    }

    /// Reads a generation's files and checks them. They stay in the host tier; if that has no room for them, the caller
    /// gets their share of the memory for loads, to hold as long as the files.
    async fn fetch(&self, key: &Key) -> Result<(Arc<HostAdapter>, Option<OwnedSemaphorePermit>)> {
        let model = self.base(&key.base)?;
        let blobs = &self.inner.store.blobs;
        let (config_key, weights_key) = (config_key(&key.generation), weights_key(&key.generation));
        let bytes = self.in_time(blobs.size(&weights_key)).await?;
        let share = self.share(bytes).await?;
        let opening = async { tokio::try_join!(blobs.get(&config_key), blobs.open(&weights_key)) };
        let now = SystemTime::now();
        let (config, weights) = self.in_time(opening).await?;
        let (generation, inner) = (key.generation.clone(), Arc::clone(&self.inner));
        let reading = self.in_pieces(move |pieces| {
            inner.verified.read(&generation, &config, &weights, now, |known| {
                HostAdapter::read_stored(&generation, &config, &weights, bytes as usize, known, &model.config, pieces)
            })
        });
        let host = Arc::new(self.in_time(reading).await?);
        let kept = self.inner.tiers.keep_in_host(key, &host);
        Ok((host, (!kept).then_some(share)))
    }

    /// Waits for the store, within the time that it has.
    async fn in_time<T, E>(&self, answer: impl Future<Output = Result<T, E>>) -> Result<T>
    where
        Error: From<E>,
    {
        let late = Error::Unavailable("The storage of adapters does not answer in time. Please try again.");
        Ok(tokio::time::timeout(self.inner.limits.read_wait, answer).await.map_err(|_| late)??)
    }

    /// Does work on an adapter's bytes away from the async threads; behind the steps of engines on the CPU.
    pub async fn in_pieces<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pieces<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Some(side) = self.inner.side.clone() else {
            return off_thread(LOADING, move || work(&mut Pieces::new(&mut |_| {}))).await;
        };
        in_background(LOADING, move || {
            let mut turns = SideTurns::new(side);
            work(&mut Pieces::new(&mut |_| turns.next()))
        })
        .await
    }

    async fn to_device(&self, key: &Key, host: Arc<HostAdapter>, room: Reservation) -> Result<AdapterLease> {
        let model = Arc::clone(&self.inner.catalog.get(&key.base)?.model);
        let make = move |pieces: &mut Pieces<'_>| match model.decoder.device() {
            Device::Cpu => host.to_served(model.decoder.adapter_precision(), pieces),
            device => Ok(model.decoder.served(&host.to_adapter(device, pieces)?)?),
        };
        let adapter = self.in_pieces(make).await?;
        Ok(self.inner.tiers.keep(room, key.clone(), Arc::new(adapter)))
    }

    /// Reserves room on the device; waits while everything there is leased.
    async fn room(&self, bytes: u64) -> Result<Reservation> {
        let deadline = Instant::now() + self.inner.limits.room_wait;
        loop {
            match self.inner.tiers.reserve(bytes) {
                Ok(room) => return Ok(room),
                Err(NoRoom::TooLarge(limit)) => return Err(Error::TooLarge { bytes, limit }),
                Err(NoRoom::Busy) if Instant::now() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
                Err(NoRoom::Busy) => {
                    let what = "the adapters of running requests fill the memory for adapters";
                    return Err(Error::Overloaded { what, retry_after: Duration::from_secs(2) });
                }
            }
        }
    }

    /// Takes the right to have files of `bytes` in memory while they are read and checked; [`Error::Overloaded`] if
    /// others take too long.
    pub async fn share(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(LOADING_MIB).clamp(LOAD_MIB, LOADING_MIB);
        let turn = Arc::clone(&self.inner.loading).acquire_many_owned(mib);
        match tokio::time::timeout(self.inner.limits.turn_wait, turn).await {
            Ok(Ok(share)) => Ok(share),
            Ok(Err(_)) => Err(Error::Internal("no adapters are brought in any more".into())),
            Err(_) => {
                Err(Error::Overloaded { what: "other adapters are being loaded", retry_after: Duration::from_secs(5) })
            }
        }
    }

    /// Adds an adapter from elsewhere under `name`: checks that it fits `base` and the limits, stores it and keeps it
    /// in memory if there is room. An adapter that has the name is replaced if `replace`, else the new one is refused;
    /// leases live on. The caller holds a [`AdapterRegistry::share`] for the files.
    pub async fn install(
        &self,
        organization: &str,
        name: &str,
        base: &str,
        files: PeftFiles,
        replace: bool,
    ) -> Result<()> {
        let model = self.base(base)?;
        let RegistryLimits { budgets, max_rank, .. } = self.inner.limits;
        let (config, weights) = (Bytes::from(files.config), Bytes::from(files.weights));
        let blobs = (config.clone(), weights.clone());
        let precision = model.decoder.adapter_precision();
        let check = self.in_pieces(move |pieces| HostAdapter::check(&config, weights, &model.config, max_rank, pieces));
        let host = Arc::new(check.await?);
        let bytes = host.device_bytes(precision);
        if bytes > budgets.device {
            return Err(Error::TooLarge { bytes, limit: budgets.device });
        }
        let key = key(base, host.id());
        let blobs = vec![(config_key(host.id()), blobs.0), (weights_key(host.id()), blobs.1)];
        let new = NewModel {
            organization: organization.into(),
            name: name.into(),
            base: base.into(),
            adapter: host.id().into(),
        };
        self.inner.store.add_model(new, blobs, replace).await?;
        self.inner.tiers.keep_in_host(&key, &host);
        // So that the first request waits for nothing; it loads the adapter itself where all room is taken.
        if self.inner.tiers.on_device(&key).is_none()
            && let Ok(room) = self.inner.tiers.reserve(bytes)
            && let Err(error) = self.to_device(&key, host, room).await
        {
            tracing::warn!(adapter = key.generation, "cannot bring an adapter to the device: {error}");
        }
        self.inner.tiers.point((organization.into(), name.into()), &key);
        tracing::info!(organization, name, base, adapter = key.generation, "adapter stored");
        Ok(())
    }

    /// Keeps a generation that is in memory already, so that the first lease of `name` needs no file. A finishing job
    /// in this process calls it before it commits: the name becomes visible with its row. If there is no room, the
    /// first lease loads the adapter.
    pub fn publish(&self, organization: &str, name: &str, base: &str, adapter: Arc<Adapter>) {
        let key = key(base, &adapter.id);
        match self.inner.tiers.reserve(adapter.bytes() as u64) {
            Ok(room) => {
                tracing::info!(organization, name, base, adapter = key.generation, "adapter in memory");
                drop(self.inner.tiers.keep(room, key.clone(), adapter));
            }
            Err(no_room) => {
                tracing::info!(organization, name, base, adapter = key.generation, ?no_room, "adapter stored only");
            }
        }
        self.inner.tiers.point((organization.into(), name.into()), &key);
    }

    /// Forgets `name`; leases live on.
    pub fn forget(&self, organization: &str, name: &str) {
        self.inner.tiers.forget(&(organization.into(), name.into()));
    }

    /// Counts adapters in memory and loads under way.
    pub fn status(&self) -> Status {
        let loading = self.inner.loads.lock().len();
        Status::new(self.inner.tiers.snapshot(), loading, &self.inner.counts)
    }
}

/// Removes a load from the list at its end, also if it panics.
struct EndOfLoad {
    registry: AdapterRegistry,
    key: Key,
}

impl Drop for EndOfLoad {
    fn drop(&mut self) {
        self.registry.inner.loads.lock().remove(&self.key);
    }
}

fn key(base: &str, generation: &str) -> Key {
    Key { base: base.into(), generation: generation.into() }
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Store(store::Error::BlobNotFound(_)))
}
