//! The result file of a job as CSV, in the form of the resource that the job was created through. Called by the worker when
//! training is complete.
//!
//! Cells are numbers, or empty where nothing was measured. Losses count every target token by its weight: the completion or
//! answer with its end token, and the prompt's tokens where `prompt_loss_weight` is above 0. Accuracies count the tokens of
//! full weight only.

use crate::jobs::JobApi;
use crate::train::trainer::StepRecord;
use crate::{Error, Result};

/// The file's name.
pub const fn file_name(api: JobApi) -> &'static str {
    match api {
        JobApi::FineTunes => "compiled_results.csv",
        JobApi::FineTuningJobs => "step_metrics.csv",
    }
}

/// The file's content.
pub fn csv(api: JobApi, history: &[StepRecord], validated: bool) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |error: csv::Error| Error::Internal(format!("write the result file: {error}"));
    writer.write_record(header(api, validated)).map_err(failed)?;
    for (index, record) in history.iter().enumerate() {
        writer.write_record(row(api, index + 1, record, validated)).map_err(failed)?;
    }
    writer.into_inner().map_err(|error| Error::Internal(format!("write the result file: {error}")))
}

fn header(api: JobApi, validated: bool) -> Vec<&'static str> {
    match api {
        JobApi::FineTunes => {
            let mut columns = vec![
                "step",
                "elapsed_tokens",
                "elapsed_examples",
                "training_loss",
                "training_sequence_accuracy",
                "training_token_accuracy",
            ];
            if validated {
                columns.extend(["validation_loss", "validation_sequence_accuracy", "validation_token_accuracy"]);
            }
            columns
        }
        JobApi::FineTuningJobs => {
            vec!["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
        }
    }
}

fn row(api: JobApi, step: usize, record: &StepRecord, validated: bool) -> Vec<String> {
    let (loss, accuracy) = (number(record.loss), number(record.token_accuracy));
    let validation = record.validation.map(|validation| (number(validation.loss), number(validation.token_accuracy)));
    let (valid_loss, valid_accuracy) = validation.unwrap_or_default();
    match api {
        JobApi::FineTunes => {
            let (tokens, examples) = (record.elapsed_tokens.to_string(), record.elapsed_examples.to_string());
            let mut cells = vec![step.to_string(), tokens, examples, loss, String::new(), accuracy];
            if validated {
                cells.extend([valid_loss, String::new(), valid_accuracy]);
            }
            cells
        }
        JobApi::FineTuningJobs => vec![step.to_string(), loss, accuracy, valid_loss, valid_accuracy],
    }
}

fn number(value: f64) -> String {
    format!("{value:.5}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Evaluation;

    fn history() -> Vec<StepRecord> {
        let record = StepRecord {
            elapsed_tokens: 40,
            elapsed_examples: 4,
            loss: 1.523_47,
            token_accuracy: 0.0,
            validation: None,
        };
        let validation = Some(Evaluation { loss: 0.5, token_accuracy: 0.75 });
        vec![record, StepRecord { elapsed_tokens: 80, elapsed_examples: 8, validation, ..record }]
    }

    fn text(api: JobApi, validated: bool) -> String {
        String::from_utf8(csv(api, &history(), validated).unwrap()).unwrap()
    }

    #[test]
    fn the_current_format_leaves_cells_blank_where_nothing_was_measured() {
        assert_eq!(
            text(JobApi::FineTuningJobs, true),
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n\
             1,1.52347,0.00000,,\n\
             2,1.52347,0.00000,0.50000,0.75000\n"
        );
    }

    #[test]
    fn the_legacy_format_has_validation_columns_only_with_a_validation_file() {
        assert_eq!(
            text(JobApi::FineTunes, false),
            "step,elapsed_tokens,elapsed_examples,training_loss,training_sequence_accuracy,training_token_accuracy\n\
             1,40,4,1.52347,,0.00000\n\
             2,80,8,1.52347,,0.00000\n"
        );
        assert!(text(JobApi::FineTunes, true).ends_with("2,80,8,1.52347,,0.00000,0.50000,,0.75000\n"));
    }
}
