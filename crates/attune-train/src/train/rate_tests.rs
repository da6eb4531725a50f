//! Tests of the arithmetic of speeds, with clocks that stand where the test wants them.

use std::cell::Cell;

use super::*;

fn timing(seconds: f64, used: f64, waited: f64) -> Timing {
    Timing { seconds, paused: 0.0, cpu: Some(CpuTime { used, waited }), beside: 0.0, threads: 2 }
}

fn near(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-9, "{left} is not {right}");
}

/// Clocks that advance by a second with each look, in which two threads compute for `used` seconds together and wait
/// for `waited`.
pub(crate) struct Fixed {
    looks: Cell<f64>,
    used: f64,
    waited: f64,
    slowdown: f64,
}

impl Fixed {
    pub(crate) fn new(used: f64, waited: f64, slowdown: f64) -> Self {
        Self { looks: Cell::new(0.0), used, waited, slowdown }
    }
}

impl Clocks for Fixed {
    fn read(&self) -> Reading {
        let seconds = self.looks.replace(self.looks.get() + 1.0);
        let cpu = CpuTime { used: self.used * seconds, waited: self.waited * seconds };
        Reading { seconds, cpu: Some(cpu), beside: 0.0 }
    }

    fn threads(&self) -> usize {
        2
    }

    fn slowdown(&self) -> f64 {
        self.slowdown
    }
}

#[test]
fn on_an_idle_machine_work_takes_what_the_wall_says_even_if_threads_wait_for_each_other() {
    near(timing(10.0, 20.0, 0.0).idle_seconds(), 10.0);
    // One of two threads had nothing to do: that is how the work is, and no sign of load.
    near(timing(10.0, 10.0, 0.0).idle_seconds(), 10.0);
    near(Timing { cpu: None, ..timing(10.0, 0.0, 0.0) }.idle_seconds(), 10.0);
    near(Timing { cpu: Some(CpuTime::default()), ..timing(10.0, 0.0, 0.0) }.idle_seconds(), 10.0);
}

#[test]
fn on_a_busy_machine_work_is_measured_by_the_time_that_its_threads_had_a_processor() {
    // Each thread had a processor for half of the time.
    near(timing(10.0, 10.0, 10.0).idle_seconds(), 5.0);
    // 57 minutes on the wall, 25 minutes of computing on two threads; one often waited for the other.
    near(timing(57.0, 25.0, 60.0).idle_seconds(), 12.5);
    // A little waiting on a machine of many cores where most threads have nothing to do.
    let many = Timing { threads: 64, ..timing(10.0, 60.0, 6.0) };
    near(many.idle_seconds(), 10.0 * (60.0_f64 / 66.0).powi(2));
}

#[test]
fn work_beside_requests_of_the_same_process_is_at_least_half_of_the_computing() {
    let beside = |beside| Timing { beside, ..timing(10.0, 20.0, 0.0) }.idle_seconds();
    near(beside(10.0), 5.0);
    near(beside(4.0), 8.0);
    near(beside(100.0), 5.0);
    // A GPU has no other clock.
    near(Timing { cpu: None, beside: 4.0, ..timing(10.0, 0.0, 0.0) }.idle_seconds(), 8.0);
}

#[test]
fn pauses_for_requests_are_not_work() {
    let clocks = Fixed::new(2.0, 0.0, 1.0);
    let mut watch = Watch::start(&clocks);
    watch.pause(&mut || Ok(())).unwrap();
    let timing = watch.stop();
    // Four looks: at the start, around the pause, at the stop.
    assert_eq!((timing.seconds, timing.paused, timing.threads), (2.0, 1.0, 2));
    assert_eq!(timing.cpu, Some(CpuTime { used: 4.0, waited: 0.0 }));
    let mut sum = RateSum::default();
    sum.add(30.0, timing);
    let rate = sum.rate().unwrap();
    assert_eq!((rate.tokens, rate.seconds, rate.idle_seconds), (30.0, 3.0, 2.0));
    near(rate.tokens_per_second(), 15.0);
    near(rate.slowdown(), 1.5);
}

#[test]
fn a_rate_is_as_uncertain_as_its_measurements_differ() {
    let spread = |rates: &[f64]| {
        let mut sum = RateSum::default();
        for rate in rates {
            sum.add(*rate, timing(1.0, 2.0, 0.0));
        }
        sum.rate().map(|rate| rate.spread)
    };
    assert_eq!(spread(&[]), None);
    assert_eq!(spread(&[50.0]), Some(SPREAD_OF_ONE));
    assert_eq!(spread(&[50.0, 50.0, 50.0]), Some(0.1), "a machine is never steadier than that");
    // Mean 50, standard deviation 10 of four: an error of 5, twice.
    near(spread(&[40.0, 40.0, 60.0, 60.0]).unwrap(), 2.0 * (400.0_f64 / 3.0 / 4.0).sqrt() / 50.0);
    assert_eq!(spread(&[1.0, 100.0]), Some(0.5));
}

#[test]
fn a_rate_measured_on_a_busy_machine_is_used_once_and_measured_anew() {
    let measured = |slowdown| TrainingRate { tokens: 100.0, seconds: 4.0 * slowdown, idle_seconds: 4.0, spread: 0.1 };
    let measures = Cell::new(0);
    let mut kept = None;
    for (slowdown, keeps) in [(4.5, false), (1.25, false), (1.2, true), (9.0, true)] {
        let measure = || {
            measures.set(measures.get() + 1);
            Ok(measured(slowdown))
        };
        let (pace, keep) = Pace::find(kept, &Fixed::new(0.0, 0.0, slowdown), measure).unwrap();
        near(pace.slowdown, slowdown);
        near(pace.rate.tokens_per_second(), 25.0);
        assert_eq!(pace.is_busy(), slowdown >= BUSY);
        kept = kept.or(keep);
        assert_eq!(kept.is_some(), keeps, "{slowdown}");
    }
    assert_eq!(measures.get(), 3, "what an idle machine has shown is not measured again");
}
