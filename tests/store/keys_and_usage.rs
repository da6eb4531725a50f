//! API keys, their directory, and their usage, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic")]

use std::sync::Arc;
use std::time::Duration;

use crate::postgres::TestDatabase;
use attune::jobs::queue::{Admission, Outcome, Queue, TrainedModel};
use attune::jobs::{JobApi, JobFault, JobSpec};
use attune::store::Error;
use attune::store::Store;
use attune::store::key_directory::KeyDirectory;
use attune::store::keys::{ApiKey, NewKey, hash};
use attune::store::recent_use::{RecentCounts, RecentUse};
use attune::store::usage::{BasePrice, Counts, UsageEntry, UsageQuery, UsageRow, UsageRows};
use attune::store::usage_recorder::UsageRecorder;
use attune::train::hyperparameters::Hyperparameters;
use uuid::Uuid;

fn new_key(organization: &str) -> NewKey {
    NewKey { organization: organization.into(), ..NewKey::default() }
}

async fn key(store: &Store) -> (ApiKey, String) {
    store.create_key(new_key("acme")).await.unwrap()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Checks again and again until `condition` holds: a notification of the database is on its way.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within 30 s");
}

/// How long keys go on working without the database.
const OUTAGE: Duration = Duration::from_mins(10);

// --- Keys --------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_key_is_found_by_its_hash_and_its_text_is_stored_nowhere() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    assert!(!store.has_keys().await.unwrap());
    let new = NewKey {
        name: Some("night job".into()),
        admin: true,
        requests_per_minute: Some(7),
        tokens_per_minute: Some(1 << 40),
        expires_at: Some(now() + 60),
        ..new_key(" ACME ")
    };
    let (key, text) = store.create_key(new).await.unwrap();
    assert!(text.starts_with("sk-attune-") && text.len() >= "sk-attune-".len() + 32, "{text}");
    assert!(key.id.starts_with("key_") && key.admin && key.organization == "acme");
    assert_eq!((key.requests_per_minute, key.tokens_per_minute), (Some(7), Some(1 << 40)));
    assert_eq!(store.live_key(&hash(&text)).await.unwrap(), Some(key.clone()));
    assert_eq!(store.live_key(&hash("sk-attune-other")).await.unwrap(), None);
    let row: String = database.value("select k::text from api_keys k").await;
    assert!(!row.contains(&text) && row.contains(&text[text.len() - 4..]), "{row}");
    assert!(store.has_keys().await.unwrap());
}

#[tokio::test]
async fn a_revoked_or_expired_key_is_found_no_more_and_stays_in_the_list() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let (revoked, revoked_text) = key(store).await;
    let (expired, expired_text) =
        store.create_key(NewKey { expires_at: Some(now() - 1), ..new_key("acme") }).await.unwrap();
    let (live, live_text) = key(store).await;
    store.create_key(new_key("rival")).await.unwrap();
    let first = store.revoke_key(&revoked.id).await.unwrap();
    assert_eq!(store.revoke_key(&revoked.id).await.unwrap(), first, "revoking it again changes nothing");
    assert!(matches!(store.revoke_key("key_none").await, Err(Error::NotFound { kind: "key", .. })));
    for (text, found) in [(revoked_text, false), (expired_text, false), (live_text, true)] {
        assert_eq!(store.live_key(&hash(&text)).await.unwrap().is_some(), found);
    }
    let ids: Vec<String> = store.keys(Some("acme"), None).await.unwrap().0.into_iter().map(|key| key.id).collect();
    assert_eq!(ids, [revoked.id, expired.id, live.id]);
    assert_eq!(store.keys(None, None).await.unwrap().0.len(), 4);
}

#[tokio::test]
async fn what_a_key_cannot_have_is_refused() {
    let database = TestDatabase::new().await;
    for new in [
        new_key("a b"),
        NewKey { requests_per_minute: Some(0), ..new_key("acme") },
        NewKey { tokens_per_minute: Some(u64::MAX), ..new_key("acme") },
        NewKey { name: Some("x".repeat(201)), ..new_key("acme") },
    ] {
        let error = database.store.create_key(new.clone()).await.unwrap_err();
        assert!(matches!(error, Error::KeySetting(_)), "{new:?}: {error:?}");
    }
    assert!(!database.store.has_keys().await.unwrap());
}

#[tokio::test]
async fn a_key_is_limited_anew_and_running_servers_hear_of_it() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let (key, text) = key(store).await;
    let directory = KeyDirectory::open(store.clone(), OUTAGE).await.unwrap();
    assert_eq!(directory.find(&text).await.unwrap().unwrap().requests_per_minute, None);
    let limited = store.limit_key(&key.id, Some(7), None).await.unwrap();
    assert_eq!((limited.requests_per_minute, limited.tokens_per_minute), (Some(7), None));
    eventually("the new limit", async || directory.find(&text).await.unwrap().unwrap().requests_per_minute == Some(7))
        .await;
    let other = store.limit_key(&key.id, None, Some(1 << 40)).await.unwrap();
    assert_eq!((other.requests_per_minute, other.tokens_per_minute), (None, Some(1 << 40)));
    assert!(matches!(store.limit_key("key_none", None, None).await, Err(Error::NotFound { kind: "key", .. })));
    for wrong in [0, u64::MAX] {
        assert!(matches!(store.limit_key(&key.id, Some(wrong), None).await, Err(Error::KeySetting(_))), "{wrong}");
    }
    assert_eq!(store.keys_named(&[&key.id, "key_none"]).await.unwrap(), [other]);
    let (page, more) = store.some_keys(None, None, 0).await.unwrap();
    assert!(page.is_empty() && more);
}

#[tokio::test]
async fn the_directory_hears_of_new_and_of_revoked_keys() {
    let database = TestDatabase::new().await;
    let directory = KeyDirectory::open(database.store.clone(), OUTAGE).await.unwrap();
    assert!(!directory.is_closed().await.unwrap());
    let (key, text) = key(&database.store).await;
    eventually("the first key closes the door", async || directory.is_closed().await.unwrap()).await;
    assert_eq!(directory.find(&text).await.unwrap().unwrap().id, key.id);
    assert!(directory.find("sk-attune-none").await.unwrap().is_none());
    assert!(directory.find("something else").await.unwrap().is_none());
    database.store.revoke_key(&key.id).await.unwrap();
    eventually("the revoked key", async || directory.find(&text).await.unwrap().is_none()).await;
    assert!(directory.is_closed().await.unwrap(), "revoking the last key does not open the door");
}

#[tokio::test]
async fn the_directory_asks_the_database_once_for_many_requests() {
    let database = TestDatabase::new().await;
    let directory = KeyDirectory::open(database.store.clone(), OUTAGE).await.unwrap();
    let (_, text) = key(&database.store).await;
    // No notification that would empty the cache is on its way any more.
    eventually("the notification of the key", async || directory.is_closed().await.unwrap()).await;
    let made_up = "sk-attune-made-up";
    assert!(directory.find(&text).await.unwrap().is_some());
    assert!(directory.find(made_up).await.unwrap().is_none());
    // Deletes without the trigger: only a second query of the database would notice.
    let behind_its_back = format!(
        "set session_replication_role = replica; delete from api_keys;
         insert into api_keys (id, organization, hash, masked) values ('key_x', 'x', sha256('{made_up}'), 'x')"
    );
    database.execute(&behind_its_back).await;
    assert!(directory.find(&text).await.unwrap().is_some(), "a known key is remembered");
    assert!(directory.find(made_up).await.unwrap().is_none(), "so is what is no key");
    let fresh = KeyDirectory::open(database.store.clone(), OUTAGE).await.unwrap();
    assert!(fresh.find(&text).await.unwrap().is_none() && fresh.find(made_up).await.unwrap().is_some());
}

#[tokio::test]
async fn a_key_that_expires_while_it_is_remembered_is_refused() {
    let database = TestDatabase::new().await;
    let directory = KeyDirectory::open(database.store.clone(), OUTAGE).await.unwrap();
    let (_, text) = database.store.create_key(NewKey { expires_at: Some(now() + 2), ..new_key("acme") }).await.unwrap();
    eventually("the end of the key", async || directory.find(&text).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn the_first_key_is_known_and_closes_the_door_without_any_notification() {
    let database = TestDatabase::new().await;
    database.execute("alter table api_keys disable trigger user").await;
    let directory = KeyDirectory::open(database.store.clone(), OUTAGE).await.unwrap();
    assert!(!directory.is_closed().await.unwrap());
    let (revoked, revoked_text) = key(&database.store).await;
    database.store.revoke_key(&revoked.id).await.unwrap();
    assert!(directory.find(&revoked_text).await.unwrap().is_none());
    assert!(directory.is_closed_now().await.unwrap(), "a revoked key was made, too");
    assert!(directory.was_closed());

    let another = KeyDirectory::open(database.store.clone(), OUTAGE).await.unwrap();
    let (made, text) = key(&database.store).await;
    assert_eq!(another.find(&text).await.unwrap().unwrap().id, made.id);
    assert!(another.was_closed());
}

#[tokio::test]
async fn a_key_that_is_not_found_is_no_reason_to_call_a_server_open_that_is_not() {
    let database = TestDatabase::new().await;
    database.execute("alter table api_keys disable trigger user").await;
    let directory = KeyDirectory::open(database.store.clone(), OUTAGE).await.unwrap();
    assert!(!directory.is_closed().await.unwrap() && !directory.is_closed_now().await.unwrap());
    key(&database.store).await;
    assert!(directory.is_closed_now().await.unwrap(), "what was remembered is not asked");
}

// --- Usage -------------------------------------------------------------------------------------------------------------

fn entry(organization: &str, key: &str, model: &str, base: &str) -> UsageEntry {
    UsageEntry {
        organization: organization.into(),
        key: key.into(),
        model: model.into(),
        base: base.into(),
        batch: false,
    }
}

const COUNTS: Counts = Counts { requests: 1, prompt_tokens: 1000, cached_tokens: 400, completion_tokens: 50 };

async fn add(store: &Store, rows: &[(&str, UsageEntry)]) {
    let rows: UsageRows = rows.iter().map(|(day, entry)| (((*day).into(), entry.clone()), COUNTS)).collect();
    store.add_usage(Uuid::new_v4(), 1, &rows).await.unwrap();
}

fn query(organization: Option<&str>) -> UsageQuery {
    UsageQuery {
        organization: organization.map(Into::into),
        start: "2026-01-01".into(),
        end: "2026-12-31".into(),
        limit: 100,
        ..UsageQuery::default()
    }
}

/// Returns the number of requests in each row, with the names that the row is grouped by.
async fn requests(store: &Store, query: UsageQuery) -> Vec<(Vec<String>, i64)> {
    let place = |row: &UsageRow| {
        [&row.day, &row.organization, &row.model, &row.key].into_iter().flatten().cloned().collect::<Vec<String>>()
    };
    store.usage(&query).await.unwrap().0.iter().map(|row| (place(row), row.requests)).collect()
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_not_added_twice() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let rows: UsageRows = [(("2026-05-01".into(), entry("acme", "k", "m", "m")), COUNTS)].into_iter().collect();
    let (writer, other) = (Uuid::new_v4(), Uuid::new_v4());
    for (writer, batch) in [(writer, 1), (writer, 1), (writer, 2), (other, 1), (writer, 1), (writer, 2)] {
        store.add_usage(writer, batch, &rows).await.unwrap();
    }
    assert_eq!(requests(store, query(Some("acme"))).await, [(vec![], 3)]);
}

#[tokio::test]
async fn what_was_used_lately_is_known_by_model_for_an_hour_and_a_day() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let writer = Uuid::new_v4();
    let entries =
        [entry("acme", "k1", "ft:a", "demo"), entry("acme", "k2", "ft:a", "demo"), entry("rival", "k3", "ft:a", "x")];
    let batch_rows: UsageRows = entries.into_iter().map(|entry| (("2026-05-01".into(), entry), COUNTS)).collect();
    for batch in [1, 2, 2] {
        store.add_usage(writer, batch, &batch_rows).await.unwrap();
    }
    let used = async |organization| store.recent_use(organization, &["ft:a", "demo"]).await.unwrap();
    let of = |times: i64| RecentCounts { requests: times, tokens: 1050 * times };
    let four = RecentUse { hour: of(4), day: of(4) };
    assert_eq!(used("acme").await, [("ft:a".to_owned(), four)].into(), "two keys, two batches, one of them sent twice");
    assert_eq!(used("rival").await["ft:a"].hour, of(2));
    assert!(used("nobody").await.is_empty());
    // What is older than an hour counts for the day, what is older than a day is forgotten with the next batch.
    database.execute("update usage_recent set slot = slot - interval '2 hours' where organization = 'acme'").await;
    database.execute("update usage_recent set slot = slot - interval '26 hours' where organization = 'rival'").await;
    assert_eq!(used("acme").await["ft:a"], RecentUse { hour: of(0), day: of(4) });
    assert!(used("rival").await.is_empty());
    let rows = async || database.value::<i64>("select count(*) from usage_recent").await;
    assert_eq!(rows().await, 2);
    add(store, &[("2026-05-01", entry("acme", "k1", "demo", "demo"))]).await;
    assert_eq!(rows().await, 2, "one more, one less");
    assert_eq!(used("acme").await["demo"].hour, of(1));
}

#[tokio::test]
async fn sums_are_grouped_and_belong_to_their_organisation() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let (one, two) = (entry("acme", "k1", "ft:a", "demo"), entry("acme", "k2", "demo", "demo"));
    add(store, &[("2026-05-01", one.clone()), ("2026-05-02", one.clone()), ("2026-05-02", two)]).await;
    add(store, &[("2026-05-02", entry("rival", "k3", "demo", "demo")), ("2025-12-31", one)]).await;
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<String>>();
    assert_eq!(requests(store, query(Some("acme"))).await, [(vec![], 3)]);
    let by_day = UsageQuery { by_day: true, ..query(Some("acme")) };
    assert_eq!(requests(store, by_day).await, [(words(&["2026-05-01"]), 1), (words(&["2026-05-02"]), 2)]);
    let by_both = UsageQuery { by_model: true, by_key: true, ..query(Some("acme")) };
    assert_eq!(requests(store, by_both).await, [(words(&["demo", "k2"]), 1), (words(&["ft:a", "k1"]), 2)]);
    assert_eq!(requests(store, query(None)).await, [(words(&["acme"]), 3), (words(&["rival"]), 1)]);
    assert_eq!(requests(store, query(Some("nobody"))).await, []);
    let last = UsageQuery { limit: 1, offset: 1, ..query(None) };
    assert_eq!(requests(store, last).await, [(words(&["rival"]), 1)]);
    assert!(store.usage(&UsageQuery { limit: 1, ..query(None) }).await.unwrap().1, "there is another row");
}

#[tokio::test]
async fn cached_tokens_have_a_price_of_their_own_and_a_sum_without_all_prices_has_none() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    add(store, &[("2026-05-01", entry("acme", "k", "ft:a", "demo")), ("2026-05-01", entry("acme", "k", "b", "other"))])
        .await;
    let demo = BasePrice {
        base: "demo".into(),
        prompt: 2.0,
        cached_prompt: 0.5,
        completion: 10.0,
        training: 100.0,
        batch: 0.5,
    };
    let by_model = UsageQuery { by_model: true, prices: vec![demo.clone()], ..query(Some("acme")) };
    let (rows, _) = store.usage(&by_model).await.unwrap();
    assert_eq!((rows[0].model.as_deref(), rows[0].cost), (Some("b"), None));
    let cost = rows[1].cost.unwrap();
    assert!((cost - (600.0 * 2.0 + 400.0 * 0.5 + 50.0 * 10.0) / 1e6).abs() < 1e-12, "{cost}");
    let all = UsageQuery { prices: vec![demo], ..query(Some("acme")) };
    assert_eq!(store.usage(&all).await.unwrap().0[0].cost, None, "a part would look like the whole");
}

#[tokio::test]
async fn what_lines_of_batches_used_is_a_part_of_the_sums_and_has_its_own_price() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let alone = entry("acme", "k", "m", "demo");
    let of_batch = UsageEntry { batch: true, ..alone.clone() };
    for _ in 0..2 {
        add(store, &[("2026-05-01", alone.clone()), ("2026-05-01", of_batch.clone())]).await;
    }
    let demo =
        BasePrice { base: "demo".into(), prompt: 2.0, cached_prompt: 0.5, completion: 10.0, training: 1.0, batch: 0.5 };
    let all = UsageQuery { prices: vec![demo], ..query(Some("acme")) };
    let row = store.usage(&all).await.unwrap().0.remove(0);
    assert_eq!((row.requests, row.batch_requests), (4 * COUNTS.requests, 2 * COUNTS.requests));
    assert_eq!((row.prompt_tokens, row.batch_prompt_tokens), (4 * COUNTS.prompt_tokens, 2 * COUNTS.prompt_tokens));
    assert_eq!(row.batch_cached_tokens, 2 * COUNTS.cached_tokens);
    assert_eq!(row.batch_completion_tokens, 2 * COUNTS.completion_tokens);
    let one = (600.0 * 2.0 + 400.0 * 0.5 + 50.0 * 10.0) / 1e6;
    let cost = row.cost.unwrap();
    assert!((cost - (2.0 * one + 2.0 * one * 0.5)).abs() < 1e-12, "{cost}");
}

#[tokio::test]
async fn what_cannot_be_written_is_kept_and_written_once() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let recorder = UsageRecorder::new(store.clone());
    let (key, _) = key(store).await;
    let id: Arc<str> = key.id.as_str().into();
    let today = || UsageQuery { end: "2100-01-01".into(), ..query(Some("acme")) };

    recorder.record(entry("acme", &id, "m", "m"), COUNTS);
    recorder.touch(&id);
    database.execute("alter table usage_daily rename to gone").await;
    assert!(recorder.flush().await.is_err());
    recorder.record(entry("acme", &id, "m", "m"), COUNTS);
    assert!(recorder.flush().await.is_err());
    database.execute("alter table gone rename to usage_daily").await;
    for _ in 0..2 {
        recorder.flush().await.unwrap();
        assert_eq!(requests(store, today()).await, [(vec![], 2)]);
    }
    assert!(store.keys(None, None).await.unwrap().0[0].last_used_on.is_some());
}

#[tokio::test]
async fn a_jobs_tokens_are_charged_once_to_the_key_that_made_it_and_only_if_it_succeeds() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let queue = Queue::open(store.clone()).await.unwrap();
    let spec = JobSpec {
        model: "ft:earlier".into(),
        alias: None,
        training_file: "file-x".into(),
        validation_file: None,
        classification: None,
        eval: None,
        distillation: None,
        method: attune::train::hyperparameters::Method::Supervised,
        suffix: None,
        seed: 1,
        hyperparameters: Hyperparameters::default(),
        metadata: None,
    };
    let success = |model: &str| {
        Outcome::Succeeded(TrainedModel {
            model: model.into(),
            base: "demo".into(),
            adapter: "aa".into(),
            trained_tokens: 1234,
            result_files: Vec::new(),
        })
    };
    let fault = JobFault { code: "x".into(), message: "x".into(), param: None };
    for outcome in [Outcome::Failed(fault), success("ft:one"), success("ft:two")] {
        let admission = Admission { key: Some("key_1"), ..Admission::default() };
        queue.admit("acme", JobApi::FineTunes, spec.clone(), admission).await.unwrap();
        let job = queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap();
        queue.finish(&job, outcome.clone()).await.unwrap().unwrap();
        assert!(queue.finish(&job, outcome).await.unwrap().is_none());
    }
    let by_all = UsageQuery { by_model: true, by_key: true, end: "2100-01-01".into(), ..query(Some("acme")) };
    let (rows, _) = store.usage(&by_all).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let row = &rows[0];
    assert_eq!((row.model.as_deref(), row.key.as_deref()), (Some("ft:earlier"), Some("key_1")));
    assert_eq!((row.trained_tokens, row.requests), (2 * 1234, 0));
    let base: String = database.value("select base from usage_daily").await;
    assert_eq!(base, "demo", "whose price counts");
}
