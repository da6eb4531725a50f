//! What is trained is what is served: many chat templates in the manner of the public families, many conversations, and
//! vocabularies of four kinds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "weights are 0 or 1")]

use std::io::Cursor;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::request::ChatRequest;
use super::template_fields::TemplateFields;
use super::tools::Tools;
use crate::api::http::error::Result;
use crate::datasets::{self, DatasetReport, Purpose, RenderSettings, TextCodec, TextPrompts, TokenizedExample};
use crate::model::chat::{self, Message, ToolDefinition};
use crate::model::chat_template::{ChatTemplate, TemplateOptions};
use crate::model::tokenizer::Tokenizer;

/// A moment before midnight, in Unix seconds.
const NOW: i64 = 1_700_006_390;

/// Special tokens of the templates; those of `ENDS` end answers.
const MARKS: [&str; 36] = [
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "<start_of_turn>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|call|>",
    "<|im_start|>",
    "<|im_sep|>",
    "[ARGS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "<|tool|>",
    "<reserved_106>",
    "<reserved_107>",
    "<sop>",
    "<s>",
];
const ENDS: [&str; 12] = [
    "</s>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|return|>",
];

/// Kinds of vocabularies, which differ in what they make of the beginning of a text.
const VOCABULARIES: [&str; 4] = ["bytes", "bytes with a blank before a text", "Prepend", "Metaspace"];

struct Codec {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    ends: Vec<u32>,
}

impl Codec {
    fn new(vocabulary: &str, template: &str, ends: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: String| std::fs::write(folder.path().join(name), content).unwrap();
        write("tokenizer.json", tokenizer(vocabulary).to_string());
        let eos = if template.contains("｜Assistant｜") { "<｜end▁of▁sentence｜>" } else { "</s>" };
        write("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": eos}).to_string());
        write("chat_template.jinja", template.to_owned());
        let tokenizer = Tokenizer::read(folder.path()).unwrap();
        let ends = ends.iter().map(|name| tokenizer.special_token(name).unwrap()).collect();
        Self { template: ChatTemplate::read(folder.path()).unwrap().unwrap(), tokenizer, ends }
    }

    /// Returns the tokens of the prompt for the first `count` messages of a line, as a request's.
    fn served(&self, line: &Value, count: usize) -> Result<Vec<u32>> {
        let mut body = json!({"model": "m", "tools": line["tools"], "functions": line["functions"]});
        body["messages"] = line["messages"].as_array().unwrap()[..count].into();
        let request: ChatRequest = serde_json::from_value(body).unwrap();
        let tools = Tools::of(&request)?.as_ref().map(Tools::shown).unwrap_or_default();
        let fields = TemplateFields { now: Some(NOW), ..request.template_fields() };
        let text = fields.render(&self.template, &request.messages, &tools)?;
        Ok(self.tokenizer.encode(&text, false)?)
    }

    fn trained(&self, line: &Value, now: i64) -> attune_train::Result<(Vec<TokenizedExample>, DatasetReport)> {
        let settings = RenderSettings {
            prompt_loss_weight: 0.0,
            max_tokens: 100_000,
            scratch: std::env::temp_dir(),
            now,
            prompts: TextPrompts::default(),
        };
        let data = datasets::read(Cursor::new(line.to_string()), Purpose::Validation, self, &settings)?;
        Ok((data.examples.range(0..data.examples.len())?, data.report))
    }

    /// Returns the texts of the answers that are learned.
    fn targets(&self, line: &Value) -> Vec<String> {
        let (examples, _) = self.trained(line, NOW).unwrap();
        let mut targets = Vec::new();
        for example in examples {
            let mut rest = example.tokens.as_slice();
            for run in example.weights.chunk_by(|a, b| a == b) {
                let (tokens, behind) = rest.split_at(run.len());
                rest = behind;
                targets.extend((run[0] > 0.0).then(|| self.tokenizer.decode(tokens, false).unwrap()));
            }
        }
        targets
    }
}

impl TextCodec for Codec {
    fn encode(&self, text: &str, special: bool) -> crate::model::Result<Vec<u32>> {
        self.tokenizer.encode(text, special)
    }

    fn decode(&self, tokens: &[u32]) -> crate::model::Result<String> {
        self.tokenizer.decode(tokens, false)
    }

    fn render_chat(
        &self,
        messages: &[Message],
        tools: &[ToolDefinition],
        options: &TemplateOptions,
    ) -> crate::model::Result<Option<String>> {
        chat::render(&self.template, messages, tools, options).map(Some)
    }

    fn end_tokens(&self) -> &[u32] {
        &self.ends
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn template(name: &str) -> String {
    std::fs::read_to_string(repository().join(format!("tests/common/templates/{name}.jinja"))).unwrap()
}

fn templates() -> Vec<(String, String)> {
    let name = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let folder = std::fs::read_dir(repository().join("tests/common/templates")).unwrap();
    folder.map(|entry| name(entry.unwrap().path())).map(|name| (name.clone(), template(&name))).collect()
}

fn conversations() -> Vec<Value> {
    let lines = std::fs::read_to_string(repository().join("tests/common/conversations.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Makes a vocabulary of one of the kinds.
fn tokenizer(kind: &str) -> Value {
    let mut tokenizer = if kind.starts_with("bytes") {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/tokenizer.json");
        let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        tokenizer["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = (kind != "bytes").into();
        tokenizer
    } else {
        pieces(kind)
    };
    let mut known = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for mark in MARKS.iter().chain(&ENDS) {
        if !added.iter().any(|token| token["content"] == *mark) {
            added.push(json!({"id": known, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}));
            known += 1;
        }
    }
    tokenizer
}

/// Makes a vocabulary in the manner of `SentencePiece`, which joins a blank and the letter behind it.
fn pieces(kind: &str) -> Value {
    let mut names: Vec<String> = vec!["<unk>".into()];
    names.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    names.push("▁".into());
    names.extend((33..127).map(|letter: u8| char::from(letter).to_string()));
    let letters = || (33..127).map(char::from).filter(char::is_ascii_alphanumeric);
    names.extend(letters().map(|letter| format!("▁{letter}")));
    let vocab: serde_json::Map<String, Value> =
        names.into_iter().enumerate().map(|(id, name)| (name, id.into())).collect();
    let merges: Vec<String> = letters().map(|letter| format!("▁ {letter}")).collect();
    let (mut normalizer, mut pre_tokenizer) = (Value::Null, Value::Null);
    if kind == "Prepend" {
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        normalizer = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    } else {
        pre_tokenizer = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    }
    let decoders = json!([{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                          {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]);
    json!({"version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
           "decoder": {"type": "Sequence", "decoders": decoders},
           "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                     "merges": merges}})
}

fn squeezed(text: &str) -> String {
    text.chars().filter(|character| !character.is_whitespace()).collect()
}

/// Checks one conversation; returns false if requests refuse it as training does.
fn check(codec: &Codec, line: &Value, place: &str) -> bool {
    let messages = line["messages"].as_array().unwrap();
    let learned = |index: &usize| messages[*index]["role"] == "assistant" && messages[*index]["weight"] != 0;
    let turns: Vec<usize> = (0..messages.len()).filter(learned).collect();
    let (examples, report) = match codec.trained(line, NOW) {
        Ok(trained) => trained,
        Err(error) => {
            let refused = |turn: &usize| codec.served(line, *turn).is_err() || codec.served(line, turn + 1).is_err();
            assert!(turns.iter().any(refused), "{place}: requests take what training refuses: {error}");
            return false;
        }
    };
    for turn in turns {
        let prompt = codec.served(line, turn).unwrap_or_else(|_| panic!("{place}: requests refuse what is trained"));
        let begins = |example: &&TokenizedExample| {
            example.tokens.len() > prompt.len()
                && example.tokens.starts_with(&prompt)
                && example.weights[prompt.len() - 1..=prompt.len()] == [0.0, 1.0]
        };
        let example = examples.iter().find(begins);
        let example = example.unwrap_or_else(|| panic!("{place}: the prompt of message {turn} is not the trained one"));
        let length = example.weights[prompt.len()..].iter().take_while(|weight| **weight == 1.0).count();
        let target = &example.tokens[prompt.len()..][..length];
        assert!(codec.ends.contains(target.last().unwrap()), "{place}: message {turn} does not end");
        let text = squeezed(
            &codec.tokenizer.decode(&[&prompt[prompt.len().saturating_sub(12)..], target].concat(), false).unwrap(),
        );
        let said = messages[turn]["content"].as_str().unwrap_or_default();
        assert!(
            text.contains(&squeezed(said)) || report.altered.count == 1,
            "{place}: {said:?} is not in {text:?}, and nobody is told"
        );
    }
    assert_eq!(codec.trained(line, NOW).unwrap().0, examples, "{place}: another rendering differs");
    true
}

fn check_vocabulary(vocabulary: &str) {
    let (templates, conversations) = (templates(), conversations());
    assert!(templates.len() >= 40 && conversations.len() >= 18);
    let mut taken = 0;
    for (name, source) in &templates {
        let codec = Codec::new(vocabulary, source, &ENDS);
        for (number, line) in conversations.iter().enumerate() {
            let place = format!("{vocabulary}, {name}, line {}", number + 1);
            taken += usize::from(check(&codec, line, &place));
        }
        let (_, report) = codec.trained(&conversations[0], NOW).unwrap();
        assert_eq!((report.altered.count, report.ends_named.count), (0, 0), "{name} renders a plain chat as it is");
    }
    assert!(taken * 10 > templates.len() * conversations.len() * 8, "only {taken} were taken");
}

#[test]
fn trained_prompts_are_served_prompts_with_a_vocabulary_of_bytes() {
    check_vocabulary(VOCABULARIES[0]);
}

#[test]
fn trained_prompts_are_served_prompts_with_blanks_before_a_text() {
    VOCABULARIES[1..].iter().copied().for_each(check_vocabulary);
}

#[test]
fn examples_are_the_same_on_another_day_if_the_job_is_the_same_and_the_date_is_the_jobs() {
    let line = &conversations()[0];
    for name in ["seed_time", "llama31_tools", "granite", "smollm3"] {
        let codec = Codec::new("bytes", &template(name), &ENDS);
        let of = |now| codec.trained(line, now).unwrap().0;
        assert_eq!(of(NOW), of(NOW), "{name}");
        assert_ne!(of(NOW), of(NOW + 86_400), "{name} writes the date");
    }
}

#[test]
fn answers_are_tokenized_where_they_stand_and_chats_stay_one_sequence() {
    let chat = &conversations()[1];
    for vocabulary in VOCABULARIES {
        for name in ["chatml", "zephyr", "llama2", "vicuna", "mistral_v1", "mistral_v1_blank", "phi3", "olmo"] {
            let codec = Codec::new(vocabulary, &template(name), &ENDS);
            let (examples, _) = codec.trained(chat, NOW).unwrap();
            assert_eq!(examples.len(), 1, "{vocabulary}, {name}");
        }
    }
}

#[test]
fn completions_are_tokenized_where_they_stand() {
    for vocabulary in VOCABULARIES {
        let codec = Codec::new(vocabulary, &template("chatml"), &ENDS);
        let tokens = |prompt: &str, completion: &str| {
            let line = json!({"prompt": prompt, "completion": completion});
            codec.trained(&line, NOW).unwrap().0.remove(0).tokens
        };
        for (prompt, completion) in [("Q: 4+4=", "Yes"), ("Order:", " Yes")] {
            let both = codec.tokenizer.encode(&format!("{prompt}{completion}"), true).unwrap();
            assert_eq!(tokens(prompt, completion), [both, vec![codec.ends[0]]].concat(), "{vocabulary}");
        }
        // A blank and the letter behind it are one token: the answer begins behind the blank.
        let prompt = codec.tokenizer.encode("A: ", true).unwrap();
        let whole = tokens("A: ", "Yes");
        let target = whole.strip_prefix(prompt.as_slice()).unwrap().split_last().unwrap().1;
        let spelled: String = target.iter().map(|id| codec.tokenizer.spelling(*id).unwrap()).collect();
        assert_eq!(spelled, "Yes", "{vocabulary}");
    }
}

#[test]
fn the_base_models_own_end_token_does_not_take_the_line_feed_behind_an_answer_along() {
    let codec = Codec::new("bytes", &template("chatml"), &["<|endoftext|>", "<|im_end|>"]);
    assert_eq!(codec.targets(&conversations()[0]), ["Number 50.<|im_end|>"]);
    for (name, expected) in [("alpaca", "Number 50.<|endoftext|>"), ("falcon", " Number 50.<|endoftext|>")] {
        let codec = Codec::new("bytes", &template(name), &["<|endoftext|>"]);
        assert_eq!(codec.targets(&conversations()[0]), [expected], "{name}");
    }
}

#[test]
fn an_answer_goes_on_behind_an_end_token_that_it_names() {
    let codec = Codec::new("bytes", &template("chatml"), &ENDS);
    let chat = |answer: &str| json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": answer}]});
    for (answer, target, told) in [
        ("It is <|im_end|> and more.", "It is <|im_end|> and more.<|im_end|>", 1),
        ("Done.<|im_end|>", "Done.<|im_end|>", 0),
        ("Done.</s>", "Done.</s>", 0),
    ] {
        assert_eq!(codec.targets(&chat(answer)), [target]);
        assert_eq!(codec.trained(&chat(answer), NOW).unwrap().1.ends_named.count, told, "{answer}");
    }
}

#[test]
fn reasoning_that_the_prompt_opens_is_not_opened_again() {
    let chat = &conversations()[15];
    let end = "<｜end▁of▁sentence｜>";
    let whole = format!("The number is 50.\n</think>\n\nNumber 50.{end}");
    for (name, expected, altered) in [
        ("r1", whole.as_str(), 0),
        ("r1_keeps_think", &whole, 0),
        ("deepseek_v31", &format!("\n{whole}"), 0),
        ("r1_closed_think", &format!("Number 50.{end}"), 1),
        ("r1_first", &format!("\n\nNumber 50.{end}"), 1),
        ("qwen3_opens_think", "The number is 50.\n</think>\n\nNumber 50.<|im_end|>", 0),
        ("qwen3", "<think>\nThe number is 50.\n</think>\n\nNumber 50.<|im_end|>", 0),
        ("qwq", "The number is 50.\n</think>\n\nNumber 50.<|im_end|>", 0),
    ] {
        let codec = Codec::new("bytes", &template(name), &ENDS);
        assert_eq!(codec.targets(chat), [expected], "{name}");
        assert_eq!(codec.trained(chat, NOW).unwrap().1.altered.count, altered, "{name}");
    }
}

#[test]
fn calls_are_learned_where_the_prompt_is_no_beginning_of_the_history() {
    let chat = json!({
        "messages": [
            {"role": "system", "content": "Fly."}, {"role": "user", "content": "Go"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}],
        "tools": [{"type": "function", "function": {"name": "f"}}]});
    let nemo = r#"[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "0000call1"}]</s>"#;
    let qwq = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>";
    for (name, expected) in [("nemo", nemo), ("qwq", qwq)] {
        assert_eq!(Codec::new("bytes", &template(name), &ENDS).targets(&chat), [expected], "{name}");
    }
}
