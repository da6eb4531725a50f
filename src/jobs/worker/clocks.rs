//! Clocks of this machine for the trainer and its estimates: the wall's, those of the computing threads, and the time
//! in which this process computes something else. Used by [`super::forecast`] and [`super::training`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use candle_core::Device;

use crate::engine::priority::Priority;
use crate::system::cpu::{self, ComputingThreads};
use crate::train::rate::{Clocks, Reading};

/// Clocks of the machine, as the thread that made them sees it.
pub(super) struct MachineClocks {
    begin: Instant,
    /// Threads that compute; `None` if a GPU does.
    threads: Option<ComputingThreads>,
    priority: Arc<Priority>,
    /// True if no other run of this process was under way when this one began.
    alone: bool,
}

impl MachineClocks {
    /// Makes the clocks of a run on `device`. Make them on the thread that trains.
    pub(super) fn new(device: &Device, priority: Arc<Priority>, run: &Busy) -> Self {
        let threads = device.is_cpu().then(ComputingThreads::of_this_one);
        Self { begin: Instant::now(), threads, priority, alone: run.alone }
    }
}

impl Clocks for MachineClocks {
    fn read(&self) -> Reading {
        let seconds = self.begin.elapsed().as_secs_f64();
        let beside = if self.alone { self.priority.busy_time().as_secs_f64() } else { seconds };
        Reading { seconds, cpu: self.threads.as_ref().and_then(ComputingThreads::times), beside }
    }

    fn threads(&self) -> usize {
        self.threads.as_ref().map_or(1, ComputingThreads::count)
    }

    /// A GPU does not tell.
    fn slowdown(&self) -> f64 {
        self.threads.as_ref().and_then(|_| cpu::slowdown()).unwrap_or(1.0)
    }
}

/// Count of the runs and calibrations of this process: a calibration beside another one, or beside a job, has only a
/// part of the machine.
pub(super) struct Busy {
    /// True if nothing else ran when this began.
    alone: bool,
}

static BUSY: AtomicUsize = AtomicUsize::new(0);

impl Busy {
    /// Counts one more run until the value is dropped.
    pub(super) fn enter() -> Self {
        Self { alone: BUSY.fetch_add(1, Ordering::Relaxed) == 0 }
    }

    /// Returns true if nothing else ran when this began.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::Relaxed);
    }
}
