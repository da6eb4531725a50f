"""Every field of every body, by the API's own document: null is as if the field were absent, and a value of another type is
refused by the field's name."""

import json

import attunelib
import pytest
from conftest import jsonl

DOCUMENT = json.loads((attunelib.ROOT / "openapi" / "openapi.json").read_text())
MESSAGES = [{"role": "user", "content": "Hello"}]
CHECK = {"type": "string_check", "name": "c", "input": "{{item.a}}", "reference": "b", "operation": "eq"}
ITEMS = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"a": "b"}}]}}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "nobody", "prompt": "x"}}
EVAL = {"data_source_config": {"type": "custom", "item_schema": {"type": "object"}}, "testing_criteria": [CHECK]}
# What the route takes, with the fewest tokens that it can answer with.
BODIES = {
    "/v1/responses": {"model": "demo", "input": "Hello", "max_output_tokens": 1, "store": False},
    "/v1/responses/input_tokens": {"model": "demo", "input": "Hello"},
    "/v1/responses/compact": {"model": "demo", "input": "Hello", "max_output_tokens": 1},
    "/v1/conversations": {},
    "/v1/chat/completions": {"model": "demo", "messages": MESSAGES, "max_tokens": 1, "store": True},
    "/v1/completions": {"model": "demo", "prompt": "Hello", "max_tokens": 1},
    "/v1/embeddings": {"model": "demo", "input": "Hello"},
    "/v1/tokenize": {"model": "demo", "prompt": "Hello"},
    "/v1/batches": {"input_file_id": None, "endpoint": "/v1/completions", "completion_window": "24h"},
    "/v1/uploads": {"filename": "a.jsonl", "purpose": "evals", "bytes": 9, "mime_type": "text/jsonl"},
    "/v1/evals": EVAL,
    "/v1/evals/{eval_id}": {"name": "a"},
    "/v1/evals/{eval_id}/runs": {"data_source": ITEMS},
    "/v1/fine_tuning/alpha/graders/run": {"grader": CHECK, "model_sample": "x", "item": {"a": "b"}},
    "/v1/fine_tuning/alpha/graders/validate": {"grader": CHECK},
}
# Clients write numbers there, and it changes no answer.
LENIENT = {("/v1/chat/completions", "user")}
# What a type is not.
OTHERS = {"string": [7, [], {}], "integer": ["x", [], {}, 1.5], "number": ["x", [], {}], "boolean": ["x", 7, []],
          "array": [7, True, {}], "object": [7, True, []]}  # fmt: skip


def types_of(schema):
    """The types that a schema allows; none if it allows any."""
    while "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    parts = [part for name in ("oneOf", "anyOf") for part in schema.get(name, [])]
    if parts:
        found = [types_of(part) for part in parts]
        return set().union(*found) if all(found) else set()
    kind = schema.get("type", [])
    return {kind} if isinstance(kind, str) else set(kind)


def fields_of(path):
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema["properties"], set(schema.get("required", []))


@pytest.fixture(scope="module")
def send(client, http):
    file = client.files.create(file=("lines.jsonl", jsonl([LINE])), purpose="batch").id
    BODIES["/v1/batches"]["input_file_id"] = file
    eval_id = client.evals.create(**EVAL).id

    def send(path, **changes):
        body = {**BODIES[path], **changes}
        return http.post(path.replace("{eval_id}", eval_id), json=body)

    return send


@pytest.mark.parametrize("path", BODIES)
def test_null_is_as_if_the_field_were_absent(send, path):
    fields, required = fields_of(path)
    assert send(path).is_success, send(path).text
    # Without them nothing is asked.
    needed = required | {"input", "prompt"} if path != "/v1/completions" else required
    for name in fields:
        answer = send(path, **{name: None})
        if name in needed:
            assert answer.status_code == 400 and answer.json()["error"]["param"] == name, (name, answer.text)
        else:
            assert answer.is_success, (name, answer.text)


@pytest.mark.parametrize("path", BODIES)
def test_a_value_of_another_type_is_refused_by_its_field(send, path):
    fields, _ = fields_of(path)
    for name, schema in fields.items():
        if (path, name) in LENIENT:
            continue
        types = types_of(schema) - {"null"}
        others = [value for kind in types for value in OTHERS[kind]]
        for value in [value for value in others if all(value in OTHERS[kind] for kind in types)]:
            answer = send(path, **{name: value})
            assert answer.status_code == 400, (name, value, answer.text)
            param = answer.json()["error"]["param"] or ""
            assert param.split(".")[0].split("[")[0] == name, (name, value, answer.text)
