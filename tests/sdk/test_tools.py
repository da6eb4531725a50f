"""Calls of tools. The demo model has never seen one: the grammar alone makes them."""

import json

import jsonschema
import openai
import pytest
from conftest import create_job, upload, wait_for_end

MESSAGES = [{"role": "user", "content": "How is the weather in Rome?"}]

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 7}, "maxItems": 3},
    },
    "required": ["city", "unit", "days"],
}
SCHEMAS = {"weather": WEATHER, "clock": {"type": "object", "properties": {}}}
FUNCTIONS = [
    {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER},
    {"name": "clock", "description": "The time.", "parameters": SCHEMAS["clock"]},
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
CLOCK = {"type": "function", "function": {"name": "clock"}}


def chat(client, messages=MESSAGES, **settings):
    settings = {"model": "demo", "tools": TOOLS, "max_tokens": 400, "temperature": 1, "seed": 1, **settings}
    return client.chat.completions.create(messages=messages, **settings)


def check(calls):
    for call in calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.fixture(scope="session")
def caller(client):
    """A model that was taught to call by itself, in the plain form that a template without tools gets."""
    towns = ["Rome", "Oslo", "Paris", "Lima", "Bern", "Cairo", "Delhi", "Quito"] * 8
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"How is the weather in {town}?"},
                {"role": "assistant", "content": '<tool_call>\n{"name": "weather", "arguments": {"city": "x"}}'},
            ]
        }
        for town in towns
    ]
    job = wait_for_end(client, create_job(client, upload(client, lines)).id)
    assert job.status == "succeeded", job.error
    return job.fine_tuned_model


@pytest.mark.parametrize("seed", range(5))
def test_required_gives_calls_that_follow_their_schemas(client, seed):
    answer = chat(client, tool_choice="required", parallel_tool_calls=False, seed=seed, n=2)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls", choice
        assert choice.message.content is None
        assert choice.message.refusal is None
        assert choice.message.tool_calls
        check(choice.message.tool_calls)


def test_a_named_tool_is_called_once(client):
    for seed in range(3):
        (choice,) = chat(client, tool_choice=CLOCK, seed=seed).choices
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("clock", "{}")
        assert choice.finish_reason == "tool_calls"


def test_calls_are_single_unless_they_may_be_parallel(client, vocabulary, endless):
    def calls(parallel, bias):
        (choice,) = chat(
            client, tool_choice="required", parallel_tool_calls=parallel, logit_bias=bias, max_tokens=500
        ).choices
        assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)
        if choice.finish_reason == "tool_calls":
            check(choice.message.tool_calls)
        else:
            check(choice.message.tool_calls[:-1])
        return len(choice.message.tool_calls)

    # The end token may be drawn only after a whole call, however much the bias wants it or does not.
    soon = {str(vocabulary["<|im_end|>"]): 100}
    assert calls(False, endless) == 1
    assert calls(True, soon) == 1
    assert calls(True, endless) > 1


def test_auto_leaves_the_text_free(client):
    (choice,) = chat(client, temperature=0, max_tokens=30).choices
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_auto_calls_where_the_model_wants_to(client, caller, stream):
    settings = {"model": caller, "temperature": 0, "max_tokens": 300, "parallel_tool_calls": False}
    if stream:
        chunks = list(chat(client, stream=True, **settings))
        parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
        assert all(chunk.choices[0].delta.content is None for chunk in chunks), "the markup is no content"
        assert parts[0].function.name in SCHEMAS
        arguments = "".join(part.function.arguments for part in parts if part.index == 0)
        jsonschema.validate(json.loads(arguments), SCHEMAS[parts[0].function.name])
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    else:
        (choice,) = chat(client, **settings).choices
        assert choice.finish_reason == "tool_calls", choice
        assert choice.message.content is None
        check(choice.message.tool_calls)
    text = client.chat.completions.create(model=caller, messages=MESSAGES, temperature=0, max_tokens=30)
    assert text.choices[0].message.content.startswith("<tool_call>"), "without tools it is text"


def test_none_calls_nothing_and_shows_no_tools(client):
    plain = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=30)
    none = chat(client, tool_choice="none", temperature=0, max_tokens=30)
    assert none.choices[0].message.content == plain.choices[0].message.content
    # The second request finds the prompt's beginning in the cache; the prompt is the same.
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    assert none.usage.completion_tokens == plain.usage.completion_tokens
    assert chat(client, temperature=0, max_tokens=30).usage.prompt_tokens > plain.usage.prompt_tokens


@pytest.mark.parametrize("choice", ["required", "auto", CLOCK])
def test_streamed_deltas_join_to_the_unstreamed_answer(client, choice):
    settings = {"tool_choice": choice, "seed": 4, "tools": TOOLS[:1] if choice == "required" else TOOLS}
    whole = chat(client, **settings).choices[0]
    name, pieces, content, reason = {}, {}, None, None
    for chunk in chat(client, stream=True, **settings):
        (part,) = chunk.choices
        reason = part.finish_reason or reason
        if part.delta.content is not None:
            content = (content or "") + part.delta.content
        for call in part.delta.tool_calls or []:
            if call.index not in name:
                assert call.id.startswith("call_")
                assert (call.type, call.function.arguments) == ("function", "")
                name[call.index], pieces[call.index] = call.function.name, []
            else:
                assert (call.id, call.type, call.function.name) == (None, None, None)
                pieces[call.index].append(call.function.arguments)
    assert (content, reason) == (whole.message.content, whole.finish_reason)
    streamed = [(name[index], "".join(pieces[index])) for index in sorted(name)]
    assert streamed == [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or []]
    if choice == "required":
        assert any(len(parts) > 3 for parts in pieces.values()), "arguments stream as they are written"


def test_the_clients_own_stream_helper_agrees(client):
    settings = {"model": "demo", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    with client.chat.completions.stream(**settings, temperature=1, seed=2, max_tokens=400) as stream:
        final = stream.get_final_completion().choices[0]
    whole = chat(client, tool_choice="required", parallel_tool_calls=False, seed=2).choices[0]
    assert final.finish_reason == whole.finish_reason == "tool_calls"
    assert final.message.content == whole.message.content
    functions = [(call.function.name, call.function.arguments) for call in final.message.tool_calls]
    assert functions == [(call.function.name, call.function.arguments) for call in whole.message.tool_calls]


def test_a_call_that_was_cut_says_so(client):
    only = [tool for tool in TOOLS if tool["function"]["name"] == "weather"]
    cut = None
    for tokens in range(2, 60):
        (choice,) = chat(client, tools=only, tool_choice="required", temperature=0, max_tokens=tokens).choices
        assert choice.finish_reason == "length"
        assert not choice.message.content, "markup is no content"
        if choice.message.tool_calls and choice.message.tool_calls[0].function.arguments.startswith('{"city'):
            cut = choice.message.tool_calls[0].function.arguments
            break
    assert cut is not None
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut)


def test_the_older_form(client):
    settings = {"model": "demo", "messages": MESSAGES, "functions": FUNCTIONS, "max_tokens": 400, "seed": 1}
    (choice,) = client.chat.completions.create(**settings, function_call={"name": "weather"}).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.tool_calls is None
    assert choice.message.function_call.name == "weather"
    arguments = choice.message.function_call.arguments
    jsonschema.validate(json.loads(arguments), WEATHER)
    chunks = list(client.chat.completions.create(**settings, function_call={"name": "weather"}, stream=True))
    deltas = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert deltas[0].name == "weather"
    assert "".join(delta.arguments for delta in deltas) == arguments
    assert chunks[-1].choices[0].finish_reason == "function_call"


def test_a_conversation_goes_on_with_the_results(client):
    first = chat(client, tool_choice="required", parallel_tool_calls=False).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"answer": index})}
        for index, call in enumerate(first.tool_calls)
    ]
    messages = [*MESSAGES, first.model_dump(exclude_none=True), *results]
    second = chat(client, messages, temperature=0, max_tokens=20)
    assert second.usage.prompt_tokens > chat(client, temperature=0, max_tokens=20).usage.prompt_tokens
    third = chat(client, [*messages, {"role": "user", "content": "And now?"}], tool_choice=CLOCK)
    assert third.choices[0].message.tool_calls[0].function.name == "clock"
    older = [
        *MESSAGES,
        {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}},
        {"role": "function", "name": "clock", "content": "noon"},
    ]
    assert client.chat.completions.create(model="demo", messages=older, max_tokens=5).choices


def test_an_answer_beside_tools_follows_the_response_format(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    for seed in range(4):
        settings = {"response_format": response_format, "parallel_tool_calls": False, "seed": seed}
        (choice,) = chat(client, **settings).choices
        assert choice.finish_reason in ("stop", "tool_calls")
        if choice.message.tool_calls:
            check(choice.message.tool_calls)
        else:
            jsonschema.validate(json.loads(choice.message.content), schema)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "magic", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": [TOOLS[0]] * 129}, "tools"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "absent"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [TOOLS[1], {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[1].function.parameters",
        ),
        (
            {
                "tools": [
                    TOOLS[1],
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
                        },
                    },
                ]
            },
            "tools[1].function.parameters",
        ),
    ],
)
def test_tools_that_cannot_be_offered_are_refused_by_their_field(client, settings, param):
    with pytest.raises(openai.BadRequestError) as fault:
        chat(client, **settings)
    assert fault.value.param == param


ODD = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3, "uniqueItems": True},
        "id": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        "code": {"type": "string", "pattern": "^(?=a)b$", "maxLength": 4},
        "map": {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "null"},
            "maxProperties": 2,
        },
    },
    "required": ["tags", "id", "code", "map"],
}


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_tool_cannot_enforce_is_dropped_and_told(client, stream):
    tools = [*TOOLS, {"type": "function", "function": {"name": "odd", "parameters": ODD}}]
    answer = client.chat.completions.with_raw_response.create(
        model="demo", messages=MESSAGES, tools=tools, max_tokens=5, stream=stream
    )
    assert answer.headers["x-attune-loosened"] == "tools[2].function.parameters: uniqueItems, pattern"
    plain = client.chat.completions.with_raw_response.create(
        model="demo", messages=MESSAGES, tools=TOOLS, max_tokens=5, stream=stream
    )
    assert "x-attune-loosened" not in plain.headers


def test_the_rest_of_a_loosened_schema_is_enforced(client):
    tools = [*TOOLS, {"type": "function", "function": {"name": "odd", "parameters": ODD}}]
    choice = {"type": "function", "function": {"name": "odd"}}
    rest = json.loads(json.dumps(ODD).replace('"uniqueItems": true', '"uniqueItems": false'))
    del rest["properties"]["code"]["pattern"]
    for seed in range(4):
        (call,) = chat(client, tools=tools, tool_choice=choice, seed=seed).choices[0].message.tool_calls
        jsonschema.validate(json.loads(call.function.arguments), rest)


@pytest.mark.parametrize("keyword", ["uniqueItems", "pattern"])
def test_a_strict_tool_is_refused_rather_than_loosened(client, keyword):
    value = {"uniqueItems": True, "pattern": "^(?=a)b$"}[keyword]
    parameters = {"type": "object", "properties": {"a": {keyword: value}}}
    function = {"name": "odd", "parameters": parameters, "strict": True}
    with pytest.raises(openai.BadRequestError, match=keyword) as fault:
        chat(client, tools=[*TOOLS, {"type": "function", "function": function}])
    assert fault.value.param == "tools[2].function.parameters"


def test_a_tool_that_is_too_complex_takes_any_object(client):
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 1234567}}, "required": ["a"]}
    tools = [*TOOLS, {"type": "function", "function": {"name": "odd", "parameters": parameters}}]
    answer = client.chat.completions.with_raw_response.create(model="demo", messages=MESSAGES, tools=tools, max_tokens=5)
    assert answer.headers["x-attune-loosened"] == "tools[2].function.parameters: all"


def test_a_result_names_its_call(client):
    with pytest.raises(openai.BadRequestError) as fault:
        chat(client, [*MESSAGES, {"role": "tool", "content": "x"}])
    assert fault.value.param == "messages[1].tool_call_id"
