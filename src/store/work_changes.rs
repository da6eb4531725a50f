//! Receives the database's notifications of work in the background that waits, and wakes who does it: runs of evals, evals
//! at the end of jobs, jobs that collect answers. `app` opens it, `api` waits.
//!
//! A wake is a hint: whoever waits looks at the database again, and looks now and then without one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::store::notifications::{self, Ear, Heard};
use crate::store::response_changes::ResponseChanges;
use crate::store::{Result, Store};

/// The database's channel; the triggers of the migrations write to it.
const CHANNEL: &str = "work";
/// Time after which whoever waits looks without a wake: a lease may have run out, or the time of another attempt come.
const POLL: Duration = Duration::from_secs(5);

/// Work that processes take from the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// Runs of evals.
    EvalRuns,
    /// Evals of jobs: those that have no run yet, and those whose run has ended.
    JobEvals,
    /// Jobs that collect the answers of a teacher.
    Collections,
}

impl WorkKind {
    const ALL: [Self; 3] = [Self::EvalRuns, Self::JobEvals, Self::Collections];

    /// Returns the payload of a notification of it.
    fn word(self) -> &'static str {
        match self {
            Self::EvalRuns => "eval_runs",
            Self::JobEvals => "job_evals",
            Self::Collections => "collections",
        }
    }
}

/// Wakes who waits for work. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkChanges {
    told: Senders,
    _listener: Arc<AbortOnDropHandle<()>>,
}

/// Of every kind of work, in its order.
type Senders = Arc<[(WorkKind, watch::Sender<()>)]>;

/// Waits for work of one kind.
#[derive(Debug)]
pub struct WorkWatch {
    told: watch::Receiver<()>,
    /// Keeps the other end open.
    _changes: WorkChanges,
}

impl WorkChanges {
    /// Begins to listen, also for `responses`: one connection serves both.
    pub async fn open(store: &Store, responses: &ResponseChanges) -> Result<Self> {
        let told = senders();
        let listener = notifications::listen_to(store, vec![responses.ear(), ear(&told)]).await?;
        Ok(Self { told, _listener: Arc::new(listener) })
    }

    /// Returns a watch of `work`, for one that does it.
    pub fn watch(&self, work: WorkKind) -> WorkWatch {
        let (_, sender) = &self.told[work as usize];
        WorkWatch { told: sender.subscribe(), _changes: self.clone() }
    }
}

fn senders() -> Senders {
    WorkKind::ALL.into_iter().map(|work| (work, watch::Sender::default())).collect()
}

fn ear(senders: &Senders) -> Ear {
    let senders = Arc::clone(senders);
    let hear = move |heard: Heard<'_>| {
        let is_meant = |work: WorkKind| match heard {
            Heard::Payload(payload) => payload == work.word(),
            Heard::Gap => true,
        };
        for (_, sender) in senders.iter().filter(|(work, _)| is_meant(*work)) {
            sender.send_replace(());
        }
    };
    (CHANNEL, Box::new(hear))
}

impl WorkWatch {
    /// Forgets what was told so far, as the database is about to be asked.
    pub fn look(&mut self) {
        self.told.mark_unchanged();
    }

    /// Waits until work has come since the last look.
    pub async fn told(&mut self) {
        if self.told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it is worth to look again.
    pub async fn rest(&mut self) {
        let _ = tokio::time::timeout(POLL, self.told()).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_for_a_kind_of_work_is_woken_also_between_look_and_wait() {
        let told = senders();
        let (_, hear) = ear(&told);
        let changes =
            WorkChanges { told, _listener: Arc::new(AbortOnDropHandle::new(tokio::spawn(std::future::pending()))) };
        let [mut one, mut same] = [WorkKind::EvalRuns, WorkKind::EvalRuns].map(|work| changes.watch(work));
        let mut other = changes.watch(WorkKind::Collections);
        for (heard, woken) in [
            (Heard::Payload("eval_runs"), [true, true, false]),
            (Heard::Payload("collections"), [false, false, true]),
            (Heard::Payload("of a newer server"), [false, false, false]),
            (Heard::Gap, [true, true, true]),
        ] {
            for watch in [&mut one, &mut same, &mut other] {
                watch.look();
            }
            hear(heard);
            let told = [one.told().now_or_never(), same.told().now_or_never(), other.told().now_or_never()];
            assert_eq!(told.map(|told| told.is_some()), woken, "{heard:?}");
        }
        hear(Heard::Gap);
        one.look();
        assert!(one.told().now_or_never().is_none(), "what was told before the look counts no more");
    }
}
