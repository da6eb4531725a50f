//! The router's choice: which experts each row goes through, with which weights, and the rows of each expert. Made by
//! [`Experts::route`](super::Experts::route), read by the backward pass as well.

use std::ops::Range;

use crate::{Error, Result};

/// The experts of the rows of one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Number of experts.
    pub experts: usize,
    /// Experts of each row.
    pub chosen: usize,
    /// Probabilities of all experts, `[rows, experts]`.
    pub probabilities: Vec<f32>,
    /// Each row's experts, the most probable first, `[rows, chosen]`.
    pub indices: Vec<u32>,
    /// Their weights, `[rows, chosen]`.
    pub weights: Vec<f32>,
    /// Rows of each expert that has some, by expert.
    pub groups: Vec<Group>,
    /// Place of each row and choice among the rows of all groups, `[rows, chosen]`.
    pub places: Vec<u32>,
}

/// The rows of one expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Index of the expert.
    pub expert: usize,
    /// The rows, in order.
    pub rows: Vec<u32>,
    /// Row · chosen + place in the row's choice, of each of the rows: the index into [`Routing::weights`].
    pub choices: Vec<u32>,
}

impl Routing {
    /// Chooses the `chosen` most probable experts of each row, softmax first, by `logits` `[rows, experts]`; of equal
    /// ones the first, where `PyTorch` promises no order. Divides their weights by their sum if `normalized`.
    pub(super) fn of(logits: &[f32], experts: usize, chosen: usize, normalized: bool) -> Result<Self> {
        if chosen == 0 || chosen > experts || !logits.len().is_multiple_of(experts) {
            return Err(Error::Internal(format!("{chosen} of {experts} experts for {} logits", logits.len())));
        }
        let rows = logits.len() / experts;
        let mut probabilities = logits.to_vec();
        let mut indices = Vec::with_capacity(rows * chosen);
        let mut weights = Vec::with_capacity(rows * chosen);
        for row in probabilities.chunks_exact_mut(experts) {
            softmax(row);
            let first = indices.len();
            for _ in 0..chosen {
                indices.push(most_probable(row, &indices[first..]));
            }
            let own = indices[first..].iter().map(|index| row[*index as usize]);
            let sum = if normalized { own.clone().sum() } else { 1.0 };
            weights.extend(own.map(|weight| weight / sum));
        }
        let groups = groups(&indices, experts, chosen);
        let mut places = vec![0; indices.len()];
        for (place, choice) in groups.iter().flat_map(|group| &group.choices).enumerate() {
            places[*choice as usize] = place as u32;
        }
        Ok(Self { experts, chosen, probabilities, indices, weights, groups, places })
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.indices.len() / self.chosen
    }

    /// Returns the places of `row` in `indices` and `weights`.
    pub fn choices(&self, row: usize) -> Range<usize> {
        row * self.chosen..(row + 1) * self.chosen
    }
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for value in row.iter_mut() {
        *value = (*value - max).exp();
    }
    let sum: f32 = row.iter().sum();
    for value in row.iter_mut() {
        *value /= sum;
    }
}

/// Returns the first of the most probable experts that are not `taken` yet.
fn most_probable(probabilities: &[f32], taken: &[u32]) -> u32 {
    let mut best: Option<(u32, f32)> = None;
    for (index, probability) in (0..).zip(probabilities) {
        if best.is_none_or(|(_, most)| *probability > most) && !taken.contains(&index) {
            best = Some((index, *probability));
        }
    }
    best.map_or(0, |(index, _)| index)
}

fn groups(indices: &[u32], experts: usize, chosen: usize) -> Vec<Group> {
    let mut groups: Vec<Group> =
        (0..experts).map(|expert| Group { expert, rows: Vec::new(), choices: Vec::new() }).collect();
    for (choice, expert) in (0_u32..).zip(indices) {
        let group = &mut groups[*expert as usize];
        group.rows.push(choice / chosen as u32);
        group.choices.push(choice);
    }
    groups.retain(|group| !group.rows.is_empty());
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(one: &[f32], other: &[f32]) -> bool {
        one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn the_most_probable_experts_are_chosen_and_weighted_by_their_probabilities() {
        let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln()];
        let plain = Routing::of(&logits, 4, 2, false).expect("a choice");
        assert!(close(&plain.probabilities, &[0.1, 0.2, 0.5, 0.2]));
        assert_eq!(plain.indices, [2, 1], "the first of two equal ones");
        assert!(close(&plain.weights, &[0.5, 0.2]));
        let normalized = Routing::of(&logits, 4, 2, true).expect("a choice");
        assert!(close(&normalized.weights, &[5.0 / 7.0, 2.0 / 7.0]));
        assert!(close(&normalized.probabilities, &plain.probabilities));
    }

    #[test]
    fn rows_are_sorted_by_expert_and_found_again() {
        // Rows choose (2, 0), (0, 2), (3, 2): expert 1 has no row.
        let logits = [1.0, -9.0, 2.0, 0.0, 2.0, -9.0, 1.0, 0.0, 0.0, -9.0, 1.0, 2.0];
        let routing = Routing::of(&logits, 4, 2, true).expect("a choice");
        let group =
            |expert, rows: &[u32], choices: &[u32]| Group { expert, rows: rows.into(), choices: choices.into() };
        assert_eq!(
            routing.groups,
            [group(0, &[0, 1], &[1, 2]), group(2, &[0, 1, 2], &[0, 3, 5]), group(3, &[2], &[4])]
        );
        assert_eq!(routing.places, [2, 0, 1, 3, 5, 4]);
        assert_eq!(routing.rows(), 3);
    }

    #[test]
    fn logits_that_are_no_numbers_choose_different_experts_and_weigh_nothing() {
        let routing = Routing::of(&[f32::NAN; 4], 4, 3, true).expect("a choice");
        assert_eq!(routing.indices, [0, 1, 2]);
        assert!(routing.weights.iter().all(|weight| weight.is_nan()));
    }

    #[test]
    fn more_choices_than_experts_are_refused() {
        assert!(Routing::of(&[0.0; 4], 4, 5, true).is_err());
        assert!(Routing::of(&[0.0; 5], 4, 2, true).is_err());
    }
}
