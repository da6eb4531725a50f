use serde_json::{Map, Value, json};

use super::super::object::{ReasoningEcho, TextEcho};
use super::*;
use crate::model::tool_syntax::ToolSyntax;

fn response() -> ResponseObject {
    ResponseObject {
        id: "resp_1".into(),
        object: "response",
        created_at: 1,
        completed_at: None,
        status: "in_progress",
        background: false,
        error: None,
        incomplete_details: None,
        instructions: None,
        max_output_tokens: None,
        max_tool_calls: None,
        model: "m".into(),
        output: Vec::new(),
        parallel_tool_calls: true,
        previous_response_id: None,
        conversation: None,
        prompt_cache_key: None,
        reasoning: ReasoningEcho::default(),
        safety_identifier: None,
        service_tier: "default",
        store: true,
        temperature: 1.0,
        text: TextEcho::of(None, false, None),
        tool_choice: "auto".into(),
        tools: Vec::new(),
        top_logprobs: 0,
        top_p: 0.7,
        truncation: "disabled",
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        usage: None,
        user: None,
        metadata: Map::new(),
    }
}

fn calls(names: &[&str]) -> CallFormat {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let syntax = ToolSyntax::HERMES;
    CallFormat { syntax, names, custom: Vec::new(), required: false, json_answers: false, legacy: false }
}

fn writer(thinks: Thinks, calls: Option<CallFormat>, custom: &[&str]) -> Writer {
    let custom: Vec<String> = custom.iter().map(|name| (*name).to_owned()).collect();
    let calls = calls.map(|calls| CallFormat { custom, ..calls });
    Writer::new(response(), Reading { thinks, calls, tokens: None })
}

/// Writes a text that comes in pieces of `size` characters; returns the events and the response.
fn write(mut writer: Writer, text: &str, size: usize, reason: FinishReason) -> (Vec<Value>, Value) {
    writer.begin();
    let characters: Vec<char> = text.chars().collect();
    for (index, chunk) in characters.chunks(size).enumerate() {
        writer.text(&chunk.iter().collect::<String>(), None, index + 1);
    }
    writer.end(reason, Usage::new(3, 1, characters.len()));
    writer.tell_end();
    let events: Vec<Value> = writer.events().iter().map(|event| serde_json::to_value(event).expect("JSON")).collect();
    (events, serde_json::to_value(&writer.response).expect("JSON"))
}

/// The events in short, without those of deltas that follow one another.
fn kinds(events: &[Value]) -> Vec<String> {
    let kinds = events.iter().map(|event| {
        let kind = event["type"].as_str().expect("a type").trim_start_matches("response.");
        event["output_index"].as_u64().map_or_else(|| kind.to_owned(), |index| format!("{kind} {index}"))
    });
    let mut kinds: Vec<String> = kinds.collect();
    kinds.dedup();
    kinds
}

/// Does what clients do: puts the items together from the events, and fails where they do not fit together.
fn accumulate(events: &[Value]) -> Vec<Value> {
    let mut items: Vec<Value> = Vec::new();
    for event in events {
        let kind = event["type"].as_str().expect("a type");
        let index = event["output_index"].as_u64().map(|index| index as usize);
        match kind {
            "response.output_item.added" => {
                assert_eq!(index, Some(items.len()), "an item comes out of its turn");
                assert!(event["item"]["content"].as_array().is_none_or(Vec::is_empty), "parts come later");
                items.push(event["item"].clone());
                continue;
            }
            "response.output_item.done" => {
                let item = &mut items[index.expect("an index")];
                assert_eq!(item["id"], event["item"]["id"]);
                let mut expected = event["item"].clone();
                expected["status"] = item["status"].clone();
                assert_eq!(*item, expected, "the item is not what its events said");
                *item = event["item"].clone();
                continue;
            }
            _ => {}
        }
        let Some(index) = index else { continue };
        let item = &mut items[index];
        assert_eq!(item["id"], event["item_id"], "{event}");
        match kind {
            "response.content_part.added" => {
                let parts = item["content"].as_array_mut().expect("parts");
                assert_eq!(event["content_index"], parts.len());
                parts.push(event["part"].clone());
            }
            "response.content_part.done" => assert_eq!(item["content"][0], event["part"]),
            "response.output_text.delta" | "response.reasoning_text.delta" => {
                let part = &mut item["content"][0];
                let text =
                    format!("{}{}", part["text"].as_str().expect("a text"), event["delta"].as_str().expect("one"));
                part["text"] = text.into();
            }
            "response.output_text.done" | "response.reasoning_text.done" => {
                assert_eq!(item["content"][0]["text"], event["text"]);
            }
            "response.function_call_arguments.delta" => {
                let delta = event["delta"].as_str().expect("a delta");
                item["arguments"] = format!("{}{delta}", item["arguments"].as_str().expect("a text")).into();
            }
            "response.function_call_arguments.done" => {
                assert_eq!((&item["arguments"], &item["name"]), (&event["arguments"], &event["name"]));
            }
            "response.custom_tool_call_input.delta" => {
                let delta = event["delta"].as_str().expect("a delta");
                item["input"] = format!("{}{delta}", item["input"].as_str().expect("a text")).into();
            }
            "response.custom_tool_call_input.done" => assert_eq!(item["input"], event["input"]),
            other => panic!("an event of no known type: {other}"),
        }
    }
    items
}

fn check(events: &[Value], response: &Value) {
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>(), "numbers rise by one from 0");
    assert_eq!(events[0]["response"]["output"], json!([]));
    assert_eq!(events[0]["response"]["usage"], Value::Null);
    let last = events.last().expect("events");
    assert_eq!(&last["response"], response);
    assert_eq!(Value::from(accumulate(events)), response["output"]);
}

const CALLS: &str = "Wait.<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n\
                     {\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

#[test]
fn a_text_is_one_item_with_one_part() {
    for size in [1, 3, 100] {
        let (events, response) = write(writer(Thinks::Never, None, &[]), "Hello you", size, FinishReason::Stop);
        assert_eq!(
            kinds(&events),
            [
                "created",
                "in_progress",
                "output_item.added 0",
                "content_part.added 0",
                "output_text.delta 0",
                "output_text.done 0",
                "content_part.done 0",
                "output_item.done 0",
                "completed"
            ]
        );
        check(&events, &response);
        let item = &response["output"][0];
        assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
        let part = json!({"type": "output_text", "text": "Hello you", "annotations": [], "logprobs": []});
        assert_eq!(item["content"], json!([part]));
        assert_eq!((&response["status"], &item["status"]), (&json!("completed"), &json!("completed")));
        assert!(response["completed_at"].is_i64() && response["incomplete_details"].is_null());
        let usage = json!({
            "input_tokens": 3, "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
            "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12,
        });
        assert_eq!(response["usage"], usage);
    }
}

#[test]
fn calls_are_items_behind_the_text() {
    for size in [1, 5, 1000] {
        let (events, response) =
            write(writer(Thinks::Never, Some(calls(&["f", "g"])), &[]), CALLS, size, FinishReason::Stop);
        check(&events, &response);
        let output = &response["output"];
        assert_eq!(output[0]["content"][0]["text"], "Wait.");
        assert_eq!((&output[1]["name"], &output[1]["arguments"]), (&json!("f"), &json!("{\"a\": 1}")));
        assert_eq!((&output[2]["name"], &output[2]["arguments"]), (&json!("g"), &json!("{}")));
        assert_ne!(output[1]["id"], output[1]["call_id"]);
        assert_ne!(output[1]["call_id"], output[2]["call_id"]);
        assert_eq!(output[1]["status"], "completed");
        let of_calls: Vec<String> = kinds(&events).split_off(8);
        assert_eq!(
            of_calls,
            [
                "output_item.added 1",
                "function_call_arguments.delta 1",
                "function_call_arguments.done 1",
                "output_item.done 1",
                "output_item.added 2",
                "function_call_arguments.delta 2",
                "function_call_arguments.done 2",
                "output_item.done 2",
                "completed"
            ]
        );
    }
}

#[test]
fn a_custom_tool_gets_its_input_as_a_text() {
    let text = "<tool_call>\n{\"name\": \"c\", \"arguments\": {\"input\": \"a\\n\\\"b\\\"\"}}\n</tool_call>";
    let (events, response) = write(writer(Thinks::Never, Some(calls(&["c"])), &["c"]), text, 4, FinishReason::Stop);
    check(&events, &response);
    let item = &response["output"][0];
    assert_eq!((&item["type"], &item["input"]), (&json!("custom_tool_call"), &json!("a\n\"b\"")));
    assert!(item["id"].as_str().is_some_and(|id| id.starts_with("ctc_")));
    let deltas = events.iter().filter(|event| event["type"] == "response.custom_tool_call_input.delta");
    assert!(deltas.count() > 1, "the input streams");
}

#[test]
fn reasoning_comes_before_the_answer_and_counts_its_tokens() {
    let text = "<think>\nhm\n</think>\n\nHi";
    let (events, response) = write(writer(Thinks::IfItBegins, None, &[]), text, 1, FinishReason::Stop);
    check(&events, &response);
    let output = &response["output"];
    assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "hm"}]));
    assert_eq!(output[0]["summary"], json!([]));
    assert_eq!(output[1]["content"][0]["text"], "Hi");
    assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], "<think>\nhm\n</think>".len());
    assert_eq!(
        kinds(&events)[4..8],
        ["reasoning_text.delta 0", "reasoning_text.done 0", "content_part.done 0", "output_item.done 0"]
    );
    // Calls come behind it as well.
    let text = format!("hm</think>{CALLS}");
    let (events, response) =
        write(writer(Thinks::FromTheStart, Some(calls(&["f", "g"])), &[]), &text, 3, FinishReason::Stop);
    check(&events, &response);
    assert_eq!(response["output"].as_array().map(Vec::len), Some(4));
}

#[test]
fn an_answer_that_was_cut_is_incomplete_down_to_its_item() {
    let (events, response) = write(writer(Thinks::Never, None, &[]), "Hel", 1, FinishReason::Length);
    check(&events, &response);
    assert_eq!(events.last().expect("one")["type"], "response.incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!((&response["status"], &response["completed_at"]), (&json!("incomplete"), &Value::Null));
    assert_eq!(response["output"][0]["status"], "incomplete");
    // In the middle of a thought there is no message yet.
    let (events, response) = write(writer(Thinks::FromTheStart, None, &[]), "hm", 1, FinishReason::Length);
    check(&events, &response);
    assert_eq!(response["output"].as_array().map(Vec::len), Some(1));
    assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], 2);
    // In the middle of a call.
    let cut = &CALLS[..CALLS.len() - 16];
    let (events, response) = write(writer(Thinks::Never, Some(calls(&["f", "g"])), &[]), cut, 4, FinishReason::Length);
    check(&events, &response);
    assert_eq!(
        (&response["output"][1]["status"], &response["output"][2]["status"]),
        (&json!("completed"), &json!("incomplete"))
    );
}

#[test]
fn an_answer_of_nothing_has_an_empty_message() {
    let (events, response) = write(writer(Thinks::Never, None, &[]), "", 1, FinishReason::Stop);
    check(&events, &response);
    assert_eq!(response["output"][0]["content"][0]["text"], "");
}

#[test]
fn a_failure_is_told_twice_and_keeps_what_was_written() {
    let mut writer = writer(Thinks::Never, None, &[]);
    writer.begin();
    writer.text("Hel", None, 1);
    writer.fail(Problem::unavailable("Gone."), Usage::new(3, 0, 1));
    let events: Vec<Value> = writer.events().iter().map(|event| serde_json::to_value(event).expect("JSON")).collect();
    let response = serde_json::to_value(&writer.response).expect("JSON");
    check(&events, &response);
    let [.., error, last] = events.as_slice() else { panic!("two events") };
    assert_eq!((&error["type"], &error["error"]["message"]), (&json!("error"), &json!("Gone.")));
    assert_eq!(last["type"], "response.failed");
    assert_eq!(response["error"], json!({"code": "server_error", "message": "Gone."}));
    assert_eq!(response["output"][0]["content"][0]["text"], "Hel");
    // Clients take any other event with such a key for a failure.
    assert!(events.iter().all(|event| event["type"] == "error" || event.get("error").is_none()));
}

#[test]
fn every_key_of_a_response_is_always_there() {
    let object = serde_json::to_value(response()).expect("JSON");
    let expected = [
        "id",
        "object",
        "created_at",
        "completed_at",
        "status",
        "background",
        "error",
        "incomplete_details",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "model",
        "output",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt_cache_key",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "presence_penalty",
        "frequency_penalty",
        "usage",
        "user",
        "metadata",
    ];
    let keys: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, expected);
    assert_eq!(object["text"], json!({"format": {"type": "text"}}));
    assert_eq!(object["reasoning"], json!({"effort": null, "summary": null}));
    assert!(serde_json::to_string(&response()).expect("JSON").contains("\"top_p\":0.7,"));
}
