"""Responses: whole and streamed, with tools and schemas, kept and gone on from. `test_background_responses.py` has those
that nobody waits for."""

import json
import re
from typing import Literal

import attunelib
import httpx
import jsonschema
import openai
import pytest
from conftest import wait_for
from pydantic import BaseModel, Field

KEYS = {
    "id", "object", "created_at", "completed_at", "status", "background", "error", "incomplete_details", "instructions",
    "max_output_tokens", "max_tool_calls", "model", "output", "parallel_tool_calls", "previous_response_id",
    "prompt_cache_key", "reasoning", "safety_identifier", "service_tier", "store", "temperature", "text", "tool_choice",
    "tools", "top_logprobs", "top_p", "truncation", "presence_penalty", "frequency_penalty", "usage", "user", "metadata",
}  # fmt: skip
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
}
TOOLS = [
    {"type": "function", "name": "weather", "description": "The weather of a city.", "parameters": WEATHER},
    {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}},
]
QUESTION = "How is the weather in Rome?"


class Town(BaseModel):
    name: str = Field(max_length=8)
    side: Literal["north", "south"]
    harbours: list[int] = Field(max_length=2)


def ask(http, **settings):
    body = {"model": "demo", "input": "Hello!", "max_output_tokens": 60, "temperature": 0, **settings}
    answer = http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(http, **settings):
    """The error of a request that is refused with 400."""
    body = {"model": "demo", "input": "Hello!", "max_output_tokens": 20, **settings}
    answer = http.post("/v1/responses", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] and error["param"], "some clients read neither as null"
    return error


def text_of(response):
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def calls_of(response):
    return [item for item in response["output"] if item["type"] == "function_call"]


def events_of(answer):
    """The events of a stream in its exact form: each with its name, and `[DONE]` behind them."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = []
    for frame in frames:
        if frame.startswith(":"):
            continue
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == "event: " + event["type"]
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def stream(http, **settings):
    body = {"model": "demo", "input": "Hello!", "max_output_tokens": 60, "temperature": 0, "stream": True, **settings}
    return events_of(http.post("/v1/responses", json=body))


def chat_text(client, messages, **settings):
    settings = {"model": "demo", "max_tokens": 60, "temperature": 0, **settings}
    return client.chat.completions.create(messages=messages, **settings).choices[0].message.content


def test_a_response_has_every_key_and_the_answer_of_a_chat(http, client):
    response = ask(http, metadata={"team": "a"}, user="u", instructions="Be kind.", service_tier="flex", made_up=1)
    assert set(response) == KEYS
    assert response["id"].startswith("resp_")
    assert (response["object"], response["status"], response["model"]) == ("response", "completed", "demo")
    assert response["completed_at"] >= response["created_at"]
    assert (response["metadata"], response["user"], response["service_tier"]) == ({"team": "a"}, "u", "default")
    assert (response["text"], response["tools"], response["tool_choice"]) == ({"format": {"type": "text"}}, [], "auto")
    assert (response["temperature"], response["store"], response["truncation"]) == (0, True, "disabled")
    (item,) = response["output"]
    assert item["id"].startswith("msg_")
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": text_of(response), "annotations": [], "logprobs": []}]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    assert text_of(response) == chat_text(client, messages)
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert set(usage["input_tokens_details"]) == {"cached_tokens", "cache_write_tokens"}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


def test_a_stream_says_the_same_as_the_whole_response(http):
    whole = ask(http, seed=3)
    events = stream(http, seed=3)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * len(deltas),
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert len(deltas) > 3
    assert "".join(deltas) == text_of(whole)
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    for changing in ("id", "created_at", "completed_at", "usage"):
        assert last.pop(changing) is not None
        whole.pop(changing)
    last["output"][0]["id"] = whole["output"][0]["id"]
    assert last == whole


def test_openais_client_streams_and_keeps_the_ids_of_items(client):
    with client.responses.stream(model="demo", input="Hello!", max_output_tokens=40, temperature=0) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final = events.get_final_response()
    assert final.output_text == text
    kept = client.responses.retrieve(final.id)
    assert [item.id for item in kept.output] == [item.id for item in final.output]
    assert kept.output_text == text


def test_a_short_answer_is_incomplete(http):
    response = ask(http, max_output_tokens=2)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete"
    assert response["completed_at"] is None
    events = stream(http, max_output_tokens=2)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text_of(response)


@pytest.mark.parametrize("seed", range(3))
def test_openais_client_parses_what_follows_a_schema(client, seed):
    settings = {"model": "demo", "input": "A town?", "max_output_tokens": 400, "temperature": 1}
    parsed = client.responses.parse(text_format=Town, extra_body={"seed": seed}, **settings).output_parsed
    assert isinstance(parsed, Town)
    with client.responses.stream(text_format=Town, extra_body={"seed": seed}, **settings) as events:
        assert events.get_final_response().output_parsed == parsed


def test_any_json_can_be_asked_for(http):
    for kind in ("json_object", "json_schema"):
        response = ask(
            http, text={"format": {"type": kind}}, max_output_tokens=400, seed=1, temperature=1,
            logit_bias={}, input="Give me JSON.",
        )  # fmt: skip
        assert response["text"] == {"format": {"type": "json_object"}}
        if response["status"] == "completed":
            assert isinstance(json.loads(text_of(response)), dict)


def test_tools_are_called_and_their_results_are_answered(http):
    settings = {"tools": TOOLS, "max_output_tokens": 300, "temperature": 1, "seed": 1, "input": QUESTION}
    first = ask(http, tool_choice="required", parallel_tool_calls=False, **settings)
    (call,) = calls_of(first)
    assert call["id"].startswith("fc_") and call["call_id"].startswith("call_") and call["status"] == "completed"
    schemas = {tool["name"]: tool["parameters"] for tool in TOOLS}
    jsonschema.validate(json.loads(call["arguments"]), schemas[call["name"]])
    assert first["tools"][1] == {**TOOLS[1], "description": None, "strict": None}
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."}
    settings = {"tools": TOOLS, "tool_choice": "none"}
    second = ask(http, input=[output], previous_response_id=first["id"], **settings)
    assert text_of(second)
    # The same from a client that keeps everything itself.
    alone = [{"role": "user", "content": QUESTION}, *first["output"], output]
    third = ask(http, input=alone, store=False, **settings)
    assert text_of(third) == text_of(second)
    assert third["usage"]["input_tokens"] == second["usage"]["input_tokens"]


def test_calls_stream_their_arguments(http):
    events = stream(http, input=QUESTION, tools=TOOLS, tool_choice={"type": "function", "name": "weather"},
                    max_output_tokens=300, seed=2)  # fmt: skip
    added = next(event for event in events if event["type"] == "response.output_item.added")["item"]
    assert (added["type"], added["arguments"], added["status"]) == ("function_call", "", "in_progress")
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    assert len(deltas) > 1
    assert "".join(deltas) == done["arguments"]
    assert (done["name"], done["item_id"]) == ("weather", added["id"])
    (final,) = events[-1]["response"]["output"]
    assert final == {**added, "arguments": done["arguments"], "status": "completed"}


def test_only_allowed_tools_are_called(http):
    for name in ("weather", "clock"):
        choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": name}]}
        for seed in range(3):
            response = ask(http, tools=TOOLS, tool_choice=choice, seed=seed, temperature=1, max_output_tokens=300,
                           parallel_tool_calls=False)  # fmt: skip
            assert [call["name"] for call in calls_of(response)] == [name]
            assert len(response["tools"]) == 2, "the model is shown all of them"
            assert response["tool_choice"] == choice


def test_a_custom_tool_is_called_with_a_text(http):
    tools = [{"type": "custom", "name": "note", "description": "Notes a text."}]
    settings = {"tools": tools, "tool_choice": {"type": "custom", "name": "note"}, "max_output_tokens": 500}
    response = ask(http, seed=3, temperature=0.5, **settings)
    (call,) = response["output"]
    assert (call["type"], call["name"]) == ("custom_tool_call", "note")
    assert isinstance(call["input"], str)
    if call["status"] == "completed":
        output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "Noted."}
        assert text_of(ask(http, input=[output], previous_response_id=response["id"]))


def test_the_input_of_a_custom_tool_streams_and_follows_its_grammar(http):
    format = {"type": "grammar", "syntax": "regex", "definition": "[0-2][0-9]:[0-5][0-9]"}
    tools = [{"type": "custom", "name": "alarm", "format": format}, *TOOLS]
    choice = {"type": "custom", "name": "alarm"}
    for seed in range(3):
        events = stream(http, tools=tools, tool_choice=choice, seed=seed, temperature=1, max_output_tokens=200)
        added = next(event for event in events if event["type"] == "response.output_item.added")["item"]
        assert (added["type"], added["name"], added["input"]) == ("custom_tool_call", "alarm", "")
        assert added["id"].startswith("ctc_") and added["call_id"].startswith("call_")
        deltas = [event for event in events if event["type"] == "response.custom_tool_call_input.delta"]
        (done,) = [event for event in events if event["type"] == "response.custom_tool_call_input.done"]
        assert {event["item_id"] for event in [*deltas, done]} == {added["id"]}
        assert len(deltas) > 1
        assert "".join(event["delta"] for event in deltas) == done["input"]
        assert re.fullmatch("[0-2][0-9]:[0-5][0-9]", done["input"])
        (item,) = events[-1]["response"]["output"]
        assert item == {**added, "input": done["input"], "status": "completed"}
        assert events[-1]["response"]["tools"][0]["format"] == format
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [choice]}
    response = ask(http, tools=tools, tool_choice=allowed, parallel_tool_calls=False, max_output_tokens=200)
    assert [item["type"] for item in response["output"]] == ["custom_tool_call"]


ROWS = """
// Cells between semicolons, with line ends behind them.
start: row{1,3}
row: QUOTED (";" cell)~0..2 NEWLINE
?cell: NUMBER | QUOTED
QUOTED: "\\"" /[^"\\n]{0,4}/ "\\""
NUMBER: DIGIT{1,3}
NEWLINE: "\\n"
%import common.DIGIT
"""
ROW = r'"[^"\n]{0,4}"(?:;(?:\d{1,3}|"[^"\n]{0,4}")){0,2}\n'


def test_the_input_of_a_custom_tool_follows_rules_in_lark_also_where_it_is_escaped(http):
    format = {"type": "grammar", "syntax": "lark", "definition": ROWS}
    tools = [{"type": "custom", "name": "table", "format": format}, *TOOLS]
    choice = {"type": "custom", "name": "table"}
    for seed in range(6):
        settings = {"tools": tools, "tool_choice": choice, "seed": seed, "temperature": 1, "max_output_tokens": 300}
        events = stream(http, **settings)
        deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
        (item,) = events[-1]["response"]["output"]
        assert (item["type"], item["status"], item["input"]) == ("custom_tool_call", "completed", "".join(deltas))
        assert re.fullmatch(rf"(?:{ROW}){{1,3}}", item["input"]), item["input"]
        assert events[-1]["response"]["tools"][0]["format"] == format
        assert ask(http, **settings)["output"][0]["input"] == item["input"]
    # Several calls, of this tool and of others, and one where none must be.
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [choice, {"type": "function", "name": "clock"}]}
    for seed in range(3):
        response = ask(http, tools=tools, tool_choice=allowed, seed=seed, temperature=1, max_output_tokens=400)
        for call in response["output"]:
            assert call["name"] in ("table", "clock")
            if call["name"] == "table" and call["status"] == "completed":
                assert re.fullmatch(rf"(?:{ROW}){{1,3}}", call["input"]), call
    assert ask(http, tools=tools, tool_choice="auto", max_output_tokens=20)["status"] in ("completed", "incomplete")


@pytest.mark.parametrize(
    "rules, place",
    [
        ("start: A", "line 1, column 8"),
        ("start: \"a\"\n  | B.1\nB: /b/", "line"),
        ("start: A\nA: /a(?=b)/", "line 2, column 4"),
        ("start: /a+?/", "line 1, column 8"),
        ("start: \"a", "line 1, column 8"),
        ("start: <|im_end|>", "line 1, column 8"),
        ("%import common.NONE\nstart: NONE", "line 1"),
        ("begin: \"a\"", "no start rule"),
        ("start: start", "no text"),
        ("start: \"" + "a" * 40_000 + "\"", "32768"),
        ("", "no start rule"),
    ],
)
def test_rules_in_lark_that_cannot_be_followed_are_refused_by_their_place(http, rules, place):
    tool = {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": rules}}
    error = refusal(http, tools=[TOOLS[0], tool])
    assert (error["param"], error["code"]) == ("tools[1].format", "invalid_schema")
    assert place in error["message"] and "\n" not in error["message"], error


def test_tools_of_servers_are_left_out_by_name(http):
    body = {"model": "demo", "input": "Hello", "max_output_tokens": 5, "tools": [{"type": "web_search"}, *TOOLS]}
    answer = http.post("/v1/responses", json=body)
    assert answer.headers["x-attune-skipped"] == "tools[0]: web_search"
    assert [tool["name"] for tool in answer.json()["tools"]] == ["weather", "clock"]
    assert refusal(http, tools=[{"type": "web_search"}], tool_choice={"type": "web_search"})["param"] == "tool_choice"


def test_log_probabilities_come_where_asked_for(http):
    assert ask(http, max_output_tokens=5)["output"][0]["content"][0]["logprobs"] == []
    settings = {"max_output_tokens": 5, "include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}
    for top in (0, 2):
        response = ask(http, top_logprobs=top, **settings)
        logprobs = response["output"][0]["content"][0]["logprobs"]
        assert len(logprobs) == response["usage"]["output_tokens"]
        assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == top for entry in logprobs)
        events = stream(http, top_logprobs=top, **settings)
        streamed = [entry for event in events if event["type"].endswith("text.delta") for entry in event["logprobs"]]
        assert streamed == logprobs


def test_a_response_goes_on_from_another(http, client):
    first = ask(http, input="My name is Ada.", instructions="Be brief.")
    second = ask(http, input="What is my name?", previous_response_id=first["id"])
    third = ask(http, input=[{"role": "user", "content": "Why?"}], previous_response_id=second["id"], instructions="Sing.")
    assert third["previous_response_id"] == second["id"]
    said = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": text_of(first)},
        {"role": "user", "content": "What is my name?"},
    ]
    # Instructions are not taken over.
    assert text_of(second) == chat_text(client, said)
    said += [{"role": "assistant", "content": text_of(second)}, {"role": "user", "content": "Why?"}]
    assert text_of(third) == chat_text(client, [{"role": "system", "content": "Sing."}, *said])
    # Streamed it is the same.
    events = stream(http, input="What is my name?", previous_response_id=first["id"])
    assert events[-1]["response"]["output"][0]["content"] == second["output"][0]["content"]


def test_items_can_be_referred_to(http):
    first = ask(http, input="My name is Ada.")
    question = {"role": "user", "content": "What is my name?"}
    spelled = ask(http, input=[{"role": "user", "content": "My name is Ada."}, *first["output"], question])
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    asked = [{"role": "user", "content": "My name is Ada."}, reference, question]
    referred = ask(http, input=asked)
    assert text_of(referred) == text_of(spelled)
    items = http.get(f"/v1/responses/{referred['id']}/input_items?order=asc").json()["data"]
    assert items[1] == first["output"][0], "what is kept does not need the other response"
    answer = http.post("/v1/responses", json={"model": "demo", "input": [{"id": "msg_nobody"}]})
    assert answer.status_code == 404
    assert "msg_nobody" in answer.json()["error"]["message"]


def test_a_response_is_kept_until_it_is_deleted(http, client):
    response = ask(http)
    assert http.get(f"/v1/responses/{response['id']}").json() == response
    child = ask(http, previous_response_id=response["id"])
    deleted = http.delete(f"/v1/responses/{response['id']}")
    assert deleted.json() == {"id": response["id"], "object": "response", "deleted": True}
    for answer in (
        http.get(f"/v1/responses/{response['id']}"),
        http.delete(f"/v1/responses/{response['id']}"),
        http.get(f"/v1/responses/{response['id']}/input_items"),
        http.get(f"/v1/responses/{ask(http, store=False)['id']}"),
    ):
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["code"] == "response_not_found"
    assert http.get(f"/v1/responses/{child['id']}").status_code == 200
    # What it went on from is gone.
    for previous in (response["id"], child["id"], "resp_nobody"):
        error = refusal(http, previous_response_id=previous)
        assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
        assert previous in error["message"]
    client.responses.delete(child["id"])
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(child["id"])


def test_the_items_of_a_request_come_in_pages(http, client):
    items = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "c"},
        {"role": "user", "content": [{"type": "input_text", "text": "d"}]},
    ]
    response = ask(http, input=items)
    path = f"/v1/responses/{response['id']}/input_items"
    page = http.get(path + "?order=asc").json()
    assert set(page) == {"object", "data", "has_more", "first_id", "last_id"}
    assert [item["type"] for item in page["data"]] == ["message", "message", "function_call", "function_call_output", "message"]
    assert page["data"][0]["content"] == [{"type": "input_text", "text": "a"}]
    assert page["data"][1]["content"][0]["type"] == "output_text"
    ids = [item["id"] for item in page["data"]]
    assert len(set(ids)) == 5
    listed = list(client.responses.input_items.list(response["id"], limit=2))
    assert [item.id for item in listed] == ids[::-1]
    two = http.get(path + f"?order=asc&limit=2&after={ids[0]}").json()
    assert ([item["id"] for item in two["data"]], two["has_more"]) == (ids[1:3], True)


def test_tokens_are_counted_as_a_response_would_use_them(http, client):
    first = ask(http)
    for settings in (
        {"input": "Hello!"},
        {"input": "And now?", "previous_response_id": first["id"], "instructions": "Be kind."},
        {"input": QUESTION, "tools": TOOLS},
    ):
        counted = http.post("/v1/responses/input_tokens", json={"model": "demo", **settings}).json()
        used = ask(http, **settings)["usage"]["input_tokens"]
        assert counted == {"object": "response.input_tokens", "input_tokens": used}
    assert client.responses.input_tokens.count(model="demo", input="Hello!").input_tokens > 0


def test_a_long_conversation_is_refused_or_loses_its_oldest_messages(http):
    def say(count):
        turns = [[{"role": "user", "content": f"{i} " * 60}, {"role": "assistant", "content": "Yes."}] for i in range(count)]
        return [{"role": "system", "content": "Be kind."}, *sum(turns, []), {"role": "user", "content": "Hello!"}]

    assert refusal(http, input=say(30))["code"] == "context_length_exceeded"
    short = ask(http, input=say(30), truncation="auto")
    assert short["truncation"] == "auto"
    assert text_of(short)
    # As few as can be: the last one that fits is what a client would have sent.
    counts = [
        http.post("/v1/responses/input_tokens", json={"model": "demo", "input": [say(30)[0], *say(30)[at:]]}).json()["input_tokens"]
        for at in range(1, len(say(30)), 2)
    ]
    assert short["usage"]["input_tokens"] == next(count for count in counts if count + 60 <= 1024)
    # One message alone cannot lose anything.
    assert refusal(http, input="x " * 3000, truncation="auto")["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "poem"}]}, "input[0].type"),
        ({"input": [{"id": 7, "role": "user", "content": "x"}]}, "input[0].id"),
        ({"input": [{"id": "x" * 513, "role": "user", "content": "x"}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": "x", "status": ["completed"]}]}, "input[0].status"),
        ({"input": [{"id": "msg_1", "role": "user", "content": text} for text in "xy"]}, "input[1].id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100000}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": []}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}}, "text.format.json_schema"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
        ({"tools": [{"type": "x"}, {**TOOLS[0], "parameters": {"type": "array"}}]}, "tools[1].parameters"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": True, "tools": []}}, "tool_choice.mode"),
        ({"tools": [{"type": "function", "function": {"name": 7}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar"}}]}, "tools[0].format"),
        (
            {"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}}]},
            "tools[0].format",
        ),
        (
            {"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "regex", "definition": "("}}]},
            "tools[0].format",
        ),
        ({"tools": [{"type": "custom", "name": "a b"}]}, "tools[0].name"),
        ({"background": True, "store": False}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"context_management": [{"type": "clear", "compact_threshold": 1000}]}, "context_management[0].type"),
        ({"context_management": [{"type": "compaction"}]}, "context_management[0].compact_threshold"),
        ({"context_management": {"type": "compaction"}}, "context_management"),
        ({"truncation": "some"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(http, settings, param):
    assert refusal(http, **settings)["param"] == param


def test_a_model_that_is_not_there_is_not_found(http):
    answer = http.post("/v1/responses", json={"model": "nobody", "input": "x"})
    assert answer.status_code == 404
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("model_not_found", "model")
    assert http.post("/v1/responses", json={"input": "x"}).json()["error"]["param"] == "model"


def test_what_changes_nothing_is_taken(http):
    ask(
        http, include=[], tools=[], n=1, prompt_cache_key="k", safety_identifier="s", max_tool_calls=3,
        stream_options={"include_obfuscation": False}, client_metadata={"a": "b"}, service_tier="auto",
        reasoning={"effort": "low", "summary": "auto"}, context_management=[], conversation=None,
    )  # fmt: skip


def test_another_organisation_sees_nothing_of_it(tenants):
    with tenants.http("acme") as acme, tenants.http("rival") as rival:
        response = ask(acme, input="A secret.")
        item = response["output"][0]["id"]
        path = f"/v1/responses/{response['id']}"
        for answer in (
            rival.get(path), rival.delete(path), rival.post(path + "/cancel"), rival.get(path + "/input_items"),
            rival.post("/v1/responses", json={"model": "demo", "input": [{"id": item}, {"role": "user", "content": "x"}]}),
        ):  # fmt: skip
            assert answer.status_code == 404, answer.text
            assert "secret" not in answer.text
        error = refusal(rival, previous_response_id=response["id"])
        assert error["code"] == "previous_response_not_found"
        assert acme.get(path).json() == response


def test_a_client_that_leaves_ends_the_response(http, endless):
    body = {"model": "demo", "input": "Hello!", "max_output_tokens": 900, "stream": True, "logit_bias": endless}
    with http.stream("POST", "/v1/responses", json=body) as answer:
        lines = answer.iter_lines()
        created = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
        next(line for line in lines if "output_text.delta" in line)
    path = f"/v1/responses/{created['response']['id']}"
    kept = wait_for(lambda: (answer := http.get(path)).status_code == 200 and answer.json(), "the cancelled response")
    assert kept["status"] == "cancelled"
    assert kept["output"][0]["status"] == "incomplete"
    assert 0 < kept["usage"]["output_tokens"] < 900
    assert refusal(http, previous_response_id=kept["id"])["param"] == "previous_response_id"


@pytest.fixture(scope="module")
def thinking(start_server, tmp_path_factory):
    """A server with the demo model under a template that lets it think unless `enable_thinking` is false."""
    folder = tmp_path_factory.mktemp("thinking")
    for file in attunelib.DEMO.iterdir():
        if file.is_file() and file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((attunelib.DEMO / "tokenizer_config.json").read_text())
    begin = "<|im_start|>assistant\n"
    template = config["chat_template"].replace("{{ '<|im_start|>assistant\n' }}", begin + (
        "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
    ))  # fmt: skip
    assert "<think>" in template
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    settings = folder / "attune.toml"
    settings.write_text(f'[[models]]\nid = "demo"\npath = "{folder}"\n')
    server = start_server("--config", str(settings))
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def test_a_model_that_thinks_shows_its_reasoning_first(thinking):
    response = ask(thinking)
    reasoning = response["output"][0]
    assert (reasoning["type"], reasoning["summary"]) == ("reasoning", [])
    assert reasoning["content"][0]["type"] == "reasoning_text"
    assert reasoning["content"][0]["text"]
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    events = stream(thinking)
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == reasoning["content"][0]["text"]
    assert events[2]["item"]["type"] == "reasoning"


def test_thinking_can_be_switched_off_and_leaves_no_room_for_a_schema(thinking):
    response = ask(thinking, reasoning={"effort": "none"})
    assert response["reasoning"] == {"effort": "none", "summary": None}
    assert [item["type"] for item in response["output"]] == ["message"]
    assert text_of(response)
    schema = {"type": "object", "properties": {"side": {"enum": ["north", "south"]}}, "required": ["side"]}
    response = ask(thinking, text={"format": {"type": "json_schema", "name": "n", "schema": schema}})
    jsonschema.validate(json.loads(text_of(response)), schema)


def test_a_response_is_paid_like_a_chat(tenants):
    def used():
        rows = http.get("/v1/usage?group_by=").json()["data"]
        return sum(row["completion_tokens"] for row in rows), sum(row["requests"] for row in rows)

    with tenants.http("acme") as http:
        before = used()
        tokens = ask(http)["usage"]["output_tokens"]
        wait_for(lambda: used() == (before[0] + tokens, before[1] + 1), "the usage of one response")
