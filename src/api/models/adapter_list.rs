//! The body of `GET /lora_adapters`: adapters in memory, by generation, and what memory they may take.

use serde::Serialize;
use utoipa::ToSchema;

use crate::adapters::status::Status;
use crate::adapters::tiers::Residency;
use crate::config::Limits;

/// Largest number of generations in one answer.
const MAX_LISTED: usize = 10_000;

/// The adapters in memory.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdapterList {
    /// Always `list`.
    pub object: &'static str,
    /// The generations in memory, by base and generation; 10,000 at the most.
    pub data: Vec<ResidentAdapter>,
    /// True where there are more.
    pub has_more: bool,
    /// The device that computes.
    pub device: Tier,
    /// Main memory.
    pub host: Tier,
    /// Holders of adapters: requests and their sequences.
    pub active_leases: usize,
    /// Generations that only their leases keep.
    pub retired_generations: usize,
    /// Adapters on their way to the device.
    pub loading: usize,
    /// How often adapters were brought to the device since the start.
    pub loads: Loads,
    /// Rank of an adapter from elsewhere at the most.
    pub max_rank: usize,
    /// Bytes of its weights at the most.
    pub max_bytes: u64,
}

/// One generation of an adapter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResidentAdapter {
    /// SHA-256 of its files, in hex.
    pub generation: String,
    /// Always `lora_adapter`.
    pub object: &'static str,
    /// Id of its base model.
    pub parent: String,
    /// The caller's models that lead to it, of those that were asked for since the start.
    pub models: Vec<String>,
    /// The largest rank.
    pub rank: usize,
    /// `device` where it is ready to compute, `host` where it is to be copied there first.
    pub tier: &'static str,
    /// Bytes on the device.
    pub device_bytes: u64,
    /// Bytes in main memory.
    pub host_bytes: u64,
    /// Its holders: requests and their sequences.
    pub active_leases: usize,
    /// True where no model leads to it any more: it goes with its last lease.
    pub retired: bool,
}

/// One tier of memory.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tier {
    /// Generations there.
    pub generations: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes set aside for adapters on their way there.
    pub reserved_bytes: u64,
    /// Bytes that they may take.
    pub max_bytes: u64,
    /// Generations let go for want of room since the start.
    pub evictions: u64,
}

/// How often adapters were brought to the device.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Loads {
    /// From main memory.
    pub from_host: u64,
    /// From the disk.
    pub from_disk: u64,
    /// In vain.
    pub failed: u64,
}

impl AdapterList {
    /// Makes the list of `status` as `organization` sees it: names of models only if they are its own.
    pub(crate) fn new(status: &Status, limits: &Limits, organization: &str) -> Self {
        let memory = &status.memory;
        let listed = memory.generations.iter().take(MAX_LISTED);
        Self {
            object: "list",
            data: listed.map(|one| ResidentAdapter::new(one, organization)).collect(),
            has_more: memory.generations.len() > MAX_LISTED,
            device: Tier {
                generations: status.on_device(),
                bytes: memory.device_bytes(),
                reserved_bytes: memory.reserved,
                max_bytes: memory.budgets.device,
                evictions: memory.evictions.device,
            },
            host: Tier {
                generations: status.in_host(),
                bytes: memory.host_bytes(),
                reserved_bytes: 0,
                max_bytes: memory.budgets.host,
                evictions: memory.evictions.host,
            },
            active_leases: status.leases(),
            retired_generations: status.retired(),
            loading: status.loading,
            loads: Loads {
                from_host: status.loads_from_host,
                from_disk: status.loads_from_disk,
                failed: status.failed_loads,
            },
            max_rank: limits.max_adapter_rank,
            max_bytes: limits.max_adapter_bytes,
        }
    }
}

impl ResidentAdapter {
    fn new(one: &Residency, organization: &str) -> Self {
        let own = one.names.iter().filter(|(owner, _)| owner == organization);
        Self {
            generation: one.key.generation.clone(),
            object: "lora_adapter",
            parent: one.key.base.clone(),
            models: own.map(|(_, name)| name.clone()).collect(),
            rank: one.rank,
            tier: if one.device_bytes > 0 { "device" } else { "host" },
            device_bytes: one.device_bytes,
            host_bytes: one.host_bytes,
            active_leases: one.leases,
            retired: one.retired,
        }
    }
}
