//! Messages as they are written against what templates get.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;

use super::*;
use crate::tool_syntax::ToolSyntax;

fn messages(written: Value) -> Vec<Message> {
    let written: Vec<WrittenMessage> = serde_json::from_value(written).unwrap();
    written.into_iter().map(|message| Message::read(message).unwrap()).collect()
}

fn in_template(messages: &[Message], short_ids: bool) -> Vec<Value> {
    messages.iter().map(|message| message.for_template(short_ids)).collect()
}

fn in_text(messages: &[Message]) -> Vec<Value> {
    plain::messages(messages, &[], ToolSyntax::PLAIN, true)
}

fn template(source: &str) -> ChatTemplate {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    ChatTemplate::read(folder.path()).unwrap().unwrap()
}

/// Makes a turn with two calls and their results.
fn turn() -> Vec<Message> {
    messages(json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}},
            {"id": "x", "type": null, "function": {"name": "g", "arguments": "not JSON"}},
        ]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "rain"},
        {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "sun"}]},
        {"role": "user", "content": "Thanks"},
    ]))
}

#[test]
fn contents_are_texts_or_text_parts_and_developer_means_system() {
    let messages = messages(json!([
        {"role": "developer", "content": "d"},
        {"role": "user", "name": "x", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": []},
    ]));
    for rendered in [in_template(&messages, false), in_text(&messages)] {
        assert_eq!(rendered[0], json!({"role": "system", "content": "d"}));
        assert_eq!(rendered[1], json!({"role": "user", "content": "ab"}));
        assert_eq!(rendered[2], json!({"role": "assistant", "content": ""}));
    }
}

#[test]
fn a_refusal_is_what_the_assistant_said() {
    let messages = messages(json!([
        {"role": "assistant", "content": null, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}]},
        {"role": "assistant", "content": "Yes.", "refusal": null},
    ]));
    let said: Vec<_> = messages.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["No.", "Never.", "Yes."]);
}

#[test]
fn reasoning_reaches_the_template_in_a_field_of_its_own() {
    let messages = messages(json!([{"role": "assistant", "content": "a", "reasoning_content": "r"}]));
    for rendered in [in_template(&messages, false), in_text(&messages)] {
        assert_eq!(rendered, [json!({"role": "assistant", "content": "a", "reasoning_content": "r"})]);
    }
}

#[test]
fn templates_get_calls_with_their_arguments_as_objects() {
    let rendered = in_template(&turn(), false);
    let calls = json!([
        {"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}},
        {"id": "x", "type": "function", "function": {"name": "g", "arguments": "not JSON"}},
    ]);
    assert_eq!(rendered[1], json!({"role": "assistant", "content": "", "tool_calls": calls}));
    assert_eq!(rendered[2], json!({"role": "tool", "content": "rain", "tool_call_id": "call_0123456789"}));
}

#[test]
fn short_ids_are_nine_letters_or_digits_and_still_match() {
    let rendered = in_template(&turn(), true);
    assert_eq!(rendered[1]["tool_calls"][0]["id"], "123456789");
    assert_eq!(rendered[2]["tool_call_id"], "123456789");
    assert_eq!(rendered[1]["tool_calls"][1]["id"], "00000000x");
}

#[test]
fn the_plain_form_writes_calls_and_answers_into_the_text() {
    let rendered = in_text(&turn());
    let said: Vec<_> = rendered.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(said, ["user", "assistant", "user", "user"]);
    let calls = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\":1,\"a\":[2]}}\n</tool_call>\n\
                 <tool_call>\n{\"name\": \"g\", \"arguments\": \"not JSON\"}\n</tool_call>";
    assert_eq!(rendered[1]["content"], calls);
    let answers = "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>";
    assert_eq!(rendered[2]["content"], answers);
}

#[test]
fn the_older_form_of_calls_is_the_same() {
    let rendered = in_template(
        &messages(json!([
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "rain"},
            {"role": "function", "name": "f", "content": null},
        ])),
        false,
    );
    assert_eq!(rendered[0]["tool_calls"][0]["function"], json!({"name": "f", "arguments": {}}));
    assert_eq!(rendered[1], json!({"role": "tool", "content": "rain", "name": "f"}));
    assert_eq!(rendered[2], json!({"role": "tool", "content": "", "name": "f"}));
}

#[test]
fn the_plain_form_describes_tools_in_the_system_message_or_makes_one() {
    let tools = [
        json!({"type": "function", "function": {"strict": true, "name": "time", "description": "Looks."}}),
        json!({"name": "day", "parameters": {"type": "object"}}),
    ];
    let tools: Vec<_> = tools.into_iter().map(|tool| ToolDefinition::read(tool).unwrap()).collect();
    let user = json!({"role": "user", "content": "u"});
    for (written, begin) in [
        (json!([user]), "You can call functions."),
        (json!([{"role": "system", "content": "s"}, user]), "s\n\nYou can call functions."),
        (json!([{"role": "system", "content": ""}, user]), "You can call functions."),
    ] {
        let rendered = plain::messages(&messages(written), &tools, ToolSyntax::PLAIN, true);
        assert_eq!((rendered.len(), &rendered[0]["role"]), (2, &json!("system")));
        let text = rendered[0]["content"].as_str().unwrap();
        assert!(text.starts_with(begin), "{text}");
        for part in [
            r#"{"name":"time","description":"Looks.","parameters":{"type":"object","properties":{}}}"#,
            r#"{"name":"day","parameters":{"type":"object"}}"#,
            "<tool_call>\n{\"name\": ",
            "\n</tool_call>",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}

#[test]
fn a_template_that_does_not_write_what_a_system_says_shows_tools_to_the_first_user() {
    let tools = [ToolDefinition::read(json!({"name": "time"})).unwrap()];
    let chat = messages(json!([{"role": "user", "content": "Late?"}, {"role": "assistant", "content": "Yes."}]));
    let turns = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}";
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}";
    let leaves_out = turns.replace("in messages", "in messages if message.role != 'system'");
    for (source, begin, writes) in [
        (turns.to_owned(), "<system>You can call functions.", true),
        (format!("{refuses}{turns}"), "<user>You can call functions.", false),
        (leaves_out, "<user>You can call functions.", false),
    ] {
        let template = template(&source);
        assert_eq!(template.writes_system(), writes, "{source}");
        let text = render(&template, &chat, &tools, &TemplateOptions::default()).unwrap();
        assert!(text.starts_with(begin) && text.contains("time"), "{text}");
        assert!(text.ends_with("Late?<assistant>Yes."), "{text}");
    }
    let system = messages(json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]));
    let refused = render(&template(&format!("{refuses}{turns}")), &system, &tools, &TemplateOptions::default());
    assert_eq!(refused.unwrap_err().to_string(), "No system.", "what the client said is not moved");
}

#[test]
fn what_is_no_tool_is_refused() {
    for (written, part) in [
        (json!("f"), "is not an object"),
        (json!({"type": "custom", "function": {"name": "f"}}), "has the type \"custom\""),
        (json!({"type": "function", "function": {"parameters": {}}}), "missing field `name`"),
    ] {
        let fault = ToolDefinition::read(written).unwrap_err();
        assert!(fault.contains(part), "{fault}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_its_field() {
    let call = json!([{"id": "x", "type": "magic", "function": {"name": "g", "arguments": ""}}]);
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    for (wrong, field, missing) in [
        (json!({"role": "king", "content": "x"}), "role", false),
        (json!({"role": "user"}), "content", true),
        (json!({"role": "user", "content": image}), "content", false),
        (json!({"role": "user", "content": [{"type": "text", "text": null}]}), "content", false),
        (json!({"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}), "content", false),
        (json!({"role": "assistant", "tool_calls": call}), "tool_calls[0].type", false),
    ] {
        let fault = Message::read(serde_json::from_value(wrong).unwrap()).unwrap_err();
        assert_eq!((fault.field.as_str(), fault.missing), (field, missing));
    }
}

#[test]
fn an_unfinished_message_ends_where_its_text_does() {
    let template = template(
        "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</s>{% endfor %}\
         {% if add_generation_prompt %}<assistant>{% endif %}",
    );
    let options = TemplateOptions::default();
    for (content, end) in [("It is", "<assistant>It is"), (" It is ", "<assistant>It is")] {
        let chat = messages(json!([{"role": "user", "content": "It is"}, {"role": "assistant", "content": content}]));
        let text = render_unfinished(&template, &chat, &[], &options).unwrap();
        assert!(text.ends_with(end), "{text}");
    }
    let nothing = messages(json!([{"role": "assistant", "content": " "}]));
    assert!(matches!(render_unfinished(&template, &nothing, &[], &options), Err(Error::Template(_))));
}

#[test]
fn the_mark_behind_an_answer_is_found_unless_an_end_token_stands_there() {
    let demo = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo/tokenizer.json"));
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(demo).unwrap()).unwrap();
    let chat = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}MARK\n{% endfor %}";
    // Not all tokenizers call theirs special.
    for special in [true, false] {
        json["added_tokens"][2]["special"] = special.into();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let tokenizer = Tokenizer::read(folder.path()).unwrap();
        let id = |name: &str| tokenizer.token(name).unwrap();
        for (mark, expected) in [
            ("<|im_end|>", Some(id("<|im_end|>"))),
            (" <|im_end|>", Some(id("<|im_end|>"))),
            ("<|endoftext|>", None),
            ("<|im_end|><|endoftext|>", None),
            ("<|im_end|>{% if loop.last %}<|endoftext|>{% endif %}", Some(id("<|im_end|>"))),
            ("### End", None),
            ("", None),
        ] {
            let template = template(&chat.replace("MARK", mark));
            assert_eq!(end_mark(&template, &tokenizer, &[id("<|endoftext|>")]), expected, "{mark:?}, {special}");
        }
    }
}
