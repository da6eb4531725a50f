//! How requests reach the engine thread, and how it sleeps until one comes.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::admission::Ticket;
use super::{Event, GenerateRequest};
use crate::{Error, Result};
use attune_model::lora::AdapterLease;

/// A request that passed the [door](super::door).
#[derive(Debug)]
pub(super) enum Arrival {
    /// An answer is wanted.
    Generate {
        request: GenerateRequest,
        max_tokens: usize,
        events: UnboundedSender<Event>,
        submitted: Instant,
        ticket: Arc<Ticket>,
    },
    /// A vector is wanted; one arrival per input.
    Embed {
        input: Vec<u32>,
        organization: Arc<str>,
        adapter: Option<AdapterLease>,
        submitted: Instant,
        reply: oneshot::Sender<Result<Vec<f32>>>,
        ticket: Arc<Ticket>,
    },
}

impl Arrival {
    /// Tells the client what went wrong.
    pub(super) fn fail(self, error: Error) {
        // Whoever has gone meanwhile needs no answer.
        match self {
            Self::Generate { events, .. } => drop(events.send(Event::Failed(error))),
            Self::Embed { reply, .. } => drop(reply.send(Err(error))),
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
    /// Hands arrivals over; false once the engine has stopped.
    pub(super) fn put(&self, arrivals: impl IntoIterator<Item = Arrival>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return false;
        }
        state.arrivals.extend(arrivals);
        self.changed.notify_one();
        true
    }

    /// What has arrived; sleeps until something does where `wait`. `None` once the engine is to stop.
    pub(super) fn take(&self, wait: bool) -> Option<Vec<Arrival>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while wait && state.arrivals.is_empty() && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.stopped).then(|| std::mem::take(&mut state.arrivals))
    }

    /// Ends the engine thread before its next step, and fails what it has not taken.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = true;
        for arrival in state.arrivals.drain(..) {
            arrival.fail(super::native::stopped());
        }
        self.changed.notify_all();
    }
}
