//! Files of pairs of texts: their spellings, the result of each line, and messages for wrong lines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use crate::characters::{Characters, Rendered, Template};
use attune::datasets::{self, Purpose, RenderSettings, TextPrompts};
use attune_train::{Error, FileFault, Result};
use serde_json::{Value, json};

fn read_as(file: &str, purpose: Purpose, max_tokens: usize) -> Result<Rendered> {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let codec = Characters { template: Template::Plain };
    Rendered::of(datasets::read(Cursor::new(file), purpose, &codec, &settings)?)
}

/// Reads lines after a good one, since a single pair is too few.
fn read(lines: &[Value]) -> Result<Rendered> {
    let good = json!({"anchor": "first", "positive": "line"});
    let file: String = std::iter::once(&good).chain(lines).map(|line| line.to_string() + "\n").collect();
    read_as(&file, Purpose::Validation, 4096)
}

/// Returns the texts of an example; each begins with the tokenizer's prefix of a text.
fn texts(data: &Rendered, example: usize) -> Vec<String> {
    let text = |tokens: &[u32]| {
        assert_eq!(tokens[0], 999, "tokenized as a text that is sent to be embedded");
        tokens[1..].iter().map(|token| char::from_u32(*token).unwrap()).collect()
    };
    data.texts[example].iter().map(|tokens| text(tokens)).collect()
}

#[test]
fn every_spelling_is_read_and_a_negative_is_a_text_or_a_few() {
    for (anchor, positive) in [("anchor", "positive"), ("query", "document"), ("sentence1", "sentence2")] {
        let data = read(&[json!({anchor: "ab", positive: "c"})]).unwrap();
        assert_eq!(texts(&data, 1), ["ab", "c"]);
        assert!(data.report.is_of_pairs());
    }
    let data = read(&[
        json!({"anchor": "a", "positive": "b", "negative": "c"}),
        json!({"query": "a", "document": "b", "negative": ["c", "d"]}),
        json!({"anchor": "a", "positive": "b", "negatives": ["c"]}),
        json!({"anchor": "a", "positive": "b", "negative": null}),
        json!({"anchor": "a", "positive": "b", "negative": []}),
    ])
    .unwrap();
    let found: Vec<_> = (1..6).map(|example| texts(&data, example).concat()).collect();
    assert_eq!(found, ["abc", "abcd", "abc", "ab", "ab"]);
    let report = &data.report;
    assert_eq!((report.examples, report.sequences, report.texts, report.longest), (6, 6, 16, 6));
    assert_eq!((report.tokens, report.target_tokens), (6 + 5 + 28, 6 + 5 + 28), "every text has a token before it");
    assert_eq!((report.duplicates.count, report.duplicates.first.clone()), (2, vec![4, 6]));
}

#[test]
fn long_texts_are_cut_and_what_is_then_the_same_is_left_out() {
    let lines = [
        json!({"anchor": "abcdefgh", "positive": "x"}),
        json!({"anchor": "abcdXX", "positive": "abcdYY"}),
        json!({"anchor": "a", "positive": "b", "negative": ["cdefgh", "cdefzz", "bbb"]}),
        json!({"anchor": "other", "positive": "abcde", "negative": "abcdeff"}),
    ];
    let file: String = lines.iter().map(|line| line.to_string() + "\n").collect();
    let data = read_as(&file, Purpose::Validation, 5).unwrap();
    let found: Vec<_> = (0..3).map(|example| texts(&data, example)).collect();
    assert_eq!(found[0], ["abcd", "x"]);
    assert_eq!(found[1], ["a", "b", "cdef", "bbb"]);
    assert_eq!(found[2], ["othe", "abcd"]);
    let report = &data.report;
    assert_eq!((report.examples, report.sequences), (4, 3));
    assert_eq!((report.truncated.first.clone(), report.dropped.first.clone()), (vec![1, 3, 4], vec![2]));
}

#[test]
fn every_fault_names_its_line_and_what_to_change() {
    let many: Vec<String> = (0..17).map(|i| format!("n{i}")).collect();
    let cases = [
        (json!({"anchor": "a"}), "has no `positive` (nor `document` or `sentence2`)"),
        (json!({"positive": "a"}), "has no `anchor` (nor `query` or `sentence1`)"),
        (json!({"sentence2": "a"}), "has no `anchor`"),
        (json!({"anchor": "a", "query": "a", "positive": "b"}), "has both `anchor` and `query`: keep one"),
        (json!({"anchor": 1, "positive": "b"}), "has a number as `anchor`: give a string"),
        (json!({"query": "a", "document": null}), "has null as `document`: give a string"),
        (json!({"anchor": "a", "positive": " "}), "has an empty `positive`: give a text"),
        (
            json!({"anchor": "a", "positive": "b", "negative": 1}),
            "has a number as `negative`: give a string or an array",
        ),
        (json!({"anchor": "a", "positive": "b", "negative": ["c", 1]}), "has a number as `negative`"),
        (json!({"anchor": "a", "positive": "b", "negative": ["c", ""]}), "has an empty `negative`"),
        (json!({"anchor": "a", "positive": "b", "negative": many}), "has 17 texts in `negative`: give 16 at the most"),
        (json!({"anchor": "a", "positive": "a"}), "has the same text as `anchor` and `positive`"),
        (json!({"query": "a", "document": "b", "negative": "b"}), "has the same text as `document` and `negative`"),
        (json!({"anchor": "a", "positive": "b", "negative": ["c", "c"]}), "as `negative` and `negative`"),
        (
            json!({"sentence1": "a", "sentence2": "b", "score": 0.5}),
            "is a pair of texts with a score, but line 1 is a pair of texts: use one format",
        ),
        (
            json!({"query": "a", "document": "b", "label": 1}),
            "is a pair of texts with a label, but line 1 is a pair of texts: use one format",
        ),
        (json!({"sentence1": "a", "sentence2": "b", "score": 4.2}), "divide scores of 0 to 5 by 5 in every line"),
        (json!({"sentence1": "a", "sentence2": "b", "score": 95}), "divide it by the largest that it could be"),
        (json!({"sentence1": "a", "sentence2": "b", "score": -1.5}), "has -1.5 as `score`, which goes from -1 to 1"),
        (json!({"sentence1": "a", "sentence2": "b", "score": "0.5"}), "has a string as `score`: give a number"),
        (json!({"query": "a", "document": "b", "label": -0.5}), "has -0.5 as `label`, which goes from 0 to 1"),
        (json!({"query": "a", "document": "b", "label": 1, "score": 1}), "has both `score` and `label`: keep `score`"),
        (json!({"anchor": "a", "positive": "b", "negative": "c", "score": 1}), "has a `negative` beside a number"),
        (json!({"anchor": "a", "positive": "b", "similarity": 0.5}), "rename it to `score` if it says how alike"),
        (json!({"sentence1": "a", "sentence2": "b", "id": 5}), "has the unknown key `id`: remove it"),
        (json!({"query": "a", "response": "b"}), "rename `query` to `prompt` and rename `response` to `completion`"),
        (json!({"messages": [{"role": "user", "content": "u"}]}), "has no assistant message"),
        (
            json!({"prompt": "a", "completion": "b"}),
            "is a prompt and completion, but line 1 is a pair of texts: use one",
        ),
        (json!({"prompt": "a", "completion": "b", "query": "c"}), "has the unknown key `query`"),
        (json!(["a", "b"]), "is an array, not a JSON object"),
    ];
    for (line, expected) in cases {
        let Err(Error::File { purpose, fault, message }) = read(std::slice::from_ref(&line)) else {
            panic!("{line} is read");
        };
        assert!(message.contains("Line 2 ") && message.contains(expected), "{line}: {message}");
        assert_eq!((purpose, fault), (Purpose::Validation, FileFault::Content));
    }
}

/// Reads lines alone.
fn read_alone(lines: &[Value], max_tokens: usize) -> Rendered {
    let file: String = lines.iter().map(|line| line.to_string() + "\n").collect();
    read_as(&file, Purpose::Validation, max_tokens).unwrap()
}

#[test]
fn scores_are_read_with_their_texts() {
    let data = read_alone(
        &[
            json!({"sentence1": "ab", "sentence2": "c", "score": 0.5}),
            json!({"anchor": "ab", "positive": "d", "score": -1, "negative": null}),
            json!({"query": "ab", "document": "ab", "score": 1.0}),
            json!({"query": "ab", "document": "c", "score": 0}),
        ],
        4096,
    );
    assert_eq!(data.numbers, [0.5, -1.0, 0.0]);
    assert_eq!((texts(&data, 0), texts(&data, 1)), (vec!["ab".into(), "c".into()], vec!["ab".into(), "d".into()]));
    let report = &data.report;
    assert!(report.is_of_texts() && !report.is_of_pairs());
    assert_eq!(report.dropped.first, [3], "nothing can be learned of a text and itself");
    assert_eq!((report.duplicates.first.clone(), report.first_contradiction), (vec![4], Some((4, 1))));
}

#[test]
fn labels_are_read_with_both_texts_as_one_sequence() {
    let data = read_alone(
        &[
            json!({"query": "ab", "document": "cd", "label": 1}),
            json!({"sentence1": "a", "sentence2": "b", "label": false}),
            json!({"query": "ab", "document": "cd", "label": 0.25}),
        ],
        4,
    );
    assert_eq!(data.numbers, [1.0, 0.0, 0.25]);
    // One token is put before both texts; the parts begin with each text.
    assert_eq!(data.texts[0], [vec![999, 'a'.into(), 'b'.into()], vec!['c'.into()]]);
    let report = &data.report;
    assert_eq!((report.sequences, report.texts, report.longest, report.tokens), (3, 3, 4, 11));
    assert_eq!(report.truncated.first, [1, 3]);
    assert_eq!((report.duplicates.first.clone(), report.first_contradiction), (vec![3], Some((3, 1))));
}

#[test]
fn prompts_stand_before_the_texts_that_they_are_for() {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens: 6,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts { anchor: "q:".into(), others: "d:".into() },
    };
    let file = format!(
        "{}\n{}\n",
        json!({"anchor": "ab", "positive": "c", "negative": "defg"}),
        json!({"anchor": "x", "positive": "y"})
    );
    let codec = Characters { template: Template::Plain };
    let data = datasets::read(Cursor::new(file), Purpose::Validation, &codec, &settings).unwrap();
    assert_eq!(texts(&Rendered::of(data).unwrap(), 0), ["q:ab", "d:c", "d:def"]);
}

#[test]
fn all_faults_of_a_file_are_told_at_once() {
    let lines =
        [json!({"anchor": "a"}), json!({"anchor": "a", "positive": "b"}), json!({"anchor": "a", "positive": ""})];
    let message = read(&lines).unwrap_err().to_string();
    assert!(
        message.contains("has faults on 2 lines") && message.contains("Line 2 ") && message.contains("Line 4 "),
        "{message}"
    );
}

#[test]
fn near_empty_files_are_refused() {
    let file = |count: usize| -> String {
        (0..count).map(|i| json!({"anchor": format!("a{i}"), "positive": format!("b{i}")}).to_string() + "\n").collect()
    };
    for (purpose, least) in [(Purpose::Training, 10), (Purpose::Validation, 2)] {
        let Err(Error::File { fault, message, .. }) = read_as(&file(least - 1), purpose, 99) else {
            panic!("{least} are needed");
        };
        assert!(fault == FileFault::TooFewExamples && message.contains(&format!("at least {least}")), "{message}");
        assert!(read_as(&file(least), purpose, 99).is_ok());
    }
    let same: String =
        (0..12).map(|i| json!({"anchor": "same1", "positive": format!("same{i}0")}).to_string() + "\n").collect();
    let message = read_as(&same, Purpose::Training, 4).unwrap_err().to_string();
    assert!(message.contains("the same in their first 4 tokens"), "{message}");
}
