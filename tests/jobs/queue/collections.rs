//! Jobs that collect a teacher's answers before they train: who claims them, what of them is fenced, and how they go
//! on.

use attune::jobs::JobStatus;
use attune::jobs::collections::{CollectedFile, Distillation, Keep, PASSED, Prompts, TeacherAnswer};
use attune::jobs::queue::{Admission, StopRequest};
use attune::store::files::NewFile;
use attune::teachers::money::Money;

use super::*;

fn plan(prompts: &str) -> Distillation {
    Distillation {
        teacher: Some("teacher:big".into()),
        prompts: Prompts::File(prompts.into()),
        samples: 1,
        temperature: None,
        max_tokens: None,
        graders: Vec::new(),
        min_score: 1.0,
        max_teacher_cost: Some(Money::of_millionths(1_000)),
        keep: Keep::Best,
        report_file: "file-report".into(),
    }
}

fn distilled() -> JobSpec {
    JobSpec { training_file: "file-made".into(), distillation: Some(plan("file-prompts")), ..spec() }
}

impl Fixture {
    async fn collecting(&self) -> Job {
        self.enqueue(ORG, JobApi::FineTuningJobs, distilled()).await.unwrap();
        self.claim_collection("c", LEASE).await.unwrap().expect("a job to collect for").0
    }
}

fn answer(prompt: &str) -> TeacherAnswer {
    TeacherAnswer {
        prompt: prompt.into(),
        cost: 40,
        answer: Some("yes".into()),
        finish_reason: Some("stop".into()),
        prompt_tokens: 7,
        completion_tokens: 1,
        ..TeacherAnswer::default()
    }
}

fn made() -> Vec<CollectedFile> {
    [("file-made", "fine-tune"), ("file-report", "fine-tune-results")]
        .into_iter()
        .map(|(id, purpose)| CollectedFile { id: id.into(), filename: id.into(), purpose, bytes: 3 })
        .collect()
}

#[tokio::test]
async fn a_job_is_the_collectors_first_and_then_the_workers() {
    let fixture = Fixture::new().await;
    fixture.enqueue(ORG, JobApi::FineTuningJobs, distilled()).await.unwrap();
    let other = fixture.enqueued().await;
    assert_eq!(fixture.claimed().await.key, other.key, "an older job that collects is passed over");
    assert!(fixture.claim("w", LEASE).await.unwrap().is_none());
    let (job, _) = fixture.claim_collection("c", LEASE).await.unwrap().unwrap();
    assert!(fixture.claim_collection("c", LEASE).await.unwrap().is_none());
    assert_eq!((job.status, job.spec.distillation.as_ref()), (JobStatus::Running, Some(&plan("file-prompts"))));

    assert!(fixture.end_collection(&job, &made(), true).await.unwrap());
    let trained = fixture.claimed().await;
    assert_eq!((trained.key, trained.attempt), (job.key, 2));
    assert_eq!(trained.result_files, ["file-report"]);
    let file = fixture.database.store.file(ORG, "file-made").await.unwrap();
    assert_eq!((file.purpose.as_str(), file.bytes), ("fine-tune", 3));
    let ended = fixture.finish(&trained, success("ft:m")).await.unwrap().unwrap();
    assert_eq!(ended.result_files, ["file-report", "file-ft:m"]);
    let told = fixture.messages(&job).await;
    assert_eq!(
        told[1..4],
        ["Fine-tuning job started", "Fine-tuning job waits for a worker", "Fine-tuning job continues"]
    );
}

#[tokio::test]
async fn answers_and_what_they_may_cost_outlive_a_collector_and_are_fenced() {
    let fixture = Fixture::new().await;
    let job = fixture.collecting().await;
    let (asked, flying) = (answer("a"), ("b".to_owned(), 0));
    assert!(fixture.charge_answer(&job, &asked.place(), Money::of_millionths(90)).await.unwrap());
    assert!(fixture.keep_answer(&job, &asked).await.unwrap());
    assert!(fixture.charge_answer(&job, &flying, Money::of_millionths(90)).await.unwrap());
    fixture.expire_leases().await;
    assert_eq!(fixture.reap().await.unwrap(), 1);
    fixture.end_pauses().await;
    let (again, _) = fixture.claim_collection("d", LEASE).await.unwrap().unwrap();
    let known = fixture.teacher_answers(&again).await.unwrap();
    let unknown = TeacherAnswer { prompt: "b".into(), cost: 90, ..TeacherAnswer::default() };
    assert_eq!(known, [asked.clone(), unknown]);

    // The first collector comes back and changes nothing.
    let late = TeacherAnswer { verdict: Some(PASSED.into()), score: Some(1.0), cost: 41, ..asked };
    assert!(!fixture.charge_answer(&job, &flying, Money::NONE).await.unwrap());
    assert!(!fixture.keep_answer(&job, &late).await.unwrap());
    assert!(!fixture.judge_answer(&job, &late).await.unwrap());
    assert!(!fixture.end_collection(&job, &made(), true).await.unwrap());
    assert_eq!(fixture.teacher_answers(&again).await.unwrap(), known);
    assert!(fixture.judge_answer(&again, &late).await.unwrap());
    assert_eq!(fixture.teacher_answers(&again).await.unwrap()[0], late);
}

#[tokio::test]
async fn an_answer_shows_that_a_job_gets_further_however_often_its_collector_is_lost() {
    let fixture = Fixture::new().await;
    let mut job = fixture.collecting().await;
    for lost in 0..5 {
        assert!(fixture.keep_answer(&job, &answer(&lost.to_string())).await.unwrap());
        fixture.expire_leases().await;
        fixture.reap().await.unwrap();
        fixture.end_pauses().await;
        job = fixture.claim_collection("c", LEASE).await.unwrap().expect("it goes on").0;
    }
}

#[tokio::test]
async fn a_stop_is_obeyed_while_a_job_collects_and_when_it_has_collected() {
    let fixture = Fixture::new().await;
    let job = fixture.collecting().await;
    fixture.stop(&job, StopRequest::Pause).await.unwrap();
    let beat = fixture.heartbeat(&job, LEASE, None).await.unwrap().unwrap();
    assert_eq!(beat.stop, Some(StopRequest::Pause));
    fixture.finish(&job, Outcome::Stopped).await.unwrap();
    let resumed = fixture.resume(&fixture.again(&job).await).await.unwrap();
    assert_eq!(resumed.status, JobStatus::Queued);
    let (job, _) = fixture.claim_collection("c", LEASE).await.unwrap().expect("it collects again");
    fixture.stop(&job, StopRequest::Pause).await.unwrap();
    assert!(fixture.end_collection(&job, &made(), true).await.unwrap());
    assert_eq!(fixture.again(&job).await.status, JobStatus::Paused);
    fixture.resume(&job).await.unwrap();
    assert_eq!(fixture.claimed().await.key, job.key);
}

#[tokio::test]
async fn a_report_alone_leaves_the_job_with_its_collector() {
    let fixture = Fixture::new().await;
    let job = fixture.collecting().await;
    for _ in 0..2 {
        // An attempt may be lost right after it.
        assert!(fixture.end_collection(&job, &made()[1..], false).await.unwrap());
    }
    let failed = fixture.finish(&job, Outcome::Failed(fault("too_few_answers"))).await.unwrap().unwrap();
    assert_eq!((failed.status, failed.result_files), (JobStatus::Failed, vec!["file-report".to_owned()]));
}

#[tokio::test]
async fn the_file_of_prompts_must_be_there_and_stays_until_the_job_has_ended() {
    let fixture = Fixture::new().await;
    let admission = Admission { files: true, ..Admission::default() };
    let admit = |spec: JobSpec| fixture.admit(ORG, JobApi::FineTuningJobs, spec, admission);
    let gone = admit(distilled()).await.unwrap_err();
    assert!(matches!(gone, Error::FileGone { param: "method.distillation.prompts", .. }), "{gone:?}");
    let new = NewFile { organization: ORG.into(), filename: "p.jsonl".into(), purpose: "fine-tune".into() };
    let prompts = crate::add_file(&fixture.database.store, new).await.id;
    let job = admit(JobSpec { distillation: Some(plan(&prompts)), ..distilled() }).await.unwrap();
    assert!(fixture.database.store.delete_file(ORG, &prompts).await.is_err(), "a job needs it");
    fixture.stop(&job, StopRequest::Cancel).await.unwrap();
    fixture.database.store.delete_file(ORG, &prompts).await.unwrap();
}
