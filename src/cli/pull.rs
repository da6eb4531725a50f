//! `attune pull`: downloads a model into the cache. Progress goes to standard error, as a bar or, if that is no
//! terminal, as lines; standard output is the model's path, for scripts.

use std::io::{IsTerminal as _, stderr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::app::by_name;
use crate::hub::{self, Form, Hub, ModelName, Plan, Progress, Tally};
use crate::{Result, format};

use super::output::{line, note};

/// How often a line says how far it is.
const PAUSE: Duration = Duration::from_secs(10);
const BAR: &str = "{bar:30.cyan/dim} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";

/// The flags of `attune pull`.
#[derive(Debug, Args)]
#[command(after_help = "The environment is that of Hugging Face's own programs: HF_TOKEN, HF_HOME, HF_HUB_CACHE, \
                        HF_ENDPOINT, HF_HUB_OFFLINE, HTTPS_PROXY.")]
pub(super) struct PullOptions {
    /// Download this model: `OWNER/NAME`, `OWNER/NAME@REVISION`, `OWNER/NAME:Q4_K_M` for a GGUF file, or its page's
    /// address.
    #[arg(value_name = "NAME")]
    name: ModelName,
    /// Read the files that are there already, too, and fetch anew what has a wrong checksum.
    #[arg(long)]
    verify: bool,
}

impl PullOptions {
    /// Downloads the model and prints its path.
    pub(super) async fn run(self) -> Result<()> {
        let display = Display::new();
        let pulled = Box::pin(Hub::from_environment()?.pull(&self.name, self.verify, &display)).await;
        display.clear();
        let found = pulled?;
        note(format_args!("{}: {} at commit {}", self.name, format::bytes(found.bytes), found.commit));
        match found.form {
            Form::Folder | Form::Gguf => note(format_args!(
                "serve it: attune serve --model {}=hf:{}",
                short_name(self.name.repository.as_str()),
                self.name
            )),
            Form::Adapter => {
                note("this is an adapter: serve its base model, and load it with POST /v1/load_lora_adapter");
            }
        }
        line(found.path.display())
    }
}

/// Returns an id to serve a model as: the last part of its repository's name.
fn short_name(repository: &str) -> String {
    repository.rsplit('/').next().unwrap_or(repository).to_lowercase()
}

/// Shows a download on standard error.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    tally: Mutex<Tally>,
}

impl Display {
    /// Shows a bar on a terminal, else lines.
    pub(super) fn new() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, tally: Mutex::default() }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints a line above the bar.
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }
}

impl Progress for Display {
    fn planned(&self, plan: &Plan) {
        self.tally().planned(plan);
        self.say(&plan.line());
        if let Some(bar) = &self.bar {
            bar.set_length(plan.bytes);
        }
    }

    fn reached(&self, file: &str, bytes: u64) {
        let mut tally = self.tally();
        let there = tally.reached(file, bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(there);
            bar.set_message(file.to_owned());
        } else if let Some(line) = tally.line(PAUSE) {
            note(line);
        }
    }

    fn waiting(&self, file: &str) {
        self.say(&format!("waiting for another process that downloads {file}"));
    }

    fn retrying(&self, file: &str, error: &hub::Error, pause: Duration) {
        self.say(&format!("{file}: {error}; asking again in {}", format::duration(pause.as_secs_f64())));
    }

    fn refuse(&self, config: &Path) -> Option<String> {
        by_name::unsupported(config)
    }
}
