//! Fewer points of a curve, for the eye: a picture of a thousand points across looks the same with ten thousand. Nothing
//! is drawn by chance, and what stands out stays: of each stretch of steps the first, the last, the lowest and the
//! highest point. A curve is smoothed before it is thinned, so that the smooth line does not depend on the picture.

/// Points of a thinned curve at the most.
pub(super) const MOST_POINTS: usize = 1_000;
/// Points that a stretch keeps at the most.
const KEPT: usize = 4;

/// Returns the places of the points to keep, ascending. `steps` ascend; values that are no numbers are left out.
pub(super) fn thin(steps: &[i64], values: &[f64]) -> Vec<usize> {
    let measured: Vec<usize> = (0..steps.len().min(values.len())).filter(|place| values[*place].is_finite()).collect();
    if measured.len() <= MOST_POINTS {
        return measured;
    }
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else { return measured };
    let stretches = (MOST_POINTS / KEPT) as i64;
    let (begin, span) = (steps[*first], (steps[*last] - steps[*first] + 1).max(1));
    let stretch = |place: &usize| (steps[*place] - begin) * stretches / span;
    let mut kept = Vec::with_capacity(MOST_POINTS);
    for points in measured.chunk_by(|left, right| stretch(left) == stretch(right)) {
        let by_value = |left: &&usize, right: &&usize| values[**left].total_cmp(&values[**right]);
        let mut places: Vec<usize> =
            [points.first(), points.iter().min_by(by_value), points.iter().max_by(by_value), points.last()]
                .into_iter()
                .flatten()
                .copied()
                .collect();
        places.sort_unstable();
        places.dedup();
        kept.extend(places);
    }
    kept
}

/// A running mean that forgets: each value counts `1 - factor`, each mean before it `factor`, and the first ones are not
/// pulled towards zero.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Smoother {
    factor: f64,
    /// Sum of the values by their weights, and of the weights.
    pub sum: f64,
    pub weight: f64,
}

impl Smoother {
    /// Creates one that has seen nothing. `factor` is from 0, which smooths nothing, to below 1.
    pub(super) fn new(factor: f64) -> Self {
        Self { factor, sum: 0.0, weight: 0.0 }
    }

    /// Adds a value and returns the mean. A value that is no number changes nothing.
    pub(super) fn add(&mut self, value: f64) -> f64 {
        if !value.is_finite() {
            return f64::NAN;
        }
        self.sum = self.factor * self.sum + (1.0 - self.factor) * value;
        self.weight = self.factor * self.weight + (1.0 - self.factor);
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(length: usize) -> (Vec<i64>, Vec<f64>) {
        let steps: Vec<i64> = (1..=length as i64).collect();
        let values = steps.iter().map(|step| (*step as f64 * 0.7).sin() + 1000.0 / *step as f64).collect();
        (steps, values)
    }

    #[test]
    fn a_short_curve_stays_as_it_is() {
        let (steps, values) = curve(MOST_POINTS);
        assert_eq!(thin(&steps, &values), (0..MOST_POINTS).collect::<Vec<_>>());
        assert!(thin(&[], &[]).is_empty());
    }

    #[test]
    fn a_long_curve_keeps_its_ends_and_its_extremes() {
        let (steps, mut values) = curve(50_000);
        values[31_415] = 1e6;
        values[27_182] = -1e6;
        let kept = thin(&steps, &values);
        assert!(kept.len() <= MOST_POINTS, "{}", kept.len());
        assert!(kept.len() > MOST_POINTS / 2, "{}", kept.len());
        assert!(kept.is_sorted_by(|left, right| left < right));
        for place in [0, 31_415, 27_182, 49_999] {
            assert!(kept.contains(&place), "{place}");
        }
        assert_eq!(kept, thin(&steps, &values), "nothing is drawn by chance");
    }

    #[test]
    fn steps_far_apart_and_values_that_are_no_numbers_are_no_trouble() {
        let steps: Vec<i64> = (0..5_000).map(|step| step * step * 1_000).collect();
        let mut values = vec![1.0; 5_000];
        values[0] = f64::NAN;
        values[4_999] = f64::INFINITY;
        let kept = thin(&steps, &values);
        assert!(kept.len() <= MOST_POINTS && kept[0] == 1 && kept[kept.len() - 1] == 4_998);
        assert!(thin(&steps, &vec![f64::NAN; 5_000]).is_empty());
    }

    #[test]
    fn a_smooth_curve_begins_at_the_first_value() {
        let mut smoother = Smoother::new(0.9);
        assert!((smoother.add(5.0) - 5.0).abs() < 1e-12);
        assert!(smoother.add(f64::NAN).is_nan());
        assert!((smoother.add(5.0) - 5.0).abs() < 1e-12, "a gap changes nothing");
        assert!(smoother.add(0.0) < 5.0);
        let mut nothing = Smoother::new(0.0);
        assert!([3.0_f64, 1.0, 2.0].into_iter().all(|value| nothing.add(value).total_cmp(&value).is_eq()));
    }
}
