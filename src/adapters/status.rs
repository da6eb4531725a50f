//! Figures of the registry for operators: adapters by tier, the time of loads, evictions. `api` shows it as
//! JSON and sets the gauges whenever `/metrics` is read, so that they are true at that moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::adapters::tiers::Snapshot;

/// Where a load took the adapter from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The checked files in main memory.
    Host,
    /// The blobs.
    Disk,
}

/// Loads to the device since the start.
#[derive(Debug)]
pub struct LoadCounts {
    from_host: AtomicU64,
    from_disk: AtomicU64,
    failed: AtomicU64,
}

impl Default for LoadCounts {
    fn default() -> Self {
        describe_counter!("attune_adapter_loads_total", "Adapters brought to the device, by where they came from.");
        describe_counter!("attune_adapter_load_failures_total", "Adapters that could not be brought to the device.");
        describe_histogram!(
            "attune_adapter_load_seconds",
            metrics::Unit::Seconds,
            "From the wish for an adapter that is not on the device until it is there."
        );
        describe_counter!("attune_adapter_evictions_total", "Adapters let go for want of room, by tier.");
        describe_gauge!("attune_adapters", "Adapter generations in memory, by tier.");
        describe_gauge!("attune_adapter_bytes", "Bytes of adapters in memory, by tier.");
        describe_gauge!("attune_adapter_budget_bytes", "Bytes that adapters may take, by tier.");
        describe_gauge!("attune_adapter_leases", "Holders of adapters: requests and their sequences.");
        describe_gauge!("attune_adapters_retired", "Generations without a name that wait for their last lease to end.");
        describe_gauge!("attune_adapters_loading", "Adapters on their way to the device.");
        Self { from_host: AtomicU64::new(0), from_disk: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }
}

impl LoadCounts {
    /// A load has ended well.
    pub fn loaded(&self, source: Source, took: Duration) {
        let (count, label) = match source {
            Source::Host => (&self.from_host, "host"),
            Source::Disk => (&self.from_disk, "disk"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        counter!("attune_adapter_loads_total", "source" => label).increment(1);
        histogram!("attune_adapter_load_seconds", "source" => label).record(took.as_secs_f64());
    }

    /// A load has failed.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        counter!("attune_adapter_load_failures_total").increment(1);
    }
}

/// The registry as it is now.
#[derive(Debug, Clone)]
pub struct Status {
    /// What is in memory.
    pub memory: Snapshot,
    /// Loads under way.
    pub loading: usize,
    /// Loads from host memory since the start.
    pub loads_from_host: u64,
    /// Loads from the blobs since the start.
    pub loads_from_disk: u64,
    /// Loads that failed since the start.
    pub failed_loads: u64,
}

impl Status {
    pub(super) fn new(memory: Snapshot, loading: usize, counts: &LoadCounts) -> Self {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Self {
            memory,
            loading,
            loads_from_host: count(&counts.from_host),
            loads_from_disk: count(&counts.from_disk),
            failed_loads: count(&counts.failed),
        }
    }

    /// Holders of all generations.
    pub fn leases(&self) -> usize {
        self.memory.generations.iter().map(|generation| generation.leases).sum()
    }

    /// Generations that only their leases keep.
    pub fn retired(&self) -> usize {
        self.memory.generations.iter().filter(|generation| generation.retired).count()
    }

    /// Generations on the device.
    pub fn on_device(&self) -> usize {
        self.memory.generations.iter().filter(|generation| generation.device_bytes > 0).count()
    }

    /// Generations in host memory.
    pub fn in_host(&self) -> usize {
        self.memory.generations.iter().filter(|generation| generation.host_bytes > 0).count()
    }

    /// Sets the gauges, and the counters that memory counts on its own.
    pub fn record(&self) {
        let memory = &self.memory;
        for (tier, count, bytes, budget, evictions) in [
            ("device", self.on_device(), memory.device_bytes(), memory.budgets.device, memory.evictions.device),
            ("host", self.in_host(), memory.host_bytes(), memory.budgets.host, memory.evictions.host),
        ] {
            gauge!("attune_adapters", "tier" => tier).set(count as f64);
            gauge!("attune_adapter_bytes", "tier" => tier).set(bytes as f64);
            gauge!("attune_adapter_budget_bytes", "tier" => tier).set(budget as f64);
            counter!("attune_adapter_evictions_total", "tier" => tier).absolute(evictions);
        }
        gauge!("attune_adapter_leases").set(self.leases() as f64);
        gauge!("attune_adapters_retired").set(self.retired() as f64);
        gauge!("attune_adapters_loading").set(self.loading as f64);
    }
}
