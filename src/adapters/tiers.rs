//! Which adapter generations are in memory: on the device, ready to compute, and in host memory, ready to be copied
//! there. Each tier has a budget in bytes; the least recently used generation that nobody leases goes first.
//!
//! Bookkeeping only, under a lock that is held for a look-up: the registry loads, and asks here for room before
//! anything is allocated. A lease is an `Arc`, so what is leased cannot be let go, and counts until the last one drops,
//! also when no name leads to it any more (it is *retired* then).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use crate::adapters::peft::host::HostAdapter;
use crate::model::lora::{Adapter, AdapterLease};

/// Bytes that each tier may hold.
#[derive(Debug, Clone, Copy)]
pub struct Budgets {
    /// On the device, loads under way included.
    pub device: u64,
    /// In host memory; 0 keeps nothing there.
    pub host: u64,
}

/// A generation on a base: two bases of one shape do not share it, since they may have different numbers of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Id of the base model.
    pub base: String,
    /// SHA-256 of the adapter's files.
    pub generation: String,
}

/// Organisation and name of a model.
pub type Name = (String, String);

/// Why there is no room on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// Everything that is there is leased or under way.
    Busy,
    /// It would not fit an empty device tier, which has this many bytes.
    TooLarge(u64),
}

/// The tiers. Cheap to clone.
#[derive(Clone)]
pub struct Tiers(Arc<Mutex<TierState>>);

struct TierState {
    budgets: Budgets,
    /// Counts uses.
    clock: u64,
    generations: HashMap<Key, Generation>,
    names: HashMap<Name, Key>,
    /// Device bytes of loads under way.
    reserved: u64,
    evictions: Evictions,
}

/// How often each tier let a generation go for want of room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evictions {
    /// From the device.
    pub device: u64,
    /// From host memory.
    pub host: u64,
}

#[derive(Default)]
struct Generation {
    /// Names that lead here, of those that this process has met.
    names: HashSet<Name>,
    rank: usize,
    device_bytes: u64,
    /// Keeps it on the device while nobody leases it.
    kept: Option<AdapterLease>,
    /// Finds it as long as anybody leases it.
    leased: Weak<Adapter>,
    host: Option<Arc<HostAdapter>>,
    used: u64,
}

/// Room on the device for a load that is under way; given back when dropped.
pub struct Reservation {
    tiers: Tiers,
    bytes: u64,
}

/// One generation, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residency {
    /// The generation and its base.
    pub key: Key,
    /// Names that lead to it, of those that this process has met, in order.
    pub names: Vec<Name>,
    /// The largest rank.
    pub rank: usize,
    /// Bytes on the device; 0 if it is not there.
    pub device_bytes: u64,
    /// Bytes in host memory; 0 if it is not there.
    pub host_bytes: u64,
    /// Who holds it: each request at least once, and once more for each of its sequences.
    pub leases: usize,
    /// True if only its leases keep it: no name leads to it any more.
    pub retired: bool,
}

/// All of it, as it is now.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// By base and generation.
    pub generations: Vec<Residency>,
    /// What the tiers may hold.
    pub budgets: Budgets,
    /// Device bytes of loads under way.
    pub reserved: u64,
    /// Since the start.
    pub evictions: Evictions,
}

impl Snapshot {
    /// Bytes on the device, without those of loads under way.
    pub fn device_bytes(&self) -> u64 {
        self.generations.iter().map(|generation| generation.device_bytes).sum()
    }

    /// Bytes in host memory.
    pub fn host_bytes(&self) -> u64 {
        self.generations.iter().map(|generation| generation.host_bytes).sum()
    }
}

impl Tiers {
    /// Empty tiers.
    pub fn new(budgets: Budgets) -> Self {
        Self(Arc::new(Mutex::new(TierState {
            budgets,
            clock: 0,
            generations: HashMap::new(),
            names: HashMap::new(),
            reserved: 0,
            evictions: Evictions::default(),
        })))
    }

    /// The generation from the device, now the most recently used one.
    pub fn on_device(&self, key: &Key) -> Option<AdapterLease> {
        let mut state = self.state();
        let used = state.tick();
        let generation = state.generations.get_mut(key)?;
        let lease = generation.leased.upgrade()?;
        generation.used = used;
        generation.kept = Some(Arc::clone(&lease));
        Some(lease)
    }

    /// The generation from host memory, now the most recently used one.
    pub fn in_host(&self, key: &Key) -> Option<Arc<HostAdapter>> {
        let mut state = self.state();
        let used = state.tick();
        let generation = state.generations.get_mut(key)?;
        let host = generation.host.clone()?;
        generation.used = used;
        Some(host)
    }

    /// Sets `bytes` of the device aside; evicts generations that nobody leases if it must.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, NoRoom> {
        let mut state = self.state();
        let evicted = state.make_room(bytes)?;
        state.reserved += bytes;
        drop(state);
        // Outside of the lock: giving back so much memory takes its time.
        drop(evicted);
        Ok(Reservation { tiers: self.clone(), bytes })
    }

    /// Keeps a loaded adapter in the room that was set aside for it. If another load was faster, its adapter stays.
    pub fn keep(&self, reservation: Reservation, key: Key, adapter: Arc<Adapter>) -> AdapterLease {
        let mut state = self.state();
        let used = state.tick();
        let generation = state.generations.entry(key).or_default();
        generation.used = used;
        let lease = generation.leased.upgrade().unwrap_or(adapter);
        generation.device_bytes = lease.bytes() as u64;
        generation.rank = lease.rank();
        generation.leased = Arc::downgrade(&lease);
        generation.kept = Some(Arc::clone(&lease));
        // The reservation locks as well.
        drop(state);
        drop(reservation);
        lease
    }

    /// Keeps the checked files in host memory if there is room after evicting less recently used ones; false if there
    /// is not.
    pub fn keep_in_host(&self, key: &Key, host: &Arc<HostAdapter>) -> bool {
        let mut state = self.state();
        let Some(evicted) = state.make_host_room(key, host.host_bytes()) else { return false };
        let used = state.tick();
        let generation = state.generations.entry(key.clone()).or_default();
        generation.used = used;
        generation.rank = host.rank();
        generation.host = Some(Arc::clone(host));
        state.prune();
        drop(state);
        drop(evicted);
        true
    }

    /// Notes that `name` leads to `key` now. The generation before goes unless another name leads to it.
    pub fn point(&self, name: Name, key: &Key) {
        let mut state = self.state();
        if state.names.get(&name) == Some(key) {
            return;
        }
        let freed = state.forget(&name);
        if let Some(generation) = state.generations.get_mut(key) {
            generation.names.insert(name.clone());
            state.names.insert(name, key.clone());
        }
        drop(state);
        drop(freed);
    }

    /// Forgets `name`. Its generation goes unless another name leads to it; leases live on.
    pub fn forget(&self, name: &Name) {
        let freed = self.state().forget(name);
        drop(freed);
    }

    /// What is in memory now.
    pub fn snapshot(&self) -> Snapshot {
        let mut state = self.state();
        state.prune();
        let generations = state.generations.iter().map(|(key, one)| one.residency(key)).collect();
        let TierState { budgets, reserved, evictions, .. } = *state;
        drop(state);
        // Outside of the lock: there may be thousands.
        let mut now = Snapshot { generations, budgets, reserved, evictions };
        now.generations.sort_unstable_by(|one, two| one.key.cmp(&two.key));
        now.generations.iter_mut().for_each(|one| one.names.sort_unstable());
        now
    }

    fn state(&self) -> MutexGuard<'_, TierState> {
        self.0.lock()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.tiers.state().reserved -= self.bytes;
    }
}

/// What was let go, to be dropped outside of the lock.
type Freed = (Vec<AdapterLease>, Vec<Arc<HostAdapter>>);

impl TierState {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Evicts idle generations until `bytes` more fit the device; none if evicting all of them would not be enough.
    fn make_room(&mut self, bytes: u64) -> Result<Vec<AdapterLease>, NoRoom> {
        self.prune();
        if bytes > self.budgets.device {
            return Err(NoRoom::TooLarge(self.budgets.device));
        }
        let used: u64 = self.reserved + self.generations.values().map(Generation::bytes_on_device).sum::<u64>();
        let mut missing = (used + bytes).saturating_sub(self.budgets.device);
        if missing == 0 {
            return Ok(Vec::new());
        }
        let mut idle: Vec<&mut Generation> = self.generations.values_mut().filter(|one| one.is_idle()).collect();
        if idle.iter().map(|one| one.device_bytes).sum::<u64>() < missing {
            return Err(NoRoom::Busy);
        }
        idle.sort_by_key(|one| one.used);
        let mut evicted = Vec::new();
        for generation in idle {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(generation.device_bytes);
            evicted.extend(generation.kept.take());
        }
        self.evictions.device += evicted.len() as u64;
        Ok(evicted)
    }

    /// As [`TierState::make_room`], for the files of `key` in host memory; `None` if there can be no room.
    fn make_host_room(&mut self, key: &Key, bytes: u64) -> Option<Vec<Arc<HostAdapter>>> {
        let limit = self.budgets.host;
        let others = self.generations.iter_mut().filter(|(other, _)| *other != key);
        let mut others: Vec<(u64, u64, bool, &mut Generation)> = others
            .filter_map(|(_, one)| {
                let host = one.host.as_ref()?;
                // Somebody copies from it right now where this is not the only one.
                Some((one.used, host.host_bytes(), Arc::strong_count(host) == 1, one))
            })
            .collect();
        let mut missing = (others.iter().map(|(_, bytes, ..)| bytes).sum::<u64>() + bytes).saturating_sub(limit);
        let idle: u64 = others.iter().filter(|(_, _, idle, _)| *idle).map(|(_, bytes, ..)| bytes).sum();
        if bytes > limit || idle < missing {
            return None;
        }
        others.sort_by_key(|(used, ..)| *used);
        let mut evicted = Vec::new();
        for (_, bytes, _, generation) in others.into_iter().filter(|(_, _, idle, _)| *idle) {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(bytes);
            evicted.extend(generation.host.take());
        }
        self.evictions.host += evicted.len() as u64;
        Some(evicted)
    }

    fn forget(&mut self, name: &Name) -> Freed {
        let Some(key) = self.names.remove(name) else { return Freed::default() };
        let Some(generation) = self.generations.get_mut(&key) else { return Freed::default() };
        generation.names.remove(name);
        let mut freed = Freed::default();
        if generation.names.is_empty() {
            freed.0.extend(generation.kept.take());
            freed.1.extend(generation.host.take());
        }
        freed
    }

    /// Drops the records of generations that are in no tier.
    fn prune(&mut self) {
        let Self { generations, names, .. } = self;
        generations.retain(|_, generation| {
            let stays = generation.host.is_some() || generation.leased.strong_count() > 0;
            if !stays {
                generation.names.iter().for_each(|name| drop(names.remove(name)));
            }
            stays
        });
    }
}

impl Generation {
    /// True if it is on the device and nobody leases it. Only the tiers hand out leases, under their lock, so none can
    /// be made of a single `Arc` meanwhile.
    fn is_idle(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| Arc::strong_count(kept) == 1)
    }

    fn bytes_on_device(&self) -> u64 {
        if self.leased.strong_count() > 0 { self.device_bytes } else { 0 }
    }

    /// What it is now, its names in any order.
    fn residency(&self, key: &Key) -> Residency {
        Residency {
            key: key.clone(),
            retired: self.kept.is_none() && self.host.is_none(),
            names: self.names.iter().cloned().collect(),
            rank: self.rank,
            device_bytes: self.bytes_on_device(),
            host_bytes: self.host.as_ref().map_or(0, |host| host.host_bytes()),
            leases: self.leased.strong_count() - usize::from(self.kept.is_some()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "tiers_tests.rs"]
mod tests;
