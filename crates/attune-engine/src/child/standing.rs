//! How the process of an engine stands: whether it loads or serves, for how long, with what memory. Kept by
//! [`super::process`], shown by `api`.

use std::time::{Duration, Instant};

use attune_support::system;
use metrics::{describe_gauge, gauge};
use parking_lot::Mutex;

/// What the process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It loads the model.
    Loading,
    /// It serves requests.
    Ready,
    /// It has ended, and a new one is started after a pause.
    Ended,
}

/// How the process of an engine stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What it does.
    pub phase: Phase,
    /// How long it has been doing so.
    pub since: Duration,
    /// How long it took to load the model, the last time; `None` before the first.
    pub loaded_in: Option<Duration>,
    /// Bytes of main memory that it has; `None` if it has ended.
    pub resident_bytes: Option<u64>,
    /// Bytes of the weights' files.
    pub weights_bytes: u64,
    /// Times that it was started again.
    pub restarts: u64,
}

impl Standing {
    /// Sets the gauges of the process of `model`.
    pub fn record(&self, model: &str) {
        let (memory, ready) = ("attune_second_engine_memory_bytes", "attune_second_engine_ready");
        describe_gauge!(memory, "Main memory of the process that runs a model of the second engine.");
        describe_gauge!(ready, "1 if the process that runs a model of the second engine serves requests, else 0.");
        gauge!(memory, "model" => model.to_owned()).set(self.resident_bytes.unwrap_or(0) as f64);
        gauge!(ready, "model" => model.to_owned()).set(f64::from(u8::from(self.phase == Phase::Ready)));
    }
}

/// What is remembered of the processes of an engine.
#[derive(Debug)]
pub(super) struct Record {
    weights_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    began: Instant,
    loaded_in: Option<Duration>,
    process: Option<u32>,
    starts: u64,
}

impl Record {
    /// Begins the record of an engine whose model's files have `weights_bytes`.
    pub(super) fn new(weights_bytes: u64) -> Self {
        let state = State { phase: Phase::Ended, began: Instant::now(), loaded_in: None, process: None, starts: 0 };
        Self { weights_bytes, state: Mutex::new(state) }
    }

    /// Notes that `process` was started.
    pub(super) fn started(&self, process: u32) {
        let mut state = self.state.lock();
        state.process = Some(process);
        state.starts += 1;
        state.enter(Phase::Loading);
    }

    /// Notes that the model is loaded.
    pub(super) fn ready(&self) {
        let mut state = self.state.lock();
        state.loaded_in = Some(state.began.elapsed());
        state.enter(Phase::Ready);
    }

    /// Notes that the process has ended.
    pub(super) fn ended(&self) {
        let mut state = self.state.lock();
        state.process = None;
        state.enter(Phase::Ended);
    }

    /// Returns how the process stands.
    pub(super) fn standing(&self) -> Standing {
        let state = self.state.lock();
        Standing {
            phase: state.phase,
            since: state.began.elapsed(),
            loaded_in: state.loaded_in,
            resident_bytes: state.process.and_then(system::resident_bytes_of),
            weights_bytes: self.weights_bytes,
            restarts: state.starts.saturating_sub(1),
        }
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.began = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_loads_serves_ends_and_is_started_again() {
        let record = Record::new(7);
        record.started(std::process::id());
        let loading = record.standing();
        assert_eq!((loading.phase, loading.restarts, loading.loaded_in), (Phase::Loading, 0, None));
        assert!(loading.resident_bytes > Some(1 << 20), "{loading:?}");
        record.ready();
        let ready = record.standing();
        assert_eq!((ready.phase, ready.weights_bytes), (Phase::Ready, 7));
        assert!(ready.loaded_in.is_some());
        record.ended();
        assert_eq!((record.standing().phase, record.standing().resident_bytes), (Phase::Ended, None));
        record.started(std::process::id());
        assert_eq!(record.standing().restarts, 1);
    }
}
