//! What people see of many jobs at once, and the curves of one.

use attune::jobs::JobStatus;
use attune::jobs::queue::StopRequest;

use super::*;

async fn tell(fixture: &Fixture, job: &Job, kind: &str, data: serde_json::Value) {
    fixture.add_event(job, "info", kind, "told", Some(data)).await.unwrap();
}

#[tokio::test]
async fn jobs_of_both_resources_stand_in_one_list_page_by_page() {
    let fixture = Fixture::new().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let api = if number % 2 == 0 { JobApi::FineTunes } else { JobApi::FineTuningJobs };
        ids.insert(0, fixture.enqueue(ORG, api, spec()).await.unwrap().id);
        fixture.enqueue("rival", api, spec()).await.unwrap();
    }
    let page = |after: Option<&String>, limit| Page { after: after.cloned(), limit, ascending: false };
    let listed = async |after: Option<&String>, limit| {
        let (jobs, more) = fixture.all_jobs(ORG, page(after, limit)).await.unwrap();
        (jobs.into_iter().map(|job| job.id).collect::<Vec<_>>(), more)
    };
    assert_eq!(listed(None, 2).await, (ids[..2].to_vec(), true));
    assert_eq!(listed(Some(&ids[1]), 2).await, (ids[2..4].to_vec(), true));
    assert_eq!(listed(Some(&ids[3]), 2).await, (ids[4..].to_vec(), false));
    assert_eq!(listed(Some(&"ftjob-nothing".to_owned()), 2).await, (Vec::new(), false));
    assert_eq!(fixture.any_job(ORG, &ids[0]).await.unwrap().id, ids[0]);
    assert!(matches!(fixture.any_job("other", &ids[0]).await, Err(Error::NotFound { .. })));
    assert!(matches!(fixture.any_job(ORG, "nothing").await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn progress_is_that_of_the_last_step_with_losses_from_the_first_on() {
    let fixture = Fixture::new().await;
    let job = fixture.running().await;
    let other_job = fixture.running().await;
    let waiting = fixture.enqueued().await;
    tell(&fixture, &job, "message", json!({"estimate": {"trained_tokens": 9}})).await;
    // Numbers of events that others take meanwhile.
    for _ in 0..500 {
        tell(&fixture, &other_job, "message", json!({})).await;
    }
    for step in 1..=200 {
        let data = json!({"step": step, "total_steps": 200, "train_loss": 1000 - step, "elapsed_seconds": step,
                          "remaining_seconds": 200 - step});
        tell(&fixture, &job, "metrics", data).await;
    }
    let progress = fixture.progress(&[job.clone(), waiting.clone()], 20).await.unwrap();
    let own = &progress[&job.key];
    assert_eq!((own.step, own.total_steps, own.train_loss), (Some(200), Some(200), Some(800.0)));
    assert_eq!((own.elapsed_seconds, own.remaining_seconds), (Some(200.0), Some(0.0)));
    assert_eq!(own.estimate, Some(json!({"estimate": {"trained_tokens": 9}})));
    assert!(own.account.is_none());
    assert!((15..=20).contains(&own.losses.len()), "{:?}", own.losses);
    assert!(own.losses.is_sorted_by(|left, right| left > right), "{:?}", own.losses);
    assert!(own.losses[0] > 985.0 && own.losses[own.losses.len() - 1] < 820.0, "{:?}", own.losses);
    let other = &progress[&waiting.key];
    assert_eq!((other.step, other.losses.len()), (None, 0));
}

#[tokio::test]
async fn curves_hold_every_step_and_messages_everything_else() {
    let fixture = Fixture::new().await;
    let job = fixture.running().await;
    for step in 1..=3 {
        tell(&fixture, &job, "metrics", json!({"step": step, "total_steps": 3, "train_loss": step, "note": "text"}))
            .await;
        tell(&fixture, &job, "message", json!({"step": 99})).await;
    }
    let curves = fixture.curves(&job).await.unwrap();
    assert_eq!((curves.steps.as_slice(), curves.total_steps), (&[1, 2, 3][..], Some(3)));
    assert_eq!(curves.figures.keys().collect::<Vec<_>>(), ["train_loss"]);
    assert!(curves.last_event > 0);
    let (messages, more) = fixture.queue.messages(&job, 2).await.unwrap();
    assert!(more && messages.len() == 2 && messages.iter().all(|event| event.kind == "message"));
    assert!(messages[0].seq > messages[1].seq);
}

#[tokio::test]
async fn points_are_those_of_the_curves_page_by_page() {
    let fixture = Fixture::new().await;
    let job = fixture.running().await;
    // Some steps are done again, from step 4 on and then from step 3 on.
    for (number, step) in [1, 2, 3, 4, 5, 6, 4, 5, 3, 4, 5, 6, 7].into_iter().enumerate() {
        tell(&fixture, &job, "metrics", json!({"step": step, "train_loss": number})).await;
        tell(&fixture, &job, "message", json!({"step": 99})).await;
    }
    let curves = fixture.curves(&job).await.unwrap();
    assert_eq!(curves.steps, [1, 2, 3, 4, 5, 6, 7]);
    let (mut steps, mut losses, mut after) = (Vec::new(), Vec::new(), -1);
    loop {
        let page = fixture.points(&job, after, 3).await.unwrap();
        let Some(last) = page.steps.last() else { break };
        assert!(page.steps.len() <= 3);
        after = *last;
        losses.extend(page.figures["train_loss"].iter().map(|loss| loss.to_bits()));
        steps.extend(page.steps);
    }
    let whole: Vec<u64> = curves.figures["train_loss"].iter().map(|loss| loss.to_bits()).collect();
    assert_eq!((steps, losses), (curves.steps, whole));
}

#[tokio::test]
async fn validations_are_the_steps_that_have_a_validation_loss() {
    let fixture = Fixture::new().await;
    let job = fixture.running().await;
    for (step, data) in [
        (1, json!({"valid_loss": null})),
        (2, json!({"valid_loss": 2.5})),
        (3, json!({})),
        (4, json!({"full_valid_loss": 2.0, "valid_loss": null})),
    ] {
        let mut data = data;
        data["step"] = step.into();
        tell(&fixture, &job, "metrics", data).await;
    }
    let validations = fixture.validations(&job).await.unwrap();
    assert_eq!(validations.steps, [2, 4]);
    assert!(validations.figures["valid_loss"][0].total_cmp(&2.5).is_eq());
    assert!(validations.figures["full_valid_loss"][1].total_cmp(&2.0).is_eq());
}

#[tokio::test]
async fn the_queue_as_a_whole_shows_what_runs_first_and_nothing_that_has_ended() {
    let fixture = Fixture::new().await;
    let ended = fixture.enqueued().await;
    fixture.stop(&ended, StopRequest::Cancel).await.unwrap();
    let running = fixture.running().await;
    let queued = fixture.enqueue("rival", JobApi::FineTunes, spec()).await.unwrap();
    let (jobs, more) = fixture.unfinished(10).await.unwrap();
    assert!(!more);
    let shown: Vec<(&str, &str, JobStatus)> =
        jobs.iter().map(|job| (job.id.as_str(), job.organization.as_str(), job.status)).collect();
    let first = (running.id.as_str(), running.organization.as_str(), JobStatus::Running);
    assert_eq!(shown, [first, (queued.id.as_str(), "rival", JobStatus::Queued)]);
    assert_eq!((jobs[0].worker.as_deref(), jobs[0].attempt, jobs[1].worker.as_deref()), (Some("w"), 1, None));
    let (jobs, more) = fixture.unfinished(1).await.unwrap();
    assert!(more && jobs.len() == 1);
}
