"""What a job would take, by HTTP and by the command line: it creates nothing, is refused as the job would be, and says what
the job then does."""

import json
import re
import subprocess

import attunelib
import httpx
import pytest
from conftest import QUICK, create_job, events, jsonl, sdk, upload, wait_for_end

ESTIMATE = "/v1/fine_tuning/jobs/estimate"
REASONS = ("the machine is busy", "the speed was measured for a few seconds only", "the speed of the machine changes a little")


@pytest.fixture(scope="module")
def priced(start_server):
    """A server whose hour costs 3.60, and a million trained tokens 5.00: a thousandth for each second."""
    return start_server(
        settings={"ATTUNE_TRAINING": "{price_per_hour=3.6}", "ATTUNE_PRICES": "{demo={training=5.0}}",
                  "ATTUNE_CURRENCY": "EUR"}
    )  # fmt: skip


@pytest.fixture(scope="module")
def web(priced):
    with httpx.Client(base_url=priced.url, timeout=120) as web:
        yield web


def body(file, **settings):
    return {"model": "demo", "training_file": file, "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": QUICK}}, **settings}  # fmt: skip


def test_an_estimate_creates_nothing_and_says_what_the_job_then_does(priced, web, tickets):
    with sdk(priced) as client:
        file, held_out = upload(client, tickets[:24]), upload(client, tickets[24:30])
        before = web.get("/v1/fine_tuning/jobs").json(), web.get("/v1/files").json()
        answer = web.post(ESTIMATE, json=body(file, validation_file=held_out))
        assert answer.status_code == 200, answer.text
        estimate = answer.json()
        assert (web.get("/v1/fine_tuning/jobs").json(), web.get("/v1/files").json()) == before
        assert estimate["object"] == "fine_tuning.job.estimate"
        assert (estimate["model"], estimate["training_file"], estimate["validation_file"]) == ("demo", file, held_out)
        assert (estimate["examples"], estimate["epochs"], estimate["steps"]) == (24, 2, 12)
        assert estimate["trained_tokens"] == 2 * estimate["tokens_per_epoch"]
        assert 0 < estimate["target_tokens_per_epoch"] < estimate["tokens_per_epoch"]
        assert estimate["hyperparameters"]["rank"] == QUICK["rank"]
        low, likely, high = (estimate[f"duration_{bound}seconds"] for bound in ("low_", "", "high_"))
        assert 0 < low < likely < high
        assert estimate["uncertainty"] in REASONS
        cost = estimate["cost"]
        assert cost["currency"] == "EUR"
        assert cost["machine_low"] == pytest.approx(low / 1000)
        assert cost["machine_high"] == pytest.approx(high / 1000)
        assert cost["machine"] == pytest.approx(estimate["duration_seconds"] / 1000)
        assert cost["tokens"] == pytest.approx(5e-6 * estimate["trained_tokens"])

        job = wait_for_end(client, create_job(client, file, validation_file=held_out).id)
        assert (job.status, job.trained_tokens) == ("succeeded", estimate["trained_tokens"])
        told = events(client, job.id)
        (expected,) = (event for event in told if event.message.startswith("Expected: "))
        (took,) = (event for event in told if event.message.startswith("Took "))
        assert expected.data["estimate"]["steps"] == estimate["steps"]
        assert "EUR for machine time" in expected.message and "expected" in took.message
        assert expected.data["estimate"]["uncertainty"] in expected.message
        low, high = (expected.data[f"duration_{bound}_seconds"] for bound in ("low", "high"))
        assert 0 < low < expected.data["duration_seconds"] < high
        assert took.data["estimated"]["duration_low_seconds"] == low
        assert took.data["estimated"]["duration_high_seconds"] == high
        seconds = took.data["actual"]["duration_seconds"]
        assert ("shorter than expected" in took.message) == (seconds < low), took.message
        assert ("longer than expected" in took.message) == (seconds > high), took.message
        assert took.data["actual"]["duration_seconds"] > 0 and took.data["actual"]["peak_resident_bytes"] > 1 << 20


def test_what_a_job_has_shown_is_not_measured_again(web, priced, tickets):
    with sdk(priced) as client:
        file = upload(client, tickets[:12])
        # A measurement on a busy machine is not kept, the steps of a job are.
        wait_for_end(client, create_job(client, file).id)
    first, second = (web.post(ESTIMATE, json=body(file)).json() for _ in range(2))
    assert first["tokens_per_second"] == second["tokens_per_second"]
    assert {first["uncertainty"], second["uncertainty"]} <= {REASONS[0], REASONS[2]}


REFUSED = {
    "no file": {"training_file": None},
    "an unknown file": {"training_file": "file-000000000000000000000000"},
    "an unknown model": {"model": "gpt-none"},
    "too many epochs": {"hyperparameters": {"n_epochs": 51}, "method": None},
    "another method": {"method": {"type": "reinforcement"}},
    "a setting of the wrong type": {"hyperparameters": {"rank": "wide"}, "method": None},
    "an unknown file to measure on": {"validation_file": "file-000000000000000000000000"},
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_estimate_is_refused_with_the_words_of_the_job(web, priced, tickets, what):
    with sdk(priced) as client:
        file = upload(client, tickets[:12])
    asked = body(file, **REFUSED[what])
    estimate, job = web.post(ESTIMATE, json=asked), web.post("/v1/fine_tuning/jobs", json=asked)
    assert estimate.status_code == job.status_code and 400 <= job.status_code < 500
    assert estimate.json() == job.json()


def test_faults_of_the_file_are_told_before_any_job(web, priced, tickets):
    lines = [*tickets[:12], {"messages": [{"role": "user", "content": "alone"}]}]
    with sdk(priced) as client:
        answer = web.post(ESTIMATE, json=body(upload(client, lines)))
        few = web.post(ESTIMATE, json=body(upload(client, tickets[:3])))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "training_file", "invalid_training_file")
    assert "Line 13 " in error["message"]
    assert (few.status_code, few.json()["error"]["code"]) == (400, "invalid_n_examples")


def test_repeated_examples_are_warned_of(web, priced, tickets):
    with sdk(priced) as client:
        estimate = web.post(ESTIMATE, json=body(upload(client, tickets[:10] * 2))).json()
    assert any("repeat an earlier one" in warning for warning in estimate["warnings"]), estimate["warnings"]


def test_a_caller_who_leaves_holds_up_nobody(web, priced, tickets):
    with sdk(priced) as client:
        long = upload(client, tickets * 40)
        short = upload(client, tickets[:12])
    with pytest.raises(httpx.TimeoutException):
        httpx.post(priced.url + ESTIMATE, json=body(long), timeout=0.3)
    assert web.post(ESTIMATE, json=body(short)).status_code == 200


def command(binary, *arguments, settings=None):
    full = [str(binary), *map(str, arguments)]
    return subprocess.run(full, capture_output=True, text=True, timeout=120, env=attunelib.environment(settings))


def test_the_command_line_says_the_same_with_and_without_a_server(binary, priced, web, tickets, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(jsonl(tickets[:20]))
    options = ["estimate", file, "--json", "--set", "n_epochs=3", "--set", "rank=4", "--set", "batch_size=5"]
    with sdk(priced) as client:
        # Both say what this job has shown: a measurement on a busy machine would not be kept.
        job = create_job(client, upload(client, tickets[:20]), {"n_epochs": 1, "rank": 4, "batch_size": 5})
        wait_for_end(client, job.id)
    files = web.get("/v1/files").json()
    asked = command(binary, *options, "--url", priced.url)
    assert asked.returncode == 0, asked.stderr
    assert web.get("/v1/files").json() == files, "what was uploaded is deleted"
    # Beside the server on the same data, whose rates it finds.
    here = command(binary, *options, "--model", "demo", "--data-dir", priced.data_dir)
    assert here.returncode == 0, here.stderr
    asked, here = json.loads(asked.stdout), json.loads(here.stdout)
    for figure in ("examples", "tokens_per_epoch", "target_tokens_per_epoch", "steps", "trained_tokens",
                   "hyperparameters", "tokens_per_second", "model"):  # fmt: skip
        assert asked[figure] == here[figure], figure
    assert (here["steps"], here["epochs"]) == (12, 3)


def test_no_model_is_taken_that_was_not_meant(binary, priced, tickets, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(jsonl(tickets[:20]))
    demo = attunelib.ROOT / "models" / "demo"
    two = {"ATTUNE_MODELS": f'[{{id="first",path="{demo}"}},{{id="second",path="{demo}"}}]'}
    for options, settings, words in (
        ([], None, ("no model is named", f"attune estimate {file} --model ID=PATH", f"{file} --url http://127.0.0.1:8080")),
        ([], two, ("--model (first, second)",)),
        (["--model", "third"], two, ("first, second",)),
        (["--model", f"mine={demo}", "--url", priced.url], None, (f"--model mine={demo}", "by its id")),
    ):
        refused = command(binary, "estimate", file, "--data-dir", tmp_path / "data", *options, settings=settings)
        assert (refused.returncode, refused.stdout) == (1, ""), refused.stdout
        assert all(word in refused.stderr for word in words), refused.stderr
        assert not (tmp_path / "data").exists(), "it is refused before any database starts"


def test_a_server_of_several_models_is_asked_for_one_of_them(binary, start_server, tickets, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(jsonl(tickets[:20]))
    demo = attunelib.ROOT / "models" / "demo"
    server = start_server("--model", f"first={demo}", "--model", f"second={demo}")
    guessed = command(binary, "estimate", file, "--url", server.url)
    assert guessed.returncode == 1 and "--model (first, second)" in guessed.stderr, guessed.stderr
    named = command(binary, "estimate", file, "--url", server.url, "--model", "second", "--json")
    assert named.returncode == 0 and json.loads(named.stdout)["model"] == "second", named.stderr


def test_the_command_line_estimates_pairs_of_answers(binary, priced, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(jsonl({"prompt": f"{n} and", "chosen": " more", "rejected": " no more of it"} for n in range(12)))
    options = ["--json", "--set", "beta=0.2", "--set", "batch_size=4", "--set", "n_epochs=2", "--url", priced.url]
    done = command(binary, "estimate", file, "--method", "dpo", *options)
    assert done.returncode == 0, done.stderr
    estimate = json.loads(done.stdout)
    assert (estimate["hyperparameters"]["beta"], estimate["steps"]) == (0.2, 6)
    assert command(binary, "estimate", file, *options).returncode == 1, "the lines are no supervised examples"


def test_the_command_line_prints_lines_and_faults(binary, priced, tickets, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(jsonl(tickets[:20]))
    said = command(binary, "estimate", file, "--url", priced.url)
    assert said.returncode == 0, said.stderr
    names = [line.split()[0] for line in said.stdout.splitlines()]
    assert names == ["model", "file", "tokens", "training", "settings", "duration", "memory", "cost", "cost"]
    assert re.search(r"^duration +.+ tokens per second with nothing else to do; expect .+: the ", said.stdout, re.MULTILINE)
    assert re.search(r"^cost +[\d.]+ EUR for machine time \([\d.]+ EUR to [\d.]+ EUR\)$", said.stdout, re.MULTILINE)
    for options, words in (
        (["--set", "n_epochs=99"], "between 1 and 50"),
        (["--set", "epochs"], "NAME=VALUE"),
        (["--model", "none"], "none"),
        (["--url", "http://127.0.0.1:1"], "does not answer"),
    ):
        fault = command(binary, "estimate", file, "--url", priced.url, *options) if "--url" not in options else command(
            binary, "estimate", file, *options
        )  # fmt: skip
        assert fault.returncode == 1 and words in fault.stderr, (options, fault.stderr)
    assert command(binary, "estimate", tmp_path / "none.jsonl", "--url", priced.url).returncode == 1
