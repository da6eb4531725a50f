"""Requests of many adapters at once: each gets what it gets alone, to the last token drawn."""

import random
from concurrent.futures import ThreadPoolExecutor

import adapterlib
import pytest

MODELS = ["demo", "mixed-1", "mixed-2", "mixed-16"]
STORY = "On Friday a parcel came to Brasmere, and nobody in the whole village knew who had sent it or why."


@pytest.fixture(scope="module")
def models(http, server):
    """The base and adapters of ranks 1, 2 and 16."""
    for name in MODELS[1:]:
        rank = int(name.split("-")[1])
        path = adapterlib.put(server.data_dir / "mixed" / str(rank), rank, rank)
        loaded = http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
        assert loaded.status_code == 200, loaded.text
    yield MODELS
    for name in MODELS[1:]:
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200


def requests(models, endless):
    """Prompts of all lengths, some of which begin alike; greedy and at random, each with a seed; answers of all lengths."""
    made = []
    for number in range(32):
        asked = {"model": models[number % len(models)], "logprobs": number % 3, "logit_bias": endless}
        asked |= {"prompt": STORY[: 5 + 17 * number % len(STORY)], "max_tokens": 5 + 3 * number % 37, "n": 1 + number % 3}
        asked |= {"temperature": [0, 0.7, 1.3][number % 3], "seed": number, "top_p": [1, 0.9][number % 2]}
        asked |= {"echo": number % 5 == 0, "stream": number % 4 == 3}
        made.append(asked)
    return made


def answer(client, asked):
    """Each choice's text, its tokens, and their log probabilities."""
    if not asked["stream"]:
        choices = client.completions.create(**asked).choices
        return [(one.text, one.logprobs.tokens, one.logprobs.token_logprobs) for one in choices]
    parts = [["", [], []] for _ in range(asked["n"])]
    for chunk in client.completions.create(**asked):
        for choice in chunk.choices:
            part = parts[choice.index]
            part[0] += choice.text
            if choice.logprobs:
                part[1] += choice.logprobs.tokens
                part[2] += choice.logprobs.token_logprobs
    return [tuple(part) for part in parts]


def test_a_mixed_batch_gives_each_request_what_it_gets_alone(client, models, endless):
    asked = requests(models, endless)
    alone = [answer(client, one) for one in asked]
    assert all(answers for answers in alone)
    order = list(range(len(asked))) * 2
    random.Random(5).shuffle(order)
    with ThreadPoolExecutor(16) as pool:
        together = pool.map(lambda number: answer(client, asked[number]), order)
        for number, answers in zip(order, together, strict=True):
            for (text, tokens, values), (other, other_tokens, other_values) in zip(alone[number], answers, strict=True):
                assert (other, other_tokens) == (text, tokens), asked[number]
                # The first token of an echoed prompt has none.
                known = [value is not None for value in values]
                assert [value is not None for value in other_values] == known
                assert [value or 0 for value in other_values] == pytest.approx([value or 0 for value in values], abs=1e-4)


def test_vectors_of_many_adapters_at_once_are_those_of_each_alone(client, models):
    inputs = [STORY[:length] for length in (3, 40, 97)]

    def vectors(model):
        return [one.embedding for one in client.embeddings.create(model=model, input=inputs).data]

    alone = {model: vectors(model) for model in models}
    assert len({tuple(round(value, 3) for value in one[0]) for one in alone.values()}) == len(models)
    with ThreadPoolExecutor(12) as pool:
        order = models * 6
        for model, got in zip(order, pool.map(vectors, order), strict=True):
            for one, other in zip(alone[model], got, strict=True):
                assert sum(a * b for a, b in zip(one, other, strict=True)) > 0.99999, model
