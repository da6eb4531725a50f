"""Log probabilities in completions and chat, streamed and not; `echo`, `max_tokens` 0 and `best_of`."""

import math

import openai
import pytest

PROMPT = "On Friday the café"
HELLO = [{"role": "user", "content": "Hello!"}]


def complete(client, prompt=PROMPT, **settings):
    defaults = {"model": "demo", "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 3}
    return client.completions.create(**{**defaults, **settings})


def chat(client, **settings):
    defaults = {"model": "demo", "messages": HELLO, "max_tokens": 40, "temperature": 0, "logprobs": True}
    return client.chat.completions.create(**{**defaults, **settings})


def arrays(logprobs):
    return logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset


def joined(chunks):
    """The arrays of all chunks of a stream, one after the other."""
    parts = [arrays(chunk.choices[0].logprobs) for chunk in chunks]
    return tuple([entry for part in parts for entry in part[place]] for place in range(4))


def assert_sound(logprobs, most):
    """Every token's value is that of its entry, to the bit, and the highest of them come first."""
    lengths = {len(array) for array in arrays(logprobs)}
    assert len(lengths) == 1, lengths
    for token, own, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        if own is None:
            assert top is None
            continue
        assert own <= 0 and math.isfinite(own)
        assert top[token] == own
        assert max(most, 1) <= len(top) <= most + 1
        values = list(top.values())
        assert values == sorted(values, reverse=True)
        assert sum(math.exp(value) for value in values) < 1.0001


@pytest.mark.parametrize("most", [0, 1, 5])
def test_each_token_has_its_log_probability_and_the_highest_ones(client, most, endless):
    answer = complete(client, logprobs=most, logit_bias=endless)
    (choice,) = answer.choices
    assert len(choice.logprobs.tokens) == answer.usage.completion_tokens == 12
    assert_sound(choice.logprobs, most)
    assert "".join(choice.logprobs.tokens) == choice.text
    if most:
        greedy = [max(top, key=top.get) for top in choice.logprobs.top_logprobs]
        assert greedy == choice.logprobs.tokens


def test_they_are_absent_where_nobody_asks(client):
    assert complete(client, logprobs=None).choices[0].logprobs is None
    assert all(chunk.choices[0].logprobs is None for chunk in complete(client, logprobs=None, stream=True))


def test_offsets_count_the_characters_of_prompt_and_text(client, endless):
    for settings in ({}, {"echo": True}):
        choice = complete(client, logit_bias=endless, **settings).choices[0]
        whole = choice.text if settings else PROMPT + choice.text
        offsets = choice.logprobs.text_offset
        assert offsets[0] == (0 if settings else len(PROMPT))
        for token, offset, after in zip(choice.logprobs.tokens, offsets, [*offsets[1:], len(whole)]):
            if not token.startswith("bytes:"):
                assert whole[offset:after] == token


def test_the_echo_has_the_prompts_log_probabilities(client, endless):
    answer = complete(client, echo=True, logit_bias=endless)
    (choice,) = answer.choices
    usage, logprobs = answer.usage, choice.logprobs
    assert choice.text.startswith(PROMPT)
    assert len(logprobs.tokens) == usage.prompt_tokens + usage.completion_tokens
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert None not in logprobs.token_logprobs[1:]
    assert_sound(logprobs, 3)
    without = complete(client, logit_bias=endless).choices[0].logprobs
    answered = slice(usage.prompt_tokens, None)
    assert (logprobs.tokens[answered], logprobs.text_offset[answered]) == (without.tokens, without.text_offset)
    assert logprobs.token_logprobs[answered] == pytest.approx(without.token_logprobs, abs=1e-4)


def test_a_token_is_worth_the_same_in_a_prompt_as_where_it_was_drawn(client, endless, vocabulary):
    drawn = complete(client, "On Friday", echo=True, logit_bias=endless).choices[0].logprobs
    ids = [vocabulary[token.replace(" ", "Ġ").replace("\n", "Ċ")] for token in drawn.tokens]
    scored = complete(client, ids, echo=True, max_tokens=0).choices[0].logprobs
    assert scored.tokens == drawn.tokens
    assert scored.token_logprobs[1:] == pytest.approx(drawn.token_logprobs[1:], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_alone_is_scored(client, stream):
    settings = {"echo": True, "max_tokens": 0, "stream": stream}
    with_one = complete(client, echo=True, max_tokens=1)
    if stream:
        chunks = list(complete(client, **settings, stream_options={"include_usage": True}))
        *chunks, last = chunks
        usage, reason = last.usage, chunks[-1].choices[0].finish_reason
        text, scored = "".join(chunk.choices[0].text for chunk in chunks), joined(chunks)
    else:
        answer = complete(client, **settings)
        usage, reason = answer.usage, answer.choices[0].finish_reason
        text, scored = answer.choices[0].text, arrays(answer.choices[0].logprobs)
    assert (text, reason) == (PROMPT, "length")
    assert (usage.completion_tokens, usage.prompt_tokens) == (0, len(scored[0]))
    expected = arrays(with_one.choices[0].logprobs)
    assert scored[0] == expected[0][:-1]
    assert scored[1][1:] == pytest.approx(expected[1][1:-1], abs=1e-4)


def test_no_tokens_have_no_log_probabilities(client):
    answer = complete(client, max_tokens=0)
    assert arrays(answer.choices[0].logprobs) == ([], [], [], [])
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 0


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_carries_them_with_each_token(client, endless, echo):
    whole = complete(client, echo=echo, logit_bias=endless).choices[0]
    chunks = list(complete(client, echo=echo, logit_bias=endless, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert joined(chunks) == arrays(whole.logprobs)
    *chunks, last = chunks
    if echo:
        first = chunks.pop(0).choices[0]
        assert first.text == PROMPT
        assert first.logprobs.token_logprobs[0] is None
    assert [len(chunk.choices[0].logprobs.tokens) for chunk in chunks] == [1] * 12
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "length")
    assert last.choices[0].logprobs.tokens == []


def test_a_token_whose_text_is_held_back_has_a_chunk_of_its_own(client, endless):
    text = complete(client, logit_bias=endless).choices[0].text
    # A stop text that the answer ends within and never completes.
    chunks = list(complete(client, logit_bias=endless, stop=text + " and never this", stream=True))
    with_token = [chunk.choices[0] for chunk in chunks if chunk.choices[0].logprobs.tokens]
    assert len(with_token) == 12
    assert all(choice.text == "" for choice in with_token)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text


def test_the_token_that_ends_the_answer_is_shown_by_its_name(client, vocabulary):
    end = next(text for text in vocabulary if text.startswith("<|") and "end" in text)
    forced = {str(vocabulary[end]): 100}
    answer = complete(client, logit_bias=forced)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.tokens == [end]
    assert answer.usage.completion_tokens == 1
    # The raw probability, not that of the bias.
    assert answer.choices[0].logprobs.token_logprobs[0] < -0.01


def test_bytes_that_are_no_characters_are_shown_as_bytes(client):
    answer = complete(client, "東京🙂", echo=True, max_tokens=0, logprobs=5)
    logprobs = answer.choices[0].logprobs
    assert any(token.startswith("bytes:\\x") for token in logprobs.tokens)
    assert_sound(logprobs, 5)
    raw = b"".join(
        bytes(int(digits, 16) for digits in token[len("bytes:\\x") :].split("\\x"))
        if token.startswith("bytes:")
        else token.encode()
        for token in logprobs.tokens
    )
    assert raw.decode() == "東京🙂"
    assert set(logprobs.text_offset) <= {0, 1, 2}


def test_prompts_of_token_ids_are_scored_as_their_text(client, vocabulary):
    words = [text for text in vocabulary if text.isascii() and text.isalpha() and len(text) > 2][:4]
    lists = [[vocabulary[word] for word in words], [vocabulary[word] for word in words[:2]]]
    answer = complete(client, lists, echo=True, max_tokens=1, logprobs=1)
    for choice, ids, count in zip(answer.choices, lists, (4, 2)):
        assert choice.logprobs.tokens[:count] == words[:count]
        assert choice.logprobs.text_offset[: count + 1] == [sum(map(len, words[:place])) for place in range(count + 1)]
        assert len(choice.logprobs.tokens) == len(ids) + 1
    assert answer.usage.prompt_tokens == 6


def test_the_empty_prompt_has_one_token_without_a_value(client):
    logprobs = complete(client, "", echo=True, max_tokens=0).choices[0].logprobs
    assert len(logprobs.tokens) == 1
    assert (logprobs.token_logprobs, logprobs.text_offset) == ([None], [0])


@pytest.mark.parametrize("echo", [False, True])
def test_every_choice_of_a_stream_has_its_own(client, endless, echo):
    settings = {"prompt": [PROMPT, "Brasmere is"], "n": 2, "temperature": 1, "seed": 4, "echo": echo}
    whole = complete(client, logit_bias=endless, **settings).choices
    chunks = list(complete(client, logit_bias=endless, stream=True, **settings))
    for choice in whole:
        own = [chunk for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(chunk.choices[0].text for chunk in own) == choice.text
        tokens, values, _, offsets = joined(own)
        assert (tokens, offsets) == (choice.logprobs.tokens, choice.logprobs.text_offset)
        first = 1 if echo else 0
        assert values[first:] == pytest.approx(choice.logprobs.token_logprobs[first:], abs=1e-4)


def test_best_of_answers_with_the_most_probable_on_average(client):
    settings = {"temperature": 1, "seed": 11, "max_tokens": 10}
    candidates = complete(client, n=6, **settings)
    best = complete(client, n=2, best_of=6, **settings)

    def mean(choice):
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    ranked = sorted(candidates.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage == candidates.usage
    silent = complete(client, n=2, best_of=6, logprobs=None, **settings)
    assert [choice.text for choice in silent.choices] == [choice.text for choice in best.choices]
    assert all(choice.logprobs is None for choice in silent.choices)


def test_best_of_chooses_for_each_prompt(client):
    settings = {"temperature": 1, "seed": 11, "max_tokens": 10, "best_of": 4}
    prompts = [PROMPT, "Brasmere is"]
    together = complete(client, prompts, echo=True, **settings).choices
    alone = [complete(client, prompt, echo=True, **settings).choices[0] for prompt in prompts]
    assert [choice.text for choice in together] == [choice.text for choice in alone]


@pytest.mark.parametrize("best_of", [0, None])
def test_best_of_nothing_is_n(client, best_of):
    answer = complete(client, n=2, extra_body={"best_of": best_of}, temperature=1, seed=1, stream=False)
    assert len(answer.choices) == 2
    assert list(complete(client, n=1, extra_body={"best_of": best_of}, stream=True))


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"best_of": 21}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "the end"}, "suffix"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(client, settings, param):
    with pytest.raises(openai.BadRequestError) as fault:
        complete(client, **settings)
    assert fault.value.param == param
    assert fault.value.type == "invalid_request_error"


def test_harmless_suffixes_pass(client):
    assert complete(client, suffix="").choices[0].text
    assert complete(client, suffix=None).choices[0].text


@pytest.mark.parametrize("most", [None, 0, 20])
def test_a_chats_tokens_have_log_probabilities_and_bytes(client, most):
    answer = chat(client, **({} if most is None else {"top_logprobs": most}))
    (choice,) = answer.choices
    tokens = choice.logprobs.content
    assert choice.logprobs.refusal is None
    assert len(tokens) == answer.usage.completion_tokens
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == choice.message.content
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == (most or 0)
        if most:
            # Greedy: the token is the first of the most probable ones, to the bit.
            assert token.top_logprobs[0].model_dump() == token.model_dump(exclude={"top_logprobs"})
            values = [other.logprob for other in token.top_logprobs]
            assert values == sorted(values, reverse=True)
    # The end of the answer is a token, too, without any text.
    assert choice.finish_reason == "stop"
    assert tokens[-1].bytes is None and tokens[-1].token.startswith("<|")


def test_a_chat_without_them_has_null(client):
    assert chat(client, logprobs=False).choices[0].logprobs is None
    assert chat(client, logprobs=None).choices[0].logprobs is None


def test_a_streamed_chat_carries_them_with_each_token(client):
    whole = chat(client, top_logprobs=2).choices[0]
    chunks = [chunk.choices[0] for chunk in chat(client, top_logprobs=2, stream=True)]
    assert "".join(choice.delta.content or "" for choice in chunks) == whole.message.content
    content = [token for choice in chunks if choice.logprobs for token in choice.logprobs.content]
    assert content == whole.logprobs.content
    assert chunks[-1].finish_reason == "stop" and chunks[-1].logprobs is None


@pytest.mark.parametrize(
    "settings", [{"top_logprobs": 21}, {"top_logprobs": -1}, {"logprobs": False, "top_logprobs": 2}]
)
def test_a_wrong_field_of_a_chat_is_named(client, settings):
    with pytest.raises(openai.BadRequestError) as fault:
        chat(client, **settings)
    assert fault.value.param == "top_logprobs"


def test_usage_has_its_details(client):
    for usage in (complete(client).usage, chat(client).usage):
        assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
        assert usage.completion_tokens_details.reasoning_tokens == 0
