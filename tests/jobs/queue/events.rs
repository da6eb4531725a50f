//! Events: in order, in pages, without gaps.

use attune::api::event_text;
use attune::jobs::JobApi;
use attune::jobs::events::JobEvent;
use attune::jobs::queue::{Outcome, StopRequest};
use serde_json::json;

use super::{Fixture, ORG, SOON, fault, spec};

#[tokio::test]
async fn events_come_in_order_and_in_pages() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    for step in 0..5 {
        let data = json!({"step": step});
        queue.add_event(&job, "info", "metrics", &format!("Step {step}"), Some(data)).await.unwrap();
    }
    let all = queue.events_after(&job, 0, 100).await.unwrap();
    assert_eq!(all.len(), 7);
    assert!(all.is_sorted_by(|first, second| first.seq < second.seq));
    assert_eq!((all[6].kind.as_str(), &all[6].data), ("metrics", &Some(json!({"step": 4}))));
    assert!(all.iter().all(|event| event.created_at > 1_700_000_000));
    assert_eq!(queue.events_after(&job, all[3].seq, 2).await.unwrap(), all[4..6]);

    let mut newest_first = Vec::<JobEvent>::new();
    loop {
        let before = newest_first.last().map(|event| event.seq);
        let (events, more) = queue.events_page(&job, before, 3).await.unwrap();
        newest_first.extend(events);
        if !more {
            break;
        }
    }
    newest_first.reverse();
    assert_eq!(newest_first, all);
    assert!(!queue.events_page(&job, None, 7).await.unwrap().1, "a page that ends with the list has no more");
}

#[tokio::test]
async fn a_reader_that_follows_the_numbers_misses_no_event_of_concurrent_writers() {
    const WRITERS: usize = 4;
    const EACH: usize = 40;
    let queue = Fixture::new().await;
    let job = queue.running().await;
    let writers = (0..WRITERS).map(|_| {
        let (queue, job) = (queue.queue.clone(), job.clone());
        tokio::spawn(async move {
            for _ in 0..EACH {
                queue.add_event(&job, "info", "message", "x", None).await.unwrap();
            }
        })
    });
    let writing = futures::future::join_all(writers);
    let reading = async {
        let (mut seen, mut cursor) = (0, 0);
        while seen < WRITERS * EACH + 2 {
            for event in queue.events_after(&job, cursor, 10).await.unwrap() {
                cursor = event.seq;
                seen += 1;
            }
        }
        seen
    };
    let (_, seen) = tokio::join!(writing, tokio::time::timeout(SOON, reading));
    assert_eq!(seen.expect("an event was missed"), WRITERS * EACH + 2);
}

#[tokio::test]
async fn changes_that_an_older_version_stored_as_texts_read_as_they_did() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    queue
        .database
        .execute(
            "insert into job_events (job, attempt, message) select key, 1, 'Fine-tuning job is being paused' from jobs",
        )
        .await;
    let told = queue.messages(&job).await;
    assert_eq!(told[1..], ["Fine-tuning job started", "Fine-tuning job is being paused"]);
}

#[tokio::test]
async fn changes_are_worded_for_the_resource_of_the_job_with_what_went_wrong() {
    for (api, subject) in [(JobApi::FineTunes, "Fine-tune"), (JobApi::FineTuningJobs, "Fine-tuning job")] {
        let queue = Fixture::new().await;
        queue.enqueue(ORG, api, spec()).await.unwrap();
        let job = queue.claimed().await;
        queue.finish(&job, Outcome::Retry(fault("storage"))).await.unwrap();
        queue.end_pauses().await;
        let job = queue.claimed().await;
        queue.stop(&job, StopRequest::Pause).await.unwrap();
        queue.resume(&job).await.unwrap();
        queue.expire_leases().await;
        queue.reap().await.unwrap();
        queue.end_pauses().await;
        let job = queue.claimed().await;
        queue.stop(&job, StopRequest::Cancel).await.unwrap();
        queue.finish(&job, Outcome::Retry(fault("disk"))).await.unwrap();
        let events = queue.events_after(&job, 0, 100).await.unwrap();
        let told = events.iter().filter_map(|event| {
            let text = event_text(&job, event);
            Some((event.level.clone(), text.strip_prefix(subject)?.to_owned()))
        });
        let expected = [
            ("info", " started"),
            ("warn", " waits for a worker: storage happened"),
            ("info", " continues"),
            ("info", " is being paused"),
            ("info", " continues"),
            ("warn", " waits for a worker: The worker stopped answering."),
            ("info", " continues"),
            ("info", " is being cancelled"),
            ("warn", " cancelled: disk happened"),
        ];
        let told: Vec<_> = told.filter(|(_, text)| !text.starts_with(" enqueued")).collect();
        assert_eq!(told, expected.map(|(level, text)| (level.to_owned(), text.to_owned())));
    }
}
