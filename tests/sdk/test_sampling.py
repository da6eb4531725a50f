"""How tokens are drawn: vLLM's extensions of the sampling fields, which clients send as `extra_body`."""

import openai
import pytest

PROMPT = "Hello! My parcel has not arrived, and the parcel"


def complete(client, extra=None, **settings):
    answer = client.completions.create(
        **{"model": "demo", "prompt": PROMPT, "max_tokens": 12, "temperature": 1, "logprobs": 0, **settings},
        extra_body=extra or {},
    )
    return answer.choices[0]


def chat(client, extra=None, **settings):
    answer = client.chat.completions.create(
        **{"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, **settings},
        extra_body=extra or {},
    )
    return answer.choices[0].message.content


@pytest.mark.parametrize("extra", [{"top_k": 1}, {"min_p": 1}, {"top_k": 40, "min_p": 1}])
def test_one_token_left_is_the_most_probable_one(client, extra):
    assert complete(client, extra, seed=3).text == complete(client, temperature=0).text
    assert chat(client, extra, seed=3, temperature=2) == chat(client, temperature=0)


def test_nothing_is_left_out_by_default(client):
    texts = {complete(client, extra, seed=5).text for extra in ({}, {"top_k": 0}, {"top_k": -1}, {"min_p": 0})}
    texts.add(complete(client, {"repetition_penalty": 1}, seed=5).text)
    texts.add(complete(client, {"top_k": None, "min_p": None, "repetition_penalty": None}, seed=5).text)
    assert len(texts) == 1


def test_a_seed_gives_the_same_text_with_every_filter(client):
    extra = {"top_k": 30, "min_p": 0.02, "repetition_penalty": 1.2}
    settings = {"seed": 11, "top_p": 0.9, "temperature": 1.5}
    assert complete(client, extra, **settings).text == complete(client, extra, **settings).text


def test_tokens_of_prompt_and_answer_are_not_repeated_under_a_large_penalty(client, vocabulary):
    prompt = client.completions.create(model="demo", prompt=PROMPT, max_tokens=0, echo=True, logprobs=0).choices[0]
    tokens = complete(client, {"repetition_penalty": 100}, temperature=0).logprobs.tokens
    assert len(set(tokens)) == len(tokens)
    assert not set(tokens) & set(prompt.logprobs.tokens)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", -2), ("top_k", 1.5), ("top_k", "many"), ("min_p", -0.1), ("min_p", 1.1), ("min_p", "some"),
        ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", 1e300),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_field(client, field, value):
    for ask in (complete, chat):
        with pytest.raises(openai.BadRequestError) as fault:
            ask(client, {field: value})
        assert fault.value.param == field
        assert fault.value.type == "invalid_request_error"


def test_structured_answers_take_the_filters_too(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.3}
    texts = {chat(client, extra, seed=2, max_tokens=40, response_format=form) for _ in range(3)}
    assert len(texts) == 1
    assert texts.pop().replace(" ", "") in ('{"ok":true}', '{"ok":false}')
