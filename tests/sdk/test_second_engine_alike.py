"""The same request to the same model on both engines: the same answer in every part, whole and streamed, and the same refusal."""

import concurrent.futures
import json
import random
import time

import httpx
import pytest

QUESTION = [{"role": "user", "content": "Where does the baker live?"}]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "marks": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
    "required": ["mood", "marks"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]},
    },
}
# Of `qwen3`, whose tokens are `t5`, `t9` and so on, one after another.
TOKENS = [5, 9, 31, 7, 88, 12]
# Of its 256 places.
LONG = [7] * 258

COMPLETIONS = {
    "greedy": {},
    "a text": {"model": "demo", "prompt": "The baker lives"},
    "several texts": {"model": "demo", "prompt": ["The baker lives", "Who is", "a"]},
    "several lists of tokens": {"prompt": [TOKENS, [140, 3, 3, 61], [1]]},
    "no text": {"model": "demo", "prompt": ""},
    "no prompt": {"model": "demo", "prompt": None},
    "an empty list": {"prompt": []},
    "a list of an empty text": {"model": "demo", "prompt": ["a", ""]},
    "an unknown token": {"prompt": [5, 99999]},
    "no tokens": {"max_tokens": 0},
    "one token": {"max_tokens": 1},
    "echo": {"echo": True},
    "echo of several": {"model": "demo", "prompt": ["The baker", "b"], "echo": True, "max_tokens": 3},
    "echo with log probabilities": {"echo": True, "logprobs": 2, "max_tokens": 3},
    "echo alone": {"echo": True, "logprobs": 1, "max_tokens": 0},
    "echo of several answers": {"echo": True, "logprobs": 1, "n": 2, "max_tokens": 2},
    "log probabilities": {"logprobs": 5},
    "log probabilities of the drawn": {"logprobs": 0, "temperature": 1, "seed": 3},
    "echo of a whole context": {"prompt": LONG[:256], "echo": True, "logprobs": 1, "max_tokens": 0},
    "a stop token that is not there": {"stop_token_ids": [99999]},
    "no nucleus": {"temperature": 1, "top_p": 0, "seed": 1},
    "one candidate": {"temperature": 1, "top_k": 1},
    "hardly warm": {"temperature": 1e-6, "seed": 1},
    "a suffix": {"model": "demo", "prompt": "The", "suffix": " end"},
    "several answers": {"n": 3, "temperature": 1, "seed": 11},
    "the best of several": {"best_of": 4, "n": 2, "temperature": 1, "seed": 5},
    "the best of several with log probabilities": {"best_of": 3, "n": 1, "temperature": 1, "seed": 6, "logprobs": 2},
    "fewer of the best than asked": {"best_of": 1, "n": 2},
    "a stop text": {"model": "demo", "prompt": "The baker lives", "stop": "a", "max_tokens": 40},
    "a stop text that never comes": {"model": "demo", "prompt": "The baker", "stop": ["zzzzq"], "max_tokens": 30},
    "a stop token": {"prompt": TOKENS, "stop_token_ids": list(range(60)), "max_tokens": 30},
    "a stop token with log probabilities": {"prompt": TOKENS, "stop_token_ids": list(range(60)), "logprobs": 1},
    "a wish and a ban": {"logit_bias": {"17": 3, "40": -100}},
    "one token alone": {"logit_bias": {"33": 100}, "max_tokens": 3},
    "halves of characters": {"model": "demo", "prompt": "a", "logit_bias": {"176": 100}, "max_tokens": 3, "logprobs": 1},
    "half a character before a stop token": {
        "model": "demo",
        "prompt": "a",
        "logit_bias": {"176": 100, "160": 99.9},
        "frequency_penalty": 2,
        "stop_token_ids": [160],
    },
    "a character of several tokens": {"model": "demo", "prompt": "grüße 😀 日本", "echo": True, "logprobs": 1, "max_tokens": 2},
    "a ban of a token that is not there": {"logit_bias": {"99999": 1}},
    "few candidates": {"temperature": 1, "top_k": 3, "seed": 1},
    "a nucleus": {"temperature": 1, "top_p": 0.3, "seed": 1},
    "a least probability": {"temperature": 1.5, "min_p": 0.1, "seed": 2},
    "penalties": {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 1, "repetition_penalty": 1.4},
    "on behind the end": {"model": "demo", "prompt": "The baker", "ignore_eos": True, "max_tokens": 50},
    "too hot": {"temperature": 2.5},
    "too many answers": {"n": 1000},
    "a prompt beyond the context": {"prompt": LONG},
    "an answer beyond the context": {"max_tokens": 4000},
    "up to the last place": {"prompt": LONG[:254], "max_tokens": 2},
    "one too many": {"prompt": LONG[:255], "max_tokens": 2},
    "a text beyond the context": {"model": "demo", "prompt": "a question " * 3000},
    "a wrong type": {"max_tokens": "many"},
    "an unknown field": {"no_such_field": 1},
}
CHATS = {
    "greedy": {},
    "log probabilities": {"logprobs": True, "top_logprobs": 3},
    "several answers": {"n": 3, "temperature": 1, "seed": 4, "max_tokens": 8},
    "a stop text": {"stop": ["e", "o"]},
    "an object": {"response_format": {"type": "json_object"}, "max_tokens": 60},
    "a schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": SCHEMA, "strict": True}},
        "max_tokens": 90,
    },
    "a schema that is cut off": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": SCHEMA, "strict": True}},
        "max_tokens": 4,
    },
    "several answers in a schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": SCHEMA}},
        "n": 2,
        "temperature": 1,
        "seed": 8,
    },
    "a call": {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60},
    "a named call": {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "a call with log probabilities": {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60, "logprobs": True},
    "a choice to call": {"tools": [WEATHER]},
    "no call": {"tools": [WEATHER], "tool_choice": "none"},
    "a call of what is not there": {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}},
    "no tokens": {"max_tokens": 0},
    "on behind the end": {"ignore_eos": True, "max_tokens": 40},
    "no messages": {"messages": []},
    "an empty message": {"messages": [{"role": "user", "content": ""}]},
    "a chat beyond the context": {"messages": [{"role": "user", "content": "a question " * 3000}]},
    "an answer beyond the context": {"max_tokens": 100000},
    "no limit": {"max_tokens": None, "stop": "."},
    "the whole context": {"max_tokens": None, "ignore_eos": True},
}
RESPONSES = {
    "a text": {},
    "instructions": {"instructions": "Be short."},
    "a schema": {"text": {"format": {"type": "json_schema", "name": "m", "schema": SCHEMA}}, "max_output_tokens": 90},
    "a call": {
        "tools": [{"type": "function", **WEATHER["function"], "strict": False}],
        "tool_choice": "required",
        "max_output_tokens": 60,
    },
    "log probabilities": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "beyond the context": {"input": "a question " * 3000},
    "one token": {"max_output_tokens": 16},
}


def alike(value, model):
    """An answer without what differs from one request to the next; the log probabilities are apart by rounding."""
    if isinstance(value, dict):
        changing = ("id", "created", "created_at", "completed_at", "item_id", "call_id", "response_id", "obfuscation")
        return {key: "…" if key in changing and part else alike(part, model) for key, part in value.items()}
    if isinstance(value, list):
        return [alike(part, model) for part in value]
    if isinstance(value, str):
        return value.replace(f"{model}-2", model)
    # In steps of rounding; `cached_tokens` is whole, and 0 where nothing is kept.
    return Near(value) if isinstance(value, float) else value


class Near(float):
    """A number that equals those near it."""

    def __eq__(self, other):
        return isinstance(other, float) and abs(self - other) < 5e-3

    __hash__ = None


def ask(server, path, body):
    """The answer to a request, of a stream all its events."""
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        return answer.status_code, [json.loads(event) if event != "[DONE]" else event for event in events]
    return answer.status_code, answer.json()


def without_cache(value):
    """An answer without the tokens that were found in a cache, which the second engine has not."""
    if isinstance(value, dict):
        return {key: without_cache(part) for key, part in value.items() if key != "cached_tokens"}
    return [without_cache(part) for part in value] if isinstance(value, list) else value


def compare(server, path, body):
    model = body["model"]
    own, other = (
        (status, alike(without_cache(answer), model))
        for status, answer in (ask(server, path, {**body, "model": name}) for name in (model, f"{model}-2"))
    )
    assert other == own


def in_order(events):
    """The events of a stream of several answers, those of each by themselves."""
    return sorted(events, key=lambda event: [choice["index"] for choice in event.get("choices") or [{"index": 9}]])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("what", COMPLETIONS)
def test_completions(second, what, stream):
    body = {"model": "qwen3", "prompt": TOKENS, "max_tokens": 8, "temperature": 0, **COMPLETIONS[what]}
    compare_streams(second, "/v1/completions", body, stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("what", CHATS)
def test_chats(second, what, stream):
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 24, "temperature": 0, **CHATS[what]}
    compare_streams(second, "/v1/chat/completions", body, stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("what", RESPONSES)
def test_responses(second, what, stream):
    body = {"model": "demo", "input": "Where does the baker live?", "temperature": 0, "max_output_tokens": 40, **RESPONSES[what]}
    compare(second, "/v1/responses", {**body, "stream": stream})


def compare_streams(server, path, body, stream):
    """Compares the answers; of a stream each answer's events, and the usage behind them."""
    if not stream:
        return compare(server, path, body)
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    model, found = body["model"], []
    for name in (model, f"{model}-2"):
        status, events = ask(server, path, {**body, "model": name})
        if status == 200:
            assert events[-1] == "[DONE]"
            events = in_order(events[:-1])
        found.append((status, alike(without_cache(events), model)))
    assert found[1] == found[0]


@pytest.mark.parametrize("model", ["demo", "qwen3"])
def test_a_stop_text_ends_an_answer_wherever_it_begins_and_ends(second, model):
    prompt = {"demo": "The baker lives", "qwen3": TOKENS}[model]
    body = {"model": model, "prompt": prompt, "max_tokens": 20, "temperature": 0}
    text = ask(second, "/v1/completions", body)[1]["choices"][0]["text"]
    for start in range(0, len(text) - 4, 3):
        for stream in (False, True):
            compare_streams(second, "/v1/completions", {**body, "stop": [text[start : start + 4]]}, stream)


def test_thirty_two_at_once_answer_as_on_the_own_engine(second):
    choose = random.Random(3)
    bodies = []
    for number in range(32):
        prompt = [choose.randrange(200) for _ in range(choose.randrange(1, 100))]
        settings = choose.choice([{}, {"temperature": 1, "seed": number}, {"echo": True, "logprobs": 1}, {"n": 2}])
        bodies.append({"model": "qwen3", "prompt": prompt, "max_tokens": choose.randrange(1, 8), "temperature": 0, **settings})
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda pair: compare_streams(second, "/v1/completions", pair[1], pair[0] % 2 == 0), enumerate(bodies)))


def test_a_reader_who_is_slow_gets_every_event(second):
    """Others are answered meanwhile, although one answer is written at a time: it is kept for the reader."""
    body = {"model": "demo-2", "prompt": "The baker", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
    whole = ask(second, "/v1/completions", body)[1]["choices"][0]["text"]
    with httpx.stream("POST", f"{second.url}/v1/completions", json={**body, "stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        first = [next(lines), next(lines)]
        time.sleep(0.5)
        assert ask(second, "/v1/completions", {**body, "max_tokens": 2})[0] == 200
        events = [line.removeprefix("data: ") for line in [*first, *lines] if line.startswith("data: {")]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == whole
