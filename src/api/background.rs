//! Work that no connection waits for. Each part asks the API's own routes on behalf of the caller whose work it is, and
//! ends soon after the server is told to stop. `app` runs it beside the server of HTTP.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::api::ApiState;
use crate::api::access::inside::Inside;
use crate::api::generation::responses;
use crate::api::{batches, distillation, evals, webhooks};

/// Time after which a part that panicked begins again.
const REST: Duration = Duration::from_secs(10);

/// Runs every part until all have ended.
pub(super) async fn run(state: ApiState, inside: Inside) {
    let shutdown = &state.shutdown;
    let webhooks = keep("webhooks", shutdown, || webhooks::run(state.clone()));
    let responses = keep("responses", shutdown, || responses::background::run(state.clone(), inside.clone()));
    let batches = keep("batches", shutdown, || batches::run(state.clone(), inside.clone()));
    let evals = keep("evals", shutdown, || evals::runner::run(state.clone(), inside.clone()));
    let attached = keep("evals of jobs", shutdown, || evals::attached::run(state.clone()));
    let collections = keep("collections", shutdown, || distillation::run(state.clone(), inside.clone()));
    tokio::join!(webhooks, responses, batches, evals, attached, collections);
}

/// Runs a part until `shutdown`. One that panics begins again after a rest, and disturbs no other: what it had begun is taken
/// up once its lease has run out.
async fn keep<F>(part: &str, shutdown: &CancellationToken, run: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    keep_with(REST, part, shutdown, run).await;
}

async fn keep_with<F>(rest: Duration, part: &str, shutdown: &CancellationToken, run: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let Err(panic) = tokio::spawn(run()).await else { return };
        tracing::error!(part, %panic, "work in the background stopped; it begins again");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_begins_again() {
        let times = Arc::new(AtomicUsize::new(0));
        let run = || {
            let times = times.clone();
            async move { assert!(times.fetch_add(1, Ordering::Relaxed) == 2, "not yet") }
        };
        keep_with(Duration::from_millis(1), "part", &CancellationToken::new(), run).await;
        assert_eq!(times.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_part_that_panics_at_the_end_stays_so() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        keep("part", &shutdown, || async { panic!("always") }).await;
    }
}
