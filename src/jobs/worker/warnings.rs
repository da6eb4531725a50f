//! Words warnings about the files and settings of a job for their owner: nothing that stops it, but what often means
//! that it is not what was meant. Called by [`super::report`] for events, and by [`super::estimate`].

use serde_json::{Value, json};

use super::progress::TrainingPlan;
use crate::datasets::{DatasetReport, NotedLines};
use crate::train::TrainingMethod;
use crate::train::hyperparameters::Hyperparameters;

/// Ratios of the learning rate to the automatic one beyond which it is warned of. Published sweeps for LoRA find their
/// best rate well within.
const HIGHEST_RATE: f64 = 5.0;
const LOWEST_RATE: f64 = 1.0 / 20.0;

/// Words warnings: a sentence each, and the lines or the number that it is about.
pub(super) fn warnings(plan: &TrainingPlan) -> Vec<(String, Value)> {
    let mut found = about_examples(plan);
    found.extend(about_shared(plan));
    found.extend(about_rate(&plan.resolved, plan.automatic_rate));
    found.extend(about_repeated_texts(plan));
    found
}

/// Warns of lines that are cut, left out, repeated, or contradict others.
fn about_examples(plan: &TrainingPlan) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let validation = plan.validation.as_ref().map(|report| ("validation", report));
    for (name, report) in std::iter::once(("training", &plan.training)).chain(validation) {
        let contradict = contradiction(report, plan.method);
        for (lines, what) in [
            (&report.truncated, "were cut at the end to fit the model's context"),
            (&report.dropped, plan.method.labels().left_out),
            (&report.duplicates, "repeat an earlier one"),
            (&report.contradictions, contradict.as_str()),
            (
                &report.altered,
                "have an answer that the chat template changes or leaves out in part: it is not learned as it stands",
            ),
            (&report.ends_named, "have an answer that names a token that ends answers: a served answer ends there"),
        ] {
            if lines.count > 0 {
                found.push((sentence(lines, name, what), json!({"lines": lines.first})));
            }
        }
    }
    found
}

/// Verbs of several examples, and of one.
const SINGULAR: [(&str, &str); 4] =
    [("were ", "was "), ("repeat ", "repeats "), ("contradict ", "contradicts "), ("have ", "has ")];

/// Words how many of the examples are meant, which, and what is the matter with them.
fn sentence(lines: &NotedLines, name: &str, what: &str) -> String {
    let what = match lines.count {
        1 => SINGULAR.iter().fold(what.to_owned(), |what, (many, one)| match what.strip_prefix(many) {
            Some(rest) => format!("{one}{rest}"),
            None => what,
        }),
        _ => what.to_owned(),
    };
    format!("{} of the {name} examples {what} ({lines})", lines.count)
}

fn contradiction(report: &DatasetReport, method: TrainingMethod) -> String {
    let (line, earlier) = report.first_contradiction.unwrap_or_default();
    let what = match method {
        TrainingMethod::Preferences { .. } => "the preferred answer of the one is the other answer of the other",
        TrainingMethod::ScoredPairs => "the same two texts have different scores",
        TrainingMethod::LabelledPairs => "the same two texts have different labels",
        TrainingMethod::Answers | TrainingMethod::TextPairs { .. } => "the same prompt has different answers",
    };
    format!(
        "contradict an earlier one: {what} (on line {earlier} and line {line}, for example), and the model cannot learn both"
    )
}

/// Warns of validation examples that are trained on: they no longer show what the model does with new ones.
fn about_shared(plan: &TrainingPlan) -> Option<(String, Value)> {
    let (shared, report) = (&plan.shared, plan.validation.as_ref()?);
    let all = shared.count + report.duplicates.count + report.dropped.count >= report.examples;
    let message = match shared.count {
        0 => return None,
        _ if all => {
            "Every example of the validation file is in the training file, too: the validation figures show what the \
                     model knows by heart, not what it does with new examples"
                .into()
        }
        1 => format!("1 of the validation examples is in the training file, too ({shared}): it measures nothing new"),
        count => {
            format!(
                "{count} of the validation examples are in the training file, too ({shared}): they measure nothing new"
            )
        }
    };
    Some((message, json!({"lines": shared.first})))
}

/// Warns of a learning rate that is far from the automatic one.
fn about_rate(resolved: &Hyperparameters, automatic: f64) -> Option<(String, Value)> {
    let rate = resolved.learning_rate? * resolved.learning_rate_multiplier.unwrap_or(1.0);
    let ratio = rate / automatic;
    let what = if ratio > HIGHEST_RATE {
        format!("{} times as high as the automatic one ({automatic:.2e}): training may fall apart", rounded(ratio))
    } else if ratio < LOWEST_RATE {
        format!(
            "{} times as low as the automatic one ({automatic:.2e}): the model may hardly change",
            rounded(1.0 / ratio)
        )
    } else {
        return None;
    };
    let message = format!(
        "The learning rate of {rate:.2e} (learning_rate times learning_rate_multiplier) is {what}; leave both settings out \
         unless you mean it"
    );
    Some((message, json!({"learning_rate": rate, "automatic_learning_rate": automatic})))
}

/// Rounds a ratio for people.
fn rounded(ratio: f64) -> String {
    if ratio < 1e6 { format!("{ratio:.0}") } else { format!("{ratio:.0e}") }
}

/// Warns of steps with few pairs of texts.
fn about_repeated_texts(plan: &TrainingPlan) -> Option<(String, Value)> {
    let (epochs, size) = (plan.resolved.n_epochs.unwrap_or(1), plan.resolved.batch_size.unwrap_or(1));
    let pairs = (epochs as usize * plan.training.sequences) as f64 / plan.total_steps.max(1) as f64;
    // The last step of an epoch has the pairs that are left, so that few pairs make a mean below the size, too.
    if !plan.training.is_of_pairs() || pairs >= f64::from(size) / 2.0 || plan.training.sequences <= 2 * size as usize {
        return None;
    }
    let message = format!(
        "A step has {pairs:.1} pairs on average in place of {size}, since texts of the training file repeat, and no step \
         takes a text twice: the fewer there are, the less a pair is told apart from"
    );
    Some((message, json!({"pairs_per_step": pairs})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_far_from_the_automatic_one_are_warned_of() {
        let told = |rate: f64, multiplier: f64| {
            let asked = Hyperparameters {
                learning_rate: Some(rate),
                learning_rate_multiplier: Some(multiplier),
                ..Hyperparameters::default()
            };
            about_rate(&asked, 2e-3).map(|(message, _)| message)
        };
        for (rate, multiplier) in [(2e-3, 1.0), (2e-3, 3.0), (2e-4, 1.0), (2e-2, 0.1)] {
            assert_eq!(told(rate, multiplier), None);
        }
        let high = told(2e-3, 50.0).expect("a warning");
        assert!(high.contains("1.00e-1") && high.contains("50 times as high") && high.contains("2.00e-3"), "{high}");
        let low = told(1e-5, 1.0).expect("a warning");
        assert!(low.contains("200 times as low"), "{low}");
        assert!(told(1e30, 1.0).is_some_and(|message| message.contains("5e32 times")));
    }

    #[test]
    fn one_example_is_told_of_in_the_singular() {
        let mut lines = NotedLines { count: 1, first: vec![4] };
        let what = "were left out, since the prompt fills the model's context";
        assert_eq!(
            sentence(&lines, "training", what),
            "1 of the training examples was left out, since the prompt fills the model's context (line 4)"
        );
        assert!(sentence(&lines, "validation", "repeat an earlier one").contains("examples repeats an earlier one"));
        lines = NotedLines { count: 2, first: vec![4, 7] };
        assert!(sentence(&lines, "training", what).contains("examples were left out"));
    }
}
