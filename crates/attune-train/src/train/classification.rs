//! Measures how well a model classifies prompts. The prediction is the class whose completion is the most likely after
//! the prompt; the probabilities of the classes are the softmax over those likelihoods. Measured by
//! [`super::trainer::Trainer::classify`] at the end of each epoch; the worker makes the task.

use crate::datasets::TokenizedExample;
use crate::datasets::classes::{ClassificationData, ClassifiedExample};
use crate::train::classification_metrics::{BinaryPrediction, binary, multiclass};

/// Examples whose candidates are in memory at one time.
const EXAMPLES_AT_ONCE: usize = 16;

/// Prompts to classify and metrics to compute.
pub struct ClassificationTask {
    data: ClassificationData,
    /// Betas of the F-beta scores, for two classes.
    betas: Vec<f64>,
}

impl ClassificationTask {
    /// Creates the task of `data`. With a positive class it has an F-beta score for each of `betas` (for 1 if there are
    /// none).
    pub fn new(data: ClassificationData, betas: &[f64]) -> Self {
        let mut distinct: Vec<f64> = Vec::new();
        for beta in betas {
            if !distinct.contains(beta) {
                distinct.push(*beta);
            }
        }
        if distinct.is_empty() {
            distinct.push(1.0);
        }
        Self { data, betas: distinct }
    }

    /// Returns the number of measured examples and the number of validation lines left out.
    pub fn counts(&self) -> (usize, usize) {
        (self.data.examples.len(), self.data.left_out)
    }

    /// Counts the tokens that one measurement reads.
    pub fn tokens(&self) -> usize {
        let read = |example: &ClassifiedExample| -> usize {
            example.completions.iter().map(|completion| example.prompt.len() + completion.len()).sum()
        };
        self.data.examples.iter().map(read).sum()
    }

    /// Returns the names of the metrics, as in the result file.
    pub fn columns(&self) -> Vec<String> {
        let mut names = vec!["accuracy".to_owned()];
        if self.data.positive.is_some() {
            names.extend(["precision", "recall", "auroc", "auprc"].map(str::to_owned));
            names.extend(self.betas.iter().map(|beta| format!("f{beta:?}")));
        } else {
            names.push("weighted_f1_score".into());
        }
        names.into_iter().map(|name| format!("classification/{name}")).collect()
    }

    /// Yields every example with every class as its completion, in parts; only completions have weight.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Vec<TokenizedExample>> {
        let candidate = |example: &ClassifiedExample, completion: &Vec<u32>| {
            let tokens = [example.prompt.as_slice(), completion].concat();
            let mut weights = vec![0.0; example.prompt.len()];
            weights.resize(tokens.len(), 1.0);
            TokenizedExample { tokens, weights }
        };
        let candidates = move |example: &ClassifiedExample| -> Vec<TokenizedExample> {
            example.completions.iter().map(|completion| candidate(example, completion)).collect()
        };
        self.data.examples.chunks(EXAMPLES_AT_ONCE).map(move |part| part.iter().flat_map(candidates).collect())
    }

    /// Computes the metrics of [`ClassificationTask::columns`] from the log likelihoods of all candidates; NaN if a
    /// metric is not defined.
    pub(super) fn figures(&self, log_likelihoods: &[f64]) -> Vec<f64> {
        let rows = self.data.examples.iter().zip(log_likelihoods.chunks_exact(self.data.classes.len().max(1)));
        let Some(positive) = self.data.positive else {
            let pairs: Vec<_> = rows.map(|(example, row)| (example.class, likeliest(row))).collect();
            let metrics = multiclass(&pairs, self.data.classes.len());
            return vec![metrics.accuracy, metrics.weighted_f1_score];
        };
        let prediction = |(example, row): (&ClassifiedExample, &[f64])| BinaryPrediction {
            positive: example.class == positive,
            predicted: likeliest(row) == positive,
            score: probability(row, positive),
        };
        let metrics = binary(&rows.map(prediction).collect::<Vec<_>>(), &self.betas);
        let undefined = f64::NAN;
        let mut figures = vec![metrics.accuracy, metrics.precision, metrics.recall];
        figures.extend([metrics.auroc.unwrap_or(undefined), metrics.auprc.unwrap_or(undefined)]);
        figures.extend(metrics.f_scores);
        figures
    }
}

/// Returns the index of the largest number, the first of equals.
fn likeliest(row: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

/// Computes the softmax of `row` at `index`.
fn probability(row: &[f64], index: usize) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (row[index] - top).exp() / row.iter().map(|value| (value - top).exp()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(classes: usize, positive: Option<usize>, right: &[usize], betas: &[f64]) -> ClassificationTask {
        let completions: Vec<_> = (0..classes).map(|i| vec![i as u32, 99]).collect();
        let classes = (0..classes).map(|i| format!(" {i}")).collect();
        let example =
            |class: &usize| ClassifiedExample { prompt: vec![5, 6], completions: completions.clone(), class: *class };
        let examples = right.iter().map(example).collect();
        ClassificationTask::new(ClassificationData { classes, positive, examples, left_out: 0 }, betas)
    }

    fn assert_close(figures: &[f64], expected: &[f64]) {
        assert_eq!(figures.len(), expected.len());
        let close = |(figure, expected): (&f64, &f64)| (figure - expected).abs() < 1e-12;
        assert!(figures.iter().zip(expected).all(close), "{figures:?} is not {expected:?}");
    }

    #[test]
    fn two_classes_have_the_columns_of_a_positive_class() {
        let task = task(2, Some(1), &[1, 0, 1, 0], &[0.5, 2.0, 0.5]);
        let names = task.columns();
        let names: Vec<_> = names.iter().map(|name| name.strip_prefix("classification/").unwrap()).collect();
        assert_eq!(names, ["accuracy", "precision", "recall", "auroc", "auprc", "f0.5", "f2.0"]);
        // Log likelihoods of " 0" and " 1": right, wrong, right, right; the wrong one has the second highest
        // probability.
        let figures = task.figures(&[-9.0, -1.0, -3.0, -2.0, -2.0, -1.5, -1.0, -8.0]);
        assert_close(&figures, &[0.75, 2.0 / 3.0, 1.0, 0.75, 5.0 / 6.0, 5.0 / 7.0, 10.0 / 11.0]);
    }

    #[test]
    fn several_classes_have_accuracy_and_weighted_f1() {
        let task = task(3, None, &[0, 1, 2], &[]);
        assert_eq!(task.columns(), ["classification/accuracy", "classification/weighted_f1_score"]);
        assert_eq!(task.tokens(), 36, "three examples, each with three completions of two tokens after its two");
        let figures = task.figures(&[-1.0, -2.0, -3.0, -2.0, -1.0, -3.0, -1.0, -2.0, -3.0]);
        assert_close(&figures, &[2.0 / 3.0, 5.0 / 9.0]);
    }

    #[test]
    fn an_area_without_both_classes_is_not_defined() {
        let task = task(2, Some(0), &[1, 1], &[]);
        assert_eq!(task.columns().last().map(String::as_str), Some("classification/f1.0"));
        let figures = task.figures(&[-1.0, -2.0, -3.0, -1.0]);
        assert!(figures[3].is_nan() && figures[4].is_nan());
        assert_close(&figures[..3], &[0.5, 0.0, 0.0]);
    }

    #[test]
    fn candidates_are_the_prompt_with_each_class() {
        let task = task(3, None, &[0; 20], &[]);
        let parts: Vec<_> = task.candidates().collect();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [48, 12]);
        assert_eq!(parts[0][1], TokenizedExample { tokens: vec![5, 6, 1, 99], weights: vec![0.0, 0.0, 1.0, 1.0] });
    }
}
