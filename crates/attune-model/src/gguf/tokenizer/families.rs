//! The rules of the families of byte-pair tokenizers, by the name that `tokenizer.ggml.pre` holds: how a text is cut into
//! words before pairs are merged, and what is put around it. The expressions are those of the original tokenizers;
//! llama.cpp's own forms of some of them differ outside ASCII.

use serde_json::{Value, json};

use super::REMEDY;
use super::tokens::BLANK;
use crate::Result;
use crate::gguf::Metadata;

/// What the tokens are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Bytes, each written as one character of GPT-2's table.
    Bytes,
    /// Characters, with a mark for the blank.
    Characters,
}

/// A step of cutting a text into words, applied to the pieces of the step before.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Every match of the expression becomes a piece, and so does what lies between.
    Match(&'static str),
    /// Every digit becomes a piece.
    Digit,
    /// Every run of digits becomes a piece.
    DigitRun,
    /// Every run of punctuation becomes a piece.
    PunctuationRun,
    /// Cuts into GPT-2's words, and writes bytes as characters.
    WordBytes,
    /// Writes bytes as characters.
    Bytes,
}

/// The rules of a family.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "independent rules of families")]
pub(super) struct Family {
    pub(super) alphabet: Alphabet,
    steps: &'static [Step],
    /// Compose characters and marks (NFC) first.
    composes: bool,
    /// Take a word that is a token without merging.
    pub(super) ignore_merges: bool,
    /// Put the begin token before a text where the file does not say.
    pub(super) begins: bool,
    /// Put it there whatever the file says.
    pub(super) always_begins: bool,
}

/// Puts together the expressions that differ in how they take letters, signs and digits.
macro_rules! words {
    ($contractions:expr, $letters:expr, $digits:expr, $signs:expr) => {
        concat!($contractions, $letters, "|", $digits, r"| ?", $signs, r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    };
}

const LLAMA_3: &str =
    words!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]+[\r\n]*");
const QWEN_2: &str =
    words!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r"[^\s\p{L}\p{N}]+[\r\n]*");
const QWEN_35: &str = words!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
);
const MINICPM_5: &str =
    words!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}+", r"[^\s\p{L}\p{N}]+[\r\n]*");
const TEKKEN: &str = words!(
    "",
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    ),
    r"\p{N}",
    r"[^\s\p{L}\p{N}]+[\r\n/]*"
);
const GPT_4O: &str = words!(
    "",
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    ),
    r"\p{N}{1,3}",
    r"[^\s\p{L}\p{N}]+[\r\n/]*"
);
/// The letters that DeepSeek's first tokenizer joins.
const DEEPSEEK_LETTERS: &str = concat!(
    "\\s?[",
    "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}",
    "\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}",
    "\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}",
    "\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}",
    "\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}",
    "\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}",
    "\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}",
    "\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}",
    "\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}",
    "\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}",
    "\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}",
    "\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}",
    "\u{118a0}-\u{118df}\u{1e900}-\u{1e943}",
    "]+"
);
/// Punctuation that it joins.
const DEEPSEEK_SIGNS: &str = "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
/// Han, kana and Hangul, in its ranges.
const DEEPSEEK_IDEOGRAPHS: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
/// Han and kana, in the ranges of its third tokenizer.
const DEEPSEEK_3_IDEOGRAPHS: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const DEEPSEEK_3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const PLAIN: Family = Family {
    alphabet: Alphabet::Bytes,
    steps: &[Step::WordBytes],
    composes: false,
    ignore_merges: false,
    begins: false,
    always_begins: false,
};
/// Gemma 4, whose files name it as a kind of its own.
pub(super) const GEMMA_4: Family = Family {
    alphabet: Alphabet::Characters,
    steps: &[Step::Match(r"[^\n]+|\n+")],
    begins: true,
    always_begins: true,
    ..PLAIN
};

/// Returns the family that the file names. Refuses one whose rules are not known exactly.
pub(super) fn of(metadata: &Metadata) -> Result<Family> {
    let key = "tokenizer.ggml.pre";
    let name = metadata.text(key)?.filter(|name| !name.is_empty() && *name != "default");
    let Some(name) = name else {
        return Err(metadata.fault(&format!(
            "the key `{key}` does not say how texts are cut into words, as in files of 2024 and before: convert the \
             model again with a current llama.cpp, or {REMEDY}"
        )));
    };
    named(name).ok_or_else(|| {
        metadata.fault(&format!("the rules of the tokenizers `{name}` (key {key}) are not known exactly: {REMEDY}"))
    })
}

/// Names of families that files are written with: of those with the same rules, one that llama.cpp has known for long.
pub(super) const WRITTEN: [&str; 17] = [
    "llama-bpe",
    "qwen2",
    "smollm",
    "gpt-2",
    "tekken",
    "gpt-4o",
    "smaug-bpe",
    "glm4",
    "stablelm2",
    "qwen35",
    "command-r",
    "olmo",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "minicpm5",
];

/// Returns the family of this name; `None` if its rules are not known exactly.
pub(super) fn named(name: &str) -> Option<Family> {
    let words = |steps| Family { steps, ..PLAIN };
    let llama_3 = words(&[Step::Match(LLAMA_3), Step::Bytes]);
    let qwen_2 = words(&[Step::Match(QWEN_2), Step::Bytes]);
    let digits = words(&[Step::Digit, Step::WordBytes]);
    let gpt_4o = words(&[Step::Match(GPT_4O), Step::Bytes]);
    Some(match name {
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            Family { ignore_merges: true, begins: true, ..llama_3 }
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => llama_3,
        "glm4" | "glm5" => Family { ignore_merges: true, ..llama_3 },
        "minicpm5" => {
            Family { ignore_merges: true, ..words(&[Step::Match(r"\p{N}{1,3}"), Step::Match(MINICPM_5), Step::Bytes]) }
        }
        "qwen2" | "deepseek-r1-qwen" => Family { composes: true, ..qwen_2 },
        "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => qwen_2,
        "qwen35" => Family { composes: true, ..words(&[Step::Match(QWEN_35), Step::Bytes]) },
        "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" => digits,
        "command-r" => Family { composes: true, ..digits },
        "gpt-2" | "roberta-bpe" | "phi-2" | "jais" | "exaone4" | "a.x-4.0" | "mellum" | "granite-docling"
        | "trillion" => PLAIN,
        // All three have the tokenizer of GPT-NeoX.
        "olmo" | "mpt" | "modern-bert" => Family { composes: true, ..PLAIN },
        "tekken" => Family { ignore_merges: true, begins: true, ..words(&[Step::Match(TEKKEN), Step::Bytes]) },
        "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => gpt_4o,
        "deepseek-llm" => words(&[
            Step::Match(r"[\r\n]"),
            Step::Match(DEEPSEEK_LETTERS),
            Step::Match(DEEPSEEK_SIGNS),
            Step::Match(r"\s+$"),
            Step::Match(DEEPSEEK_IDEOGRAPHS),
            Step::Digit,
            Step::Bytes,
        ]),
        "deepseek-coder" => words(&[
            Step::Match(r"[\r\n]"),
            Step::Match(r"\s?\p{L}+"),
            Step::Match(r"\s?\p{P}+"),
            Step::Match(DEEPSEEK_IDEOGRAPHS),
            Step::Digit,
            Step::Bytes,
        ]),
        "deepseek-v3" => words(&[
            Step::Match(r"\p{N}{1,3}"),
            Step::Match(DEEPSEEK_3_IDEOGRAPHS),
            Step::Match(DEEPSEEK_3),
            Step::Bytes,
        ]),
        // The order is the original's, in which digits are looked for among the characters that stand for bytes.
        "falcon" => words(&[Step::PunctuationRun, Step::WordBytes, Step::DigitRun, Step::Match(r"[0-9][0-9][0-9]")]),
        "gemma4" => GEMMA_4,
        "sarvam-moe" => Family { begins: false, always_begins: false, ..GEMMA_4 },
        _ => return None,
    })
}

impl Family {
    /// Returns the part that changes a text before it is cut.
    pub(super) fn normalizer(&self) -> Option<Value> {
        match self.alphabet {
            Alphabet::Bytes => self.composes.then(|| json!({"type": "NFC"})),
            Alphabet::Characters => Some(json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})),
        }
    }

    /// Returns the part that cuts a text into words.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(|step| step.to_json()).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

impl Step {
    fn to_json(self) -> Value {
        match self {
            Self::Match(expression) => {
                json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
            }
            Self::Digit => json!({"type": "Digits", "individual_digits": true}),
            Self::DigitRun => json!({"type": "Digits", "individual_digits": false}),
            Self::PunctuationRun => json!({"type": "Punctuation", "behavior": "Contiguous"}),
            Self::WordBytes => json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}),
            Self::Bytes => {
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
            }
        }
    }
}
