//! Evals in the database: runs of one or several models, their figures, stored answers as items, and the file that a
//! run needs.

use attune::store::conversations::NewItems;
use attune::store::evals::items::{NewOutputItem, PairCounts};
use attune::store::evals::runs::{EvalRun, NewEvalRun};
use attune::store::files::{NewFile, Page};
use attune::store::responses::{Answer, NewResponse, ResponseFilter};
use attune::store::stored_completions::{CompletionFilter, NewCompletion};
use attune::store::{Error, Store};
use serde_json::{Map, Value, json};

use crate::postgres::TestDatabase;
use crate::support::{ORG, add};

async fn eval(store: &Store) -> String {
    store.create_eval(ORG, "e", &json!({}), &json!([]), &json!({})).await.unwrap().id
}

fn new_run(eval: &str, models: &[&str], file: Option<&str>) -> NewEvalRun {
    NewEvalRun {
        eval: eval.into(),
        organization: ORG.into(),
        key: "k".into(),
        name: "r".into(),
        models: models.iter().map(|model| (*model).to_owned()).collect(),
        data_source: json!({"source": {"id": file}}),
        inputs: None,
        file: file.map(Into::into),
        metadata: json!({}),
    }
}

async fn add_item(store: &Store, run: &EvalRun, number: i32, status: &'static str, passed: [bool; 2]) {
    let result = |passed: bool| json!({"passed": passed, "error": (status == "error").then_some("why")});
    let new = NewOutputItem {
        number,
        status,
        item: json!({}),
        results: passed.map(result).to_vec().into(),
        sample: json!({}),
        usage: json!([]),
    };
    assert!(store.add_output_item(run, new).await.unwrap());
}

#[tokio::test]
async fn models_are_counted_apart_and_set_beside_the_first() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let eval = eval(store).await;
    store.create_eval_run(new_run(&eval, &["a", "b", "c"], None)).await.unwrap();
    let run = store.claim_eval_run(30.0).await.unwrap().unwrap();
    assert_eq!((run.answers(), run.models.join("")), (3, "abc".into()));
    // Two items, each with an answer of every model; then one that the third has not answered yet.
    for (number, status, passed) in [
        (0, "pass", [true, true]),
        (1, "fail", [true, false]),
        (2, "pass", [true, true]),
        (3, "fail", [false, true]),
        (4, "pass", [true, true]),
        (5, "error", [false, false]),
        (6, "fail", [false, false]),
        (7, "pass", [true, true]),
    ] {
        add_item(store, &run, number, status, passed).await;
    }
    let counts: Vec<_> = store
        .item_counts(&run)
        .await
        .unwrap()
        .iter()
        .map(|one| (one.model, one.passed, one.failed, one.errored))
        .collect();
    assert_eq!(counts, [(0, 1, 2, 0), (1, 2, 1, 0), (2, 1, 0, 1)]);
    let criteria: Vec<_> = store
        .criterion_counts(&run)
        .await
        .unwrap()
        .iter()
        .map(|one| (one.model, one.place, one.passed, one.failed))
        .collect();
    assert_eq!(criteria, [(0, 1, 1, 2), (0, 2, 2, 1), (1, 1, 3, 0), (1, 2, 2, 1), (2, 1, 1, 0), (2, 2, 1, 0)]);
    let pairs: Vec<_> =
        store.model_pairs(&run).await.unwrap().iter().map(|one| (one.model, one.place, one.counts)).collect();
    let pair = |both, only_first, only_second, neither| PairCounts { both, only_first, only_second, neither };
    assert_eq!(
        pairs,
        [
            (1, 0, pair(0, 1, 2, 0)),
            (1, 1, pair(1, 0, 2, 0)),
            (1, 2, pair(1, 1, 1, 0)),
            (2, 0, pair(1, 0, 0, 0)),
            (2, 1, pair(1, 0, 0, 0)),
            (2, 2, pair(1, 0, 0, 0)),
        ]
    );
}

#[tokio::test]
async fn a_run_of_one_model_reads_as_before() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let eval = eval(store).await;
    let one = store.create_eval_run(new_run(&eval, &["a"], None)).await.unwrap();
    assert_eq!(one.models, ["a"]);
    assert_eq!(database.value::<Option<String>>("select model from eval_runs").await.as_deref(), Some("a"));
    let given = store.create_eval_run(new_run(&eval, &[], None)).await.unwrap();
    assert_eq!((given.models.len(), given.answers()), (0, 1));
}

#[tokio::test]
async fn the_file_of_a_run_that_has_not_ended_stays_even_past_its_time() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let eval = eval(store).await;
    let path = database.data_dir.path().join("items");
    std::fs::write(&path, "{}").unwrap();
    let new = NewFile { organization: ORG.into(), filename: "items".into(), purpose: "evals".into() };
    let file = store.add_uploaded_file(new, path, Some(3600), None).await.unwrap().id;
    let run = store.create_eval_run(new_run(&eval, &["a"], Some(&file))).await.unwrap();
    database.execute("update files set expires_at = now() - interval '1 hour'").await;
    let keep = attune::config::Retention::default();
    let pruned = attune::jobs::retention::prune(store, keep).await.unwrap();
    assert_eq!(pruned.expired_files, 0);
    let refused = store.delete_file(ORG, &file).await.unwrap_err();
    assert!(matches!(&refused, Error::FileInUse { job, .. } if *job == run.id), "{refused}");
    store.cancel_eval_run(ORG, &eval, &run.id).await.unwrap();
    let pruned = attune::jobs::retention::prune(store, keep).await.unwrap();
    assert_eq!(pruned.expired_files, 1);
    let gone = store.create_eval_run(new_run(&eval, &["a"], Some(&file))).await.unwrap_err();
    assert!(matches!(&gone, Error::NotFound { kind: "File", .. }), "{gone}");
    let other = add(&database, "x", "evals", b"{}").await;
    store.create_eval_run(new_run(&eval, &["a"], Some(&other.id))).await.unwrap();
    assert!(matches!(
        store.create_eval_run(new_run("eval_no", &[], None)).await,
        Err(Error::NotFound { kind: "eval", .. })
    ));
}

#[tokio::test]
async fn runs_of_a_process_that_is_gone_are_claimed_at_once() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let eval = eval(store).await;
    store.create_eval_run(new_run(&eval, &["a"], None)).await.unwrap();
    let first = store.claim_eval_run(30.0).await.unwrap().unwrap();
    assert_eq!(store.claim_eval_run(30.0).await.unwrap(), None);
    assert_eq!(store.release_eval_runs().await.unwrap(), 1);
    let second = store.claim_eval_run(30.0).await.unwrap().unwrap();
    assert_eq!((second.id, second.attempt), (first.id, first.attempt + 1));
}

fn notes(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

#[tokio::test]
async fn stored_chats_are_chosen_by_model_notes_and_time_the_newest_last() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    for (id, organization, model, created, metadata) in [
        ("c1", ORG, "m", 10, json!({"a": "1"})),
        ("c2", ORG, "m", 20, json!({"a": "1", "b": "2"})),
        ("c3", ORG, "other", 30, json!({"a": "1"})),
        ("c4", ORG, "m", 40, json!({})),
        ("c5", "rival", "m", 50, json!({"a": "1"})),
    ] {
        let new = NewCompletion {
            id: id.into(),
            organization: organization.into(),
            model: model.into(),
            created_micros: created * 1_000_000,
            metadata: notes(&metadata),
            completion: "{}".into(),
            messages: "[]".into(),
        };
        store.add_stored_completion(&new).await.unwrap();
    }
    let all = CompletionFilter::default();
    assert_eq!(store.completion_ids(ORG, &all, 10).await.unwrap(), ["c1", "c2", "c3", "c4"]);
    assert_eq!(store.completion_ids(ORG, &all, 2).await.unwrap(), ["c3", "c4"]);
    let model = CompletionFilter { model: Some("m".into()), metadata: notes(&json!({"a": "1"})), ..all.clone() };
    assert_eq!(store.completion_ids(ORG, &model, 10).await.unwrap(), ["c1", "c2"]);
    let time = CompletionFilter { created_after: Some(20), created_before: Some(30), ..all };
    assert_eq!(store.completion_ids(ORG, &time, 10).await.unwrap(), ["c2", "c3"]);
}

#[tokio::test]
async fn answers_of_one_second_come_in_the_order_in_which_they_began() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let second = 1_800_000_000_000_000;
    // Kept in another order than they began, with ids in a third; the last two began together.
    for (id, micros) in [("f", 5), ("a", 3), ("z", 1), ("m", 999_999), ("b", 7), ("y", 9), ("c", 9)] {
        let created_micros = second + micros;
        let answer = Answer {
            status: "completed",
            output: format!("[\"{id}\"]"),
            item_ids: vec!["shared".into()],
            response: "{}".into(),
            added: NewItems::default(),
        };
        let (organization, key, input) = (ORG.into(), "k".into(), "[]".into());
        let (previous, conversation) = (None, None);
        let new =
            NewResponse { id: id.into(), organization, key, created_micros, previous, conversation, input, answer };
        store.keep_response(&new).await.unwrap();
        let new = NewCompletion {
            id: id.into(),
            organization: ORG.into(),
            model: "m".into(),
            created_micros,
            metadata: notes(&json!({})),
            completion: "{}".into(),
            messages: "[]".into(),
        };
        store.add_stored_completion(&new).await.unwrap();
    }
    let order = ["z", "a", "f", "b", "y", "c", "m"];
    let all = CompletionFilter::default();
    assert_eq!(store.response_ids(ORG, &ResponseFilter::default(), 10).await.unwrap(), order);
    assert_eq!(store.response_ids(ORG, &ResponseFilter::default(), 3).await.unwrap(), order[4..]);
    assert_eq!(store.completion_ids(ORG, &all, 10).await.unwrap(), order);
    let holders = store.responses_with_items(ORG, &["shared"]).await.unwrap();
    let newest = order.iter().rev().map(|id| format!("[\"{id}\"]"));
    assert_eq!(holders.into_iter().map(|turn| turn.output).collect::<Vec<_>>(), newest.collect::<Vec<_>>());
    let this = CompletionFilter { created_after: Some(1_800_000_000), created_before: Some(1_800_000_000), ..all };
    for ascending in [true, false] {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = Page { after, limit: 2, ascending };
            let (found, more) = store.stored_completions(ORG, &this, page, false).await.unwrap();
            listed.extend(found.into_iter().map(|completion| completion.id));
            after = listed.last().cloned();
            if !more {
                break;
            }
        }
        let mut expected = order.to_vec();
        if !ascending {
            expected.reverse();
        }
        assert_eq!(listed, expected);
    }
}

#[tokio::test]
async fn responses_are_chosen_by_what_was_asked_even_beside_a_nul() {
    let database = TestDatabase::new().await;
    let store = &database.store;
    let object = json!({
        "model": "m", "instructions": "Be BRIEF.", "metadata": {"a": "1"}, "reasoning": {"effort": "low"},
        "temperature": 0.7, "top_p": 1.0, "user": "ann", "tools": [{"type": "function", "name": "look_up"}],
        // What a model may write, and what looks like it.
        "output": ["\0", "\\u0000"],
    });
    for (id, status, change) in [
        ("r1", "completed", json!({})),
        ("r2", "incomplete", json!({"model": "other"})),
        ("r3", "failed", json!({})),
        (
            "r4",
            "completed",
            json!({"instructions": null, "tools": [], "user": null, "temperature": 1.0, "metadata": {}}),
        ),
    ] {
        let mut object = object.clone();
        object.as_object_mut().unwrap().extend(notes(&change));
        let answer = Answer {
            status,
            output: "[]".into(),
            item_ids: Vec::new(),
            response: object.to_string(),
            added: NewItems::default(),
        };
        let (organization, key) = (ORG.into(), "k".into());
        let new = NewResponse {
            id: id.into(),
            organization,
            key,
            // The last microsecond of its second.
            created_micros: 100_999_999,
            previous: None,
            conversation: None,
            input: "[]".into(),
            answer,
        };
        store.keep_response(&new).await.unwrap();
    }
    let all = ResponseFilter::default;
    let common = |common: CompletionFilter| ResponseFilter { common, ..all() };
    let any = CompletionFilter::default;
    for (filter, ids) in [
        (all(), vec!["r1", "r2", "r4"]),
        (common(CompletionFilter { model: Some("m".into()), ..any() }), vec!["r1", "r4"]),
        (ResponseFilter { instructions: Some("brief".into()), ..all() }, vec!["r1", "r2"]),
        (common(CompletionFilter { metadata: notes(&json!({"a": "1"})), ..any() }), vec!["r1", "r2"]),
        (ResponseFilter { effort: Some("low".into()), ..all() }, vec!["r1", "r2", "r4"]),
        (ResponseFilter { temperature: Some(0.7), top_p: Some(1.0), ..all() }, vec!["r1", "r2"]),
        (ResponseFilter { users: vec!["bob".into(), "ann".into()], ..all() }, vec!["r1", "r2"]),
        (ResponseFilter { tools: vec!["look_up".into()], ..all() }, vec!["r1", "r2"]),
        (
            common(CompletionFilter { created_after: Some(100), created_before: Some(100), ..any() }),
            vec!["r1", "r2", "r4"],
        ),
        (common(CompletionFilter { created_after: Some(101), ..any() }), vec![]),
        (common(CompletionFilter { created_before: Some(99), ..any() }), vec![]),
    ] {
        assert_eq!(store.response_ids(ORG, &filter, 10).await.unwrap(), ids, "{filter:?}");
    }
    assert_eq!(store.response_ids(ORG, &all(), 1).await.unwrap(), ["r4"]);
    assert!(store.response_ids("rival", &all(), 9).await.unwrap().is_empty());
}
