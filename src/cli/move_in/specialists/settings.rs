//! The settings of an old job as the local server takes them. Called by [`super::retrain`]; the report shows the rows.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::cli::move_in::folder::OldJob;

/// The largest numbers that the local server takes.
const MAX_EPOCHS: u64 = 50;
const MAX_BATCH: u64 = 256;
const MAX_BETA: f64 = 2.0;
const MAX_SEED: u64 = 2_147_483_647;
/// Steps that an epoch has at least, as far as its examples allow.
const STEPS: u64 = 4;

/// A setting before and now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Setting {
    pub name: String,
    pub before: String,
    pub now: String,
    pub why: String,
}

/// All settings of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    pub hyperparameters: Map<String, Value>,
    pub seed: Option<u64>,
    pub rows: Vec<Setting>,
}

impl Settings {
    /// Translates the settings of `job`, which trains on `lines` examples here; `wanted` replaces some.
    pub(super) fn of(job: &OldJob, lines: usize, wanted: &[(String, Value)]) -> Self {
        let mut settings =
            Self { hyperparameters: Map::new(), seed: job.seed.filter(|seed| *seed <= MAX_SEED), rows: Vec::new() };
        for (name, value) in &job.hyperparameters {
            let (now, why) = translated(name, value, lines as u64);
            settings.row(name, &shown(value), now.as_ref().map_or_else(|| "auto".into(), shown).as_str(), why);
            settings.hyperparameters.extend(now.map(|now| (name.clone(), now)));
        }
        let (before, now) = (job.seed.map_or_else(|| "not known".into(), |seed| seed.to_string()), settings.seed);
        let now = now.map_or_else(|| "chosen".into(), |seed| seed.to_string());
        let why = if job.seed.is_some() && settings.seed.is_none() { "out of range here" } else { "" };
        settings.row("seed", &before, &now, why);
        for (name, value) in wanted {
            let before = job.hyperparameters.get(name).map_or_else(|| "-".into(), shown);
            settings.rows.retain(|row| row.name != *name);
            settings.row(name, &before, &shown(value), "asked for with --set");
            settings.hyperparameters.insert(name.clone(), value.clone());
        }
        settings
    }

    fn row(&mut self, name: &str, before: &str, now: &str, why: &str) {
        let (name, before, now, why) = (name.into(), before.into(), now.into(), why.into());
        self.rows.push(Setting { name, before, now, why });
    }
}

/// Returns a setting as it is here, and why it differs; `None` for the server's own choice.
fn translated(name: &str, value: &Value, lines: u64) -> (Option<Value>, &'static str) {
    // Numbers may have come as `3.0`.
    let number = value.as_f64().filter(|number| *number > 0.0);
    let whole = number.map(|number| number.round() as u64).filter(|number| *number > 0);
    match name {
        "n_epochs" => match whole {
            Some(epochs) if epochs > MAX_EPOCHS => (Some(json!(MAX_EPOCHS)), "the most here"),
            epochs => (epochs.map(|epochs| json!(epochs)), ""),
        },
        "batch_size" => match whole {
            Some(batch) => {
                let most = (lines / STEPS).clamp(1, MAX_BATCH);
                let why = if batch > most { "no more than a quarter of the examples, nor 256" } else { "" };
                (Some(json!(batch.min(most))), why)
            }
            None => (None, ""),
        },
        "beta" => match number {
            Some(beta) if beta > MAX_BETA => (Some(json!(MAX_BETA)), "the most here"),
            beta => (beta.map(|beta| json!(beta)), ""),
        },
        "learning_rate_multiplier" => (None, "a factor on a rate that was not published: it means nothing here"),
        _ => (None, "not a setting of this server"),
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Reads `NAME=VALUE` of the flag `--set`; a value that is not JSON, such as `auto`, is text.
pub(super) fn read_setting(text: &str) -> Result<(String, Value), String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = parts.ok_or("use NAME=VALUE, for example rank=32")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(hyperparameters: &Value, lines: usize, wanted: &[&str]) -> Settings {
        let job = json!({"id": "ftjob-1", "seed": 7, "method": {"type": "supervised",
            "supervised": {"hyperparameters": hyperparameters}}});
        let job = OldJob::read(job, Vec::new()).expect("a job");
        let wanted: Vec<_> = wanted.iter().map(|text| read_setting(text).expect("a setting")).collect();
        Settings::of(&job, lines, &wanted)
    }

    #[test]
    fn epochs_are_kept_the_batch_nearly_and_the_rate_is_not() {
        let old = json!({"n_epochs": 3, "batch_size": 64, "learning_rate_multiplier": 1.8});
        let now = settings(&old, 1000, &[]);
        assert_eq!(Value::from(now.hyperparameters), json!({"n_epochs": 3, "batch_size": 64}));
        assert_eq!(now.seed, Some(7));
        let small = settings(&old, 100, &[]);
        assert_eq!(small.hyperparameters["batch_size"], 25);
        assert!(small.rows.iter().any(|row| row.name == "batch_size" && row.why.contains("a quarter")));
        let rate = small.rows.iter().find(|row| row.name == "learning_rate_multiplier").expect("a row");
        assert_eq!((rate.before.as_str(), rate.now.as_str()), ("1.8", "auto"));
        let auto = settings(&json!({"n_epochs": "auto", "batch_size": "auto"}), 100, &[]);
        assert!(auto.hyperparameters.is_empty());
        assert_eq!(settings(&json!({"n_epochs": 80.0}), 100, &[]).hyperparameters["n_epochs"], 50);
        let wanted = settings(&old, 100, &["n_epochs=1", "learning_rate=2e-3"]);
        assert_eq!(wanted.hyperparameters["n_epochs"], 1);
        assert_eq!(wanted.hyperparameters["learning_rate"], 2e-3);
        assert_eq!(wanted.rows.iter().filter(|row| row.name == "n_epochs").count(), 1);
    }
}
