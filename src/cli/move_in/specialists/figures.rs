//! Counts which answers pass, how often two models agree, and where the new model is wrong. Called by
//! [`super::report`].

use super::answers::Answer;
use super::compare::Comparison;
use super::examples::Question;
use super::grading::Rule;
use super::retrain::name;
use crate::graders::statistics::{mcnemar, wilson};

/// Prompts that are shown of those that the new model is wrong about.
const WORST: usize = 8;

/// Answers that passed, of all that there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub passed: u64,
    pub of: u64,
    /// Of these, requests that the model refused: they count as not passed.
    pub refused: u64,
    /// Of these, answers that were cut at the bound of their tokens.
    pub cut: u64,
}

/// Two models on the same prompts: what one alone got right, and how probable such a difference is by chance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    pub only_first: u64,
    pub only_second: u64,
    pub p_value: f64,
}

/// A prompt that the new model is wrong about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Worst {
    pub line: usize,
    pub prompt: String,
    pub expected: String,
    pub old: Option<String>,
    pub base: String,
    pub new: String,
}

/// What the comparison of a job's models gave.
#[derive(Debug)]
pub(super) struct Figures {
    pub rule: Rule,
    /// Prompts that the new model was asked.
    pub prompts: usize,
    /// `None` for a model that was not asked, or did not answer.
    pub old: Option<Share>,
    pub base: Option<Share>,
    pub new: Option<Share>,
    /// Prompts to which the old and the new model gave the same answer by the rule.
    pub agreement: Option<Share>,
    pub base_and_new: Option<Difference>,
    pub old_and_new: Option<Difference>,
    pub worst: Vec<Worst>,
}

impl Share {
    /// Formats `0.90 (18 of 20, 95 %: 0.70 to 0.97)`.
    pub(super) fn shown(&self) -> String {
        let share = self.passed as f64 / self.of as f64;
        let (low, high) = wilson(self.passed, self.of).unwrap_or((0.0, 1.0));
        let refused = if self.refused > 0 { format!("; {} not answered", self.refused) } else { String::new() };
        let cut = if self.cut > 0 { format!("; {} cut", self.cut) } else { String::new() };
        format!("{share:.2} ({} of {}, 95 %: {low:.2} to {high:.2}{refused}{cut})", self.passed, self.of)
    }
}

impl Figures {
    /// Counts the answers of a comparison.
    pub(super) fn of(comparison: &Comparison) -> Self {
        let questions = &comparison.questions;
        let rule = Rule::of(questions.iter().map(|question| question.expected.as_str()));
        let models = [name(&comparison.job), &comparison.base, &comparison.new_model];
        let answer = |model: &str, question: &Question| comparison.answers.of(model, &question.digest).cloned();
        let rows: Vec<(&Question, [Option<Answer>; 3])> =
            questions.iter().map(|question| (question, models.map(|model| answer(model, question)))).collect();
        let share = |which: usize| {
            let mut share = Share::default();
            for (question, answers) in &rows {
                if let Some(answer) = &answers[which] {
                    share.of += 1;
                    share.passed += u64::from(right(rule, answer, &question.expected));
                    share.refused += u64::from(answer.fault.is_some());
                    share.cut += u64::from(answer.finish_reason == "length");
                }
            }
            (share.of > 0).then_some(share)
        };
        let difference = |first: usize, second: usize| {
            let both = rows.iter().filter_map(|(question, answers)| {
                let judge = |answer: &Answer| right(rule, answer, &question.expected);
                Some((judge(answers[first].as_ref()?), judge(answers[second].as_ref()?)))
            });
            let both: Vec<(bool, bool)> = both.collect();
            let count = |wanted: (bool, bool)| both.iter().filter(|pair| **pair == wanted).count() as u64;
            let (only_first, only_second) = (count((true, false)), count((false, true)));
            let p_value = mcnemar(only_first, only_second);
            (!both.is_empty()).then_some(Difference { only_first, only_second, p_value })
        };
        let mut agreement = Share::default();
        for (_, answers) in &rows {
            if let (Some(old), Some(new)) = (&answers[0], &answers[2])
                && old.fault.is_none()
            {
                agreement.of += 1;
                agreement.passed += u64::from(right(rule, new, &old.text));
            }
        }
        let shown = |answer: &Option<Answer>| answer.as_ref().map(said);
        let worst = rows.iter().filter(|(question, answers)| {
            answers[2].as_ref().is_some_and(|answer| !right(rule, answer, &question.expected))
        });
        let worst = worst.take(WORST).map(|(question, answers)| Worst {
            line: question.line,
            prompt: question.shown(),
            expected: question.expected.clone(),
            old: shown(&answers[0]),
            base: shown(&answers[1]).unwrap_or_default(),
            new: shown(&answers[2]).unwrap_or_default(),
        });
        Self {
            rule,
            prompts: rows.iter().filter(|(_, answers)| answers[2].is_some()).count(),
            old: share(0),
            base: share(1),
            new: share(2),
            agreement: (agreement.of > 0).then_some(agreement),
            base_and_new: difference(1, 2),
            old_and_new: difference(0, 2),
            worst: worst.collect(),
        }
    }
}

fn right(rule: Rule, answer: &Answer, reference: &str) -> bool {
    answer.fault.is_none() && rule.passes(&answer.text, reference)
}

/// What a model said, or why it said nothing.
fn said(answer: &Answer) -> String {
    answer.fault.as_ref().map_or_else(|| answer.text.clone(), |fault| format!("(no answer: {fault})"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::cli::move_in::folder::OldJob;
    use crate::cli::move_in::specialists::answers::Answers;

    #[test]
    fn what_passes_is_counted_for_each_model_and_between_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut answers = Answers::open(folder.path().join("a.jsonl")).expect("opened");
        // Old, base and new to four prompts whose answer is `yes`; the old one was not asked the last.
        let table = [["yes", "no", "yes"], ["yes", "yes", "yes"], ["no", "no", "no"], ["", "fault", "no"]];
        let mut questions = Vec::new();
        for (index, row) in table.iter().enumerate() {
            let digest = index.to_string();
            for (model, text) in ["old", "base", "new"].into_iter().zip(row).filter(|(_, text)| !text.is_empty()) {
                let fault = (*text == "fault").then(|| "too long".to_owned());
                let (model, prompt, text) = (model.to_owned(), digest.clone(), (*text).to_owned());
                answers.add(Answer { model, prompt, text, fault, ..Answer::default() }).expect("added");
            }
            let mut body = Map::new();
            body.insert("prompt".into(), "q".into());
            questions.push(Question { line: index + 1, digest, is_chat: false, body, expected: "yes".into() });
        }
        let job = OldJob::read(json!({"id": "ftjob-1", "fine_tuned_model": "old"}), Vec::new()).expect("a job");
        let comparison = Comparison { job, base: "base".into(), new_model: "new".into(), questions, answers };
        let figures = Figures::of(&comparison);
        let counted = |share: Option<Share>| share.map(|share| (share.passed, share.of, share.refused));
        assert_eq!(counted(figures.old), Some((2, 3, 0)));
        assert_eq!(counted(figures.base), Some((1, 4, 1)));
        assert_eq!(counted(figures.new), Some((2, 4, 0)));
        assert_eq!(counted(figures.agreement), Some((3, 3, 0)));
        let difference = figures.base_and_new.expect("both answered");
        assert_eq!((difference.only_first, difference.only_second), (0, 1));
        assert_eq!(figures.worst.iter().map(|worst| worst.line).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(figures.worst[1].base, "(no answer: too long)");
        assert_eq!(figures.old.expect("asked").shown(), "0.67 (2 of 3, 95 %: 0.21 to 0.94)");
    }
}
