//! The library's own model is the reference.

use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, BpeBuilder};

use super::*;

/// Characters of words: some without a token, and of those some whose bytes have tokens.
const LETTERS: [char; 7] = ['a', 'b', 'c', 'd', 'é', '日', '🙂'];

/// Numbers that are the same in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Draws a vocabulary and merges of it, some of a pair that has one already and some that make the token of another pair.
fn draw(draws: &mut Draws) -> (Vocab, Pairs) {
    let mut tokens: Vec<String> = ["a", "b", "c", "d", "<?>"].map(str::to_owned).to_vec();
    // All bytes of é, but not all of 日 and 🙂.
    tokens.extend(["<0xC3>", "<0xA9>", "<0xE6>", "<0x9F>"].map(str::to_owned));
    let mut pairs = Pairs::new();
    while pairs.len() < 60 {
        let [left, right] = [0; 2].map(|_| tokens[draws.below(tokens.len())].clone());
        let joined = format!("{left}{right}");
        if joined.chars().count() > 12 {
            continue;
        }
        if !tokens.contains(&joined) {
            tokens.push(joined);
        }
        let place = draws.below(pairs.len() + 1);
        pairs.insert(place, (left, right));
    }
    // Ids in another order than that of the merges, with gaps.
    let ids = (0..).map(|index: u32| index * 3 / 2);
    let mut vocabulary: Vec<_> = tokens.into_iter().collect();
    vocabulary.sort_by_key(|token| (token.len() % 5, token.clone()));
    (vocabulary.into_iter().zip(ids).collect(), pairs)
}

fn library(vocabulary: &Vocab, pairs: &Pairs, rules: &Rules) -> BPE {
    let mut builder = BpeBuilder::new()
        .vocab_and_merges(vocabulary.clone(), pairs.clone())
        .fuse_unk(rules.fuse_unk)
        .byte_fallback(rules.byte_fallback)
        .ignore_merges(rules.ignore_merges);
    if let Some(token) = &rules.unk_token {
        builder = builder.unk_token(token.clone());
    }
    builder.build().expect("a model")
}

#[test]
fn words_have_the_tokens_that_the_library_makes() {
    let mut draws = Draws(1);
    let mut merged = 0;
    for round in 0..96 {
        let has = |bit: usize| round >> bit & 1 == 1;
        let rules = Rules {
            unk_token: has(0).then(|| "<?>".to_owned()),
            fuse_unk: has(1),
            byte_fallback: has(2),
            ignore_merges: has(3),
        };
        let (vocabulary, pairs) = draw(&mut draws);
        let reference = library(&vocabulary, &pairs, &rules);
        let own = BytePairs::new(&vocabulary, &pairs, &rules).expect("a plain model");
        let mut words: Vec<String> = vocabulary.keys().cloned().collect();
        words.extend((0..200).map(|_| {
            let length = draws.below(20);
            (0..length).map(|_| LETTERS[draws.below(LETTERS.len()).min(draws.below(LETTERS.len()))]).collect()
        }));
        for word in &words {
            let tokens = own.tokenize(word);
            assert_eq!(tokens, reference.tokenize(word).expect("tokens"), "{word:?} with {rules:?}");
            assert_eq!(own.tokenize(word), tokens, "{word:?} once more, with {rules:?}");
            merged += tokens.iter().filter(|token| token.value.len() > 2 && !token.value.starts_with('<')).count();
        }
        for (token, id) in &vocabulary {
            assert_eq!((own.id(token), own.spelling(*id)), (Some(*id), Some(token.as_str())));
        }
        assert_eq!((own.count(), own.vocabulary()), (vocabulary.len(), reference.get_vocab()));
    }
    assert!(merged > 5_000, "few words had merges: {merged}");
}

#[test]
fn long_texts_have_the_tokens_that_the_library_makes() {
    let mut draws = Draws(2);
    let (vocabulary, pairs) = draw(&mut draws);
    let rules = Rules::default();
    let text: String = (0..50_000).map(|_| LETTERS[draws.below(3)]).collect();
    let own = BytePairs::new(&vocabulary, &pairs, &rules).expect("a plain model");
    let expected = library(&vocabulary, &pairs, &rules).tokenize(&text).expect("tokens");
    assert_eq!(own.tokenize(&text), expected);
}

#[test]
fn merges_and_marks_without_a_token_are_left_to_the_library() {
    let vocabulary: Vocab = [("a", 0), ("b", 1)].map(|(token, id)| (token.to_owned(), id)).into_iter().collect();
    let merge = |left: &str, right: &str| vec![(left.to_owned(), right.to_owned())];
    let rules = Rules::default();
    assert!(BytePairs::new(&vocabulary, &merge("a", "b"), &rules).is_none());
    assert!(BytePairs::new(&vocabulary, &merge("a", "c"), &rules).is_none());
    let rules = Rules { unk_token: Some("<?>".into()), ..rules };
    assert!(BytePairs::new(&vocabulary, &Pairs::new(), &rules).is_none());
}
