"""Answers in a form: the demo model knows nothing of JSON, so only the mask makes these documents valid."""

import enum
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, time
from decimal import Decimal
from random import Random

import jsonschema
import openai
import pydantic
import pytest

MESSAGES = [{"role": "user", "content": "Tell me about a town."}]

TOWN = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["village", "city", None]},
        "people": {"type": "integer", "minimum": 0, "maximum": 5000},
        "height": {"type": "number", "minimum": -10, "maximum": 10},
        "near": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"}, "open": {"type": "boolean"}},
                "required": ["code", "open"],
            },
        },
        "note": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/note"}]},
    },
    "required": ["name", "kind", "people", "near", "note"],
    "$defs": {"note": {"type": "string", "maxLength": 5}},
}


def schema_format(schema, name="answer"):
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def chat(client, response_format, **settings):
    settings = {"max_tokens": 400, "temperature": 0, **settings}
    return client.chat.completions.create(
        model="demo", messages=MESSAGES, response_format=response_format, **settings
    )


def check(choice, schema):
    assert choice.finish_reason == "stop", choice
    assert choice.message.refusal is None
    jsonschema.validate(json.loads(choice.message.content), schema, jsonschema.Draft202012Validator)


def test_the_most_probable_answer_follows_the_schema(client):
    check(chat(client, schema_format(TOWN)).choices[0], TOWN)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_answers_follow_the_schema(client, seed):
    answer = chat(client, schema_format(TOWN), temperature=1, seed=seed, n=3)
    for choice in answer.choices:
        check(choice, TOWN)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_stream_joins_to_the_same_document(client):
    settings = {"temperature": 1, "seed": 3}
    whole = chat(client, schema_format(TOWN), **settings).choices[0]
    chunks = list(chat(client, schema_format(TOWN), stream=True, **settings))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_bias_cannot_break_the_form(client, vocabulary):
    bias = {str(vocabulary["<|im_end|>"]): 100, str(vocabulary["a"]): 100}
    check(chat(client, schema_format(TOWN), logit_bias=bias).choices[0], TOWN)


def test_max_tokens_ends_a_document_with_the_reason_length(client):
    (choice,) = chat(client, schema_format(TOWN), max_tokens=5).choices
    assert choice.finish_reason == "length"
    assert choice.message.content.startswith("{")
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice.message.content)


@pytest.mark.parametrize("seed", range(4))
def test_any_json_object(client, seed):
    (choice,) = chat(client, {"type": "json_object"}, temperature=1, seed=seed, max_tokens=700).choices
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.finish_reason == "length"


def test_text_is_as_without_a_format(client):
    free = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=30)
    assert chat(client, {"type": "text"}, max_tokens=30).choices[0].message.content == free.choices[0].message.content


def test_parse_fills_a_pydantic_model(client):
    class Colour(enum.Enum):
        red = "red"
        blue = "blue"

    class Shelf(pydantic.BaseModel):
        width: int = pydantic.Field(ge=1, le=300)
        colours: list[Colour] = pydantic.Field(max_length=3)

    class Room(pydantic.BaseModel):
        title: str = pydantic.Field(max_length=8)
        shelf: Shelf
        open: bool | None

    answer = client.chat.completions.parse(
        model="demo", messages=MESSAGES, response_format=Room, temperature=0, max_tokens=600
    )
    room = answer.choices[0].message.parsed
    assert isinstance(room, Room)
    assert isinstance(room.shelf.width, int)


def test_answers_with_and_without_a_form_do_not_disturb_each_other(client):
    formats = [schema_format(TOWN), {"type": "text"}, schema_format({"enum": ["a", "b"]}), {"type": "text"}] * 3

    def ask(index):
        return chat(client, formats[index], temperature=1, seed=index, max_tokens=300).choices[0].message.content

    alone = [ask(index) for index in range(len(formats))]
    with ThreadPoolExecutor(len(formats)) as pool:
        assert list(pool.map(ask, range(len(formats)))) == alone


def tagged(kind):
    return {"type": "object", "properties": {"kind": {"const": kind}, "n": {"type": "integer"}}, "required": ["kind"]}


SMALL = {"type": "string", "maxLength": 4}
# Each of these was refused or not kept at some time, beside others of its kind.
KINDS = {
    "large constant": {"const": 1234567890123456789},
    "large constants": {"enum": [9007199254740993, 18446744073709551615, -9223372036854775808]},
    "large bounds": {"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740995},
    "64 bits": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "from 10^18": {"type": "integer", "minimum": 10**18},
    "excluded zero": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    "excluded whole bound": {"type": "number", "exclusiveMinimum": 1, "maximum": 1.5},
    "excluded upper zero": {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0},
    "excluded half": {"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 0.75},
    "any number": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
    "cents": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 100},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": -100, "exclusiveMaximum": 700},
    "one of references": {
        "oneOf": [{"$ref": "#/$defs/car"}, {"$ref": "#/$defs/bike"}, {"type": "null"}],
        "$defs": {"car": tagged("car"), "bike": tagged("bike")},
    },
    "one of numbers": {"oneOf": [{"const": 1}, {"const": 2}, {"type": "integer", "minimum": 10, "maximum": 12}]},
    "one of formats": {"type": "string", "oneOf": [{"format": "date"}, {"format": "ipv4"}, {"format": "uuid"}]},
    "patterns of listed names": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "patternProperties": {"^a$": {"type": "boolean"}, "^(b|c)$": {"type": "null"}},
        "additionalProperties": False,
    },
    "counted properties": {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in "abcd"},
        "additionalProperties": False,
        "minProperties": 2,
        "maxProperties": 3,
    },
    "named like keywords": {
        "type": "object",
        "properties": {"allOf": {"type": "boolean"}, "enum": {"type": "boolean"}, "type": {"type": "null"}},
        "required": ["allOf", "enum", "type"],
    },
    "all of": {
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": SMALL}, "required": ["b"]}],
        "$defs": {"base": {"type": "object", "properties": {"a": SMALL}, "required": ["a"]}},
    },
    "either is required": {
        "type": "object",
        "properties": {"a": SMALL, "b": SMALL},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "unknown format": {"type": "string", "format": "starts_with", "pattern": "^ab[a-z]{1,4}$"},
    "foreign dialect": {"$schema": "https://example.com/dialect", "$id": "a b", "type": "boolean"},
    "says nothing": {
        "type": "array",
        "uniqueItems": False,
        "maxItems": 2.0,
        "items": {"type": "object", "properties": {"a": SMALL}, "additionalProperties": {"not": {}}},
    },
    "dates": {
        "type": "array",
        "prefixItems": [{"type": "string", "format": name} for name in ("date", "time", "date-time", "duration")],
        "items": False,
        "minItems": 4,
    },
    "addresses": {
        "type": "array",
        "prefixItems": [{"type": "string", "format": name} for name in ("ipv4", "ipv6", "uuid", "email")],
        "items": False,
        "minItems": 4,
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_schema_is_followed(client, name):
    answer = chat(client, schema_format(KINDS[name]), temperature=1, seed=1, n=24, max_tokens=900)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(KINDS[name], format_checker=checker)
    for choice in answer.choices:
        assert choice.finish_reason == "stop", choice
        validator.validate(json.loads(choice.message.content))


def random_schema(random, depth=2):
    """Makes a schema of a few random keywords; it need not have a document."""
    kind = random.choice(["integer", "number", "string", "enum", "array", "object", "anyOf", "oneOf", "allOf"][: 9 if depth else 4])
    low = random.choice([None, -(10**19), -100, -1.5, -0.1, 0, 0.25, 1, 7, 2**53 + 1])
    number = {random.choice(["minimum", "exclusiveMinimum"]): low} if low is not None else {}
    if random.random() < 0.6:
        number[random.choice(["maximum", "exclusiveMaximum"])] = (low or 0) + random.choice([0, 0.3, 1, 2, 50, 10**6])
    if random.random() < 0.3:
        number["multipleOf"] = random.choice([1, 3, 10, 0.1, 0.25, 0.01])
    children = [random_schema(random, depth - 1) for _ in range(3)] if depth else []
    match kind:
        case "integer" | "number":
            return {"type": kind, **number}
        case "string":
            pattern = random.choice([{}, {"pattern": "^[a-c]{2,3}$"}, {"pattern": "x"}, {"format": "date"}, {"format": "time"}])
            return {"type": "string", "minLength": random.randrange(3), "maxLength": random.choice([3, 5, 25]), **pattern}
        case "enum":
            return {"enum": random.sample([None, True, 0, 1, -2.5, 2**60 + 1, "a", "b\"", [1, "c"], {"d": 0.5}], 3)}
        case "array":
            least = random.randrange(3)
            return {"type": "array", "prefixItems": children[:1], "items": children[1], "minItems": least, "maxItems": 2}
        case "object":
            listed = dict(zip(random.sample(["a", "b", "allOf", "type"], 3), children))
            schema = {"type": "object", "properties": listed, "required": random.sample(list(listed), random.randrange(3))}
            extra = [{}, {"additionalProperties": False}, {"minProperties": 1, "maxProperties": 2, "additionalProperties": False}]
            return schema | random.choice([*extra, {"patternProperties": {"^(a|z)$": children[0]}}])
    return {kind: children[: random.choice([2, 3])], **random.choice([{}, {"type": ["integer", "string", "object"]}])}


@pytest.mark.parametrize("seed", range(60))
def test_random_schemas_are_followed_or_refused(http, seed):
    schema = random_schema(Random(seed))
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 300, "temperature": 1, "seed": seed, "n": 6}
    answer = http.post("/v1/chat/completions", json={**body, "response_format": schema_format(schema)})
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert answer.status_code == 400, error
        assert error["code"] == "invalid_schema", (schema, error)
        return
    for choice in answer.json()["choices"]:
        if choice["finish_reason"] == "stop":
            document = json.loads(choice["message"]["content"], parse_float=Decimal)
            jsonschema.validate(document, as_decimals(schema), jsonschema.Draft202012Validator)


def as_decimals(schema):
    """Reads the numbers of `schema` exactly: as floats, 0.3 is no multiple of 0.1."""
    return json.loads(json.dumps(schema), parse_float=Decimal)


def test_dates_and_times_are_those_of_the_calendar(client):
    parsers = {"date": date.fromisoformat, "date-time": datetime.fromisoformat, "time": time.fromisoformat}
    for name, parse in parsers.items():
        schema = {"type": "string", "format": name, **({"pattern": "-02-29"} if name != "time" else {})}
        for choice in chat(client, schema_format(schema), temperature=1, seed=1, n=24).choices:
            parse(json.loads(choice.message.content))


def test_what_overlaps_or_cannot_be_enforced_is_refused_by_its_keyword(client):
    for schema, word in [
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "anyOf"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"const": 12345678901234567890123}, "64 bits"),
        ({"type": "string", "format": "date", "pattern": "^2026-02-29$"}, "no document"),
    ]:
        with pytest.raises(openai.BadRequestError, match=word) as fault:
            chat(client, schema_format(schema))
        assert "coerce" not in str(fault.value)


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "yaml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        {"type": "json_schema", "json_schema": {"schema": {}}},
        schema_format(True),
        schema_format([]),
        schema_format({"type": "magic"}),
        schema_format({"type": "string", "pattern": "("}),
        schema_format({"type": "string", "pattern": "(a)\\1"}),
        schema_format({"$ref": "https://example.com/schema.json"}),
        schema_format({"$ref": "file:///etc/passwd"}),
        schema_format({"$ref": "#/$defs/absent"}),
        schema_format({"type": "object", "properties": {"a": False}, "required": ["a"]}),
        schema_format({"enum": ["x" * 70_000]}),
        schema_format({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}], "minLength": 1}}, "$ref": "#/$defs/a"}),
    ],
)
def test_forms_that_cannot_be_met_are_refused(client, response_format):
    with pytest.raises(openai.BadRequestError) as fault:
        chat(client, response_format)
    assert fault.value.param.startswith("response_format")
    assert fault.value.type == "invalid_request_error"


def nested(depth):
    schema = {"type": "boolean"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    return schema


def hostile_schemas():
    words = [f"word {index}" for index in range(5000)]
    chain = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(1500)} | {"d1500": {"type": "null"}}
    siblings = {
        f"d{index}": {"$ref": f"#/$defs/d{index + 1}", "title": "x", "maxLength": 3} for index in range(1000)
    } | {"d1000": {"type": "string"}}
    everyone = [{"$ref": f"#/$defs/b{index}"} for index in range(12)]
    bomb = {f"b{index}": {"anyOf": everyone, "minProperties": 1} for index in range(12)}
    loop = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    tree = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
        "required": ["next"],
    }
    return {
        "deep": nested(40),
        "large choice": {"enum": words},
        "chain of references": {"$defs": chain, "$ref": "#/$defs/d0"},
        "chain with siblings": {"$defs": siblings, "$ref": "#/$defs/d0"},
        "references to all": {"$defs": bomb, "allOf": everyone},
        "loop of references": {"$defs": loop, "$ref": "#/$defs/a"},
        "tree": {"$defs": {"tree": tree}, "$ref": "#/$defs/tree"},
        "repetitions": {"type": "string", "pattern": "^((a{1,999}b?){1,999}c?){1,999}$"},
        "states": {"type": "string", "pattern": "^(.*a.{30}|.*b.{29}|.*c.{28})$"},
        "and": {"allOf": [{"type": "string", "pattern": f"^.*{letter}.*$"} for letter in "abcdefghijklmnopqrst"]},
        "large array": {"type": "array", "minItems": 10**9, "items": {"type": "null"}},
        "large numbers": {"type": "number", "multipleOf": 1e-300, "maximum": 1e308},
        "large divisor": {"type": "integer", "multipleOf": 1234567},
        "divisors": {"allOf": [{"type": "integer", "multipleOf": divisor} for divisor in (9973, 9967, 9949)]},
        "unions": {"allOf": [{"anyOf": [{"const": a * b} for a in range(10)]} for b in range(8)]},
        "deep pattern": {"type": "string", "pattern": "(" * 200 + "a" + ")" * 200},
        "many properties": {"type": "object", "properties": {f"p{index}": {} for index in range(2500)}},
    }


@pytest.mark.parametrize("name", hostile_schemas())
def test_hostile_schemas_are_answered_or_refused(http, name):
    body = {
        "model": "demo",
        "messages": MESSAGES,
        "max_tokens": 60,
        "temperature": 1,
        "seed": 1,
        "response_format": schema_format(hostile_schemas()[name]),
    }
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["type"] == "invalid_request_error"
    else:
        (choice,) = answer.json()["choices"]
        if choice["finish_reason"] == "stop":
            content = json.loads(choice["message"]["content"])
            if not name.startswith("chain"):  # deeper than the validator can follow
                jsonschema.validate(content, hostile_schemas()[name])
    assert http.get("/health").status_code == 200


def test_a_schema_deeper_than_json_may_be_is_refused(http):
    schema = '{"items":' * 5000 + "{}" + "}" * 5000
    body = json.dumps({"model": "demo", "messages": MESSAGES, "response_format": schema_format("HERE")})
    answer = http.post("/v1/chat/completions", content=body.replace('"HERE"', schema))
    assert answer.status_code == 400
    assert http.get("/health").status_code == 200
