//! What the adapter registry may use; made from the configuration by `app`, or by tests.

use std::time::Duration;

use crate::adapters::tiers::Budgets;
use crate::config::Limits;

/// What the registry may use.
#[derive(Debug, Clone, Copy)]
pub struct RegistryLimits {
    /// Bytes of the tiers.
    pub budgets: Budgets,
    /// The largest rank of an adapter from elsewhere.
    pub max_rank: usize,
    /// How long a request waits for room on the device while everything there is leased.
    pub room_wait: Duration,
    /// How long a load waits for its share of the memory for files.
    pub turn_wait: Duration,
    /// How long the store may take to give a generation's files.
    pub read_wait: Duration,
}

impl From<&Limits> for RegistryLimits {
    fn from(limits: &Limits) -> Self {
        let budgets = Budgets { device: limits.adapter_device_mib << 20, host: limits.adapter_host_mib << 20 };
        Self {
            budgets,
            max_rank: limits.max_adapter_rank,
            room_wait: Duration::from_secs(5),
            turn_wait: Duration::from_secs(30),
            read_wait: Duration::from_mins(1),
        }
    }
}
