"""The command line of openai 0.28.1, the one that first tutorials on fine-tuning show."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shared import jsonl, prompts, wait_for

# More steps than a training makes before the next command begins.
LONG = ("--n_epochs", "50", "--batch_size", "1")


def run(*arguments, answer=""):
    """Runs `openai …`; returns what it did."""
    program = Path(sys.executable).with_name("openai")
    return subprocess.run([program, *arguments], input=answer, capture_output=True, text=True, timeout=120)


def openai(*arguments, answer=""):
    """What `openai …` printed; it must have succeeded."""
    done = run(*arguments, answer=answer)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "train.jsonl"
    path.write_bytes(jsonl(prompts(20)))
    return str(path)


@pytest.fixture(scope="module")
def job(train):
    """A fine-tune that was created from a file on disk and followed to its end."""
    valid = ("-v", train)
    said = openai(
        "api", "fine_tunes.create", "-t", train, *valid, "-m", "ada", "--n_epochs", "1", "--batch_size", "4",
        "--suffix", "by hand", "--no_check_if_files_exist",
    )  # fmt: skip
    assert "Uploaded file from" in said
    assert re.search(r"^\[.*\] Created fine-tune: ft-", said, re.MULTILINE), said
    assert "Status: succeeded" in said
    return re.search(r"Created fine-tune: (ft-\S+)", said)[1]


def test_a_finished_fine_tune_is_shown_and_its_model_answers(job):
    shown = json.loads(openai("api", "fine_tunes.get", "-i", job))
    assert (shown["status"], shown["model"]) == ("succeeded", "ada")
    assert shown["fine_tuned_model"]
    said = openai(
        "api", "completions.create", "-m", shown["fine_tuned_model"], "-p", "Hello", "-M", "5", "--temperature", "0"
    )
    assert said.startswith("Hello")


def test_following_a_finished_fine_tune_replays_it(job):
    said = openai("api", "fine_tunes.follow", "-i", job)
    assert f"Created fine-tune: {job}" in said
    assert "Status: succeeded" in said


def test_events_results_and_list(job):
    events = json.loads(openai("api", "fine_tunes.events", "-i", job))
    assert events["data"][0]["object"] == "fine-tune-event"
    header = openai("api", "fine_tunes.results", "-i", job).splitlines()[0].split(",")
    assert header[:4] == ["step", "elapsed_tokens", "elapsed_examples", "training_loss"]
    assert job in [other["id"] for other in json.loads(openai("api", "fine_tunes.list"))["data"]]


def test_a_file_that_was_uploaded_before_is_offered_again(train, job):
    name = Path(train)
    listed = json.loads(openai("api", "files.list"))["data"]
    same = [file["id"] for file in listed if file["bytes"] == name.stat().st_size]
    assert same
    said = openai("api", "fine_tunes.create", "-t", train, "-m", "ada", *LONG, "--no_follow", answer=same[0] + "\n")
    assert "potentially duplicated" in said
    assert f"Reusing already uploaded file: {same[0]}" in said
    again = re.search(r'"id": "(ft-[^"]+)"', said)[1]
    assert json.loads(openai("api", "fine_tunes.cancel", "-i", again))["id"] == again


def test_a_running_fine_tune_is_cancelled(train, job):
    said = openai(
        "api", "fine_tunes.create", "-t", train, "-m", "ada", *LONG, "--no_check_if_files_exist", "--no_follow",
    )  # fmt: skip
    long = re.search(r'"id": "(ft-[^"]+)"', said)[1]
    openai("api", "fine_tunes.cancel", "-i", long)

    def status():
        return json.loads(openai("api", "fine_tunes.get", "-i", long))["status"]

    assert wait_for(lambda: status() == "cancelled", "the cancellation")


def test_models_completions_chat_and_files(train):
    assert "ada" in [model["id"] for model in json.loads(openai("api", "models.list"))["data"]]
    assert json.loads(openai("api", "models.get", "-i", "ada"))["id"] == "ada"
    assert openai("api", "completions.create", "-m", "ada", "-p", "On Friday", "-M", "8").startswith("On Friday")
    streamed = openai("api", "completions.create", "-m", "ada", "-p", "On", "-M", "8", "-t", "0", "--stream")
    assert (
        streamed.strip() == openai("api", "completions.create", "-m", "ada", "-p", "On", "-M", "8", "-t", "0").strip()
    )
    assert openai("api", "chat_completions.create", "-m", "gpt-3.5-turbo", "-g", "user", "Hello", "-M", "8")
    file = json.loads(openai("api", "files.create", "-f", train, "-p", "fine-tune"))
    assert json.loads(openai("api", "files.get", "-i", file["id"]))["id"] == file["id"]
    openai("api", "files.delete", "-i", file["id"])


def test_faults_are_told_with_their_status():
    for arguments, status in [
        (("fine_tunes.get", "-i", "ft-nobody"), 404),
        (("fine_tunes.create", "-t", "nobody.jsonl", "-m", "ada"), 400),
        (("models.delete", "-i", "ada"), 403),
    ]:
        done = run("api", *arguments)
        assert done.returncode != 0
        assert f"HTTP status code: {status}" in done.stderr, done.stderr


def test_the_model_of_a_fine_tune_is_deleted(job):
    model = json.loads(openai("api", "fine_tunes.get", "-i", job))["fine_tuned_model"]
    openai("api", "fine_tunes.delete", "-i", job)
    assert run("api", "models.get", "-i", model).returncode != 0
