//! Texts that wait for a worker of an encoder. A batch is made when a worker is free, not before: the oldest text of each
//! organisation in turn, so that one with a thousand texts keeps nobody waiting, and none of its own is overtaken.
//!
//! Texts in the background are taken when no others wait, few at a time and by one worker, so that whoever comes finds a
//! core free, or has one soon. Of many batches of others one is followed by some of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Gauge, Histogram, gauge, histogram};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::admission::{RETRY_AFTER, Ticket};
use crate::idle;
use crate::{EmbedInput, EmbedOutput, Error, Result};
use attune_model::lora::AdapterLease;

/// Divisor of a batch's rows for those of texts in the background.
const BACKGROUND_PART: usize = 8;
/// Of so many batches, one is of the background whatever else waits.
const BACKGROUND_TURN: u64 = 16;

/// A text that waits.
#[derive(Debug)]
pub(super) struct WaitingText {
    pub(super) input: EmbedInput,
    pub(super) adapter: Option<AdapterLease>,
    pub(super) output: EmbedOutput,
    pub(super) submitted: Instant,
    /// The request's place in the queue.
    pub(super) ticket: Arc<Ticket>,
    pub(super) reply: oneshot::Sender<Result<Vec<f32>>>,
}

impl WaitingText {
    /// Sends the client its row of numbers, or an error.
    pub(super) fn answer(self, result: Result<Vec<f32>>) {
        // Sending fails only if the client has gone; that is fine.
        let _ = self.reply.send(result);
    }
}

/// Texts for one worker.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) texts: Vec<WaitingText>,
    /// True if nothing else waits or is computed: all cores are free for it.
    pub(super) is_alone: bool,
    /// Whether its texts are in the background.
    pub(super) in_background: bool,
}

/// The queue of one encoder.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    longest_wait: Duration,
    waiting: Gauge,
    wait_times: Histogram,
}

#[derive(Debug, Default)]
struct State {
    by_organization: HashMap<Arc<str>, VecDeque<WaitingText>>,
    /// Organisations with texts that wait, the next one first.
    turns: VecDeque<Arc<str>>,
    count: usize,
    /// Texts in the background, in their order.
    background: VecDeque<WaitingText>,
    /// Batches taken.
    batches: u64,
    /// Workers that compute.
    computing: usize,
    /// Whether one of them computes texts in the background.
    computing_background: bool,
    stopped: bool,
}

impl State {
    /// True if a worker may begin with texts in the background.
    fn has_background(&self) -> bool {
        !self.background.is_empty() && !self.computing_background
    }
}

impl Queue {
    /// Creates the empty queue of `model`, in which a text may wait for `longest_wait`.
    pub(super) fn new(model: &str, longest_wait: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            longest_wait,
            waiting: gauge!("attune_queue_waiting", "model" => model.to_owned()),
            wait_times: histogram!("attune_queue_seconds", "model" => model.to_owned()),
        }
    }

    /// Adds the texts of one request, in the `background` or not; returns `false` once the engine has stopped.
    pub(super) fn put(&self, organization: &Arc<str>, texts: Vec<WaitingText>, background: bool) -> bool {
        let mut state = self.state.lock();
        if state.stopped {
            return false;
        }
        if texts.is_empty() {
            return true;
        }
        if background {
            state.background.extend(texts);
            self.changed.notify_all();
            return true;
        }
        state.count += texts.len();
        let own = state.by_organization.entry(organization.clone()).or_default();
        let is_new = own.is_empty();
        own.extend(texts);
        if is_new {
            state.turns.push_back(organization.clone());
        }
        self.waiting.set(state.count as f64);
        self.changed.notify_all();
        true
    }

    /// Waits for texts and takes up to `rows` tokens of them, one text at the least; `None` once the engine is to stop.
    /// Clients that have gone are left out, and those that waited too long are told.
    pub(super) fn take(&self, rows: usize) -> Option<Batch> {
        let mut state = self.state.lock();
        loop {
            let nothing = |state: &mut State| state.count == 0 && !state.has_background() && !state.stopped;
            idle::wait_while(&self.changed, &mut state, nothing, || {});
            if state.stopped {
                return None;
            }
            let has_turn = state.count == 0 || (state.batches + 1).is_multiple_of(BACKGROUND_TURN);
            if state.has_background() && has_turn {
                let texts = background(&mut state, rows.div_ceil(BACKGROUND_PART));
                if texts.is_empty() {
                    continue;
                }
                state.batches += 1;
                state.computing += 1;
                state.computing_background = true;
                return Some(Batch { texts, is_alone: false, in_background: true });
            }
            let texts = self.oldest(&mut state, rows);
            self.waiting.set(state.count as f64);
            if !texts.is_empty() {
                let is_alone = state.count == 0 && state.computing == 0;
                state.batches += 1;
                state.computing += 1;
                return Some(Batch { texts, is_alone, in_background: false });
            }
        }
    }

    /// Notes that a batch was computed, one of texts in the background or another.
    pub(super) fn done(&self, in_background: bool) {
        let mut state = self.state.lock();
        state.computing -= 1;
        if in_background {
            state.computing_background = false;
            self.changed.notify_all();
        }
    }

    fn oldest(&self, state: &mut State, rows: usize) -> Vec<WaitingText> {
        let (mut taken, mut taken_rows) = (Vec::new(), 0);
        while let Some(organization) = state.turns.pop_front() {
            let Some(own) = state.by_organization.get_mut(&organization) else { continue };
            let next = own.front().map_or(0, |text| text.input.tokens.len());
            if !taken.is_empty() && taken_rows + next > rows {
                state.turns.push_front(organization);
                break;
            }
            let text = own.pop_front();
            if own.is_empty() {
                state.by_organization.remove(&organization);
            } else {
                state.turns.push_back(organization);
            }
            let Some(text) = text else { continue };
            state.count -= 1;
            let waited = text.submitted.elapsed();
            if text.reply.is_closed() {
                continue;
            }
            if waited > self.longest_wait && !text.ticket.has_begun() {
                text.answer(Err(Error::Overloaded {
                    what: "the request waited too long for its turn",
                    retry_after: RETRY_AFTER,
                }));
                continue;
            }
            text.ticket.begin();
            self.wait_times.record(waited.as_secs_f64());
            taken_rows += next;
            taken.push(text);
        }
        taken
    }

    /// Stops the workers before their next batch, and fails what waits.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.turns.clear();
        state.count = 0;
        for text in state.by_organization.drain().flat_map(|(_, texts)| texts) {
            text.answer(Err(Error::stopped()));
        }
        for text in state.background.drain(..) {
            text.answer(Err(Error::stopped()));
        }
        self.changed.notify_all();
    }
}

/// Takes up to `rows` tokens of the texts in the background, one text at the least, but for those whose client has gone.
fn background(state: &mut State, mut rows: usize) -> Vec<WaitingText> {
    let mut taken = Vec::new();
    while let Some(text) = state.background.front() {
        if !taken.is_empty() && text.input.tokens.len() > rows {
            break;
        }
        rows = rows.saturating_sub(text.input.tokens.len());
        taken.extend(state.background.pop_front().filter(|text| !text.reply.is_closed()));
    }
    for text in &taken {
        text.ticket.begin();
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;

    fn text(admission: &Admission, length: usize) -> (WaitingText, oneshot::Receiver<Result<Vec<f32>>>) {
        let (reply, row) = oneshot::channel();
        let ticket = admission.enter(&"org".into()).expect("a place");
        let input = EmbedInput::from(vec![7; length]);
        let (submitted, output) = (Instant::now(), EmbedOutput::Vector);
        (WaitingText { input, adapter: None, output, submitted, ticket, reply }, row)
    }

    #[test]
    fn organisations_take_turns_and_none_of_their_texts_is_overtaken() {
        let (queue, admission) = (Queue::new("m", Duration::from_mins(1)), Admission::new(100, 100, 100));
        let mut rows = Vec::new();
        for (organization, lengths) in [("many", vec![10, 11, 12, 13]), ("few", vec![20])] {
            let (texts, replies): (Vec<_>, Vec<_>) = lengths.into_iter().map(|length| text(&admission, length)).unzip();
            rows.extend(replies);
            assert!(queue.put(&organization.into(), texts, false));
        }
        let lengths = |batch: Batch| batch.texts.iter().map(|text| text.input.tokens.len()).collect::<Vec<_>>();
        assert_eq!(lengths(queue.take(35).expect("a batch")), [10, 20]);
        // Longer than a batch, and taken all the same.
        assert_eq!(lengths(queue.take(5).expect("a batch")), [11]);
        rows.truncate(2);
        // The clients of the others have gone: the queue holds nothing for anybody.
        queue.stop();
        assert!(queue.take(100).is_none());
    }

    #[test]
    fn a_batch_is_alone_if_nothing_waits_and_nobody_computes() {
        let (queue, admission) = (Queue::new("m", Duration::from_mins(1)), Admission::new(100, 100, 100));
        let (texts, _rows): (Vec<_>, Vec<_>) = [5, 5, 5].into_iter().map(|length| text(&admission, length)).unzip();
        queue.put(&"org".into(), texts, false);
        assert!(!queue.take(5).expect("a batch").is_alone, "two wait");
        queue.done(false);
        assert!(queue.take(100).expect("a batch").is_alone);
        let (texts, _more): (Vec<_>, Vec<_>) = [5].into_iter().map(|length| text(&admission, length)).unzip();
        queue.put(&"org".into(), texts, false);
        assert!(!queue.take(100).expect("a batch").is_alone, "another is being computed");
    }

    #[test]
    fn texts_in_the_background_go_last_a_few_at_a_time_and_on_one_worker() {
        let (queue, admission) = (Queue::new("m", Duration::from_mins(1)), Admission::new(100, 100, 100));
        let mut rows = Vec::new();
        for (lengths, background) in [(vec![1; 10], true), (vec![7], false)] {
            let (texts, replies): (Vec<_>, Vec<_>) = lengths.into_iter().map(|length| text(&admission, length)).unzip();
            rows.extend(replies);
            assert!(queue.put(&"org".into(), texts, background));
        }
        let first = queue.take(32).expect("a batch");
        assert!(!first.in_background && first.texts.len() == 1);
        let second = queue.take(32).expect("a batch");
        assert!(second.in_background && !second.is_alone && second.texts.len() == 4, "{}", second.texts.len());
        assert!(!queue.state.lock().has_background(), "one worker computes some already");
        queue.done(true);
        assert!(queue.state.lock().has_background());
    }

    #[test]
    fn texts_in_the_background_get_their_turn_whatever_else_waits() {
        let (queue, admission) = (Queue::new("m", Duration::from_mins(1)), Admission::new(100, 100, 100));
        let (texts, _rows): (Vec<_>, Vec<_>) = (0..40).map(|_| text(&admission, 5)).unzip();
        queue.put(&"org".into(), texts, false);
        let (texts, _more): (Vec<_>, Vec<_>) = [5].into_iter().map(|length| text(&admission, length)).unzip();
        queue.put(&"org".into(), texts, true);
        let turns: Vec<bool> = (0..20).map(|_| queue.take(5).expect("a batch").in_background).collect();
        assert_eq!(turns.iter().filter(|turn| **turn).count(), 1);
    }

    #[test]
    fn whoever_waited_too_long_is_told_so() {
        let (queue, admission) = (Queue::new("m", Duration::ZERO), Admission::new(100, 100, 100));
        let (late, mut row) = text(&admission, 5);
        std::thread::sleep(Duration::from_millis(2));
        queue.put(&"org".into(), vec![late], false);
        let mut state = queue.state.lock();
        assert!(queue.oldest(&mut state, 100).is_empty());
        assert!(matches!(row.try_recv(), Ok(Err(Error::Overloaded { .. }))));
    }
}
