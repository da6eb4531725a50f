//! Training files: messages that refuse them, and the choice of targets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use crate::characters::{Characters, END, Rendered, Template, targets};
use attune::datasets::{self, Purpose, RenderSettings, TextCodec as _, TextPrompts};
use attune_train::{Error, FileFault, Result};
use serde_json::{Value, json};

fn read_as(file: &str, template: Template, purpose: Purpose, max_tokens: usize) -> Result<Rendered> {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    Rendered::of(datasets::read(Cursor::new(file), purpose, &Characters { template }, &settings)?)
}

/// Reads a file of one or few lines, without the minimum for training.
fn read(file: &str, template: Template) -> Result<Rendered> {
    read_as(file, template, Purpose::Validation, 4096)
}

/// Returns the message and the kind of a refusal.
fn fault(file: &str) -> (String, FileFault) {
    match read(file, Template::Plain) {
        Err(Error::File { purpose: Purpose::Validation, fault, message }) => (message, fault),
        other => panic!("{file} gave {other:?}"),
    }
}

fn chat(messages: &Value) -> String {
    json!({ "messages": messages }).to_string()
}

#[test]
fn a_completion_is_trained_on_to_its_end_token_and_the_prompt_is_not() {
    let data = read(r#"{"prompt":"ab","completion":" c"}"#, Template::None).unwrap();
    let example = &data.examples[0];
    assert_eq!(example.tokens, [999, 'a' as u32, 'b' as u32, ' ' as u32, 'c' as u32, END]);
    assert_eq!(targets(example), " c$");
    assert_eq!((data.report.tokens, data.report.target_tokens), (6, 3));
}

#[test]
fn an_end_token_that_the_completion_has_is_not_doubled() {
    let data = read(r#"{"prompt":"a","completion":"b<end>"}"#, Template::None).unwrap();
    assert_eq!(targets(&data.examples[0]), "b$");
}

#[test]
fn the_weight_of_prompts_is_never_given_to_the_first_token() {
    let settings = RenderSettings {
        prompt_loss_weight: 0.25,
        max_tokens: 100,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let file = Cursor::new(r#"{"prompt":"ab","completion":"c"}"#);
    let codec = Characters { template: Template::None };
    let data = datasets::read(file, Purpose::Validation, &codec, &settings).unwrap();
    assert_eq!(data.examples.get(0).unwrap().weights, [0.0, 0.25, 0.25, 1.0, 1.0]);
}

#[test]
fn every_answer_of_a_chat_is_a_target_up_to_its_end_token_and_nothing_else_is() {
    let file = chat(&json!([
        {"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "one"},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "two"}]));
    let data = read(&file, Template::Plain).unwrap();
    assert_eq!(data.examples.len(), 1);
    assert_eq!(targets(&data.examples[0]), "one$two$");
    let expected = "[system]s<end>\n[user]u<end>\n[assistant]one<end>\n[user]v<end>\n[assistant]two<end>";
    assert_eq!(data.examples[0].tokens, Characters { template: Template::Plain }.encode(expected, false).unwrap());
}

#[test]
fn answers_of_weight_zero_are_context_only() {
    let file = chat(&json!([
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "one", "weight": 0},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "two", "weight": 1}]));
    assert_eq!(targets(&read(&file, Template::Plain).unwrap().examples[0]), "two$");
}

#[test]
fn an_empty_answer_of_weight_zero_is_context_and_a_refusal_is_what_was_said() {
    let file = chat(&json!([
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "", "weight": 0},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": null, "refusal": "no"}]));
    let data = read(&file, Template::Plain).unwrap();
    assert_eq!(targets(&data.examples[0]), "no$");
    let expected = "[user]u<end>\n[assistant]<end>\n[user]v<end>\n[assistant]no<end>";
    assert_eq!(data.examples[0].tokens, Characters { template: Template::Plain }.encode(expected, false).unwrap());
}

#[test]
fn answers_that_are_not_learned_as_they_stand_are_told_of() {
    let file = [
        chat(&json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "plain"}])),
        chat(&json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a <end> b"}])),
        chat(
            &json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "c", "reasoning_content": "r"}]),
        ),
    ];
    let data = read(&file.join("\n"), Template::Plain).unwrap();
    assert_eq!(data.examples.iter().map(targets).collect::<Vec<_>>(), ["plain$", "a $ b$", "c$"]);
    assert_eq!((data.report.ends_named.first, data.report.altered.first), (vec![2], vec![3]));
}

#[test]
fn a_history_that_renders_differently_later_gives_a_sequence_for_each_answer() {
    let file = chat(&json!([
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "why|one"},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "so|two"}]));
    let data = read(&file, Template::Forgetful).unwrap();
    let found: Vec<_> = data.examples.iter().map(targets).collect();
    assert_eq!(found, ["why|one$", "so|two$"]);
    let history = "[user]u<end>\n[assistant]one<end>\n[user]v<end>\n[assistant]so|two<end>";
    assert_eq!(data.examples[1].tokens, Characters { template: Template::Plain }.encode(history, false).unwrap());
    assert_eq!(data.report.examples, 1);
}

#[test]
fn an_answer_follows_the_prompt_that_the_server_sends_even_where_the_history_differs() {
    let file = chat(&json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "one"}]));
    let data = read(&file, Template::OpensTag).unwrap();
    assert_eq!(targets(&data.examples[0]), "one$");
    let expected = "[user]u<end>\n[assistant]<think>one<end>";
    assert_eq!(data.examples[0].tokens, Characters { template: Template::Plain }.encode(expected, false).unwrap());
}

#[test]
fn developers_are_systems_and_text_parts_are_joined_as_the_server_does_for_requests() {
    let file = chat(&json!([
        {"role": "developer", "content": "d", "name": "n"},
        {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]},
        {"role": "assistant", "content": "one"}]));
    let data = read(&file, Template::Plain).unwrap();
    let expected = "[system]d<end>\n[user]uv<end>\n[assistant]one<end>";
    assert_eq!(data.examples[0].tokens, Characters { template: Template::Plain }.encode(expected, false).unwrap());
}

#[test]
fn overlong_examples_are_cut_and_left_out_where_no_target_remains() {
    let file = "{\"prompt\":\"ab\",\"completion\":\"cdefgh\"}\n{\"prompt\":\"abcdefgh\",\"completion\":\"c\"}\n";
    let data = read_as(file, Template::None, Purpose::Validation, 6).unwrap();
    assert_eq!((data.report.truncated.count, data.report.dropped.count, data.examples.len()), (1, 1, 1));
    assert_eq!(targets(&data.examples[0]), "cde");
}

#[test]
fn a_file_without_any_target_in_reach_is_refused() {
    let error =
        read_as(r#"{"prompt":"abcdefgh","completion":"c"}"#, Template::None, Purpose::Validation, 4).unwrap_err();
    assert!(error.to_string().contains("fills the model's 4 tokens"), "{error}");
}

#[test]
fn repeated_examples_are_counted() {
    let line = r#"{"prompt":"a","completion":"b"}"#;
    assert_eq!(read(&format!("{line}\n{line}\n{line}"), Template::None).unwrap().report.duplicates.count, 2);
}

#[test]
fn a_byte_order_mark_windows_line_ends_and_blank_lines_at_the_end_are_tolerated() {
    let file = "\u{feff}{\"prompt\":\"a\",\"completion\":\"b\"}\r\n{\"prompt\":\"c\",\"completion\":\"d\"}\r\n\r\n  \n";
    assert_eq!(read(file, Template::None).unwrap().report.examples, 2);
}

#[test]
fn a_training_file_has_at_least_ten_examples() {
    let line = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    let error = read_as(&line.repeat(3), Template::None, Purpose::Training, 100).unwrap_err();
    let Error::File { purpose, fault: kind, message } = error else { panic!("{error}") };
    assert_eq!(message, "Training file has 3 example(s), but must have at least 10 examples");
    assert_eq!((purpose, kind), (Purpose::Training, FileFault::TooFewExamples));
    assert!(read_as(&line.repeat(10), Template::None, Purpose::Training, 100).is_ok());
    assert_eq!(fault("").1, FileFault::TooFewExamples);
    assert_eq!(fault("\n\n").1, FileFault::TooFewExamples);
}

#[test]
fn every_fault_names_its_line_and_what_to_change() {
    let good = r#"{"prompt":"a","completion":"b"}"#;
    let cases = [
        ("{\"prompt\":\"a\"", "(column 13) ends before its object does"),
        ("[1]", "is an array, not a JSON object"),
        ("{}", "has neither `messages` nor `prompt` and `completion`, nor `anchor` and `positive`"),
        (r#"{"prompt":"a"}"#, "has no `completion`"),
        (r#"{"prompt":1,"completion":"b"}"#, "has a number as `prompt`"),
        (r#"{"prompt":"a","completion":""}"#, "has an empty `completion`"),
        (r#"{"prompt":"a","completion":"b","extra":1}"#, "has the unknown key `extra`"),
        (r#"{"prompt":"a","messages":[]}"#, "has both `messages` and `prompt`"),
        (r#"{"input":{},"preferred_output":[],"non_preferred_output":[]}"#, "is a preference pair"),
        (r#"{"messages":[]}"#, "has no messages"),
        (r#"{"messages":{}}"#, "has `messages` that is not an array"),
        (r#"{"messages":[1]}"#, "(message 1) is a number"),
        (r#"{"messages":[{"content":"a"}]}"#, "(message 1) has no `role`"),
        (r#"{"messages":[{"role":"bot","content":"a"}]}"#, "(message 1) has the role `bot`: use `assistant`"),
        (r#"{"messages":[{"role":"user","content":"a"}]}"#, "has no assistant message"),
        (r#"{"messages":[{"role":"user"},{"role":"assistant","content":"a"}]}"#, "(message 1) has no `content`"),
        (r#"{"messages":[{"role":"assistant","content":"a","weight":0.5}]}"#, "neither 0 nor 1"),
        (r#"{"messages":[{"role":"assistant","content":"a","weight":0}]}"#, "only assistant messages of weight 0"),
        (r#"{"messages":[{"role":"user","content":"a","weight":1}]}"#, "only assistant messages may have"),
        (r#"{"messages":[{"role":"assistant","content":[{"type":"image_url"}]}]}"#, "content part that is not text"),
        (r#"{"messages":[{"role":"assistant","content":"a","x":1}]}"#, "unknown key `x`"),
        (r#"{"messages":[{"role":"assistant","content":""}]}"#, "has an empty answer"),
        (r#"{"messages":[{"role":"assistant","content":[]}]}"#, "has an empty answer"),
        (r#"{"messages":[{"role":"assistant","content":[{"type":"text","text":""}]}]}"#, "has an empty answer"),
        (r#"{"messages":[{"role":"assistant","content":"","tool_calls":[]}]}"#, "has an empty answer"),
        (r#"{"messages":[{"role":"assistant","tool_calls":[]}]}"#, "has no `content`"),
        (r#"{"messages":[{"role":"assistant","content":"a","tool_calls":{}}]}"#, "a field that is not of its type"),
        (r#"{"messages":[{"role":"assistant","content":"a"}],"tools":{}}"#, "`tools` that is not an array"),
        (r#"{"messages":[{"role":"assistant","content":"a"}],"tools":[{"type":"x"}]}"#, "`tools[0]` has the type"),
    ];
    for (line, expected) in cases {
        let (message, code) = fault(&format!("{good}\n{line}\n"));
        assert!(message.contains("Line 2") && message.contains(expected), "{line}: {message}");
        assert_eq!(code, FileFault::Content);
    }
    let chat_line = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    let (message, _) = fault(&format!("{good}\n{chat_line}"));
    assert!(message.contains("Line 2 is a chat, but line 1 is a prompt and completion: use one format"), "{message}");
    assert!(fault(&format!("{good}\n\n{good}\n")).0.contains("Line 2 is empty"));
}

#[test]
fn a_templates_own_complaint_is_a_fault_of_its_line() {
    let file = chat(&json!([{"role": "tool", "content": "t"}, {"role": "assistant", "content": "a"}]));
    assert!(fault(&file).0.ends_with("Line 1: this template has no tools."));
}

#[test]
fn a_chat_needs_a_model_with_a_template() {
    let file = chat(&json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]));
    let error = read(&file, Template::None).unwrap_err().to_string();
    assert!(error.contains("the model has no chat template"), "{error}");
}

#[test]
fn every_line_with_a_fault_is_counted_and_each_fault_is_told_once() {
    let (message, _) = fault(&"{}\n".repeat(50));
    assert!(message.starts_with("Validation file has faults on 50 lines. Lines 1, 2, 3, "), "{message}");
    assert!(message.contains(", 20 and 30 more have neither `messages` nor") && message.len() < 300, "{message}");
    // The template finds its faults only when it renders.
    let tool = chat(&json!([{"role": "tool", "content": "t"}, {"role": "assistant", "content": "a"}]));
    let (message, _) = fault(&format!("{tool}\n{{}}\n{tool}\n{tool}\n"));
    assert!(message.starts_with("Validation file has faults on 4 lines. Lines 1, 3 and 4: this template"), "{message}");
}

#[test]
fn a_file_of_another_kind_is_called_by_its_name_and_its_lines_are_not_read() {
    for (file, expected) in [
        ("prompt,completion\na,b\n", "Line 1 looks like the beginning of a table (CSV) with the columns `prompt`, "),
        ("[\n{\"prompt\":\"a\",\"completion\":\"b\"}\n]", "Line 1 is the beginning of one JSON array"),
        ("PK\u{3}\u{4}\n\n", "Line 1 is the beginning of a Word or Excel file"),
    ] {
        let (message, _) = fault(file);
        assert!(
            message.starts_with("Validation file has a fault on 1 line. ") && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn examples_that_contradict_an_earlier_one_are_noted_with_the_first_such_lines() {
    let line = |prompt: &str, completion: &str| json!({"prompt": prompt, "completion": completion}).to_string();
    let file = [
        line("ab", "c"),
        line("ab", "d"),
        line("x", "y"),
        line("ab", "c"),
        line("ab", "e"),
        line("", "1"),
        line("", "2"),
    ];
    let report = read(&file.join("\n"), Template::None).unwrap().report;
    assert_eq!(report.contradictions.first, [2, 5], "what repeats the first answer does not contradict");
    assert_eq!(report.first_contradiction, Some((2, 1)));
    let chats = |answers: [&str; 2]| {
        let turn = |asked: &str, answer: &str| {
            [json!({"role": "user", "content": asked}), json!({"role": "assistant", "content": answer})]
        };
        chat(&json!([turn("hello", answers[0]), turn("and", answers[1])].concat()))
    };
    let file = [chats(["hi", "a"]), chats(["hi", "b"]), chats(["ho", "b"])].join("\n");
    let report = read(&file, Template::Plain).unwrap().report;
    assert_eq!(report.contradictions.first, [2, 3], "each answer is compared with those to the same messages");
    let same = read(&[chats(["hi", "a"]), chats(["hi", "a"])].join("\n"), Template::Plain).unwrap().report;
    assert_eq!((same.contradictions.count, same.duplicates.count), (0, 1));
}

#[test]
fn examples_of_another_file_are_found_again() {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens: 100,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let read = |numbers: &[usize]| {
        let line = |number| json!({"prompt": format!("n{number}"), "completion": "c"}).to_string() + "\n";
        let file = numbers.iter().map(line).collect::<String>();
        datasets::read(Cursor::new(file), Purpose::Validation, &Characters { template: Template::None }, &settings)
            .unwrap()
    };
    let (training, held_out) = (read(&[1, 2, 3, 3]), read(&[7, 3, 8, 2, 3]));
    assert_eq!(held_out.digests.shared_with(&training.digests).first, [2, 4]);
    assert_eq!(read(&[9]).digests.shared_with(&training.digests).count, 0);
}

#[test]
fn text_that_is_not_utf8_is_a_fault_of_its_line() {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens: 100,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let file = Cursor::new(b"{\"prompt\":\"\xff\",\"completion\":\"b\"}".to_vec());
    let codec = Characters { template: Template::None };
    let error = datasets::read(file, Purpose::Training, &codec, &settings).unwrap_err().to_string();
    assert!(error.contains("Line 1 (byte 12) is not UTF-8"), "{error}");
}

#[test]
fn what_is_told_of_lines_names_them() {
    let line = |prompt: &str, completion: &str| format!("{}\n", json!({"prompt": prompt, "completion": completion}));
    let file = [
        line("a", "b"),
        line("ab", "cdefgh"),
        line("a", "b"),
        line("abcdefgh", "c"),
        line("a", "b"),
        line("ab", "cdefgh"),
    ]
    .concat();
    let report = read_as(&file, Template::None, Purpose::Validation, 6).unwrap().report;
    assert_eq!(report.truncated.first, [2, 6], "a line that is left out is not counted as cut, too");
    assert_eq!(report.dropped.first, [4]);
    assert_eq!(report.duplicates.first, [3, 5, 6], "what is cut to the same is the same");
    let many = line("a", "b").repeat(100);
    let report = read_as(&many, Template::None, Purpose::Training, 6).unwrap().report;
    assert_eq!((report.duplicates.count, report.duplicates.first.len()), (99, 20));
    assert!(report.duplicates.to_string().ends_with(", 20, 21 and 79 more"), "{}", report.duplicates);
}

#[test]
fn a_chat_with_several_overlong_turns_is_one_line() {
    let turns: Vec<Value> = (0..4)
        .flat_map(|_| [json!({"role": "user", "content": "u"}), json!({"role": "assistant", "content": "why|answer"})])
        .collect();
    let report = read_as(&chat(&json!(turns)), Template::Forgetful, Purpose::Validation, 40).unwrap().report;
    assert_eq!((report.truncated.count, report.truncated.first.as_slice()), (1, [1].as_slice()));
}

#[test]
fn calls_of_tools_are_learned_and_their_results_are_read() {
    let file = json!({
        "messages": [
            {"role": "user", "content": "u"},
            {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "result"},
            {"role": "assistant", "content": "done"}],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
    });
    let data = read(&file.to_string(), Template::Tools).unwrap();
    assert_eq!(data.examples.iter().map(targets).collect::<Vec<_>>(), ["look()$done$"]);
    let whole = "[tools]look<end>\n[user]u<end>\n[assistant]look()<end>\n[tool]result<end>\n[assistant]done<end>";
    let expected = Characters { template: Template::Tools }.encode(whole, false).unwrap();
    assert_eq!(data.examples[0].tokens, expected);
}
