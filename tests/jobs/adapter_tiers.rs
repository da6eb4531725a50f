//! The registry over a real Postgres and real files: budgets, evictions in any order, many requests, failures, tenants,
//! and the remains in memory and on the disk afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod waits;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::postgres::TestDatabase;
use crate::training::{ORG, catalog};
use attune::adapters::peft::{self, PeftFiles};
use attune::adapters::registry::{AdapterRegistry, RegistryLimits, config_key, weights_key};
use attune::adapters::tiers::Budgets;
use attune::adapters::{self, Error};
use attune::model::ModelConfig;
use attune::model::lora::{Adapter, AdapterLease, LoraLayer, LoraPair, Site};
use attune::store;
use attune::store::Store;
use attune::store::blobs::Blobs;
use candle_core::{Device, Tensor};
use futures::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const RIVAL: &str = "rival";
/// Time limit that nothing here reaches.
const LONG: Duration = Duration::from_mins(2);

fn model() -> ModelConfig {
    catalog().get("demo").unwrap().model.config.clone()
}

/// Returns an adapter of that rank on the queries of every block, with its own numbers for each seed.
fn files(seed: u64, rank: usize) -> PeftFiles {
    let (config, mut random) = (model(), ChaCha8Rng::seed_from_u64(seed));
    let mut layers = vec![LoraLayer::default(); config.num_hidden_layers];
    for layer in &mut layers {
        let (output, input) = Site::Query.shape(&config);
        let mut matrix = |rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-1.0..1.0)).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        layer.set(Site::Query, LoraPair { a: matrix(rank, input), b: matrix(output, rank), scale: 0.5 });
    }
    peft::write(&Adapter::new(String::new(), layers), "demo").unwrap()
}

/// Returns the bytes of one of [`files`] on the device.
fn bytes(rank: usize) -> u64 {
    let config = model();
    let (output, input) = Site::Query.shape(&config);
    4 * (config.num_hidden_layers * rank * (output + input)) as u64
}

fn numbers(adapter: impl AsRef<Adapter>) -> Vec<f32> {
    let (output, _) = Site::Query.shape(&model());
    let pairs = adapter.as_ref().layers.iter().map(|layer| layer.get(Site::Query).unwrap());
    pairs
        .flat_map(|LoraPair { a, b, .. }| {
            // On the device, B is stored in groups of 16 outputs.
            let b = if b.dims().len() == 3 { b.transpose(1, 2).unwrap().flatten(0, 1).unwrap() } else { b.clone() };
            [a.clone(), b.narrow(0, 0, output).unwrap()]
                .map(|half| half.flatten_all().unwrap().to_vec1().unwrap())
                .concat()
        })
        .collect()
}

fn limits(device: u64, host: u64) -> RegistryLimits {
    let budgets = Budgets { device, host };
    RegistryLimits { budgets, max_rank: 64, room_wait: Duration::from_millis(200), turn_wait: LONG, read_wait: LONG }
}

fn registry(store: &Store, limits: RegistryLimits) -> AdapterRegistry {
    AdapterRegistry::with_limits(store.clone(), catalog(), limits, Arc::default())
}

async fn install(registry: &AdapterRegistry, name: &str, files: PeftFiles) -> adapters::Result<()> {
    registry.install(ORG, name, "demo", files, false).await
}

async fn lease(registry: &AdapterRegistry, name: &str) -> AdapterLease {
    registry.lease(ORG, name).await.unwrap().1
}

/// Waits until `done`; leases that a task holds drop a moment after it ends.
async fn until(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Returns a store on the same database whose blobs answer only after `delay`.
async fn slow(database: &TestDatabase, delay: Duration) -> Store {
    let blobs = InMemory::new();
    let local = LocalFileSystem::new_with_prefix(database.data_dir.path().join("blobs")).unwrap();
    for entry in local.list(None).try_collect::<Vec<_>>().await.unwrap() {
        let content = local.get(&entry.location).await.unwrap().bytes().await.unwrap();
        blobs.put(&entry.location, content.into()).await.unwrap();
    }
    let config = ThrottleConfig { wait_get_per_call: delay, ..ThrottleConfig::default() };
    let mut store = database.store.clone();
    store.blobs = Blobs::over(Arc::new(ThrottledStore::new(blobs, config)));
    store
}

fn blob(database: &TestDatabase, generation: &str) -> PathBuf {
    database.data_dir.path().join("blobs").join(weights_key(generation))
}

/// Counts the folders of adapters on the disk.
fn stored(database: &TestDatabase) -> usize {
    let adapters = std::fs::read_dir(database.data_dir.path().join("blobs/adapters")).into_iter().flatten();
    adapters.flatten().filter(|folder| std::fs::read_dir(folder.path()).unwrap().next().is_some()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_adapters_in_room_for_two_come_back_unchanged_in_any_order() {
    let database = TestDatabase::new().await;
    // The files are a little larger than their tensors.
    for host in [0, bytes(4) * 7 / 2, 1 << 30] {
        let registry = registry(&database.store, limits(bytes(4) * 2, host));
        let mut wanted = HashMap::new();
        for seed in 0..5 {
            let name = format!("adapter-{seed}");
            if host == 0 {
                install(&registry, &name, files(seed, 4)).await.unwrap();
            }
            wanted.insert(name, numbers(peft_adapter(&files(seed, 4))));
        }
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..60 {
            let name = format!("adapter-{}", random.random_range(0..5));
            assert_eq!(numbers(lease(&registry, &name).await), wanted[&name], "{name}, host tier of {host} bytes");
            let now = registry.status();
            assert!(now.memory.device_bytes() <= bytes(4) * 2, "over the budget of the device");
            assert!(now.memory.host_bytes() <= host, "over the budget of the host");
        }
        let now = registry.status();
        assert!(now.memory.evictions.device > 10);
        match host {
            0 => assert_eq!((now.loads_from_host, now.memory.evictions.host), (0, 0)),
            large if large >= 1 << 30 => assert_eq!((now.loads_from_disk, now.memory.evictions.host), (5, 0)),
            _ => assert!(now.loads_from_disk > 5 && now.loads_from_host > 5 && now.memory.evictions.host > 0),
        }
        assert_eq!((now.leases(), now.loading, now.memory.reserved), (0, 0, 0));
    }
}

fn peft_adapter(files: &PeftFiles) -> AdapterLease {
    Arc::new(peft::read(&files.config, &files.weights, &model(), &Device::Cpu).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_can_never_fit_is_refused_and_leaves_nothing_behind() {
    let database = TestDatabase::new().await;
    let registry = registry(&database.store, limits(bytes(4), 1 << 30));
    install(&registry, "good", files(1, 4)).await.unwrap();
    for (wrong, said) in [(files(2, 8), "adapter_device_mib"), (files(3, 65), "max_adapter_rank")] {
        for replace in [false, true] {
            let refused = registry.install(ORG, "good", "demo", wrong.clone(), replace).await.unwrap_err();
            assert!(matches!(&refused, Error::Invalid(_) | Error::TooLarge { .. }), "{refused}");
            assert!(refused.to_string().contains(said), "{refused}");
        }
    }
    assert_eq!(lease(&registry, "good").await.id, files(1, 4).id());
    assert_eq!(stored(&database), 1);
    assert_eq!(registry.status().memory.generations.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_askers_share_one_load_that_outlives_a_client_who_leaves() {
    let database = TestDatabase::new().await;
    install(&registry(&database.store, limits(1 << 30, 0)), "one", files(1, 4)).await.unwrap();
    let registry = registry(&slow(&database, Duration::from_millis(500)).await, limits(1 << 30, 0));
    let ask = || {
        let registry = registry.clone();
        tokio::spawn(async move { lease(&registry, "one").await })
    };
    let leaving = ask();
    until("a load", || registry.status().loading == 1).await;
    let askers: Vec<_> = (0..20).map(|_| ask()).collect();
    leaving.abort();
    assert!(leaving.await.is_err());
    for asker in askers {
        assert_eq!(asker.await.unwrap().id, files(1, 4).id());
    }
    let now = registry.status();
    assert_eq!((now.loads_from_disk, now.loading, now.failed_loads), (1, 0, 0));
    until("the end of all leases", || registry.status().leases() == 0).await;

    // Even if nobody waits any more.
    registry.forget(ORG, "one");
    let leaving = ask();
    until("another load", || registry.status().loading == 1).await;
    leaving.abort();
    until("its end", || registry.status().loads_from_disk == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_load_holds_up_nobody_else() {
    let database = TestDatabase::new().await;
    let fast = registry(&database.store, limits(1 << 30, 1 << 30));
    for seed in 0..4 {
        install(&fast, &format!("adapter-{seed}"), files(seed, 4)).await.unwrap();
    }
    let registry = registry(&slow(&database, Duration::from_secs(2)).await, limits(bytes(4) * 2, 1 << 30));
    // 1 and 2 are in host memory from here on, and share the device with later adapters.
    for name in ["adapter-1", "adapter-2"] {
        drop(lease(&registry, name).await);
    }
    let cold = tokio::spawn({
        let registry = registry.clone();
        async move { lease(&registry, "adapter-3").await.id.clone() }
    });
    until("the slow load", || registry.status().loading == 1).await;
    for round in 0..20 {
        let name = format!("adapter-{}", 1 + round % 2);
        assert_eq!(lease(&registry, &name).await.id, files(1 + round % 2, 4).id());
    }
    assert!(!cold.is_finished(), "twenty warm leases take less time than a slow disk");
    assert_eq!(cold.await.unwrap(), files(3, 4).id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_what_was_loaded_and_trusts_no_changed_file() {
    fn is_named(refused: adapters::Result<(String, AdapterLease)>, generation: &str) -> bool {
        let said = format!("the files of adapter {generation} do not match its hash");
        matches!(refused, Err(Error::Internal(message)) if message == said)
    }
    let database = TestDatabase::new().await;
    let before = registry(&database.store, limits(1 << 30, 1 << 30));
    install(&before, "kept", files(1, 4)).await.unwrap();
    install(&before, "changed", files(2, 4)).await.unwrap();
    drop(before);

    let after = registry(&database.store, limits(1 << 30, 1 << 30));
    assert_eq!(after.status().memory.generations.len(), 0);
    let place = blob(&database, &files(2, 4).id());
    let content = std::fs::read(&place).unwrap();
    for (what, changed) in [
        ("one bit", {
            let mut one = content.clone();
            *one.last_mut().unwrap() ^= 1;
            one
        }),
        ("its end", content[..content.len() / 2].to_vec()),
        ("everything", Vec::new()),
    ] {
        std::fs::write(&place, changed).unwrap();
        assert!(is_named(after.lease(ORG, "changed").await, &files(2, 4).id()), "{what} was lost");
        assert_eq!(numbers(lease(&after, "kept").await), numbers(peft_adapter(&files(1, 4))));
    }
    // The configuration is part of the content: another alpha is another adapter.
    std::fs::write(&place, &content).unwrap();
    let config = database.data_dir.path().join("blobs").join(config_key(&files(2, 4).id()));
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"lora_alpha\": 2"), "{text}");
    std::fs::write(&config, text.replace("\"lora_alpha\": 2", "\"lora_alpha\": 3")).unwrap();
    assert!(is_named(after.lease(ORG, "changed").await, &files(2, 4).id()));
    std::fs::write(&config, text).unwrap();
    std::fs::remove_file(&place).unwrap();
    assert!(matches!(after.lease(ORG, "changed").await, Err(Error::Internal(message)) if message.contains("missing")));
    let now = after.status();
    assert_eq!((now.failed_loads, now.loading, now.memory.reserved), (5, 0, 0));
    assert_eq!(now.memory.generations.len(), 1, "nothing of the damaged one stays");
    std::fs::write(&place, content).unwrap();
    assert_eq!(lease(&after, "changed").await.id, files(2, 4).id());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_for_one_organisation_is_not_there_for_another() {
    let database = TestDatabase::new().await;
    let registry = registry(&database.store, limits(1 << 30, 1 << 30));
    install(&registry, "secret", files(1, 4)).await.unwrap();
    let own = lease(&registry, "secret").await;
    assert!(matches!(registry.lease(RIVAL, "secret").await, Err(Error::Store(store::Error::ModelNotFound(_)))));
    // The same content under a name of its own is the same generation, held once.
    registry.install(RIVAL, "mine", "demo", files(1, 4), false).await.unwrap();
    let (_, same) = registry.lease(RIVAL, "mine").await.unwrap();
    assert!(Arc::ptr_eq(&own, &same));
    assert_eq!(registry.status().memory.generations.len(), 1);
    assert!(matches!(registry.lease(RIVAL, "secret").await, Err(Error::Store(store::Error::ModelNotFound(_)))));
    // Deleting one name leaves the other untouched.
    database.store.delete_fine_tuned_model(ORG, "secret").await.unwrap();
    registry.forget(ORG, "secret");
    assert!(matches!(registry.lease(ORG, "secret").await, Err(Error::Store(store::Error::ModelNotFound(_)))));
    assert!(registry.lease(RIVAL, "mine").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unloaded_adapter_takes_room_until_its_last_lease_drops() {
    let database = TestDatabase::new().await;
    let registry = registry(&database.store, limits(bytes(4) * 2, 1 << 30));
    install(&registry, "old", files(1, 4)).await.unwrap();
    let held = lease(&registry, "old").await;
    database.store.delete_fine_tuned_model(ORG, "old").await.unwrap();
    registry.forget(ORG, "old");
    assert!(matches!(registry.lease(ORG, "old").await, Err(Error::Store(store::Error::ModelNotFound(_)))));
    let now = registry.status();
    assert_eq!((now.retired(), now.leases(), now.memory.host_bytes()), (1, 1, 0));
    assert_eq!(now.memory.device_bytes(), bytes(4));
    assert_eq!(stored(&database), 0);

    install(&registry, "new", files(2, 4)).await.unwrap();
    let new = lease(&registry, "new").await;
    install(&registry, "third", files(3, 4)).await.unwrap();
    assert!(matches!(registry.lease(ORG, "third").await, Err(Error::Overloaded { .. })), "the retired one counts");
    assert_eq!(numbers(&held), numbers(peft_adapter(&files(1, 4))));
    drop(held);
    let third = lease(&registry, "third").await;
    assert_eq!((registry.status().retired(), registry.status().leases()), (0, 2));

    // The same if the name points to another adapter.
    registry.install(ORG, "new", "demo", files(4, 4), true).await.unwrap();
    assert_eq!(registry.status().retired(), 1);
    assert_eq!(new.id, files(2, 4).id());
    drop((new, third));
    assert_eq!(lease(&registry, "new").await.id, files(4, 4).id());
    assert_eq!(registry.status().retired(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_create_one_name_at_once_one_wins_and_the_others_leave_nothing() {
    let database = TestDatabase::new().await;
    let registry = registry(&database.store, limits(1 << 30, 1 << 30));
    let tasks = (0..8).map(|seed| {
        let registry = registry.clone();
        tokio::spawn(async move { install(&registry, "wanted", files(seed, 4)).await.map(|()| seed) })
    });
    let ended = futures::future::join_all(tasks).await;
    let won: Vec<u64> = ended.iter().filter_map(|one| one.as_ref().unwrap().as_ref().ok().copied()).collect();
    let [winner] = won[..] else { panic!("{won:?}") };
    for error in ended.into_iter().filter_map(|one| one.unwrap().err()) {
        assert!(matches!(error, Error::Store(store::Error::NameTaken(_))), "{error}");
    }
    assert_eq!(lease(&registry, "wanted").await.id, files(winner, 4).id());
    assert_eq!(stored(&database), 1);
    assert_eq!(registry.status().memory.generations.len(), 1);

    // Replacing with the same content changes nothing, even by many at once.
    let same = (0..8).map(|_| {
        let (registry, files) = (registry.clone(), files(winner, 4));
        tokio::spawn(async move { registry.install(ORG, "wanted", "demo", files, true).await })
    });
    for ended in futures::future::join_all(same).await {
        ended.unwrap().unwrap();
    }
    assert_eq!(lease(&registry, "wanted").await.id, files(winner, 4).id());
    assert_eq!((stored(&database), registry.status().memory.generations.len()), (1, 1));
    // Different names at once.
    let others = (0..8).map(|seed| {
        let registry = registry.clone();
        tokio::spawn(async move { install(&registry, &format!("other-{seed}"), files(seed, 4)).await })
    });
    for ended in futures::future::join_all(others).await {
        ended.unwrap().unwrap();
    }
    for seed in 0..8 {
        assert_eq!(lease(&registry, &format!("other-{seed}")).await.id, files(seed, 4).id());
    }
    assert_eq!(stored(&database), 8);
}
