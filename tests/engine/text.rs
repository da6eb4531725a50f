//! Text that grows token by token equals the text of all tokens, however the tokens cut characters and words.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use crate::engine_support::{byte_fallback, byte_level};
use attune::engine::stops::StopTexts;
use attune::engine::text::TextStream;
use attune::model::tokenizer::Tokenizer;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Returns the text that a client receives, delta by delta, and whether a stop text ended it.
fn stream(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], stops: &[&str]) -> (Vec<String>, bool) {
    let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let mut text = TextStream::new(tokenizer, prompt, &StopTexts::new(&stops)).unwrap();
    let mut deltas = Vec::new();
    for id in ids {
        let piece = text.push(tokenizer, *id).unwrap();
        deltas.push(piece.text);
        if piece.stopped {
            return (deltas, true);
        }
    }
    let piece = text.finish(tokenizer).unwrap();
    deltas.push(piece.text);
    (deltas, piece.stopped)
}

/// Cuts `bytes` at random and gives each piece an id of its own.
fn cut(bytes: &[u8], random: &mut ChaCha8Rng) -> (Tokenizer, Vec<u32>) {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(random.random_range(1..=rest.len().min(5)));
        pieces.push(piece);
        rest = after;
    }
    let unique: BTreeSet<&[u8]> = pieces.iter().copied().filter(|piece| piece.len() > 1).collect();
    let unique: Vec<&[u8]> = unique.into_iter().collect();
    let id = |piece: &&[u8]| match piece {
        [byte] => u32::from(*byte),
        _ => 256 + unique.iter().position(|other| other == piece).unwrap() as u32,
    };
    let ids = pieces.iter().map(id).collect();
    (byte_level(&unique), ids)
}

fn random_text(random: &mut ChaCha8Rng, length: usize) -> String {
    let alphabet: Vec<char> = "ab \nß한語€é👩‍🚀👍🏽\u{200d}\u{301}".chars().collect();
    (0..length).map(|_| alphabet[random.random_range(0..alphabet.len())]).collect()
}

#[test]
fn deltas_join_to_the_whole_text_for_any_cut() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..200 {
        let length = random.random_range(0..120);
        let text = random_text(&mut random, length);
        let (tokenizer, ids) = cut(text.as_bytes(), &mut random);
        let split = random.random_range(0..=ids.len());
        let (deltas, _) = stream(&tokenizer, &[], &ids, &[]);
        assert_eq!(deltas.concat(), text);
        assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')), "half a character in {deltas:?}");
        // The prompt ends between characters, so the answer is the rest of the text.
        let prompt = tokenizer.decode(&ids[..split], true).unwrap();
        if !prompt.ends_with('\u{fffd}') {
            let (deltas, _) = stream(&tokenizer, &ids[..split], &ids[split..], &[]);
            assert_eq!(prompt + &deltas.concat(), text);
        }
    }
}

#[test]
fn bytes_that_are_no_text_come_out_as_one_decoding_of_all() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..200 {
        let length = random.random_range(0..300);
        let bytes: Vec<u8> = (0..length)
            .map(|_| match random.random_range(0..4) {
                0 => b'a',
                1 => 0xf0,
                _ => random.random_range(0x80..=0xff),
            })
            .collect();
        let (tokenizer, ids) = cut(&bytes, &mut random);
        let (deltas, _) = stream(&tokenizer, &[], &ids, &[]);
        assert_eq!(deltas.concat(), tokenizer.decode(&ids, true).unwrap());
    }
}

#[test]
fn a_stop_text_never_shows_and_what_is_before_it_does() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut stopped_cases = 0;
    for _ in 0..400 {
        let length = random.random_range(1..60);
        let text = random_text(&mut random, length);
        let (tokenizer, ids) = cut(text.as_bytes(), &mut random);
        let stops: Vec<String> = (0..random.random_range(1..=4))
            .map(|_| {
                let length = random.random_range(1..=3);
                random_text(&mut random, length)
            })
            .collect();
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let (deltas, stopped) = stream(&tokenizer, &[], &ids, &stops);
        // Finds the stop text that is complete first, of several the longest, by plain search.
        let first = stops.iter().filter_map(|stop| Some((text.find(stop)? + stop.len(), stop.len())));
        let expected = first.min_by_key(|(end, length)| (*end, usize::MAX - length));
        match expected {
            Some((end, length)) => assert_eq!(deltas.concat(), text[..end - length], "stops {stops:?} in {text:?}"),
            None => assert_eq!(deltas.concat(), text),
        }
        assert_eq!(stopped, expected.is_some());
        stopped_cases += usize::from(stopped);
    }
    assert!((100..400).contains(&stopped_cases), "the cases are one-sided: {stopped_cases}");
}

#[test]
fn what_may_become_a_stop_text_waits_and_is_shown_when_it_does_not() {
    let tokenizer = byte_level(&[b"ab", b"aba"]);
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let (deltas, stopped) = stream(&tokenizer, &[], &ids("xababy"), &["ababc"]);
    assert_eq!(deltas, ["x", "", "", "", "", "ababy", ""]);
    assert!(!stopped);
    let (deltas, stopped) = stream(&tokenizer, &[], &ids("aababac"), &["abac"]);
    assert_eq!((deltas.concat().as_str(), stopped), ("aab", true));
    // The answer ends inside a stop text, which is therefore shown.
    assert_eq!(stream(&tokenizer, &[], &ids("xaba"), &["abac"]).0.concat(), "xaba");
    // A stop text inside one token, and an empty one, which stops nothing.
    assert_eq!(stream(&tokenizer, &[], &[b'x'.into(), 257], &["b", ""]).0.concat(), "xa");
}

#[test]
fn special_and_unknown_tokens_have_no_text() {
    let tokenizer = byte_level(&[]);
    let (deltas, _) = stream(&tokenizer, &[], &[0xe2, 256, 0x82, 9999, 0xac, 256, 0xc3], &[]);
    assert_eq!(deltas, ["", "", "", "", "€", "", "", "\u{fffd}"]);
}

#[test]
fn blanks_and_bytes_of_sentencepiece_tokenizers_survive() {
    let tokenizer = byte_fallback(&["▁Hello", "▁world", "▁", "!"]);
    let (hello, world, blank, mark) = (256, 257, 258, 259);
    assert_eq!(stream(&tokenizer, &[], &[hello, world, mark], &[]).0, ["Hello", " world", "!", ""]);
    // As the continuation of a prompt the blank belongs to the answer.
    assert_eq!(stream(&tokenizer, &[hello], &[world, blank, blank, mark], &[]).0.concat(), " world  !");
    let emoji: Vec<u32> = "👍👍é€".bytes().map(u32::from).collect();
    let (deltas, _) = stream(&tokenizer, &[hello], &[&emoji[..], &[world]].concat(), &[]);
    assert_eq!(deltas.concat(), "👍👍é€ world");
    assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')), "half a character in {deltas:?}");
}

#[test]
fn a_tokenizer_neither_cuts_nor_pads_and_knows_its_end() {
    let tokenizer = byte_level(&[b"he"]);
    assert_eq!(tokenizer.encode("hello wörld", true).unwrap().len(), 12);
    assert_eq!(tokenizer.encode("a<end>", false).unwrap(), [u32::from(b'a'), 257]);
    assert_eq!((tokenizer.vocabulary_size(), tokenizer.end_token()), (258, Some(257)));
    assert_eq!(tokenizer.decode(&[104, 257, 105], true).unwrap(), "hi");
    assert_eq!(tokenizer.decode(&[104, 257, 105], false).unwrap(), "h<end>i");

    let error = Tokenizer::read(std::path::Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/tokenizer.json"), "{error}");
}

#[test]
fn a_special_token_that_is_shown_ends_the_text_before_it() {
    let tokenizer = byte_level(&[]);
    let end = 256;
    let mut text =
        TextStream::new(&tokenizer, b"x".map(u32::from).as_slice(), &StopTexts::new(&["stop<".into()])).unwrap();
    let mut shown = String::new();
    for id in b"st".map(u32::from) {
        shown += &text.push(&tokenizer, id).unwrap().text;
    }
    assert_eq!(shown, "", "held back: it may become the stop text");
    assert_eq!(text.push_special(&tokenizer, end).unwrap().text, "st<end>");
    // The stop text begins anew: `op<` alone is not one.
    let mut after = String::new();
    for id in b"op<stop<".map(u32::from) {
        let piece = text.push(&tokenizer, id).unwrap();
        after += &piece.text;
        if piece.stopped {
            break;
        }
    }
    assert_eq!(after, "op<");
}
