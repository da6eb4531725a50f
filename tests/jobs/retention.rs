//! What is old is removed, in the order of the settings, and nothing else.

use std::time::Duration;

use attune::config::Retention;
use attune::jobs::queue::{Outcome, Queue, ResultFile, TrainedModel};
use attune::jobs::retention::{Pruned, prune};
use attune::jobs::{Job, JobApi, JobFault};
use attune::store::Error;
use attune::store::files::{NewFile, Page};
use attune::store::stored_completions::{CompletionFilter, NewCompletion};

use crate::add_file;
use crate::postgres::TestDatabase;
use crate::training::{ORG, spec};

const FOR_EVER: Retention =
    Retention { job_event_days: 0, ended_job_days: 0, usage_days: 0, stored_completion_days: 0, response_days: 0 };

struct Fixture {
    queue: Queue,
    database: TestDatabase,
}

impl Fixture {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        Self { queue: Queue::open(database.store.clone()).await.unwrap(), database }
    }

    async fn prune(&self, retention: Retention) -> Pruned {
        prune(&self.database.store, retention).await.unwrap()
    }

    async fn running(&self) -> Job {
        self.queue.enqueue(ORG, JobApi::FineTuningJobs, spec("file-x".into())).await.unwrap();
        self.queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap()
    }

    /// Returns a job that ended `days` ago: with a model of that name, or else by failing.
    async fn ended(&self, days: u32, model: Option<&str>) -> Job {
        let job = self.running().await;
        let outcome = if let Some(model) = model {
            Outcome::Succeeded(TrainedModel {
                model: model.into(),
                base: "demo".into(),
                adapter: "aa".into(),
                trained_tokens: 5,
                result_files: vec![ResultFile { id: format!("file-{}", job.id), filename: "r".into(), bytes: 3 }],
            })
        } else {
            Outcome::Failed(JobFault { code: "x".into(), message: "x".into(), param: None })
        };
        let job = self.queue.finish(&job, outcome).await.unwrap().unwrap();
        let sql = format!("update jobs set finished_at = now() - interval '{days} days' where id = '{}'", job.id);
        self.database.execute(&sql).await;
        job
    }

    async fn events(&self, job: &Job) -> usize {
        self.queue.events_after(job, 0, 100).await.unwrap().len()
    }

    async fn exists(&self, job: &Job) -> bool {
        self.queue.job(ORG, job.api, &job.id).await.is_ok()
    }
}

#[tokio::test]
async fn events_of_a_job_are_removed_so_many_days_after_its_end() {
    let fixture = Fixture::new().await;
    let (old, young) = (fixture.ended(11, None).await, fixture.ended(9, None).await);
    let running = fixture.running().await;
    fixture.database.execute("update job_events set at = now() - interval '400 days'").await;
    let (before, of_old) = (fixture.events(&running).await, fixture.events(&old).await as u64);
    let pruned = fixture.prune(Retention { job_event_days: 10, ..FOR_EVER }).await;
    assert_eq!(pruned, Pruned { events: of_old, ..Pruned::default() });
    assert_eq!(fixture.events(&old).await, 0);
    assert!(fixture.exists(&old).await, "the job itself stays");
    assert!(fixture.events(&young).await > 0);
    assert_eq!(fixture.events(&running).await, before, "an unfinished job keeps its events, however old");
    assert_eq!(fixture.prune(Retention { job_event_days: 10, ..FOR_EVER }).await, Pruned::default());
}

#[tokio::test]
async fn more_events_than_one_batch_removes_are_all_removed() {
    let fixture = Fixture::new().await;
    let old = fixture.ended(11, None).await;
    fixture
        .database
        .execute(
            "insert into job_events (job, attempt, message) select key, 1, 'x' from jobs, generate_series(1, 12000)",
        )
        .await;
    let pruned = fixture.prune(Retention { job_event_days: 10, ..FOR_EVER }).await;
    assert!(pruned.events > 12_000, "{pruned:?}");
    assert_eq!(fixture.events(&old).await, 0);
}

#[tokio::test]
async fn an_ended_job_goes_with_its_result_files_once_none_of_its_models_is_left() {
    let fixture = Fixture::new().await;
    let store = &fixture.database.store;
    let failed = fixture.ended(31, None).await;
    let young = fixture.ended(29, None).await;
    let serving = fixture.ended(400, Some("ft:serving")).await;
    let deleted = fixture.ended(31, Some("ft:deleted")).await;
    let paused = fixture.running().await;
    store.delete_fine_tuned_model(ORG, "ft:deleted").await.unwrap();
    let upload = NewFile { organization: ORG.into(), filename: "t".into(), purpose: "fine-tune".into() };
    let upload = add_file(store, upload).await;
    let pruned = fixture.prune(Retention { ended_job_days: 30, ..FOR_EVER }).await;
    assert_eq!(pruned, Pruned { jobs: 2, files: 1, ..Pruned::default() });
    for (job, kept) in [(&failed, false), (&young, true), (&serving, true), (&deleted, false), (&paused, true)] {
        assert_eq!(fixture.exists(job).await, kept, "{}", job.id);
    }
    let result = &deleted.result_files[0];
    assert!(matches!(store.file(ORG, result).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.blobs.get(&format!("files/{result}")).await, Err(Error::BlobNotFound(_))));
    assert!(store.file(ORG, &serving.result_files[0]).await.is_ok());
    assert!(store.fine_tuned_model(ORG, "ft:serving").await.is_ok(), "models are never removed");
    assert!(store.file(ORG, &upload.id).await.is_ok(), "uploads are never removed");
}

#[tokio::test]
async fn a_job_is_kept_as_long_as_a_checkpoint_of_it_is_a_model() {
    let fixture = Fixture::new().await;
    let failed = fixture.ended(31, None).await;
    let sql = format!(
        "insert into fine_tuned_models (organization, name, base, adapter, job, checkpoint, step, metrics)
         values ('{ORG}', 'ft:x:ckpt-step-1', 'demo', 'aa', '{}', 'ftckpt_1', 1, '{{}}')",
        failed.id
    );
    fixture.database.execute(&sql).await;
    let retention = Retention { ended_job_days: 30, ..FOR_EVER };
    assert_eq!(fixture.prune(retention).await.jobs, 0);
    fixture.database.store.delete_fine_tuned_model(ORG, "ft:x:ckpt-step-1").await.unwrap();
    assert_eq!(fixture.prune(retention).await.jobs, 1);
}

#[tokio::test]
async fn sums_of_usage_are_removed_after_so_many_days() {
    let fixture = Fixture::new().await;
    fixture
        .database
        .execute(
            "insert into usage_daily (organization, day, key, model, base, requests)
             select 'acme', (now() at time zone 'utc')::date - ago, 'k', 'm' || n, 'b', 1
               from unnest('{0,39,40,41,2000}'::int[]) ago, generate_series(1, 3000) n",
        )
        .await;
    let pruned = fixture.prune(Retention { usage_days: 40, ..FOR_EVER }).await;
    assert_eq!(pruned, Pruned { sums: 6_000, ..Pruned::default() });
    let oldest: i32 =
        fixture.database.value("select (now() at time zone 'utc')::date - min(day) from usage_daily").await;
    assert_eq!(oldest, 40);
}

#[tokio::test]
async fn responses_that_have_ended_are_removed_after_so_many_days() {
    let fixture = Fixture::new().await;
    fixture
        .database
        .execute(
            "insert into responses (id, organization, key, created_at, status, background, streamed, input, output,
                                    item_ids, response)
             select status || ago || n, 'acme', 'k', now() - make_interval(days => ago), status, true, true, '[]', '[]',
                    '{}', '{}'
               from unnest('{29,31}'::int[]) ago, unnest('{completed,queued}'::text[]) status, generate_series(1, 150) n",
        )
        .await;
    fixture.database.execute("insert into response_events select id, 0, 'response.created', '{}' from responses").await;
    let pruned = fixture.prune(Retention { response_days: 30, ..FOR_EVER }).await;
    assert_eq!(pruned, Pruned { responses: 150, ..Pruned::default() });
    for table in ["responses", "response_events"] {
        let left: i64 = fixture.database.value(&format!("select count(*) from {table}")).await;
        assert_eq!(left, 450, "{table}");
    }
}

#[tokio::test]
async fn batches_that_have_ended_are_removed_after_so_many_days() {
    let fixture = Fixture::new().await;
    fixture
        .database
        .execute(
            "insert into batches (id, organization, api_key, requests_per_minute, tokens_per_minute, endpoint, input_file,
                                  created_at, status)
             select status || ago || n, 'acme', 'k', 1, 1, '/v1/embeddings', 'file-1', now() - make_interval(days => ago),
                    status
               from unnest('{364,366}'::int[]) ago, unnest('{completed,in_progress}'::text[]) status,
                    generate_series(1, 1100) n",
        )
        .await;
    let pruned = fixture.prune(Retention { ended_job_days: 365, ..FOR_EVER }).await;
    assert_eq!(pruned, Pruned { batches: 1_100, ..Pruned::default() });
    let left: i64 = fixture.database.value("select count(*) from batches where status = 'in_progress'").await;
    assert_eq!(left, 2_200);
}

#[tokio::test]
async fn nothing_is_removed_for_ever_nor_while_another_process_removes() {
    let fixture = Fixture::new().await;
    let old = fixture.ended(36_000, None).await;
    assert_eq!(fixture.prune(FOR_EVER).await, Pruned::default());
    let mut other = fixture.database.store.pool().begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(hashtext('jobs.retention'))").execute(&mut *other).await.unwrap();
    assert_eq!(fixture.prune(Retention::default()).await, Pruned::default());
    assert!(fixture.exists(&old).await && fixture.events(&old).await > 0);
    other.rollback().await.unwrap();
    assert_eq!(fixture.prune(Retention::default()).await.jobs, 1);
}

#[tokio::test]
async fn stored_answers_expired_files_and_old_events_of_webhooks_go() {
    let fixture = Fixture::new().await;
    let store = &fixture.database.store;
    for (id, days) in [("chatcmpl-old", 31), ("chatcmpl-young", 29)] {
        let new = NewCompletion {
            id: id.into(),
            organization: ORG.into(),
            model: "demo".into(),
            created_micros: (now() - days * 86_400) * 1_000_000,
            metadata: serde_json::Map::new(),
            // A NUL is kept, although `jsonb` would take none.
            completion: r#"{"id":"x","choices":[{"message":{"content":"\u0000"}}]}"#.into(),
            messages: "[]".into(),
        };
        store.add_stored_completion(&new).await.unwrap();
        // Sent again, because nobody knows whether it arrived.
        store.add_stored_completion(&new).await.unwrap();
    }
    for (name, lifetime) in [("gone", Some(-1)), ("young", Some(3_600)), ("lasting", None)] {
        let new = NewFile { organization: ORG.into(), filename: name.into(), purpose: "evals".into() };
        let path = store.scratch.join(name);
        std::fs::write(&path, "x").unwrap();
        store.add_uploaded_file(new, path, lifetime, None).await.unwrap();
    }
    for days in [5, 3] {
        store.add_webhook_event(ORG, "batch.completed", "batch_1").await.unwrap();
        let sql = format!(
            "update webhook_events set created_at = now() - interval '{days} days', shared_out = true where not shared_out"
        );
        fixture.database.execute(&sql).await;
    }
    assert_eq!(fixture.prune(FOR_EVER).await, Pruned { expired_files: 1, webhook_events: 1, ..Pruned::default() });
    let retention = Retention { stored_completion_days: 30, ..FOR_EVER };
    assert_eq!(fixture.prune(retention).await, Pruned { completions: 1, ..Pruned::default() });
    let page = Page { after: None, limit: 10, ascending: true };
    let (left, more) = store.stored_completions(ORG, &CompletionFilter::default(), page.clone(), true).await.unwrap();
    assert!(left.len() == 1 && left[0].id == "chatcmpl-young" && !more, "{left:?}");
    assert_eq!(left[0].completion["choices"][0]["message"]["content"], "\0");
    let (files, _) = store.files(ORG, None, page).await.unwrap();
    assert_eq!(files.iter().map(|file| file.filename.as_str()).collect::<Vec<_>>(), ["young", "lasting"]);
}

/// Returns the time in Unix seconds.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs() as i64
}
