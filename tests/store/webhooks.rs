//! Webhooks in the database: what is shared out, who claims it, and what a late process can still change.

use std::time::Duration;

use attune::store::webhooks::Wish;

use crate::postgres::TestDatabase;

const LEASE: Duration = Duration::from_mins(1);

fn wish(endpoint: &str, kind: Option<&str>, organization: Option<&str>) -> Wish {
    Wish { endpoint: endpoint.into(), kind: kind.map(str::to_owned), organization: organization.map(str::to_owned) }
}

#[tokio::test]
async fn an_event_goes_to_those_who_want_it_and_is_shared_out_once() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    store.add_webhook_event("acme", "batch.completed", "batch_1").await.unwrap();
    store.add_webhook_event("rival", "batch.failed", "batch_2").await.unwrap();
    let wishes = [
        wish("all", None, None),
        wish("good", Some("batch.completed"), None),
        wish("good", Some("eval.run.succeeded"), None),
        wish("acme's", None, Some("acme")),
        wish("nothing", Some("batch.completed"), Some("rival")),
    ];
    for _ in 0..2 {
        store.share_out_webhook_events(&wishes).await.unwrap();
    }
    // Those who come later get what comes later.
    store.share_out_webhook_events(&[wish("late", None, None)]).await.unwrap();
    for (endpoint, expected) in [
        ("all", vec!["batch_1", "batch_2"]),
        ("good", vec!["batch_1"]),
        ("acme's", vec!["batch_1"]),
        ("nothing", vec![]),
        ("late", vec![]),
    ] {
        let claimed = store.claim_webhook_deliveries(endpoint, 10, LEASE).await.unwrap();
        let mut subjects: Vec<_> = claimed.iter().map(|delivery| delivery.subject.as_str()).collect();
        subjects.sort_unstable();
        assert_eq!(subjects, expected, "{endpoint}");
        assert!(claimed.iter().all(|delivery| delivery.attempt == 1 && delivery.id.starts_with("wh_")));
    }
}

#[tokio::test]
async fn a_delivery_is_claimed_by_one_and_again_after_its_lease_under_the_same_id() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    store.add_webhook_event("acme", "batch.completed", "batch_1").await.unwrap();
    store.share_out_webhook_events(&[wish("a", None, None)]).await.unwrap();
    let claim = |lease| store.claim_webhook_deliveries("a", 10, lease);
    // A lease that has run out at once, as of a process that was killed long ago.
    let first = claim(Duration::ZERO).await.unwrap();
    let second = claim(LEASE).await.unwrap();
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!((&first[0].id, &first[0].event, first[0].attempt), (&second[0].id, &second[0].event, 1));
    assert_eq!(second[0].attempt, 2);
    assert!(claim(LEASE).await.unwrap().is_empty(), "the lease holds");
    // What the first one reports now comes too late.
    store.end_webhook_delivery("a", &first[0]).await.unwrap();
    store.put_off_webhook_delivery("a", &first[0], Duration::ZERO).await.unwrap();
    assert!(claim(LEASE).await.unwrap().is_empty(), "the lease still holds");
    store.put_off_webhook_delivery("a", &second[0], Duration::ZERO).await.unwrap();
    let third = claim(LEASE).await.unwrap();
    assert_eq!(third[0].attempt, 3);
    store.end_webhook_delivery("a", &third[0]).await.unwrap();
    database.execute("update webhook_deliveries set due_at = now() - interval '1 second'").await;
    assert!(claim(LEASE).await.unwrap().is_empty(), "what was taken is not sent again");
}
