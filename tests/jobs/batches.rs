//! Batches in the database: one holder at a time, one result for each line, and an end that is whole or not at all.

use std::time::Duration;

use attune::jobs::batches::{Batch, Batches, Created, End, LineFault, LineResult, MadeFile, NewBatch};
use attune::store::Error;
use attune::store::files::NewFile;

use crate::add_file;
use crate::postgres::TestDatabase;

const LEASE: Duration = Duration::from_mins(1);

struct Fixture {
    batches: Batches,
    database: TestDatabase,
}

impl Fixture {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        Self { batches: Batches::new(database.store.clone()), database }
    }

    async fn create(&self, organization: &str) -> Batch {
        let new = NewFile { organization: organization.into(), filename: "a.jsonl".into(), purpose: "batch".into() };
        let input_file = add_file(&self.database.store, new).await.id;
        let new = NewBatch {
            organization: organization.into(),
            api_key: "key_1".into(),
            requests_per_minute: 1,
            tokens_per_minute: 2,
            endpoint: "/v1/embeddings".into(),
            input_file,
            output_lifetime: None,
            metadata: None,
        };
        match self.batches.create(new).await.unwrap() {
            Created::Batch(batch) => *batch,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self) -> Option<Batch> {
        self.batches.claim("here", LEASE).await.unwrap()
    }

    /// Returns a batch of two lines that is worked on.
    async fn started(&self) -> Batch {
        self.create("org").await;
        let batch = self.claim().await.unwrap();
        assert!(self.batches.start(&batch, 2, Some("m")).await.unwrap());
        batch
    }

    async fn now(&self, batch: &Batch) -> Batch {
        self.batches.batch(&batch.organization, &batch.id).await.unwrap()
    }
}

fn result(line: i32, succeeded: bool, content: &str) -> LineResult {
    let content = content.into();
    LineResult { line, succeeded, content, input_tokens: 5, cached_tokens: 1, output_tokens: 2 }
}

#[tokio::test]
async fn a_batch_has_one_holder_and_organisations_take_turns() {
    let fixture = Fixture::new().await;
    let (first, second) = (fixture.create("many").await, fixture.create("many").await);
    let other = fixture.create("few").await;
    let mut claimed = Vec::new();
    while let Some(batch) = fixture.claim().await {
        claimed.push(batch.id);
    }
    assert_eq!(claimed, [first.id, other.id, second.id]);
    assert_eq!(fixture.batches.release_all().await.unwrap(), 3);
    assert!(fixture.claim().await.is_some_and(|batch| batch.attempt == 3), "the fence moved twice");
}

#[tokio::test]
async fn a_line_has_one_result_however_often_it_is_written() {
    let fixture = Fixture::new().await;
    let batch = fixture.started().await;
    for _ in 0..2 {
        let results = [result(1, true, "first"), result(2, false, "second")];
        let standing = fixture.batches.record(&batch, &results).await.unwrap().unwrap();
        assert_eq!((standing.status.as_str(), standing.expired), ("in_progress", false));
    }
    fixture.batches.record(&batch, &[result(1, false, "another")]).await.unwrap();
    let now = fixture.now(&batch).await;
    assert_eq!((now.total, now.completed, now.failed), (2, 1, 1));
    assert_eq!((now.input_tokens, now.cached_tokens, now.output_tokens), (10, 2, 4));
    assert_eq!(fixture.batches.done(&batch).await.unwrap().len(), 2);
    let results = fixture.batches.results(&batch, 0).await.unwrap();
    assert_eq!(results, [(1, true, "first".into()), (2, false, "second".into())]);
}

#[tokio::test]
async fn whoever_lost_the_lease_writes_nothing() {
    let fixture = Fixture::new().await;
    let batch = fixture.started().await;
    fixture.database.execute("update batches set lease_expires_at = now()").await;
    let next = fixture.claim().await.unwrap();
    assert_eq!((next.id.as_str(), next.attempt), (batch.id.as_str(), batch.attempt + 1));
    let batches = &fixture.batches;
    assert!(batches.heartbeat(&batch, LEASE).await.unwrap().is_none());
    assert!(batches.record(&batch, &[result(1, true, "x")]).await.unwrap().is_none());
    assert!(!batches.finalize(&batch).await.unwrap());
    assert!(!batches.finish(&batch, End::Expired, [None, None], &[]).await.unwrap());
    batches.release(&batch, Duration::ZERO).await.unwrap();
    assert!(fixture.claim().await.is_none(), "the other one still has it");
    assert!(batches.record(&next, &[result(1, true, "x")]).await.unwrap().is_some());
}

#[tokio::test]
async fn an_end_has_its_files_or_does_not_come() {
    let fixture = Fixture::new().await;
    let batch = fixture.started().await;
    fixture.batches.record(&batch, &[result(1, true, "x")]).await.unwrap();
    let file = MadeFile { id: "file-made".into(), bytes: 2 };
    let finish = |end, files| fixture.batches.finish(&batch, end, files, &[]);
    assert!(!finish(End::Completed, [Some(&file), None]).await.unwrap(), "a line is open");
    let asked = fixture.batches.cancel(&batch.organization, &batch.id).await.unwrap();
    assert_eq!(asked.status, "cancelling");
    assert!(!finish(End::Expired, [Some(&file), None]).await.unwrap(), "it is being cancelled");
    assert_eq!(fixture.batches.heartbeat(&batch, LEASE).await.unwrap().unwrap().status, "cancelling");
    assert!(finish(End::Cancelled, [Some(&file), None]).await.unwrap());
    let now = fixture.now(&batch).await;
    assert_eq!((now.status.as_str(), now.completed, now.failed), ("cancelled", 1, 1));
    assert_eq!((now.output_file.as_deref(), now.error_file), (Some("file-made"), None));
    assert!(now.cancelled_at.is_some() && now.completed_at.is_none());
    let made = fixture.database.store.file("org", "file-made").await.unwrap();
    assert_eq!(
        (made.filename, made.purpose.as_str(), made.bytes),
        (format!("{}_output.jsonl", batch.id), "batch_output", 2)
    );
    assert_eq!(fixture.database.value::<i64>("select count(*) from batch_results").await, 0);
    assert!(fixture.claim().await.is_none() && fixture.batches.heartbeat(&batch, LEASE).await.unwrap().is_none());
}

#[tokio::test]
async fn a_batch_that_fails_after_its_check_says_why_and_keeps_what_was_answered() {
    let fixture = Fixture::new().await;
    let batch = fixture.started().await;
    fixture.batches.record(&batch, &[result(1, true, "x")]).await.unwrap();
    let file = MadeFile { id: "file-made".into(), bytes: 2 };
    let fault = LineFault { code: "invalid_input_file".into(), message: "lost".into(), param: None, line: None };
    let finish = fixture.batches.finish(&batch, End::Failed, [Some(&file), None], std::slice::from_ref(&fault));
    assert!(finish.await.unwrap());
    let now = fixture.now(&batch).await;
    assert_eq!((now.status.as_str(), now.completed, now.failed), ("failed", 1, 1));
    assert_eq!((now.errors.unwrap().0, now.output_file.as_deref()), (vec![fault], Some("file-made")));
    assert!(now.failed_at.is_some() && fixture.claim().await.is_none());
}

#[tokio::test]
async fn the_input_of_an_unfinished_batch_stays() {
    let fixture = Fixture::new().await;
    let batch = fixture.started().await;
    let store = &fixture.database.store;
    let refused = store.delete_file("org", &batch.input_file).await.unwrap_err();
    assert!(matches!(refused, Error::FileInUse { job, .. } if job == batch.id));
    fixture.batches.cancel("org", &batch.id).await.unwrap();
    assert!(fixture.batches.finish(&batch, End::Cancelled, [None, None], &[]).await.unwrap());
    store.delete_file("org", &batch.input_file).await.unwrap();
}
