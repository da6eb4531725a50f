"""Models of the second engine: the crate mistralrs in a process of its own, behind the same endpoints. `make mistralrs` builds
its program; without it these tests are skipped, and the last one, which needs none, is not. The server `second` has models of
both engines (`second_engine.py`)."""

import concurrent.futures
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import attunelib
import httpx
import pytest
from conftest import sdk
from second_engine import FAMILIES, FIXTURES, FOREIGN, SHARED, complete, entry, process_of, program

PROMPTS = [[5, 9, 31, 7, 88, 12], [140, 3, 3, 61], list(range(20, 52))]
LONG_PROMPT = "A question about the weather: " * 3


def wait_until(is_so, within, what):
    end = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < end, f"not within {within} s: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_its_own_answer_as_transformers_does(second, family):
    for expected in json.loads((FOREIGN / family / "reference.json").read_text()):
        choice = complete(second, family, expected["prompt"], logprobs=1)["choices"][0]
        tokens = [int(token.strip().removeprefix("t")) for token in choice["logprobs"]["tokens"]]
        assert tokens == expected["tokens"]
        got = choice["logprobs"]["token_logprobs"]
        assert got == pytest.approx(expected["logprobs"], abs=1e-4)


def test_a_merged_adapter_answers_as_peft_does(second):
    for expected in json.loads((FOREIGN / "starcoder2" / "adapter" / "reference.json").read_text()):
        choice = complete(second, "adapted", expected["prompt"], logprobs=1)["choices"][0]
        tokens = [int(token.strip().removeprefix("t")) for token in choice["logprobs"]["tokens"]]
        assert tokens == expected["tokens"]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4)


@pytest.mark.parametrize("family", SHARED)
def test_shared_families_answer_alike_on_both_engines(second, family):
    for prompt in PROMPTS:
        own = complete(second, family, prompt)["choices"][0]
        other = complete(second, f"{family}-2", prompt)["choices"][0]
        assert (other["text"], other["finish_reason"]) == (own["text"], own["finish_reason"])


def test_many_at_once_answer_as_one_alone(second):
    asked = [(model, prompt) for model in ("qwen3", "llama") for prompt in PROMPTS for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda ask: complete(second, f"{ask[0]}-2", ask[1])["choices"][0]["text"], asked))
    assert answers == [complete(second, model, prompt)["choices"][0]["text"] for model, prompt in asked]


def test_a_seed_draws_the_same_on_both_engines_with_every_setting(second):
    """The first tokens: rounding may change a later one where a seed's point lies between two tokens."""
    settings = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
        {"temperature": 1.0, "presence_penalty": 0.6, "frequency_penalty": 0.4},
        {"temperature": 1.0, "repetition_penalty": 1.3, "logit_bias": {"17": 3, "40": -100}},
    ]
    for number, more in enumerate(settings):
        own, other = (
            complete(second, model, PROMPTS[0], seed=number, n=3, max_tokens=6, **more) for model in ("qwen3", "qwen3-2")
        )
        assert [choice["text"] for choice in other["choices"]] == [choice["text"] for choice in own["choices"]]
        assert other["usage"] == own["usage"] | {"prompt_tokens_details": other["usage"]["prompt_tokens_details"]}


def test_chats_stop_texts_limits_and_grammars_are_as_on_the_own_engine(second):
    client = sdk(second)
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "count": {"type": "integer"}},
        "required": ["mood", "count"],
        "additionalProperties": False,
    }
    forms = [
        {},
        {"stop": ["e"]},
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 3},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": schema, "strict": True}}},
    ]
    for form in forms:
        asked = {"messages": [{"role": "user", "content": LONG_PROMPT}], "max_tokens": 40, "temperature": 0, **form}
        own, other = (client.chat.completions.create(model=model, **asked).choices[0] for model in ("demo", "demo-2"))
        assert other.message.content == own.message.content
        assert other.finish_reason == own.finish_reason
    assert json.loads(other.message.content)["mood"] in ("good", "bad")


def test_streams_come_token_by_token(second):
    stream = sdk(second).completions.create(model="starcoder2", prompt=PROMPTS[0], max_tokens=12, temperature=0, stream=True)
    pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) >= 6
    assert "".join(pieces) == complete(second, "starcoder2", PROMPTS[0], max_tokens=12)["choices"][0]["text"]


def test_the_list_of_models_says_which_engine_runs_them(second):
    models = {model["id"]: model for model in httpx.get(f"{second.url}/v1/models").json()["data"]}
    assert models["starcoder2"]["engine"] == models["demo-2"]["engine"] == "mistralrs"
    assert "engine" not in models["demo"]


@pytest.mark.parametrize("family", SHARED)
def test_log_probabilities_of_prompts_are_as_on_the_own_engine(second, family):
    """They are computed in a pass of their own: alone, before an answer, for a prompt of one token, and for many at once."""
    cases = [
        {"prompt": PROMPTS[2], "max_tokens": 0},
        {"prompt": PROMPTS, "max_tokens": 3},
        {"prompt": PROMPTS[0], "max_tokens": 2, "n": 2},
        {"prompt": [7], "max_tokens": 1},
    ]
    for case in cases:
        own, other = (complete(second, model, **case, echo=True, logprobs=3) for model in (family, f"{family}-2"))
        assert other["usage"]["total_tokens"] == own["usage"]["total_tokens"]
        for one, two in zip(own["choices"], other["choices"], strict=True):
            assert (two["text"], two["finish_reason"]) == (one["text"], one["finish_reason"])
            one, two = one["logprobs"], two["logprobs"]
            assert two["tokens"] == one["tokens"] and two["text_offset"] == one["text_offset"]
            assert one["token_logprobs"][0] is two["token_logprobs"][0] is None
            # This engine rounds what it multiplies to 16 bits on a CPU.
            assert two["token_logprobs"][1:] == pytest.approx(one["token_logprobs"][1:], abs=2e-3)


def test_a_client_that_leaves_while_its_prompt_is_scored_changes_nothing_for_others(second):
    """The library's engine does not survive a client of such a pass that goes away, so none does."""
    body = {"model": "demo-2", "prompt": "A question. " * 300, "max_tokens": 0, "echo": True, "logprobs": 1}
    process = process_of(second, "demo-2")
    for wait in [0.01, 0.05, 0.1, 0.2] * 3:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{second.url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=wait))
    scored = complete(second, "demo-2", "A question.", max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    own = complete(second, "demo", "A question.", max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    assert scored["tokens"] == own["tokens"]
    assert process_of(second, "demo-2") == process


def test_an_answer_ends_where_attune_says_and_nowhere_else(second):
    """The library takes some tokens as ends by their names alone, and knows no `ignore_eos`."""
    for model in ("demo", "demo-2"):
        asked = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 24, "temperature": 0}
        ended = httpx.post(f"{second.url}/v1/chat/completions", json=asked, timeout=60).json()["choices"][0]
        assert ended["finish_reason"] == "stop"
        on = httpx.post(f"{second.url}/v1/chat/completions", json={**asked, "ignore_eos": True}, timeout=60).json()
        assert on["choices"][0]["finish_reason"] == "length" and on["usage"]["completion_tokens"] == 24
        assert on["choices"][0]["message"]["content"].startswith(ended["message"]["content"])


@pytest.mark.parametrize("format", ["q8_0", "q4_k"])
def test_a_model_is_quantized_while_it_is_loaded(second, format):
    text = complete(second, f"demo-{format}", "The capital of", max_tokens=8)["choices"][0]["text"]
    assert text.strip()
    exact = complete(second, "demo-2", LONG_PROMPT, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]
    rounded = complete(second, f"demo-{format}", LONG_PROMPT, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]
    apart = [abs(a - b) for a, b in zip(exact["token_logprobs"][1:], rounded["token_logprobs"][1:])]
    assert 0 < sum(apart) / len(apart) < (0.2 if format == "q8_0" else 1), apart


def test_clients_that_leave_or_read_slowly_and_bad_requests_change_nothing_for_others(second):
    expected = complete(second, "starcoder2", PROMPTS[0])["choices"][0]["text"]
    choose = random.Random(5)

    def disturb(kind):
        body = {"model": "starcoder2", "prompt": PROMPTS[0], "max_tokens": 200, "temperature": 1, "stream": kind != "bad"}
        if kind == "bad":
            body |= choose.choice([{"prompt": [9999]}, {"max_tokens": -1}, {"temperature": "hot"}, {"prompt": []}])
            answer = httpx.post(f"{second.url}/v1/completions", json=body, timeout=60)
            assert answer.status_code == 400, answer.text
            return
        with httpx.stream("POST", f"{second.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            for _ in range(choose.randrange(1, 6)):
                next(lines, None)
            if kind == "slow":
                list(lines)

    kinds = [choose.choice(["leave", "leave", "bad", "slow"]) for _ in range(200)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        disturbed = [pool.submit(disturb, kind) for kind in kinds]
        for _ in range(10):
            assert complete(second, "starcoder2", PROMPTS[0])["choices"][0]["text"] == expected
        for work in disturbed:
            work.result()
    assert complete(second, "starcoder2", PROMPTS[0])["choices"][0]["text"] == expected


def test_twenty_kills_fail_what_is_in_flight_and_nothing_else(second):
    own = complete(second, "demo", LONG_PROMPT, max_tokens=60)["choices"][0]["text"]
    other = complete(second, "starcoder2", PROMPTS[0])["choices"][0]["text"]
    ended = threading.Event()
    wrong = []

    def ask_own_engine():
        while not ended.is_set():
            text = complete(second, "demo", LONG_PROMPT, max_tokens=60)["choices"][0]["text"]
            if text != own:
                wrong.append(text)

    def ask_second_engine():
        """Asks until the killing ends: a whole answer, or 503."""
        body = {"model": "starcoder2", "prompt": PROMPTS[0], "max_tokens": 16, "temperature": 0}
        while not ended.is_set():
            answer = httpx.post(f"{second.url}/v1/completions", json=body, timeout=60)
            if answer.status_code == 200 and answer.json()["choices"][0]["text"] != other:
                wrong.append(answer.text)
            if answer.status_code not in (200, 503):
                wrong.append(answer.text)

    def stream_of_second_engine():
        """A stream ends whole, or with an error that says so."""
        body = {"model": "starcoder2", "prompt": PROMPTS[0], "max_tokens": 16, "temperature": 0, "stream": True}
        while not ended.is_set():
            answer = httpx.post(f"{second.url}/v1/completions", json=body, timeout=60)
            events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
            if answer.status_code == 200 and events and events[-1] == "[DONE]":
                chunks = [json.loads(event) for event in events[:-1]]
                text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk.get("choices"))
                if text != other and not any("error" in chunk for chunk in chunks):
                    wrong.append(answer.text)
            elif answer.status_code == 200 and "being started again" not in answer.text:
                wrong.append(answer.text)
            elif answer.status_code not in (200, 503):
                wrong.append(answer.text)

    asks = (ask_own_engine, ask_second_engine, ask_second_engine, stream_of_second_engine)
    askers = [threading.Thread(target=ask) for ask in asks]
    [asker.start() for asker in askers]
    back = []
    try:
        for _ in range(20):
            victim = process_of(second, "starcoder2")
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            new = lambda victim=victim: process_of(second, "starcoder2") not in (None, victim)
            wait_until(lambda: new() and answers(second), 60, "the engine is back")
            back.append(time.monotonic() - began)
    finally:
        ended.set()
        [asker.join() for asker in askers]
    assert wrong == []
    assert complete(second, "starcoder2", PROMPTS[0])["choices"][0]["text"] == other
    print("back after", [round(seconds, 1) for seconds in back])
    metrics = httpx.get(f"{second.url}/metrics").text
    assert 'attune_engine_restarts_total{model="starcoder2"} 20' in metrics


def answers(server):
    body = {"model": "starcoder2", "prompt": PROMPTS[0], "max_tokens": 1, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200


def test_the_process_ends_with_the_server_even_if_that_is_killed(start_server, tmp_path):
    found = program()
    if found is None:
        pytest.skip("the second engine is not built: make mistralrs")
    settings = tmp_path / "attune.toml"
    settings.write_text(f'second_engine = "{found}"\n' + entry("starcoder2", FOREIGN / "starcoder2"))
    server = start_server("--config", str(settings))
    child = process_of(server, "starcoder2")
    server.kill()
    wait_until(lambda: not is_running(child), 30, "the process has ended")


def is_running(pid):
    """Whether the process runs; one that has ended may stay in the list until its new parent has looked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_missing_program_and_a_wrong_setting_are_told_at_the_start(binary, tmp_path):
    settings = tmp_path / "attune.toml"
    cases = [
        ('second_engine = "/no/such/program"\n' + entry("m", FOREIGN / "glm4"), "there is no program /no/such/program"),
        (entry("m", FOREIGN / "glm4", "attune"), 'engine = "attune" does not have model_type `glm4`'),
        (entry("m", FIXTURES / "olmo2", "mistralrs"), "model_type `olmo2`"),
        (entry("m", attunelib.DEMO) + 'adapter = "x"\n', "`adapter` is for the second engine"),
    ]
    for text, message in cases:
        settings.write_text(text)
        command = [str(binary), "serve", "--config", str(settings), "--data-dir", str(tmp_path / "data")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=attunelib.environment())
        assert done.returncode != 0 and message in done.stderr, done.stderr
