use serde_json::{Value, json};

use super::*;

fn conversation(items: &Value) -> Result<Vec<ChatMessage>> {
    let items = items.as_array().expect("items").iter().enumerate();
    messages(items.map(|(index, item)| read(item, &format!("input[{index}]"))).collect::<Result<_>>()?)
}

/// Writes messages in short: who said what, and what was called.
fn short(messages: &[ChatMessage]) -> Vec<String> {
    let one = |message: &ChatMessage| {
        let text = match &message.content {
            Some(ChatContent::Text(text)) => text.as_str(),
            _ => "-",
        };
        let thought = message.reasoning_content.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
        let calls = message.tool_calls.iter().flatten();
        let name = |call: &MessageToolCall| call.function.as_ref().expect("a function").name.clone();
        let calls = calls.map(|call| format!(" {}={}", call.id, name(call)));
        let answers = message.tool_call_id.as_ref().map(|id| format!(" for {id}")).unwrap_or_default();
        format!("{}{thought}: {text}{}{answers}", message.role, calls.collect::<String>())
    };
    messages.iter().map(one).collect()
}

fn call(id: &str, name: &str) -> Value {
    json!({"type": "function_call", "id": null, "call_id": id, "name": name, "arguments": "{}"})
}

fn output(id: &str, text: &str) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": text})
}

#[test]
fn many_calls_find_their_results_in_any_order() {
    let ids: Vec<String> = (0..30_000).map(|number| format!("call_{number:040}")).collect();
    let calls = ids.iter().map(|id| call(id, "f"));
    let outputs = ids.iter().rev().map(|id| output(id, "x"));
    let items: Vec<Value> = calls.chain(outputs).collect();
    assert_eq!(conversation(&items.into()).expect("messages").len(), 30_001);
    // The same id may be called again once it has its result, and each call needs one.
    let again = json!([call("a", "f"), output("a", "1"), call("a", "f"), output("a", "2")]);
    assert_eq!(conversation(&again).expect("messages").len(), 4);
    for items in [
        json!([call("b", "f"), call("a", "f"), output("a", "1")]),
        json!([call("b", "f"), call("b", "f"), output("b", "1")]),
    ] {
        let problem = conversation(&items).expect_err("a call without a result");
        assert_eq!(problem.error.message, "No tool output found for function call b.");
    }
}

#[test]
fn messages_are_read_in_every_form_that_clients_write() {
    let part = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
    let items = json!([
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": part("input_text", "U")},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": [{"type": "text", "text": "V"}, {"type": "input_text", "text": "W"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "phase": "final_answer",
         "content": [{"type": "output_text", "text": "B", "annotations": null}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
    ]);
    let read = conversation(&items).expect("messages");
    assert_eq!(short(&read), ["developer: D", "user: U", "assistant: A", "user: VW", "assistant: B", "assistant: No"]);
}

#[test]
fn one_turn_of_the_assistant_is_one_message() {
    let items = json!([
        {"role": "user", "content": "U"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "A"},
        call("a", "f"),
        call("b", "g"),
        output("b", "2"),
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "reasoning", "encrypted_content": "x"},
        call("c", "f"),
        output("c", ""),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
        {"role": "assistant", "content": "B"},
        {"type": "reasoning", "summary": []},
        {"role": "assistant", "content": "C"},
    ]);
    let read = conversation(&items).expect("messages");
    assert_eq!(
        short(&read),
        [
            "user: U",
            "assistant (hm): A a=f b=g",
            "tool: 2 for b",
            "tool: 1 for a",
            "assistant: - c=f",
            "tool:  for c",
            "assistant (so): B",
            "assistant: C"
        ]
    );
}

#[test]
fn reasoning_that_nothing_follows_is_left_out() {
    let thought = json!({"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]});
    let read = conversation(&json!([thought, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]));
    assert_eq!(short(&read.expect("messages")), ["user: U", "assistant: A"]);
}

#[test]
fn a_custom_tool_is_called_with_its_input_as_the_argument() {
    let item = json!({"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "a\"b"});
    let Item::Call { arguments, .. } = read(&item, "input[0]").expect("a call") else { panic!("no call") };
    assert_eq!(arguments, r#"{"input":"a\"b"}"#);
}

#[test]
fn what_is_wrong_is_blamed_by_its_field() {
    for (item, field) in [
        (json!("x"), "input[0]"),
        (json!({}), "input[0].type"),
        (json!({"type": 3}), "input[0].type"),
        (json!({"type": "poem"}), "input[0].type"),
        (json!({"role": "king", "content": "x"}), "input[0].role"),
        (json!({"role": "user"}), "input[0].content"),
        (json!({"role": "user", "content": 3}), "input[0].content"),
        (json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}), "input[0].content[0].type"),
        (json!({"role": "user", "content": [{"type": "input_text"}]}), "input[0].content[0].text"),
        (json!({"type": "function_call", "name": "f", "arguments": "{}"}), "input[0].call_id"),
        (json!({"type": "function_call_output", "call_id": "a"}), "input[0].output"),
        (call("a", "f"), "input"),
        (output("a", "x"), "input"),
    ] {
        let problem = conversation(&json!([item])).expect_err(field);
        assert_eq!(problem.error.param.as_deref(), Some(field));
        assert!(problem.error.code.is_some(), "{field}");
    }
    // The result must come after the call.
    assert!(conversation(&json!([output("a", "x"), call("a", "f")])).is_err());
}

#[test]
fn items_of_hosted_tools_say_nothing() {
    let read = conversation(&json!([{"type": "web_search_call", "id": "ws_1"}, {"role": "user", "content": "U"}]));
    assert_eq!(short(&read.expect("messages")), ["user: U"]);
}

#[test]
fn a_kept_item_has_an_id_a_type_and_parts_and_keeps_those_that_it_has() {
    let item = kept(json!({"role": "user", "content": "U"}));
    assert!(item["id"].as_str().is_some_and(|id| id.starts_with("msg_")), "{item}");
    assert_eq!((&item["type"], &item["status"]), (&json!("message"), &json!("completed")));
    assert_eq!(item["content"], json!([{"type": "input_text", "text": "U"}]));
    let own = json!({"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}",
                     "status": "incomplete"});
    assert_eq!(kept(own.clone()), own);
    assert!(kept(call("c", "f"))["id"].as_str().is_some_and(|id| id.starts_with("fc_")));
    // Read again it is the same.
    for item in
        [json!({"role": "assistant", "content": "A"}), json!({"role": "user", "content": "U"}), output("c", "x")]
    {
        assert_eq!(read(&kept(item.clone()), "x").expect("an item"), read(&item, "x").expect("an item"));
    }
}

#[test]
fn a_summary_is_a_turn_of_its_own_behind_one_of_the_user() {
    let compaction = |summary: &str| json!({"type": "compaction", "encrypted_content": summary::write(summary)});
    let items = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "user", "content": "V"},
        compaction("sum"),
        {"role": "user", "content": "W"},
        {"role": "assistant", "content": "A"},
    ]);
    let read = conversation(&items).expect("messages");
    assert_eq!(
        short(&read),
        [
            "system: S",
            "user: U\n\nV",
            "assistant: Summary of the conversation so far:\n\nsum",
            "user: W",
            "assistant: A"
        ]
    );
    // At the beginning, too.
    assert_eq!(conversation(&json!([compaction("sum")])).expect("messages").len(), 1);
    for foreign in [json!({"type": "compaction", "encrypted_content": "gAAAAABp"}), json!({"type": "compaction"})] {
        let problem = conversation(&json!([foreign])).expect_err("foreign");
        assert_eq!(problem.error.param.as_deref(), Some("input[0].encrypted_content"));
    }
}

#[test]
fn a_compaction_stands_for_all_before_it_but_for_what_the_model_was_told() {
    let items = vec![
        json!({"type": "message", "role": "user"}),
        json!({"type": "message", "role": "assistant"}),
        json!({"type": "compaction"}),
        json!({"type": "function_call"}),
        json!({"type": "function_call_output"}),
        json!({"type": "compaction"}),
        json!({"type": "message", "role": "assistant"}),
    ];
    let left = pruned(items);
    let kinds: Vec<&str> = left.iter().map(|item| item["type"].as_str().expect("a type")).collect();
    assert_eq!(kinds, ["message", "compaction", "message"]);
    assert_eq!(
        pruned(vec![json!({"type": "message", "role": "assistant"}), json!({"type": "function_call"})]).len(),
        2
    );
}
