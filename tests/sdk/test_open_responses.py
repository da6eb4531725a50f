"""What Open Responses (openresponses.org, version 2026-04-24) demands of a server, as facts: the keys of objects, the events
of a stream and their order, the forms of errors, and the requests of its compliance tests. `docs/responses.md` lists what
is not met, and why; each of these stands here, too, as a test that says what is done instead."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema
import pytest
from test_responses import TOOLS, events_of, text_of


def nullable(schema):
    return {"anyOf": [schema, {"type": "null"}]}


def made_of(required, optional=(), **more):
    """An object that has all the `required` keys, and whose values are as their schemas say."""
    optional = dict(optional)
    return {"type": "object", "required": list(required), "properties": {**required, **optional}, **more}


TEXT, COUNT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "number"}, {"type": "boolean"}
ID = {"type": "string", "minLength": 1}
ITEM_STATUS = {"enum": ["in_progress", "completed", "incomplete"]}


def one_of(kind, required, optional=()):
    return made_of({"type": {"const": kind}, **required}, optional)


LOGPROB = made_of({"token": TEXT, "logprob": NUMBER, "bytes": {"type": "array"}, "top_logprobs": {"type": "array"}})
OUTPUT_TEXT = one_of(
    "output_text", {"text": TEXT, "annotations": {"type": "array"}, "logprobs": {"type": "array", "items": LOGPROB}}
)
REASONING_TEXT = one_of("reasoning_text", {"text": TEXT})
MESSAGE = one_of(
    "message",
    {"id": ID, "status": ITEM_STATUS, "role": {"const": "assistant"}, "content": {"type": "array", "items": OUTPUT_TEXT}},
)
CALL = one_of(
    "function_call", {"id": ID, "call_id": ID, "name": ID, "arguments": TEXT, "status": ITEM_STATUS}
)
REASONING = one_of(
    "reasoning", {"id": ID, "summary": {"type": "array"}}, {"content": {"type": "array", "items": REASONING_TEXT}}
)
ITEM = {"oneOf": [MESSAGE, CALL, REASONING]}
TOOL = one_of(
    "function",
    {"name": ID, "description": nullable(TEXT), "parameters": nullable({"type": "object"}), "strict": nullable(FLAG)},
)
USAGE = made_of(
    {
        "input_tokens": COUNT,
        "output_tokens": COUNT,
        "total_tokens": COUNT,
        "input_tokens_details": made_of({"cached_tokens": COUNT}),
        "output_tokens_details": made_of({"reasoning_tokens": COUNT}),
    }
)
ERROR = made_of({"code": ID, "message": ID})
RESPONSE = made_of(
    {
        "id": ID,
        "object": {"const": "response"},
        "created_at": COUNT,
        "completed_at": nullable(COUNT),
        "status": {"enum": ["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]},
        "incomplete_details": nullable(made_of({"reason": {"enum": ["max_output_tokens", "content_filter"]}})),
        "model": ID,
        "previous_response_id": nullable(ID),
        "instructions": nullable({"type": ["string", "array"]}),
        "output": {"type": "array", "items": ITEM},
        "error": nullable(ERROR),
        "tools": {"type": "array", "items": TOOL},
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, made_of({"type": ID})]},
        "truncation": {"enum": ["auto", "disabled"]},
        "parallel_tool_calls": FLAG,
        "text": made_of({"format": made_of({"type": {"enum": ["text", "json_object", "json_schema"]}})}),
        "top_p": NUMBER,
        "presence_penalty": NUMBER,
        "frequency_penalty": NUMBER,
        "top_logprobs": COUNT,
        "temperature": NUMBER,
        "reasoning": nullable(
            made_of(
                {
                    "effort": {"enum": [None, "none", "low", "medium", "high", "xhigh"]},
                    "summary": {"enum": [None, "auto", "concise", "detailed"]},
                }
            )
        ),
        "usage": nullable(USAGE),
        "max_output_tokens": nullable(COUNT),
        "max_tool_calls": nullable(COUNT),
        "store": FLAG,
        "background": FLAG,
        "service_tier": ID,
        "metadata": {"type": "object"},
        "safety_identifier": nullable(TEXT),
        "prompt_cache_key": nullable(TEXT),
        "user": nullable(TEXT),
    }
)


def event(kind, **keys):
    return one_of(kind, {"sequence_number": COUNT, **keys})


AT = {"item_id": ID, "output_index": COUNT, "content_index": COUNT}
LOGPROBS = {"type": "array", "items": LOGPROB}
PART = {"oneOf": [OUTPUT_TEXT, REASONING_TEXT]}
EVENTS = {
    schema["properties"]["type"]["const"]: schema
    for schema in [
        *(
            event("response." + kind, response=RESPONSE)
            for kind in ("created", "queued", "in_progress", "completed", "incomplete", "failed")
        ),
        event("response.output_item.added", output_index=COUNT, item=ITEM),
        event("response.output_item.done", output_index=COUNT, item=ITEM),
        event("response.content_part.added", **AT, part=PART),
        event("response.content_part.done", **AT, part=PART),
        event("response.output_text.delta", **AT, delta=TEXT, logprobs=LOGPROBS),
        event("response.output_text.done", **AT, text=TEXT, logprobs=LOGPROBS),
        event("response.function_call_arguments.delta", item_id=ID, output_index=COUNT, delta=TEXT),
        event("response.function_call_arguments.done", item_id=ID, output_index=COUNT, name=ID, arguments=TEXT),
        event("error", error=made_of({"type": ID, "code": nullable(ID), "message": ID, "param": nullable(TEXT)})),
    ]
}
LAST = ("response.completed", "response.incomplete", "response.failed")


def check(response):
    jsonschema.validate(response, RESPONSE)
    assert (response["completed_at"] is not None) == (response["status"] == "completed")
    if response["status"] in ("completed", "incomplete"):
        assert response["usage"] is not None
        assert response["error"] is None
    usage = response["usage"]
    if usage:
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    ids = [item["id"] for item in response["output"]]
    assert len(set(ids)) == len(ids)
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    assert all(call["id"] != call["call_id"] for call in calls)
    return response


def check_stream(events):
    """Each event has its form, and the events of items and parts nest; returns the last response."""
    for one in events:
        assert one["type"] in EVENTS, f"{one['type']} is none of the events that clients know"
        jsonschema.validate(one, EVENTS[one["type"]])
    kinds = [one["type"] for one in events]
    assert kinds[0] == "response.created" and "response.in_progress" in kinds[1:3]
    assert kinds[-1] in LAST and not set(kinds[:-1]) & set(LAST)
    assert events[0]["response"]["output"] == []
    items, open_item, open_part = [], None, None
    for one in events:
        kind = one["type"]
        if kind == "response.output_item.added":
            assert open_item is None and one["output_index"] == len(items)
            open_item = one["item"]
            assert open_item["status"] == "in_progress"
            assert open_item.get("content", []) == [] and open_item.get("arguments", "") == ""
        elif kind == "response.output_item.done":
            assert open_part is None and one["item"]["id"] == open_item["id"]
            assert one["item"]["status"] != "in_progress"
            items.append(one["item"])
            open_item = None
        elif kind == "response.content_part.added":
            assert open_part is None and one["item_id"] == open_item["id"]
            assert one["part"]["text"] == ""
            open_part = ""
        elif kind == "response.content_part.done":
            assert one["part"]["text"] == open_part
            open_part = None
        elif kind == "response.output_text.delta":
            open_part += one["delta"]
        elif kind == "response.output_text.done":
            assert one["text"] == open_part
        elif kind == "response.function_call_arguments.delta":
            open_item["arguments"] += one["delta"]
        elif kind == "response.function_call_arguments.done":
            assert one["arguments"] == open_item["arguments"]
        if "item_id" in one:
            assert (one["item_id"], one["output_index"]) == (open_item["id"], len(items))
    assert open_item is None
    assert events[-1]["response"]["output"] == items, "the last response holds all of it"
    return check(events[-1]["response"])


WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather of a place.",
    "parameters": {"type": "object", "properties": {"location": {"type": "string", "maxLength": 12}}, "required": ["location"]},
}
QUESTION = [{"type": "message", "role": "user", "content": "Say hello in three words."}]
ROUND_TRIP = [
    {"type": "message", "role": "user", "content": "How is the weather in Rome?"},
    {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"location": "Rome"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "Sunny, 20 degrees."},
]
TALK = [
    {"type": "message", "role": "user", "content": "My name is Alice."},
    {"type": "message", "role": "assistant", "content": "Hello Alice! How can I help?"},
    {"type": "message", "role": "user", "content": "What is my name?"},
]
# The compliance tests by name: what they send, and a check of what comes back beside that of every response. Those of
# images and files are below.
COMPLIANCE = {
    "basic-response": ({"input": QUESTION, "stream": False}, "message"),
    "streaming-response": ({"input": QUESTION, "stream": True}, "message"),
    "system-prompt": (
        {"input": [{"type": "message", "role": "system", "content": "Speak as a pirate."}, *QUESTION], "stream": False},
        "message",
    ),
    "function-call-roundtrip": (
        {"input": ROUND_TRIP[:1], "tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}},
        "function_call",
    ),
    "function-call-roundtrip, second turn": ({"input": ROUND_TRIP, "tools": [WEATHER], "tool_choice": "none"}, "message"),
    # With `auto` it is the model that must decide; whether it does is no matter of the server.
    "tool-calling": (
        {"input": ROUND_TRIP[:1], "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
        "function_call",
    ),
    "tool-calling-streaming": (
        {
            "input": ROUND_TRIP[:1],
            "tools": [WEATHER],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "stream": True,
        },
        "function_call",
    ),
    "multi-turn": ({"input": TALK, "stream": False}, "message"),
}


def send(url, **fields):
    body = {"model": "demo", "temperature": 0, **fields}
    return httpx.post(url + "/v1/responses", json=body, timeout=60, headers={"Authorization": "Bearer x"})


def test_the_compliance_requests_are_answered_all_at_once(server):
    def run(name):
        fields, _ = COMPLIANCE[name]
        answer = send(server.url, **fields)
        assert answer.status_code == 200, answer.text
        return check_stream(events_of(answer)) if fields.get("stream") else check(answer.json())

    with ThreadPoolExecutor(len(COMPLIANCE)) as threads:
        responses = dict(zip(COMPLIANCE, threads.map(run, COMPLIANCE), strict=True))
    for name, response in responses.items():
        assert response["status"] == "completed", name
        kinds = {item["type"] for item in response["output"]}
        assert kinds == {COMPLIANCE[name][1]}, name
        for item in response["output"]:
            if item["type"] == "function_call":
                jsonschema.validate(json.loads(item["arguments"]), WEATHER["parameters"])


def test_a_response_goes_on_from_input_and_output_of_the_one_before(server):
    first = check(send(server.url, input="My name is Alice.").json())
    second = check(send(server.url, input="What is my name?", previous_response_id=first["id"]).json())
    assert (second["status"], second["previous_response_id"]) == ("completed", first["id"])
    spelled = [{"role": "user", "content": "My name is Alice."}, *first["output"], {"role": "user", "content": "What is my name?"}]
    assert text_of(second) == text_of(send(server.url, input=spelled).json())


@pytest.mark.parametrize(
    "fields",
    [
        {"max_output_tokens": 2},
        {"tools": [*TOOLS, WEATHER]},
        {"tools": TOOLS, "tool_choice": "none"},
        {
            "tools": TOOLS,
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]},
        },
        {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k", "safety_identifier": "s"},
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"reasoning": {"effort": "max"}},
        {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 200},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 5},
        {"truncation": "auto", "parallel_tool_calls": False, "max_tool_calls": 3, "store": False},
        {"presence_penalty": 0.5, "frequency_penalty": -0.5, "top_p": 0.5, "service_tier": "flex"},
    ],
)
def test_an_object_has_every_key_whatever_was_asked(server, fields):
    response = check(send(server.url, input="Hello", **fields).json())
    last = check_stream(events_of(send(server.url, input="Hello", stream=True, **fields)))
    assert last["status"] == response["status"]
    assert set(last) == set(response)
    kept = httpx.get(f"{server.url}/v1/responses/{last['id']}", timeout=60)
    assert kept.status_code == (404 if fields.get("store") is False else 200)
    if kept.status_code == 200:
        assert check(kept.json()) == last


def test_a_response_in_the_background_is_one_in_every_state(server):
    queued = check(send(server.url, input="Hello", background=True).json())
    assert (queued["status"], queued["usage"]) == ("queued", None)
    last = check_stream(events_of(send(server.url, input="Hello", background=True, stream=True)))
    assert last["status"] == "completed"


def test_tools_that_are_not_allowed_stay_in_the_prompt_and_are_not_called(server):
    shown = send(server.url, input="Hello", tools=[*TOOLS, WEATHER], max_output_tokens=2).json()["usage"]["input_tokens"]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}
    for seed in range(3):
        response = check(send(server.url, input="Hello", tools=[*TOOLS, WEATHER], tool_choice=choice, seed=seed).json())
        assert response["usage"]["input_tokens"] == shown
        assert {item["name"] for item in response["output"]} == {"clock"}


def test_an_error_has_its_form(server):
    for fields, status in [({"input": "x", "model": "nobody"}, 404), ({"input": "x", "temperature": 9}, 400), ({}, 400)]:
        answer = send(server.url, **fields)
        assert answer.status_code == status
        error = answer.json()["error"]
        jsonschema.validate(error, made_of({"message": ID, "type": ID, "param": ID, "code": ID}))


# --- What is not met ----------------------------------------------------------------------------------------------


def test_an_error_has_the_type_of_openais_api(server):
    """Open Responses calls them invalid_request and not_found."""
    for fields in ({"input": "x", "model": "nobody"}, {"input": "x", "temperature": 9}):
        assert send(server.url, **fields).json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
    ],
)
def test_images_and_files_are_refused_by_name(server, part):
    """The compliance tests image-input and file-input."""
    content = [{"type": "input_text", "text": "What is this?"}, part]
    answer = send(server.url, input=[{"type": "message", "role": "user", "content": content}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[0].content[1].type"


def test_there_is_no_websocket(server):
    """Open Responses may be spoken over one."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    answer = httpx.get(server.url + "/v1/responses", headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_supported")


def test_tools_of_servers_are_left_out_by_name(server):
    """The optional compliance tests file-search and web-search."""
    for kind in ("file_search", "web_search"):
        answer = send(server.url, input="Hello", tools=[{"type": kind}])
        assert answer.headers["x-attune-skipped"] == f"tools[0]: {kind}"
        assert check(answer.json())["tools"] == []
