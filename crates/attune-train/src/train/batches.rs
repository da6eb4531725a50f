//! Decides which examples each step of a run trains on. Called by the trainer and, for pairs of texts, by its
//! evaluation.
//!
//! Each epoch orders all examples anew and cuts the order into steps. Pairs of texts are compared with each other, so a
//! text may occur only once in a batch: a pair with a text that is already there goes to the first later batch without
//! any of its texts, as in the no-duplicates sampler of sentence-transformers. Everything is a function of seed, epoch
//! and examples, so that a resumed run needs no saved state.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::Result;
use crate::datasets::ExampleStore;
use crate::train::parameters::epoch_order;

/// Most batches that still take pairs; beyond this, the oldest is closed. Bounds the search in files whose texts repeat
/// very often.
const OPEN_BATCHES: usize = 64;

/// Texts of pairs as numbers; equal texts have equal numbers.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    numbers: Vec<u32>,
    /// Position of each pair's first text, and the end of the last pair.
    starts: Vec<usize>,
    /// Whether no text occurs twice.
    unique: bool,
}

impl Texts {
    /// Numbers the texts of `pairs`.
    pub(crate) fn of(pairs: impl Iterator<Item = Result<Vec<Vec<u32>>>>) -> Result<Self> {
        // A collision would only keep two pairs apart.
        let mut known: HashMap<u64, u32> = HashMap::new();
        let mut texts = Self { numbers: Vec::new(), starts: vec![0], unique: true };
        for pair in pairs {
            for text in pair? {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                let next = known.len() as u32;
                let number = *known.entry(hasher.finish()).or_insert(next);
                texts.unique &= number == next;
                texts.numbers.push(number);
            }
            texts.starts.push(texts.numbers.len());
        }
        Ok(texts)
    }

    fn of_pair(&self, pair: usize) -> &[u32] {
        &self.numbers[self.starts[pair]..self.starts[pair + 1]]
    }

    /// Makes batches of at most `size` of the pairs in `order`; no batch has a text twice.
    pub(crate) fn batches(&self, order: &[usize], size: usize) -> Vec<Vec<usize>> {
        if self.unique {
            return in_turn(order, size);
        }
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        let mut held: HashSet<(usize, u32)> = HashSet::new();
        for pair in order {
            let texts = self.of_pair(*pair);
            let takes = |batch: &usize| texts.iter().all(|text| !held.contains(&(*batch, *text)));
            let place = open.iter().position(takes).unwrap_or(open.len());
            let mut closed = None;
            if place == open.len() {
                if open.len() == OPEN_BATCHES {
                    closed = Some(0);
                }
                open.push(batches.len());
                batches.push(Vec::new());
            }
            let batch = open[place];
            held.extend(texts.iter().map(|text| (batch, *text)));
            batches[batch].push(*pair);
            if batches[batch].len() == size {
                closed = Some(place);
            }
            if let Some(place) = closed {
                let closed = open.remove(place);
                for pair in &batches[closed] {
                    for text in self.of_pair(*pair) {
                        held.remove(&(closed, *text));
                    }
                }
            }
        }
        batches
    }
}

/// Cuts `order` into batches of `size`.
fn in_turn(order: &[usize], size: usize) -> Vec<Vec<usize>> {
    order.chunks(size).map(<[usize]>::to_vec).collect()
}

/// Batches of a run.
#[derive(Debug)]
pub(crate) struct Batches {
    seed: u64,
    size: usize,
    examples: usize,
    /// Texts that must not repeat in a batch; `None` unless training is on pairs of texts.
    texts: Option<Texts>,
    /// Number of steps up to the end of each epoch.
    ends: Vec<usize>,
    /// Most recently used epoch and its batches.
    current: Option<(usize, Vec<Vec<usize>>)>,
}

impl Batches {
    /// Plans `epochs` passes over `examples` examples, `size` of them in a step.
    pub(crate) fn new(seed: u64, epochs: usize, examples: usize, size: usize) -> Self {
        let per_epoch = examples.div_ceil(size);
        let ends = (1..=epochs).map(|epoch| epoch * per_epoch).collect();
        Self { seed, size, examples, texts: None, ends, current: None }
    }

    /// Plans the same over the pairs of texts in `store`.
    pub(crate) fn of_pairs(seed: u64, epochs: usize, store: &ExampleStore, size: usize) -> Result<Self> {
        let texts = Texts::of((0..store.len()).map(|index| store.texts(index)))?;
        let mut batches = Self { texts: Some(texts), ..Self::new(seed, epochs, store.len(), size) };
        let steps = |epoch| batches.of_epoch(epoch).len();
        let ends = (0..epochs).scan(0, |end, epoch| {
            *end += steps(epoch);
            Some(*end)
        });
        batches.ends = ends.collect();
        Ok(batches)
    }

    /// Returns the number of steps up to the end of each epoch.
    pub(crate) fn ends(&self) -> &[usize] {
        &self.ends
    }

    /// Returns the examples of `step`, counted from 0.
    pub(crate) fn of_step(&mut self, step: usize) -> Vec<usize> {
        let epoch = self.ends.partition_point(|end| *end <= step);
        let current = self.current.take().filter(|(known, _)| *known == epoch);
        let current = current.unwrap_or_else(|| (epoch, self.of_epoch(epoch)));
        let (_, batches) = self.current.insert(current);
        let begin = if epoch == 0 { 0 } else { self.ends[epoch - 1] };
        batches.get(step - begin).cloned().unwrap_or_default()
    }

    fn of_epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let order = epoch_order(self.seed, epoch, self.examples);
        match &self.texts {
            Some(texts) => texts.batches(&order, self.size),
            None => in_turn(&order, self.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(anchor: u32, positive: u32) -> Vec<Vec<u32>> {
        vec![vec![1, anchor], vec![2, positive]]
    }

    fn texts(pairs: &[(u32, u32)]) -> Texts {
        Texts::of(pairs.iter().map(|(anchor, positive)| Ok(pair(*anchor, *positive)))).unwrap()
    }

    /// Implements the no-duplicates sampler by its definition: each batch scans the remaining pairs and takes all that
    /// it may.
    fn by_scanning(texts: &Texts, order: &[usize], size: usize) -> Vec<Vec<usize>> {
        let mut left = order.to_vec();
        let mut batches = Vec::new();
        while !left.is_empty() {
            let (mut batch, mut held, mut later) = (Vec::new(), HashSet::new(), Vec::new());
            for pair in left {
                let own = texts.of_pair(pair);
                if batch.len() == size || own.iter().any(|text| held.contains(text)) {
                    later.push(pair);
                } else {
                    held.extend(own.to_vec());
                    batch.push(pair);
                }
            }
            batches.push(batch);
            left = later;
        }
        batches
    }

    #[test]
    fn no_text_stands_twice_in_a_batch_and_every_pair_stands_in_one() {
        for (anchors, positives, size) in [(60, 60, 8), (60, 5, 8), (7, 60, 16), (30, 20, 4), (60, 60, 1)] {
            let pairs: Vec<_> = (0..60).map(|i| (i * 7 % anchors, i * 11 % positives)).collect();
            let texts = texts(&pairs);
            let order = epoch_order(3, 0, pairs.len());
            let batches = texts.batches(&order, size);
            for batch in &batches {
                let all: Vec<u32> = batch.iter().flat_map(|pair| texts.of_pair(*pair)).copied().collect();
                assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
                assert!(!batch.is_empty() && batch.len() <= size);
            }
            let mut every: Vec<_> = batches.concat();
            every.sort_unstable();
            assert_eq!(every, (0..60).collect::<Vec<_>>());
            assert_eq!(batches, by_scanning(&texts, &order, size), "{anchors} {positives} {size}");
        }
    }

    #[test]
    fn a_positive_of_one_pair_may_not_meet_itself_as_an_anchor_or_negative() {
        let same = vec![9, 9];
        let pairs = [vec![vec![1], same.clone()], vec![same.clone(), vec![2]], vec![vec![3], vec![4], same]];
        let texts = Texts::of(pairs.into_iter().map(Ok)).unwrap();
        assert_eq!(texts.batches(&[0, 1, 2], 8), [[0], [1], [2]]);
    }

    #[test]
    fn a_file_of_one_text_for_all_is_still_read_in_a_moment() {
        let pairs: Vec<_> = (0..20_000).map(|i| (i, 7)).collect();
        let order: Vec<usize> = (0..pairs.len()).collect();
        assert_eq!(texts(&pairs).batches(&order, 32).len(), 20_000);
    }

    #[test]
    fn epochs_end_where_their_batches_do_and_any_step_can_be_asked_for() {
        let pairs: Vec<_> = (0..40).map(|i| pair(i, i % 6)).collect();
        let store = ExampleStore::of_texts(pairs).unwrap();
        let make = || Batches::of_pairs(5, 3, &store, 8).unwrap();
        let mut batches = make();
        let ends = batches.ends().to_vec();
        assert!(ends.len() == 3 && ends[0] >= 7, "six texts allow six pairs in a batch: {ends:?}");
        let all: Vec<_> = (0..ends[2]).map(|step| batches.of_step(step)).collect();
        let mut begin = 0;
        for end in &ends {
            let mut epoch = all[begin..*end].concat();
            epoch.sort_unstable();
            assert_eq!(epoch, (0..40).collect::<Vec<_>>());
            begin = *end;
        }
        for step in (0..ends[2]).rev() {
            assert_eq!(make().of_step(step), all[step]);
        }
        assert_ne!(all[..ends[0]], all[ends[0]..ends[1]]);
        assert_eq!(Batches::new(5, 3, 10, 4).ends(), [3, 6, 9]);
    }
}
