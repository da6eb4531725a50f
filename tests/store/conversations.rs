//! Conversations: their items in order, and what responses add to them.

use attune::store::Store;
use attune::store::conversations::{Added, ConversationPlace, History, NewItems};
use attune::store::files::Page;
use attune::store::responses::{Answer, Chain, NewResponse};
use serde_json::Map;

use crate::postgres::TestDatabase;
use crate::support::ORG;

fn items(ids: &[&str]) -> NewItems {
    let item = |id: &&str| format!("{{\"id\":\"{id}\",\"text\":\"\\u0000\"}}");
    NewItems { ids: ids.iter().map(|id| (*id).to_owned()).collect(), items: ids.iter().map(item).collect() }
}

async fn make(store: &Store, id: &str, ids: &[&str]) {
    store.add_conversation(ORG, id, &Map::new(), &items(ids)).await.unwrap();
}

async fn ids(store: &Store, id: &str, after: Option<&str>, limit: i64, ascending: bool) -> (Vec<String>, bool) {
    let page = Page { after: after.map(str::to_owned), limit, ascending };
    let (found, more) = store.conversation_items(ORG, id, page).await.unwrap();
    (found.into_iter().map(|(id, _)| id).collect(), more)
}

async fn all(store: &Store, id: &str) -> Vec<String> {
    ids(store, id, None, 100, true).await.0
}

/// Reads a conversation up to its item number `end`: its ids, and where it ends.
async fn history(store: &Store, id: &str, end: Option<i64>, limit: usize) -> Option<(Vec<String>, ConversationPlace)> {
    match store.conversation_history(ORG, id, end, limit).await.unwrap() {
        History::Whole { items, count, place } => {
            let items: Vec<serde_json::Value> = serde_json::from_str(&items).unwrap();
            assert_eq!(items.len() as i64, count);
            Some((items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect(), place))
        }
        History::Gone | History::TooLong => None,
    }
}

fn response(id: &str, place: &ConversationPlace, added: NewItems) -> NewResponse {
    let answer = Answer {
        status: "completed",
        output: format!("[\"{id} out\"]"),
        item_ids: Vec::new(),
        response: "{}".into(),
        added,
    };
    NewResponse {
        id: id.into(),
        organization: ORG.into(),
        key: "k".into(),
        created_micros: 1_800_000_000_000_000,
        previous: None,
        conversation: Some(place.clone()),
        input: format!("[\"{id} in\"]"),
        answer,
    }
}

#[tokio::test]
async fn items_come_in_pages_in_the_order_in_which_they_were_added() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    make(store, "conv", &["c", "a"]).await;
    assert!(store.add_to_conversation(ORG, "conv", &items(&["b", "a", "d"])).await.unwrap());
    assert_eq!(all(store, "conv").await, ["c", "a", "b", "d"], "what is there already is not added again");
    for (after, limit, ascending, expected, more) in [
        (None, 3, true, vec!["c", "a", "b"], true),
        (Some("a"), 3, true, vec!["b", "d"], false),
        (None, 2, false, vec!["d", "b"], true),
        (Some("b"), 5, false, vec!["a", "c"], false),
        (Some("nobody"), 5, true, vec![], false),
    ] {
        let found = ids(store, "conv", after, limit, ascending).await;
        assert_eq!(found, (expected.into_iter().map(str::to_owned).collect(), more), "{after:?} {ascending}");
    }
    assert_eq!(store.conversation_item(ORG, "conv", "b").await.unwrap().unwrap(), items(&["b"]).items[0]);
    assert!(store.delete_conversation_item(ORG, "conv", "b").await.unwrap());
    assert!(!store.delete_conversation_item(ORG, "conv", "b").await.unwrap());
    assert_eq!(all(store, "conv").await, ["c", "a", "d"]);
    make(store, "empty", &[]).await;
    assert_eq!(history(store, "empty", None, 0).await.unwrap().0, Vec::<String>::new());
}

#[tokio::test]
async fn items_are_added_whole_or_not_at_all() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    make(store, "conv", &["a"]).await;
    let add = async |ids: &[&str], most: i64, bytes: i64| {
        store.add_new_to_conversation(ORG, "conv", &items(ids), most, bytes).await.unwrap()
    };
    assert_eq!(add(&["b", "a"], 9, 9999).await, Added::Present(1));
    assert_eq!(add(&["b", "c"], 2, 9999).await, Added::TooMuch);
    assert_eq!(add(&["b"], 9, 1).await, Added::TooMuch);
    assert_eq!(all(store, "conv").await, ["a"]);
    assert_eq!(add(&["b", "c"], 3, 9999).await, Added::All);
    assert_eq!(store.add_new_to_conversation("other", "conv", &items(&["d"]), 9, 9999).await.unwrap(), Added::Gone);
    // Of those who add the same one at the same time, one is told that it has done so.
    let new = items(&["d"]);
    let at_once = (0..8).map(|_| store.add_new_to_conversation(ORG, "conv", &new, 9, 9999));
    let told: Vec<Added> = futures::future::join_all(at_once).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(told.iter().filter(|added| **added == Added::All).count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|added| **added == Added::Present(0)).count(), 7, "{told:?}");
    assert_eq!(all(store, "conv").await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn others_find_nothing_of_it() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    make(store, "conv", &["a"]).await;
    let page = Page { after: None, limit: 9, ascending: true };
    assert_eq!(store.conversation("other", "conv").await.unwrap(), None);
    assert!(store.conversation_items("other", "conv", page).await.unwrap().0.is_empty());
    assert_eq!(store.conversation_item("other", "conv", "a").await.unwrap(), None);
    assert!(!store.add_to_conversation("other", "conv", &items(&["b"])).await.unwrap());
    assert!(!store.delete_conversation_item("other", "conv", "a").await.unwrap());
    assert!(store.set_conversation_metadata("other", "conv", &Map::new()).await.unwrap().is_none());
    assert_eq!(store.conversation_history("other", "conv", None, 1000).await.unwrap(), History::Gone);
    assert!(store.items_of_conversations("other", &["a"]).await.unwrap().is_empty());
    assert!(!store.delete_conversation("other", "conv").await.unwrap());
    assert_eq!(store.items_of_conversations(ORG, &["a", "x"]).await.unwrap().len(), 1);
    assert_eq!(all(store, "conv").await, ["a"]);
}

#[tokio::test]
async fn a_response_adds_to_its_conversation_and_remembers_what_it_read() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    make(store, "conv", &["a"]).await;
    let (_, place) = history(store, "conv", None, 1000).await.unwrap();
    store.keep_response(&response("r", &place, items(&["in", "out"]))).await.unwrap();
    store.add_to_conversation(ORG, "conv", &items(&["later"])).await.unwrap();
    assert_eq!(all(store, "conv").await, ["a", "in", "out", "later"]);
    let (read, again) = history(store, "conv", Some(place.end), 1000).await.unwrap();
    assert_eq!((read, again), (vec!["a".to_owned()], place.clone()));
    // The chain begins with what it read.
    let Chain::Whole(turns) = store.response_chain(ORG, "r", 1000).await.unwrap() else { panic!("a whole chain") };
    let inputs: Vec<&str> = turns.iter().map(|turn| turn.input.as_str()).collect();
    assert_eq!(inputs, [&format!("[{}]", items(&["a"]).items[0]), "[\"r in\"]"]);
    let bytes: usize = items(&["a"]).items[0].len() + "[\"r in\"][\"r out\"]".len();
    assert!(matches!(store.response_chain(ORG, "r", bytes).await.unwrap(), Chain::Whole(_)));
    assert_eq!(store.response_chain(ORG, "r", bytes - 1).await.unwrap(), Chain::TooLong);
    assert_eq!(history(store, "conv", None, 10).await, None, "too long");
    // Without its conversation it stays, and cannot be gone on from.
    assert!(store.delete_conversation(ORG, "conv").await.unwrap());
    assert_eq!(store.response_chain(ORG, "r", 1000).await.unwrap(), Chain::Broken);
    assert!(store.response(ORG, "r").await.unwrap().is_some());
    store.keep_response(&response("s", &place, items(&["x"]))).await.unwrap();
    assert!(store.response(ORG, "s").await.unwrap().is_some(), "one that ends afterwards is kept as well");
}

#[tokio::test]
async fn a_response_in_the_background_adds_when_its_own_attempt_ends_it() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    make(store, "conv", &["a"]).await;
    let (_, place) = history(store, "conv", None, 1000).await.unwrap();
    let new = response("r", &place, NewItems::default());
    assert!(store.queue_response(&new, "{}", None, 9).await.unwrap());
    assert_eq!(all(store, "conv").await, ["a"], "nothing before its end");
    let lost = store.claim_response(std::time::Duration::ZERO).await.unwrap().unwrap();
    let own = store.claim_response(std::time::Duration::from_mins(1)).await.unwrap().unwrap();
    let answer = response("r", &place, items(&["in", "out"])).answer;
    assert!(!store.end_response(&lost, &answer, &[]).await.unwrap());
    assert_eq!(all(store, "conv").await, ["a"]);
    assert!(store.end_response(&own, &answer, &[]).await.unwrap());
    assert!(!store.end_response(&own, &answer, &[]).await.unwrap());
    assert_eq!(all(store, "conv").await, ["a", "in", "out"]);
}
