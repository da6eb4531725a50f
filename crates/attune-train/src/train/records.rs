//! Reports of training: one of each step for the worker, and the record of the step that is kept for the result file,
//! for a checkpoint, and for the decision to end early.

use crate::datasets::TokenizedExample;
use crate::train::batch::LossReport;
use crate::train::training_method::TrainingMethod;

/// Report of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps so far, this one included.
    pub step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// Weighted mean cross entropy of the step's targets before its update, in nats.
    pub loss: f64,
    /// Share of the step's targets that had the highest logit.
    pub token_accuracy: f64,
    /// Share of the step's examples whose targets all had the highest logit.
    pub sequence_accuracy: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step's examples.
    pub tokens: usize,
    /// Epoch that ended with this step, counted from 1; `None` if none did.
    pub completed_epoch: Option<usize>,
    /// Rewards of the step's pairs before its update; `None` unless training is on preferences.
    pub rewards: Option<Rewards>,
    /// Method of training. With pairs of texts, both accuracies are the share of the anchors whose own positive was the
    /// nearest of the batch, and the loss is the mean over the anchors.
    pub method: TrainingMethod,
}

/// Rewards of an adapter on pairs of answers. The reward of an answer is β times the increase of its log probability
/// over the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rewards {
    /// Mean of the chosen answers' rewards less the rejected ones'.
    pub margin: f64,
    /// Share of the pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
}

/// Count of the held-out answers that the model gives exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RightAnswers {
    /// Right answers.
    pub right: usize,
    /// Answers that were counted.
    pub of: usize,
    /// Right answers of each class; empty if the answers are many.
    pub by_class: Vec<usize>,
}

/// Figures of the model that training begins with, on the held-out examples whose answers are counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Beginning {
    /// Right answers.
    pub answers: RightAnswers,
    /// Other metrics.
    pub evaluation: Evaluation,
}

/// Metrics of held-out examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Weighted mean cross entropy of all targets, in nats.
    pub loss: f64,
    /// Share of the targets that had the highest logit.
    pub token_accuracy: f64,
    /// Share of the examples whose targets all had the highest logit.
    pub sequence_accuracy: f64,
    /// Rewards of the pairs; `None` unless training is on preferences.
    pub rewards: Option<Rewards>,
}

impl Evaluation {
    /// Computes the means of a report's sums; `None` if it has no targets.
    pub(super) fn of(report: &LossReport) -> Option<Self> {
        let rewards = (report.pairs > 0).then(|| Rewards {
            margin: report.margin_sum / report.pairs as f64,
            accuracy: report.preferred as f64 / report.pairs as f64,
        });
        (report.weight_sum > 0.0).then(|| Self {
            loss: report.loss_sum / report.weight_sum,
            token_accuracy: report.correct as f64 / report.targets.max(1) as f64,
            sequence_accuracy: report.exact as f64 / report.sequences.max(1) as f64,
            rewards,
        })
    }
}

/// A prompt of the validation file and its answer there, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Tokens before the first token of an answer.
    pub prompt: Vec<u32>,
    /// Tokens of the first answer.
    pub answer: Vec<u32>,
}

impl Question {
    /// Finds the first question of an example; `None` if it has no answer.
    pub fn of(example: &TokenizedExample) -> Option<Self> {
        let is_answer = |weight: &f32| *weight >= 1.0;
        let begin = example.weights.iter().position(is_answer)?;
        let length = example.weights[begin..].iter().take_while(|weight| is_answer(weight)).count();
        let (prompt, rest) = example.tokens.split_at(begin);
        Some(Self { prompt: prompt.to_vec(), answer: rest[..length].to_vec() })
    }
}

/// Metrics of the validation file after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validation {
    /// Metrics of the file's first examples, always the same ones, so that evaluations can be compared with each other.
    pub sample: Evaluation,
    /// Metrics of all examples, at the end of an epoch.
    pub full: Option<Evaluation>,
}

/// One line of the result file, kept for the whole run and in its checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// Tokens read so far, repeats counted.
    pub elapsed_tokens: u64,
    /// Examples read so far, repeats counted.
    pub elapsed_examples: u64,
    /// As in [`StepReport`].
    pub loss: f64,
    /// As in [`StepReport`].
    pub token_accuracy: f64,
    /// As in [`StepReport`].
    pub sequence_accuracy: f64,
    /// As in [`StepReport`].
    pub rewards: Option<Rewards>,
    /// Metrics of the validation file; `None` if it was not measured after this step.
    pub validation: Option<Validation>,
    /// Classification metrics, one for each of the task's columns, NaN if not defined; empty if not measured after this
    /// step.
    pub classification: Vec<f64>,
    /// Right answers of the validation file; `None` if they were not counted after this step.
    pub right_answers: Option<RightAnswers>,
    /// Figures of how well vectors or scores put the validation file in order, NaN if not defined; empty if not measured
    /// after this step.
    pub quality: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_all_before_the_first_answer() {
        let example = |weights: &[f32]| TokenizedExample {
            tokens: (0..weights.len() as u32).collect(),
            weights: weights.to_vec(),
        };
        let question = Question::of(&example(&[0.0, 0.01, 1.0, 1.0, 0.0, 1.0])).unwrap();
        assert_eq!((question.prompt, question.answer), (vec![0, 1], vec![2, 3]));
        assert_eq!(Question::of(&example(&[0.0, 0.5])), None);
    }
}
