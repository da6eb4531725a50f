//! Every wait for an adapter has a limit: for room on the device, for the store, for a turn.

use super::*;

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
