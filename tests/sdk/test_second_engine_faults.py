"""What becomes of requests if the program of the second engine has faults. `stand_in_engine.py` has them all, so that these
tests need no other program."""

import json
import subprocess
import time
from pathlib import Path

import attunelib
import httpx
import pytest
from conftest import wait_for
from second_engine import FOREIGN, complete, entry, process_of
from test_second_engine_standing import metric, page

PROGRAM = Path(__file__).with_name("stand_in_engine.py")
PROMPT = [5, 9, 31, 7]


def settings(folder, *kinds):
    text = f'second_engine = "{PROGRAM}"\n' + entry("demo", attunelib.DEMO) + entry("words", attunelib.DEMO, "mistralrs")
    file = folder / "attune.toml"
    file.write_text(text + "".join(entry(kind, FOREIGN / "glm4") for kind in kinds))
    return file


@pytest.fixture(scope="module")
def faulty(start_server, tmp_path_factory):
    """A server with a model for each fault."""
    kinds = ["whole", "slow", "crashing", "garbage", "silent", "small"]
    file = settings(tmp_path_factory.mktemp("faulty"), *kinds)
    limits = {"ATTUNE_LIMITS__MAX_REQUEST_SECONDS": "3", "ATTUNE_LIMITS__MAX_QUEUE_SECONDS": "2"}
    return start_server("--config", str(file), settings=limits)


def ask(server, model, **more):
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def error_of(answer):
    return answer.status_code, answer.json()["error"]["message"]


def pieces(text):
    """The tokens of a text, whose words are `t` and an id."""
    return [int(word.removeprefix("t")) for word in text.split()]


def test_a_program_without_faults_is_asked_for_tokens_and_scores(faulty):
    choice = complete(faulty, "whole", PROMPT, max_tokens=6, logprobs=1, echo=True)["choices"][0]
    assert pieces(choice["text"]) == [5, 9, 31, 7, 5, 9, 31, 7, 5, 9]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.5, -1.5, -1.5] + [-0.5] * 6
    alone = complete(faulty, "whole", PROMPT, max_tokens=0, logprobs=1, echo=True)
    assert alone["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.5, -1.5, -1.5]
    assert alone["usage"]["completion_tokens"] == 0
    many = complete(faulty, "whole", PROMPT, max_tokens=4, n=3)
    assert [pieces(choice["text"]) for choice in many["choices"]] == [PROMPT] * 3
    # 2 is the end token of the model.
    ended = complete(faulty, "whole", [5, 2, 7], max_tokens=6)["choices"][0]
    assert (pieces(ended["text"]), ended["finish_reason"]) == ([5], "stop")
    on = complete(faulty, "whole", [5, 2, 7], max_tokens=6, ignore_eos=True)["choices"][0]
    assert on["finish_reason"] == "length"


def test_a_context_ends_where_the_programs_room_does(faulty):
    """On a GPU it may have less room for keys and values than the model's context takes."""
    complete(faulty, "small", PROMPT, max_tokens=20)
    status, message = error_of(ask(faulty, "small", max_tokens=21))
    assert status == 400 and "maximum context length is 24" in message


@pytest.mark.parametrize("kind", ["crashing", "garbage"])
def test_an_answer_whose_process_ends_fails_and_the_next_process_answers(faulty, kind):
    before = process_of(faulty, kind)
    status, message = error_of(ask(faulty, kind))
    assert status == 503 and "is being started again" in message
    assert wait_for(lambda: process_of(faulty, kind) not in (None, before), "a new process")
    wait_for(lambda: ask(faulty, kind, max_tokens=2).status_code == 200, "the model is back")
    assert metric(faulty, "attune_engine_restarts_total", kind) >= 1
    assert metric(faulty, "attune_engine_restarts_total", "whole") in (None, 0)
    streamed = ask(faulty, kind, stream=True).text
    assert "is being started again" in streamed and "[DONE]" not in streamed
    complete(faulty, "whole", PROMPT, max_tokens=2)


def test_an_answer_that_never_comes_is_given_up_and_others_wait_no_longer_than_they_may(faulty):
    began = time.monotonic()
    status, message = error_of(ask(faulty, "silent"))
    assert status == 504 and 2 < time.monotonic() - began < 30, message
    complete(faulty, "whole", PROMPT, max_tokens=2)


def test_a_model_that_loads_is_shown_and_its_requests_are_refused_meanwhile(faulty):
    subprocess.run(["kill", "-9", str(process_of(faulty, "slow"))], check=True)
    wait_for(lambda: "slow" in httpx.get(f"{faulty.url}/ready").json().get("loading", []), "the model loads")
    wait_for(lambda: "loading</span> for" in page(faulty, "/ui/models/slow"), "the page says that it loads")
    one = page(faulty, "/ui/models/slow")
    assert "of files of" in one and "once" in one
    assert metric(faulty, "attune_second_engine_ready", "slow") == 0
    assert metric(faulty, "attune_second_engine_ready", "whole") == 1
    assert "loading</span> for" in page(faulty, "/ui/operations") and "loading</span> for" in page(faulty, "/ui/models")
    status, message = error_of(ask(faulty, "slow"))
    assert status == 503 and "is being started again" in message
    wait_for(lambda: ask(faulty, "slow").status_code == 200, "the model is back")
    assert "slow" not in httpx.get(f"{faulty.url}/ready").json().get("loading", [])
    assert "ready</span> for" in page(faulty, "/ui/models/slow")


def test_a_grammar_allows_each_token(faulty):
    """The stand-in takes the first token that is allowed, each time."""
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    body = {
        "model": "words",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": schema, "strict": True}},
    }
    answer = httpx.post(f"{faulty.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.json()["choices"][0]["message"]["content"])["mood"] in ("good", "bad")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("old", "speaks version 1 of the protocol"), ("unfit", "the weights are for another planet")],
)
def test_a_program_that_does_not_fit_is_told_at_the_start(binary, tmp_path, kind, message):
    command = [str(binary), "serve", "--listen", "127.0.0.1:0", "--config", str(settings(tmp_path, kind))]
    command += ["--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=attunelib.environment())
    assert done.returncode != 0 and message in done.stderr, done.stderr


def test_the_memory_is_said_before_the_program_is_started(faulty):
    said = [line for line in faulty.log if "loads this model into a process of its own" in line and "whole" in line]
    assert len(said) == 1, json.dumps(list(faulty.log))
    assert "memory_mib=" in said[0] and "free_mib=" in said[0] and "dtype" in said[0]
