//! Writes the result file of a job as CSV, in the form of the resource that the job was created through. Called by
//! [`super::training`] when training is complete.
//!
//! Cells are numbers, or empty if nothing was measured. Losses count every target token by its weight: the
//! completion or answer with its end token, and the prompt's tokens if `prompt_loss_weight` is above 0. Accuracies
//! count the tokens of full weight only; a sequence is right if all of its tokens of full weight are. Of pairs of
//! texts, losses are means over the anchors, and accuracies shares of the anchors to which their own positive was the
//! nearest; the result file of such a job says at the end of each epoch how well the whole file is put in order. The older
//! resource's validation columns are of the whole file; the current one has those of the sample and,
//! in `full_…`, of the whole file, with two more if answers are counted: how many were right, of how many.

use crate::jobs::JobApi;
use crate::jobs::{Error, Result};
use crate::train::methods::Labels;
use crate::train::records::{Evaluation, Rewards, RightAnswers, StepRecord};

/// Returns the file's name.
pub(super) const fn file_name(api: JobApi) -> &'static str {
    match api {
        JobApi::FineTunes => "compiled_results.csv",
        JobApi::FineTuningJobs => "step_metrics.csv",
    }
}

/// Writes the file's content. `labels` are those of the training method; `classification` names the classification
/// metrics, if the job has some.
pub(super) fn csv(
    api: JobApi,
    history: &[StepRecord],
    validated: bool,
    labels: Labels,
    classification: &[String],
) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |error: csv::Error| Error::Internal(format!("write the result file: {error}"));
    let mut columns = header(api, validated, labels);
    let counted = api == JobApi::FineTuningJobs && history.iter().any(|record| record.right_answers.is_some());
    if counted {
        columns.extend(["valid_right_answers", "valid_counted_answers"]);
    }
    let ordered = api == JobApi::FineTuningJobs && history.iter().any(|record| !record.quality.is_empty());
    let quality: Vec<_> = labels.quality.iter().filter(|_| ordered).collect();
    let quality_names: Vec<_> = quality.iter().map(|figure| format!("valid_{}", figure.name)).collect();
    columns.extend(quality_names.iter().map(String::as_str));
    if labels.rewards {
        columns.extend([
            "train_reward_margin",
            "train_reward_accuracy",
            "valid_reward_margin",
            "valid_reward_accuracy",
        ]);
    }
    writer.write_record(columns.into_iter().chain(classification.iter().map(String::as_str))).map_err(failed)?;
    for (index, record) in history.iter().enumerate() {
        let mut cells = row(api, index + 1, record, validated);
        if counted {
            let answers = record.right_answers.as_ref();
            let count =
                |count: fn(&RightAnswers) -> usize| answers.map_or_else(String::new, |of| count(of).to_string());
            cells.extend([count(|answers| answers.right), count(|answers| answers.of)]);
        }
        let mut figures = record.quality.iter();
        cells.extend(quality.iter().map(|_| figures.next().copied().map_or_else(String::new, number)));
        if labels.rewards {
            for rewards in [record.rewards, record.validation.and_then(|validation| validation.sample.rewards)] {
                let figure = |figure: fn(Rewards) -> f64| rewards.map(figure).map_or_else(String::new, number);
                cells.extend([figure(|rewards| rewards.margin), figure(|rewards| rewards.accuracy)]);
            }
        }
        // These are measured at the end of an epoch only.
        let mut figures = record.classification.iter();
        cells.extend(classification.iter().map(|_| figures.next().copied().map_or_else(String::new, number)));
        writer.write_record(cells).map_err(failed)?;
    }
    writer.into_inner().map_err(|error| Error::Internal(format!("write the result file: {error}")))
}

fn header(api: JobApi, validated: bool, labels: Labels) -> Vec<&'static str> {
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
            let (sample, full) = if labels.of_texts {
                ("valid_accuracy", "full_valid_accuracy")
            } else {
                ("valid_mean_token_accuracy", "full_valid_mean_token_accuracy")
            };
            let mut columns = vec!["step", "train_loss", "train_accuracy", "valid_loss", sample];
            if validated {
                columns.extend(["full_valid_loss", full]);
            }
            columns
        }
    }
}

fn row(api: JobApi, step: usize, record: &StepRecord, validated: bool) -> Vec<String> {
    let (loss, accuracy) = (number(record.loss), number(record.token_accuracy));
    let figures = |evaluation: Option<Evaluation>| {
        let figure = |figure: fn(&Evaluation) -> f64| evaluation.as_ref().map(figure).map_or_else(String::new, number);
        [
            figure(|figures| figures.loss),
            figure(|figures| figures.sequence_accuracy),
            figure(|figures| figures.token_accuracy),
        ]
    };
    let [sample_loss, _, sample_accuracy] = figures(record.validation.map(|validation| validation.sample));
    let [full_loss, full_sequences, full_accuracy] = figures(record.validation.and_then(|validation| validation.full));
    match api {
        JobApi::FineTunes => {
            let (tokens, examples) = (record.elapsed_tokens.to_string(), record.elapsed_examples.to_string());
            let sequences = number(record.sequence_accuracy);
            let mut cells = vec![step.to_string(), tokens, examples, loss, sequences, accuracy];
            if validated {
                cells.extend([full_loss, full_sequences, full_accuracy]);
            }
            cells
        }
        JobApi::FineTuningJobs => {
            let mut cells = vec![step.to_string(), loss, accuracy, sample_loss, sample_accuracy];
            if validated {
                cells.extend([full_loss, full_accuracy]);
            }
            cells
        }
    }
}

/// Writes a figure; empty if it is not defined.
fn number(value: f64) -> String {
    if value.is_nan() { String::new() } else { format!("{value:.5}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TrainingMethod;
    use crate::train::records::Validation;

    fn history() -> Vec<StepRecord> {
        let record = StepRecord {
            elapsed_tokens: 40,
            elapsed_examples: 4,
            loss: 1.523_47,
            token_accuracy: 0.0,
            sequence_accuracy: 0.25,
            rewards: None,
            validation: None,
            classification: Vec::new(),
            right_answers: None,
            quality: Vec::new(),
        };
        let full = Evaluation { loss: 0.5, token_accuracy: 0.75, sequence_accuracy: 0.625, rewards: None };
        let sample = Evaluation { loss: 0.25, ..full };
        let validation = Some(Validation { sample, full: Some(full) });
        let classification = vec![0.875, f64::NAN];
        vec![
            record.clone(),
            StepRecord { elapsed_tokens: 80, elapsed_examples: 8, validation, classification, ..record },
        ]
    }

    fn text(api: JobApi, validated: bool, classification: &[&str]) -> String {
        let classification: Vec<_> = classification.iter().map(|name| (*name).to_owned()).collect();
        String::from_utf8(csv(api, &history(), validated, TrainingMethod::Answers.labels(), &classification).unwrap())
            .unwrap()
    }

    #[test]
    fn the_current_format_leaves_cells_blank_where_nothing_was_measured() {
        assert_eq!(
            text(JobApi::FineTuningJobs, true, &[]),
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,full_valid_loss,\
             full_valid_mean_token_accuracy\n\
             1,1.52347,0.00000,,,,\n\
             2,1.52347,0.00000,0.25000,0.75000,0.50000,0.75000\n"
        );
    }

    #[test]
    fn the_legacy_format_has_validation_columns_only_with_a_validation_file() {
        assert_eq!(
            text(JobApi::FineTunes, false, &[]),
            "step,elapsed_tokens,elapsed_examples,training_loss,training_sequence_accuracy,training_token_accuracy\n\
             1,40,4,1.52347,0.25000,0.00000\n\
             2,80,8,1.52347,0.25000,0.00000\n"
        );
        assert!(
            text(JobApi::FineTunes, true, &[]).ends_with("2,80,8,1.52347,0.25000,0.00000,0.50000,0.62500,0.75000\n")
        );
    }

    #[test]
    fn right_answers_have_columns_where_they_are_counted() {
        let mut history = history();
        history[1].right_answers = Some(RightAnswers { right: 33, of: 40, by_class: Vec::new() });
        let labels = TrainingMethod::Answers.labels();
        let text = |api| String::from_utf8(csv(api, &history, true, labels, &[]).unwrap()).unwrap();
        let lines: Vec<_> = text(JobApi::FineTuningJobs).lines().map(str::to_owned).collect();
        assert!(lines[0].ends_with(",full_valid_mean_token_accuracy,valid_right_answers,valid_counted_answers"));
        assert!(lines[1].ends_with(",,,,,,") && lines[2].ends_with(",0.75000,33,40"), "{lines:?}");
        assert!(!text(JobApi::FineTunes).contains("right"), "the older file stays as it was");
    }

    #[test]
    fn training_on_preferences_has_its_rewards_in_columns_of_their_own() {
        let mut history = history();
        for record in &mut history {
            record.rewards = Some(Rewards { margin: 0.125, accuracy: 0.75 });
        }
        let labels = TrainingMethod::Preferences { beta: 0.1 }.labels();
        let text = String::from_utf8(csv(JobApi::FineTuningJobs, &history, true, labels, &[]).unwrap()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].ends_with(",train_reward_margin,train_reward_accuracy,valid_reward_margin,valid_reward_accuracy")
        );
        assert!(lines[1].ends_with(",0.12500,0.75000,,"), "{}", lines[1]);
    }

    #[test]
    fn the_accuracies_of_pairs_of_texts_are_not_called_those_of_tokens() {
        let labels = TrainingMethod::TextPairs { scale: 20.0 }.labels();
        let text = String::from_utf8(csv(JobApi::FineTuningJobs, &history(), true, labels, &[]).unwrap()).unwrap();
        let header = "step,train_loss,train_accuracy,valid_loss,valid_accuracy,full_valid_loss,full_valid_accuracy";
        assert_eq!(text.lines().next(), Some(header));
    }

    #[test]
    fn figures_of_order_have_columns_where_they_are_measured() {
        let mut history = history();
        history[1].quality = vec![0.75, f64::NAN];
        let labels = TrainingMethod::TextPairs { scale: 20.0 }.labels();
        let text = |api| String::from_utf8(csv(api, &history, true, labels, &[]).unwrap()).unwrap();
        let lines: Vec<_> = text(JobApi::FineTuningJobs).lines().map(str::to_owned).collect();
        assert!(lines[0].ends_with(",full_valid_accuracy,valid_recall_at_1,valid_recall_at_10"), "{lines:?}");
        assert!(lines[1].ends_with(",,,,,,") && lines[2].ends_with(",0.75000,0.75000,"), "{lines:?}");
        assert!(!text(JobApi::FineTunes).contains("recall"), "the older file stays as it was");
    }

    #[test]
    fn figures_of_classes_come_last_and_once_an_epoch() {
        let text = text(JobApi::FineTunes, true, &["classification/accuracy", "classification/auroc"]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with(",validation_token_accuracy,classification/accuracy,classification/auroc"));
        assert!(lines[1].ends_with(",0.00000,,,,,"), "{}", lines[1]);
        assert!(lines[2].ends_with(",0.75000,0.87500,"), "an area that is not defined is blank: {}", lines[2]);
    }
}
