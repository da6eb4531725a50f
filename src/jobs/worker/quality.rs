//! Words how well vectors or scores put the validation file in order: before the first step, and each time that the
//! whole file is measured. Measured by [`super::training`], written down by [`super::job_run`].

use serde_json::{Value, json};

use super::Worker;
use crate::jobs::Job;
use crate::train::methods::Figure;

/// Figures of one model, beside those of the model that training began with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QualityFigures {
    /// Names of the figures.
    pub names: &'static [Figure],
    pub now: Vec<f64>,
    pub before: Vec<f64>,
}

impl QualityFigures {
    /// Returns `recall@1 0.75 (before: 0.25), recall@10 0.96 (before: 0.50)`.
    pub(super) fn in_words(&self) -> String {
        let word = |(index, figure): (usize, &Figure)| {
            format!("{} {} (before: {})", figure.words, shown(&self.now, index), shown(&self.before, index))
        };
        self.names.iter().enumerate().map(word).collect::<Vec<_>>().join(", ")
    }

    /// Adds the figures to those of a step.
    pub(super) fn add_to(&self, data: &mut Value) {
        for (index, Figure { name, .. }) in self.names.iter().enumerate() {
            data[format!("valid_{name}")] = figure(&self.now, index).into();
            data[format!("valid_{name}_before")] = figure(&self.before, index).into();
        }
    }
}

/// Returns a figure; `None` if it is not defined.
fn figure(figures: &[f64], index: usize) -> Option<f64> {
    figures.get(index).copied().filter(|figure| figure.is_finite())
}

fn shown(figures: &[f64], index: usize) -> String {
    figure(figures, index).map_or_else(|| "not defined".into(), |figure| format!("{figure:.3}"))
}

impl Worker {
    /// Writes how well the model that training begins with puts the validation file in order.
    pub(super) async fn tell_ordered_before(&self, job: &Job, quality: &QualityFigures) {
        let (message, data) = before_event(quality);
        self.say(job, "info", &message, Some(data)).await;
    }
}

fn before_event(quality: &QualityFigures) -> (String, Value) {
    let word = |(index, figure): (usize, &Figure)| format!("{} {}", figure.words, shown(&quality.before, index));
    let words: Vec<_> = quality.names.iter().enumerate().map(word).collect();
    let mut data = json!({"step": 0});
    quality.add_to(&mut data);
    (format!("Before training: {}", words.join(", ")), data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TrainingMethod;

    #[test]
    fn figures_stand_beside_those_before_training() {
        let names = TrainingMethod::TextPairs { scale: 20.0 }.labels().quality;
        let quality = QualityFigures { names, now: vec![0.75, f64::NAN], before: vec![0.25, 0.5] };
        assert_eq!(quality.in_words(), "recall@1 0.750 (before: 0.250), recall@10 not defined (before: 0.500)");
        let (message, data) = before_event(&quality);
        assert_eq!(message, "Before training: recall@1 0.250, recall@10 0.500");
        assert_eq!((&data["valid_recall_at_1"], &data["valid_recall_at_1_before"]), (&json!(0.75), &json!(0.25)));
        assert_eq!(data["valid_recall_at_10"], Value::Null);
    }
}
