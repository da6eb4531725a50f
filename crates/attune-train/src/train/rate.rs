//! Training speed of a machine: measured by [`super::calibration`] and by the steps of jobs, used by
//! [`super::estimate`].
//!
//! The clock on the wall tells too little on a busy machine, so the time that the computing threads had a processor is
//! measured beside it, and the time that they waited for one ([`Timing::idle_seconds`]). A GPU has only the wall's.

use attune_support::system::cpu::CpuTime;

use crate::Result;
use crate::train::yielding::BeforeMicroStep;

/// Factor from which on a machine counts as busy: work takes that many times as long as with nothing else to do.
pub const BUSY: f64 = 1.25;
/// Bounds of a rate's spread. Even on an idle machine clocks, caches and neighbours change by the least one.
const SPREAD: [f64; 2] = [0.1, 0.5];
/// Spread of a single measurement.
const SPREAD_OF_ONE: f64 = 0.25;
/// Standard errors on both sides of a mean, within which it lies in nineteen of twenty cases.
const STANDARD_ERRORS: f64 = 2.0;

/// Reading of all clocks at one moment; only differences mean something.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// Seconds on the wall's clock.
    pub seconds: f64,
    /// Times of the computing threads together; `None` if the system does not tell, or a GPU computes.
    pub cpu: Option<CpuTime>,
    /// Seconds in which this process computed something else on the same threads, such as requests.
    pub beside: f64,
}

/// Clocks of the machine that trains.
pub trait Clocks {
    /// Reads all clocks.
    fn read(&self) -> Reading;
    /// Returns the number of threads that can compute at one time.
    fn threads(&self) -> usize;
    /// Measures how many times as long work takes now as with nothing else to do, at least 1.
    fn slowdown(&self) -> f64;
}

/// Time that a piece of work took, without its pauses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Seconds on the wall's clock.
    pub seconds: f64,
    /// Seconds of the pauses.
    pub paused: f64,
    /// Times of the computing threads; `None` if unknown.
    pub cpu: Option<CpuTime>,
    /// Seconds in which this process computed something else, too.
    pub beside: f64,
    /// Number of threads that could compute.
    pub threads: usize,
}

impl Timing {
    /// Returns the seconds that the same work takes on a machine with nothing else to do. Never less than the threads
    /// computed, spread over all of them, and never more than it took.
    ///
    /// Threads that could compute did so for a share of that time only; the work took longer by that factor, and by at
    /// most the same factor again where a thread waits for the results of another that has no processor. Threads that
    /// spin count as computing, so the seconds are rather too many.
    pub fn idle_seconds(&self) -> f64 {
        // Work beside takes turns with this one, so at most half of the computing was for the other.
        let Some(CpuTime { used, waited }) = self.cpu.filter(|cpu| cpu.used > 0.0) else {
            return self.seconds - (self.beside / 2.0).clamp(0.0, self.seconds.max(0.0) / 2.0);
        };
        let threads = self.threads.max(1) as f64;
        let others = (threads * self.beside / 2.0).clamp(0.0, used / 2.0);
        let (used, waited) = (used - others, waited + others);
        let share = used / (used + waited);
        (self.seconds * share * share).max(used / threads).min(self.seconds)
    }

    /// Adds the time of another piece of work.
    pub fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.paused += other.paused;
        self.beside += other.beside;
        self.cpu = self
            .cpu
            .zip(other.cpu)
            .map(|(one, two)| CpuTime { used: one.used + two.used, waited: one.waited + two.waited });
    }
}

/// Watch that measures a piece of work.
pub struct Watch<'a> {
    clocks: &'a dyn Clocks,
    begin: Reading,
    pauses: Vec<(Reading, Reading)>,
}

impl<'a> Watch<'a> {
    /// Starts to measure.
    pub fn start(clocks: &'a dyn Clocks) -> Self {
        Self { clocks, begin: clocks.read(), pauses: Vec::new() }
    }

    /// Lets requests go first by calling `before`, and does not measure meanwhile.
    pub fn pause(&mut self, before: BeforeMicroStep<'_>) -> Result<()> {
        let begin = self.clocks.read();
        before()?;
        self.pauses.push((begin, self.clocks.read()));
        Ok(())
    }

    /// Returns the time since the start.
    pub fn stop(self) -> Timing {
        let mut timing = between(self.begin, self.clocks.read(), self.clocks.threads());
        for (begin, end) in self.pauses {
            let pause = between(begin, end, 0);
            timing.seconds -= pause.seconds;
            timing.paused += pause.seconds;
            timing.beside -= pause.beside;
            timing.cpu = timing
                .cpu
                .zip(pause.cpu)
                .map(|(all, pause)| CpuTime { used: all.used - pause.used, waited: all.waited - pause.waited });
        }
        timing
    }
}

fn between(begin: Reading, end: Reading, threads: usize) -> Timing {
    let cpu = begin
        .cpu
        .zip(end.cpu)
        .map(|(begin, end)| CpuTime { used: end.used - begin.used, waited: end.waited - begin.waited });
    Timing { seconds: end.seconds - begin.seconds, paused: 0.0, cpu, beside: end.beside - begin.beside, threads }
}

/// Tokens of examples and the time that the steps on them took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingRate {
    /// Tokens that were trained on.
    pub tokens: f64,
    /// Seconds of those steps on the wall's clock, pauses included.
    pub seconds: f64,
    /// Seconds that those steps take on a machine with nothing else to do.
    pub idle_seconds: f64,
    /// Share by which the rate may be wrong, from the spread of its measurements.
    pub spread: f64,
}

impl TrainingRate {
    /// Returns the tokens per second of a machine with nothing else to do.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens / self.idle_seconds.max(1e-9)
    }

    /// Returns how many times as long the steps took as they take on a machine with nothing else to do, at least 1.
    pub fn slowdown(&self) -> f64 {
        (self.seconds / self.idle_seconds.max(1e-9)).max(1.0)
    }
}

/// Sum of measurements of the same kind of work.
#[derive(Debug, Clone, Default)]
pub struct RateSum {
    tokens: f64,
    timing: Option<Timing>,
    /// Number of measurements, and sums of their rates and of the rates' squares.
    count: f64,
    rates: f64,
    squares: f64,
}

impl RateSum {
    /// Adds work on `tokens`.
    pub fn add(&mut self, tokens: f64, timing: Timing) {
        self.tokens += tokens;
        match &mut self.timing {
            None => self.timing = Some(timing),
            Some(sum) => sum.add(timing),
        }
        let rate = tokens / timing.idle_seconds().max(1e-9);
        self.count += 1.0;
        self.rates += rate;
        self.squares += rate * rate;
    }

    /// Returns the rate of all measurements; `None` if there are none.
    pub fn rate(&self) -> Option<TrainingRate> {
        let timing = self.timing?;
        let seconds = timing.seconds + timing.paused;
        Some(TrainingRate { tokens: self.tokens, seconds, idle_seconds: timing.idle_seconds(), spread: self.spread() })
    }

    fn spread(&self) -> f64 {
        if self.count < 2.0 {
            return SPREAD_OF_ONE;
        }
        let mean = self.rates / self.count;
        let variance = (self.squares - self.count * mean * mean).max(0.0) / (self.count - 1.0);
        let error = STANDARD_ERRORS * (variance / self.count).sqrt() / mean.max(1e-9);
        error.clamp(SPREAD[0], SPREAD[1])
    }
}

/// Speed that an estimate assumes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Speed on a machine with nothing else to do.
    pub rate: TrainingRate,
    /// Factor on all durations at the present load, at least 1.
    pub slowdown: f64,
    /// Whether the rate was measured for this estimate, and not by jobs or estimates before.
    pub measured_now: bool,
}

impl Pace {
    /// Returns the known rate at the present load, or measures one. Returns that, too, if it is to be kept for later
    /// estimates: on a busy machine it is used once, and measured anew the next time.
    pub fn find(
        known: Option<TrainingRate>,
        clocks: &dyn Clocks,
        measure: impl FnOnce() -> Result<TrainingRate>,
    ) -> Result<(Self, Option<TrainingRate>)> {
        if let Some(rate) = known {
            return Ok((Self { rate, slowdown: clocks.slowdown().max(1.0), measured_now: false }, None));
        }
        let rate = measure()?;
        let pace = Self { rate, slowdown: rate.slowdown(), measured_now: true };
        Ok((pace, (!pace.is_busy()).then_some(rate)))
    }

    /// Returns true if the machine has so much else to do that durations are a matter of that.
    pub fn is_busy(&self) -> bool {
        self.slowdown >= BUSY
    }
}

#[cfg(test)]
#[path = "rate_tests.rs"]
pub(crate) mod tests;
