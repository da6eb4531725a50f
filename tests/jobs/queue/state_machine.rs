//! Runs operations in any order against a model of the state machine.

use attune::jobs::Error;
use attune::jobs::queue::{Outcome, StopRequest};
use attune::jobs::{Job, JobStatus};
use proptest::prelude::*;

use super::{Fixture, LEASE, fault, success};

/// Operations on a job; `stale` ones come from a worker that lost its lease.
#[derive(Debug, Clone, Copy)]
enum Step {
    Claim,
    Heartbeat { stale: bool },
    LoseWorker,
    Stop(StopRequest),
    Resume,
    Finish { how: &'static str, stale: bool },
}

/// Ends of an attempt. Storage that fails is waited for as long as the test lasts.
const ENDS: [&str; 9] =
    ["succeeded", "failed", "broken", "retry", "retry", "storage", "stopped", "released", "released"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stale = prop::bool::weighted(0.2);
    let how = prop::sample::select(ENDS.to_vec());
    let step = prop_oneof![
        4 => Just(Step::Claim),
        1 => stale.prop_map(|stale| Step::Heartbeat { stale }),
        1 => Just(Step::LoseWorker),
        1 => Just(Step::Stop(StopRequest::Cancel)),
        2 => Just(Step::Stop(StopRequest::Pause)),
        2 => Just(Step::Resume),
        3 => (how, stale).prop_map(|(how, stale)| Step::Finish { how, stale }),
    ];
    prop::collection::vec(step, 1..25)
}

/// The state machine in thirty lines. Each method returns whether the queue should accept the step.
#[derive(Debug, PartialEq)]
struct Model {
    status: JobStatus,
    stop: Option<StopRequest>,
    attempt: i32,
    failures: i32,
    /// Failed through no fault of its request.
    resumable: bool,
}

impl Model {
    fn apply(&mut self, step: Step) -> bool {
        use JobStatus::{Cancelled, Failed, Paused, Queued, Running, Succeeded};
        let running = self.status == Running;
        let next = match step {
            Step::Heartbeat { stale } => return running && !stale,
            Step::Finish { stale: true, .. } => return false,
            Step::Claim if self.status == Queued => {
                self.attempt += 1;
                Running
            }
            Step::Stop(what) if running && self.stop != Some(StopRequest::Cancel) => {
                self.stop = Some(what);
                return true;
            }
            Step::Stop(what) if running => return what == StopRequest::Cancel,
            Step::Stop(StopRequest::Cancel) if matches!(self.status, Queued | Paused) => Cancelled,
            Step::Stop(StopRequest::Pause) if self.status == Queued => Paused,
            Step::Resume if self.status == Paused => Queued,
            Step::Resume if self.status == Failed && self.resumable => {
                self.failures = 0;
                Queued
            }
            Step::Resume if running && self.stop == Some(StopRequest::Pause) => Running,
            Step::LoseWorker | Step::Finish { .. } if running => {
                let how = if let Step::Finish { how, .. } = step { how } else { "retry" };
                self.failures += i32::from(matches!(how, "retry" | "failed" | "broken"));
                self.resumable = how != "failed";
                match (how, self.stop) {
                    ("succeeded", _) => Succeeded,
                    (_, Some(StopRequest::Cancel)) => Cancelled,
                    ("failed" | "broken", _) => Failed,
                    (_, Some(StopRequest::Pause)) => Paused,
                    ("retry", None) if self.failures >= 3 => Failed,
                    _ => Queued,
                }
            }
            _ => return false,
        };
        (self.status, self.stop) = (next, None);
        true
    }
}

/// Does `step` to the job; returns whether the queue accepted it.
async fn perform(queue: &Fixture, job: &Job, claims: &mut Vec<Job>, step: Step) -> bool {
    // A stale worker holds an earlier claim; before any claim, the job as it was enqueued.
    let worker = |stale| match claims.as_slice() {
        [] => job,
        [.., previous, _] if stale => previous,
        [_] if stale => job,
        [.., last] => last,
    };
    match step {
        Step::Claim => {
            queue.end_pauses().await;
            let claimed = queue.claim("w", LEASE).await.unwrap();
            let accepted = claimed.is_some();
            claims.extend(claimed);
            accepted
        }
        Step::Heartbeat { stale } => queue.heartbeat(worker(stale), LEASE, None).await.unwrap().is_some(),
        Step::LoseWorker => {
            queue.expire_leases().await;
            queue.reap().await.unwrap() == 1
        }
        Step::Stop(what) => accepted(queue.stop(job, what).await),
        Step::Resume => accepted(queue.resume(job).await),
        Step::Finish { how, stale } => {
            let outcome = match how {
                "succeeded" => success(&format!("ft:{}", job.id)),
                "failed" => Outcome::Failed(fault("x")),
                "broken" => Outcome::Broken(fault("x")),
                "storage" => Outcome::Storage(fault("x")),
                "retry" => Outcome::Retry(fault("x")),
                "stopped" => Outcome::Stopped,
                _ => Outcome::Released,
            };
            queue.finish(worker(stale), outcome).await.unwrap().is_some()
        }
    }
}

fn accepted(result: Result<Job, Error>) -> bool {
    match result {
        Ok(_) => true,
        Err(Error::Conflict { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn any_order_of_operations_agrees_with_the_state_machine() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let queue = runtime.block_on(Fixture::new());
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in steps())| {
        runtime.block_on(async {
            queue.database.execute("truncate jobs, job_events, fine_tuned_models, files cascade").await;
            let job = queue.enqueued().await;
            let mut model = Model { status: JobStatus::Queued, stop: None, attempt: 0, failures: 0, resumable: false };
            let mut claims = Vec::new();
            for step in steps {
                let before = (model.status, model.stop, queue.messages(&job).await.len());
                let expected = model.apply(step);
                let done = perform(&queue, &job, &mut claims, step).await;
                prop_assert_eq!(done, expected, "{:?} on {:?}", step, before);
                let row = queue.again(&job).await;
                prop_assert_eq!((row.status, row.attempt), (model.status, model.attempt), "after {:?}", step);
                let stop = model.stop.map(|what| format!("{what:?}").to_lowercase());
                prop_assert_eq!(row.stop_request, stop, "after {:?}", step);
                let told = queue.messages(&job).await.len() > before.2;
                let changed = (before.0, before.1) != (model.status, model.stop);
                prop_assert_eq!(told, changed, "clients hear of changes and of nothing else: {:?}", step);
                let failures: i32 = queue.database.value("select failures from jobs").await;
                prop_assert_eq!(failures, model.failures);
            }
            Ok(())
        })?;
    });
    drop(queue);
}
