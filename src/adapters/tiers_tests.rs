//! Budgets, order of eviction, leases and names, without files or models.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::adapters::peft;
use crate::adapters::pieces::Pieces;
use crate::model::ModelConfig;
use crate::model::lora::MAX_RANK;
use crate::model::lora::{LoraLayer, LoraPair, Site};

/// Bytes of an [`adapter`] on the device.
const BYTES: u64 = 64;

/// An adapter of 4 · (8 + 8) = 64 bytes.
fn adapter(id: &str) -> Arc<Adapter> {
    let matrix = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let mut layer = LoraLayer::default();
    layer.set(Site::Query, LoraPair { a: matrix((1, 8)), b: matrix((8, 1)), scale: 1.0 });
    Arc::new(Adapter::new(id.into(), vec![layer]))
}

/// The checked files of a real adapter.
fn files() -> Arc<HostAdapter> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    let read = |name: &str| std::fs::read(folder.join("peft").join(name)).unwrap();
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let model = ModelConfig::read(&folder).unwrap();
    let host = HostAdapter::check(&config, weights.into(), &model, MAX_RANK, &mut Pieces::new(&mut |_| {})).unwrap();
    assert_eq!(host.id(), peft::PeftFiles { config, weights: read("adapter_model.safetensors") }.id());
    Arc::new(host)
}

fn key(generation: &str) -> Key {
    Key { base: "base".into(), generation: generation.into() }
}

fn name(name: &str) -> Name {
    ("org".into(), name.into())
}

fn tiers(device: u64) -> Tiers {
    Tiers::new(Budgets { device, host: 0 })
}

/// Loads `id` under a name of the same word.
fn load(tiers: &Tiers, id: &str) -> AdapterLease {
    let room = tiers.reserve(BYTES).unwrap_or_else(|no_room| panic!("no room for {id}: {no_room:?}"));
    let lease = tiers.keep(room, key(id), adapter(id));
    tiers.point(name(id), &key(id));
    lease
}

fn there(tiers: &Tiers) -> Vec<String> {
    let on_device = |one: &Residency| one.device_bytes > 0;
    tiers.snapshot().generations.into_iter().filter(on_device).map(|one| one.key.generation).collect()
}

#[test]
fn the_least_recently_used_generation_that_nobody_leases_goes_first() {
    let tiers = tiers(3 * BYTES);
    let leased = load(&tiers, "a");
    drop((load(&tiers, "b"), load(&tiers, "c")));
    assert!(tiers.on_device(&key("b")).is_some());
    drop(load(&tiers, "d"));
    assert_eq!(there(&tiers), ["a", "b", "d"], "`a` is older and leased, `c` was not used since");
    assert_eq!(tiers.snapshot().evictions.device, 1);
    drop(leased);
    drop(load(&tiers, "e"));
    assert_eq!(there(&tiers), ["b", "d", "e"]);
}

#[test]
fn room_is_refused_before_anything_is_let_go_where_leases_fill_the_budget() {
    let tiers = tiers(3 * BYTES);
    let leases = (load(&tiers, "a"), load(&tiers, "b"));
    drop(load(&tiers, "c"));
    assert_eq!(tiers.reserve(2 * BYTES).err(), Some(NoRoom::Busy));
    assert_eq!(there(&tiers), ["a", "b", "c"], "letting `c` go would not have been enough");
    drop(leases);
    assert!(tiers.reserve(2 * BYTES).is_ok());
    assert_eq!(tiers.reserve(3 * BYTES + 1).err(), Some(NoRoom::TooLarge(3 * BYTES)));
}

#[test]
fn loads_under_way_count_until_they_are_given_up() {
    let tiers = tiers(2 * BYTES);
    let rooms = (tiers.reserve(BYTES).ok().unwrap(), tiers.reserve(BYTES).ok().unwrap());
    assert_eq!(tiers.snapshot().reserved, 2 * BYTES);
    assert_eq!(tiers.reserve(1).err(), Some(NoRoom::Busy));
    drop(rooms.0);
    drop(tiers.keep(rooms.1, key("a"), adapter("a")));
    let now = tiers.snapshot();
    assert_eq!((now.reserved, now.device_bytes()), (0, BYTES));
    assert!(tiers.reserve(BYTES).is_ok());
}

#[test]
fn a_retired_generation_counts_until_its_last_lease_drops() {
    let tiers = tiers(2 * BYTES);
    let leases = vec![load(&tiers, "a"), tiers.on_device(&key("a")).unwrap()];
    tiers.forget(&name("a"));
    let now = tiers.snapshot();
    assert_eq!((now.generations[0].retired, now.generations[0].leases), (true, 2));
    drop(load(&tiers, "b"));
    let both = load(&tiers, "b");
    assert_eq!(tiers.reserve(BYTES).err(), Some(NoRoom::Busy), "the retired one still takes its room");
    drop(leases);
    assert_eq!(there(&tiers), ["b"]);
    assert!(tiers.reserve(BYTES).is_ok());
    drop(both);
}

#[test]
fn a_name_that_is_re_pointed_lets_its_old_generation_go_and_leases_live_on() {
    let tiers = tiers(8 * BYTES);
    let old = load(&tiers, "a");
    let new = load(&tiers, "b");
    tiers.point(name("a"), &key("b"));
    drop((tiers.on_device(&key("b")), new));
    assert_eq!(there(&tiers), ["a", "b"]);
    drop(old);
    assert_eq!(there(&tiers), ["b"]);
    tiers.forget(&name("a"));
    assert_eq!(there(&tiers), ["b"], "another name still leads there");
    tiers.forget(&name("b"));
    assert!(tiers.snapshot().generations.is_empty());
}

#[test]
fn a_leased_generation_is_found_again_and_two_loads_of_one_keep_the_first() {
    let tiers = tiers(4 * BYTES);
    let first = load(&tiers, "a");
    let second = load(&tiers, "a");
    assert!(Arc::ptr_eq(&first, &second));
    tiers.forget(&name("a"));
    assert!(Arc::ptr_eq(&tiers.on_device(&key("a")).unwrap(), &first));
    assert_eq!(tiers.snapshot().device_bytes(), BYTES);
    assert!(tiers.on_device(&Key { base: "other".into(), generation: "a".into() }).is_none());
}

#[test]
fn host_memory_keeps_what_the_device_let_go_and_spares_what_is_being_copied() {
    let bytes = files().host_bytes();
    let tiers = Tiers::new(Budgets { device: BYTES, host: 2 * bytes });
    for id in ["a", "b"] {
        drop(load(&tiers, id));
        assert!(tiers.keep_in_host(&key(id), &files()));
    }
    assert_eq!(there(&tiers), ["b"]);
    let copying = tiers.in_host(&key("a")).expect("the host has what the device let go");
    assert!(tiers.keep_in_host(&key("c"), &files()));
    assert!(tiers.in_host(&key("a")).is_some() && tiers.in_host(&key("b")).is_none(), "`b` is not being copied");
    let both = (copying, tiers.in_host(&key("c")));
    assert!(!tiers.keep_in_host(&key("d"), &files()), "both are being copied");
    drop(both);
    let now = tiers.snapshot();
    assert_eq!((now.host_bytes(), now.evictions.host), (2 * bytes, 1));
    let none = Tiers::new(Budgets { device: BYTES, host: 0 });
    assert!(!none.keep_in_host(&key("a"), &files()));
    assert!(none.snapshot().generations.is_empty());
}

#[test]
fn names_of_what_is_no_longer_in_memory_are_not_kept() {
    let tiers = tiers(BYTES);
    for round in 0..100 {
        drop(load(&tiers, &format!("adapter-{round}")));
    }
    assert_eq!(there(&tiers).len(), 1);
    assert_eq!(tiers.state().names.len(), 1);
}
