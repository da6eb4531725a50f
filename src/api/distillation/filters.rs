//! Which answers are fit to train on: by how they ended and what they say, and of a prompt's answers which are kept. No
//! models are asked here.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use super::sources::{Prompt, normalised};
use crate::datasets::parse::example;
use crate::jobs::collections::{Keep, PASSED, Place, TeacherAnswer};

/// Why an answer is not kept.
pub(super) const UNANSWERED: &str = "unanswered";
pub(super) const CUT: &str = "cut";
pub(super) const EMPTY: &str = "empty";
pub(super) const REFUSAL: &str = "refusal";
pub(super) const LOW_SCORE: &str = "low_score";
pub(super) const GRADER_FAILED: &str = "grader_failed";
const UNFIT: &str = "unfit";
const DUPLICATE: &str = "duplicate";
const NOT_BEST: &str = "not_best";
const NOT_ASKED: &str = "not_asked";
const NOT_JUDGED: &str = "not_judged";

/// Beginnings of refusals, in normalised form.
const REFUSALS: [&str; 16] = [
    "i'm sorry, but i can",
    "i am sorry, but i can",
    "i'm sorry, i can",
    "sorry, but i can",
    "sorry, i can",
    "i can't help with",
    "i can't assist",
    "i can't provide",
    "i cannot help with",
    "i cannot assist",
    "i cannot provide",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "as an ai language model",
];

/// Returns why an answer cannot be trained on, if that shows in how it ended or how it begins.
pub(super) fn flaw(text: &str, finish_reason: &str, refuses: bool) -> Option<&'static str> {
    let normal = normalised(text);
    match finish_reason {
        "length" => Some(CUT),
        "content_filter" => Some(REFUSAL),
        _ if refuses || REFUSALS.iter().any(|beginning| normal.starts_with(beginning)) => Some(REFUSAL),
        _ if normal.is_empty() => Some(EMPTY),
        _ => None,
    }
}

/// The lines that are kept, and how many answers are not, by the reason.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub lines: Vec<String>,
    pub left_out: BTreeMap<String, usize>,
}

/// Selects what is trained on, in the order of the prompts: whatever the order in which the answers came.
pub(super) fn select(
    prompts: &[Prompt],
    answers: &HashMap<Place, TeacherAnswer>,
    samples: u32,
    keep: Keep,
) -> Selection {
    let mut selection = Selection::default();
    for prompt in prompts {
        let mut passed: Vec<(f64, String)> = Vec::new();
        let mut seen = HashSet::new();
        for sample in 0..samples as i32 {
            let answer = answers.get(&(prompt.digest.clone(), sample));
            let reason = match answer.map(|answer| (answer, answer.verdict.as_deref())) {
                None => Some(NOT_ASKED),
                Some((answer, None)) => Some(if answer.answer.is_some() { NOT_JUDGED } else { NOT_ASKED }),
                Some((answer, Some(PASSED))) => {
                    let text = answer.answer.as_deref().unwrap_or_default();
                    let line = line(&prompt.messages, text);
                    if !seen.insert(normalised(text)) {
                        Some(DUPLICATE)
                    } else if example(&line).is_err() {
                        // As strict as training is: what the file holds must be fit for it.
                        Some(UNFIT)
                    } else {
                        passed.push((answer.score.unwrap_or(0.0), line));
                        None
                    }
                }
                Some((_, Some(verdict))) => Some(verdict),
            };
            if let Some(reason) = reason {
                *selection.left_out.entry(reason.to_owned()).or_default() += 1;
            }
        }
        if keep == Keep::Best && passed.len() > 1 {
            *selection.left_out.entry(NOT_BEST.into()).or_default() += passed.len() - 1;
            // The first of those with the highest score.
            let best = passed.into_iter().reduce(|best, next| if next.0 > best.0 { next } else { best });
            selection.lines.extend(best.map(|(_, line)| line));
        } else {
            selection.lines.extend(passed.into_iter().map(|(_, line)| line));
        }
    }
    selection
}

/// Returns a line of a training file.
fn line(messages: &[Value], answer: &str) -> String {
    let answer = json!({"role": "assistant", "content": answer});
    json!({"messages": messages.iter().cloned().chain([answer]).collect::<Vec<_>>()}).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::sources::digest;
    use super::*;

    fn prompt(text: &str) -> Prompt {
        let messages = vec![json!({"role": "user", "content": text})];
        Prompt { item: json!({}), digest: digest(&messages), messages, given: Vec::new() }
    }

    fn answered(prompt: &Prompt, sample: i32, text: &str, verdict: Option<&str>, score: f64) -> (Place, TeacherAnswer) {
        let answer = TeacherAnswer {
            prompt: prompt.digest.clone(),
            sample,
            answer: Some(text.into()),
            verdict: verdict.map(str::to_owned),
            score: Some(score),
            ..TeacherAnswer::default()
        };
        (answer.place(), answer)
    }

    #[test]
    fn answers_that_are_cut_empty_or_refuse_are_flawed() {
        assert_eq!(flaw("whole", "stop", false), None);
        assert_eq!(flaw("who", "length", false), Some(CUT));
        assert_eq!(flaw(" \n", "stop", false), Some(EMPTY));
        assert_eq!(flaw("", "stop", true), Some(REFUSAL));
        assert_eq!(flaw("anything", "content_filter", false), Some(REFUSAL));
        assert_eq!(flaw("I\u{2019}m  sorry, but I can't do that.", "stop", false), Some(REFUSAL));
        assert_eq!(flaw("I can't wait to see you!", "stop", false), None);
    }

    #[test]
    fn the_best_answer_is_kept_and_every_other_is_counted_by_its_reason() {
        let prompts = [prompt("a"), prompt("b"), prompt("c")];
        let answers = HashMap::from([
            answered(&prompts[0], 0, "one", Some(PASSED), 1.0),
            answered(&prompts[0], 1, "two", Some(PASSED), 2.0),
            answered(&prompts[0], 2, " ONE ", Some(PASSED), 3.0),
            answered(&prompts[1], 0, "cut o", Some(CUT), 0.0),
            answered(&prompts[1], 1, "yes", None, 0.0),
            answered(&prompts[1], 2, "yes", Some(PASSED), 1.0),
        ]);
        let told = |selection: &Selection| -> Vec<Value> {
            let read = |line: &String| serde_json::from_str::<Value>(line).expect("JSON");
            selection.lines.iter().map(|line| read(line)["messages"][1]["content"].clone()).collect()
        };
        let best = select(&prompts, &answers, 3, Keep::Best);
        assert_eq!(told(&best), [json!("two"), json!("yes")]);
        let counted = |pairs: &[(&str, usize)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        let left: BTreeMap<String, usize> =
            counted(&[(CUT, 1), (DUPLICATE, 1), (NOT_ASKED, 3), (NOT_BEST, 1), (NOT_JUDGED, 1)]);
        assert_eq!(best.left_out, left);
        assert_eq!(told(&select(&prompts, &answers, 3, Keep::All)), [json!("one"), json!("two"), json!("yes")]);
    }
}
