//! Packs the examples of one optimizer step into batches of whole sequences without padding. Called by the trainer.

use std::cmp::Reverse;

use crate::datasets::TokenizedExample;
use crate::train::batch::{PackedBatch, Target};
use attune_model::kernels::Kernels;

/// Rows of a batch: large enough for the matrix products to be efficient, small enough that activations stay in reach
/// of the caches and that requests wait only briefly for a micro-step to end. Measured faster than 1,024
/// (`benches/decoder.rs`).
pub const BATCH_ROWS: usize = 512;
/// The same on a GPU, whose products are efficient from thousands of rows on.
const GPU_BATCH_ROWS: usize = 4096;

/// Most rows of a batch of texts whose vectors are compared, and most numbers in a tensor of their hidden states. A step
/// that exceeds one batch is read twice ([`super::contrastive`]).
const TEXT_ROWS: usize = 2048;
const TEXT_NUMBERS: usize = 1 << 21;

/// Returns the rows of a batch on the device of `kernels`.
pub fn batch_rows(kernels: &Kernels) -> usize {
    if kernels.is_cpu() { BATCH_ROWS } else { GPU_BATCH_ROWS }
}

/// Returns the rows of a batch of texts whose vectors are compared, of a model with hidden states of `hidden_size`.
pub fn text_rows(kernels: &Kernels, hidden_size: usize) -> usize {
    batch_rows(kernels).max((TEXT_NUMBERS / hidden_size.max(1)).min(TEXT_ROWS))
}

/// Counts the rows that training on `example` needs: all tokens before its last target, which itself is only predicted.
pub fn rows(example: &TokenizedExample) -> usize {
    example.weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
}

/// A batch and the units in it.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// Sequences of the units, one unit after the other.
    pub batch: PackedBatch,
    /// Indices of the units in the list that was packed.
    pub units: Vec<usize>,
}

/// Distributes units of `width` sequences each over batches of at most `budget` rows (a longer unit has a batch to
/// itself): the longest first, each into the fullest batch with room for it (best fit decreasing). A unit is computed
/// as a whole: an example, or the two answers of a preference. The same units give the same batches.
pub fn pack(examples: &[TokenizedExample], width: usize, budget: usize) -> Vec<Packed> {
    let units: Vec<&[TokenizedExample]> = examples.chunks(width).collect();
    let needed: Vec<usize> = units.iter().map(|unit| unit.iter().map(rows).sum()).collect();
    let usable = |unit: &usize| units[*unit].iter().all(|example| rows(example) > 0);
    let order = (0..units.len()).filter(usable).collect();
    distribute(order, &needed, budget, |batch, unit| units[unit].iter().for_each(|example| append(batch, example)))
}

/// Distributes texts in the same way, each whole and without targets.
pub fn pack_texts(texts: &[&[u32]], budget: usize) -> Vec<Packed> {
    let needed: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    distribute((0..texts.len()).collect(), &needed, budget, |batch, text| {
        let start = batch.tokens.len();
        batch.tokens.extend_from_slice(texts[text]);
        batch.sequences.push(start..batch.tokens.len());
    })
}

/// Distributes the units in `order` by best fit decreasing; the rows of each are given.
fn distribute(
    mut order: Vec<usize>,
    needed: &[usize],
    budget: usize,
    append: impl Fn(&mut PackedBatch, usize),
) -> Vec<Packed> {
    order.sort_by_key(|unit| Reverse(needed[*unit]));
    let mut packs: Vec<Packed> = Vec::new();
    for unit in order {
        let fitting = (0..packs.len()).filter(|pack| packs[*pack].batch.tokens.len() + needed[unit] <= budget);
        let pack = fitting.max_by_key(|pack| packs[*pack].batch.tokens.len()).unwrap_or(packs.len());
        if pack == packs.len() {
            packs.push(Packed::default());
        }
        append(&mut packs[pack].batch, unit);
        packs[pack].units.push(unit);
    }
    packs
}

/// Distributes `examples` over batches of at most `budget` rows in order, so that the sequences of all batches, one
/// after the other, are the examples. Each example must have a target.
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
        let batches: Vec<_> = pack(&examples, 1, 64).into_iter().map(|pack| pack.batch).collect();
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
        let packs = pack(&[short, long], 1, 64);
        assert_eq!(packs.len(), 1);
        for target in &packs[0].batch.targets {
            assert_eq!(packs[0].batch.tokens[target.row] + 1, target.token);
        }
    }

    #[test]
    fn a_sequence_longer_than_the_budget_has_a_batch_to_itself() {
        let (long, short) = (example(100, 0), example(4, 500));
        let packs = pack(&[short, long], 1, 64);
        assert_eq!(packs.iter().map(|pack| pack.batch.sequences.len()).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn context_behind_the_last_target_is_left_out() {
        let example = TokenizedExample { tokens: vec![1, 2, 3, 4], weights: vec![0.0, 1.0, 0.0, 0.0] };
        assert_eq!(pack(&[example], 1, 64)[0].batch.tokens, [1]);
    }

    #[test]
    fn the_sequences_of_a_unit_stay_together_in_their_order() {
        let examples: Vec<_> = (0..40).map(|i| example(2 + (i * 37) % 29, 1000 * i as u32)).collect();
        let packs = pack(&examples, 2, 64);
        assert!(packs.len() > 5);
        let mut found = Vec::new();
        for Packed { batch, units } in &packs {
            assert_eq!(batch.sequences.len(), 2 * units.len());
            for (unit, pair) in units.iter().zip(batch.sequences.chunks_exact(2)) {
                let firsts = [batch.tokens[pair[0].start], batch.tokens[pair[1].start]];
                assert_eq!(firsts, [2000 * *unit as u32, 2000 * *unit as u32 + 1000]);
                found.push(*unit);
            }
        }
        found.sort_unstable();
        assert_eq!(found, (0..20).collect::<Vec<_>>());
    }
}
