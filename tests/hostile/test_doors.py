"""Organisations that fill the queue, the running places and the cache: another one's small answers come all the same, and
soon."""

import json
import threading
from contextlib import contextmanager

import pytest
from conftest import ONE, attunelib, sdk, timed, token

# Prompts and answers to each that are all places for those who wait, and the longest answers that fit.
PROMPTS, ANSWERS, TOKENS = 8, 128, 900


@pytest.fixture(scope="module")
def endless():
    """A bias that keeps the model from ending its answers."""
    tokenizer = json.loads((attunelib.DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return {str(id): -100 for text, id in ids.items() if text.startswith("<|")}


@contextmanager
def running(tenant, *bodies):
    """Streams the answers to `bodies` until the end of the block; it begins once the first of each has text."""
    done = threading.Event()
    begun = [threading.Event() for _ in bodies]
    statuses = []

    def read(body, has_begun):
        with tenant.client() as client, client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            statuses.append(answer.status_code)
            for _ in answer.iter_raw():
                has_begun.set()
                if done.is_set():
                    return
        has_begun.set()

    readers = [threading.Thread(target=read, args=pair) for pair in zip(bodies, begun)]
    try:
        for reader, has_begun in zip(readers, begun):
            reader.start()
            assert has_begun.wait(60), "the answers never begin"
        assert statuses == [200] * len(bodies)
        yield
        assert all(reader.is_alive() for reader in readers), "the answers have ended too soon to measure anything"
    finally:
        done.set()
        for reader in readers:
            reader.join(60)


def bulk(endless, prompts=PROMPTS, answers=ANSWERS):
    prompt = [f"{number} The" for number in range(prompts)]
    return {"model": "demo", "prompt": prompt, "n": answers, "max_tokens": TOKENS, "logit_bias": endless}


def test_a_request_that_fills_the_queue_shuts_nobody_out_and_keeps_nobody_waiting(
    attacker, bystander, memory, patience, endless
):
    with running(attacker, bulk(endless)):
        # More of it than its running ones have left room for.
        refused = attacker.post(bulk(endless, 1, 128), "/v1/completions")
        assert refused.status_code == 429, refused.text
        seconds = [token(bystander) for _ in range(10)]
        seconds += [token(bystander, "/v1/embeddings") for _ in range(5)]
    assert max(seconds) < patience, seconds
    assert memory.grown() < ONE


def test_many_long_prompts_of_one_organisation_take_only_their_share_of_the_steps(attacker, bystander, patience, endless):
    def prompt(first):
        return [first] + [200] * 599

    # No two begin alike.
    prompts = [prompt(300 + number) for number in range(256)]
    with running(attacker, {"model": "demo", "prompt": prompts, "max_tokens": 300, "logit_bias": endless}):
        seconds = [token(bystander) for _ in range(5)]
        body = {"model": "demo", "prompt": prompt(299), "max_tokens": 1}
        answer, taken = timed(lambda: bystander.post(body, "/v1/completions"))
        assert answer.status_code == 200, answer.text
    assert max(*seconds, taken) < patience, (seconds, taken)


def test_two_organisations_with_much_to_do_get_about_as_much(attacker, bystander, endless):
    """Counted in tokens of streams that run side by side, one of them far wider than the other."""
    counts = {}

    def count(tenant, name, answers, enough):
        body = {**bulk(endless, 1, answers), "stream": True}
        with tenant.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                counts[name] = counts.get(name, 0) + line.startswith("data: {")
                if enough():
                    return

    stop = threading.Event()
    wide = threading.Thread(target=count, args=(attacker, "wide", 128, stop.is_set))
    wide.start()
    try:
        sdk.wait_for(lambda: counts.get("wide", 0) > 500, "the wide request")
        before = counts["wide"]
        count(bystander, "narrow", 64, lambda: counts["narrow"] > 3000)
        beside = counts["wide"] - before
    finally:
        stop.set()
        wide.join(60)
    assert counts["narrow"] > beside / 4, counts
