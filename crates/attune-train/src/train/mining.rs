//! Finds hard negatives: for each pair of texts, positives of other pairs that the model takes for nearly as good as its
//! own. Called by `jobs/worker` before a run begins.
//!
//! This is `mine_hard_negatives` of sentence-transformers with a relative margin: of all different positives of the file,
//! those that are not positives of the same anchor, and whose cosine with the anchor is at least a 20th below that of its
//! own positive (nearer ones may be right answers that nobody has marked); of these the nearest.

use std::collections::HashSet;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::datasets::store::ExampleWriter;
use crate::datasets::{DatasetReport, ExampleStore};
use crate::train::distinct_texts::{DistinctTexts, VectorMaker};
use crate::train::packing::batch_rows;
use crate::train::yielding::BeforeMicroStep;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::lora::Adapter;

/// Share of the own positive's cosine by which a negative's must be lower.
const MARGIN: f64 = 0.05;
/// Most pairs of a file that is searched: their vectors take about 150 MiB at a width of 384, and each is compared with
/// all others.
const MOST_PAIRS: usize = 50_000;
/// Anchors that are compared with all texts at one time.
const ROWS: usize = 256;

/// Hard negatives of the pairs of a file: for each pair the numbers of the pairs whose positives they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardNegatives(Vec<Vec<u32>>);

/// Pairs of a file with numbers for their texts.
struct NumberedPairs {
    anchors: DistinctTexts,
    positives: DistinctTexts,
    /// Anchor and positive of each pair.
    pairs: Vec<[usize; 2]>,
}

impl NumberedPairs {
    fn read(examples: &ExampleStore) -> Result<Self> {
        let (mut anchors, mut positives) = (DistinctTexts::default(), DistinctTexts::default());
        let mut pairs = Vec::with_capacity(examples.len());
        for index in 0..examples.len() {
            let mut texts = examples.texts(index)?.into_iter();
            let (anchor, positive) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
            pairs.push([anchors.number(anchor), positives.number(positive)]);
        }
        Ok(Self { anchors, positives, pairs })
    }
}

impl HardNegatives {
    /// Searches at most `count` negatives for each pair of `examples`, with the vectors of `model` under `adapter`, the
    /// one that training begins with. Calls `before` before each pack.
    pub fn search(
        model: &BaseModel,
        adapter: Option<&Adapter>,
        examples: &ExampleStore,
        count: usize,
        before: BeforeMicroStep<'_>,
    ) -> Result<Self> {
        check_pairs(examples.len())?;
        let numbered = NumberedPairs::read(examples)?;
        let decoder = model.training_decoder();
        let adapter = adapter.map(|adapter| adapter.to_device(decoder.device())).transpose()?;
        let (form, adapter, budget) = (&model.vectors, adapter.as_ref(), batch_rows(decoder.kernels()));
        let maker = VectorMaker { decoder, form, adapter, budget };
        let [of_anchor, of_others] = examples.unpooled();
        let anchors = numbered.anchors.vectors(maker, of_anchor, before)?;
        let positives = numbered.positives.vectors(maker, of_others, before)?;
        nearest(&numbered, &anchors, &positives, count).map(Self)
    }

    /// Makes them of numbers that an earlier attempt has found; an error if they do not fit to `pairs` pairs.
    pub(super) fn of(numbers: Vec<Vec<u32>>, pairs: usize) -> Result<Self> {
        if numbers.len() != pairs || numbers.iter().flatten().any(|pair| *pair as usize >= pairs) {
            return Err(Error::Checkpoint("its hard negatives are those of another file".into()));
        }
        Ok(Self(numbers))
    }

    /// Returns true if they may be those of `examples`.
    pub fn fits(&self, examples: &ExampleStore) -> bool {
        self.0.len() == examples.len()
    }

    pub(super) fn numbers(&self) -> &[Vec<u32>] {
        &self.0
    }

    /// Counts the negatives.
    pub fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts the pairs that have some.
    pub fn pairs(&self) -> usize {
        self.0.iter().filter(|negatives| !negatives.is_empty()).count()
    }

    /// Appends them to the texts of their pairs, in a file in the folder `scratch`, and counts them in `report`. A
    /// negative that the pair has already is left out.
    pub fn append(&self, examples: &ExampleStore, report: &mut DatasetReport, scratch: &Path) -> Result<ExampleStore> {
        let mut writer = ExampleWriter::new(scratch)?;
        writer.unpooled = examples.unpooled();
        for (index, negatives) in self.0.iter().enumerate() {
            let mut texts = examples.texts(index)?;
            for negative in negatives {
                let text = examples.texts(*negative as usize)?.swap_remove(1);
                if !texts.contains(&text) {
                    report.texts += 1;
                    report.tokens += text.len();
                    report.target_tokens += text.len();
                    texts.push(text);
                }
            }
            writer.push_texts(&texts)?;
        }
        writer.finish()
    }
}

/// Counts in `report` as many negatives as a search for `count` may find, each of the usual length of a text.
pub fn expect(report: &mut DatasetReport, count: usize) -> Result<()> {
    check_pairs(report.sequences)?;
    let (texts, length) = (count * report.sequences, report.tokens / report.texts.max(1));
    report.texts += texts;
    report.tokens += texts * length;
    report.target_tokens += texts * length;
    Ok(())
}

fn check_pairs(pairs: usize) -> Result<()> {
    if pairs > MOST_PAIRS {
        let message = format!(
            "hard_negatives searches files of at most {MOST_PAIRS} pairs, and this one has {pairs}: leave it out, or give \
             negatives in the file"
        );
        return Err(Error::Setting { name: "hard_negatives", message });
    }
    Ok(())
}

/// Returns for each pair the numbers of the pairs whose positives are its negatives, the nearest first.
fn nearest(
    numbered: &NumberedPairs,
    anchors: &[Vec<f32>],
    positives: &[Vec<f32>],
    count: usize,
) -> Result<Vec<Vec<u32>>> {
    let pairs = &numbered.pairs;
    let own: HashSet<[usize; 2]> = pairs.iter().copied().collect();
    let mut first_pair = vec![u32::MAX; positives.len()];
    for (pair, [_, positive]) in pairs.iter().enumerate().rev() {
        first_pair[*positive] = pair as u32;
    }
    let mut by_anchor: Vec<usize> = (0..pairs.len()).collect();
    by_anchor.sort_by_key(|pair| pairs[*pair][0]);
    let all = matrix(positives)?.t()?;
    let mut found = vec![Vec::new(); pairs.len()];
    let mut rest = by_anchor.into_iter().peekable();
    for (chunk, part) in anchors.chunks(ROWS).enumerate() {
        let scores = matrix(part)?.matmul(&all)?.to_vec2::<f32>()?; // [anchors, texts]
        for (row, anchor) in scores.iter().zip(chunk * ROWS..) {
            // An anchor may be another pair's positive.
            let itself = numbered.positives.find(&numbered.anchors.texts()[anchor]);
            while let Some(pair) = rest.next_if(|pair| pairs[*pair][0] == anchor) {
                let of_own = f64::from(row[pairs[pair][1]]);
                let most = of_own - MARGIN * of_own.abs();
                let is_negative = |text: &usize| {
                    f64::from(row[*text]) <= most && !own.contains(&[anchor, *text]) && itself != Some(*text)
                };
                let mut negatives: Vec<usize> = (0..row.len()).filter(is_negative).collect();
                let order = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
                if negatives.len() > count {
                    negatives.select_nth_unstable_by(count, order);
                    negatives.truncate(count);
                }
                negatives.sort_by(order);
                found[pair] = negatives.into_iter().map(|text| first_pair[text]).collect();
            }
        }
    }
    Ok(found)
}

fn matrix(rows: &[Vec<f32>]) -> Result<Tensor> {
    let width = rows.first().map_or(0, Vec::len);
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(degrees: f32) -> Vec<f32> {
        vec![degrees.to_radians().cos(), degrees.to_radians().sin()]
    }

    fn numbered(pairs: &[(u32, u32)]) -> (ExampleStore, NumberedPairs) {
        let texts = |(anchor, positive): &(u32, u32)| vec![vec![1, *anchor], vec![1, *positive]];
        let store = ExampleStore::of_texts(pairs.iter().map(texts)).unwrap();
        let numbered = NumberedPairs::read(&store).unwrap();
        (store, numbered)
    }

    #[test]
    fn the_nearest_texts_behind_the_margin_are_taken_but_no_other_positive_of_the_anchor() {
        // The first two pairs have the same anchor.
        let (_, pairs) = numbered(&[(10, 20), (10, 21), (11, 22), (12, 23), (13, 24)]);
        let anchors = [at(0.0), at(90.0), at(180.0), at(30.0)];
        // Cosines with the first anchor: 0.87, 0.94, 0.85, 0.64, 0.
        let positives = [at(30.0), at(20.0), at(32.0), at(50.0), at(90.0)];
        let found = nearest(&pairs, &anchors, &positives, 2).unwrap();
        // 32° is nearer than a 20th below the first positive, and far enough below the second.
        assert_eq!((&found[0], &found[1]), (&vec![3, 4], &vec![2, 3]));
        assert_eq!(nearest(&pairs, &anchors, &positives, 0).unwrap(), vec![Vec::<u32>::new(); 5]);
        // The own positive of the third anchor is 130° away; negatives are still farther, the nearest of them first.
        assert_eq!(found[3], [2, 0]);
    }

    #[test]
    fn an_anchor_that_is_a_positive_too_is_not_its_own_negative() {
        let (_, pairs) = numbered(&[(10, 20), (11, 10), (12, 22)]);
        let positives = [at(0.0), at(20.0), at(40.0)];
        assert_eq!(nearest(&pairs, &[at(0.0), at(20.0), at(40.0)], &positives, 5).unwrap()[0], [2]);
    }

    #[test]
    fn negatives_are_appended_and_counted_once() {
        let (store, _) = numbered(&[(10, 20), (11, 21), (12, 21)]);
        let negatives = HardNegatives::of(vec![vec![1, 2], vec![], vec![0]], 3).unwrap();
        assert_eq!((negatives.len(), negatives.pairs()), (3, 2));
        let mut report = DatasetReport { texts: 6, tokens: 12, target_tokens: 12, ..DatasetReport::default() };
        let appended = negatives.append(&store, &mut report, &std::env::temp_dir()).unwrap();
        assert_eq!(appended.texts(0).unwrap(), [[1, 10], [1, 20], [1, 21]]);
        assert_eq!(appended.texts(1).unwrap(), store.texts(1).unwrap());
        assert_eq!((report.texts, report.tokens, report.target_tokens), (8, 16, 16));
        assert_ne!(appended.digest(), store.digest());
        assert!(HardNegatives::of(vec![vec![3], vec![], vec![]], 3).is_err());
        assert!(HardNegatives::of(vec![vec![]], 3).is_err());
    }

    #[test]
    fn what_a_search_may_find_is_expected_and_large_files_are_refused() {
        let mut report = DatasetReport { sequences: 100, texts: 200, tokens: 2000, ..DatasetReport::default() };
        expect(&mut report, 3).unwrap();
        assert_eq!((report.texts, report.tokens), (500, 5000));
        let mut large = DatasetReport { sequences: MOST_PAIRS + 1, ..report };
        assert!(matches!(expect(&mut large, 1), Err(Error::Setting { name: "hard_negatives", .. })));
    }
}
