//! Files of preferences: the two formats, the result of each line, and messages for wrong lines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use crate::characters::{Characters, Rendered, Template, targets};
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
    Rendered::of(datasets::read_preferences(Cursor::new(file), purpose, &codec, &settings)?)
}

fn read(line: &Value) -> Result<Rendered> {
    read_as(&line.to_string(), Purpose::Validation, 4096)
}

fn text(example: &datasets::TokenizedExample) -> String {
    example.tokens.iter().filter_map(|token| char::from_u32(*token).filter(|_| *token < 999)).collect()
}

fn openai(preferred: &str, other: &str) -> Value {
    json!({
        "input": {"messages": [{"role": "user", "content": "u"}], "tools": [], "parallel_tool_calls": true},
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    })
}

#[test]
fn every_form_becomes_two_sequences_with_the_same_prompt() {
    let user = json!([{"role": "user", "content": "u"}]);
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    let conversation = json!({"prompt": user, "chosen": answer("good"), "rejected": answer("bad")});
    for line in [openai("good", "bad"), conversation] {
        let data = read(&line).unwrap();
        assert_eq!(data.examples.iter().map(targets).collect::<Vec<_>>(), ["good$", "bad$"], "{line}");
        for example in &data.examples {
            assert!(text(example).starts_with("[user]u\n[assistant]"), "{line}");
        }
        assert_eq!((data.report.examples, data.report.sequences, data.report.target_tokens), (1, 1, 9));
    }
    let data = read(&json!({"prompt": "ab", "chosen": " c", "rejected": " d"})).unwrap();
    assert_eq!(data.examples.iter().map(targets).collect::<Vec<_>>(), [" c$", " d$"]);
    assert_eq!(data.examples.iter().map(text).collect::<Vec<_>>(), ["ab c", "ab d"]);
}

#[test]
fn earlier_answers_of_the_prompt_are_not_learned() {
    let mut line = openai("good", "bad");
    line["input"]["messages"] = json!([
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "old"}, {"role": "user", "content": "v"}]);
    let data = read(&line).unwrap();
    assert_eq!(data.examples.iter().map(targets).collect::<Vec<_>>(), ["good$", "bad$"]);
    assert_eq!(text(&data.examples[0]), "[user]u\n[assistant]old\n[user]v\n[assistant]good");
}

#[test]
fn a_pair_is_cut_left_out_and_counted_as_one() {
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        format!("{}\n", json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
    };
    let file = [
        pair("ab", "cdefgh", "x"),
        pair("ab", "cd", "x"),
        pair("abcdefgh", "c", "x"),
        // Equal once cut.
        pair("abc", "defgh", "defxy"),
        pair("ab", "cd", "x"),
    ]
    .concat();
    let data = read_as(&file, Purpose::Validation, 6).unwrap();
    let report = &data.report;
    assert_eq!((report.examples, report.sequences, report.truncated.count), (5, 3, 1));
    assert_eq!((report.dropped.count, report.duplicates.count), (2, 1));
    assert_eq!(data.examples.iter().map(targets).collect::<Vec<_>>(), ["cde", "x$", "cd$", "x$", "cd$", "x$"]);
}

#[test]
fn every_fault_names_its_line_and_what_to_change() {
    let good = openai("good", "bad");
    let with = |key: &str, value: Value| {
        let mut line = good.clone();
        line[key] = value;
        line
    };
    let assistant = json!({"role": "assistant", "content": "a"});
    let cases = [
        (json!({"messages": [{"role": "user", "content": "u"}, assistant]}), "is no preference pair"),
        (json!({"prompt": "a", "completion": "b"}), "is no preference pair"),
        (json!({"prompt": "a", "chosen": "b"}), "has no `rejected`"),
        (json!({"prompt": "a", "chosen": "b", "rejected": ""}), "has an empty `rejected`"),
        (json!({"prompt": "a", "chosen": 1, "rejected": "b"}), "has a number as `chosen`"),
        (json!({"chosen": "a", "rejected": "b"}), "has no `prompt`"),
        (json!({"question": "x", "chosen": "a", "rejected": "b"}), "rename `question` to `prompt`"),
        (json!({"prompt": "a", "chosen": "b", "rejected": "b"}), "has the same answer twice"),
        (json!({"prompt": "a", "chosen": "b", "rejected": "c", "x": 1}), "has the unknown key `x`"),
        (json!({"preferred_output": [assistant], "non_preferred_output": [assistant]}), "has no `input`"),
        (with("input", json!([])), "has an array as `input`"),
        (with("input", json!({})), "an `input` without `messages`"),
        (with("input", json!({"messages": [], "x": 1})), "unknown key `x` in `input`"),
        (with("input", json!({"messages": []})), "has no messages"),
        (
            with("input", json!({"messages": [{"role": "bot", "content": "a"}]})),
            "(message 1) has the role `bot`: use `assistant`",
        ),
        (
            with("preferred_output", json!("a")),
            "has a `preferred_output` that is not an array of one assistant message",
        ),
        (with("preferred_output", json!([])), "has a `preferred_output` that is not an array"),
        (with("preferred_output", json!([assistant, assistant])), "array of one assistant message"),
        (with("non_preferred_output", json!([{"role": "user", "content": "a"}])), "has a `non_preferred_output` that"),
        (
            with("non_preferred_output", json!([{"role": "assistant"}])),
            "(`non_preferred_output`, message 1) has no `content`",
        ),
        (with("preferred_output", json!([{"role": "assistant", "content": "a", "weight": 0}])), "of weight 0"),
        (with("preferred_output", json!([{"role": "assistant", "content": []}])), "message 1) has an empty answer"),
    ];
    for (line, expected) in cases {
        let file = format!("{good}\n{line}\n");
        let Err(Error::File { purpose, fault, message }) = read_as(&file, Purpose::Training, 4096) else {
            panic!("{line} was taken");
        };
        assert!(message.contains("Line 2 ") && message.contains(expected), "{line}: {message}");
        assert_eq!((purpose, fault), (Purpose::Training, FileFault::Content));
    }
    let texts = json!({"prompt": "a", "chosen": "b", "rejected": "c"});
    let error = read_as(&format!("{good}\n{texts}"), Purpose::Validation, 4096).unwrap_err().to_string();
    assert!(error.contains("Line 2 is a prompt and completion, but line 1 is a chat: use one format"), "{error}");
}

#[test]
fn a_training_file_has_at_least_ten_pairs() {
    let error = read_as(&openai("good", "bad").to_string(), Purpose::Training, 4096).unwrap_err().to_string();
    assert!(error.contains("has 1 example(s), but must have at least 10"), "{error}");
}

#[test]
fn opposite_preferences_contradict_each_other() {
    let file = [openai("good", "bad"), openai("good", "worse"), openai("bad", "good")];
    let file = file.map(|line| line.to_string()).join("\n");
    let report = read_as(&file, Purpose::Validation, 4096).unwrap().report;
    assert_eq!((report.contradictions.first, report.first_contradiction), (vec![3], Some((3, 1))));
}
