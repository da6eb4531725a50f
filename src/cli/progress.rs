//! How far a command is with things that it counts: a bar on a terminal, else a line now and then. Both go to standard
//! error. Used by `attune embed`.

use std::io::{IsTerminal as _, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::note;
use crate::format;

/// How often a line says how far it is.
const PAUSE: Duration = Duration::from_secs(10);
const BAR: &str = "{bar:30.cyan/dim} {human_pos}/{human_len} {per_sec} {eta}";

/// A bar or lines.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    all: usize,
    state: Mutex<State>,
}

struct State {
    told: Instant,
    said: String,
}

impl Progress {
    /// Begins to show progress through `all` things, of which `done` are done.
    pub(super) fn new(all: usize, done: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(all as u64), ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(done as u64);
            bar.reset_eta();
            bar
        });
        Self { bar, all, state: Mutex::new(State { told: Instant::now(), said: String::new() }) }
    }

    /// Shows that `done` are done.
    pub(super) fn reached(&self, done: usize) {
        if let Some(bar) = &self.bar {
            return bar.set_position(done as u64);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.told.elapsed() >= PAUSE {
            state.told = Instant::now();
            note(format_args!("{} of {}", format::count(done as f64), format::count(self.all as f64)));
        }
    }

    /// Prints a line above the bar.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Prints a line, unless it is the same as the last one: many requests fail for one reason.
    pub(super) fn say_once(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said != text {
            text.clone_into(&mut state.said);
            self.say(text);
        }
    }

    /// Removes the bar.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
