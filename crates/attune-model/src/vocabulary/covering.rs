//! How few tokens a text can have, told without tokenizing it. Tokenizing takes hundreds of bytes of memory for each
//! byte of text, so `api` asks this first, through [`Vocabulary::fewest_tokens`](super::Vocabulary::fewest_tokens).
//!
//! Where the tokens of a text, put together, are the text, each of them is the beginning of what is left of it. So the
//! longest token at every place tells how far each further token can reach. A tokenizer may cut the text elsewhere, but
//! never get further.

use llguidance::toktrie::{TokTrie, TrieNode};
use serde_json::Value;

use crate::tokenizer::Library;

/// Most bytes of text that NFC makes one byte of. Composing and replacing characters takes at most three.
const COMPOSED: usize = 4;

/// How the tokens of a text cover it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Covering {
    /// Put together they are the text, perhaps with a blank before it.
    Exact,
    /// They are the text in NFC, which may be shorter.
    Composed,
    /// The tokenizer may leave out or shorten parts of a text, such as blanks, so any text may have few tokens.
    Loose,
}

impl Covering {
    /// Finds it out. What is not known to keep a text is taken for loose.
    pub(super) fn of(tokenizer: &Library) -> Self {
        // The library shows what its parts are made of only in the form of `tokenizer.json`.
        let pre_tokenizer = tokenizer.get_pre_tokenizer().map(serde_json::to_value).transpose();
        let normalizer_part = tokenizer.get_normalizer().map(serde_json::to_value).transpose();
        let (Ok(pre_tokenizer), Ok(normalizer_part)) = (pre_tokenizer, normalizer_part) else { return Self::Loose };
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let keeps = tokenizer.get_model().spells_texts()
            && added.values().all(|token| !token.lstrip && !token.rstrip)
            && keeps_text(pre_tokenizer.as_ref());
        match normalizer_part.as_ref().map_or(Self::Exact, normalizer) {
            covering if keeps => covering,
            _ => Self::Loose,
        }
    }

    /// Returns what holds with the tokens of `trie`: a byte without a token would be left out, or be joined with others
    /// to one unknown token.
    pub(super) fn with_tokens(self, trie: &TokTrie) -> Self {
        let all = (0..=u8::MAX).filter(|byte| in_utf8(*byte)).all(|byte| trie.token_id(&[byte]).is_some());
        if all { self } else { Self::Loose }
    }
}

/// Returns true if texts hold the byte.
const fn in_utf8(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf5..)
}

fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or_default()
}

fn normalizer(part: &Value) -> Covering {
    match kind(part) {
        "Prepend" | "ByteLevel" => Covering::Exact,
        "NFC" => Covering::Composed,
        // The mark for a blank, as SentencePiece writes it.
        "Replace" if part["pattern"]["String"] == " " && part["content"] == "▁" => Covering::Exact,
        "Sequence" => {
            let all: Vec<Covering> = part["normalizers"].as_array().into_iter().flatten().map(normalizer).collect();
            let has = |covering| all.contains(&covering);
            if has(Covering::Loose) {
                Covering::Loose
            } else if has(Covering::Composed) {
                Covering::Composed
            } else {
                Covering::Exact
            }
        }
        _ => Covering::Loose,
    }
}

/// Returns true if the pre-tokenizer cuts a text, and leaves out nothing of it.
fn keeps_text(part: Option<&Value>) -> bool {
    let Some(part) = part else { return true };
    match kind(part) {
        "ByteLevel" | "Digits" | "Metaspace" => true,
        "Split" => part["behavior"].as_str().is_some_and(|behavior| behavior != "Removed"),
        "Sequence" => {
            part["pretokenizers"].as_array().is_some_and(|parts| parts.iter().all(|part| keeps_text(Some(part))))
        }
        _ => false,
    }
}

/// Returns a number of tokens that `text` has at least; what is above `limit` is not counted.
pub(super) fn fewest_tokens(trie: &TokTrie, covering: Covering, text: &[u8], limit: usize) -> usize {
    if covering == Covering::Loose {
        return 0;
    }
    // Ways into the trie: at its root, behind the blank that a tokenizer may put before a text, and behind the mark of
    // special tokens.
    let behind = |byte| trie.child_at_byte(trie.root(), byte);
    let ways = [Some(trie.root()), behind(b' '), behind(TokTrie::SPECIAL_TOKEN_MARKER)];
    let end_of_token = |place: usize| {
        let ends = ways.into_iter().flatten().map(|node| longest(trie, node, covering, &text[place..]));
        place + ends.max().unwrap_or(0)
    };
    let (mut tokens, mut covered, mut reach, mut place) = (0, 0, 0, 0);
    while covered < text.len() && tokens <= limit {
        // The next token begins somewhere in what is covered, since the ones before may be shorter.
        while place <= covered {
            reach = end_of_token(place).max(reach);
            place += 1;
        }
        if reach <= covered {
            return tokens;
        }
        covered = reach;
        tokens += 1;
    }
    tokens
}

/// Returns the length of the longest beginning of `text` that one token, the rest of which is below `node`, may stand
/// for.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the trie finds the children of a node by its address")]
fn longest<'a>(trie: &'a TokTrie, mut node: &'a TrieNode, covering: Covering, text: &[u8]) -> usize {
    let mut longest = 0;
    for (index, byte) in text.iter().enumerate() {
        // A character of ASCII stays what it is, unless a mark follows that it is composed with.
        let composed = |at: usize| text.get(at).is_some_and(|byte| !byte.is_ascii());
        if covering == Covering::Composed && (composed(index) || composed(index + 1)) {
            return index + COMPOSED * trie.max_token_len();
        }
        let Some(child) = trie.child_at_byte(node, *byte) else { break };
        node = child;
        if node.token_id().is_some() {
            longest = index + 1;
        }
    }
    longest
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use llguidance::toktrie::TokRxInfo;
    use serde_json::json;

    use super::*;
    use crate::tokenizer::{Tokenizer, TokenizerSource};

    fn trie(words: &[&str]) -> TokTrie {
        let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
        let words: Vec<Vec<u8>> = bytes.chain(words.iter().map(|word| word.as_bytes().to_vec())).collect();
        TokTrie::from(&TokRxInfo::new(words.len() as u32, 0), &words)
    }

    #[test]
    fn each_token_reaches_as_far_as_the_longest_at_any_place_before() {
        let trie = trie(&["ab", "bcdef", " long"]);
        let fewest = |text: &str, limit| fewest_tokens(&trie, Covering::Exact, text.as_bytes(), limit);
        assert_eq!(fewest("", 9), 0);
        assert_eq!(fewest("ab", 9), 1);
        // "ab" would leave "cdef", but "a" and "bcdef" are two.
        assert_eq!(fewest("abcdef", 9), 2);
        assert_eq!(fewest("1111", 9), 4);
        assert_eq!(fewest(&"1".repeat(1 << 20), 9), 10, "what is above the limit is not counted");
        // A blank that is put before the text.
        assert_eq!(fewest("long", 9), 1);
        assert_eq!(fewest_tokens(&trie, Covering::Loose, b"1111", 2), 0);
    }

    #[test]
    fn composed_characters_count_for_the_text_that_they_may_come_from() {
        let trie = trie(&["\u{1f82}"]);
        let fewest = |text: &str| fewest_tokens(&trie, Covering::Composed, text.as_bytes(), 1000);
        assert_eq!(fewest("1111"), 4);
        // Eight bytes that become the three of one token.
        assert_eq!(fewest("\u{3b1}\u{313}\u{300}\u{345}"), 1);
        assert!(fewest("11e\u{301}").abs_diff(3) <= 1, "the last letter may be composed");
        assert!(fewest(&"\u{3b1}".repeat(1000)) > 100);
    }

    #[test]
    fn tokenizers_that_leave_out_parts_of_a_text_are_known() {
        let read = |change: &dyn Fn(&mut Value)| {
            let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
            let mut file = json!({"normalizer": null, "pre_tokenizer": bytes, "added_tokens": [],
                                  "model": {"type": "BPE", "vocab": {}, "merges": []}});
            change(&mut file);
            let (json, origin) = (file.to_string().into_bytes(), "tokenizer.json".to_owned());
            let source = TokenizerSource { json, special_tokens: BTreeMap::new(), origin };
            Covering::of(Tokenizer::new(&source).unwrap().library())
        };
        assert_eq!(read(&|_| ()), Covering::Exact);
        assert_eq!(Covering::Exact.with_tokens(&trie(&[])), Covering::Exact);
        let letters = TokTrie::from(&TokRxInfo::new(1, 0), &[b"a".to_vec()]);
        assert_eq!(Covering::Exact.with_tokens(&letters), Covering::Loose);
        assert_eq!(read(&|file| file["normalizer"] = json!({"type": "NFC"})), Covering::Composed);
        let blanks = json!([{"type": "Prepend", "prepend": "▁"},
                            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]);
        assert_eq!(
            read(&|file| file["normalizer"] = json!({"type": "Sequence", "normalizers": blanks})),
            Covering::Exact
        );
        let loose: [&dyn Fn(&mut Value); 7] = [
            &|file| file["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            &|file| file["normalizer"] = json!({"type": "NFKC"}),
            &|file| file["normalizer"] = json!({"type": "Lowercase"}),
            &|file| file["pre_tokenizer"] = json!({"type": "WhitespaceSplit"}),
            &|file| {
                file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed",
                                                    "invert": false});
            },
            &|file| {
                file["added_tokens"] = json!([{"id": 0, "content": "<s>", "single_word": false, "lstrip": false,
                                                     "rstrip": true, "normalized": false, "special": true}]);
            },
            &|file| file["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        ];
        for (index, change) in loose.into_iter().enumerate() {
            assert_eq!(read(change), Covering::Loose, "{index}");
        }
    }
}
