"""`attune jobs`: a job's progress in a pipe and on a terminal, its end as an exit status, and a server that is started anew
in between."""

import os
import pty
import re
import subprocess
import time
from contextlib import contextmanager

import attunelib
import pytest
from conftest import QUICK, create_job, sdk, steps, upload, wait_for, wait_for_end


def command(binary, *arguments, **settings):
    full = [str(binary), "jobs", *map(str, arguments)]
    return subprocess.run(full, capture_output=True, text=True, timeout=120, env=attunelib.environment(settings))


@contextmanager
def watching(binary, url, job, *options, **settings):
    """A running `attune jobs watch`; it is ended at the end."""
    full = [str(binary), "jobs", "watch", job, "--url", url, *map(str, options)]
    process = subprocess.Popen(
        full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=attunelib.environment(settings)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def shown_steps(text):
    return [int(number) for number in re.findall(r"^\d\d:\d\d:\d\d step (\d+)/", text, re.MULTILINE)]


def test_lines_of_a_pipe_show_each_step_once_and_the_end(binary, server, client, tickets):
    job = create_job(client, upload(client, tickets[:24]))
    with watching(binary, server.url, job.id) as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    done = client.fine_tuning.jobs.retrieve(job.id)
    lines = out.splitlines()
    assert lines[-1] == f"succeeded: {done.fine_tuned_model}"
    assert shown_steps(out) == steps(client, job.id) == list(range(1, 13))
    assert re.search(r" step 6/12: loss [\d.]+, [\d.,]+ tokens/s, .* left", out)
    for words in ("Expected: ", "Completed epoch 1/2", "Took "):
        assert words in out, words


def test_a_job_with_a_validation_file_shows_its_right_answers_and_the_best_checkpoint(
    binary, server, client, tickets, heldout
):
    files = [upload(client, lines) for lines in (tickets[:24], heldout[:6])]
    job = create_job(client, files[0], validation_file=files[1])
    done = wait_for_end(client, job.id)
    assert done.status == "succeeded", done.error
    shown = command(binary, "watch", job.id, "--url", server.url)
    lines = shown.stdout.splitlines()
    assert re.search(r"full validation loss [\d.]+, \d of 6 answers right \(before: 0\)", shown.stdout), shown.stdout
    assert re.search(r"^\S+ \d of 6 validation answers right \(before: 0\), full", shown.stdout, re.MULTILINE)
    assert "Best by full validation loss: step " in shown.stdout and done.fine_tuned_model in shown.stdout
    place = next(number for number, line in enumerate(lines) if line.endswith(" Answers to 3 validation prompts:"))
    names = [line[6:].split()[0] for line in lines[place + 1 : place + 13]]
    assert names == ["prompt", "expected", "base", "fine-tuned"] * 3
    letter, expected = (message["content"] for message in heldout[0]["messages"])
    assert letter in lines[place + 1] and lines[place + 2].endswith(expected), lines[place : place + 5]


def test_the_exit_status_says_how_a_job_ended(binary, server, client, tickets):
    few = create_job(client, upload(client, tickets[:3]))
    wait_for_end(client, few.id)
    failed = command(binary, "watch", few.id, "--url", server.url)
    assert failed.returncode == 3 and "failed: Training file has 3 example(s)" in failed.stdout
    long = create_job(client, upload(client, tickets[:60]), {**QUICK, "n_epochs": 50})
    client.fine_tuning.jobs.cancel(long.id)
    wait_for_end(client, long.id)
    cancelled = command(binary, "watch", long.id, "--url", server.url)
    assert (cancelled.returncode, cancelled.stdout.splitlines()[-1]) == (4, "cancelled")
    for job, words in (("ftjob-none", "No such FineTuningJob"), ("ft-none", "begin with ftjob-")):
        unknown = command(binary, "watch", job, "--url", server.url)
        assert unknown.returncode == 1 and words in unknown.stderr, unknown.stderr


def test_a_terminal_gets_a_bar(binary, server, client, tickets):
    job = create_job(client, upload(client, tickets[:24]))
    ours, theirs = pty.openpty()
    full = [str(binary), "jobs", "watch", job.id, "--url", server.url]
    environment = {**attunelib.environment(), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(full, stdout=theirs, stdin=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := read(ours):
            shown += chunk
        assert process.wait(30) == 0, process.stderr.read()
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    text = shown.decode(errors="replace")
    assert "\x1b[" in text and re.search(r" \d+/12 ", text), text
    assert "tokens/s" in text and "Completed epoch 2/2" in text and "succeeded: ft:demo:" in text
    assert not shown_steps(text), "steps move the bar"


def read(terminal):
    """What the other end has written; nothing where it is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.mark.timeout(240)
def test_watching_goes_on_where_the_server_was_killed_and_started_again(binary, tickets):
    folder = attunelib.data_folder()
    first = attunelib.Server(binary, folder).start()
    listen = first.url.removeprefix("http://")
    second = attunelib.Server(binary, folder, listen=listen)
    try:
        with sdk(first) as client:
            job = create_job(client, upload(client, tickets[:60]), {**QUICK, "n_epochs": 40})
            with watching(binary, first.url, job.id) as process:
                wait_for(lambda: steps(client, job.id), "the first steps")
                first.kill()
                # The watcher says that it has noticed, so the new server is not too early.
                seen = until(process.stdout, "asking again")
                second.start()
                out, errors = process.communicate(timeout=600)
                assert process.returncode == 0, errors
                text = seen + out
                assert text.splitlines()[-1].startswith("succeeded: ft:demo:")
                numbers = shown_steps(text)
                assert numbers[-1] == 600 and "asking again" in seen
    finally:
        for server in (second, first):
            if server.process is not None:
                server.stop()


def until(stream, words):
    """The lines of `stream` up to the one that holds `words`."""
    text = ""
    while words not in text:
        line = stream.readline()
        assert line, text
        text += line
    return text


def test_a_server_that_never_answers_is_given_up(binary):
    begin = time.monotonic()
    lost = command(binary, "watch", "ftjob-1", "--url", "http://127.0.0.1:1", "--patience", 0)
    assert lost.returncode == 1 and "does not answer" in lost.stderr
    assert time.monotonic() - begin < 60


def test_keys_come_from_the_environment_and_jobs_stay_with_their_owner(binary, tenants, tickets):
    with sdk(tenants.server, tenants.keys["acme"]) as client:
        job = create_job(client, upload(client, tickets[:12]))
        client.fine_tuning.jobs.cancel(job.id)
        wait_for_end(client, job.id)
    at = ("--url", tenants.url)
    own = command(binary, "list", *at, ATTUNE_API_KEY=tenants.keys["acme"])
    assert own.returncode == 0, own.stderr
    (row,) = (line.split() for line in own.stdout.splitlines() if line.startswith(job.id))
    assert row[1:3] == ["cancelled", "demo"] and own.stdout.startswith("ID ")
    others = command(binary, "list", *at, ATTUNE_API_KEY=tenants.keys["rival"])
    assert others.returncode == 0 and job.id not in others.stdout
    watched = command(binary, "watch", job.id, *at, ATTUNE_API_KEY=tenants.keys["rival"])
    assert watched.returncode == 1 and "No such FineTuningJob" in watched.stderr
    nobody = command(binary, "list", *at)
    assert nobody.returncode == 1 and "401" in nobody.stderr
