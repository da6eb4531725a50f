//! How an answer is judged: by the kind of answers that a job's file has. Used by [`super::figures`].

use serde_json::{Value, json};

use super::answers::in_one_form;
use crate::graders::metrics::{MAX_FUZZY_CHARACTERS, Metric};
use crate::graders::spec::Operation;

/// Longest text that counts as a label.
const LABEL_CHARACTERS: usize = 64;
/// The least likeness with which a text passes, and how many times as long as the other it may be: the metric finds a
/// part like the whole.
const LIKENESS: f64 = 0.8;
const LONGER: f64 = 1.5;

/// How answers are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// All answers are short: the same text.
    Same,
    /// All answers are JSON: the same value, whatever the order of the keys.
    SameJson,
    /// Any text: at least [`LIKENESS`] by the metric.
    Alike(Metric),
}

impl Rule {
    /// Chooses the rule for these answers.
    pub(super) fn of<'a>(expected: impl Iterator<Item = &'a str> + Clone) -> Self {
        let json =
            |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object() || value.is_array());
        let is_label = |text: &str| text.chars().count() <= LABEL_CHARACTERS && !text.contains('\n');
        if expected.clone().all(json) {
            Self::SameJson
        } else if expected.clone().all(is_label) {
            Self::Same
        } else if expected.map(|text| text.chars().count()).max().unwrap_or(0) <= MAX_FUZZY_CHARACTERS / 2 {
            Self::Alike(Metric::FuzzyMatch)
        } else {
            Self::Alike(Metric::Gleu)
        }
    }

    /// Returns true if `answer` passes beside `reference`. An answer that is too long to be compared does not.
    pub(super) fn passes(self, answer: &str, reference: &str) -> bool {
        let (answer, reference) = (answer.trim(), reference.trim());
        match self {
            Self::Same => Operation::Equal.holds(answer, reference),
            Self::SameJson => Operation::Equal.holds(&normal(answer), &normal(reference)),
            Self::Alike(metric) => {
                let [one, other] = [answer, reference].map(|text| text.chars().count() as f64);
                let is_as_long = one <= LONGER * other && other <= LONGER * one;
                let likeness = metric.compare(answer, reference).ok().flatten();
                is_as_long && likeness.is_some_and(|likeness| likeness >= LIKENESS)
            }
        }
    }

    /// Says in words what passes.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Same => "the same text (`string_check`, `eq`, without blanks around it)".into(),
            Self::SameJson => "the same JSON (`string_check`, `eq`, with the keys in one order)".into(),
            Self::Alike(metric) => format!(
                "alike by at least {LIKENESS} (`text_similarity`, `{}`) and at most {LONGER} times as long or as short",
                name(metric)
            ),
        }
    }

    /// Returns the grader as an eval would have it.
    pub(super) fn grader(self) -> Value {
        let (input, reference) = ("{{sample.output_text}}", "{{item.expected}}");
        match self {
            Self::Same | Self::SameJson => {
                json!({"type": "string_check", "name": "same", "operation": "eq", "input": input,
                    "reference": reference})
            }
            Self::Alike(metric) => {
                json!({"type": "text_similarity", "name": "alike", "evaluation_metric": name(metric),
                "pass_threshold": LIKENESS, "input": input, "reference": reference})
            }
        }
    }
}

fn name(metric: Metric) -> &'static str {
    if metric == Metric::Gleu { "gleu" } else { "fuzzy_match" }
}

/// Writes JSON in one form; other text stays as it is.
fn normal(text: &str) -> String {
    serde_json::from_str::<Value>(text).map_or_else(|_| text.to_owned(), |value| in_one_form(value).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graders::spec::{Grader, Purpose};

    #[test]
    fn the_rule_follows_the_answers() {
        let rule = |expected: &[&str]| Rule::of(expected.iter().copied());
        assert_eq!(rule(&["yes", "no"]), Rule::Same);
        assert_eq!(rule(&["{\"a\":1}", "[]"]), Rule::SameJson);
        assert_eq!(rule(&["{\"a\":1}", "no"]), Rule::Same);
        let long = "a sentence ".repeat(20);
        assert_eq!(rule(&["yes", &long]), Rule::Alike(Metric::FuzzyMatch));
        assert_eq!(rule(&[&"long ".repeat(2000)]), Rule::Alike(Metric::Gleu));
    }

    #[test]
    fn an_answer_passes_by_its_rule_and_the_grader_can_be_run() {
        for (rule, answer, reference, passes) in [
            (Rule::Same, " yes\n", "yes", true),
            (Rule::Same, "Yes", "yes", false),
            (Rule::SameJson, r#"{"b": 2, "a": 1}"#, r#"{"a":1,"b":2}"#, true),
            (Rule::SameJson, r#"{"a":1}"#, r#"{"a":"1"}"#, false),
            (Rule::SameJson, "no JSON", r#"{"a":1}"#, false),
            (Rule::Alike(Metric::FuzzyMatch), "the old town by the river", "the old town at the river", true),
            (Rule::Alike(Metric::FuzzyMatch), "the old town", "the old town at the river", false),
            (Rule::Alike(Metric::FuzzyMatch), "something else", "the old town at the river", false),
            (Rule::Alike(Metric::FuzzyMatch), "", "the old town", false),
        ] {
            assert_eq!(rule.passes(answer, reference), passes, "{answer}");
            Grader::parse(&rule.grader(), Purpose::Criterion).expect("a grader");
        }
    }
}
