//! Pools the rows of a text, one after the other: the result does not depend on how a text was cut into steps. Called
//! through [`VectorForm`](super::VectorForm).

use serde::{Deserialize, Serialize};

/// What is taken of the hidden states of a text, `[rows, hidden]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// The first row: BERT's `[CLS]`.
    First,
    /// The mean of all rows.
    Mean,
    /// The sum of all rows, divided by the root of their number.
    MeanOfRoot,
    /// The mean of all rows, in which the row i, from 1, weighs i.
    WeightedMean,
    /// The largest of all rows, value by value.
    Max,
    /// The last row.
    Last,
}

/// Rows of one text on the way to its pooled values, in f64.
#[derive(Debug, Clone)]
pub struct Pooler {
    parts: Vec<(Pooling, Vec<f64>)>,
    /// Rows that have come.
    seen: usize,
    /// First rows that are left out, those of a prompt; the others keep their places.
    prompt: usize,
    hidden_size: usize,
}

impl Pooler {
    /// Begins to pool a text of rows of `hidden_size` values.
    pub fn of(poolings: &[Pooling], hidden_size: usize) -> Self {
        let parts = poolings.iter().map(|pooling| (*pooling, vec![0.0; hidden_size])).collect();
        Self { parts, seen: 0, prompt: 0, hidden_size }
    }

    /// Leaves out the first `rows` rows of the text, those of a prompt.
    #[must_use]
    pub fn without_prompt(self, rows: usize) -> Self {
        Self { prompt: rows, ..self }
    }

    /// Adds the hidden state of the next row.
    pub fn add(&mut self, hidden: &[f32]) {
        self.seen += 1;
        if self.seen <= self.prompt {
            return;
        }
        let first = self.seen == self.prompt + 1;
        let place = self.seen as f64;
        for (pooling, values) in &mut self.parts {
            let both = values.iter_mut().zip(hidden);
            match pooling {
                Pooling::First if !first => {}
                Pooling::First | Pooling::Last => both.for_each(|(value, new)| *value = f64::from(*new)),
                Pooling::Mean | Pooling::MeanOfRoot => both.for_each(|(value, new)| *value += f64::from(*new)),
                Pooling::WeightedMean => both.for_each(|(value, new)| *value += place * f64::from(*new)),
                Pooling::Max if first => both.for_each(|(value, new)| *value = f64::from(*new)),
                // A value that is not a number must not be lost.
                Pooling::Max => both.for_each(|(value, new)| {
                    if new.is_nan() || f64::from(*new) > *value {
                        *value = f64::from(*new);
                    }
                }),
            }
        }
    }

    /// Forgets all rows, to begin the text again.
    pub fn restart(&mut self) {
        self.seen = 0;
        self.parts.iter_mut().for_each(|(_, values)| values.fill(0.0));
    }

    /// Returns the pooled values, all poolings end to end; zeros for a text without rows.
    pub fn finish(&self) -> Vec<f64> {
        let prompt = self.prompt as f64;
        let rows = self.seen.saturating_sub(self.prompt).max(1) as f64;
        let mut pooled = Vec::with_capacity(self.parts.len() * self.hidden_size);
        for (pooling, values) in &self.parts {
            let divisor = match pooling {
                Pooling::Mean => rows,
                Pooling::MeanOfRoot => rows.sqrt(),
                Pooling::WeightedMean => rows * (2.0 * prompt + rows + 1.0) / 2.0,
                Pooling::First | Pooling::Max | Pooling::Last => 1.0,
            };
            pooled.extend(values.iter().map(|value| value / divisor));
        }
        pooled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_all<const N: usize>(pooler: &mut Pooler, rows: &[[f32; N]]) {
        for row in rows {
            pooler.add(row);
        }
    }

    #[test]
    fn each_pooling_takes_what_its_name_says() {
        let rows = [[1.0, -4.0], [3.0, 2.0], [2.0, 5.0]];
        for (pooling, expected) in [
            (Pooling::First, [1.0, -4.0]),
            (Pooling::Mean, [2.0, 1.0]),
            (Pooling::MeanOfRoot, [6.0 / 3.0_f64.sqrt(), 3.0 / 3.0_f64.sqrt()]),
            (Pooling::WeightedMean, [13.0 / 6.0, 15.0 / 6.0]),
            (Pooling::Max, [3.0, 5.0]),
            (Pooling::Last, [2.0, 5.0]),
        ] {
            let mut pooler = Pooler::of(&[pooling], 2);
            add_all(&mut pooler, &rows);
            let pooled = pooler.finish();
            assert!(pooled.iter().zip(expected).all(|(value, wanted)| (value - wanted).abs() < 1e-12), "{pooling:?}");
            pooler.restart();
            pooler.add(&[7.0, -8.0]);
            assert!((pooler.finish()[1] + 8.0).abs() < 1e-12, "{pooling:?} begins again");
        }
    }

    #[test]
    fn rows_of_a_prompt_are_left_out_and_the_others_keep_their_places() {
        for (pooling, expected) in [(Pooling::First, 3.0), (Pooling::Mean, 2.5), (Pooling::WeightedMean, 12.0 / 5.0)] {
            let mut pooler = Pooler::of(&[pooling], 1).without_prompt(1);
            add_all(&mut pooler, &[[9.0], [3.0], [2.0]]);
            assert!((pooler.finish()[0] - expected).abs() < 1e-12, "{pooling:?}");
        }
    }

    #[test]
    fn a_largest_value_that_is_not_a_number_is_not_hidden() {
        for rows in [[1.0, f32::NAN], [f32::NAN, 1.0]] {
            let mut pooler = Pooler::of(&[Pooling::Max, Pooling::Mean], 1);
            add_all(&mut pooler, &rows.map(|row| [row]));
            assert!(pooler.finish().iter().all(|value| value.is_nan()), "{rows:?}");
        }
    }
}
