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


def test_more_dimensions_than_the_model_has_are_refused(client):
    with pytest.raises(openai.BadRequestError) as fault:
        embed(client, TEXTS[0], dimensions=size() + 1)
    assert fault.value.param == "dimensions"
