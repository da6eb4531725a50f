//! Where a model's adapter is: on the device, ready to compute, in host memory, or stored only.

use crate::adapters::status::Status;
use crate::adapters::tiers::Residency;
use crate::format;
use crate::store::models::FineTunedModel;

/// Finds the model's adapter in memory; `None` if it is stored only.
pub(super) fn of<'a>(status: &'a Status, model: &FineTunedModel) -> Option<&'a Residency> {
    let is_it = |place: &&Residency| place.key.base == model.base && place.key.generation == model.adapter;
    status.memory.generations.iter().find(is_it)
}

/// Words the tiers that hold an adapter.
pub(super) fn words(place: Option<&Residency>) -> String {
    let Some(place) = place else { return "stored only".into() };
    let tiers = [("ready on the device", place.device_bytes), ("in host memory", place.host_bytes)];
    let held = tiers.into_iter().filter(|(_, bytes)| *bytes > 0);
    let words: Vec<String> = held.map(|(tier, bytes)| format!("{tier}, {}", format::bytes(bytes))).collect();
    if words.is_empty() { "stored only".into() } else { words.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::tiers::Key;

    #[test]
    fn each_tier_that_holds_it_is_named() {
        let place = |device_bytes, host_bytes| Residency {
            key: Key { base: "demo".into(), generation: "a".into() },
            names: Vec::new(),
            rank: 8,
            device_bytes,
            host_bytes,
            leases: 0,
            retired: false,
        };
        assert_eq!(words(None), "stored only");
        assert_eq!(words(Some(&place(0, 0))), "stored only");
        assert_eq!(words(Some(&place(2048, 0))), "ready on the device, 2.0 KiB");
        assert_eq!(words(Some(&place(2048, 1024))), "ready on the device, 2.0 KiB; in host memory, 1.0 KiB");
    }
}
