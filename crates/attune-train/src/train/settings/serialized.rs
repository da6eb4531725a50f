//! The bytes of settings that a checkpoint is recognised by.

use serde::Serialize;

use super::TrainSettings;
use crate::train::optimizer::AdamSettings;
use crate::train::packing::BATCH_ROWS;
use crate::train::schedule::Schedule;
use crate::train::training_method::TrainingMethod;
use attune_model::lora::Site;

/// The form of [`TrainSettings`] that is hashed. Another name or order of its fields would refuse all checkpoints that
/// exist.
#[derive(Serialize)]
pub(super) struct SerializedSettings {
    rank: usize,
    alpha: f64,
    sites: Vec<Site>,
    epochs: usize,
    batch_size: usize,
    learning_rate: f64,
    seed: u64,
    warmup: Option<f64>,
    schedule: Schedule,
    adam: AdamSettings,
    clip: f64,
    dropout: f64,
    patience: usize,
    keep_best: bool,
    beta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    #[serde(skip_serializing_if = "is_usual")]
    batch_rows: usize,
}

impl From<TrainSettings> for SerializedSettings {
    fn from(settings: TrainSettings) -> Self {
        let (beta, scale) = match settings.method {
            TrainingMethod::Answers => (None, None),
            TrainingMethod::Preferences { beta } => (Some(beta), None),
            TrainingMethod::TextPairs { scale } => (None, Some(scale)),
        };
        Self {
            rank: settings.rank,
            alpha: settings.alpha,
            sites: settings.sites,
            epochs: settings.epochs,
            batch_size: settings.batch_size,
            learning_rate: settings.learning_rate,
            seed: settings.seed,
            warmup: settings.warmup,
            schedule: settings.schedule,
            adam: settings.adam,
            clip: settings.clip,
            dropout: settings.dropout,
            patience: settings.patience,
            keep_best: settings.keep_best,
            beta,
            scale,
            batch_rows: settings.batch_rows,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_usual(batch_rows: &usize) -> bool {
    *batch_rows == BATCH_ROWS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::hyperparameters::Hyperparameters;

    #[test]
    fn the_serialized_form_that_checkpoints_are_recognised_by_stays_as_it_is() {
        let asked = Hyperparameters { target_modules: Some(vec![Site::Query]), ..Hyperparameters::default() };
        let of = |beta, scale, batch_rows| {
            let settings = TrainSettings::new(&Hyperparameters { beta, scale, ..asked.clone() }, 7);
            serde_json::to_string(&TrainSettings { batch_rows, ..settings }).unwrap()
        };
        let common = r#"{"rank":16,"alpha":32.0,"sites":["q_proj"],"epochs":1,"batch_size":1,"learning_rate":0.0002,"seed":7,"warmup":null,"schedule":"linear","adam":{"beta1":0.9,"beta2":0.999,"epsilon":1e-8,"weight_decay":0.0},"clip":1.0,"dropout":0.0,"patience":0,"keep_best":false,"#;
        assert_eq!(of(None, None, BATCH_ROWS), format!(r#"{common}"beta":null}}"#));
        assert_eq!(of(Some(0.1), None, BATCH_ROWS), format!(r#"{common}"beta":0.1}}"#));
        assert_eq!(of(None, Some(20.0), BATCH_ROWS), format!(r#"{common}"beta":null,"scale":20.0}}"#));
        assert_eq!(of(None, None, 4096), format!(r#"{common}"beta":null,"batch_rows":4096}}"#));
    }
}
