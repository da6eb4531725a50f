"""Models of the second engine: the crate mistralrs in a process of its own, behind the same endpoints. `make mistralrs` builds
its program; without it these tests are skipped, and the last one, which needs none, is not."""

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
import openai
import pytest
from conftest import sdk

FIXTURES = attunelib.ROOT / "tests" / "fixtures"
FOREIGN = FIXTURES / "second_engine"
# Families that both engines have. The tiny checkpoints have the vocabulary of those in `second_engine`.
SHARED = ["llama", "mistral", "qwen2", "qwen3", "smollm3"]
PROMPTS = [[5, 9, 31, 7, 88, 12], [140, 3, 3, 61], list(range(20, 52))]
LONG_PROMPT = "A question about the weather: " * 3


def program():
    """The program of the second engine; `None` if it was not built."""
    named = os.environ.get("ATTUNE_SECOND_ENGINE")
    target = subprocess.run([attunelib.ROOT / "tools" / "target-dir"], capture_output=True, text=True, check=True)
    built = Path(named) if named else Path(target.stdout.strip()) / "mistralrs" / "release" / "attune-mistralrs"
    return built if built.is_file() else None


def entry(name, folder, engine="auto"):
    return f'[[models]]\nid = "{name}"\npath = "{folder}"\nengine = "{engine}"\n'


@pytest.fixture(scope="module")
def second(start_server, tmp_path_factory):
    """A server with models of both engines: the same ones in each where both have the family."""
    found = program()
    if found is None:
        pytest.skip("the second engine is not built: make mistralrs")
    folder = tmp_path_factory.mktemp("second")
    text = f'second_engine = "{found}"\n'
    for name in ["starcoder2", "glm4"]:
        text += entry(name, FOREIGN / name)
    text += entry("adapted", FOREIGN / "starcoder2") + f'adapter = "{FOREIGN / "starcoder2" / "adapter"}"\n'
    for name in SHARED:
        made = folder / name
        made.mkdir()
        # Beyond a window the second engine has no context.
        config = json.loads((FIXTURES / name / "config_old_style.json").read_text())
        (made / "config.json").write_text(json.dumps({**config, "sliding_window": None, "use_sliding_window": False}))
        (made / "model.safetensors").symlink_to(FIXTURES / name / "model.safetensors")
        (made / "tokenizer.json").symlink_to(FOREIGN / "glm4" / "tokenizer.json")
        text += entry(name, made, "attune") + entry(f"{name}-2", made, "mistralrs")
    text += entry("demo", attunelib.DEMO) + entry("demo-2", attunelib.DEMO, "mistralrs")
    settings = folder / "attune.toml"
    settings.write_text(text)
    return start_server("--config", str(settings))


def complete(server, model, prompt, **more):
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, **more}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def process_of(server, model):
    """The id of the process that runs `model`; `None` while there is none."""
    command = ["pgrep", "-P", str(server.process.pid), "-f", f"attune-mistralrs {model}$"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return int(found[0]) if found else None


def wait_until(is_so, within, what):
    end = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < end, f"not within {within} s: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("family", ["starcoder2", "glm4"])
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


def test_what_it_does_not_do_is_refused_by_name(second):
    client = sdk(second)
    with pytest.raises(openai.BadRequestError, match="second engine"):
        client.embeddings.create(model="starcoder2", input="a text")
    with pytest.raises(openai.BadRequestError, match="log probabilities of the prompt"):
        client.completions.create(model="starcoder2", prompt=PROMPTS[0], echo=True, logprobs=1, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256"):
        client.completions.create(model="starcoder2", prompt=PROMPTS[0], max_tokens=400)
    lines = [{"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "yes"}]} for n in range(12)]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", content), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="does not train"):
        client.fine_tuning.jobs.create(model="demo-2", training_file=file.id)


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

    askers = [threading.Thread(target=ask) for ask in (ask_own_engine, ask_second_engine, ask_second_engine)]
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
