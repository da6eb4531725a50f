//! What stands for `auto`, from the number of examples: [`super::resolve`] says why.

use super::MAX_BATCH_SIZE;

/// Pairs of texts in a step at the least, where nobody says: the others of a batch are what a pair is told apart from.
const PAIRS_PER_STEP: usize = 32;

pub(super) fn auto_warmup(total_steps: usize) -> usize {
    (total_steps / 10).min(100)
}

pub(super) fn auto_epochs(examples: usize) -> u32 {
    let epochs = match examples * 3 {
        seen if seen < 100 => (100 / examples).min(25),
        seen if seen > 25_000 => (25_000 / examples).max(1),
        _ => 3,
    };
    epochs as u32
}

pub(super) fn auto_batch_size(examples: usize, epochs: u32) -> u32 {
    let mut size = ((examples as f64 * 0.002).round() as usize).clamp(8, MAX_BATCH_SIZE as usize).min(examples);
    while size > 1 && examples.div_ceil(size) * (epochs as usize) < 50 {
        size /= 2;
    }
    size as u32
}

pub(super) fn auto_pairs(examples: usize, epochs: u32) -> u32 {
    let mut size = ((examples as f64 * 0.002).round() as usize).clamp(PAIRS_PER_STEP, MAX_BATCH_SIZE as usize);
    while size > 8 && examples.div_ceil(size) * (epochs as usize) < 30 {
        size /= 2;
    }
    size.min(examples) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_epochs_follow_the_published_formula() {
        for (examples, epochs) in [(10, 10), (4, 25), (33, 3), (34, 3), (500, 3), (8_333, 3), (10_000, 2), (60_000, 1)]
        {
            assert_eq!(auto_epochs(examples), epochs, "{examples} examples");
        }
    }

    #[test]
    fn automatic_batches_leave_small_files_fifty_steps_and_grow_with_large_ones() {
        for (examples, epochs, size) in [(10, 10, 2), (100, 3, 4), (500, 3, 8), (10_000, 2, 20), (1_000_000, 1, 256)] {
            assert_eq!(auto_batch_size(examples, epochs), size, "{examples} examples");
        }
        assert_eq!(auto_batch_size(1, 1), 1);
    }

    #[test]
    fn automatic_batches_of_pairs_are_large_where_there_are_steps_enough() {
        for (examples, epochs, size) in
            [(10, 10, 8), (100, 3, 8), (200, 3, 16), (300, 3, 32), (16_000, 1, 32), (50_000, 1, 100), (200_000, 1, 256)]
        {
            assert_eq!(auto_pairs(examples, epochs), size, "{examples} examples");
        }
        assert_eq!(auto_pairs(5, 25), 5);
    }
}
