//! Words at a job's end which of its adapters are the best by the validation file, the names to use them by, and
//! whether training went on for too long. Called by [`super::job_run`].

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Worker;
use super::counts::AnswerCounts;
use super::quality::QualityFigures;
use crate::jobs::{Job, JobApi};
use crate::store::files::Page;
use crate::train::records::StepRecord;

/// Rise of the full validation loss over its lowest value from which training counts as too long.
const RISE: f64 = 1.02;

/// Figures of the validation file after one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    pub step: usize,
    /// Loss on the whole file; `None` if it was not measured.
    pub loss: Option<f64>,
    /// Right answers; `None` if they were not counted.
    pub right: Option<usize>,
}

/// Figures of a whole run.
#[derive(Debug)]
pub(super) struct Standings {
    /// In the order of the steps.
    pub measured: Vec<Standing>,
    /// Right answers of the resulting adapter; `None` if they are not counted.
    pub result: Option<AnswerCounts>,
    /// How well the resulting adapter puts the validation file in order; `None` if that is not measured.
    pub quality: Option<QualityFigures>,
    /// Step that the resulting adapter is from.
    pub result_step: usize,
}

impl Standings {
    /// Collects the figures of a run that results in the adapter of `result_step`, which gives the answers `result` and puts
    /// the validation file in order as `quality` says.
    pub(super) fn new(
        history: &[StepRecord],
        result_step: usize,
        result: Option<AnswerCounts>,
        quality: Option<QualityFigures>,
    ) -> Self {
        let mut measured = Vec::new();
        for (record, step) in history.iter().zip(1..) {
            let loss = record.validation.and_then(|validation| Some(validation.full?.loss));
            let mut right = record.right_answers.as_ref().map(|answers| answers.right);
            if step == result_step {
                right = right.or(result.as_ref().map(|counts| counts.now.right));
            }
            if loss.is_some() || right.is_some() {
                measured.push(Standing { step, loss: loss.filter(|loss| loss.is_finite()), right });
            }
        }
        Self { measured, result, quality, result_step }
    }

    /// Returns the step of the lowest loss on the whole file, the earliest of equals, with the loss.
    fn lowest_loss(&self) -> Option<(usize, f64)> {
        let losses = self.measured.iter().filter_map(|standing| Some((standing.step, standing.loss?)));
        losses.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Returns the step of the most right answers, of equals that of the lowest loss, with their number; `None` if none
    /// is right.
    fn most_right(&self) -> Option<(usize, usize)> {
        let counted = self.measured.iter().filter(|standing| standing.right.is_some_and(|right| right > 0));
        let order = |standing: &&Standing| (standing.right, standing.loss);
        let best = counted.reduce(|best, next| {
            let ((most, lowest), (right, loss)) = (order(&best), order(&next));
            let lower = loss.unwrap_or(f64::INFINITY) < lowest.unwrap_or(f64::INFINITY);
            if right > most || (right == most && lower) { next } else { best }
        })?;
        Some((best.step, best.right?))
    }

    /// Words how the loss has risen since its lowest value; `None` if it has not.
    fn risen(&self) -> Option<String> {
        let (step, lowest) = self.lowest_loss()?;
        let last = self.measured.iter().rev().find(|standing| standing.loss.is_some())?;
        let loss = last.loss.filter(|loss| *loss > RISE * lowest && last.step > step)?;
        let mut words = format!(
            "From step {step} to step {} the full validation loss rose from {lowest:.3} to {loss:.3}: the model began \
             to learn its examples by heart (overfitting)",
            last.step
        );
        let right_at = |step| self.measured.iter().find(|standing| standing.step == step)?.right;
        if let (Some(then), Some(now)) = (right_at(step), last.right) {
            let _ = match now.cmp(&then) {
                std::cmp::Ordering::Less => write!(words, ", and its right answers became fewer ({then}, then {now})"),
                _ => write!(words, ", though its right answers did not become fewer ({then}, then {now})"),
            };
        }
        words.push_str(". Fewer epochs or more examples help");
        Some(words)
    }

    /// Words the event; `None` if the whole file was never measured. `names` has the models that can be used, by step.
    fn event(&self, names: &HashMap<usize, String>) -> Option<(String, Value)> {
        let (loss_step, loss) = self.lowest_loss()?;
        let named = |step: usize| match names.get(&step) {
            Some(name) if step == self.result_step => format!("the final model {name}"),
            Some(name) => format!("model {name}"),
            None => "which is not kept as a model".into(),
        };
        let mut message = format!("Best by full validation loss: step {loss_step} ({loss:.3}), {}", named(loss_step));
        let mut data = json!({
            "best_by_full_valid_loss": {"step": loss_step, "full_valid_loss": loss, "model": names.get(&loss_step)},
        });
        if let Some(counts) = &self.result {
            let of = counts.now.of;
            match self.most_right() {
                Some((step, right)) => {
                    let _ = write!(message, "; most right answers: step {step} ({right} of {of}), {}", named(step));
                    data["most_right_answers"] =
                        json!({"step": step, "right": right, "of": of, "model": names.get(&step)});
                }
                None => message.push_str("; no validation answer is right after any epoch"),
            }
            let _ = write!(message, ". The final model: {}", counts.in_words());
            counts.add_to(&mut data);
            data["by_answer"] = counts.by_answer().into();
            let _ = counts.classes_in_words().map(|classes| write!(message, ". By answer: {classes}"));
        }
        if let Some(quality) = &self.quality {
            let _ = write!(message, ". The final model: {}", quality.in_words());
            quality.add_to(&mut data);
        }
        let risen = self.risen();
        data["overfitting"] = risen.is_some().into();
        let _ = risen.map(|risen| write!(message, ". {risen}"));
        Some((message, data))
    }
}

impl Worker {
    /// Writes which adapters are the best by the validation file; the resulting one becomes the model `name`. The older
    /// resource has no checkpoints to choose from.
    pub(super) async fn tell_best(&self, job: &Job, name: String, standings: &Standings) {
        if job.api != JobApi::FineTuningJobs {
            return;
        }
        let mut names = HashMap::new();
        match self.queue.checkpoints(job, Page { after: None, limit: 100, ascending: false }).await {
            Ok((kept, _)) => {
                names.extend(kept.into_iter().map(|checkpoint| (checkpoint.step as usize, checkpoint.model)));
            }
            Err(error) => tracing::warn!(job = job.id, "cannot read which checkpoints there are: {error}"),
        }
        names.insert(standings.result_step, name);
        if let Some((message, data)) = standings.event(&names) {
            self.say(job, "info", &message, Some(data)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::RightAnswers;

    fn standings(figures: &[(usize, f64, Option<usize>)], result_step: usize) -> Standings {
        let standing = |(step, loss, right): &(usize, f64, Option<usize>)| Standing {
            step: *step,
            loss: Some(*loss),
            right: *right,
        };
        let last = figures.iter().rev().find_map(|(_, _, right)| *right);
        let answers = |right| RightAnswers { right, of: 40, by_class: Vec::new() };
        let result =
            last.map(|right| AnswerCounts { now: answers(right), before: Some(answers(0)), classes: Vec::new() });
        Standings { measured: figures.iter().map(standing).collect(), result, quality: None, result_step }
    }

    fn names(steps: &[usize]) -> HashMap<usize, String> {
        steps.iter().map(|step| (*step, format!("ft:m:{step}"))).collect()
    }

    #[test]
    fn the_best_are_named_with_their_models_and_a_rising_loss_is_explained() {
        let run = standings(&[(25, 0.287, Some(30)), (50, 0.228, Some(33)), (75, 0.336, Some(34))], 75);
        let (message, data) = run.event(&names(&[25, 50, 75])).unwrap();
        assert_eq!(
            message,
            "Best by full validation loss: step 50 (0.228), model ft:m:50; most right answers: step 75 (34 of 40), the \
             final model ft:m:75. The final model: 34 of 40 validation answers right (before: 0). From step 50 to step \
             75 the full validation loss rose from 0.228 to 0.336: the model began to learn its examples by heart \
             (overfitting), though its right answers did not become fewer (33, then 34). Fewer epochs or more examples \
             help"
        );
        assert_eq!(data["best_by_full_valid_loss"]["model"], "ft:m:50");
        assert_eq!(data["most_right_answers"], json!({"step": 75, "right": 34, "of": 40, "model": "ft:m:75"}));
        assert_eq!(data["overfitting"], true);
    }

    #[test]
    fn of_equally_many_right_answers_the_lower_loss_is_the_better() {
        let run = standings(&[(25, 0.3, Some(33)), (50, 0.228, Some(33)), (75, 0.229, Some(33))], 75);
        let (message, data) = run.event(&names(&[75])).unwrap();
        assert_eq!(data["most_right_answers"]["step"], 50);
        assert!(message.contains("step 50 (0.228), which is not kept as a model; most"), "{message}");
        assert_eq!((&data["overfitting"], &data["best_by_full_valid_loss"]["model"]), (&json!(false), &Value::Null));
    }

    #[test]
    fn without_counts_there_is_the_loss_alone_and_without_measurements_nothing() {
        let run = standings(&[(10, 0.5, None), (20, 0.25, None)], 20);
        let expected = "Best by full validation loss: step 20 (0.250), the final model ft:m:20";
        assert_eq!(run.event(&names(&[10, 20])).unwrap().0, expected);
        assert!(standings(&[], 20).event(&names(&[20])).is_none());
        let none = standings(&[(10, 0.5, Some(0))], 10).event(&names(&[10])).unwrap().0;
        assert!(none.contains("no validation answer is right after any epoch"), "{none}");
    }
}
