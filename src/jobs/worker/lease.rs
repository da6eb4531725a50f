//! Keeps a claimed job's lease alive and tells the training thread to stop: on the client's request, at shutdown, or
//! because the lease is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::LEASE;
use super::pulse::Pulse;
use crate::jobs::Job;
use crate::jobs::queue::{HeartbeatAnswer, Queue, StopRequest};

/// Longest time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Shortest time between heartbeats: the job's own events wake the keeper, too.
const SHORTEST: Duration = Duration::from_millis(250);
/// Time before its end at which a lease that could not be renewed counts as lost, so that two workers never hold a job.
const MARGIN: Duration = Duration::from_secs(10);

/// Reason why a job must stop; a later variant replaces an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Interrupt {
    /// The process ends; another attempt goes on from the checkpoint.
    Shutdown = 1,
    /// The client wants to go on later.
    Pause = 2,
    /// The client does not want the result any more.
    Cancel = 3,
    /// Another worker may have the job: nothing may be written.
    Lost = 4,
}

/// Flag by which the lease's keeper stops the training thread.
#[derive(Debug, Default)]
pub(super) struct Control {
    interrupt: AtomicU8,
    /// Beats whenever the job looks at the flag.
    pulse: Pulse,
}

impl Control {
    /// Makes the flag of a job of the worker with this pulse.
    pub(super) fn with_pulse(pulse: Pulse) -> Self {
        Self { interrupt: AtomicU8::new(0), pulse }
    }

    pub(super) fn raise(&self, interrupt: Interrupt) {
        self.interrupt.fetch_max(interrupt as u8, Ordering::Relaxed);
    }

    pub(super) fn raised(&self) -> Option<Interrupt> {
        use Interrupt::{Cancel, Lost, Pause, Shutdown};
        [Shutdown, Pause, Cancel, Lost]
            .into_iter()
            .find(|interrupt| *interrupt as u8 == self.interrupt.load(Ordering::Relaxed))
    }

    /// Returns [`Error::Cancelled`] once an interrupt was raised.
    pub(super) fn check(&self) -> attune_train::Result<()> {
        self.pulse.beat();
        self.raised().map_or(Ok(()), |_| Err(attune_train::Error::Cancelled))
    }

    /// Raises the interrupt that a heartbeat's answer asks for; `None` is a lost lease.
    pub(super) fn hear(&self, answer: Option<&HeartbeatAnswer>) {
        match answer.map(|answer| answer.stop) {
            None => self.raise(Interrupt::Lost),
            Some(Some(StopRequest::Cancel)) => self.raise(Interrupt::Cancel),
            Some(Some(StopRequest::Pause)) => self.raise(Interrupt::Pause),
            Some(None) => {}
        }
    }

    /// Waits for `pause`, or until an interrupt is raised, and beats meanwhile: a worker that waits is not stuck.
    pub(super) async fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while self.raised().is_none() && Instant::now() < end {
            self.pulse.beat();
            tokio::time::sleep(SHORTEST).await;
        }
    }
}

/// Renews the lease until it is lost or the task is dropped: at intervals, and at once when the job changes, since that
/// may be a request to stop.
pub(super) async fn keep(queue: Queue, job: Job, control: Arc<Control>, shutdown: CancellationToken) {
    let mut changes = queue.changes();
    let mut renewed = Instant::now();
    let mut ticks = tokio::time::interval_at(renewed + HEARTBEAT, HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutting_down = false;
    while control.raised() != Some(Interrupt::Lost) {
        tokio::select! {
            () = shutdown.cancelled(), if !shutting_down => {
                shutting_down = true;
                control.raise(Interrupt::Shutdown);
                continue;
            }
            _ = ticks.tick() => {}
            change = changes.recv() => match change {
                Ok(key) if key == job.key || key.is_nil() => {
                    tokio::time::sleep(SHORTEST).await;
                    // The heartbeat that follows answers for all changes so far.
                    changes = changes.resubscribe();
                }
                Ok(_) => continue,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => tokio::time::sleep(HEARTBEAT).await,
            },
        }
        let asked = Instant::now();
        match queue.heartbeat(&job, LEASE, None).await {
            Ok(answer) => {
                renewed = asked;
                control.hear(answer.as_ref());
            }
            Err(error) => {
                tracing::warn!(job = job.id, "cannot renew the lease: {error}");
                if renewed.elapsed() + HEARTBEAT + MARGIN > LEASE {
                    control.raise(Interrupt::Lost);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_interrupt_wins() {
        let control = Control::default();
        assert!(control.check().is_ok());
        control.raise(Interrupt::Cancel);
        control.raise(Interrupt::Shutdown);
        assert_eq!(control.raised(), Some(Interrupt::Cancel));
        control.hear(None);
        assert_eq!(control.raised(), Some(Interrupt::Lost));
        assert!(matches!(control.check(), Err(attune_train::Error::Cancelled)));
    }
}
