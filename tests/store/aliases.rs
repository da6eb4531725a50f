//! Aliases of an organisation: found beside models, moved at once, and in the way of a deletion of what they stand for.

use attune::jobs::queue::Queue;
use attune::store::Error;

use crate::postgres::TestDatabase;
use crate::support::{ORG, publish};

#[tokio::test]
async fn an_alias_stands_for_a_model_until_it_is_moved() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    assert_eq!(store.alias_target(ORG, "support").await.unwrap(), None);
    let made = store.set_alias(ORG, "support", "demo", false).await.unwrap();
    assert_eq!((made.name.as_str(), made.model.as_str(), made.previous), ("support", "demo", None));
    let moved = store.set_alias(ORG, "support", "other", false).await.unwrap();
    assert_eq!((moved.model.as_str(), moved.previous.as_deref()), ("other", Some("demo")));
    let again = store.set_alias(ORG, "support", "other", false).await.unwrap();
    assert_eq!(again.previous.as_deref(), Some("demo"), "no move");
    assert_eq!(store.alias_target(ORG, "support").await.unwrap().as_deref(), Some("other"));
    assert_eq!(store.alias_target("rival", "support").await.unwrap(), None);
    assert!(matches!(store.delete_alias("rival", "support").await, Err(Error::NotFound { .. })));
    assert_eq!(store.delete_alias(ORG, "support").await.unwrap(), again);
    assert!(store.aliases(ORG).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_alias_hides_no_model_of_its_organisation() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    let store = &database.store;
    store.set_alias(ORG, "support", "demo", false).await.unwrap();
    publish(&database, &queue, ORG, "support", "a1").await;
    assert_eq!(store.alias_target(ORG, "support").await.unwrap(), None);
    assert_eq!(store.usable_model(ORG, "support").await.unwrap().adapter, "a1");
}

#[tokio::test]
async fn a_model_that_an_alias_stands_for_is_not_deleted() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    let store = &database.store;
    publish(&database, &queue, ORG, "ft:demo:acme::1", "a1").await;
    store.set_alias(ORG, "support", "ft:demo:acme::1", true).await.unwrap();
    let refused = store.delete_fine_tuned_model(ORG, "ft:demo:acme::1").await.unwrap_err();
    assert!(matches!(refused, Error::ModelHasAlias { alias, .. } if alias == "support"));
    store.set_alias(ORG, "support", "demo", false).await.unwrap();
    store.delete_fine_tuned_model(ORG, "ft:demo:acme::1").await.unwrap();
    let gone = store.set_alias(ORG, "support", "ft:demo:acme::1", true).await.unwrap_err();
    assert!(matches!(gone, Error::ModelNotFound(_)), "{gone}");
    assert_eq!(store.alias(ORG, "support").await.unwrap().model, "demo");
}

#[tokio::test]
async fn a_deletion_waits_for_an_alias_that_is_being_set() {
    let database = TestDatabase::new().await;
    let queue = Queue::open(database.store.clone()).await.unwrap();
    publish(&database, &queue, ORG, "ft:demo:acme::1", "a1").await;
    // What `set_alias` does, held open before its end.
    let mut setting = database.store.pool().begin().await.unwrap();
    sqlx::query("select 1 from fine_tuned_models where name = 'ft:demo:acme::1' for key share")
        .execute(&mut *setting)
        .await
        .unwrap();
    sqlx::query("insert into model_aliases (organization, name, model) values ('acme', 'support', 'ft:demo:acme::1')")
        .execute(&mut *setting)
        .await
        .unwrap();
    let store = database.store.clone();
    let deletion = tokio::spawn(async move { store.delete_fine_tuned_model(ORG, "ft:demo:acme::1").await });
    let waiting =
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%alias_of_model%'";
    while database.value::<i64>(waiting).await == 0 {
        assert!(!deletion.is_finished(), "it did not wait");
        tokio::task::yield_now().await;
    }
    setting.commit().await.unwrap();
    assert!(matches!(deletion.await.unwrap(), Err(Error::ModelHasAlias { .. })));
}
