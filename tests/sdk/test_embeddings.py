"""Embeddings: forms, sizes, and what they mean."""

import base64
import json
import math
import struct

import attunelib
import openai
import pytest

TEXTS = ["The river Hollin flows through Kessing.", "Hello!", "One side of my radio is cracked, I want my money back."]


def embed(client, texts, **settings):
    answer = client.embeddings.create(model="demo", input=texts, **settings)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data]


def size():
    return json.loads((attunelib.DEMO / "config.json").read_text())["hidden_size"]


def largest_difference(left, right):
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def likeness(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_the_answer_names_model_and_usage(client):
    answer = client.embeddings.create(model="demo", input=TEXTS)
    assert answer.object == "list"
    assert answer.model == "demo"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_vectors_have_the_model_s_size_and_length_one(client):
    for vector in embed(client, TEXTS):
        assert len(vector) == size()
        assert math.isclose(math.sqrt(likeness(vector, vector)), 1, abs_tol=1e-5)


def test_the_client_s_default_form_and_floats_are_the_same_vectors(client):
    for packed, plain in zip(embed(client, TEXTS), embed(client, TEXTS, encoding_format="float"), strict=True):
        assert largest_difference(packed, plain) < 1e-7


def test_base64_is_little_endian_float32(client, http):
    body = {"model": "demo", "input": TEXTS[0], "encoding_format": "base64"}
    text = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    raw = base64.b64decode(text, validate=True)
    (vector,) = embed(client, TEXTS[0], encoding_format="float")
    assert largest_difference(struct.unpack(f"<{size()}f", raw), vector) < 1e-7


def test_plain_json_has_floats(http):
    body = {"model": "demo", "input": TEXTS[0]}
    vector = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert all(isinstance(number, float) for number in vector)


def test_a_batch_gives_what_single_texts_give(client):
    singles = [embed(client, text, encoding_format="float")[0] for text in TEXTS]
    for together, alone in zip(embed(client, TEXTS, encoding_format="float"), singles, strict=True):
        assert largest_difference(together, alone) < 1e-5


def test_texts_alike_are_closer_than_texts_unlike(client):
    river, same_river, complaint = embed(client, [TEXTS[0], "The river Hollin flows by Kessing.", TEXTS[2]])
    assert likeness(river, same_river) > likeness(river, complaint)


def test_the_model_s_own_size_may_be_asked_for(client):
    assert len(embed(client, TEXTS[0], dimensions=size())[0]) == size()


@pytest.mark.parametrize("texts", ["", [], ["fine", ""]])
def test_nothing_to_embed_is_refused(client, texts):
    with pytest.raises(openai.BadRequestError) as fault:
        embed(client, texts)
    assert fault.value.param == "input"


@pytest.mark.parametrize("beyond", [lambda: size() + 1, lambda: 0])
def test_dimensions_that_the_model_does_not_have_are_refused(client, beyond):
    with pytest.raises(openai.BadRequestError) as fault:
        embed(client, TEXTS[0], dimensions=beyond())
    assert fault.value.param == "dimensions"


def test_shorter_vectors_are_the_first_values_scaled_to_length_one(client):
    (whole,) = embed(client, TEXTS[0])
    for dimensions in (1, 32, size() - 1):
        (short,) = embed(client, TEXTS[0], dimensions=dimensions)
        length = math.sqrt(likeness(whole[:dimensions], whole[:dimensions]))
        assert largest_difference(short, [value / length for value in whole[:dimensions]]) < 1e-6


def raw(http, **fields):
    """The answer to a request with fields that OpenAI's client does not know."""
    return http.post("/v1/embeddings", json={"model": "demo", "input": TEXTS[0], **fields})


def vector(http, **fields):
    answer = raw(http, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["embedding"]


def test_vectors_keep_their_own_length_where_that_is_asked_for(http):
    unit, whole = vector(http), vector(http, normalize=False)
    length = math.sqrt(likeness(whole, whole))
    assert abs(length - 1) > 0.01
    assert largest_difference(unit, [value / length for value in whole]) < 1e-6
    assert vector(http, normalize=False, dimensions=7) == whole[:7]
    assert vector(http, normalize=True) == vector(http, normalize=None) == unit


LONG = "The river Hollin flows through Kessing. " * 400


def tokens(http, text):
    answer = http.post("/v1/tokenize", json={"model": "demo", "prompt": text}).json()
    assert len(answer["tokens"]) > answer["max_model_len"]
    return answer["tokens"], answer["max_model_len"]


def test_a_long_input_is_refused_with_its_number(http):
    for field in ({}, {"truncate": False}, {"truncate": "NONE"}):
        error = raw(http, input=["fine", "fine", LONG], **field).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
        assert "number 2" in error["message"]
    ids, most = tokens(http, LONG)
    error = raw(http, input=[ids[:most], ids]).json()["error"]
    assert "input[1]" in error["message"] and f"{len(ids)} tokens" in error["message"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


def test_a_long_input_is_cut_where_that_is_asked_for(http):
    ids, most = tokens(http, LONG)
    cut = vector(http, input=ids[:most])
    for field in ({"truncate": True}, {"truncate": "END"}, {"truncate_prompt_tokens": -1}):
        assert vector(http, input=LONG, **field) == cut, field
        assert vector(http, input=ids, **field) == cut, field
    assert vector(http, input=LONG, truncate_prompt_tokens=5) == vector(http, input=ids[:5])
    assert raw(http, input=LONG, truncate=True).json()["usage"]["prompt_tokens"] == most
    assert vector(http, input=TEXTS[0], truncate=True) == vector(http, input=TEXTS[0])


def test_types_of_inputs_change_nothing_for_a_model_without_prompts(http):
    for kind in ("query", "passage", "search_document", "clustering"):
        assert vector(http, input_type=kind) == vector(http), kind


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt_name": "query"}, "prompt_name", "no prompts"),
        ({"input_type": "image"}, "input_type", "'image'"),
        ({"input_type": "query", "prompt_name": "query"}, "input_type", "one of them"),
        ({"truncate": "START"}, "truncate", "START"),
        ({"truncate_prompt_tokens": 5000}, "truncate_prompt_tokens", "5000"),
        ({"input": [[1], [1, 99999]]}, "input", "input[1]"),
        ({"input": ["a", ""]}, "input", "number 1"),
        ({"embedding_types": ["int8"]}, "embedding_types", "32-bit"),
        ({"task": "retrieval.query"}, "task", "prompt_name"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(http, fields, param, said):
    answer = raw(http, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]
