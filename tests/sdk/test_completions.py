"""Completions: prompts of every kind, sampling, stops, streams."""

import openai
import pytest

PROMPT = "On Friday"


def complete(client, prompt=PROMPT, **settings):
    defaults = {"model": "demo", "prompt": prompt, "max_tokens": 40, "temperature": 0}
    return client.completions.create(**{**defaults, **settings})


def test_a_completion_has_text_a_reason_and_usage(client):
    answer = complete(client)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.model == "demo"
    (choice,) = answer.choices
    assert choice.text
    assert choice.index == 0
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens >= 1
    assert 1 <= usage.completion_tokens <= 40
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_max_tokens_is_kept(client, endless):
    answer = complete(client, max_tokens=5, logit_bias=endless)
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


def test_sixteen_tokens_are_the_default(client, endless):
    answer = client.completions.create(model="demo", prompt=PROMPT, logit_bias=endless)
    assert answer.usage.completion_tokens == 16


def test_a_stream_joins_to_the_same_text(client):
    whole = complete(client).choices[0]
    chunks = list(complete(client, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert len(chunks) > 3
    assert len({chunk.id for chunk in chunks}) == 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[:-1] == [None] * (len(chunks) - 1)
    assert reasons[-1] == whole.finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_usage_where_asked(client):
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == complete(client).usage
    assert all(chunk.choices for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(client, endless, stream):
    text = complete(client, logit_bias=endless).choices[0].text
    stop = text[len(text) // 2 :][:4]
    expected = text[: text.index(stop)]
    answer = complete(client, logit_bias=endless, stop=[stop, "never said this"], stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == expected
    assert choices[-1].finish_reason == "stop"


def test_temperature_zero_repeats_itself(client):
    assert complete(client).choices[0].text == complete(client).choices[0].text


def test_a_seed_repeats_itself_and_another_one_differs(client, endless):
    def text(seed):
        return complete(client, temperature=1, seed=seed, logit_bias=endless).choices[0].text

    assert text(7) == text(7)
    assert text(7) != text(8)


def test_two_answers_to_one_prompt(client, endless):
    answer = complete(client, n=2, temperature=1, seed=3, logit_bias=endless, max_tokens=20)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.usage.completion_tokens == 40
    assert answer.usage.prompt_tokens == complete(client).usage.prompt_tokens


def test_an_array_of_prompts_is_answered_in_order(client):
    prompts = [PROMPT, "Brasmere is"]
    answer = complete(client, prompts)
    assert [choice.index for choice in answer.choices] == [0, 1]
    alone = [complete(client, prompt).choices[0].text for prompt in prompts]
    assert [choice.text for choice in answer.choices] == alone


def test_token_ids_are_a_prompt(client, vocabulary):
    # A word that is one token by itself.
    word, token = next(
        (text, token)
        for text, token in vocabulary.items()
        if text.isascii() and text.isalpha() and len(text) > 2
        and complete(client, text, max_tokens=1).usage.prompt_tokens == 1
    )
    as_text = complete(client, word)
    assert complete(client, [token]).choices[0].text == as_text.choices[0].text
    both = complete(client, [[token], [token]])
    assert [choice.text for choice in both.choices] == [as_text.choices[0].text] * 2
    assert both.usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": []}, "prompt"),
    ],
)
def test_a_wrong_field_is_named(client, settings, param):
    with pytest.raises(openai.BadRequestError) as fault:
        complete(client, **settings)
    assert fault.value.param == param
    assert fault.value.type == "invalid_request_error"


def test_more_tokens_than_the_context_are_refused(client):
    with pytest.raises(openai.BadRequestError) as fault:
        complete(client, max_tokens=100_000)
    assert fault.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as fault:
        complete(client, model="nobody")
    assert fault.value.code == "model_not_found"


def test_a_body_that_is_no_json_is_a_bad_request(http):
    answer = http.post("/v1/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_client_that_hangs_up_harms_nobody(client, endless):
    expected = complete(client).choices[0].text
    stream = complete(client, max_tokens=500, stream=True, logit_bias=endless)
    next(iter(stream))
    stream.close()
    assert complete(client).choices[0].text == expected
