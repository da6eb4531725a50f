//! Sessions of the page, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic")]

use std::time::Duration;

use crate::postgres::TestDatabase;
use attune::store::keys::hash;
use attune::store::page_sessions::SessionKey;

const DAY: Duration = Duration::from_hours(24);

#[tokio::test]
async fn a_session_finds_its_key_until_it_ends() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let (stored, configured) = (SessionKey::Stored(hash("a key")), SessionKey::Configured(hash("another")));
    store.begin_session(&hash("one"), &stored, DAY).await.unwrap();
    store.begin_session(&hash("two"), &configured, DAY).await.unwrap();
    assert_eq!(store.session(&hash("one")).await.unwrap(), Some(stored));
    assert_eq!(store.session(&hash("two")).await.unwrap(), Some(configured));
    assert_eq!(store.session(&hash("three")).await.unwrap(), None);
    store.end_session(&hash("one")).await.unwrap();
    assert_eq!(store.session(&hash("one")).await.unwrap(), None);
    assert_eq!(store.session(&hash("two")).await.unwrap(), Some(configured));
}

#[tokio::test]
async fn sessions_that_have_ended_are_not_found_and_are_removed_by_the_next_one() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let key = SessionKey::Stored(hash("a key"));
    store.begin_session(&hash("old"), &key, Duration::ZERO).await.unwrap();
    assert_eq!(store.session(&hash("old")).await.unwrap(), None);
    store.begin_session(&hash("new"), &key, DAY).await.unwrap();
    assert_eq!(database.value::<i64>("select count(*) from page_sessions").await, 1);
}

#[tokio::test]
async fn a_key_has_a_bounded_number_of_sessions_and_the_oldest_gives_way() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let (key, other) = (SessionKey::Stored(hash("a key")), SessionKey::Stored(hash("another")));
    store.begin_session(&hash("other"), &other, DAY).await.unwrap();
    for number in 0..103 {
        store.begin_session(&hash(&number.to_string()), &key, DAY).await.unwrap();
    }
    assert_eq!(database.value::<i64>("select count(*) from page_sessions").await, 101);
    for (token, found) in [("0", false), ("2", false), ("3", true), ("102", true), ("other", true)] {
        assert_eq!(store.session(&hash(token)).await.unwrap().is_some(), found, "{token}");
    }
}
