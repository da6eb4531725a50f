//! Computes accuracy, precision, recall, F-beta, and the areas under the ROC and the precision-recall curve.
//! Definitions are scikit-learn's, with `zero_division=0`. Called by [`super::classification`].

/// Metrics of a classification into a positive and a negative class.
#[derive(Debug, Clone, PartialEq)]
pub struct BinaryMetrics {
    /// Share of correct predictions.
    pub accuracy: f64,
    /// Share of the predicted positives that are positive; 0 if none is predicted.
    pub precision: f64,
    /// Share of the positives that are found; 0 if there are none.
    pub recall: f64,
    /// Area under the ROC curve; `None` if one of the classes does not occur.
    pub auroc: Option<f64>,
    /// Area under the precision-recall curve, as average precision; `None` if there are no positives.
    pub auprc: Option<f64>,
    /// F-beta for each requested beta.
    pub f_scores: Vec<f64>,
}

/// Metrics of a classification into several classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MulticlassMetrics {
    /// Share of correct predictions.
    pub accuracy: f64,
    /// F1 of each class against all others, averaged with the class's share of the file as its weight.
    pub weighted_f1_score: f64,
}

/// Prediction for one example of two classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BinaryPrediction {
    /// Whether the example is in the positive class.
    pub positive: bool,
    /// Whether it was predicted to be.
    pub predicted: bool,
    /// Probability of the positive class.
    pub score: f64,
}

/// Counts of correct and wrong predictions of one class.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    true_positives: usize,
    false_positives: usize,
    false_negatives: usize,
}

impl Counts {
    fn add(&mut self, positive: bool, predicted: bool) {
        self.true_positives += usize::from(positive && predicted);
        self.false_positives += usize::from(!positive && predicted);
        self.false_negatives += usize::from(positive && !predicted);
    }

    fn precision(self) -> f64 {
        ratio(self.true_positives as f64, (self.true_positives + self.false_positives) as f64)
    }

    fn recall(self) -> f64 {
        ratio(self.true_positives as f64, (self.true_positives + self.false_negatives) as f64)
    }

    /// Computes (1 + β²) TP / ((1 + β²) TP + β² FN + FP).
    fn f_score(self, beta: f64) -> f64 {
        let square = beta * beta;
        let hits = (1.0 + square) * self.true_positives as f64;
        ratio(hits, hits + square * self.false_negatives as f64 + self.false_positives as f64)
    }
}

/// Divides `part` by `whole`; 0 if `whole` is 0.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Computes the metrics of two classes.
pub fn binary(predictions: &[BinaryPrediction], betas: &[f64]) -> BinaryMetrics {
    let mut counts = Counts::default();
    for prediction in predictions {
        counts.add(prediction.positive, prediction.predicted);
    }
    let right = predictions.iter().filter(|prediction| prediction.positive == prediction.predicted).count();
    let steps = score_steps(predictions);
    BinaryMetrics {
        accuracy: ratio(right as f64, predictions.len() as f64),
        precision: counts.precision(),
        recall: counts.recall(),
        auroc: roc_area(&steps),
        auprc: average_precision(&steps),
        f_scores: betas.iter().map(|beta| counts.f_score(*beta)).collect(),
    }
}

/// Computes the metrics of any number of classes, from pairs of the true and the predicted class.
pub fn multiclass(predictions: &[(usize, usize)], classes: usize) -> MulticlassMetrics {
    let total = predictions.len() as f64;
    let right = predictions.iter().filter(|(actual, predicted)| actual == predicted).count();
    let weighted_f1_score = (0..classes)
        .map(|class| {
            let mut counts = Counts::default();
            for (actual, predicted) in predictions {
                counts.add(*actual == class, *predicted == class);
            }
            let support = counts.true_positives + counts.false_negatives;
            ratio(support as f64, total) * counts.f_score(1.0)
        })
        .sum();
    MulticlassMetrics { accuracy: ratio(right as f64, total), weighted_f1_score }
}

/// Counts positives and negatives of each score, from the highest down. Equal scores are one step, since no threshold
/// separates them.
fn score_steps(predictions: &[BinaryPrediction]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<_> = predictions.iter().collect();
    sorted.sort_by(|left, right| right.score.total_cmp(&left.score));
    let same = |left: &&BinaryPrediction, right: &&BinaryPrediction| left.score.total_cmp(&right.score).is_eq();
    let count = |step: &[&BinaryPrediction]| {
        let positives = step.iter().filter(|prediction| prediction.positive).count();
        (positives as f64, (step.len() - positives) as f64)
    };
    sorted.chunk_by(same).map(count).collect()
}

/// Computes the area by trapezoids: the chance that a positive has a higher score than a negative, ties counting one
/// half.
fn roc_area(steps: &[(f64, f64)]) -> Option<f64> {
    let (mut found, mut negatives, mut area) = (0.0, 0.0, 0.0);
    for (positive, negative) in steps {
        area += negative * (found + positive / 2.0);
        found += positive;
        negatives += negative;
    }
    (found > 0.0 && negatives > 0.0).then(|| area / (found * negatives))
}

/// Computes Σ (Rₙ − Rₙ₋₁) Pₙ over the thresholds.
fn average_precision(steps: &[(f64, f64)]) -> Option<f64> {
    let (mut found, mut seen, mut area) = (0.0, 0.0, 0.0);
    for (positive, negative) in steps {
        found += positive;
        seen += positive + negative;
        area += positive * found / seen;
    }
    (found > 0.0).then(|| area / found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts a score of one half or more as predicted positive.
    fn predictions(labels: &[u8], scores: &[f64]) -> Vec<BinaryPrediction> {
        let prediction = |(label, score): (&u8, &f64)| BinaryPrediction {
            positive: *label == 1,
            predicted: *score >= 0.5,
            score: *score,
        };
        labels.iter().zip(scores).map(prediction).collect()
    }

    fn assert_close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-12, "{value} is not {expected}");
    }

    #[test]
    fn two_classes_agree_with_scikit_learn() {
        let labels = [1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 0];
        let scores = [0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.35, 0.3, 0.3, 0.2, 0.1, 0.05];
        let metrics = binary(&predictions(&labels, &scores), &[0.5, 1.0, 2.0]);
        // accuracy_score, precision_score, recall_score, roc_auc_score, average_precision_score, fbeta_score
        assert_close(metrics.accuracy, 0.583_333_333_333_333_4);
        assert_close(metrics.precision, 0.666_666_666_666_666_6);
        assert_close(metrics.recall, 0.571_428_571_428_571_4);
        assert_close(metrics.auroc.unwrap(), 0.642_857_142_857_142_8);
        assert_close(metrics.auprc.unwrap(), 0.716_759_431_045_145_3);
        for (score, expected) in
            metrics.f_scores.iter().zip([0.645_161_290_322_580_6, 0.615_384_615_384_615_4, 0.588_235_294_117_647_1])
        {
            assert_close(*score, expected);
        }
    }

    #[test]
    fn areas_of_cases_that_can_be_seen_by_eye() {
        let areas = |labels: &[u8], scores: &[f64]| {
            let metrics = binary(&predictions(labels, scores), &[]);
            (metrics.auroc, metrics.auprc)
        };
        assert_eq!(areas(&[1, 1, 0, 0], &[0.9, 0.8, 0.2, 0.1]), (Some(1.0), Some(1.0)), "in perfect order");
        let (roc, precision) = areas(&[0, 0, 1, 1], &[0.9, 0.8, 0.2, 0.1]);
        assert_close(roc.unwrap(), 0.0);
        assert_close(precision.unwrap(), 5.0 / 12.0);
        assert_eq!(areas(&[1, 0, 0, 0], &[0.5; 4]), (Some(0.5), Some(0.25)), "no score tells anything");
        assert_eq!(areas(&[1, 1], &[0.9, 0.1]), (None, Some(1.0)), "no negatives");
        assert_eq!(areas(&[0, 0], &[0.9, 0.1]), (None, None), "no positives");
    }

    #[test]
    fn what_cannot_be_divided_is_zero() {
        let metrics = binary(&predictions(&[0, 0], &[0.1, 0.2]), &[1.0]);
        assert_eq!((metrics.accuracy, metrics.precision, metrics.recall), (1.0, 0.0, 0.0));
        assert_eq!(metrics.f_scores, [0.0]);
        assert_eq!(multiclass(&[], 3), MulticlassMetrics { accuracy: 0.0, weighted_f1_score: 0.0 });
    }

    #[test]
    fn several_classes_agree_with_scikit_learn() {
        let (actual, predicted) = ([0, 0, 0, 0, 1, 1, 2, 2, 2, 3], [0, 0, 0, 1, 1, 1, 2, 0, 0, 1]);
        let pairs: Vec<_> = actual.into_iter().zip(predicted).collect();
        let metrics = multiclass(&pairs, 4);
        // accuracy_score, f1_score(average="weighted", zero_division=0)
        assert_close(metrics.accuracy, 0.6);
        assert_close(metrics.weighted_f1_score, 0.55);
    }
}
