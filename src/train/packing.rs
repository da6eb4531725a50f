//! Packs the examples of one optimizer step into batches of whole sequences without padding. Called by the trainer.

use std::cmp::Reverse;

use crate::datasets::TokenizedExample;
use crate::train::backward::{PackedBatch, Target};

/// Rows of a batch: large enough for the matrix products to be efficient, small enough that activations stay in reach of the
/// caches and that requests wait only briefly for a micro-step to end. Measured faster than 1,024 (`benches/decoder.rs`).
pub const BATCH_ROWS: usize = 512;

/// Rows that training on `example` needs: all tokens before its last target, which itself is only predicted.
pub fn rows(example: &TokenizedExample) -> usize {
    example.weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
}

/// Distributes `examples` over batches of at most `budget` rows (a longer sequence has a batch to itself): the longest
/// first, each into the fullest batch that still takes it (best fit decreasing). The same examples give the same batches.
pub fn pack(examples: &[&TokenizedExample], budget: usize) -> Vec<PackedBatch> {
    let mut order: Vec<usize> = (0..examples.len()).filter(|index| rows(examples[*index]) > 0).collect();
    order.sort_by_key(|index| Reverse(rows(examples[*index])));
    let mut batches: Vec<PackedBatch> = Vec::new();
    for index in order {
        let needed = rows(examples[index]);
        let fitting = batches.iter_mut().filter(|batch| batch.tokens.len() + needed <= budget);
        if let Some(batch) = fitting.max_by_key(|batch| batch.tokens.len()) {
            append(batch, examples[index]);
        } else {
            let mut batch = PackedBatch::default();
            append(&mut batch, examples[index]);
            batches.push(batch);
        }
    }
    batches
}

/// Distributes `examples` over batches of at most `budget` rows in their order, so that the sequences of all batches, one
/// after the other, are the examples. Each must have a target.
pub fn pack_in_order(examples: &[TokenizedExample], budget: usize) -> Vec<PackedBatch> {
    let mut batches: Vec<PackedBatch> = Vec::new();
    for example in examples {
        match batches.last_mut() {
            Some(batch) if batch.tokens.len() + rows(example) <= budget => append(batch, example),
            _ => {
                let mut batch = PackedBatch::default();
                append(&mut batch, example);
                batches.push(batch);
            }
        }
    }
    batches
}

fn append(batch: &mut PackedBatch, example: &TokenizedExample) {
    let start = batch.tokens.len();
    let rows = rows(example);
    batch.tokens.extend_from_slice(&example.tokens[..rows]);
    batch.sequences.push(start..start + rows);
    for index in 1..=rows {
        let weight = example.weights[index];
        if weight > 0.0 {
            batch.targets.push(Target { row: start + index - 1, token: example.tokens[index], weight });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(length: usize, first: u32) -> TokenizedExample {
        let tokens = (0..length as u32).map(|i| first + i).collect();
        let weights = (0..length).map(|i| if i * 2 >= length { 1.0 } else { 0.0 }).collect();
        TokenizedExample { tokens, weights }
    }

    #[test]
    fn every_example_lies_in_one_batch_once_and_batches_keep_to_the_budget() {
        let examples: Vec<_> = (0..50).map(|i| example(2 + (i * 37) % 61, 1000 * i as u32)).collect();
        let batches = pack(&examples.iter().collect::<Vec<_>>(), 64);
        let mut found: Vec<&[u32]> = Vec::new();
        for batch in &batches {
            assert!(batch.tokens.len() <= 64);
            let mut next = 0;
            for rows in &batch.sequences {
                assert_eq!(rows.start, next);
                next = rows.end;
                found.push(&batch.tokens[rows.clone()]);
            }
            assert_eq!(next, batch.tokens.len());
        }
        let mut expected: Vec<_> = examples.iter().map(|example| &example.tokens[..example.tokens.len() - 1]).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        let targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        assert_eq!(targets, examples.iter().map(TokenizedExample::targets).sum::<usize>());
    }

    #[test]
    fn packing_in_order_keeps_the_order() {
        let examples: Vec<_> = (0..20).map(|i| example(2 + (i * 37) % 30, 1000 * i as u32)).collect();
        let batches = pack_in_order(&examples, 64);
        assert!(batches.len() > 1 && batches.iter().all(|batch| batch.tokens.len() <= 64));
        let found = batches.iter().flat_map(|batch| batch.sequences.iter().map(|rows| batch.tokens[rows.start]));
        assert_eq!(found.collect::<Vec<_>>(), (0..20).map(|i| 1000 * i).collect::<Vec<u32>>());
    }

    #[test]
    fn a_target_is_predicted_from_the_row_before_it_in_its_own_sequence() {
        let (long, short) = (example(6, 10), example(4, 50));
        let batches = pack(&[&short, &long], 64);
        assert_eq!(batches.len(), 1);
        for target in &batches[0].targets {
            assert_eq!(batches[0].tokens[target.row] + 1, target.token);
        }
    }

    #[test]
    fn a_sequence_longer_than_the_budget_has_a_batch_to_itself() {
        let (long, short) = (example(100, 0), example(4, 500));
        let batches = pack(&[&short, &long], 64);
        assert_eq!(batches.iter().map(|batch| batch.sequences.len()).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn context_behind_the_last_target_is_left_out() {
        let example = TokenizedExample { tokens: vec![1, 2, 3, 4], weights: vec![0.0, 1.0, 0.0, 0.0] };
        assert_eq!(pack(&[&example], 64)[0].tokens, [1]);
    }
}
