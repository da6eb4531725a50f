//! Passes requests to the engine thread, which sleeps here until one comes.

use parking_lot::{Condvar, Mutex};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::idle;
use super::sequence::NewSequence;
use super::{EmbedOutput, Event, GenerateRequest};
use crate::{Error, Result};

/// A sequence that passed [`Admission`](super::admission::Admission) and is not yet in the schedule.
pub(super) type Arrival = NewSequence<Asked>;

/// Request of a client, and the channel for its result.
#[derive(Debug)]
pub(super) enum Asked {
    /// Tokens of an answer. The request's adapter has moved into the sequence.
    Answer { request: Box<GenerateRequest>, events: UnboundedSender<Event> },
    /// Vector of one input, whose first `prompt` rows are not pooled.
    Vector { prompt: usize, output: EmbedOutput, reply: oneshot::Sender<Result<Vec<f32>>> },
}

impl Asked {
    /// Tells the client the error.
    pub(super) fn fail(self, error: Error) {
        // Sending fails only if the client has gone; that is fine.
        match self {
            Self::Answer { events, .. } => drop(events.send(Event::Failed(error))),
            Self::Vector { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// Arrivals that the engine thread has not yet taken.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<Queued>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queued {
    arrivals: Vec<Arrival>,
    stopped: bool,
}

impl Inbox {
    /// Adds arrivals; returns `false` once the engine has stopped.
    pub(super) fn put(&self, arrivals: impl IntoIterator<Item = Arrival>) -> bool {
        let mut state = self.state.lock();
        if state.stopped {
            return false;
        }
        state.arrivals.extend(arrivals);
        self.changed.notify_one();
        true
    }

    /// Takes all arrivals; with `wait` it sleeps until there is one, and calls `rest` if that takes a while. `None` once the
    /// engine is to stop.
    pub(super) fn take(&self, wait: bool, rest: impl FnOnce()) -> Option<Vec<Arrival>> {
        let mut state = self.state.lock();
        if wait {
            idle::wait_while(&self.changed, &mut state, |state| state.arrivals.is_empty() && !state.stopped, rest);
        }
        (!state.stopped).then(|| std::mem::take(&mut state.arrivals))
    }

    /// Stops the engine thread before its next step, and fails the arrivals that it has not taken.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        for arrival in state.arrivals.drain(..) {
            arrival.owner.fail(Error::stopped());
        }
        self.changed.notify_all();
    }
}
