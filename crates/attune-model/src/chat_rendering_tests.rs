//! Conversations in the manner of each family against the text and the tokens that transformers makes of them
//! (`tests/parity/make_chats.py`). With `ATTUNE_CHATS` the tests read another table that the script wrote.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::*;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn table() -> Value {
    let file = std::env::var_os("ATTUNE_CHATS").map(PathBuf::from);
    let file = file.unwrap_or_else(|| repository().join("tests/fixtures/chats.json"));
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A model of the table: its template, and the demo model's tokenizer with the marks that the template writes.
struct Model {
    template: ChatTemplate,
    tokenizer: Tokenizer,
}

impl Model {
    fn new(name: &str, row: &Value, roles: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let source = row["source"].as_str().map(str::to_owned);
        let file = || repository().join(format!("tests/common/templates/{name}.jinja"));
        let source = source.unwrap_or_else(|| std::fs::read_to_string(file()).unwrap());
        write("chat_template.jinja", source);
        write("tokenizer_config.json", roles.to_string());
        write("tokenizer.json", tokenizer(list(&row["marks"]), &roles["bos_token"]).to_string());
        let template = ChatTemplate::read(folder.path()).unwrap().unwrap();
        Self { template, tokenizer: Tokenizer::read(folder.path()).unwrap() }
    }
}

fn tokenizer(marks: &[Value], begin: &Value) -> Value {
    let file = repository().join("models/demo/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut known = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let mut ids = Map::new();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    known = added.iter().map(|token| token["id"].as_u64().unwrap() as usize + 1).fold(known, usize::max);
    for mark in marks {
        if let Some(token) = added.iter().find(|token| token["content"] == *mark) {
            ids.insert(mark.as_str().unwrap().into(), token["id"].clone());
            continue;
        }
        added.push(json!({"id": known, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}));
        ids.insert(mark.as_str().unwrap().into(), known.into());
        known += 1;
    }
    let token = |type_id: u32| json!({"SpecialToken": {"id": begin, "type_id": type_id}});
    let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let id = &ids[begin.as_str().unwrap()];
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [token(0), text("A", 0)], "pair": [token(0), text("A", 0), text("B", 1)],
        "special_tokens": {begin.as_str().unwrap(): {"id": begin, "ids": [id], "tokens": [begin]}}});
    tokenizer
}

#[test]
fn conversations_have_the_text_and_tokens_of_transformers() {
    let table = table();
    let now = table["now"].as_i64();
    let (mut wrong, mut same) = (Vec::new(), 0);
    for (name, row) in table["templates"].as_object().unwrap() {
        let model = Model::new(name, row, &table["roles"]);
        let syntax = model.template.tool_syntax();
        for (index, case) in list(&table["cases"]).iter().enumerate() {
            let (said, tools) = (list(&case["messages"]), list(&case["tools"]));
            let expected = row["rendered"][index].as_str();
            let options = TemplateOptions { begin_answer: case["begins"] == true, now, ..TemplateOptions::default() };
            let mut differs = |how: &str, found: Result<String>| {
                if found.as_deref().ok() == expected {
                    same += 1;
                    return;
                }
                wrong.push(format!("{name}, {}, {how}:\n  expected {expected:?}\n  found    {found:?}", case["name"]));
            };
            differs("as given", model.template.apply(said, case["tools"].as_array().map(Vec::as_slice), &options));
            let calls = said.iter().any(|message| message["role"] == "tool" || message.get("tool_calls").is_some());
            if !syntax.in_template && (calls || !tools.is_empty()) {
                continue;
            }
            let written: Vec<WrittenMessage> = serde_json::from_value(case["messages"].clone()).unwrap();
            let messages: Vec<Message> = written.into_iter().map(|message| Message::read(message).unwrap()).collect();
            let tools: Vec<ToolDefinition> =
                tools.iter().map(|tool| ToolDefinition::read(tool.clone()).unwrap()).collect();
            let text = render(&model.template, &messages, &tools, &options);
            if let (Ok(text), Some(expected)) = (&text, expected)
                && text == expected
            {
                let ids = model.tokenizer.encode(text, false).unwrap();
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                assert_eq!(ids.join(" "), row["tokens"][index], "{name}, {}", case["name"]);
            }
            differs("as read", text);
        }
    }
    let shown = wrong[..wrong.len().min(80)].join("\n");
    assert!(wrong.is_empty(), "{} differ, {same} do not:\n{shown}", wrong.len());
}

#[test]
fn a_prompt_begins_once_whoever_writes_the_begin_token() {
    let table = table();
    let begin = table["roles"]["bos_token"].as_str().unwrap();
    for (name, row) in table["templates"].as_object().unwrap() {
        let Model { tokenizer, .. } = Model::new(name, row, &table["roles"]);
        let id = tokenizer.token(begin).unwrap();
        for text in list(&row["rendered"]).iter().filter_map(Value::as_str) {
            let begins = |special: bool| {
                tokenizer.encode(text, special).unwrap().iter().take_while(|token| **token == id).count()
            };
            // Of a chat, the template alone says how it begins; any other text gets what the tokenizer puts before it.
            assert_eq!((begins(false), begins(true)), (usize::from(text.starts_with(begin)), 1), "{name}: {text}");
            let offsets = tokenizer.character_offsets(text).unwrap();
            assert_eq!(offsets.len(), tokenizer.encode(text, true).unwrap().len(), "{name}");
        }
    }
    // Qwen's tokenizers have none.
    let demo = Tokenizer::read(&repository().join("models/demo")).unwrap();
    assert_eq!(demo.encode("<|im_start|>", true).unwrap(), demo.encode("<|im_start|>", false).unwrap());
}

#[test]
fn each_family_ends_its_answers_with_the_mark_that_its_template_writes() {
    let table = table();
    let eos = table["roles"]["eos_token"].as_str().unwrap();
    for (name, mark) in [
        ("gemma", "<end_of_turn>"),
        ("gemma3", "<end_of_turn>"),
        ("granite", "<|end_of_text|>"),
        ("granite4", "<|end_of_text|>"),
        ("olmo", eos),
        ("olmo3", eos),
        ("phi3", "<|end|>"),
        ("phi4", "<|im_end|>"),
        ("phi4_mini", "<|end|>"),
        ("ministral3", eos),
        ("falcon3", eos),
        ("r1", "<｜end▁of▁sentence｜>"),
        ("qwen3", "<|im_end|>"),
        ("gpt_oss", "<|return|>"),
        ("smollm2", "<|im_end|>"),
        ("smollm3", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("llama31_tools", "<|eot_id|>"),
    ] {
        // Templates of real models have other names.
        let Some(row) = table["templates"].get(name) else { continue };
        let Model { template, tokenizer } = Model::new(name, row, &table["roles"]);
        let base = tokenizer.token(eos).unwrap();
        let found = end_mark(&template, &tokenizer, &[base]).unwrap_or(base);
        assert_eq!(tokenizer.spelling(found).as_deref(), Some(mark), "{name}");
    }
}
