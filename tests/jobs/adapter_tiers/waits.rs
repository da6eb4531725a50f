//! Every wait for an adapter has a limit: for room on the device, for the store, for a turn.

use super::*;
use attune::engine::priority::Priority;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_full_of_leases_makes_others_wait_a_bounded_time() {
    let database = TestDatabase::new().await;
    let setup = registry(&database.store, limits(bytes(4) * 2, 1 << 30));
    for seed in 0..3 {
        install(&setup, &format!("adapter-{seed}"), files(seed, 4)).await.unwrap();
    }
    let held = (lease(&setup, "adapter-0").await, lease(&setup, "adapter-1").await);
    let evictions = setup.status().memory.evictions;
    match setup.lease(ORG, "adapter-2").await {
        Err(Error::Overloaded { retry_after, .. }) => assert!(retry_after >= Duration::from_secs(1)),
        other => panic!("{:?}", other.map(|(base, _)| base)),
    }
    // A leased adapter is available to other requests, too.
    assert!(Arc::ptr_eq(&lease(&setup, "adapter-0").await, &held.0));
    assert_eq!(setup.status().memory.evictions, evictions, "nothing was let go in vain");

    let patient = registry(&database.store, RegistryLimits { room_wait: LONG, ..limits(bytes(4) * 2, 1 << 30) });
    let held = (lease(&patient, "adapter-0").await, lease(&patient, "adapter-1").await);
    let waiting = tokio::spawn({
        let patient = patient.clone();
        async move { lease(&patient, "adapter-2").await.id.clone() }
    });
    until("a load that waits for room", || patient.status().loading == 1).await;
    assert_eq!(patient.status().memory.device_bytes(), bytes(4) * 2);
    drop(held.0);
    assert_eq!(waiting.await.unwrap(), files(2, 4).id());
    assert!(Arc::ptr_eq(&lease(&patient, "adapter-1").await, &held.1), "what was leased all the time is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_and_a_turn_that_does_not_come_are_waited_for_a_bounded_time() {
    let database = TestDatabase::new().await;
    install(&registry(&database.store, limits(1 << 30, 0)), "one", files(1, 4)).await.unwrap();
    let store = slow(&database, LONG).await;
    let hurried = RegistryLimits { read_wait: Duration::from_millis(100), ..limits(1 << 30, 1 << 30) };
    let registry = registry(&store, hurried);
    assert!(matches!(registry.lease(ORG, "one").await, Err(Error::Unavailable(_))));
    let now = registry.status();
    assert_eq!((now.failed_loads, now.loading, now.memory.reserved, now.memory.generations.len()), (1, 0, 0, 0));

    let hurried = RegistryLimits { turn_wait: Duration::from_millis(100), ..limits(1 << 30, 1 << 30) };
    let registry = self::registry(&database.store, hurried);
    let all = registry.share(u64::MAX).await.unwrap();
    assert!(matches!(registry.lease(ORG, "one").await, Err(Error::Overloaded { .. })));
    drop(all);
    assert_eq!(lease(&registry, "one").await.id, files(1, 4).id());
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_loaded_and_installed_while_requests_run_all_the_time() {
    let database = TestDatabase::new().await;
    let priority = Arc::new(Priority::default());
    let busy = priority.busy();
    let limits = limits(bytes(512) * 2, 0);
    let limits = RegistryLimits { max_rank: 512, ..limits };
    let registry = AdapterRegistry::with_limits(database.store.clone(), catalog(), limits, Arc::clone(&priority));
    for seed in 0..3 {
        install(&registry, &format!("adapter-{seed}"), files(seed, 512)).await.unwrap();
    }
    // From the disk, since the host tier keeps nothing; many at once share the turns.
    for seed in [0, 1, 2, 0] {
        let name = format!("adapter-{seed}");
        let both = futures::join!(lease(&registry, &name), lease(&registry, &name));
        assert!(Arc::ptr_eq(&both.0, &both.1));
        assert_eq!(numbers(both.0), numbers(peft_adapter(&files(seed, 512))));
    }
    assert!(registry.status().loads_from_disk >= 3);
    let (_, original) = registry.original(ORG, "adapter-1").await.unwrap();
    assert_eq!(numbers(original), numbers(peft_adapter(&files(1, 512))));
    drop(busy);
}
