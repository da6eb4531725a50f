//! Trains each job of the old account anew on a local base, and compares the old model with the new one. Called by
//! [`super`] with `--retrain` and `--compare`.
//!
//! [`retrain`] makes a local job of each old one, with the [`settings`] that mean the same here; [`compare`] asks the
//! models the prompts that [`examples`] reads, and keeps their [`answers`]; [`figures`] counts what passes by the rule
//! of [`grading`]; [`report`] writes a page for each model with what [`prices`] and [`traffic`] say of its cost, and
//! [`aliases`] the lines of the configuration that keep the old names.

mod aliases;
mod answers;
mod compare;
mod examples;
mod figures;
mod grading;
mod prices;
mod report;
mod retrain;
mod settings;
mod traffic;

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

pub(super) use self::compare::compare;
pub(super) use self::report::report;
pub(super) use self::retrain::retrain;
use super::folder::{Folder, OldJob};
use crate::Result;
use crate::train::hyperparameters::Method;

/// The folder within the folder with what was trained on and answered here.
const SPECIALISTS: &str = "specialists";

/// The flags of `--retrain` and `--compare`.
#[derive(Debug, Args)]
pub(super) struct SpecialistOptions {
    /// Set a hyperparameter of every job that is trained anew, such as `rank=32`; may be given more than once.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = settings::read_setting)]
    settings: Vec<(String, Value)>,
    /// Where a job has no validation file, train without this share of the prompts, in percent, and compare on them.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=50))]
    hold_out: u32,
    /// Ask each model this many prompts at the most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    max_prompts: usize,
    /// With --compare, ask the old models too: their provider charges for the answers. Without it, what that would
    /// cost is only told.
    #[arg(long, requires = "compare")]
    ask_old: bool,
    /// Take prices, their currency and the price of the machine from this file, as the server does.
    #[arg(long, env = "ATTUNE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Reckon with this many requests per month to each model [default: as many as the stored chats tell].
    #[arg(long, value_name = "N", value_parser = amount)]
    requests_per_month: Option<f64>,
    /// Reckon with this price for an hour of the machine [default: `price_per_hour` of the configuration].
    #[arg(long, value_name = "MONEY", value_parser = amount)]
    price_per_hour: Option<f64>,
    /// Reckon with a machine that generates this many tokens per second; without it one serves everything.
    #[arg(long, value_name = "R", value_parser = amount)]
    tokens_per_second: Option<f64>,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "use a whole number of at least 1".into())
}

fn amount(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "use a number above 0".into())
}

/// Returns the jobs that made a model, oldest first.
fn specialists(folder: &Folder) -> Result<Vec<OldJob>> {
    Ok(folder.jobs()?.into_iter().filter(OldJob::is_specialist).collect())
}

/// Returns the method of an old job; `None` for one that this server does not train.
fn method_of(job: &OldJob) -> Option<Method> {
    match job.method.as_str() {
        "supervised" => Some(Method::Supervised),
        "dpo" => Some(Method::Dpo),
        _ => None,
    }
}

/// Returns the path of something that belongs to a job: JSON, or lines of it.
fn place(folder: &Folder, job: &OldJob, part: &str, extension: &str) -> PathBuf {
    folder.place(SPECIALISTS, &job.id, part).with_extension(extension)
}
