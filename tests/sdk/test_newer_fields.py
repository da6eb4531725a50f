"""Fields that OpenAI's API has grown: acted on, ignored, or refused by name."""

import re

import httpx
import openai
import pytest
from conftest import jsonl, sdk, wait_for
from test_outages import sql
from test_rendering import THINKS, with_template

pytestmark = pytest.mark.timeout(240)
QUESTION = [{"role": "user", "content": "How is the weather in Rome?"}]
FUNCTIONS = [
    {"name": name, "description": f"The {name}.", "parameters": {"type": "object", "properties": {}}}
    for name in ("weather", "clock", "news")
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]


def chat(client, messages=QUESTION, **settings):
    return client.chat.completions.create(
        messages=messages, **{"model": "demo", "max_tokens": 8, "temperature": 0, **settings}
    )


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.fixture(scope="module")
def thinking(start_server, tmp_path_factory):
    """A client of a server whose model's template has a switch for thinking."""
    folder = with_template(tmp_path_factory.mktemp("thinking") / "model", THINKS)
    server = start_server("--no-worker", "--model", f"demo={folder}")
    with sdk(server) as client:
        yield client


def test_fields_that_change_nothing_are_ignored(client):
    plain = chat(client)
    ignored = {
        "verbosity": "low", "service_tier": "flex", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "implicit"}, "safety_identifier": "x", "user": "u", "modalities": ["text"],
        "prediction": {"type": "content", "content": "It is fine."}, "moderation": {"a": 1}, "store": False,
        "metadata": {"a": "b"},
    }
    for field, value in ignored.items():
        answer = chat(client, extra_body={field: value})
        assert answer.choices == plain.choices, field
        assert answer.service_tier == "default", field
    chunks = list(chat(client, stream=True, stream_options={"include_obfuscation": True, "include_usage": True}))
    assert {chunk.service_tier for chunk in chunks} == {"default"}
    assert not any("obfuscation" in chunk.to_dict() for chunk in chunks)


def test_answers_have_the_keys_of_the_newer_form(http, client):
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 4}
    answer = http.post("/v1/chat/completions", json=body).json()
    message = answer["choices"][0]["message"]
    assert (message["annotations"], message["refusal"], answer["service_tier"]) == ([], None, "default")
    assert answer["usage"]["prompt_tokens_details"] | {"cached_tokens": 0} == {"cached_tokens": 0, "audio_tokens": 0}
    assert answer["usage"]["completion_tokens_details"] == {
        "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
    }
    assert client.chat.completions.create(**body).choices[0].message.annotations == []


def test_an_effort_switches_thinking_where_the_template_can(thinking):
    def prompt(**settings):
        return chat(thinking, **settings).usage.prompt_tokens

    off, on = {"enable_thinking": False}, {"enable_thinking": True}
    without = prompt(extra_body={"chat_template_kwargs": off})
    with_thinking = prompt()
    assert without < with_thinking == prompt(extra_body={"chat_template_kwargs": on})
    for effort in ("none", "minimal"):
        assert prompt(reasoning_effort=effort) == without, effort
    for effort in ("low", "medium", "high", "xhigh", "max", None):
        assert prompt(extra_body={"reasoning_effort": effort}) == with_thinking, effort
    # What the template's own variable says is meant.
    assert prompt(reasoning_effort="none", extra_body={"chat_template_kwargs": on}) == with_thinking
    assert prompt(reasoning_effort="high", extra_body={"chat_template_kwargs": off}) == without


def test_an_effort_changes_nothing_where_the_template_has_no_switch(client):
    assert chat(client, reasoning_effort="none").choices == chat(client).choices


def test_a_custom_tool_follows_rules_in_lark(client):
    rules = 'start: (pair "\\n")~1..2\npair: "(" D "," D ")" | "\\"" D "\\""\nD: /[0-9]{1,3}/'
    grammar = {"syntax": "lark", "definition": rules}
    tool = {"type": "custom", "custom": {"name": "pairs", "format": {"type": "grammar", "grammar": grammar}}}
    choice = {"type": "custom", "custom": {"name": "pairs"}}
    for seed in range(4):
        answer = chat(client, tools=[*TOOLS, tool], tool_choice=choice, seed=seed, max_tokens=200, temperature=1)
        (call,) = answer.choices[0].message.tool_calls
        assert (answer.choices[0].finish_reason, call.type, call.custom.name) == ("tool_calls", "custom", "pairs")
        assert re.fullmatch(r'(?:(?:\(\d{1,3},\d{1,3}\)|"\d{1,3}")\n){1,2}', call.custom.input), call.custom.input
        # The call is rendered again, and its result answered.
        calls = [{"id": call.id, "type": "custom", "custom": {"name": "pairs", "input": call.custom.input}}]
        result = {"role": "tool", "tool_call_id": call.id, "content": "Fine."}
        further = [*QUESTION, {"role": "assistant", "tool_calls": calls}, result]
        assert chat(client, further, tools=[tool], max_tokens=4).choices[0].finish_reason


def test_allowed_tools_restrict_the_calls_and_the_model_is_shown_all(client):
    def calls(choice, **settings):
        answer = chat(client, tools=TOOLS, tool_choice=choice, max_tokens=300, temperature=1, **settings)
        return answer, [call.function.name for call in answer.choices[0].message.tool_calls or []]

    shown = chat(client, tools=TOOLS, max_tokens=1).usage.prompt_tokens
    for seed in range(4):
        answer, names = calls(allowed("required", "clock", "news"), seed=seed)
        assert names and set(names) <= {"clock", "news"}
        assert answer.usage.prompt_tokens == shown
    _, names = calls(allowed("required", "clock"), seed=1)
    assert names and set(names) == {"clock"}
    answer, names = calls(allowed("auto", "clock"), seed=1)
    assert set(names) <= {"clock"} and (names or answer.choices[0].message.content is not None)


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"reasoning_effort": "maximal"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "c", "format": {"type": "grammar", "grammar": {}}}}]},
            "tools[0].custom.format",
        ),
        (
            {
                "tools": [
                    {
                        "type": "custom",
                        "custom": {
                            "name": "c",
                            "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "(?=a)b"}},
                        },
                    }
                ]
            },
            "tools[0].custom.format",
        ),
        (
            {
                "tools": [
                    {
                        "type": "custom",
                        "custom": {
                            "name": "c",
                            "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: A"}},
                        },
                    }
                ]
            },
            "tools[0].custom.format",
        ),
        ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "code"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "stocks")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": allowed("none", "clock")}, "tool_choice.allowed_tools.mode"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-x"}}]}]},
            "messages[0].content",
        ),
    ],
)
def test_what_would_change_an_answer_and_is_not_there_is_refused(client, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(
            "/chat/completions", body={"model": "demo", "messages": QUESTION, **fields}, cast_to=httpx.Response
        )
    assert refused.value.param == param


@pytest.mark.parametrize("purpose", ["fine-tune", "assistants", "batch", "vision", "user_data", "evals"])
def test_a_file_may_expire_whatever_it_is_for(client, purpose):
    content = ("a.jsonl", b'{"messages": []}\n')
    after = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=content, purpose=purpose, expires_after=after)
    assert made.purpose == purpose and made.expires_at == made.created_at + 3600
    assert client.files.retrieve(made.id).expires_at == made.expires_at
    lasting = client.files.create(file=content, purpose=purpose)
    assert lasting.expires_at is None
    for file in (made, lasting):
        client.files.delete(file.id)


@pytest.mark.parametrize(
    "after, param",
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after[seconds]"),
        ({"anchor": "last_active_at", "seconds": 3600}, "expires_after[anchor]"),
        ({"seconds": 3600}, "expires_after[anchor]"),
        ({"anchor": "created_at"}, "expires_after[seconds]"),
    ],
)
def test_an_end_that_cannot_be_kept_is_refused(client, after, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a.jsonl", b"{}\n"), purpose="evals", expires_after=after)
    assert refused.value.param == param


def test_expired_files_go_unless_a_job_needs_them(start_server, tickets):
    server = start_server("--no-worker")
    after = {"anchor": "created_at", "seconds": 3600}
    with sdk(server) as client:
        needed, unneeded, young = (
            client.files.create(file=("a.jsonl", jsonl(tickets[:10])), purpose="fine-tune", expires_after=after).id
            for _ in range(3)
        )
        client.fine_tuning.jobs.create(model="demo", training_file=needed)
    sql(server.data_dir, f"update files set expires_at = now() - interval '1 second' where id <> '{young}'")
    # Every start looks for what has expired.
    server.stop()
    server.start()
    with sdk(server) as client:
        wait_for(lambda: unneeded not in [file.id for file in client.files.list()], "the end of the file")
        assert {file.id for file in client.files.list()} == {needed, young}
        assert client.files.content(needed).content == jsonl(tickets[:10])
        with pytest.raises(openai.NotFoundError):
            client.files.content(unneeded)
