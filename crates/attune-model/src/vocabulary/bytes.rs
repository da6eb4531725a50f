//! The bytes that each token of a tokenizer stands for, read from the tokenizer's own decoder, and the tokenizer in the
//! form in which grammars ask it how a text is written.

use llguidance::toktrie::{TokTrie, TokenId, TokenizerEnv};
use serde_json::Value;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use crate::tokenizer::Library;

/// What a decoder makes of the name of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character of the name stands for a byte, in GPT-2's table.
    Bytes,
    /// The name is the text, with a mark for blanks; single bytes are named `<0x41>`.
    Characters { blank: char },
}

impl Spelling {
    /// Finds out how `tokenizer` spells tokens; `None` if its tokens have no bytes of their own.
    pub(super) fn of(tokenizer: &Library) -> Option<Self> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()?).ok()?;
        let mut steps = Vec::new();
        collect(&decoder, "decoders", &mut steps);
        let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
        let blank = steps.iter().filter(|step| step["type"] == "Replace" && step["content"] == " ").find_map(|step| {
            let mut mark = step["pattern"]["String"].as_str()?.chars();
            mark.next().filter(|_| mark.next().is_none())
        });
        if has("ByteFallback") {
            Some(Self::Characters { blank: blank.unwrap_or(' ') })
        } else {
            has("ByteLevel").then_some(Self::Bytes)
        }
    }

    /// Returns the bytes of the token `name`.
    pub(super) fn bytes(self, name: &str) -> Vec<u8> {
        match self {
            // A name outside the table is text, as in the library's decoder.
            Self::Bytes => name.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| name.as_bytes().to_vec()),
            Self::Characters { blank } => match single_byte(name) {
                Some(byte) => vec![byte],
                None => name.replace(blank, " ").into_bytes(),
            },
        }
    }
}

/// Collects a part of `tokenizer.json` and, if it is a sequence, what is inside it under the key `inside`.
fn collect<'a>(part: &'a Value, inside: &str, steps: &mut Vec<&'a Value>) {
    steps.push(part);
    part[inside].as_array().into_iter().flatten().for_each(|step| collect(step, inside, steps));
}

/// Returns the byte that a character stands for: itself if it is printable, else bytes have the characters from 256 on.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let is_own = |code: u32| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_own(code) {
        return u8::try_from(code).ok();
    }
    let place = code.checked_sub(256)? as usize;
    (0..256).filter(|byte| !is_own(*byte)).nth(place).and_then(|byte| u8::try_from(byte).ok())
}

/// Returns the byte that is named `<0x41>`.
fn single_byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The tokens of texts, for grammars.
pub(super) struct Environment {
    trie: TokTrie,
    tokenizer: Library,
}

impl Environment {
    /// Makes the environment of `trie`. A grammar asks for pieces of an answer, so nothing is put before them; names of
    /// special tokens that a schema holds are text.
    pub(super) fn new(trie: TokTrie, mut tokenizer: Library) -> Self {
        // Parts that the library writes it reads again.
        let normalizer = tokenizer.get_normalizer().and_then(|part| serde_json::to_value(part).ok());
        match normalizer.map(without_prefix) {
            Some(Some(kept)) => {
                if let Ok(kept) = serde_json::from_value::<NormalizerWrapper>(kept) {
                    tokenizer.with_normalizer(Some(kept));
                }
            }
            Some(None) => {
                tokenizer.with_normalizer(None::<NormalizerWrapper>);
            }
            None => {}
        }
        let mut pre_tokenizer = tokenizer.get_pre_tokenizer().and_then(|part| serde_json::to_value(part).ok());
        pre_tokenizer.iter_mut().for_each(never_prepend);
        if let Some(Ok(kept)) = pre_tokenizer.map(serde_json::from_value::<PreTokenizerWrapper>) {
            tokenizer.with_pre_tokenizer(Some(kept));
        }
        tokenizer.set_encode_special_tokens(true);
        Self { trie, tokenizer }
    }

    /// Returns the tokens of a text: the tokenizer's, or the longest ones that fit if it has none for it.
    fn tokens(&self, text: &str) -> Vec<TokenId> {
        let ids = self.tokenizer.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec());
        let known = |ids: &Vec<TokenId>| ids.iter().all(|id| (*id as usize) < self.trie.vocab_size());
        ids.ok().filter(known).unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
    }
}

/// Takes the parts out that put something before a text; `None` if nothing is left.
fn without_prefix(mut part: Value) -> Option<Value> {
    if part["type"] == "Prepend" {
        return None;
    }
    if let Some(steps) = part.get_mut("normalizers").and_then(Value::as_array_mut) {
        *steps = std::mem::take(steps).into_iter().filter_map(without_prefix).collect();
        if steps.is_empty() {
            return None;
        }
    }
    Some(part)
}

fn never_prepend(part: &mut Value) {
    if part["type"] == "Metaspace" {
        part["prepend_scheme"] = "never".into();
    }
    let steps = part.get_mut("pretokenizers").and_then(Value::as_array_mut);
    steps.into_iter().flatten().for_each(never_prepend);
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.tokens(text))
    }

    fn tokenize_bytes_special(&self, bytes: &[u8]) -> Vec<TokenId> {
        let with_special = |text: &str| self.trie.tokenize_with_special(text, |text| self.tokens(text));
        self.trie.tokenize_with_greedy_fallback(bytes, with_special)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_a_character_of_its_own() {
        let known: Vec<(char, u8)> =
            (0..512).filter_map(char::from_u32).filter_map(|letter| Some((letter, byte_of(letter)?))).collect();
        let mut bytes: Vec<u8> = known.iter().map(|(_, byte)| *byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        for (letter, byte) in [('A', b'A'), ('Ġ', b' '), ('Ċ', b'\n'), ('é', 0xe9), ('Ń', 0xad)] {
            assert_eq!(byte_of(letter), Some(byte), "{letter}");
        }
        assert_eq!(byte_of('日'), None);
    }

    #[test]
    fn tokens_have_the_bytes_that_a_decoder_makes_of_their_names() {
        let characters = Spelling::Characters { blank: '▁' };
        assert_eq!(characters.bytes("▁a▁▁"), b" a  ");
        assert_eq!((characters.bytes("<0xFF>"), characters.bytes("<0xxy>")), (vec![255], b"<0xxy>".to_vec()));
        assert_eq!((Spelling::Bytes.bytes("Ġé"), Spelling::Bytes.bytes("<日>")), (vec![b' ', 0xe9], "<日>".into()));
    }
}
