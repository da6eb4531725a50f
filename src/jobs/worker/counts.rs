//! Words how many answers of the validation file are right: before the first step, and each time that the whole file is
//! measured. Counted by [`super::training`], written down by [`super::job_run`].

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Worker;
use super::answers::printable;
use super::quality::QualityFigures;
use crate::jobs::{Job, JobApi};
use crate::train::answer_sheet::AnswerSheet;
use crate::train::{Beginning, Evaluation, HeldOut, RightAnswers, TrainingMethod, Validation};

/// Right answers of one model, beside those of the model that training began with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AnswerCounts {
    pub now: RightAnswers,
    pub before: Option<RightAnswers>,
    /// The different answers and how often each stands in the file; empty if they are many.
    pub classes: Vec<(String, usize)>,
}

impl AnswerCounts {
    pub(super) fn new(sheet: &AnswerSheet, now: RightAnswers, before: Option<&Beginning>) -> Self {
        let classes = sheet.classes().iter().map(|class| printable(class)).zip(sheet.class_sizes()).collect();
        Self { now, before: before.map(|before| before.answers.clone()), classes }
    }

    /// Returns `33 of 40 validation answers right (before: 0)`.
    pub(super) fn in_words(&self) -> String {
        let RightAnswers { right, of, .. } = self.now;
        let before = self.before.as_ref().map_or_else(String::new, |before| format!(" (before: {})", before.right));
        format!("{right} of {of} validation answers right{before}")
    }

    /// Returns the right answers of each class, as `database 4 of 5 (before: 0)`; `None` if the answers are many.
    pub(super) fn classes_in_words(&self) -> Option<String> {
        let mut words = Vec::new();
        for (index, (class, of)) in self.classes.iter().enumerate() {
            let mut text = format!("{class:?} {} of {of}", right_of(&self.now, index));
            if let Some(before) = &self.before {
                let _ = write!(text, " (before: {})", right_of(before, index));
            }
            words.push(text);
        }
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// Adds the counts to the figures of a step.
    pub(super) fn add_to(&self, data: &mut Value) {
        data["valid_right_answers"] = self.now.right.into();
        data["valid_counted_answers"] = self.now.of.into();
        data["valid_right_answers_before"] = self.before.as_ref().map(|before| before.right).into();
    }

    /// Returns the right answers of each class for programs; `None` if the answers are many.
    pub(super) fn by_answer(&self) -> Option<Value> {
        let class = |(index, (class, of)): (usize, &(String, usize))| {
            let before = self.before.as_ref().map(|before| right_of(before, index));
            json!({"answer": class, "right": right_of(&self.now, index), "of": of, "before": before})
        };
        (!self.classes.is_empty()).then(|| self.classes.iter().enumerate().map(class).collect())
    }
}

fn right_of(answers: &RightAnswers, class: usize) -> usize {
    answers.by_class.get(class).copied().unwrap_or_default()
}

/// Figures of the whole validation file after a step.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub step: usize,
    pub method: TrainingMethod,
    pub validation: Validation,
    pub counts: Option<AnswerCounts>,
    pub quality: Option<QualityFigures>,
}

/// Figures of the model that training begins with.
#[derive(Debug)]
pub(super) struct MeasuredBefore {
    pub answers: AnswerCounts,
    /// Metrics of the examples whose answers are counted.
    pub evaluation: Evaluation,
    /// Number of these examples, and of all in the file.
    pub examples: (usize, usize),
    /// Answers left out because they are cut.
    pub cut: usize,
}

impl MeasuredBefore {
    /// Returns `None` if no answers are counted.
    pub(super) fn new(held_out: &HeldOut, before: &Beginning) -> Option<Self> {
        let sheet = held_out.answers()?;
        let answers = AnswerCounts::new(sheet, before.answers.clone(), None);
        let (evaluation, cut) = (before.evaluation, sheet.cut());
        Some(Self { answers, evaluation, examples: (sheet.examples(), held_out.len()), cut })
    }
}

impl Worker {
    /// Writes the figures of the model that training begins with, and which answers are counted.
    pub(super) async fn tell_before(&self, job: &Job, measured: &MeasuredBefore) {
        let (message, data) = before_event(measured);
        self.say(job, "info", &message, Some(data)).await;
    }

    /// Writes the figures of the whole validation file. The older resource has them in its result file alone.
    pub(super) async fn tell_measured(&self, job: &Job, measured: &Measured) {
        if job.api == JobApi::FineTuningJobs {
            let (message, data) = measured_event(measured);
            self.say(job, "info", &message, Some(data)).await;
        }
    }
}

fn before_event(measured: &MeasuredBefore) -> (String, Value) {
    let MeasuredBefore { answers, evaluation, examples: (counted, all), cut } = measured;
    let whole = counted == all;
    let mut message = format!("Before training: {}", answers.in_words());
    let what = if whole { "full validation loss" } else { "their loss" };
    let _ = write!(message, ", {what}={:.3}", evaluation.loss);
    if !whole {
        let _ = write!(message, ". Counted are the answers of the first {counted} of {all} validation examples");
    }
    if *cut > 0 {
        let _ = write!(message, ". {cut} answers that were cut at the end are left out");
    }
    let _ = answers.classes_in_words().map(|classes| write!(message, ". By answer: {classes}"));
    let mut data = json!({
        "step": 0,
        "counted_examples": counted,
        "examples": all,
        "cut_answers": cut,
        "by_answer": answers.by_answer(),
    });
    answers.add_to(&mut data);
    if whole {
        data["full_valid_loss"] = evaluation.loss.into();
        data["full_valid_mean_token_accuracy"] = evaluation.token_accuracy.into();
    }
    (message, data)
}

fn measured_event(measured: &Measured) -> (String, Value) {
    let Measured { step, method, validation, counts, quality } = measured;
    let figures = validation.full.unwrap_or(validation.sample);
    let labels = method.labels();
    let mut message = format!("full validation loss={:.3}", figures.loss);
    if labels.of_texts {
        let _ = write!(message, ", accuracy={:.2}", figures.token_accuracy);
    }
    if let Some(rewards) = figures.rewards {
        let _ = write!(message, ", reward accuracy={:.2}", rewards.accuracy);
    }
    message = match counts {
        Some(counts) => format!("{}, {message}", counts.in_words()),
        None => message.replacen('f', "F", 1),
    };
    let _ = quality.as_ref().map(|quality| write!(message, ", {}", quality.in_words()));
    let _ = write!(message, ", after step {step}");
    let mut data = json!({"step": step, "full_valid_loss": figures.loss});
    data[format!("full_valid_{}", labels.accuracy)] = figures.token_accuracy.into();
    if let Some(counts) = counts {
        counts.add_to(&mut data);
        data["by_answer"] = counts.by_answer().into();
    }
    let _ = quality.as_ref().map(|quality| quality.add_to(&mut data));
    (message, data)
}

/// Says why no answers are counted; `None` if they are.
pub(super) fn why_not_counted(held_out: &HeldOut, method: TrainingMethod) -> Option<&'static str> {
    match method {
        TrainingMethod::Preferences { .. } => {
            Some("a preference says which of two answers is better, not that a third one is wrong")
        }
        TrainingMethod::TextPairs { .. } | TrainingMethod::ScoredPairs | TrainingMethod::LabelledPairs => {
            Some("pairs of texts have none; their accuracy is measured instead")
        }
        TrainingMethod::Answers => held_out
            .answers()
            .is_none()
            .then_some("every answer of the validation file that would be counted is cut at its end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(right: usize, by_class: &[usize], before: Option<(usize, &[usize])>) -> AnswerCounts {
        let answers = |right, by_class: &[usize]| RightAnswers { right, of: 40, by_class: by_class.to_vec() };
        let classes = ["database", "mail"].into_iter().map(|class| (class.to_owned(), 20)).take(by_class.len());
        AnswerCounts {
            now: answers(right, by_class),
            before: before.map(|(right, by_class)| answers(right, by_class)),
            classes: classes.collect(),
        }
    }

    const FIGURES: Evaluation =
        Evaluation { loss: 0.2276, token_accuracy: 0.92, sequence_accuracy: 0.825, rewards: None };

    fn measured(method: TrainingMethod, counts: Option<AnswerCounts>) -> Measured {
        let validation = Validation { sample: FIGURES, full: Some(FIGURES) };
        Measured { step: 50, method, validation, counts, quality: None }
    }

    #[test]
    fn right_answers_stand_beside_those_before_training() {
        let counts = counts(33, &[20, 13], Some((0, &[0, 0])));
        let (message, data) = measured_event(&measured(TrainingMethod::Answers, Some(counts)));
        assert_eq!(message, "33 of 40 validation answers right (before: 0), full validation loss=0.228, after step 50");
        assert_eq!((&data["valid_right_answers"], &data["valid_right_answers_before"]), (&json!(33), &json!(0)));
        assert_eq!(data["by_answer"][1], json!({"answer": "mail", "right": 13, "of": 20, "before": 0}));
    }

    #[test]
    fn what_has_no_right_answers_has_its_own_figures_alone() {
        let (message, data) = measured_event(&measured(TrainingMethod::TextPairs { scale: 20.0 }, None));
        assert_eq!(message, "Full validation loss=0.228, accuracy=0.92, after step 50");
        assert!(data.get("valid_right_answers").is_none() && data["full_valid_accuracy"] == 0.92, "{data}");
    }

    #[test]
    fn before_training_is_said_what_is_counted() {
        let before = |examples, cut| {
            let answers = counts(1, &[1, 0], None);
            before_event(&MeasuredBefore { answers, evaluation: FIGURES, examples, cut })
        };
        assert_eq!(
            before((40, 40), 0).0,
            "Before training: 1 of 40 validation answers right, full validation loss=0.228. By answer: \"database\" 1 \
             of 20, \"mail\" 0 of 20"
        );
        let (message, data) = before((40, 900), 2);
        assert!(message.contains(", their loss=0.228. Counted are the answers of the first 40 of 900 "), "{message}");
        assert!(message.contains(". 2 answers that were cut at the end are left out"), "{message}");
        assert!(data.get("full_valid_loss").is_none(), "a part of the file is not the whole: {data}");
    }
}
