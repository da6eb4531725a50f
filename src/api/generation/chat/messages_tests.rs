//! Messages as clients send them against what templates get.

use super::*;

fn messages(json: &Value) -> Vec<ChatMessage> {
    serde_json::from_value(json.clone()).expect("messages")
}

/// Makes a turn with two calls and their results.
fn turn() -> Vec<ChatMessage> {
    messages(&json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}},
            {"id": "x", "type": "function", "function": {"name": "g", "arguments": "not JSON"}},
        ]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "rain"},
        {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "sun"}]},
        {"role": "user", "content": "Thanks"},
    ]))
}

#[test]
fn contents_are_texts_or_text_parts_and_developer_means_system() {
    let messages = messages(&json!([
        {"role": "developer", "content": "d"},
        {"role": "user", "name": "x", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null},
    ]));
    for syntax in [ToolSyntax::HERMES, ToolSyntax::PLAIN] {
        let rendered = template_messages(&messages, syntax).expect("fine");
        assert_eq!(rendered[0], json!({"role": "system", "content": "d"}));
        assert_eq!(rendered[1], json!({"role": "user", "content": "ab"}));
        assert_eq!(rendered[2], json!({"role": "assistant", "content": ""}));
    }
}

#[test]
fn templates_get_calls_with_their_arguments_as_objects() {
    let rendered = template_messages(&turn(), ToolSyntax::HERMES).expect("fine");
    let calls = json!([
        {"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}},
        {"id": "x", "type": "function", "function": {"name": "g", "arguments": "not JSON"}},
    ]);
    assert_eq!(rendered[1], json!({"role": "assistant", "content": "", "tool_calls": calls}));
    assert_eq!(rendered[2], json!({"role": "tool", "content": "rain", "tool_call_id": "call_0123456789"}));
}

#[test]
fn short_ids_are_nine_letters_or_digits_and_still_match() {
    let rendered = template_messages(&turn(), ToolSyntax::MISTRAL).expect("fine");
    assert_eq!(rendered[1]["tool_calls"][0]["id"], "123456789");
    assert_eq!(rendered[2]["tool_call_id"], "123456789");
    assert_eq!(rendered[1]["tool_calls"][1]["id"], "00000000x");
}

#[test]
fn the_plain_form_writes_calls_and_answers_into_the_text() {
    let rendered = template_messages(&turn(), ToolSyntax::PLAIN).expect("fine");
    let said: Vec<_> = rendered.iter().map(|message| message["role"].as_str().expect("a role")).collect();
    assert_eq!(said, ["user", "assistant", "user", "user"]);
    let calls = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\":1,\"a\":[2]}}\n</tool_call>\n\
                 <tool_call>\n{\"name\": \"g\", \"arguments\": \"not JSON\"}\n</tool_call>";
    assert_eq!(rendered[1]["content"], calls);
    let answers = "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>";
    assert_eq!(rendered[2]["content"], answers);
}

#[test]
fn the_older_form_of_calls_is_the_same() {
    let messages = messages(&json!([
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "rain"},
    ]));
    let rendered = template_messages(&messages, ToolSyntax::HERMES).expect("fine");
    assert_eq!(rendered[0]["tool_calls"][0]["function"], json!({"name": "f", "arguments": {}}));
    assert_eq!(rendered[1], json!({"role": "tool", "content": "rain", "name": "f"}));
}

#[test]
fn a_text_joins_the_system_message_or_becomes_one() {
    let mut messages = vec![json!({"role": "user", "content": "u"})];
    add_to_system(&mut messages, "tools");
    add_to_system(&mut messages, "more");
    assert_eq!(messages[0], json!({"role": "system", "content": "tools\n\nmore"}));
    assert_eq!(messages.len(), 2);
}

#[test]
fn what_cannot_be_rendered_is_refused_by_its_field() {
    let call = json!([{"id": "x", "type": "magic", "function": {"name": "g", "arguments": ""}}]);
    for (wrong, field) in [
        (json!([]), "messages"),
        (json!([{"role": "king", "content": "x"}]), "messages[0].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content",
        ),
        (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
        (json!([{"role": "function", "content": "x"}]), "messages[0].name"),
        (json!([{"role": "assistant", "tool_calls": call}]), "messages[0].tool_calls[0].type"),
    ] {
        let Err(problem) = template_messages(&messages(&wrong), ToolSyntax::HERMES) else {
            panic!("{field} was not refused");
        };
        assert_eq!(problem.error.param.as_deref(), Some(field));
    }
}

#[test]
fn whole_numbers_of_more_than_64_bits_keep_their_digits() {
    let arguments = "{\"id\": 12345678901234567890123, \"text\": \"a \\\" 1\"}";
    let call = |arguments: &str| {
        messages(&json!([{"role": "assistant", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]}]))
    };
    let plain = template_messages(&call(arguments), ToolSyntax::PLAIN).expect("fine");
    assert!(plain[0]["content"].as_str().expect("a text").contains(arguments), "{plain:?}");
    let rendered = template_messages(&call(arguments), ToolSyntax::HERMES).expect("fine");
    assert_eq!(rendered[0]["tool_calls"][0]["function"]["arguments"], arguments);
    for exact in
        ["{\"a\": 18446744073709551615}", "{\"a\": -9223372036854775808}", "{\"a\": \"12345678901234567890123\"}"]
    {
        let rendered = template_messages(&call(exact), ToolSyntax::HERMES).expect("fine");
        assert!(rendered[0]["tool_calls"][0]["function"]["arguments"].is_object(), "{exact}");
    }
}
