//! Responses that are kept, and those that are written in the background.

use std::time::Duration;

use attune::store::Store;
use attune::store::background_responses::{ClaimedResponse, ResponseEvent};
use attune::store::conversations::NewItems;
use attune::store::responses::{Answer, Chain, NewResponse};

use crate::postgres::TestDatabase;
use crate::support::ORG;

const LEASE: Duration = Duration::from_mins(1);

fn new(id: &str, previous: Option<&str>) -> NewResponse {
    let answer = Answer {
        status: "completed",
        output: format!("[\"{id} out\"]"),
        item_ids: vec![format!("in_{id}"), format!("out_{id}")],
        response: format!("{{\"id\":\"{id}\",\"text\":\"\\u0000\"}}"),
        added: NewItems::default(),
    };
    NewResponse {
        id: id.into(),
        organization: ORG.into(),
        key: "k".into(),
        created_micros: 1_800_000_000_000_000,
        previous: previous.map(Into::into),
        conversation: None,
        input: format!("[\"{id} in\"]"),
        answer,
    }
}

fn event(sequence: i32) -> ResponseEvent {
    ResponseEvent { sequence, kind: "k".into(), event: format!("{{\"n\":{sequence}}}") }
}

async fn chain(store: &Store, organization: &str, id: &str, limit: usize) -> Chain {
    store.response_chain(organization, id, limit).await.unwrap()
}

#[tokio::test]
async fn a_response_is_found_by_its_owner_until_it_is_deleted() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    store.keep_response(&new("a", None)).await.unwrap();
    let found = store.response(ORG, "a").await.unwrap().unwrap();
    assert_eq!((found.status.as_str(), found.background, found.streamed), ("completed", false, false));
    assert_eq!(found.response, new("a", None).answer.response, "a NUL is kept");
    assert_eq!(store.response("other", "a").await.unwrap(), None);
    assert!(!store.delete_response("other", "a").await.unwrap());
    assert!(store.delete_response(ORG, "a").await.unwrap());
    assert!(!store.delete_response(ORG, "a").await.unwrap());
}

#[tokio::test]
async fn a_chain_begins_with_the_first_response_and_is_whole_or_broken() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    for (id, previous) in [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("b"))] {
        store.keep_response(&new(id, previous)).await.unwrap();
    }
    let Chain::Whole(turns) = chain(store, ORG, "c", 1000).await else { panic!("a whole chain") };
    let inputs: Vec<_> = turns.iter().map(|turn| turn.input.as_str()).collect();
    assert_eq!(inputs, ["[\"a in\"]", "[\"b in\"]", "[\"c in\"]"]);
    assert_eq!(turns[1].output, "[\"b out\"]");
    let bytes: usize = turns.iter().map(|turn| turn.input.len() + turn.output.len()).sum();
    assert!(matches!(chain(store, ORG, "c", bytes).await, Chain::Whole(_)));
    assert_eq!(chain(store, ORG, "c", bytes - 1).await, Chain::TooLong);
    assert_eq!(chain(store, "other", "c", 1000).await, Chain::Broken);
    assert_eq!(chain(store, ORG, "nobody", 1000).await, Chain::Broken);
    store.delete_response(ORG, "a").await.unwrap();
    assert_eq!(chain(store, ORG, "d", 1000).await, Chain::Broken);
}

#[tokio::test]
async fn responses_are_found_by_their_items() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    for id in ["a", "b"] {
        store.keep_response(&new(id, None)).await.unwrap();
    }
    let found = store.responses_with_items(ORG, &["out_b", "in_b", "x"]).await.unwrap();
    assert_eq!(found.iter().map(|turn| turn.input.as_str()).collect::<Vec<_>>(), ["[\"b in\"]"]);
    assert!(store.responses_with_items("other", &["out_b"]).await.unwrap().is_empty());
}

async fn queue(store: &Store, id: &str, events: Option<&[ResponseEvent]>) -> bool {
    store.queue_response(&new(id, None), "{}", events, 3).await.unwrap()
}

async fn claim(store: &Store, lease: Duration) -> Option<ClaimedResponse> {
    store.claim_response(lease).await.unwrap()
}

#[tokio::test]
async fn a_response_is_written_by_one_attempt_at_a_time() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    assert!(queue(store, "a", Some(&[event(0), event(1)])).await);
    // Its lease has run out at once.
    let first = claim(store, Duration::ZERO).await.unwrap();
    assert_eq!((first.attempt, first.losses, first.told, first.streamed), (1, 0, 2, true));
    assert!(store.go_on_with_response(&first, Duration::ZERO, None, &[event(2)]).await.unwrap());
    let second = claim(store, LEASE).await.unwrap();
    assert_eq!((second.attempt, second.losses, second.told), (2, 1, 3));
    assert_eq!(claim(store, LEASE).await, None);
    // The first one is behind the fence.
    assert!(!store.go_on_with_response(&first, LEASE, Some("x"), &[event(3)]).await.unwrap());
    assert!(!store.end_response(&first, &new("a", None).answer, &[event(3)]).await.unwrap());
    store.release_response(&first, Duration::ZERO).await.unwrap();
    assert_eq!(store.response_status(ORG, "a").await.unwrap().as_deref(), Some("in_progress"));
    assert!(store.end_response(&second, &new("a", None).answer, &[event(3)]).await.unwrap());
    assert_eq!(store.response_status(ORG, "a").await.unwrap().as_deref(), Some("completed"));
    let events = store.response_events("a", 0, 10).await.unwrap();
    assert_eq!(events, [event(1), event(2), event(3)]);
    assert_eq!(claim(store, LEASE).await, None);
}

#[tokio::test]
async fn one_that_is_given_back_waits_for_a_while() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    queue(store, "a", None).await;
    let claimed = claim(store, LEASE).await.unwrap();
    store.release_response(&claimed, LEASE).await.unwrap();
    assert_eq!(claim(store, LEASE).await, None);
    database.execute("update responses set due_at = now()").await;
    let again = claim(store, LEASE).await.unwrap();
    assert_eq!((again.attempt, again.losses), (2, 0), "it was not lost");
}

#[tokio::test]
async fn a_cancelled_response_is_not_written_on_and_its_stream_ends() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    queue(store, "a", Some(&[event(0), event(1)])).await;
    let claimed = claim(store, LEASE).await.unwrap();
    assert!(store.go_on_with_response(&claimed, LEASE, None, &[event(2)]).await.unwrap());
    assert!(!store.cancel_response("other", "a", "{}", "last").await.unwrap());
    assert!(store.cancel_response(ORG, "a", "{\"id\":\"a\"}", "last").await.unwrap());
    assert!(!store.cancel_response(ORG, "a", "{}", "last").await.unwrap());
    assert!(!store.go_on_with_response(&claimed, LEASE, None, &[event(3)]).await.unwrap());
    let events = store.response_events("a", 2, 10).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].sequence, events[0].kind.as_str()), (3, "last"));
    let told: serde_json::Value = serde_json::from_str(&events[0].event).unwrap();
    assert_eq!(told, serde_json::json!({"type": "last", "sequence_number": 3, "response": {"id": "a"}}));
}

#[tokio::test]
async fn an_organisation_has_a_bounded_number_of_unfinished_responses_and_all_have_their_turn() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    for id in ["a", "b", "c"] {
        assert!(queue(store, id, None).await);
    }
    assert!(!queue(store, "d", None).await);
    assert_eq!(claim(store, LEASE).await.unwrap().id, "a");
    let other = NewResponse { organization: "other".into(), ..new("e", None) };
    assert!(store.queue_response(&other, "{}", None, 3).await.unwrap());
    assert_eq!(claim(store, LEASE).await.unwrap().id, "e", "the other one has none that is written");
    assert_eq!(claim(store, LEASE).await.unwrap().id, "b");
}
